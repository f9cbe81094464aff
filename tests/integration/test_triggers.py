"""Runs that something outside begins, with a whole instance behind them."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from flowledger.dev import Embedded, start_embedded
from libs.settings import Settings
from tests.documents import document, edges, end, node, start

HOOK = document(
    [
        node(
            "hook",
            "trigger-webhook",
            method="post",
            content_type="application/json",
            headers=[{"name": "X-Kind", "type": "string", "required": True}],
            params=[{"name": "page", "type": "number", "required": False}],
            body=[{"name": "who", "type": "string", "required": True}],
            status_code=202,
            response_body='{"taken": true}',
        ),
        end(who="hook.who", kind="hook.X_Kind", page="hook.page"),
    ],
    edges("hook > end"),
)


def hook_with(**data: Any) -> str:
    made = json.loads(HOOK)
    made["workflow"]["graph"]["nodes"][0]["data"] |= {"headers": [], "params": [], "body": []} | data
    made["workflow"]["graph"]["nodes"][1]["data"]["outputs"] = [
        {"variable": "raw", "value_selector": ["hook", "_webhook_raw"]}
    ]
    return json.dumps(made)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("triggers")
    made = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder, sandbox="process"))
    yield made
    made.stop()


@pytest.fixture
def http(instance: Embedded) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=instance.url, timeout=30, trust_env=False) as made:
        yield made


class Hook:
    def __init__(self, http: httpx.Client, instance: Embedded, text: str = HOOK, *, publish: bool = True) -> None:
        self.http = http
        self.admin = {"Authorization": f"Bearer {instance.admin_token}"}
        body = {"mode": "yaml-content", "yaml_content": text}
        answer = http.post("/console/api/apps/imports", json=body, headers=self.admin)
        self.app = f"/console/api/apps/{answer.json()['app_id']}"
        if publish:
            self.publish()
        self.url = self.address().json()["webhook_url"]

    def publish(self) -> None:
        answer = self.http.post(f"{self.app}/workflows/publish", headers=self.admin)
        assert answer.status_code == 200, answer.text

    def address(self, node_id: str = "hook") -> httpx.Response:
        query = {"node_id": node_id}
        return self.http.get(f"{self.app}/workflows/triggers/webhook", params=query, headers=self.admin)

    def ended(self, answer: httpx.Response) -> dict[str, Any]:
        """The run that the call began, when it is over."""
        run_id = answer.headers["x-workflow-run-id"]
        deadline = time.monotonic() + 30
        while True:
            found = self.http.get(f"/v1/runs/{run_id}", headers=self.admin)
            if found.status_code == 200 and found.json()["finished_at"]:
                made: dict[str, Any] = found.json()
                return made
            assert time.monotonic() < deadline, found.text
            time.sleep(0.02)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_webhook_starts_a_run_and_answers_as_its_node_says(http: httpx.Client, instance: Embedded) -> None:
    hook = Hook(http, instance)
    headers = {"X-Kind": "order", "Authorization": "Bearer private-of-the-caller", "Cookie": "a=private-cookie"}
    answer = http.post(hook.url, params={"page": "2"}, json={"who": "Ada"}, headers=headers)
    assert (answer.status_code, answer.json()) == (202, {"taken": True})
    run = hook.ended(answer)
    assert run["outputs"] == {"who": "Ada", "kind": "order", "page": 2}
    assert run["triggered_from"] == "webhook"
    history = http.get(f"/v1/runs/{run['id']}/history", headers=hook.admin).text
    assert "private" not in history
    assert hook.address().json()["webhook_url"] == hook.url
    assert http.get(f"{hook.app}/triggers", headers=hook.admin).json()["data"][0]["trigger_type"] == "trigger-webhook"


def test_a_call_that_is_repeated_with_its_key_makes_one_run(http: httpx.Client, instance: Embedded) -> None:
    hook = Hook(http, instance)
    headers = {"X-Kind": "order", "Idempotency-Key": "delivery-1"}
    answers = [
        http.post(hook.url, json={"who": "Ada"}, headers=headers | {"X-Request-Id": f"try-{number}"})
        for number in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].headers["x-workflow-run-id"] == answers[1].headers["x-workflow-run-id"]
    for body, more in (({"who": "Bob"}, {}), ({"who": "Ada"}, {"X-Kind": "other"})):
        assert code_of(http.post(hook.url, json=body, headers=headers | more)) == (422, "idempotency_key_reused")


def test_a_file_that_is_delivered_again_is_the_same_delivery(http: httpx.Client, instance: Embedded) -> None:
    fields = [{"name": "doc", "type": "file", "required": True}]
    hook = Hook(http, instance, hook_with(content_type="multipart/form-data", body=fields))
    headers = {"Idempotency-Key": "delivery-2"}

    def deliver(content: bytes) -> httpx.Response:
        return http.post(hook.url, files={"doc": ("note.txt", content, "text/plain")}, headers=headers)

    first, second = deliver(b"inside"), deliver(b"inside")
    assert (first.status_code, second.status_code) == (202, 202), second.text
    assert first.headers["x-workflow-run-id"] == second.headers["x-workflow-run-id"]
    assert code_of(deliver(b"other")) == (422, "idempotency_key_reused")


def test_what_a_call_lacks_is_said_at_once(http: httpx.Client, instance: Embedded) -> None:
    hook = Hook(http, instance)
    answer = http.post(hook.url, json={})
    assert code_of(answer) == (400, "invalid_param")
    assert "header X-Kind" in answer.json()["message"]
    assert "body field who" in answer.json()["message"]
    wrong = http.post(hook.url, content=b"{", headers={"X-Kind": "x", "Content-Type": "application/json"})
    assert code_of(wrong) == (400, "bad_request")
    get = http.get(hook.url)
    assert code_of(get) == (405, "method_not_allowed")
    assert get.headers["allow"] == "POST"
    form = http.post(hook.url, content=b"x", headers={"X-Kind": "x", "Content-Type": "multipart/form-data"})
    assert code_of(form) == (400, "bad_request")


def test_a_value_that_cannot_count_is_lacking(http: httpx.Client, instance: Embedded) -> None:
    answer = http.post(Hook(http, instance).url, json={"who": None}, headers={"X-Kind": "k"})
    assert (answer.status_code, "body field who" in answer.json()["message"]) == (400, True)
    fields = [{"name": "doc", "type": "file", "required": True}]
    uploading = Hook(http, instance, hook_with(content_type="multipart/form-data", body=fields))
    answer = http.post(uploading.url, files={"doc": (None, "no file")})
    assert (answer.status_code, "body field doc" in answer.json()["message"]) == (400, True)


DOC = [{"name": "doc", "type": "file", "required": True}]
WHO = [{"name": "who", "type": "string", "required": True}]


@pytest.mark.parametrize(
    ("kind", "body", "sent"),
    [
        ("application/json", WHO, {"json": {"who": None}}),
        ("application/json", DOC, {"json": {"doc": "a text"}}),
        ("multipart/form-data", DOC, {"data": {"doc": "a text"}, "files": {"other": ("x.txt", b"x", "text/plain")}}),
        ("multipart/form-data", WHO, {"files": {"who": ("x.txt", b"x", "text/plain")}}),
        ("application/x-www-form-urlencoded", DOC, {"data": {"doc": "a text"}}),
        ("application/octet-stream", DOC, {"content": b"a text", "headers": {"Content-Type": "text/plain"}}),
    ],
)
def test_what_cannot_be_a_required_field_is_missing(
    http: httpx.Client, instance: Embedded, kind: str, body: list[Any], sent: dict[str, Any]
) -> None:
    hook = Hook(http, instance, hook_with(content_type=kind, body=body))
    answer = http.post(hook.url, **sent)
    assert code_of(answer) == (400, "invalid_param")
    assert f"requires body field {body[0]['name']}" in answer.json()["message"]


@pytest.mark.parametrize(
    ("kind", "body", "sent"),
    [
        ("application/json", WHO, {"json": {"who": ""}}),
        ("application/json", WHO, {"json": {"who": False}}),
        ("text/plain", WHO, {"content": b"a text", "headers": {"Content-Type": "text/plain"}}),
        ("application/octet-stream", DOC, {"content": b"x", "headers": {"Content-Type": "application/octet-stream"}}),
    ],
)
def test_what_can_be_a_required_field_starts_a_run(
    http: httpx.Client, instance: Embedded, kind: str, body: list[Any], sent: dict[str, Any]
) -> None:
    hook = Hook(http, instance, hook_with(content_type=kind, body=body))
    run = hook.ended(http.post(hook.url, **sent))
    assert run["status"] == "succeeded", run["error"]


def test_a_webhook_is_open_only_while_the_published_version_begins_with_it(
    http: httpx.Client, instance: Embedded
) -> None:
    hook = Hook(http, instance, publish=False)
    body, headers = {"who": "Ada"}, {"X-Kind": "x"}
    assert code_of(http.post(hook.url, json=body, headers=headers)) == (404, "not_found")
    hook.publish()
    assert http.post(hook.url, json=body, headers=headers).status_code == 202
    http.delete(hook.app, headers=hook.admin)
    assert code_of(http.post(hook.url, json=body, headers=headers)) == (404, "not_found")
    assert code_of(http.post("/triggers/webhook/nobody", json=body)) == (404, "not_found")


def test_a_start_node_and_a_trigger_may_stand_in_an_imported_document(http: httpx.Client, instance: Embedded) -> None:
    admin = {"Authorization": f"Bearer {instance.admin_token}"}
    nodes = [json.loads(HOOK)["workflow"]["graph"]["nodes"][0], start("q"), end(who="hook.who", q="start.q")]
    text = document(nodes, edges("hook > end", "start > end"))
    made = http.post("/v1/apps/import", content=text, headers=admin).json()
    assert [each["at"] for each in made["warnings"] if "start node" in each["problem"]] == ["workflow.graph.nodes"]
    app = http.get(f"/v1/apps/{made['app_id']}", headers=admin).json()
    assert [each["variable"] for each in app["inputs"]] == ["q"]
    key = {"Authorization": f"Bearer {made['api_key']}"}
    form = http.get("/v1/parameters", headers=key).json()["user_input_form"]
    assert [each["paragraph"]["variable"] for each in form] == ["q"]
    body = {"inputs": {"q": "hello"}, "response_mode": "blocking", "user": "ada"}
    assert http.post("/v1/workflows/run", json=body, headers=key).json()["data"]["outputs"] == {
        "who": None,
        "q": "hello",
    }
    query = {"node_id": "hook"}
    path = f"/console/api/apps/{made['app_id']}/workflows/triggers/webhook"
    url = http.get(path, params=query, headers=admin).json()["webhook_url"]
    called = http.post(url, json={"who": "Ada"}, headers={"X-Kind": "x"})
    deadline = time.monotonic() + 30
    while not (run := http.get(f"/v1/runs/{called.headers['x-workflow-run-id']}", headers=admin).json()).get(
        "finished_at"
    ):
        assert time.monotonic() < deadline, run
        time.sleep(0.02)
    assert (run["root"], run["outputs"]) == ("hook", {"who": "Ada", "q": None})


def test_an_address_is_only_made_for_a_webhook_node(http: httpx.Client, instance: Embedded) -> None:
    hook = Hook(http, instance)
    assert code_of(hook.address("end")) == (400, "invalid_param")
    assert code_of(hook.address("")) == (400, "invalid_param")
    assert code_of(hook.address("nowhere")) == (400, "invalid_param")


@pytest.mark.parametrize(
    ("kind", "content", "field", "value"),
    [
        ("application/x-www-form-urlencoded", b"a=1&b=", "body", {"a": "1", "b": ""}),
        ("text/plain", b"hello", "body", {"raw": "hello"}),
        ("application/json", b'{"a": [1]}', "body", {"a": [1]}),
    ],
)
def test_a_body_is_read_as_the_request_calls_it(
    http: httpx.Client, instance: Embedded, kind: str, content: bytes, field: str, value: Any
) -> None:
    hook = Hook(http, instance, hook_with(content_type=kind, method="put", status_code=200, response_body=""))
    answer = http.put(hook.url, content=content, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    assert hook.ended(answer)["outputs"]["raw"][field] == value


def test_a_file_of_a_form_becomes_a_file_of_the_run(http: httpx.Client, instance: Embedded) -> None:
    fields = [{"name": "doc", "type": "file", "required": True}]
    hook = Hook(http, instance, hook_with(content_type="multipart/form-data", body=fields, response_body="thanks"))
    answer = http.post(hook.url, data={"a": "1"}, files={"doc": ("note.txt", b"inside", "text/plain")})
    assert (answer.status_code, answer.text) == (202, "thanks")
    run = hook.ended(answer)
    assert run["status"] == "succeeded", run["error"]
    kept = run["outputs"]["raw"]["files"]["doc"]
    assert kept["filename"] == "note.txt"
    assert code_of(http.post(hook.url, data={"a": "1"}, files={"other": ("x.txt", b"x", "text/plain")})) == (
        400,
        "invalid_param",
    )


def test_a_webhook_that_is_switched_off_starts_nothing(http: httpx.Client, instance: Embedded) -> None:
    hook = Hook(http, instance)

    def switch(*, on: bool) -> httpx.Response:
        body = {"trigger_id": "hook", "enable_trigger": on}
        return http.post(f"{hook.app}/trigger-enable", json=body, headers=hook.admin)

    def call() -> httpx.Response:
        return http.post(hook.url, json={"who": "Ada"}, headers={"X-Kind": "order"})

    off = switch(on=False)
    assert (off.status_code, off.json()["status"]) == (200, "disabled")
    assert code_of(call()) == (404, "not_found")
    assert http.get(f"{hook.app}/triggers", headers=hook.admin).json()["data"][0]["status"] == "disabled"
    assert switch(on=True).json()["status"] == "enabled"
    assert call().status_code == 202
    unknown = http.post(
        f"{hook.app}/trigger-enable", json={"trigger_id": "end", "enable_trigger": True}, headers=hook.admin
    )
    assert code_of(unknown) == (404, "not_found")
    wrong = http.post(f"{hook.app}/trigger-enable", json={"trigger_id": "hook"}, headers=hook.admin)
    assert code_of(wrong) == (400, "invalid_param")
