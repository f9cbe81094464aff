"""Where a reader of an events partition begins, and what it knows of the records before."""

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.events.log import Log, LogTruncated, Record, Topic


class Position(NamedTuple):
    """A place in an events partition: who begins to read at `offset` begins with the validity state `(epoch, n)`."""

    offset: int
    epoch: int
    n: int


def start_positions(log: Log) -> dict[int, Position]:
    """Where a tail over all events partitions begins. Blocking. Raises LogError.

    A record of the index topic (key: partition number) points at the last complete checkpoint: JSON
    `{"offset": o, "epoch": e, "n": n, "topic_id": t}` with the validity state just before the record at `o`. A tail
    that begins there is a correct reader without having read what lies before. A pointer of another incarnation of
    the topic, or to a place that is gone, does not count; then the tail begins at offset 0 with the state (0, 0).
    A stale pointer costs time, never truth.
    """
    pointed = _pointed(log)
    found = {}
    for partition in range(log.partitions):
        found[partition] = Position(0, 0, 0)
        position = pointed.get(partition)
        if position is not None:
            first, end = log.bounds(Topic.EVENTS, partition)
            if first <= position.offset <= end:
                found[partition] = position
    return found


def _pointed(log: Log) -> dict[int, Position]:
    """The newest pointer of each partition; what cannot be read counts as missing."""
    topic_id = log.topic_id(Topic.EVENTS)
    newest: dict[int, Position] = {}
    try:
        first, end = log.bounds(Topic.INDEX, 0)
        for records in log.read(Topic.INDEX, 0, first, end):
            for record in records:
                pointer = _pointer(record, topic_id)
                if pointer is not None:
                    newest[pointer[0]] = pointer[1]
    except LogTruncated:
        return {}  # compaction went on while we read: pointers only save time
    return newest


def _pointer(record: Record, topic_id: str) -> tuple[int, Position] | None:
    try:
        value = json.loads(record.value or b"")
        position = Position(int(value["offset"]), int(value["epoch"]), int(value["n"]))
        return (int(record.key or b""), position) if value["topic_id"] == topic_id else None
    except (ValueError, TypeError, KeyError):
        return None


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
        return self._marks[at - 1] if at else Position(0, 0, 0)
