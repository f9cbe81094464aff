"""The public page of an app: passports, runs in reduced detail, and what one browser may do to another's run."""

import json
from typing import Any

import httpx
import pytest

from libs.events.ids import execution_id, form_token
from libs.events.memory import MemoryLog
from libs.events.model import (
    FormOpened,
    NodeFailed,
    NodeRetryScheduled,
    NodeStarted,
    NodeSucceeded,
    RunFailed,
    RunPaused,
    RunStarted,
)
from services.api.visitors import PASSPORT_S
from tests.api_world import ADMIN, SPEAKING, T0_US, Clock, ScriptedExecutor, Server, finish_llm, nothing, to_llm, until
from tests.documents import document, edges, node, start

CHATFLOW = document(
    [start(), node("answer", "answer", answer="hi", variables=[])], edges("start > answer"), mode="advanced-chat"
)


class Page:
    def __init__(self, server: Server, text: str | None = None) -> None:
        self.server = server
        app = server.import_app() if text is None else server.import_app(text)
        self.app_id, self.key = app["app_id"], app["api_key"]
        self.code = self.detail()["site"]["code"]

    def detail(self) -> dict[str, Any]:
        path = f"/console/api/apps/{self.app_id}"
        found: dict[str, Any] = self.server.http.get(path, headers=self.server.admin()).json()
        return found

    def switch(self, *, on: bool) -> None:
        path = f"/console/api/apps/{self.app_id}/site-enable"
        self.server.http.post(path, json={"enable_site": on}, headers=self.server.admin())

    def visit(self, user: str | None = None, server: Server | None = None) -> dict[str, str]:
        """The headers of a browser."""
        http = (server or self.server).http
        query = {} if user is None else {"user_id": user}
        answer = http.get("/api/passport", params=query, headers={"X-App-Code": self.code})
        assert answer.status_code == 200, answer.text
        return {"X-App-Code": self.code, "X-App-Passport": answer.json()["access_token"]}


@pytest.fixture
def page(server: Server) -> Page:
    return Page(server)


def run(page: Page, headers: dict[str, str], body: Any = None) -> httpx.Response:
    given = {"inputs": {"q": "hi"}} if body is None else body
    return page.server.http.post("/api/workflows/run", json=given, headers=headers)


