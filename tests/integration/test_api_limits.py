"""Limits over real HTTP: requests of a key, runs of an app, runs of all apps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from libs.events.ids import partition_of
from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import RunStarted, RunSucceeded
from libs.events.registry import AppChanged, encode_fact
from services.api import Limits
from tests.api_world import ScriptedExecutor, Server, nothing, until


@contextmanager
def limited(limits: Limits) -> Iterator[tuple[Server, ScriptedExecutor]]:
    log = MemoryLog(MemoryStore(partitions=4))
    executor = ScriptedExecutor(log, nothing)
    server = Server(log, limits=limits)
    yield server, executor
    server.close()
    executor.close()
    log.close()


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
    server.parts.log.send(Topic.DEFINITIONS, 0, encode_fact(change)).result(5)
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
