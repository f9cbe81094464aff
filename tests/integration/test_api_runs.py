"""Starting, reading, listing and stopping runs over real HTTP."""

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.events.ids import new_run_id, partition_of, task_id_of
from libs.events.log import Topic
from libs.events.memory import MemoryLog
from libs.events.model import NodeFailed, NodeStarted, RunFailed, RunPaused, RunResumed, RunStarted, RunStopped
from libs.events.registry import RegistryTail
from libs.tables import open_engine, sqlite_url
from services.api import Limits
from services.api.records import Records
from services.projector.projector import Projector
from tests.api_world import (
    ECHO,
    SPEAKING,
    ScriptedExecutor,
    Server,
    StuckLog,
    finish_llm,
    names,
    nothing,
    to_llm,
    until,
)

DEEP = base64.urlsafe_b64encode(b"[" * 20_000).decode()
"""A cursor that nobody gave out."""


@pytest.fixture
def app(server: Server) -> dict[str, Any]:
    return server.import_app()


@pytest.fixture
def key(app: dict[str, Any]) -> str:
    return str(app["api_key"])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_blocking_answer_has_the_reference_shape(server: Server, app: dict[str, Any], key: str) -> None:
    answer = server.start(key)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    body = answer.json()
    run_id = body["workflow_run_id"]
    assert answer.headers["x-workflow-run-id"] == run_id
    assert answer.headers["x-task-id"] == body["task_id"] == task_id_of(run_id)
    data = body["data"]
    assert set(body) == {"task_id", "workflow_run_id", "data"}
    assert set(data) == {
        "id", "workflow_id", "status", "outputs", "error", "elapsed_time", "total_tokens", "total_steps", "created_at",
        "finished_at",
    }  # fmt: skip
    assert (data["id"], data["workflow_id"], data["status"]) == (run_id, app["workflow_id"], "succeeded")
    assert data["outputs"] == {"answer": "hi"}
    assert abs(data["created_at"] - time.time()) < 60


def test_an_absent_response_mode_is_blocking(server: Server, key: str) -> None:
    answer = server.http.post("/v1/workflows/run", json={"inputs": {}, "user": "u"}, headers=bearer(key))
    assert answer.json()["data"]["status"] == "succeeded"


def test_a_failed_run_answers_200(server: Server, key: str, executor: ScriptedExecutor) -> None:
    def script(executor: ScriptedExecutor, run_id: str, accepted: Any) -> None:
        executor.emit(
            run_id,
            RunStarted(max_steps=9),
            NodeStarted(node_id="start", node_type="start", index=1),
            NodeFailed(node_id="start", error="boom"),
            RunFailed(error="boom", node_id="start"),
        )

    executor.script = script
    answer = server.start(key)
    assert answer.status_code == 200
    assert (answer.json()["data"]["status"], answer.json()["data"]["error"]) == ("failed", "boom")


