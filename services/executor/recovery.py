"""Reading a partition until its state is known: from the last complete checkpoint, else from the beginning.

The index topic points at the checkpoint; a stale or missing pointer costs time, never truth. Recovery time depends on
the log written since about two checkpoints ago, not on the age of runs or of the partition. Blocking: run it in a
thread.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.events.blobs import Blobs
from libs.events.claim_check import restore
from libs.events.codec import CodecError, decode_event, marked_as, run_of, stamp_of, type_of
from libs.events.log import Log, LogTruncated, Record, Topic
from libs.events.model import (
    RUN_END_TYPES,
    RUN_EVENT_TYPES,
    CheckpointWritten,
    Event,
    Mark,
    PartitionClaimed,
    RunSnapshotted,
)
from libs.events.positions import Position, exists, read_pointers
from libs.events.sealed_values import read_copied
from libs.events.sealing import Vault
from libs.events.validity import Validity
from services.executor.partition import NEEDS_BODY, PartitionFold

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class PartitionReader:
    """Feeds records of an events partition into a `PartitionFold` and keeps the events that runs need."""

    fold: PartitionFold
    next_offset: int = 0
    checkpoint_at: int | None = None
    """Offset of the checkpoint that must be met before the table is known; None: it is known."""
    events: dict[str, list[Record]] = field(default_factory=dict)
    """Unfinished run -> its events behind its snapshot."""
    snapshots: dict[str, Record] = field(default_factory=dict)
    """Unfinished run -> its newest snapshot that was met."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Run -> why it must be quarantined: one of its valid events cannot be read."""
    began: int = field(init=False)
    """Offset of the first record that is read."""
    _parts: dict[int, Any] = field(default_factory=dict)
    _checkpoint_id: str = ""

    def __post_init__(self) -> None:
        self.began = self.next_offset

    def feed(self, records: Iterable[Record]) -> None:
        for record in records:
            before = Position(record.offset, self.fold.validity.epoch, self.fold.validity.n)
            self.next_offset = record.offset + 1
            if self.fold.validity.admit(stamp_of(record)):
                self._take(record, before)

    def _take(self, record: Record, before: Position) -> None:
        name, run_id = type_of(record), run_of(record)
        if name in NEEDS_BODY or name not in RUN_EVENT_TYPES:
            try:
                recorded = decode_event(record)
            except CodecError as error:
                self._cannot_read(run_id, error)
                if run_id and self.checkpoint_at is None:
                    self.fold.count(name, run_id, before)  # it has a place in its run, whatever it says
                return
            if isinstance(recorded.event, CheckpointWritten):
                self._on_checkpoint(record, recorded.event)
                return
            if isinstance(recorded.event, RunSnapshotted):
                self._on_snapshot(record, recorded.event)
                return
            if self.checkpoint_at is None or isinstance(recorded.event, PartitionClaimed):
                self.fold.apply(recorded.event, recorded.run_id, recorded.at_us, before)
        elif self.checkpoint_at is None:
            self.fold.count(name, run_id, before)
        if run_id:
            self._keep(name, run_id, record)

    def _keep(self, name: str, run_id: str, record: Record) -> None:
        if name in RUN_END_TYPES:
            self.events.pop(run_id, None)
            self.snapshots.pop(run_id, None)
        else:
            self.events.setdefault(run_id, []).append(record)

    def _on_snapshot(self, record: Record, snapshot: RunSnapshotted) -> None:
        self.events.pop(snapshot.run_id, None)
        self.snapshots[snapshot.run_id] = record
        validity = self.fold.validity
        behind = Position(record.offset + 1, validity.epoch, validity.n)
        self.fold.snapshotted(snapshot.run_id, snapshot.seq, record.offset, behind)

    def _on_checkpoint(self, record: Record, part: CheckpointWritten) -> None:
        if self.checkpoint_at is None:
            return
        if part.checkpoint_id != self._checkpoint_id:
            self._checkpoint_id, self._parts = part.checkpoint_id, {}
        self._parts[part.part] = part.data
        if record.offset >= self.checkpoint_at and len(self._parts) == part.parts:
            self.fold.load([self._parts[index] for index in range(part.parts)])
            self.checkpoint_at = None
            for kept in (self.events, self.snapshots):
                for run_id in [run_id for run_id in kept if run_id not in self.fold.runs]:
                    del kept[run_id]

    def _cannot_read(self, run_id: str, error: CodecError) -> None:
        logger.error("event_unreadable", extra={"run_id": run_id, "problem": str(error)})
        if run_id:
            self.unreadable[run_id] = str(error)


