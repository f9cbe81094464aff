"""A transfer from a log that others write, and one that is done again: nothing is lost and nothing is mixed."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from libs.events import transfer as transfers
from libs.events.blobs import LogBlobs
from libs.events.codec import encode_event, type_of
from libs.events.commands import Caller
from libs.events.ids import new_run_id
from libs.events.log import Log, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import Event, PartitionClaimed, RunAccepted
from libs.events.registry import DocumentStored, Fact, encode_fact, read_registry
from libs.events.transfer import Transferred, transfer

AT_US = 1_700_000_000_000_000
Made = Callable[[], MemoryLog]


@pytest.fixture
def made() -> Iterator[Made]:
    logs: list[MemoryLog] = []

    def make() -> MemoryLog:
        logs.append(MemoryLog(MemoryStore(partitions=1)))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def now_us() -> int:
    return time.time_ns() // 1000


def put(log: Log, *facts: Fact) -> None:
    for fact in facts:
        log.send(Topic.DEFINITIONS, 0, encode_fact(fact)).result(5)


def write(log: Log, event: Event, n: int, run_id: str = "", seq: int = 0) -> None:
    entry = encode_event(event, partition=0, run_id=run_id, seq=seq, epoch=1, n=n, at_us=AT_US, cause="x")
    log.send(Topic.EVENTS, 0, entry).result(5)


def accepted(digest: str) -> tuple[str, RunAccepted]:
    run_id = new_run_id(0, AT_US, random.getrandbits(62))
    return run_id, RunAccepted(
        command_offset=0, app_id="a", workflow_id="w", version="v", digest=digest, mode="workflow", inputs={}, files=(),
        caller=Caller(role="account", id="i", user="u"), body_digest="b", task_id=run_id,
    )  # fmt: skip


def moved(source: Log, target: Log) -> Transferred:
    return transfer(source, LogBlobs(source), target, LogBlobs(target), now_us=now_us)


def types_of(log: Log) -> list[str]:
    return [type_of(record) for batch in log.read(Topic.EVENTS, 0, 0) for record in batch]


def test_a_run_that_begins_meanwhile_does_not_come_without_its_document(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = made(), made()
    write(source, PartitionClaimed(owner="o", commands_topic_id="t"), 0)
    files = transfers._files  # noqa: SLF001  # the moment between definitions and events

    def meanwhile(*arguments: Any) -> Any:
        put(source, DocumentStored(digest="late", document="..."))
        run_id, event = accepted("late")
        write(source, event, 1, run_id, 1)
        return files(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(transfers, "_files", meanwhile)
        moved(source, target)
    assert "RunAccepted" not in types_of(target)
    assert moved(source, target).runs == 1
    assert read_registry(target).document("late") is not None