def test_headers_of_a_blocking_answer_leave_before_the_run_ends(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    key = server.import_app(SPEAKING)["api_key"]
    body = {"inputs": {"q": "x"}, "user": "u", "response_mode": "blocking"}
    with server.http.stream("POST", "/v1/workflows/run", json=body, headers=bearer(key)) as answer:
        run_id = answer.headers["x-workflow-run-id"]
        finish_llm(executor, run_id, "done")
        answer.read()
        assert answer.json()["data"]["outputs"] == {"text": "done"}


def test_a_run_by_version_runs_that_version(server: Server, app: dict[str, Any], key: str) -> None:
    server.http.post(
        "/v1/apps/import", params={"app": app["app_id"]}, content=SPEAKING, headers=server.admin()
    ).raise_for_status()
    body = {"inputs": {}, "user": "u"}
    answer = server.http.post(f"/v1/workflows/{app['workflow_id']}/run", json=body, headers=bearer(key))
    assert answer.json()["data"]["workflow_id"] == app["workflow_id"]
    newest = server.http.get(f"/v1/apps/{app['app_id']}", headers=server.admin()).json()["workflow_id"]
    assert newest != app["workflow_id"]


# --- idempotency ---


def test_a_repeat_with_the_same_key_attaches_to_the_same_run(
    server: Server, key: str, executor: ScriptedExecutor
) -> None:
    first = server.start(key, Idempotency_Key="order-1").json()
    again = server.start(key, Idempotency_Key="order-1").json()
    assert again == first
    assert len(executor.accepted) == 1
    with server.running(key, Idempotency_Key="order-1") as stream:
        assert stream.run_id == first["workflow_run_id"]
        assert names(stream.rest())[-1] == "workflow_finished"


def test_a_repeat_of_a_running_start_waits_for_the_same_end(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    key = server.import_app(SPEAKING)["api_key"]
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.start(key, Idempotency_Key="k").json())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    run_id = executor.run()
    until(lambda: len(server.parts.tail._ends.get(run_id, ())) == 2)  # noqa: SLF001  # both wait
    finish_llm(executor, run_id, "x")
    for thread in threads:
        thread.join()
    assert [answer["workflow_run_id"] for answer in answers] == [run_id, run_id]


def test_a_repeated_stream_goes_on_where_it_broke_off(server: Server, key: str) -> None:
    with server.running(key, Idempotency_Key="k") as stream:
        whole = stream.rest()
    with server.running(key, Idempotency_Key="k", Last_Event_ID="4") as stream:
        assert stream.rest() == whole[4:]


def test_the_same_key_with_another_body_is_refused(server: Server, key: str) -> None:
    server.start(key, Idempotency_Key="k")
    answer = server.start(key, {"inputs": {"q": "other"}}, Idempotency_Key="k")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_the_same_key_in_two_apps_makes_two_runs(server: Server, key: str) -> None:
    other = server.import_app()["api_key"]
    one = server.start(key, Idempotency_Key="k").json()["workflow_run_id"]
    two = server.start(other, Idempotency_Key="k").json()["workflow_run_id"]
    assert one != two


# --- what the log does not confirm ---


def test_an_unconfirmed_start_is_503_and_says_how_to_find_out(log: MemoryLog, executor: ScriptedExecutor) -> None:
    stuck = StuckLog(log)
    server = Server(stuck)
    try:
        key = server.import_app()["api_key"]
        for mode in ("blocking", "streaming"):
            answer = server.start(key, {"response_mode": mode}, Idempotency_Key="k")
            assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
            assert answer.headers["retry-after"]
        assert server.parts.streams.clients == 0
        stuck.failing = False
        assert server.start(key, Idempotency_Key="k").status_code == 200
    finally:
        server.close()


def test_a_start_that_nobody_decides_is_503_with_a_key(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, deciding=False)
    server = Server(log, limits=Limits(start_lifetime_s=-0.5))
    try:
        key = server.import_app()["api_key"]
        assert server.start(key, Idempotency_Key="k").status_code == 503
        assert server.start(key).status_code == 503
    finally:
        server.close()
        executor.close()


def test_a_late_start_is_refused_in_the_stream(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, deciding=False)
    server = Server(log, limits=Limits(start_lifetime_s=0.7))
    try:
        key = server.import_app()["api_key"]
        with server.running(key) as stream:  # opens without an answer
            deadline = time.monotonic() + 0.7
            until(lambda: time.monotonic() > deadline)  # the start's own deadline is what is waited for
            executor.begin_deciding()
            (frame,) = stream.rest()
        assert (frame.name, frame.data["code"]) == ("error", "service_unavailable")
        assert frame.data["workflow_run_id"] == stream.run_id
    finally:
        server.close()
        executor.close()


# --- reads ---


def test_the_detail_of_a_run_has_the_reference_shape(server: Server, app: dict[str, Any], key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    detail = server.http.get(f"/v1/workflows/run/{run_id}", headers=bearer(key)).json()
    assert detail == {
        "id": run_id,
        "workflow_id": app["workflow_id"],
        "status": "succeeded",
        "inputs": detail["inputs"],
        "outputs": {"answer": "hi"},
        "error": None,
        "total_steps": 2,
        "total_tokens": 0,
        "created_at": detail["created_at"],
        "finished_at": detail["finished_at"],
        "elapsed_time": 0.0,
    }
    assert '"sys.user_id":"u1"' in detail["inputs"]


def test_a_running_run_has_no_end_yet(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    key = server.import_app(SPEAKING)["api_key"]
    with server.running(key) as stream:
        stream.take(4)
        detail = server.http.get(f"/v1/workflows/run/{stream.run_id}", headers=bearer(key)).json()
    assert (detail["status"], detail["finished_at"], detail["outputs"]) == ("running", None, {})


def test_a_read_is_never_older_than_a_frame_on_any_replica(
    server: Server, key: str, log: MemoryLog, executor: ScriptedExecutor
) -> None:
    other = Server(log)
    try:
        for _ in range(20):
            run_id = server.start(key).json()["workflow_run_id"]
            detail = other.http.get(f"/v1/workflows/run/{run_id}", headers=bearer(key)).json()
            assert detail["status"] == "succeeded"
    finally:
        other.close()


def test_a_replica_that_cannot_catch_up_says_so(log: MemoryLog, server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    other = Server(log, limits=Limits(fresh_s=0.1))
    try:
        for tail in other.parts.tail._tails:  # noqa: SLF001  # a stuck consumer
            for partition in range(2):
                tail.pause(partition)
        while partition_of(server.start(key).json()["workflow_run_id"]) != partition_of(run_id):
            pass  # where a run goes is left to chance
        for path in (f"/v1/workflows/run/{run_id}", f"/v1/runs/{run_id}"):
            answer = other.http.get(path, headers=bearer(key))
            assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
            assert answer.headers["retry-after"]
    finally:
        other.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_run_is_found_in_the_log_without_tables(server: Server, key: str, log: MemoryLog, restarted: bool) -> None:
    for _ in range(3):
        run_id = server.start(key).json()["workflow_run_id"]
    reader = Server(log) if restarted else server
    if restarted:
        reader.parts.tail._outlines.clear()  # noqa: SLF001  # as if it had seen too many other runs
    try:
        detail = reader.http.get(f"/v1/workflows/run/{run_id}", headers=bearer(key)).json()
        assert detail["outputs"] == {"answer": "hi"}
    finally:
        if restarted:
            reader.close()


def test_show_has_nodes_and_variables(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    run = server.http.get(f"/v1/runs/{run_id}", headers=bearer(key)).json()
    assert (run["id"], run["status"], run["seq"], run["waiting_for"]) == (run_id, "succeeded", 7, [])
    assert run["created_at"].endswith("Z")
    assert run["nodes"]["end"]["status"] == "succeeded"
    (execution,) = run["nodes"]["end"]["executions"]
    assert {"path": "", "attempt": 1, "status": "succeeded", "error": None, "outputs": {"answer": "hi"}}.items() <= (
        execution.items()
    )
    assert run["variables"]["start"] == {"q": "hi"}


def test_state_at_a_sequence_is_the_fold_up_to_it(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    states = [
        server.http.get(f"/v1/runs/{run_id}/state", params={"at": at}, headers=bearer(key)).json() for at in range(1, 8)
    ]
    assert [state["status"] for state in states] == ["pending", *["running"] * 5, "succeeded"]
    assert [len(state["nodes"]) for state in states] == [0, 0, 1, 1, 2, 2, 2]
    assert states[2]["waiting_for"] == [{"kind": "node", "node_id": "start", "path": "", "attempt": 1}]
    for at in ("0", "8", "x"):
        answer = server.http.get(f"/v1/runs/{run_id}/state", params={"at": at}, headers=bearer(key))
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


def test_history_is_one_json_object_a_line(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    answer = server.http.get(f"/v1/runs/{run_id}/history", headers=bearer(key))
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [__import__("json").loads(line) for line in answer.text.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 8))
    assert lines[0]["type"] == "RunAccepted"
    assert lines[2]["node_execution_id"]
    part = server.http.get(f"/v1/runs/{run_id}/history", params={"from": 3, "to": 5}, headers=bearer(key)).text
    assert len(part.splitlines()) == 3


def test_history_comes_as_events_too(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    headers = bearer(key) | {"Accept": "text/event-stream"}
    text = server.http.get(f"/v1/runs/{run_id}/history", headers=headers).text
    assert text.startswith('id: 1\ndata: {"seq":1')
    assert text.count("\n\n") == 7


def test_another_app_sees_nothing_of_a_run(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    other = bearer(server.import_app()["api_key"])
    for path in (
        f"/v1/workflows/run/{run_id}",
        f"/v1/runs/{run_id}",
        f"/v1/runs/{run_id}/state",
        f"/v1/runs/{run_id}/history",
        f"/v1/workflow/{run_id}/events?user=u1",
    ):
        assert server.http.get(path, headers=other).status_code == 404, path
    assert server.http.post(f"/v1/runs/{run_id}/stop", headers=other).status_code == 404


@pytest.mark.parametrize("run_id", ["nope", "00000000-0000-4000-8000-000000000000", str(new_run_id(9, 0, 1))])
def test_an_unknown_run_is_404_everywhere(server: Server, key: str, run_id: str) -> None:
    for path in (f"/v1/workflows/run/{run_id}", f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/history"):
        answer = server.http.get(path, headers=bearer(key))
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_ids_may_be_in_upper_case(server: Server, app: dict[str, Any], key: str) -> None:
    headers = bearer(key)
    body = {"inputs": {}, "user": "u"}
    made = server.http.post(f"/v1/workflows/{app['workflow_id'].upper()}/run", json=body, headers=headers)
    assert made.status_code == 200, made.text
    run_id, task_id = made.json()["workflow_run_id"], made.json()["task_id"]
    run = server.http.get(f"/v1/workflows/run/{run_id.upper()}", headers=headers)
    assert run.json()["id"] == run_id
    stopped = server.http.post(f"/v1/workflows/tasks/{task_id.upper()}/stop", json={"user": "u"}, headers=headers)
    assert stopped.json() == {"result": "success"}
    ours = server.http.post("/v1/runs", json=body | {"app_id": app["app_id"].upper()}, headers=server.admin())
    assert ours.status_code in (200, 202), ours.text
    update = server.http.post(f"/v1/apps/import?app={app['app_id'].upper()}", content=ECHO, headers=server.admin())
    assert update.json()["app_id"] == app["app_id"]


def test_a_user_in_the_query_stays_as_it_is(server: Server, key: str) -> None:
    user = "A1B2C3D4-0000-4000-8000-00000000000F"
    run_id = server.start(key, {"inputs": {}, "user": user}).json()["workflow_run_id"]
    for asked, status in ((user, 200), (user.lower(), 404)):
        path = f"/v1/workflow/{run_id.upper()}/events"
        assert server.http.get(path, params={"user": asked}, headers=bearer(key)).status_code == status


def test_of_a_repeated_parameter_the_last_counts(server: Server, key: str) -> None:
    run_id = server.start(key, {"inputs": {}, "user": "u"}).json()["workflow_run_id"]
    for query, status in (("user=other&user=u", 200), ("user=u&user=other", 404)):
        assert server.http.get(f"/v1/workflow/{run_id}/events?{query}", headers=bearer(key)).status_code == status


def test_a_run_that_never_was_is_404(server: Server, key: str) -> None:
    run_id = new_run_id(1, int(time.time() * 1e6), 5)
    assert server.http.get(f"/v1/runs/{run_id}", headers=bearer(key)).status_code == 404


# --- stop ---


def test_a_run_is_stopped_by_its_task(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    key = server.import_app(SPEAKING)["api_key"]
    with server.running(key) as stream:
        stream.take(4)
        task_id = stream.headers["x-task-id"]
        answer = server.http.post(f"/v1/workflows/tasks/{task_id}/stop", json={"user": "x"}, headers=bearer(key))
        assert (answer.status_code, answer.json()) == (200, {"result": "success"})
        until(lambda: executor.stops == [stream.run_id])
        executor.emit(stream.run_id, RunStopped(error="User requested stop"))
        (end,) = stream.rest()
    assert end.data["data"]["status"] == "stopped"


@pytest.mark.parametrize("task_id", ["nope", "00000000-0000-4000-8000-000000000000"])
def test_stopping_an_unknown_task_succeeds(server: Server, key: str, task_id: str) -> None:
    answer = server.http.post(f"/v1/workflows/tasks/{task_id}/stop", json={"user": "x"}, headers=bearer(key))
    assert (answer.status_code, answer.json()) == (200, {"result": "success"})


def test_a_finished_or_foreign_task_is_left_alone(server: Server, key: str, executor: ScriptedExecutor) -> None:
    def stop(task_id: str, key: str) -> None:
        assert server.http.post(
            f"/v1/workflows/tasks/{task_id}/stop", json={"user": "x"}, headers=bearer(key)
        ).is_success

    finished = server.start(key).json()["task_id"]
    executor.script = nothing
    with server.running(key) as stream:
        other = server.import_app()["api_key"]
        task_id = stream.headers["x-task-id"]
        executor.run(1)
        before = executor.commands()
        stop(finished, key)
        stop(task_id, other)
        assert executor.commands() == before
        stop(task_id, key)
        until(lambda: executor.stops)
        assert (executor.stops, executor.commands()) == ([stream.run_id], before + 1)


def test_our_own_stop_answers_what_became_of_it(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    key = server.import_app(SPEAKING)["api_key"]
    with server.running(key) as stream:
        stream.take(4)
        first = server.http.post(f"/v1/runs/{stream.run_id}/stop", headers=server.admin()).json()
        again = server.http.post(f"/v1/runs/{stream.run_id}/stop", headers=server.admin()).json()
    assert (first["result"], first["stop_requested"], first["id"]) == ("success", True, stream.run_id)
    assert again["stop_requested"] is False


# --- our own start and list ---


def test_the_admin_starts_a_run_of_any_app(server: Server, app: dict[str, Any]) -> None:
    body = {"app_id": app["app_id"], "inputs": {"q": "x"}}
    answer = server.http.post("/v1/runs", json=body, headers=server.admin())
    assert answer.json()["data"]["outputs"] == {"answer": "x"}


def test_pins_reach_the_command_and_need_the_admin(
    server: Server, key: str, app: dict[str, Any], executor: ScriptedExecutor
) -> None:
    body = {"app_id": app["app_id"], "inputs": {}, "pins": {"nodes": {"end": {"outputs": {"answer": "p"}}}}}
    assert server.http.post("/v1/runs", json=body, headers=server.admin()).status_code == 200
    assert list(executor.accepted.values())[-1].pins == body["pins"]
    assert server.http.post("/v1/runs", json=body, headers=bearer(key)).status_code == 403
    wrong = body | {"pins": {"nodes": {"nobody": {}}}}
    answer = server.http.post("/v1/runs", json=wrong, headers=server.admin())
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


@pytest.fixture
def listing(log: MemoryLog, executor: ScriptedExecutor, tmp_path: Path) -> Iterator[Server]:
    engine = open_engine(sqlite_url(tmp_path / "tables.db"))
    projector = Projector(log, engine)
    projector.start()
    made = Server(log, Records(engine, log.topic_id(Topic.EVENTS)))
    yield made
    made.close()
    projector.stop()
    engine.dispose()


def listed(server: Server, **query: Any) -> dict[str, Any]:
    answer = server.http.get("/v1/runs", params=query, headers=server.admin())
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_runs_are_listed_newest_first_in_pages(listing: Server) -> None:
    key = listing.import_app()["api_key"]
    made = [listing.start(key).json()["workflow_run_id"] for _ in range(5)]
    until(lambda: len(listed(listing)["data"]) == 5)
    first = listed(listing, limit=3)
    second = listed(listing, limit=3, cursor=first["next_cursor"])
    assert [run["id"] for run in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    assert set(first["data"][0]) == {
        "id", "app_id", "workflow_id", "version", "status", "error", "created_at", "started_at", "finished_at",
        "queue_time", "elapsed_time", "total_steps", "total_tokens", "seq", "triggered_from", "only", "forked_from",
        "forked_at",
    }  # fmt: skip
    assert first["data"][0]["queue_time"] >= 0


def test_a_run_is_listed_as_soon_as_it_was_answered(listing: Server) -> None:
    key = listing.import_app()["api_key"]
    for _ in range(5):
        run_id = listing.start(key).json()["workflow_run_id"]
        newest = listed(listing)["data"][0]
        assert (newest["id"], newest["status"]) == (run_id, "succeeded")


def test_lists_are_filtered(listing: Server) -> None:
    one, two = listing.import_app(), listing.import_app()
    run_id = listing.start(one["api_key"]).json()["workflow_run_id"]
    listing.start(two["api_key"])
    until(lambda: len(listed(listing)["data"]) == 2)
    assert [run["id"] for run in listed(listing, app=one["app_id"])["data"]] == [run_id]
    assert [run["id"] for run in listed(listing, id_prefix=run_id[:30])["data"]] == [run_id]
    assert listed(listing, status="failed")["data"] == []
    assert listed(listing, since="2099-01-01T00:00:00Z")["data"] == []
    own = listing.http.get("/v1/runs", headers=bearer(one["api_key"])).json()["data"]
    assert [run["id"] for run in own] == [run_id]
    for wrong in ({"status": "x"}, {"limit": 0}, {"limit": "x"}, {"since": "x"}, {"cursor": "x"}, {"cursor": DEEP}):
        answer = listing.http.get("/v1/runs", params=wrong, headers=listing.admin())
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param"), wrong


def test_tables_and_log_give_the_same_detail(listing: Server, log: MemoryLog) -> None:
    key = listing.import_app()["api_key"]
    run_id = listing.start(key, {"inputs": {"q": "x" * 100_000}}).json()["workflow_run_id"]
    path = f"/v1/workflows/run/{run_id}"
    from_outline = listing.http.get(path, headers=bearer(key)).json()
    until(lambda: listed(listing)["data"][0]["status"] == "succeeded")
    listing.parts.tail._outlines.clear()  # noqa: SLF001
    from_tables = listing.http.get(path, headers=bearer(key)).json()
    other = Server(log)
    try:
        other.parts.tail._outlines.clear()  # noqa: SLF001
        from_log = other.http.get(path, headers=bearer(key)).json()
    finally:
        other.close()
    assert from_outline == from_tables == from_log


def test_a_run_that_was_paused_tells_what_it_had_done_wherever_that_is_read(
    listing: Server, log: MemoryLog, executor: ScriptedExecutor
) -> None:
    def pausing(there: ScriptedExecutor, run_id: str, _: Any) -> None:
        there.emit(
            run_id, RunStarted(max_steps=10), RunPaused(reason="r", total_steps=3, total_tokens=7, elapsed_s=1.5)
        )

    executor.script = pausing
    key = listing.import_app()["api_key"]
    run_id = listing.start(key).json()["workflow_run_id"]
    path = f"/v1/workflows/run/{run_id}"
    for status in ("paused", "running"):
        if status == "running":
            executor.emit(run_id, RunResumed())
        until(lambda: listed(listing, status=status)["data"])  # noqa: B023  # called at once
        from_tail = listing.http.get(path, headers=bearer(key)).json()
        assert (from_tail["status"], from_tail["total_steps"], from_tail["total_tokens"]) == (status, 3, 7)
        assert from_tail["elapsed_time"] == 1.5
        other = Server(log)
        try:
            from_outline = other.http.get(path, headers=bearer(key)).json()
            other.parts.tail._outlines.clear()  # noqa: SLF001
            from_log = other.http.get(path, headers=bearer(key)).json()
        finally:
            other.close()
        (row,) = listed(listing, status=status)["data"]
        assert from_tail == from_outline == from_log
        assert (row["total_steps"], row["total_tokens"], row["elapsed_time"]) == (3, 7, 1.5)


def test_a_run_whose_document_is_not_there_is_not_forked(
    log: MemoryLog, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = server.start(server.import_app()["api_key"]).json()["workflow_run_id"]
    monkeypatch.setattr(RegistryTail, "document", lambda registry, digest: None)
    other = Server(log)
    try:
        answer = other.http.post(f"/v1/runs/{run_id}/fork", json={"at": 2}, headers=other.admin())
        assert (answer.status_code, answer.json()["code"]) == (409, "definition_invalid")
        assert run_id in answer.json()["message"]
    finally:
        other.close()
