"""One log's runs into another log: what `flowledger log export` and `flowledger log import` do.

The target is claimed like an owner claims it: a claim in each partition, then the source's valid events, renumbered
`(epoch, n)`, with their run sequences, times and causes as they were, large values and uploaded files moved along. What
an owner writes for itself (claims, checkpoints, snapshots, rejections) stays behind; the next owner makes its own.
Unfinished runs go on there. At the end the target is read again: it must hold as many runs, events and files, and the
same definitions.

Done again after it broke off, it goes on where it was: what is in the target already is left out. It must be the only
owner meanwhile: a foreign claim, or runs of somebody else's in a partition, end it. The first record that it writes, in
the index topic, says which log is brought: no other one may follow it.
"""

import hashlib
import json
import queue
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from libs.events.blobs import Blobs, is_ref
from libs.events.codec import encode_body, encode_event, marked_as, run_of, stamp_of, type_of
from libs.events.files import NONE_MOVED, MovedFiles, files_in, move_in, moved_files
from libs.events.log import Ack, Entry, Log, LogError, Record, Topic
from libs.events.model import EVENT_TYPES, Mark, PartitionClaimed, PartitionReleased
from libs.events.slots import slots, with_values
from libs.events.validity import Validity

_BATCH = 500
_ACK_S = 60.0
_ORIGIN = b"brought-from"
_TAKEN_BACK = b""
_LEFT_BEHIND = frozenset(
    {
        "PartitionClaimed", "PartitionReleased", "OwnerConfirmed", "CommandRejected", "CheckpointWritten",
        "RunSnapshotted", "RunSetAside", "RunReleased",
    }
)  # fmt: skip


class TransferRefused(LogError):
    """The target is not one that this log can be brought into, as it is."""


@dataclass(slots=True)
class Totals:
    """What a log holds of what is brought along."""

    runs: int = 0
    events: int = 0
    definitions: int = 0
    """Keys whose newest fact was not taken back."""
    files: int = 0

    def __str__(self) -> str:
        return f"{self.runs} runs in {self.events} events, {self.definitions} definitions, {self.files} files"


@dataclass(slots=True)
class Transferred:
    definitions: int = 0
    events: int = 0
    runs: int = 0
    skipped: int = 0
    """Events that were there already."""
    files: int = 0
    there: Totals = field(default_factory=Totals)
    """Read from the target at the end. It is as much as was read from the source, else the transfer fails."""


@dataclass(slots=True)
class _There:
    """What the target partition holds."""

    validity: Validity = field(default_factory=Validity)
    seqs: dict[str, int] = field(default_factory=dict)
    marks: dict[tuple[str, str], list[Mark]] = field(default_factory=dict)
    """Where what later runs of a conversation need stands. Several in a log that was brought from another one, where
    commands counted from 0 before."""
    others: int = 0
    """Events without a run (of conversations) that were written."""


