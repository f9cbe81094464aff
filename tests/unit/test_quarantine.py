"""Runs that cannot be folded are named, and no others."""

from concurrent.futures import Future
from typing import Any

from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import NodeSucceeded, RunStarted
from libs.events.sealing import Vault
from libs.workflow.catalog import Catalog
from services.executor.quarantine import set_aside
from tests.documents import chain
from tests.projections import Owner, accepted, append, broken, entry, node, run_id


class NoBlobs:
    def put(self, run_id: str, data: bytes) -> "Future[Any]":
        raise AssertionError

    def get(self, ref: Any) -> bytes:
        raise AssertionError

    def close(self) -> None:
        pass


def test_a_run_that_cannot_be_folded_is_named_with_the_reason() -> None:
    log = MemoryLog(MemoryStore(partitions=2))
    for partition in (0, 1):
        owner = Owner(partition)
        good, unreadable, nonsense = (run_id(number, partition) for number in range(3))
        append(log, [entry(owner.claim())], partition)
        for run in (good, unreadable, nonsense):
            append(log, [entry(owner.record(run, accepted(run)))], partition)
            append(log, [entry(owner.record(run, RunStarted(max_steps=9)))], partition)
        append(log, [broken(owner.record(unreadable, node("start", 1)))], partition)
        append(log, [entry(owner.record(nonsense, NodeSucceeded(node_id="not in the document")))], partition)
    before = [log.bounds(Topic.EVENTS, partition) for partition in (0, 1)]
    found = list(set_aside(log, NoBlobs(), Vault(lambda: None), Catalog(lambda digest: chain(2)).get))
    wanted = {run_id(number, partition) for number in (1, 2) for partition in (0, 1)}
    assert {each.run_id for each in found} == wanted
    assert all(each.reason for each in found)
    assert [log.bounds(Topic.EVENTS, partition) for partition in (0, 1)] == before
    log.close()