def start_reader(log: Log, partition: int) -> PartitionReader:
    """A reader at the place where recovery begins: the pointed checkpoint's, else offset 0."""
    fold = PartitionFold(partition)
    pointer = read_pointers(log).get(partition)
    if pointer is not None and pointer.scan is not None and exists(log, partition, pointer.scan):
        fold.validity.epoch, fold.validity.n = pointer.scan.epoch, pointer.scan.n
        return PartitionReader(fold, next_offset=pointer.scan.offset, checkpoint_at=pointer.checkpoint.offset)
    return PartitionReader(fold)


def read_to(log: Log, reader: PartitionReader, stop: int | None = None) -> None:
    """Feed the reader up to `stop`, or to the end as of now. Blocking. Raises LogTruncated."""
    for records in log.read(Topic.EVENTS, reader.fold.partition, reader.next_offset, stop):
        reader.feed(records)


def recover(log: Log, partition: int) -> PartitionReader:
    """The partition's state as of now. A pointer that leads nowhere is ignored: everything is read."""
    reader = start_reader(log, partition)
    read_to(log, reader)
    if reader.checkpoint_at is not None:
        logger.warning("checkpoint_unusable", extra={"partition": partition, "offset": reader.checkpoint_at})
        reader = PartitionReader(PartitionFold(partition))
        read_to(log, reader)
    return reader


def read_run(log: Log, partition: int, run_id: str, since: Position, stop: int) -> list[Record]:
    """The run's valid records from `since` up to `stop`. Blocking. Raises LogTruncated, LogError."""
    validity = Validity(since.epoch, since.n)
    batches = log.read(Topic.EVENTS, partition, since.offset, stop)
    return [
        record
        for records in batches
        for record in records
        if validity.admit(stamp_of(record)) and run_of(record) == run_id
    ]


APART = 500
"""Offsets between two marked events from which on they are read by themselves."""


def read_marked(log: Log, blobs: Blobs, vault: Vault, partition: int, marks: Sequence[Mark]) -> list[tuple[str, Event]]:
    """(run, event) of every mark, in the order of the marks, with all values. Blocking.

    Raises LogTruncated when one of them is not there, LogError, CodecError.
    """
    wanted: dict[tuple[str, str] | None, list[Mark]] = {}
    for mark in marks:
        wanted.setdefault((mark.kind, mark.of), []).append(mark)
    found: dict[Mark, Record] = {}
    for first in sorted(marks, key=lambda mark: mark.offset):
        if first in found:
            continue
        near = [mark for mark in marks if first.offset <= mark.offset < first.offset + APART]
        validity = Validity(first.epoch, first.n)
        for records in log.read(Topic.EVENTS, partition, first.offset, batch=APART):
            for record in records:
                if validity.admit(stamp_of(record)):
                    for mark in wanted.get(marked_as(record), ()):
                        # In a log that was imported commands count from 0 again, so causes repeat.
                        if mark.offset <= record.offset:
                            found.setdefault(mark, record)
            if all(mark in found for mark in near):
                break
        if first not in found:
            raise LogTruncated(f"{Topic.EVENTS}[{partition}]: {first.kind} of {first.of} is gone. Restore the topic")
    decoded = {mark: decode_event(record, vault) for mark, record in found.items()}
    return [(decoded[mark].run_id, read_copied(restore(decoded[mark].event, blobs, vault), vault)) for mark in marks]
