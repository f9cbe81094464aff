"""A data folder's runs brought into another log: the same histories, and unfinished runs go on there."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowledger import Client
from flowledger.dev import start_embedded
from libs.events.blobs import FolderBlobs, LogBlobs
from libs.events.claim_check import restore
from libs.events.codec import Recorded, decode_event, run_of, stamp_of
from libs.events.ids import new_run_id
from libs.events.log import Entry, Log, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.registry import RegistryTail, read_registry
from libs.events.sealing import Vault, stored_key
from libs.events.sqlite import SqliteLog
from libs.events.transfer import Transferred, TransferRefused, transfer
from libs.events.validity import Validity
from libs.settings import Settings
from libs.workflow.catalog import Catalog
from services.executor.build import build_executor, build_handlers
from tests.documents import code, document, edges, end, node, start

FLOW = document([start("q"), code("c"), end(a="c.result")], edges("start > c > end"))
CHAT = document(
    [start(), node("answer", "answer", answer="{{#sys.query#}}", variables=[])],
    edges("start > answer"),
    mode="advanced-chat",
    environment_variables=[{"name": "key", "value_type": "secret", "value": "sk-live-0123456789"}],
)
LARGE = "x" * 200_000


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[SqliteLog, FolderBlobs, str]]:
    """(log, blobs, id of an unfinished run): runs that ended, a large value, a conversation, one run in mid-work."""
    instance = start_embedded(tmp_path, "127.0.0.1", 0, Settings(models="offline", data=tmp_path))
    with Client(instance.url, instance.admin_token) as client:
        app = client.import_document(FLOW)["app_id"]
        client.start(app, {"q": "1"}, pins={"nodes": {"c": {"outputs": {"result": LARGE}}}}).result(timeout_s=30)
        client.start(app, {"q": "2"}, pins={"nodes": {"c": {"fail": "no"}}})
        chat = client.import_document(CHAT)["app_id"]
        client.start(chat, query="hello").result(timeout_s=30)
        held = client.start(app, {"q": "3"}, pins={"nodes": {"c": {"outputs": {"result": "late"}, "delay_s": 6}}})
        next(event for event in held.events() if event.event == "node_started" and event.data["node_id"] == "c")
    instance.stop()
    log, blobs = SqliteLog(tmp_path, read_only=True), FolderBlobs(tmp_path / "blobs")
    yield log, blobs, held.id
    log.close()
    blobs.close()


@pytest.fixture
def target() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


def now_us() -> int:
    return time.time_ns() // 1000


def moved(source: tuple[SqliteLog, FolderBlobs, str], target: Log) -> Transferred:
    return transfer(source[0], source[1], target, LogBlobs(target), now_us=now_us)


def histories(log: Log, blobs: Any) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    validity = Validity()
    for batch in log.read(Topic.EVENTS, 0, 0):
        for record in batch:
            if validity.admit(stamp_of(record)) and run_of(record):
                recorded: Recorded = decode_event(record)
                event = restore(recorded.event, blobs)
                shown = event.model_dump(exclude={"earlier"})
                found.setdefault(recorded.run_id, []).append((recorded.seq, recorded.at_us, recorded.cause, shown))
    return found


def test_histories_are_the_same_in_the_other_log(source: tuple[SqliteLog, FolderBlobs, str], target: MemoryLog) -> None:
    done = moved(source, target)
    there = histories(target, LogBlobs(target))
    assert there == histories(source[0], source[1])
    assert (len(there), done.runs, done.skipped) == (4, 4, 0)
    assert any(event[3].get("outputs") == {"a": LARGE} for run in there.values() for event in run)
    assert [app.name for app in read_registry(target).apps()] == [app.name for app in read_registry(source[0]).apps()]


def test_done_again_it_writes_nothing_twice(source: tuple[SqliteLog, FolderBlobs, str], target: MemoryLog) -> None:
    first = moved(source, target)
    again = moved(source, target)
    assert (again.events, again.definitions, again.skipped) == (0, 0, first.events)
    assert histories(target, LogBlobs(target)) == histories(source[0], source[1])


def test_an_unfinished_run_goes_on_there(
    source: tuple[SqliteLog, FolderBlobs, str], target: MemoryLog, tmp_path: Path
) -> None:
    moved(source, target)
    vault = Vault(stored_key(None, tmp_path, make=False))
    registry = RegistryTail(target, vault)
    registry.refresh()
    registry.check_sealed()
    blobs = LogBlobs(target)

    async def go_on() -> list[tuple[Any, ...]]:
        given = Settings(models="offline", data=tmp_path)
        handlers = build_handlers(given, target, blobs)
        catalog = Catalog(registry.document)
        worker = build_executor(given, target, catalog, registry.refresh, blobs, vault, "other", handlers)
        await worker.start()
        try:
            async with asyncio.timeout(60):
                while (run := histories(target, blobs)[source[2]])[-1][3]["type"] != "RunSucceeded":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            await worker.stop()
            await handlers.close()
        return run

    run = asyncio.run(go_on())
    registry.close()
    assert [event[0] for event in run] == list(range(1, len(run) + 1))
    assert run[-1][3]["outputs"] == {"a": "late"}
    assert "NodeRestarted" in [event[3]["type"] for event in run]


def test_a_log_that_others_use_is_refused(source: tuple[SqliteLog, FolderBlobs, str], target: MemoryLog) -> None:
    run_id = new_run_id(0, now_us(), 1)
    target.send(Topic.COMMANDS, 0, Entry(run_id.encode(), b"{}")).result(10)
    with pytest.raises(TransferRefused, match="new topics"):
        moved(source, target)
    one = MemoryLog(MemoryStore(partitions=1))
    moved(source, one)
    with pytest.raises(TransferRefused, match="partitions"):
        transfer(target, LogBlobs(target), one, LogBlobs(one), now_us=now_us)
    one.close()
