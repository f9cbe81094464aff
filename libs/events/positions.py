"""Places in an events partition: where a reader begins, and what it knows of the records before.

A record of the index topic (key: partition number) points at the last complete checkpoint: JSON `{"offset": o,
"epoch": e, "n": n, "scan": [o, e, n], "topic_id": t}`. `(e, n)` is the validity state just before the record at `o`, so
whoever begins there is a correct reader without having read what lies before; `scan` is where one must begin who also
needs the events of all unfinished runs. A stale pointer costs time, never truth; one that leads nowhere, or belongs to
another incarnation of the topic, counts as none.
"""

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic_core import from_json

from libs.events.log import Entry, Log, LogTruncated, Record, Topic


class Position(NamedTuple):
    """A place in an events partition: who begins to read at `offset` begins with the validity state `(epoch, n)`."""

    offset: int
    epoch: int
    n: int


BEGINNING = Position(0, 0, 0)


class Pointer(NamedTuple):
    checkpoint: Position
    """Right before the checkpoint's first part."""
    scan: Position | None
    """Where the events of its unfinished runs begin; None when the record does not say."""


def pointer_entry(log: Log, partition: int, pointer: Pointer) -> Entry:
    """The index record. Blocking: asks for the topic's id. Raises LogError."""
    place = dict(zip(("offset", "epoch", "n"), pointer.checkpoint, strict=True))
    value = place | {"scan": pointer.scan, "topic_id": log.topic_id(Topic.EVENTS)}
    return Entry(b"%d" % partition, json.dumps(value).encode())


def read_pointers(log: Log) -> dict[int, Pointer]:
    """The newest usable pointer of each partition that has one. Blocking. Raises LogError."""
    topic_id = log.topic_id(Topic.EVENTS)
    newest: dict[int, Pointer] = {}
    try:
        first, end = log.bounds(Topic.INDEX, 0)
        for records in log.read(Topic.INDEX, 0, first, end):
            for record in records:
                pointed = _pointer(record, topic_id)
                if pointed is not None:
                    newest[pointed[0]] = pointed[1]
    except LogTruncated:
        return {}  # compaction went on while we read: pointers only save time
    return newest


def _pointer(record: Record, topic_id: str) -> tuple[int, Pointer] | None:
    try:
        value = from_json(record.value or b"", allow_inf_nan=False)  # nested too deeply: a ValueError, unlike json's
        if value["topic_id"] != topic_id:
            return None
        scan = value.get("scan")
        return int(record.key or b""), Pointer(
            Position(int(value["offset"]), int(value["epoch"]), int(value["n"])),
            None if scan is None else Position(*map(int, scan)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def exists(log: Log, partition: int, position: Position | None) -> bool:
    """Whether one can begin to read there."""
    if position is None:
        return False
    first, end = log.bounds(Topic.EVENTS, partition)
    return first <= position.offset <= end


def start_positions(log: Log) -> dict[int, Position]:
    """Where a tail over all events partitions begins: at their checkpoints, else at offset 0. Blocking."""
    pointers = read_pointers(log)
    found = {}
    for partition in range(log.partitions):
        pointer = pointers.get(partition)
        usable = pointer is not None and exists(log, partition, pointer.checkpoint)
        found[partition] = pointer.checkpoint if pointer is not None and usable else BEGINNING
    return found


@dataclass(slots=True)
class Waymarks:
    """Validity states that a tail has passed in one partition, so that later reads need not begin at offset 0."""

    every: int = 10_000
    _marks: list[Position] = field(default_factory=list)

    def pass_by(self, position: Position) -> None:
        if not self._marks or position.offset >= self._marks[-1].offset + self.every:
            self._marks.append(position)

    def before(self, offset: int) -> Position:
        """The last known position that is not behind `offset`; the beginning when there is none."""
        at = bisect_right(self._marks, offset, key=lambda mark: mark.offset)
        return self._marks[at - 1] if at else BEGINNING
