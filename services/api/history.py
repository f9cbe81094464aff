"""One run's events, read from the log: found by their key between two offsets, admitted by the validity rule.

Blocking; call it from a thread. Nothing here keeps anything: memory is one batch of the partition.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from libs.events.blobs import Blobs
from libs.events.claim_check import restore
from libs.events.codec import Recorded, decode_event, run_of, stamp_of, type_of
from libs.events.log import Log, LogError, Record, Topic
from libs.events.model import RUN_END_TYPES
from libs.events.positions import Position
from libs.events.sealing import Vault
from libs.events.validity import Validity

BATCH = 500


class HistoryBroken(LogError):
    """The log does not hold all events of a run, in order."""


@dataclass(slots=True, frozen=True)
class Span:
    """Where a run's events stand. All of them lie in [start.offset, stop)."""

    run_id: str
    partition: int
    start: Position | int
    """A position to begin at, or the offset of the run's first event (known to be valid)."""
    stop: int


def read_records(log: Log, span: Span) -> Iterator[list[Record]]:
    """The run's valid records, in batches, up to its end event or the span's. Raises LogError."""
    key = span.run_id.encode()
    validity = None if isinstance(span.start, int) else Validity(span.start.epoch, span.start.n)
    offset = span.start if isinstance(span.start, int) else span.start.offset
    for batch in log.read(Topic.EVENTS, span.partition, offset, span.stop, BATCH):
        found = []
        for record in batch:
            stamp = stamp_of(record)
            if validity is None:
                # The run's first event is valid, so its own stamp says what the state before it was.
                validity = Validity(stamp.epoch, stamp.n - 1) if stamp else Validity()
            if validity.admit(stamp) and record.key == key and run_of(record) == span.run_id:
                found.append(record)
                if type_of(record) in RUN_END_TYPES:
                    yield found
                    return
        if found:
            yield found


def read_events(log: Log, blobs: Blobs, span: Span, vault: Vault | None = None) -> Iterator[list[Recorded]]:
    """The run's events with all their values, from sequence 1 on; sealed ones as in `decode_event`.

    Raises LogError or CodecError.
    """
    seq = 0
    for records in read_records(log, span):
        events = []
        for record in records:
            recorded = decode_event(record, vault)
            seq += 1
            if recorded.seq != seq:
                raise HistoryBroken(
                    f"run {span.run_id}: sequence {recorded.seq} at events[{span.partition}]@{record.offset}, "
                    f"expected {seq}. Compare with: flowledger verify {span.run_id}"
                )
            events.append(restored(recorded, blobs, vault))
        yield events


def read_one(log: Log, blobs: Blobs, partition: int, offset: int) -> Recorded:
    """The event at `offset`, which is known to be valid. Raises LogError or CodecError."""
    for batch in log.read(Topic.EVENTS, partition, offset, offset + 1, 1):
        for record in batch:
            return restored(decode_event(record), blobs)
    raise LogError(f"events[{partition}]@{offset}: no such record")


def restored(recorded: Recorded, blobs: Blobs, vault: Vault | None = None) -> Recorded:
    """The event with its large values."""
    event = restore(recorded.event, blobs, vault)
    if event is recorded.event:
        return recorded
    return Recorded(
        event,
        recorded.run_id,
        recorded.seq,
        recorded.epoch,
        recorded.n,
        recorded.at_us,
        recorded.cause,
        recorded.partition,
        recorded.offset,
    )
