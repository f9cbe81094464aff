"""Which records of an events partition count: one writer, decided in the log.

Every record that an owner writes carries `(epoch, n)`. A reader's state is `(E, N)`. A claim is valid exactly if its
epoch is E + 1 (it has n = 0) and sets `(E + 1, 0)`. Any other record is valid exactly if its epoch is E and its n is
N + 1. Everything else is ignored and counted, also what cannot be read. Executor, projector, API and command line all
go through `Validity`; nobody else compares epochs.

A sequence per run would not do: after a broker outage records 1 2 3 6 7 of one owner were in the log, and runs whose
records fell into the hole would have been lost while their neighbours went on.
"""

from dataclasses import dataclass, field

from libs.events.codec import Stamp


@dataclass(slots=True)
class Validity:
    """The reader's state `(epoch, n)`; starts at `(0, 0)` at offset 0."""

    epoch: int = 0
    n: int = 0
    ignored: int = field(default=0, compare=False)

    def admit(self, stamp: Stamp | None) -> bool:
        """Whether the record with this stamp counts; advances the state if so.

        `stamp` is None for a record without a readable stamp.
        """
        if stamp is None:
            self.ignored += 1
            return False
        if stamp.claim:
            if stamp.epoch == self.epoch + 1 and stamp.n == 0:
                self.epoch, self.n = stamp.epoch, 0
                return True
        elif stamp.epoch == self.epoch and stamp.n == self.n + 1 and self.epoch > 0:
            self.n += 1
            return True
        self.ignored += 1
        return False
