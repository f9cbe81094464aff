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
from libs.events.files import Files
from libs.events.ids import new_run_id
from libs.events.log import Entry, Log, LogError, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import Event, PartitionClaimed, RunAccepted
from libs.events.registry import AppCreated, DocumentStored, Fact, encode_fact, read_registry, taken_back
from libs.events.transfer import Totals, Transferred, TransferRefused, transfer
from libs.events.triggers import ScheduleFired, TriggerSwitched

AT_US = 1_700_000_000_000_000
Made = Callable[..., MemoryLog]


@pytest.fixture
def made() -> Iterator[Made]:
    logs: list[MemoryLog] = []

    def make(at_ms: int | None = None) -> MemoryLog:
        logs.append(MemoryLog(MemoryStore(partitions=1), now_ms=lambda: at_ms or now_us() // 1000))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def now_us() -> int:
    return time.time_ns() // 1000


def put(log: Log, *facts: Fact) -> None:
    for fact in facts:
        log.send(Topic.DEFINITIONS, 0, encode_fact(fact)).result(30)


def write(log: Log, event: Event, n: int, run_id: str = "", seq: int = 0) -> None:
    entry = encode_event(event, partition=0, run_id=run_id, seq=seq, epoch=1, n=n, at_us=AT_US, cause="x")
    log.send(Topic.EVENTS, 0, entry).result(30)


def accepted(digest: str) -> tuple[str, RunAccepted]:
    run_id = new_run_id(0, AT_US, random.getrandbits(62))
    return run_id, RunAccepted(
        command_offset=0, app_id="a", workflow_id="w", version="v", digest=digest, mode="workflow", inputs={}, files=(),
        caller=Caller(role="account", id="i", user="u"), body_digest="b", task_id=run_id,
    )  # fmt: skip


def moved(source: Log, target: Log) -> Transferred:
    return transfer(source, LogBlobs(source), target, LogBlobs(target), now_us=now_us)


def broken_off_behind_its_files(source: Log, target: Log) -> None:
    def gone(*_: Any) -> None:
        raise LogError("gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers._Partition, "copy", gone)  # noqa: SLF001  # where it dies
        with pytest.raises(LogError, match="gone"):
            moved(source, target)


def files_of(log: Log, at_us: int | None = None) -> Files:
    return Files(log, LogBlobs(log), now_us=lambda: at_us or now_us(), random_bits=random.getrandbits)


def upload(log: Log, content: bytes, at_us: int | None = None) -> str:
    files = files_of(log, at_us)
    return files.store(content, app_id="a", owner="u", name="a.txt", mime_type="text/plain").file_id


def download(log: Log, file_id: str) -> bytes | None:
    file = files_of(log).find(file_id)
    return file and files_of(log).content(file)


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


def facts_of(log: Log) -> list[tuple[bytes | None, bytes | None]]:
    return [(record.key, record.value) for batch in log.read(Topic.DEFINITIONS, 0, 0) for record in batch]


@pytest.mark.parametrize("written", range(8))
def test_facts_that_share_a_key_all_come_wherever_it_broke_off(
    made: Made, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    source, target = made(), made()
    put(source, AppCreated(app_id="a", name="A", created_at_us=1))
    for enabled, at_us in ((True, 1), (False, 2)):
        put(source, TriggerSwitched(app_id="a", node_id="n", enabled=enabled, switched_at_us=at_us))
        put(source, ScheduleFired(app_id="a", node_id="n", due_us=10 * at_us, fired_at_us=10 * at_us + 1))
    for name in ("B", "C"):
        put(source, AppCreated(app_id="b", name=name, created_at_us=1))
        source.send(Topic.DEFINITIONS, 0, taken_back("app/b")).result(30)
    send = target.send

    def gone(topic: Topic, *arguments: Any) -> Any:
        if topic is Topic.DEFINITIONS and len(facts_of(target)) == written:
            raise LogError("gone")
        return send(topic, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, "send", gone)
        with pytest.raises(LogError, match="gone"):
            moved(source, target)
    assert len(facts_of(target)) == written
    moved(source, target)
    assert dict(facts_of(target)) == dict(facts_of(source))
    triggers = read_registry(target).triggers
    fired = triggers.fired("a", "n")
    assert (triggers.enabled("a", "n"), fired and fired.due_us) == (False, 20)
    there = len(facts_of(target))
    assert (moved(source, target).definitions, len(facts_of(target))) == (0, there)


def test_files_that_were_uploaded_since_the_first_try_come_with_the_second(made: Made) -> None:
    source, target = made(AT_US // 1000), made()
    contents = {upload(source, content, AT_US): content for content in (b"1", b"2")}
    broken_off_behind_its_files(source, target)
    contents[upload(source, b"3", AT_US)] = b"3"
    write(source, PartitionClaimed(owner="o", commands_topic_id="t"), 0)
    assert moved(source, target).files == 1
    assert {file_id: download(target, file_id) for file_id in contents} == contents
    assert moved(source, target).files == 0
    contents[upload(source, b"4", AT_US)] = b"4"
    assert moved(source, target).files == 1
    assert {file_id: download(target, file_id) for file_id in contents} == contents


def test_a_target_that_another_log_began_is_refused_wherever_that_broke_off(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(), made()
    for source, name in ((first, "first"), (second, "second")):
        put(source, AppCreated(app_id=name, name=name, created_at_us=1))
        write(source, PartitionClaimed(owner="o", commands_topic_id="t"), 0)
        run_id, event = accepted("d")
        write(source, event, 1, run_id, 1)

    def gone(*_: Any) -> None:
        raise LogError("gone")

    for step in ("_definitions", "_files"):
        target = made()
        with monkeypatch.context() as patch:
            patch.setattr(transfers, step, gone)
            with pytest.raises(LogError, match="gone"):
                moved(first, target)
        with pytest.raises(TransferRefused, match="begun to get another log"):
            moved(second, target)
        moved(first, target)
        with pytest.raises(TransferRefused, match="begun to get another log"):
            moved(second, target)
        assert [app.name for app in read_registry(target).apps()] == ["first"]


def test_what_has_not_arrived_is_noticed_at_the_end(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(AT_US // 1000)
    put(source, AppCreated(app_id="a", name="A", created_at_us=1), DocumentStored(digest="d", document="..."))
    source.send(Topic.DEFINITIONS, 0, taken_back("app/a")).result(30)
    upload(source, b"1", AT_US)
    write(source, PartitionClaimed(owner="o", commands_topic_id="t"), 0)
    run_id, event = accepted("d")
    write(source, event, 1, run_id, 1)
    assert moved(source, made()).there == Totals(runs=1, events=1, definitions=1, files=1)
    lost = (
        "the target holds {} runs in {} events, {} definitions, {} files, the source 1 runs in 1 events, 1 definitions"
    )
    with monkeypatch.context() as patch:
        patch.setattr(transfers._Partition, "_is_there", lambda *_: True)  # noqa: SLF001  # what loses events
        with pytest.raises(TransferRefused, match=lost.format(0, 0, 1, 1)):
            moved(source, made())
    for topic, left in ((Topic.DEFINITIONS, (1, 1, 0, 1)), (Topic.BLOBS, (1, 1, 1, 0))):
        target = made()
        send = target.send

        def lose(to: Topic, number: int, entry: Entry, *rest: Any, send: Any = send, topic: Topic = topic) -> Any:
            return send(to, number, Entry(b"lost", None) if to is topic else entry, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(target, "send", lose)
            with pytest.raises(TransferRefused, match=lost.format(*left)):
                moved(source, target)
