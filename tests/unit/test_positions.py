"""Where a tail begins: at a pointed checkpoint that still exists, else at the beginning."""

import json
from typing import Any

import pytest

from libs.events.codec import encode_event
from libs.events.log import Entry, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import PartitionClaimed
from libs.events.positions import Position, Waymarks, start_positions


@pytest.fixture
def log() -> MemoryLog:
    made = MemoryLog(MemoryStore(partitions=2), threads=False)
    claim = encode_event(
        PartitionClaimed(owner="o", commands_topic_id="t"),
        partition=0, run_id="", seq=0, epoch=1, n=0, at_us=0, cause="owner",
    )  # fmt: skip
    appender = made.open_appender(lambda _: None)
    appender.append(0, [claim] * 20)
    made.step()
    return made


def point(log: MemoryLog, key: bytes, value: Any) -> None:
    log.send(Topic.INDEX, 0, Entry(key, json.dumps(value).encode() if not isinstance(value, bytes) else value))
    log.step()


def pointer(log: MemoryLog, offset: int, **changed: Any) -> dict[str, Any]:
    return {"offset": offset, "epoch": 3, "n": 7, "topic_id": log.topic_id(Topic.EVENTS)} | changed


def test_without_a_pointer_a_tail_begins_at_the_beginning(log: MemoryLog) -> None:
    assert start_positions(log) == {0: Position(0, 0, 0), 1: Position(0, 0, 0)}


def test_the_newest_pointer_of_a_partition_counts(log: MemoryLog) -> None:
    point(log, b"0", pointer(log, 5))
    point(log, b"0", pointer(log, 9))
    assert start_positions(log) == {0: Position(9, 3, 7), 1: Position(0, 0, 0)}


@pytest.mark.parametrize(
    "garbage",
    [b"", b"null", b"[]", b"{", b'"x"', b"\xff\xfe", b'{"a":' * 3000, b"[" * 100_000, b'{"offset": NaN}', b"9" * 5000],
)
def test_garbage_in_the_index_is_no_pointer_and_hides_none(log: MemoryLog, garbage: bytes) -> None:
    point(log, b"0", pointer(log, 5))
    point(log, b"0", garbage)
    point(log, b"\xff", pointer(log, 7))
    point(log, b"0", pointer(log, 7, scan=[1]))
    assert start_positions(log)[0] == Position(5, 3, 7)


@pytest.mark.parametrize("changed", [{"topic_id": "another"}, {"offset": 21}, {"offset": None}, {"epoch": "x"}])
def test_a_pointer_that_leads_nowhere_does_not_count(log: MemoryLog, changed: dict[str, Any]) -> None:
    point(log, b"0", pointer(log, 5) | changed)
    assert start_positions(log)[0] == Position(0, 0, 0)


@pytest.mark.parametrize("value", [b"", b"not json", b"[]", b"7"])
def test_an_unreadable_pointer_does_not_count(log: MemoryLog, value: bytes) -> None:
    point(log, b"0", value)
    point(log, b"x", pointer(log, 3))
    assert start_positions(log)[0] == Position(0, 0, 0)


def test_a_waymark_is_the_last_known_position_that_is_not_behind() -> None:
    marks = Waymarks(every=10)
    for offset in range(0, 100, 4):
        marks.pass_by(Position(offset, 1, offset))
    assert marks.before(0).offset == 0
    assert marks.before(11).offset == 0
    assert marks.before(12).offset == 12
    assert marks.before(1_000).offset == 96
    assert Waymarks().before(7) == Position(0, 0, 0)