def frames(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_browser_with_a_passport_runs_the_app_always_streaming(page: Page, executor: ScriptedExecutor) -> None:
    answer = run(page, page.visit("visitor-1"), {"inputs": {"q": "hi"}, "response_mode": "blocking"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = frames(answer)
    assert seen[0]["data"]["inputs"]["sys.user_id"] == "visitor-1"
    assert seen[-1]["data"]["outputs"] == {"answer": "hi"}
    accepted = next(iter(executor.accepted.values()))
    assert (accepted.invoke_from, accepted.triggered_from, accepted.caller.role) == ("web-app", "app-run", "end_user")


def through(executor: ScriptedExecutor, run_id: str, accepted: Any) -> None:
    """A node that fails, is tried again and works; then one that fails for good."""
    secret = {"prompt": "node-internal"}
    executor.emit(
        run_id,
        RunStarted(max_steps=9),
        NodeStarted(node_id="start", node_type="start", index=1),
        NodeRetryScheduled(
            node_id="start", error="node-internal", due_us=0, inputs=secret, process_data=secret, outputs=secret
        ),
        NodeStarted(node_id="start", node_type="start", index=1, attempt=2),
        NodeSucceeded(node_id="start", inputs=secret, process_data=secret, outputs=secret, metadata=secret, attempt=2),
        NodeStarted(node_id="end", node_type="end", index=2),
        NodeFailed(node_id="end", error="node-internal", inputs=secret, process_data=secret),
        RunFailed(error="the run has failed"),
    )


def test_a_browser_sees_that_nodes_run_and_nothing_of_what_they_work_on(page: Page, executor: ScriptedExecutor) -> None:
    executor.script = through
    answer = run(page, page.visit())
    assert "node-internal" not in answer.text
    seen = [frame for frame in frames(answer) if frame["event"] != "text_chunk"]
    assert [frame["event"] for frame in seen] == [
        "workflow_started", "node_started", "node_retry", "node_finished", "node_started", "node_finished",
        "workflow_finished",
    ]  # fmt: skip
    started, finished = seen[1]["data"], seen[3]["data"]
    hidden = ("inputs", "process_data", "outputs", "error", "execution_metadata")
    assert all(finished[name] is None for name in hidden)
    assert (finished["files"], finished["status"], seen[5]["data"]["status"]) == ([], "succeeded", "failed")
    assert started["extras"] == {}
    assert "extras" not in finished
    assert not {"agent_strategy", "inputs_truncated", "outputs_truncated"} & {*started, *finished}
    assert seen[-1]["data"]["error"] == "the run has failed"


def test_a_server_with_a_key_sees_all_of_the_same(page: Page, executor: ScriptedExecutor) -> None:
    executor.script = through
    with page.server.running(page.key) as stream:
        finished = [frame.data["data"] for frame in stream.rest() if frame.name == "node_finished"]
    assert finished[0]["outputs"] == {"prompt": "node-internal"}
    assert finished[1]["error"] == "node-internal"


def test_a_page_says_what_it_asks_for_and_how_it_looks(page: Page) -> None:
    headers, http = page.visit(), page.server.http
    form = http.get("/api/parameters", headers=headers).json()["user_input_form"]
    assert form[0]["paragraph"]["variable"] == "q"
    assert http.get("/api/meta", headers=headers).json() == {"tool_icons": {}}
    site = http.get("/api/site", headers=headers).json()
    assert (site["title"], site["site"]["title"], site["app_id"]) == ("test", "test", page.app_id)


PATHS = (
    ("GET", "/api/parameters"),
    ("GET", "/api/meta"),
    ("GET", "/api/site"),
    ("POST", "/api/workflows/run"),
    ("POST", "/api/workflows/tasks/00000000-0000-4000-8000-000000000009/stop"),
    ("GET", "/api/workflow/00000000-0000-4000-8000-000000000009/events"),
    ("GET", "/api/form/human_input/nonsense"),
    ("POST", "/api/form/human_input/nonsense"),
)


def test_without_a_passport_with_a_wrong_and_with_another_pages_nothing_opens(page: Page) -> None:
    other = Page(page.server)
    own = page.visit()
    wrong: list[dict[str, str]] = [
        {},
        {"X-App-Code": page.code},
        own | {"X-App-Passport": own["X-App-Passport"][:-2]},
        own | {"X-App-Code": other.code},
        {"X-App-Code": page.code, "X-App-Passport": page.key},
        {"Authorization": f"Bearer {page.key}"},
        {"Authorization": f"Bearer {ADMIN}"},
        {"X-App-Code": page.code, "Cookie": f"passport-{other.code}={own['X-App-Passport']}"},
    ]
    for method, path in PATHS:
        for headers in wrong:
            answer = page.server.http.request(method, path, headers=headers)
            assert code_of(answer) == (401, "unauthorized"), (path, headers)


def asking(executor: ScriptedExecutor, run_id: str, accepted: Any) -> None:
    executor.emit(
        run_id,
        RunStarted(max_steps=9),
        NodeStarted(node_id="start", node_type="human-input", title="Ask", index=1),
        FormOpened(
            node_id="start",
            form_id=execution_id(run_id, "", "start"),
            token=form_token(run_id, 7),
            actions=("ok",),
            form={"form_content": "Well?", "inputs": [], "user_actions": [{"id": "ok", "title": "OK"}]},
            due_us=T0_US,
        ),
        RunPaused(forms=(execution_id(run_id, "", "start"),)),
    )


def test_a_form_is_answered_by_any_browser_that_has_its_token(page: Page, executor: ScriptedExecutor) -> None:
    executor.script = asking
    seen = frames(run(page, page.visit("asker")))
    assert [frame["event"] for frame in seen][-2:] == ["human_input_required", "workflow_paused"]
    path = f"/api/form/human_input/{seen[-2]['data']['form_token']}"
    http, headers = page.server.http, page.visit("another")
    assert http.get(path, headers=headers).json()["form_content"] == "Well?"
    assert code_of(http.get(path, headers=Page(page.server, SPEAKING).visit())) == (404, "not_found")
    assert code_of(http.post(path, headers=headers, json={"action": "no"})) == (400, "invalid_form_data")
    assert http.post(path, headers=headers, json={"action": "ok", "inputs": {}}).json() == {}
    assert code_of(http.get(path, headers=headers)) == (412, "human_input_form_submitted")


def test_a_passport_may_come_by_cookie_or_as_bearer(page: Page) -> None:
    token = page.visit()["X-App-Passport"]
    for headers in (
        {"X-App-Code": page.code, "Cookie": f"passport-{page.code}={token}"},
        {"Authorization": f"Bearer {token}"},
    ):
        assert page.server.http.get("/api/meta", headers=headers).status_code == 200


def test_a_passport_opens_neither_the_service_api_nor_the_console(page: Page) -> None:
    headers = {"Authorization": f"Bearer {page.visit()['X-App-Passport']}"}
    for path in ("/v1/runs", "/v1/info", "/console/api/apps"):
        assert page.server.http.get(path, headers=headers).status_code == 401


def test_a_file_opens_for_who_uploaded_it_at_the_page_and_for_the_console(page: Page) -> None:
    ann, bob, http = page.visit("ann"), page.visit("bob"), page.server.http
    uploaded = http.post("/api/files/upload", files={"file": ("a.txt", b"hello")}, headers=ann).json()
    path = f"/v1/files/{uploaded['id']}/preview"
    cookie = {"Cookie": f"passport-{page.code}={ann['X-App-Passport']}", "X-App-Code": page.code}
    for headers in (ann, cookie, {"Authorization": f"Bearer {ann['X-App-Passport']}"}):
        answer = http.get(path, headers=headers)
        assert (answer.status_code, answer.text, answer.headers["cache-control"]) == (
            200,
            "hello",
            "private, max-age=3600",
        )
    assert code_of(http.get(path, headers=bob)) == (403, "file_access_denied")
    assert code_of(http.get(path, headers=Page(page.server).visit("ann"))) == (403, "file_access_denied")
    assert code_of(http.get(path)) == (401, "unauthorized")
    logged = http.post("/console/api/login", json={"email": "a@b.c", "password": ADMIN})
    with httpx.Client(base_url=http.base_url, cookies=logged.cookies, trust_env=False) as editor:
        assert editor.get(path).text == "hello"


def test_a_code_must_name_a_page(page: Page) -> None:
    http = page.server.http
    assert code_of(http.get("/api/passport")) == (401, "unauthorized")
    assert code_of(http.get("/api/passport", headers={"X-App-Code": "nobody"})) == (404, "not_found")
    long = http.get("/api/passport", params={"user_id": "x" * 256}, headers={"X-App-Code": page.code})
    assert code_of(long) == (400, "invalid_param")


def test_a_page_that_is_switched_off_or_gone_opens_for_nobody(page: Page) -> None:
    headers = page.visit()
    page.switch(on=False)
    assert code_of(run(page, headers)) == (401, "web_app_access_denied")
    assert code_of(page.server.http.get("/api/passport", headers=headers)) == (404, "not_found")
    page.switch(on=True)
    assert run(page, headers).status_code == 200
    page.server.http.delete(f"/console/api/apps/{page.app_id}", headers=page.server.admin())
    assert code_of(run(page, headers)) == (401, "web_app_access_denied")


def test_a_passport_ends_with_its_time(page: Page, clock: Clock) -> None:
    headers = page.visit()
    clock.us += PASSPORT_S * 1_000_000
    assert code_of(run(page, headers)) == (401, "unauthorized")


def test_a_passport_of_one_replica_opens_another(page: Page, log: MemoryLog, clock: Clock) -> None:
    other = Server(log, now_us=clock)
    try:
        headers = page.visit(server=other)
        assert run(page, headers).status_code == 200
    finally:
        other.close()


@pytest.mark.parametrize("body", [{}, {"inputs": []}, {"inputs": {}, "files": "x"}])
def test_wrong_inputs_are_refused_before_any_stream(page: Page, body: Any) -> None:
    assert code_of(run(page, page.visit(), body)) == (400, "invalid_param")


def test_a_chatflow_is_no_workflow_and_an_app_without_a_version_runs_nothing(server: Server) -> None:
    chat = Page(server, CHATFLOW)
    assert code_of(run(chat, chat.visit())) == (400, "not_workflow_app")
    made = server.http.post(
        "/console/api/apps", json={"name": "bare", "mode": "workflow"}, headers=server.admin()
    ).json()
    headers = {"X-App-Code": made["site"]["code"]}
    headers["X-App-Passport"] = server.http.get("/api/passport", headers=headers).json()["access_token"]
    assert code_of(server.http.post("/api/workflows/run", json={"inputs": {}}, headers=headers)) == (
        400,
        "invalid_param",
    )
    assert code_of(server.http.get("/api/parameters", headers=headers)) == (400, "app_unavailable")


def test_a_browser_talks_to_a_chatflow(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = nothing
    chat, flow = Page(server, CHATFLOW), Page(server)
    mine, other = chat.visit(), chat.visit()
    body = {"inputs": {}, "query": "hello"}
    with server.http.stream("POST", "/api/chat-messages", json=body, headers=mine) as answer:
        task_id = answer.headers["x-task-id"]
        accepted = executor.accepted[executor.run()]
        assert (accepted.query, accepted.invoke_from) == ("hello", "web-app")
        path, before = f"/api/chat-messages/{task_id}/stop", executor.commands()
        assert server.http.post(path, headers=other).json() == {"result": "success"}
        assert executor.commands() == before
        assert server.http.post(path, headers=mine).json() == {"result": "success"}
        until(lambda: executor.stops)
        assert (executor.stops, executor.commands()) == ([executor.run()], before + 1)
    assert code_of(server.http.post("/api/chat-messages", json={"inputs": {}}, headers=mine)) == (400, "invalid_param")
    assert code_of(server.http.post("/api/chat-messages", json=body, headers=flow.visit())) == (400, "not_chat_app")
    assert code_of(server.http.post("/api/chat-messages", json=body)) == (401, "unauthorized")


def test_only_its_own_browser_stops_and_follows_a_run(server: Server, executor: ScriptedExecutor) -> None:
    executor.script = to_llm
    page = Page(server, SPEAKING)
    mine, other = page.visit("me"), page.visit("somebody")
    http = server.http
    with http.stream("POST", "/api/workflows/run", json={"inputs": {"q": "hi"}}, headers=mine) as answer:
        run_id, task_id = answer.headers["x-workflow-run-id"], answer.headers["x-task-id"]
        lines = answer.iter_lines()
        next(line for line in lines if "node_started" in line)
        assert code_of(http.get(f"/api/workflow/{run_id}/events", headers=other)) == (404, "not_found")
        namesake = http.get(
            f"/v1/workflow/{run_id}/events", params={"user": "me"}, headers={"Authorization": f"Bearer {page.key}"}
        )
        assert code_of(namesake) == (404, "not_found"), "a user of the service API is somebody else"
        before = executor.commands()
        assert http.post(f"/api/workflows/tasks/{task_id}/stop", headers=other).json() == {"result": "success"}
        assert http.post("/api/workflows/tasks/nothing/stop", headers=other).json() == {"result": "success"}
        assert executor.commands() == before
        assert http.post(f"/api/workflows/tasks/{task_id}/stop", headers=mine).json() == {"result": "success"}
        until(lambda: executor.stops)
        assert (executor.stops, executor.commands()) == ([run_id], before + 1)
        finish_llm(executor, run_id, "Hello")
        assert any("workflow_finished" in line for line in lines)
    again = http.get(f"/api/workflow/{run_id}/events", headers=mine | {"Last-Event-ID": "0"})
    assert frames(again)[-1]["event"] == "workflow_finished"


@pytest.mark.usefixtures("log")  # stops its server
def test_a_browser_that_takes_the_name_of_an_api_user_is_somebody_else(page: Page, executor: ScriptedExecutor) -> None:
    executor.script = nothing
    with page.server.running(page.key) as stream:
        task_id = stream.headers["x-task-id"]
        until(lambda: executor.accepted)
        headers = page.visit("u1")
        before = executor.commands()
        page.server.http.post(f"/api/workflows/tasks/{task_id}/stop", headers=headers)
        assert code_of(page.server.http.get(f"/api/workflow/{stream.run_id}/events", headers=headers)) == (
            404,
            "not_found",
        )
        assert executor.commands() == before
        page.server.stop()
