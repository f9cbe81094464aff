"""Schedules across replicas, downtimes and deaths: each instant has one run, whoever looks at the clock."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from libs.events.log import Entry, Log, LogError, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import RunAccepted, RunStarted, RunSucceeded
from services.api import Limits
from tests.api_world import ScriptedExecutor, Server, nothing, until
from tests.documents import document, edges, end, node

LIMITS = Limits(schedules_s=0.01)
HOUR_US = 3_600_000_000


def hourly(**data: Any) -> str:
    said = {"mode": "cron", "cron_expression": "0 * * * *", "timezone": "UTC"} | data
    return document([node("tick", "trigger-schedule", **said), end(at="sys.timestamp")], edges("tick > end"))


class Clock:
    """Begins at the last full hour, or the one before; only goes forward."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000 // HOUR_US * HOUR_US + HOUR_US + 60_000_000

    def __call__(self) -> int:
        return self.us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


@pytest.fixture
def executor(log: MemoryLog) -> Iterator[ScriptedExecutor]:
    made = ScriptedExecutor(log, nothing)
    yield made
    made.close()


@pytest.fixture
def serve(log: MemoryLog, clock: Clock) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def one(on: Log = log) -> Server:
        made.append(Server(on, limits=LIMITS, now_us=clock))
        return made[-1]

    yield one
    for server in made:
        server.close()


def fired(server: Server, app: dict[str, Any], node_id: str = "tick") -> Any:
    return server.registry.triggers.fired(app["app_id"], node_id)


def rest(server: Server, app: dict[str, Any], due_us: int, node_id: str = "tick") -> None:
    """Until the instant is over for this server, and it has looked at the clock again."""
    until(lambda: (found := fired(server, app, node_id)) is not None and found.due_us == due_us)
    server.registry.catch_up()
    time.sleep(0.05)  # a second run would come at once


def runs(executor: ScriptedExecutor) -> list[RunAccepted]:
    return list(executor.accepted.values())


