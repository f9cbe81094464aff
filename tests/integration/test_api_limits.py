"""Limits over real HTTP: requests of a key, runs of an app, runs of all apps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.events.ids import partition_of
from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import NodeFailed, NodeStarted, NodeSucceeded, RunFailed, RunStarted, RunSucceeded
from libs.events.registry import AppChanged, encode_fact
from libs.tables import create_tables, open_engine, sqlite_url
from services.api import Limits, starting
from services.api.records import Records
from services.projector.projector import Projector
from tests.api_world import ScriptedExecutor, Server, nothing, until
from tests.documents import document, edges, end, node


@contextmanager
def limited(limits: Limits, tables: Path | None = None) -> Iterator[tuple[Server, ScriptedExecutor]]:
    """`tables`: a folder for them; None: there are none."""
    with ExitStack() as stack:
        log = MemoryLog(MemoryStore(partitions=4))
        stack.callback(log.close)
        executor = ScriptedExecutor(log, nothing)
        stack.callback(executor.close)
        records = None
        if tables is not None:
            engine = open_engine(sqlite_url(tables / "tables.db"))
            stack.callback(engine.dispose)
            create_tables(engine)
            projector = Projector(log, engine)
            projector.start()
            stack.callback(projector.stop)
            records = Records(engine, log.topic_id(Topic.EVENTS))
        server = Server(log, records, limits)
        stack.callback(server.close)
        yield server, executor


@pytest.fixture
def apps() -> Iterator[tuple[Server, ScriptedExecutor]]:
    with limited(Limits(max_app_runs=2)) as made:
        yield made


@pytest.fixture
def together() -> Iterator[tuple[Server, ScriptedExecutor]]:
    with limited(Limits(max_runs=2)) as made:
        yield made


def begin(server: Server, key: str, **headers: str) -> str:
    """Start a run and leave it under way; its id."""
    with server.running(key, **headers) as stream:
        assert stream.response.status_code == 200, stream.response.read()
        return stream.run_id


def refused(server: Server, key: str, mode: str = "blocking", **headers: str) -> dict[str, Any]:
    answer = server.start(key, {"response_mode": mode}, **headers)
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (429, "too_many_requests", 429)
    assert int(answer.headers["retry-after"]) >= 1
    return dict(answer.json())


def test_a_run_too_many_of_an_app_is_refused_until_one_has_ended(apps: tuple[Server, ScriptedExecutor]) -> None:
    server, executor = apps
    app, other = server.import_app(), server.import_app()
    first, second = begin(server, app["api_key"]), begin(server, app["api_key"])
    for mode in ("blocking", "streaming"):
        said = refused(server, app["api_key"], mode)["message"]
        assert app["app_id"] in said
        assert "at most 2" in said
    begin(server, other["api_key"])
    executor.emit(first, RunStarted(max_steps=1), RunSucceeded())
    third = begin(server, app["api_key"])
    refused(server, app["api_key"])
    assert len({partition_of(run_id) for run_id in (first, second, third)}) == 1


def test_an_apps_own_limit_counts_when_it_is_lower(apps: tuple[Server, ScriptedExecutor]) -> None:
    server, _ = apps
    app = server.import_app()
    change = AppChanged(change_id="c1", app_id=app["app_id"], max_active_requests=1, updated_at_us=1)
    server.parts.log.send(Topic.DEFINITIONS, 0, encode_fact(change)).result(30)
    until(lambda: server.registry.app(app["app_id"]).max_active_requests == 1)  # type: ignore[union-attr]  # it is there
    begin(server, app["api_key"])
    assert "at most 1" in refused(server, app["api_key"])["message"]


def test_a_repeat_is_no_further_run(apps: tuple[Server, ScriptedExecutor]) -> None:
    server, _ = apps
    key = server.import_app()["api_key"]
    first = begin(server, key, Idempotency_Key="one")
    begin(server, key)
    assert begin(server, key, Idempotency_Key="one") == first
    refused(server, key, Idempotency_Key="two")


def test_as_many_starts_at_once_as_an_app_may_have_pass(apps: tuple[Server, ScriptedExecutor]) -> None:
    import threading

    server, executor = apps
    key = server.import_app()["api_key"]
    found: list[int] = []

    def ask() -> None:
        with server.running(key) as stream:
            found.append(stream.response.status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [200, 200, *[429] * 6]
    assert len(executor.accepted) == 2


def test_all_apps_share_a_limit_and_a_repeat_still_finds_its_run(together: tuple[Server, ScriptedExecutor]) -> None:
    server, executor = together
    one, two = server.import_app()["api_key"], server.import_app()["api_key"]
    first = begin(server, one, Idempotency_Key="one")
    begin(server, two)
    until(lambda: server.parts.tail.open_runs == 2)
    refused(server, one)
    refused(server, two, "streaming")
    refused(server, two, Idempotency_Key="other")
    assert begin(server, one, Idempotency_Key="one") == first
    executor.emit(first, RunStarted(max_steps=1), RunSucceeded())
    until(lambda: server.parts.tail.open_runs == 1)
    begin(server, two)


def test_a_key_may_ask_so_often_a_minute_and_others_go_on() -> None:
    with limited(Limits(key_requests_per_minute=3)) as (server, _):
        one, two = server.import_app()["api_key"], server.import_app()["api_key"]
        for _ in range(3):
            assert server.http.get("/v1/info", headers={"Authorization": f"Bearer {one}"}).status_code == 200
        answer = server.http.get("/v1/info", headers={"Authorization": f"Bearer {one}"})
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert server.http.get("/v1/info", headers={"Authorization": f"Bearer {two}"}).status_code == 200
        for _ in range(5):
            assert server.http.get("/v1/apps", headers=server.admin()).status_code == 200
        wrong = server.http.get("/v1/info", headers={"Authorization": "Bearer app-nobodyhasthiskey00000000"})
        assert wrong.status_code == 401


def failed(executor: ScriptedExecutor, run_id: str) -> None:
    """As a run whose end node failed."""
    executor.emit(
        run_id,
        RunStarted(max_steps=9),
        NodeStarted(node_id="start", node_type="start", title="Start", index=1),
        NodeSucceeded(node_id="start", outputs={"q": "hi"}),
        NodeStarted(node_id="end", node_type="end", title="End", index=2, predecessor_id="start"),
        NodeFailed(node_id="end", error="no"),
        RunFailed(code="node_failed", error="no", node_id="end"),
    )


def ways(server: Server, app: dict[str, Any], run_id: str) -> Iterator[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """(path as in the OpenAPI document, path, body, headers) of every request that makes a run of the app."""
    app_id, inputs, part = app["app_id"], {"inputs": {"q": "x"}, "user": "u"}, {"inputs": {"start.q": "x"}}
    console, admin, key = f"/console/api/apps/{app_id}", server.admin(), {"Authorization": f"Bearer {app['api_key']}"}
    code = server.http.get(console, headers=admin).json()["site"]["code"]
    passport = server.http.get("/api/passport", headers={"X-App-Code": code}).json()["access_token"]
    draft = "/console/api/apps/{app_id}/workflows/draft"
    yield "/v1/workflows/run", "/v1/workflows/run", inputs, key
    named = f"/v1/workflows/{app['workflow_id']}/run"
    yield "/v1/workflows/{workflow_id}/run", named, inputs, key
    yield "/v1/runs", "/v1/runs", inputs | {"app_id": app_id}, admin
    yield "/v1/runs", "/v1/runs", part | {"app_id": app_id, "only": "end"}, admin
    yield "/v1/runs/{run_id}/fork", f"/v1/runs/{run_id}/fork", {"at": 3}, key
    yield "/v1/runs/{run_id}/retry", f"/v1/runs/{run_id}/retry", {}, key
    yield f"{draft}/run", f"{console}/workflows/draft/run", inputs, admin
    yield f"{draft}/nodes/{{node_id}}/run", f"{console}/workflows/draft/nodes/end/run", part, admin
    browser = {"X-App-Code": code, "X-App-Passport": passport}
    yield "/api/workflows/run", "/api/workflows/run", inputs | {"response_mode": "streaming"}, browser


def test_the_limit_of_an_app_holds_for_every_way_to_a_new_run(tmp_path: Path) -> None:
    with limited(Limits(max_app_runs=1), tmp_path) as (server, executor):
        app = server.import_app()
        documented = server.http.get("/openapi.json").json()["paths"]
        first = begin(server, app["api_key"])
        failed(executor, first)
        begin(server, app["api_key"])
        for named, path, body, headers in ways(server, app, first):
            answer = server.http.post(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests"), (path, answer.text)
            assert int(answer.headers["retry-after"]) >= 1
            assert "429" in documented[named]["post"]["responses"], named
        assert len(executor.accepted) == 2
        until(lambda: server.http.get("/v1/runs?status=failed", headers=server.admin()).json()["data"])
        bulk = {"action": "retry", "filter": {"app": app["app_id"]}, "expect": 1}
        done = server.http.post("/v1/runs/bulk", json=bulk, headers=server.admin()).json()
        assert (done["changed"], [each["code"] for each in done["failed"]]) == ([], ["too_many_requests"])
        bulk = {"action": "retry", "filter": {"app": app["app_id"]}, "expect": 1}
        until(lambda: server.http.get("/v1/runs?status=failed", headers=server.admin()).json()["data"])
        done = server.http.post("/v1/runs/bulk", json=bulk, headers=server.admin()).json()
        assert (done["changed"], [each["code"] for each in done["failed"]]) == ([], ["too_many_requests"])


def test_forks_and_retries_are_runs_of_the_limit_of_all_apps() -> None:
    with limited(Limits(max_runs=1)) as (server, executor):
        app = server.import_app()
        first = begin(server, app["api_key"])
        failed(executor, first)
        until(lambda: server.parts.tail.open_runs == 0)
        second = begin(server, app["api_key"])
        until(lambda: server.parts.tail.open_runs == 1)
        for verb, body in (("fork", {"at": 3}), ("retry", {})):
            answer = server.http.post(f"/v1/runs/{first}/{verb}", json=body, headers=server.admin())
            assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests"), answer.text
        executor.emit(second, RunStarted(max_steps=1), RunSucceeded())
        until(lambda: server.parts.tail.open_runs == 0)
        retried = server.http.post(f"/v1/runs/{first}/retry", headers=server.admin())
        assert retried.status_code == 200, retried.text


@contextmanager
def undecided(limits: Limits) -> Iterator[tuple[Server, ScriptedExecutor, MemoryStore]]:
    """One partition, whose owner does not decide before it is told to."""
    store = MemoryStore(partitions=1)
    log = MemoryLog(store)
    executor = ScriptedExecutor(log, nothing, deciding=False)
    server = Server(log, limits=limits)
    yield server, executor, store
    server.close()
    executor.close()
    log.close()


def test_a_start_counts_for_the_limit_of_all_apps_until_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "STREAM_ANSWER_S", 0.0)
    with undecided(Limits(max_runs=2)) as (server, executor, _):
        key = server.import_app()["api_key"]
        for _ in range(2):
            begin(server, key)
        refused(server, key, "streaming")
        executor.begin_deciding()
        until(lambda: len(executor.accepted) == 2)
        refused(server, key, "streaming")


def test_a_webhook_is_told_of_a_limit_however_long_the_decision_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "STREAM_ANSWER_S", 0.0)
    with undecided(Limits(max_app_runs=1)) as (server, executor, store):
        hook = node("hook", "trigger-webhook", method="post", content_type="application/json", status_code=202)
        app = server.import_app(document([hook, end(raw="hook._webhook_raw")], edges("hook > end")))
        console = f"/console/api/apps/{app['app_id']}/workflows/triggers/webhook?node_id=hook"
        path = f"/triggers/webhook/{server.http.get(console, headers=server.admin()).json()['webhook_id']}"
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(server.http.post, path, json={"n": number}) for number in range(2)]
            until(lambda: store.end(Topic.COMMANDS, 0) == 2)
            executor.begin_deciding()
            answers = [call.result() for call in calls]
        assert sorted(answer.status_code for answer in answers) == [202, 429]
        refused_one = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused_one.headers["retry-after"]) >= 1
