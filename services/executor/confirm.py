"""Which of an owner's records are confirmed: in the log, valid, and nobody claimed in between.

An acknowledgement alone does not prove that: a frozen owner that wakes up is acknowledged too. The record `n` of an
epoch whose claim stands at offset C must stand at C + n, plus the foreign records that were found (and read) between.

Pure: `on_ack` says what is to be done; the owner reads the log and comes back with `found_foreign` or `found_at`.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from libs.events.log import Ack


class Next(Enum):
    """What the owner must do now."""

    GO_ON = "go on"
    READ_FOREIGN = "read what stands between"
    """Read `[gap_start, gap_stop)`; a valid claim there: the epoch is over; else `found_foreign()`."""
    READ_BACK = "read back"
    """The log knows only that the record is there: find its offset, then `found_at(offset)`."""
    LOST = "lost"
    """A delivery error: the outcome is unknown, the epoch is over. Claim anew and read."""
    TRUNCATED = "truncated"
    """Acknowledged records are gone: stop the partition and raise the alarm."""


@dataclass(slots=True)
class Confirmer:
    """Follows the acknowledgements of one epoch."""

    epoch: int
    base: int
    """Offset of the claim, plus the foreign records found since."""
    confirmed: int = 0
    """All records up to this n are confirmed."""
    reason: str = ""
    _waiting: deque[Ack] = field(default_factory=deque)

    @property
    def offset(self) -> int:
        """Offset of the last confirmed record."""
        return self.base + self.confirmed

    @property
    def gap_start(self) -> int:
        return self.base + self.confirmed + 1

    @property
    def gap_stop(self) -> int:
        return self._waiting[0].offset if self._waiting else self.gap_start

    def on_acks(self, acks: list[Ack]) -> Next:
        """Take acknowledgements of this partition; those of other epochs are ignored."""
        self._waiting.extend(ack for ack in acks if ack.epoch == self.epoch and ack.n > 0)
        return self.go_on()

    def go_on(self) -> Next:
        """Confirm as far as possible."""
        waiting = self._waiting
        while waiting:
            ack = waiting[0]
            if ack.error is not None:
                self.reason = f"record {ack.n} of epoch {ack.epoch} may or may not be in the log: {ack.error}"
                return Next.LOST
            if ack.n != self.confirmed + 1:
                self.reason = f"record {ack.n} of epoch {ack.epoch} was acknowledged before {self.confirmed + 1}"
                return Next.LOST
            if ack.offset == -1:
                return Next.READ_BACK
            expected = self.base + ack.n
            if ack.offset > expected:
                return Next.READ_FOREIGN
            if ack.offset < expected:
                self.reason = f"record {ack.n} stands at offset {ack.offset}, behind records up to {expected - 1}"
                return Next.TRUNCATED
            self.confirmed = ack.n
            waiting.popleft()
        return Next.GO_ON

    def found_foreign(self) -> Next:
        """The records of the gap are foreign and hold no valid claim: they only shift the offsets."""
        self.base += self.gap_stop - self.gap_start
        return self.go_on()

    def found_at(self, offset: int) -> Next:
        """The first waiting record was read back at `offset`."""
        ack = self._waiting.popleft()
        self._waiting.appendleft(Ack(ack.partition, ack.epoch, ack.n, offset))
        return self.go_on()