def test_an_instant_has_one_run_at_three_replicas(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock
) -> None:
    replicas = [serve() for _ in range(3)]
    app = replicas[0].import_app(hourly())
    for replica in replicas:
        replica.registry.catch_up()
    assert runs(executor) == []
    for _ in range(3):
        clock.us = (clock.us // HOUR_US + 1) * HOUR_US
        for replica in replicas:
            rest(replica, app, clock.us)
    assert len(runs(executor)) == 3
    first = runs(executor)[0]
    assert (first.triggered_from, first.invoke_from, first.caller.user) == ("schedule", "trigger", "schedule")
    assert first.workflow_id == app["workflow_id"]


def test_what_a_downtime_missed_fires_once(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock, log: MemoryLog
) -> None:
    first = Server(log, limits=LIMITS, now_us=clock)
    app = first.import_app(hourly())
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    rest(first, app, clock.us)
    first.close()
    clock.us += 5 * HOUR_US + 17
    second = serve()
    rest(second, app, clock.us // HOUR_US * HOUR_US)
    assert len(runs(executor)) == 2
    third = serve()
    rest(third, app, clock.us // HOUR_US * HOUR_US)
    assert len(runs(executor)) == 2


class Forgetful:
    """A log that does not take the fact that an instant is over: its process dies behind the start."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def send(self, topic: Topic, partition: int, entry: Entry, timeout_s: float = 4.0) -> "Future[int]":
        if topic is Topic.DEFINITIONS and (entry.key or b"").startswith(b"schedule/"):
            self.lost += 1
            failed: Future[int] = Future()
            failed.set_exception(LogError("gone"))
            return failed
        return self._log.send(topic, partition, entry, timeout_s)


def test_a_process_that_dies_behind_the_start_leaves_an_instant_that_has_its_run(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock, log: MemoryLog
) -> None:
    dying = Forgetful(log)
    first = Server(dying, limits=LIMITS, now_us=clock)  # type: ignore[arg-type]  # stands in for a log
    app = first.import_app(hourly())
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    until(lambda: dying.lost >= 2)
    assert len(runs(executor)) == 1
    first.close()
    second = serve()
    rest(second, app, clock.us)
    assert [fired(second, app).run_id] == list(executor.accepted)


def test_an_instant_that_a_limit_refuses_stays_due_and_asks_less_and_less_often(
    executor: ScriptedExecutor, clock: Clock, log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    def delays() -> list[float]:
        return [record.__dict__["wait_s"] for record in caplog.records if record.message == "schedule_delayed"]

    server = Server(log, limits=Limits(schedules_s=0.01, max_app_runs=1), now_us=clock)
    try:
        app = server.import_app(hourly())
        clock.us = first = (clock.us // HOUR_US + 1) * HOUR_US
        rest(server, app, first)
        clock.us = second = first + HOUR_US
        for tries in range(1, 4):
            until(lambda tries=tries: len(delays()) == tries)  # type: ignore[misc]
            clock.us += int(delays()[-1] * 1e6)
        until(lambda: len(delays()) == 4)
        assert delays() == [1.0, 2.0, 4.0, 8.0]
        assert fired(server, app).due_us == first
        executor.emit(executor.run(), RunStarted(max_steps=1), RunSucceeded())
        clock.us += 8_000_000
        rest(server, app, second)
        assert len(runs(executor)) == 2
    finally:
        server.close()


def test_a_version_begins_when_it_is_published_and_ends_with_the_next(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock
) -> None:
    server = serve()
    app = server.import_app(hourly())
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    rest(server, app, clock.us)
    clock.us += 1
    other = document([node("start", "start", variables=[]), end()], edges("start > end"))
    updated = server.http.post("/v1/apps/import", params={"app": app["app_id"]}, content=other, headers=server.admin())
    assert updated.status_code == 200, updated.text
    other_app = server.import_app(hourly())
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    rest(server, other_app, clock.us)
    assert [run.app_id for run in runs(executor)] == [app["app_id"], other_app["app_id"]]


def test_a_schedule_that_means_nothing_stops_no_other(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock
) -> None:
    server = serve()
    server.import_app(hourly(cron_expression="often"))
    app = server.import_app(hourly())
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    rest(server, app, clock.us)
    assert [run.app_id for run in runs(executor)] == [app["app_id"]]


def test_an_import_names_the_schedule_that_no_clock_can_keep(serve: Callable[..., Server]) -> None:
    told = serve().import_app(hourly(cron_expression="often"))["warnings"]
    at = "workflow.graph.nodes[0].data.cron_expression"
    (found,) = [each for each in told if each["at"] == at]
    assert "expected five fields" in found["problem"]
    assert found["hint"] == "Until it is corrected no clock starts this workflow"


def test_every_schedule_of_a_document_fires_its_own_node(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock
) -> None:
    replicas = [serve() for _ in range(2)]
    said = {"mode": "cron", "timezone": "UTC"}
    nodes = [
        node("never", "trigger-schedule", cron_expression="often", **said),
        node("whole", "trigger-schedule", cron_expression="0 * * * *", **said),
        node("half", "trigger-schedule", cron_expression="30 * * * *", **said),
        node("both", "trigger-schedule", cron_expression="*/30 * * * *", **said),
        end(),
    ]
    app = replicas[0].import_app(document(nodes, edges(*(f"{each['id']} > end" for each in nodes[:-1]))))
    hour_us = clock.us // HOUR_US * HOUR_US
    for clock.us, due in ((hour_us + HOUR_US // 2, {"half", "both"}), (hour_us + HOUR_US, {"whole", "both"})):
        before = len(runs(executor))
        for replica in replicas:
            replica.registry.catch_up()
            for node_id in due:
                rest(replica, app, clock.us, node_id)
        assert {run.root for run in runs(executor)[before:]} == due
        assert len(runs(executor)) == before + 2
    assert fired(replicas[0], app, "never") is None


def test_a_schedule_that_is_switched_off_loses_its_instants(
    serve: Callable[..., Server], executor: ScriptedExecutor, clock: Clock
) -> None:
    server = serve()
    app, other = server.import_app(hourly()), server.import_app(hourly())

    def switch(*, on: bool) -> None:
        path = f"/console/api/apps/{app['app_id']}/trigger-enable"
        answer = server.http.post(path, json={"trigger_id": "tick", "enable_trigger": on}, headers=server.admin())
        assert answer.status_code == 200, answer.text

    switch(on=False)
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    rest(server, other, clock.us)
    clock.us += 60_000_000
    switch(on=True)
    clock.us = (clock.us // HOUR_US + 1) * HOUR_US
    rest(server, app, clock.us)
    rest(server, other, clock.us)
    assert sorted(run.app_id for run in runs(executor)) == sorted([app["app_id"], other["app_id"], other["app_id"]])
