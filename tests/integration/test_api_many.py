"""Several runs on one connection, and what is done to many runs at once."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from libs.events.log import Topic
from libs.events.memory import MemoryLog
from libs.events.model import NodeFailed, NodeStarted, NodeSucceeded, RunAccepted, RunFailed, RunStarted
from libs.tables import create_tables, open_engine, sqlite_url
from services.api.records import Records
from services.projector.projector import Projector
from tests.api_world import (
    ADMIN,
    SPEAKING,
    ScriptedExecutor,
    Serve,
    Server,
    Sse,
    echo,
    finish_llm,
    nothing,
    serving,
    to_llm,
    until,
)
from tests.documents import code, document, edges, end, start

FAILING = document([start("q"), code("c"), end(out="c.result")], edges("start > c > end"))


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    @contextmanager
    def with_tables(log: MemoryLog) -> Iterator[Server]:
        engine = open_engine(sqlite_url(tmp_path_factory.mktemp("data") / "tables.db"))
        create_tables(engine)
        projector = Projector(log, engine)
        projector.start()
        with serving(log, records=Records(engine, log.topic_id(Topic.EVENTS))) as made:
            yield made
        projector.stop()
        engine.dispose()

    return with_tables


def started(server: Server, key: str, count: int = 1, **inputs: str) -> list[str]:
    """Runs that are accepted: with an idempotency key a stream is answered then and not sooner."""
    found = []
    for number in range(count):
        body = {"inputs": {"q": f"q{number}"} | inputs, "user": "u1", "response_mode": "streaming"}
        with server.stream("POST", "/v1/workflows/run", key, body, Idempotency_Key=str(uuid4())) as stream:
            found.append(stream.run_id)
    return found


def followed(server: Server, key: str, runs: list[str], last: str | None = None) -> list[tuple[str | None, Any]]:
    with server.stream("GET", path_of(runs), key, **({} if last is None else {"Last_Event_ID": last})) as stream:
        assert stream.response.status_code == 200
        return [(frame.id, frame.data) for frame in stream.rest()]


def path_of(runs: list[str]) -> str:
    return "/v1/runs/events?" + "&".join(f"run={run}" for run in runs)


def by_run(frames: list[tuple[str | None, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for _, data in frames:
        found.setdefault(data["workflow_run_id"], []).append(data)
    return found


def own_stream(server: Server, key: str, run: str) -> list[Any]:
    with server.attached(run, key, "0") as stream:
        return [frame.data for frame in stream.rest()]


def test_every_run_says_what_its_own_stream_says(server: Server) -> None:
    key = server.import_app()["api_key"]
    runs = started(server, key, 3)
    frames = followed(server, key, runs)
    assert by_run(frames) == {run: own_stream(server, key, run) for run in runs}
    assert {data["event"] for _, data in frames[-3:]} >= {"workflow_finished"}


def test_a_stream_of_several_runs_goes_on_behind_every_id(server: Server) -> None:
    key = server.import_app()["api_key"]
    runs = started(server, key, 3)
    whole = followed(server, key, runs)
    for number, (identity, _) in enumerate(whole):
        if identity is None:
            continue
        assert len(identity.split(",")) == 3
        seen = by_run(whole[: number + 1])
        rest = by_run(followed(server, key, runs, identity))
        for run, frames in by_run(whole).items():
            assert seen.get(run, []) + rest.get(run, []) == frames


def test_runs_are_followed_live_and_end_the_stream_together(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    key = server.import_app(SPEAKING)["api_key"]
    first, second = started(server, key, 2)
    with server.stream("GET", path_of([first, second]), key) as stream:
        until(lambda: executor.seq(second) >= 5)
        assert [frame.data["workflow_run_id"] for frame in stream.take(8)].count(first) == 4
        executor.speak(first, "hi ", 0)
        spoken = stream.next()
        assert spoken is not None
        assert (spoken.data["workflow_run_id"], spoken.data["data"]["text"]) == (first, "hi ")
        finish_llm(executor, first, "hi there")
        finish_llm(executor, second, "and you")
        rest = stream.rest()
    assert [frame.name for frame in rest].count("workflow_finished") == 2
    until(lambda: server.parts.streams.clients == 0)


def test_a_client_that_leaves_frees_everything(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = nothing
    key = server.import_app()["api_key"]
    runs = started(server, key, 2)
    with server.stream("GET", path_of(runs), key):
        until(lambda: server.parts.streams.clients >= 3)
    until(lambda: server.parts.streams.clients == 0)


@pytest.mark.parametrize(
    ("query", "last", "status", "code"),
    [
        ("", None, 400, "invalid_param"),
        ("run=" + "&run=".join(f"r{number}" for number in range(101)), None, 400, "invalid_param"),
        ("run=01900000-0000-7000-8000-000000000001", None, 404, "not_found"),
        ("run={run}&run=nonsense", None, 404, "not_found"),
        ("run={run}", "1,2", 400, "invalid_param"),
        ("run={run}", "x", 400, "invalid_param"),
    ],
)
def test_what_cannot_be_followed_has_its_code(
    server: Server, query: str, last: str | None, status: int, code: str
) -> None:
    key = server.import_app()["api_key"]
    query = query.replace("{run}", started(server, key)[0])
    headers = {"Authorization": f"Bearer {key}"} | ({} if last is None else {"Last-Event-ID": last})
    answer = server.http.get(f"/v1/runs/events?{query}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_place_that_a_run_does_not_have_is_named(server: Server, executor: ScriptedExecutor) -> None:
    key = server.import_app()["api_key"]
    first, second = started(server, key, 2)
    followed(server, key, [first, second])  # until both have ended
    ends = [executor.seq(run) for run in (first, second)]
    headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": f"{ends[0]},{ends[1] + 1}"}
    answer = server.http.get(path_of([first, second]), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert f"the run {second} has {ends[1]} events" in answer.json()["message"]
    assert followed(server, key, [first, second], f"{ends[0]},{ends[1]}") == []


def test_runs_of_another_app_are_not_followed(server: Server) -> None:
    mine, other = server.import_app()["api_key"], server.import_app()["api_key"]
    run = started(server, mine)[0]
    answer = server.http.get(path_of([run]), headers={"Authorization": f"Bearer {other}"})
    assert answer.status_code == 404
    assert len(followed(server, ADMIN, [run])) > 3


# --- many at once ---


def bulk(server: Server, body: dict[str, Any], key: str = ADMIN) -> Any:
    return server.http.post("/v1/runs/bulk", json=body, headers={"Authorization": f"Bearer {key}"})


def listed(server: Server, count: int, status: str) -> None:
    """Wait until the tables have so many runs in this state."""
    path = f"/v1/runs?status={status}&limit=100"
    until(lambda: len(server.http.get(path, headers=server.admin()).json()["data"]) == count)


@pytest.mark.usefixtures("log")  # counts the runs of all apps
def test_a_bulk_is_counted_first_and_done_when_the_count_still_holds(
    server: Server, executor: ScriptedExecutor
) -> None:
    executor.script = nothing
    app = server.import_app()
    runs = started(server, app["api_key"], 3)
    others = started(server, server.import_app()["api_key"], 2)
    listed(server, 5, "pending")
    body = {"action": "stop", "filter": {"app": app["app_id"]}}
    before = executor.commands()
    counted = bulk(server, body).json()
    assert (counted["count"], counted["done"], counted["changed"]) == (3, False, [])
    wrong = bulk(server, body | {"expect": 2})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "count_changed")
    assert executor.commands() == before
    done = bulk(server, body | {"expect": 3}).json()
    assert (done["done"], sorted(each["id"] for each in done["changed"]), done["failed"]) == (True, sorted(runs), [])
    until(lambda: len(executor.stops) >= 3)
    assert bulk(server, {"action": "stop"}, app["api_key"]).json()["count"] == 3
    assert executor.commands() == before + 3
    assert sorted(executor.stops) == sorted(runs)
    assert not set(executor.stops) & set(others)


def failing(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    if accepted.forked_from is not None:
        return
    executor.emit(
        run_id,
        RunStarted(max_steps=100),
        NodeStarted(node_id="start", node_type="start", index=1),
        NodeSucceeded(node_id="start", outputs=dict(accepted.inputs)),
        NodeStarted(node_id="c", node_type="code", index=2),
        NodeFailed(node_id="c", error="no"),
        RunFailed(error="no", node_id="c"),
    )


@pytest.mark.usefixtures("log")  # counts the runs of all apps
def test_failed_runs_are_tried_again_together_and_only_once(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = failing
    key = server.import_app(FAILING)["api_key"]
    runs = started(server, key, 2)
    executor.script = echo
    started(server, server.import_app()["api_key"])
    executor.script = failing
    listed(server, 2, "failed")
    done = bulk(server, {"action": "retry", "expect": 2}).json()
    assert {each["id"] for each in done["changed"]} == set(runs), json.dumps(done)
    made = {each["retried_as"] for each in done["changed"]}
    assert len(made) == 2
    assert done["already"] == []
    again = bulk(server, {"action": "retry", "expect": 2}).json()
    assert (again["changed"], again["failed"]) == ([], [])
    assert {each["id"]: each["retried_as"] for each in again["already"]} == {
        each["id"]: each["retried_as"] for each in done["changed"]
    }


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"action": "delete"}, 400),
        ({"action": "stop", "expect": "3"}, 400),
        ({"action": "stop", "expect": -1}, 400),
        ({"action": "stop", "filter": []}, 400),
        ({"action": "stop", "filter": {"staus": "running"}}, 400),
        ({"action": "stop", "filter": {"status": "succeeded"}}, 400),
        ({"action": "retry", "filter": {"status": "nonsense"}}, 400),
        ({"action": "stop", "filter": {"since": "yesterday"}}, 400),
        ({"action": "stop", "filter": {"app": 7}}, 400),
    ],
)
def test_a_bulk_that_means_nothing_sure_is_refused(server: Server, body: dict[str, Any], status: int) -> None:
    assert bulk(server, body).status_code == status


@pytest.mark.usefixtures("log")  # counts the runs of all apps
def test_a_bulk_with_a_key_means_the_runs_of_its_app(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = nothing
    app, other = server.import_app(), server.import_app()
    started(server, app["api_key"], 2)
    listed(server, 2, "pending")
    assert bulk(server, {"action": "stop"}, other["api_key"]).json()["count"] == 0
    assert bulk(server, {"action": "stop", "filter": {"app": app["app_id"]}}, other["api_key"]).status_code == 404


def test_frames_of_a_stream_can_be_read(server: Server) -> None:
    """The reader of the other tests skips nothing."""
    key = server.import_app()["api_key"]
    run = started(server, key)[0]
    with server.stream("GET", path_of([run]), key) as stream:
        assert isinstance(stream, Sse)
        assert stream.rest()
        assert stream.pings == 1