def transfer(
    source: Log,
    source_blobs: Blobs,
    target: Log,
    target_blobs: Blobs,
    *,
    now_us: Callable[[], int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Transferred:
    """Blocking. Raises TransferRefused, LogError; call again after the latter."""
    if target.partitions < source.partitions:
        raise TransferRefused(f"the target has {target.partitions} partitions, the source {source.partitions}")
    origin = source.topic_id(Topic.EVENTS)
    owner = f"transfer-{origin}"
    begun = _begun(target)
    if begun not in (None, origin):
        raise TransferRefused(
            f"the target has begun to get another log ({begun}, this one is {origin}). "
            "Bring that one again, or choose a new target"
        )
    # Before all else: what a run needs was written before its events, so what is read later on holds all of it.
    ends = {number: source.bounds(Topic.EVENTS, number)[1] for number in range(source.partitions)}
    there = {number: _look(target, number, owner) for number in range(source.partitions)}
    if begun is None:
        note = json.dumps({"source": origin, "topic_id": target.topic_id(Topic.EVENTS)}).encode()
        target.send(Topic.INDEX, 0, Entry(_ORIGIN, note), _ACK_S).result()
    done, wanted = Transferred(), Totals()
    done.definitions, facts = _definitions(source, target)
    moved = moved_files(target)
    for number in there:
        done.files += _files(source, source_blobs, target, target_blobs, number, moved.get(number, NONE_MOVED))
    for number, known in there.items():
        _Partition(source, source_blobs, target, target_blobs, number, owner, known, now_us, done).copy(
            ends[number], wanted, progress
        )
    _check(target, facts, wanted, done.there)
    return done


def _check(target: Log, facts: dict[bytes | None, bytes], wanted: Totals, there: Totals) -> None:
    """Read what the target holds into `there`. Raises TransferRefused when it is not as much as the source holds."""
    for number in range(target.partitions):
        for _, name in _kept(target, number, target.bounds(Topic.EVENTS, number)[1]):
            there.events += 1
            there.runs += name == "RunAccepted"
    found = {record.key: _digest(record) for record in _topic(target)}
    there.definitions = sum(found.get(key, _TAKEN_BACK) == digest != _TAKEN_BACK for key, digest in facts.items())
    wanted.definitions = sum(digest != _TAKEN_BACK for digest in facts.values())
    for number, moved in moved_files(target).items():
        wanted.files += moved.brought
        there.files += sum(1 for place in moved.ranges for _ in files_in(target, number, *place))
    if there != wanted:
        raise TransferRefused(f"the target holds {there}, the source {wanted}. Choose a new target")


def _begun(target: Log) -> str | None:
    """Whose log the target has begun to get."""
    topic_id, found = target.topic_id(Topic.EVENTS), None
    for batch in target.read(Topic.INDEX, 0, target.bounds(Topic.INDEX, 0)[0]):
        for record in batch:
            if record.key == _ORIGIN:
                with suppress(ValueError, TypeError, KeyError):  # no record of ours
                    value = from_json(record.value or b"", allow_inf_nan=False)
                    found = str(value["source"]) if value["topic_id"] == topic_id else found
    return found


def _look(target: Log, partition: int, owner: str) -> _There:
    """What is there. Raises TransferRefused when some of it is not from this source."""
    if target.bounds(Topic.COMMANDS, partition)[1] > 0:
        # Positions of commands are part of the fold; those of two logs cannot be told apart.
        raise TransferRefused(f"partition {partition} of the target has commands already. Export into new topics")
    there, ours = _There(), False
    for record in _records(target, partition, target.bounds(Topic.EVENTS, partition)[1]):
        validity = there.validity
        before = (validity.epoch, validity.n)
        if not validity.admit(stamp_of(record)):
            continue
        name = type_of(record)
        if name == "PartitionClaimed":
            ours = PartitionClaimed.model_validate_json(record.value or b"").owner == owner
        elif name not in _LEFT_BEHIND:
            if not ours:
                raise TransferRefused(
                    f"partition {partition} of the target has runs of its own. Export into new topics"
                )
            _note(there, record, Mark(offset=record.offset, epoch=before[0], n=before[1], kind="accepted", of=""))
    return there


def _note(there: _There, record: Record, place: Mark) -> None:
    run_id = run_of(record)
    if run_id:
        there.seqs[run_id] = int(record.headers["ce_sequence"])
    else:
        there.others += 1
    marked = marked_as(record)
    if marked is not None:
        kind, of = marked
        there.marks.setdefault(marked, []).append(place.model_copy(update={"kind": kind, "of": of}))


def _records(log: Log, partition: int, end: int) -> Iterator[Record]:
    first, _ = log.bounds(Topic.EVENTS, partition)
    if first > 0:
        raise LogError(f"{Topic.EVENTS}[{partition}] begins at {first}: older events were deleted, runs are not whole")
    for batch in log.read(Topic.EVENTS, partition, 0, end):
        yield from batch


def _kept(log: Log, partition: int, end: int) -> Iterator[tuple[Record, str]]:
    """The events that are brought along, with their types."""
    validity = Validity()
    for record in _records(log, partition, end):
        name = type_of(record)
        if validity.admit(stamp_of(record)) and name not in _LEFT_BEHIND:
            yield record, name


def _definitions(source: Log, target: Log) -> tuple[int, dict[bytes | None, bytes]]:
    """How many were copied, and what the newest of each key says.

    Facts that share a key are told apart by what they say: of each key comes what follows the newest that is there.
    Their number would not do: compaction may take away some of a key, here or there.
    """
    end = source.bounds(Topic.DEFINITIONS, 0)[1]
    newest = {record.key: _digest(record) for record in _topic(target)}
    there = (record for record in _topic(source, end) if newest.get(record.key) == _digest(record)) if newest else ()
    copied_to = {record.key: record.offset for record in there}
    copied, facts = 0, dict[bytes | None, bytes]()
    for record in _topic(source, end):
        facts[record.key] = _digest(record)
        if record.offset > copied_to.get(record.key, -1):
            entry = Entry(record.key, record.value, list(record.headers.items()))
            target.send(Topic.DEFINITIONS, 0, entry, _ACK_S).result()
            copied += 1
    return copied, facts


def _digest(record: Record) -> bytes:
    return _TAKEN_BACK if record.value is None else hashlib.sha256(record.value).digest()


def _files(source: Log, source_blobs: Blobs, target: Log, target_blobs: Blobs, number: int, before: MovedFiles) -> int:
    """Before the events: who reads one of a run that goes on there finds its files. `before`: what has come already."""
    topic_id = source.topic_id(Topic.BLOBS)
    first, end = source.bounds(Topic.BLOBS, number)
    if before.source != topic_id:
        before = NONE_MOVED  # nobody noted how many have come: all of them come again
    first = max(first, before.copied_to)
    if first >= end:
        return 0
    # What was brought into the source itself, and broke off, may stand there twice.
    files = {file.file_id: file for file in files_in(source, number, first, end)}
    moved = [
        file.model_copy(update={"blob": target_blobs.put(file.file_id, source_blobs.get(file.blob)).result(_ACK_S)})
        for file in files.values()
    ]
    move_in(target, number, moved, before, topic_id, end)
    return len(moved)


def _topic(log: Log, end: int | None = None) -> Iterator[Record]:
    for batch in log.read(Topic.DEFINITIONS, 0, log.bounds(Topic.DEFINITIONS, 0)[0], end):
        yield from batch


class _Partition:
    """The transfer of one partition."""

    def __init__(
        self,
        source: Log,
        source_blobs: Blobs,
        target: Log,
        target_blobs: Blobs,
        number: int,
        owner: str,
        there: _There,
        now_us: Callable[[], int],
        done: Transferred,
    ) -> None:
        self._source = source
        self._source_blobs = source_blobs
        self._target = target
        self._target_blobs = target_blobs
        self._number = number
        self._owner = owner
        self._there = there
        self._now_us = now_us
        self._done = done
        self._acks: queue.SimpleQueue[list[Ack]] = queue.SimpleQueue()
        self._epoch = there.validity.epoch + 1
        self._n = 0
        self._claimed_at = -1
        self._batch: list[Entry] = []
        self._offsets: dict[tuple[str, str], list[int]] = {}
        """In the source, of what `marks` has in the target: in the same order."""

    def copy(self, end: int, wanted: Totals, progress: Callable[[int, int], None]) -> None:
        appender = self._target.open_appender(self._acks.put)
        try:
            self._claim(appender)
            others = 0
            for record, name in _kept(self._source, self._number, end):
                wanted.events += 1
                wanted.runs += name == "RunAccepted"
                if (marked := marked_as(record)) is not None:
                    self._offsets.setdefault(marked, []).append(record.offset)
                run_id = run_of(record)
                others += not run_id
                if self._is_there(record, run_id, others):
                    self._done.skipped += 1
                    continue
                self._take(record, name, run_id)
                if len(self._batch) >= _BATCH:
                    self._send(appender)
                    progress(record.offset, end)
            self._release(appender)
            progress(end, end)
        finally:
            appender.close(5.0)

    def _is_there(self, record: Record, run_id: str, others: int) -> bool:
        if run_id:
            return int(record.headers["ce_sequence"]) <= self._there.seqs.get(run_id, 0)
        return others <= self._there.others

    def _claim(self, appender: Any) -> None:
        # Not the target's own topic of commands: the next owner counts that one from its beginning.
        claim = PartitionClaimed(owner=self._owner, commands_topic_id=self._owner)
        appender.append(self._number, [self._own(claim, 0)])
        (ack,) = self._acknowledged(1)
        self._claimed_at = ack.offset

    def _release(self, appender: Any) -> None:
        self._n += 1
        self._batch.append(self._own(PartitionReleased(owner=self._owner), self._n))
        self._send(appender)

    def _own(self, event: Any, n: int) -> Entry:
        return encode_event(
            event, partition=self._number, run_id="", seq=0, epoch=self._epoch, n=n, at_us=self._now_us(), cause="owner"
        )

    def _take(self, record: Record, name: str, run_id: str) -> None:
        self._n += 1
        value = self._value(record, name, run_id)
        changed = {
            "ce_id": b"%d-%d-%d" % (self._number, self._epoch, self._n),
            "ce_epoch": b"%d" % self._epoch,
            "ce_n": b"%d" % self._n,
        }
        headers = [(key, changed.get(key, old)) for key, old in record.headers.items()]
        self._batch.append(Entry(record.key, value, headers, self._epoch, self._n))
        place = Mark(offset=self._claimed_at + self._n, epoch=self._epoch, n=self._n - 1, kind="accepted", of="")
        _note(self._there, record, place)
        self._there.others -= not run_id  # counted by `copy`
        self._done.events += 1
        self._done.runs += name == "RunAccepted"

    def _value(self, record: Record, name: str, run_id: str) -> bytes:
        """The event's JSON; places in the source's log become places in the target's."""
        body = record.value or b""
        if b'"$blob"' not in body and not (name == "RunAccepted" and b'"earlier"' in body):
            return body
        event = EVENT_TYPES[name].model_validate_json(body)
        refs = {slot: value for slot, value in slots(event) if is_ref(value)}
        moved = {
            slot: self._target_blobs.put(run_id, self._source_blobs.get(value)).result(_ACK_S)
            for slot, value in refs.items()
        }
        event = with_values(event, dict(moved)) if moved else event
        earlier = getattr(event, "earlier", None)
        if earlier:
            event = event.model_copy(update={"earlier": tuple(self._mark(mark) for mark in earlier)})
        return encode_body(event)

    def _mark(self, mark: Mark) -> Mark:
        marked = (mark.kind, mark.of)
        number = bisect_left(self._offsets.get(marked, ()), mark.offset)  # the first that stands behind the mark
        found = self._there.marks.get(marked, ())
        if number >= len(found):
            raise LogError(f"the log has no {mark.kind} of {mark.of}, which a later run of its conversation needs")
        return found[number]

    def _send(self, appender: Any) -> None:
        if not self._batch:
            return
        appender.append(self._number, self._batch)
        for ack in self._acknowledged(len(self._batch)):
            if ack.offset >= 0 and ack.offset != self._claimed_at + ack.n:
                raise LogError(
                    f"{Topic.EVENTS}[{self._number}]: somebody else writes into the target. Stop its executors, "
                    "then export again: what has arrived is not written twice"
                )
        self._batch = []

    def _acknowledged(self, count: int) -> list[Ack]:
        found: list[Ack] = []
        while len(found) < count:
            try:
                found += self._acks.get(timeout=_ACK_S)
            except queue.Empty as error:
                raise LogError(f"the target has not confirmed {count} records within {_ACK_S:g} s") from error
        for ack in found:
            if ack.error is not None:
                raise LogError(f"the target refused a record: {ack.error}. Export again: nothing is written twice")
        return found
