"""Chatflows over HTTP: a whole embedded instance with the stand-in for models, every endpoint with its codes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.cli import run
from flowledger.dev import start_embedded
from libs.settings import load_settings
from services.executor.models.offline import Offline
from services.executor.models.port import Delta, ModelRequest
from tests.api_world import ECHO, Sse, names, until
from tests.conversations import COUNTING, counting, speaking
from tests.documents import document, edges, human_input, node, start

FEATURES = {
    "opening_statement": "Hello there",
    "suggested_questions": ["What?", "one", "Why?"],
    "suggested_questions_after_answer": {"enabled": True},
}
FAILING = document(
    [start(), node("tool", "tool", provider_id="p", tool_name="t"), node("answer", "answer", answer="never")],
    edges("start > tool > answer"),
    mode="advanced-chat",
)
ASKING = document(
    [start(), human_input("ask"), node("answer", "answer", answer="thanks for {{#ask.note#}}")],
    edges("start > ask[ok] > answer"),
    mode="advanced-chat",
)
GREETING = document(
    [
        start(),
        node("hello", "answer", answer="Hello. "),
        human_input("ask"),
        node("answer", "answer", answer="thanks for {{#ask.note#}}"),
    ],
    edges("start > hello > ask[ok] > answer"),
    mode="advanced-chat",
)
UNKNOWN = "01a219fe-cc6f-7000-9d2c-5a87966bf196"


@dataclass
class There:
    """A server, and the keys of its apps."""

    http: httpx.Client
    keys: dict[str, str]
    app_ids: dict[str, str]

    def ask(self, method: str, path: str, app: str = "chat", **parts: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[app]}"} | parts.pop("headers", {})
        return self.http.request(method, f"/v1{path}", headers=headers, **parts)

    def get(self, path: str, user: str = "ann", app: str = "chat", **query: Any) -> Any:
        answer = self.ask("GET", path, app, params={"user": user} | query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def say(self, query: str, conversation_id: str | None = None, user: str = "ann", **more: Any) -> Any:
        body = {"inputs": {"name": "n"}, "query": query, "user": user, "conversation_id": conversation_id}
        answer = self.ask("POST", "/chat-messages", json=body | more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def publish(self, document: str, app: str | None = None) -> str:
        """A new app, or a new version of one; what it is called in `keys`."""
        params = {} if app is None else {"app_id": self.app_ids[app]}
        admin = {"Authorization": f"Bearer {self.keys['admin']}"}
        answer = self.http.post("/v1/apps/import", content=document, params=params, headers=admin)
        assert answer.status_code == 200, answer.text
        if app is None:
            app = str(answer.json()["app_id"])
            self.keys[app] = answer.json()["api_key"]
            self.app_ids[app] = app
        return app

    def stream(self, query: str, app: str = "chat", *, headers: Any = None, **more: Any) -> Sse:
        body = {"inputs": {}, "query": query, "user": "ann", "response_mode": "streaming"} | more
        headers = {"Authorization": f"Bearer {self.keys[app]}"} | (headers or {})
        with self.http.stream("POST", "/v1/chat-messages", json=body, headers=headers) as response:
            sse = Sse(response)
            sse.frames = sse.rest()  # type: ignore[attr-defined]
        return sse


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    folder: Path = tmp_path_factory.mktemp("chat")
    instance = start_embedded(folder, "127.0.0.1", 0, replace(load_settings(), models="offline", data=folder))
    with httpx.Client(base_url=instance.url, timeout=20, trust_env=False) as http:
        admin = {"Authorization": f"Bearer {instance.admin_token}"}

        def key(text: str) -> str:
            answer = http.post("/v1/apps/import", content=text, headers=admin)
            assert answer.status_code == 200, answer.text
            app_ids[answer.json()["api_key"]] = answer.json()["app_id"]
            return str(answer.json()["api_key"])

        app_ids: dict[str, str] = {}
        keys = {
            "chat": key(counting(inputs=("name",), features=FEATURES)),
            "quiet": key(counting()),
            "speaking": key(speaking()),
            "failing": key(FAILING),
            "asking": key(ASKING),
            "greeting": key(GREETING),
            "workflow": key(ECHO),
            "admin": instance.admin_token,
        }
        yield There(http, keys, {name: app_ids[key] for name, key in keys.items() if key in app_ids})
    instance.stop()


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_message_is_streamed_with_its_ids(there: There) -> None:
    frames = there.stream("hello").frames  # type: ignore[attr-defined]
    order = names(frames)
    assert order[0] == "workflow_started"
    assert order[-2:] == ["message_end", "workflow_finished"]
    assert {"node_started", "node_finished", "message"} <= set(order)
    first = frames[0].data
    for frame in frames:
        assert {name: frame.data[name] for name in ("conversation_id", "message_id", "created_at", "task_id")} == {
            name: first[name] for name in ("conversation_id", "message_id", "created_at", "task_id")
        }
        assert ("workflow_run_id" in frame.data) == frame.name.startswith(("workflow_", "node_"))
    said = [frame.data for frame in frames if frame.name == "message"]
    assert all(each["id"] == first["message_id"] for each in said)
    end = frames[-2].data
    assert "".join(each["answer"] for each in said) == frames[-1].data["data"]["outputs"]["answer"]
    assert end["metadata"]["retriever_resources"] == []
    usage = end["metadata"]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert (usage["total_price"], usage["currency"]) == ("0", "USD")
    assert first["data"]["inputs"]["sys.dialogue_count"] == 1
    assert "sys.conversation_id" not in first["data"]["inputs"]


def test_a_blocking_answer_is_flat_and_later_messages_count_on(there: There) -> None:
    first = there.say("one")
    assert first.keys() == {
        "event", "task_id", "id", "message_id", "conversation_id", "mode", "answer", "metadata", "created_at",
    }  # fmt: skip
    assert (first["event"], first["mode"], first["id"]) == ("message", "advanced-chat", first["message_id"])
    second = there.say("two", first["conversation_id"])
    third = there.say("three", first["conversation_id"])
    assert [each["answer"].split()[-1] for each in (first, second, third)] == ["#1", "#2", "#3"]
    # The model is asked with what was said before: more words each time, up to the window of two messages.
    used = [each["metadata"]["usage"]["prompt_tokens"] for each in (first, second, third)]
    assert used[0] < used[1] < used[2]


def test_a_failed_run_is_an_error_and_a_message_with_its_reason(there: There) -> None:
    answer = there.ask("POST", "/chat-messages", "failing", json={"inputs": {}, "query": "hi", "user": "ann"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert "pin" in answer.json()["message"]
    assert answer.headers["x-workflow-run-id"]
    frames = there.stream("hi", "failing").frames  # type: ignore[attr-defined]
    assert names(frames)[-2:] == ["workflow_finished", "error"]
    assert frames[-2].data["data"]["status"] == "failed"
    error = frames[-1].data
    assert (error["code"], error["status"], bool(error["message_id"])) == ("invalid_param", 400, True)
    (message,) = there.get("/messages", app="failing", conversation_id=error["conversation_id"])["data"]
    assert (message["status"], message["answer"], message["error"]) == ("error", "", error["message"])


def test_a_message_that_waits_for_a_person_is_answered_with_what_it_waits_for(there: There) -> None:
    paused = there.ask("POST", "/chat-messages", "asking", json={"inputs": {}, "query": "hi", "user": "ann"}).json()
    assert (paused["event"], paused["mode"], paused["answer"]) == ("workflow_paused", "advanced-chat", "")
    data = paused["data"]
    assert (data["status"], data["paused_nodes"], data["message_id"]) == ("paused", ["ask"], paused["id"])
    talk = {"conversation_id": paused["conversation_id"], "app": "asking"}
    (message,) = there.get("/messages", **talk)["data"]
    assert (message["status"], message["answer"]) == ("paused", "")
    (asked,) = message["extra_contents"]
    assert (asked["type"], asked["submitted"], asked["form_submission_data"]) == ("human_input", False, None)
    assert asked["form_definition"]["form_token"] == data["reasons"][0]["form_token"]
    form = {"inputs": {"note": "tea"}, "action": "ok", "user": "ann"}
    token = data["reasons"][0]["form_token"]
    assert there.ask("POST", f"/form/human_input/{token}", "asking", json=form).status_code == 200
    events = f"/v1/workflow/{paused['workflow_run_id']}/events?user=ann"
    headers = {"Authorization": f"Bearer {there.keys['asking']}", "Last-Event-ID": "0"}
    with there.http.stream("GET", events, headers=headers) as response:
        Sse(response).rest()
    until(lambda: there.get("/messages", **talk)["data"][0]["status"] == "normal")
    (message,) = there.get("/messages", **talk)["data"]
    assert message["answer"] == "thanks for tea"
    (asked,) = message["extra_contents"]
    assert (asked["submitted"], asked["form_definition"]) == (True, None)
    assert asked["form_submission_data"]["action_id"] == "ok"


def test_a_message_that_waits_for_a_person_is_listed_with_what_it_has_said(there: There) -> None:
    paused = there.ask("POST", "/chat-messages", "greeting", json={"inputs": {}, "query": "hi", "user": "ann"}).json()
    assert paused["event"] == "workflow_paused"
    talk = {"conversation_id": paused["conversation_id"], "app": "greeting"}
    (message,) = there.get("/messages", **talk)["data"]
    assert (message["status"], message["answer"]) == ("paused", "Hello. ")
    form = {"inputs": {"note": "tea"}, "action": "ok", "user": "ann"}
    token = paused["data"]["reasons"][0]["form_token"]
    assert there.ask("POST", f"/form/human_input/{token}", "greeting", json=form).status_code == 200
    until(lambda: there.get("/messages", **talk)["data"][0]["status"] == "normal")
    (message,) = there.get("/messages", **talk)["data"]
    assert message["answer"] == "Hello. thanks for tea"


def test_files_mean_nothing_to_a_chatflow_whose_upload_is_off(there: There) -> None:
    file = {"type": "document", "transfer_method": "local_file", "upload_file_id": UNKNOWN}
    assert there.say("with a file", files=[file])["answer"]


@pytest.mark.parametrize(
    "stop",
    ["/v1/chat-messages/{task}/stop", "/v1/runs/{run}/stop", "/console/api/apps/{app}/workflow-runs/tasks/{task}/stop"],
)
def test_what_was_shown_of_a_stopped_message_is_its_answer_and_is_remembered(
    there: There, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    asked: list[list[tuple[str, str]]] = []
    whole = Offline.stream

    async def stream(self: Offline, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        asked.append([(message.role, message.text) for message in request.messages])
        if len(asked) > 1:
            async for delta in whole(self, request):
                yield delta
            return
        for piece in ("As far ", "as this"):
            yield Delta(text=piece)
        await asyncio.sleep(20)

    monkeypatch.setattr(Offline, "stream", stream)
    body = {"inputs": {}, "query": "long", "user": "ann", "response_mode": "streaming"}
    keys = {name: {"Authorization": f"Bearer {there.keys[name]}"} for name in ("speaking", "admin")}
    with there.http.stream("POST", "/v1/chat-messages", json=body, headers=keys["speaking"]) as response:
        sse, shown = Sse(response), ""
        while shown != "Well: As far as this":
            (frame,) = sse.take(1)
            shown += frame.data["answer"] if frame.name == "message" else ""
        path = stop.format(task=frame.data["task_id"], run=sse.run_id, app=there.app_ids["speaking"])
        by = keys["admin" if "console" in stop else "speaking"]
        assert there.http.post(path, json={"user": "ann"}, headers=by).status_code == 200
        rest = sse.rest()
    assert names(rest) == ["message_end", "workflow_finished"]
    assert rest[-1].data["data"]["outputs"] == {"answer": shown}
    talk = frame.data["conversation_id"]
    (message,) = there.get("/messages", app="speaking", conversation_id=talk)["data"]
    assert (message["answer"], message["status"]) == (shown, "normal")
    there.stream("on", "speaking", conversation_id=talk)
    assert asked[1][-3:] == [("user", "long"), ("assistant", shown), ("user", "on")]


def test_a_repeat_with_the_same_key_attaches_to_the_same_message(there: There) -> None:
    headers = {"Idempotency-Key": "chat-1"}
    whole = there.stream("once", headers=headers)
    again = there.stream("once", headers=headers)
    assert [frame.data for frame in again.frames] == [frame.data for frame in whole.frames]  # type: ignore[attr-defined]
    resumed = there.stream("once", headers=headers | {"Last-Event-ID": "4"})
    ids = [frame.id for frame in resumed.frames]  # type: ignore[attr-defined]
    assert ids == [frame.id for frame in whole.frames][3:]  # type: ignore[attr-defined]
    body = {"inputs": {}, "query": "once", "user": "ann", "response_mode": "blocking"}
    blocking = there.ask("POST", "/chat-messages", json=body, headers=headers)
    assert blocking.json()["message_id"] == whole.frames[0].data["message_id"]  # type: ignore[attr-defined]
    other = there.ask("POST", "/chat-messages", json=body | {"query": "twice"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_the_published_version_or_one_that_is_named_answers(there: There) -> None:
    frames = there.stream("hello").frames  # type: ignore[attr-defined]
    version = frames[0].data["data"]["workflow_id"]
    assert there.say("hello", workflow_id=version)["answer"]


# --- refusals ---------------------------------------------------------------------------------------------------------

BODY: dict[str, Any] = {"inputs": {}, "query": "q", "user": "ann"}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"query": ""}, 400, "invalid_param"),
        ({"query": None}, 400, "invalid_param"),
        ({"query": 7}, 400, "invalid_param"),
        ({"user": ""}, 400, "invalid_param"),
        ({"inputs": None}, 400, "invalid_param"),
        ({"inputs": {"name": {}}}, 400, "invalid_param"),
        ({"response_mode": "other"}, 400, "invalid_param"),
        ({"auto_generate_name": "yes"}, 400, "invalid_param"),
        ({"files": "x"}, 400, "invalid_param"),
        ({"conversation_id": "x"}, 400, "invalid_param"),
        ({"conversation_id": 7}, 400, "invalid_param"),
        ({"conversation_id": UNKNOWN}, 404, "not_found"),
        ({"conversation_id": "6f1c9c7e-1f5b-4d0e-9a30-0d7b1c2f3a4b"}, 404, "not_found"),
        ({"conversation_id": UNKNOWN, "response_mode": "streaming"}, 404, "not_found"),
        ({"workflow_id": "x"}, 400, "bad_request"),
        ({"workflow_id": UNKNOWN}, 404, "not_found"),
        ({"trace_session_id": ""}, 400, "bad_request"),
    ],
)
def test_a_wrong_message_is_refused(there: There, change: dict[str, Any], status: int, code: str) -> None:
    answer = there.ask("POST", "/chat-messages", json=BODY | change)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


ENDPOINTS: list[tuple[str, str, Any]] = [
    ("POST", "/chat-messages", BODY),
    ("POST", "/chat-messages/t/stop", {"user": "ann"}),
    ("GET", "/conversations?user=ann", None),
    ("DELETE", f"/conversations/{UNKNOWN}", {"user": "ann"}),
    ("POST", f"/conversations/{UNKNOWN}/name", {"user": "ann", "name": "n"}),
    ("GET", f"/conversations/{UNKNOWN}/variables?user=ann", None),
    ("PUT", f"/conversations/{UNKNOWN}/variables/v", {"user": "ann", "value": 1}),
    ("GET", f"/messages?conversation_id={UNKNOWN}&user=ann", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ENDPOINTS, ids=[f"{m} {p}" for m, p, _ in ENDPOINTS])
def test_a_workflow_app_has_no_conversations(there: There, method: str, path: str, body: Any) -> None:
    answer = there.ask(method, path, "workflow", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "not_chat_app")
    nobody = there.http.request(method, f"/v1{path}", json=body)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(("method", "path", "body"), ENDPOINTS[3:], ids=[f"{m} {p}" for m, p, _ in ENDPOINTS[3:]])
def test_what_is_unknown_or_belongs_to_another_user_is_not_found(
    there: There, method: str, path: str, body: Any
) -> None:
    answer = there.ask(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    others = there.say("mine", user="bob")["conversation_id"]
    answer = there.ask(method, path.replace(UNKNOWN, others), json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_message_to_another_users_conversation_is_refused(there: There) -> None:
    others = there.say("mine", user="bob")["conversation_id"]
    answer = there.ask("POST", "/chat-messages", json=BODY | {"conversation_id": others})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/conversations", {"limit": "0"}),
        ("/conversations", {"limit": "101"}),
        ("/conversations", {"limit": "x"}),
        ("/conversations", {"sort_by": "name"}),
        ("/messages", {}),
        ("/messages", {"conversation_id": UNKNOWN, "limit": "1000"}),
        ("/app/feedbacks", {"limit": "102"}),
        ("/app/feedbacks", {"page": "0"}),
        (f"/messages/{UNKNOWN}/suggested", {}),
    ],
)
def test_wrong_queries_are_refused(there: There, path: str, query: dict[str, str]) -> None:
    answer = there.ask("GET", path, params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param"), answer.text


# --- conversations ----------------------------------------------------------------------------------------------------


def walk(there: There, path: str, last: Callable[[dict[str, Any]], dict[str, str]], **query: Any) -> list[Any]:
    """All items of a list, two at a time."""
    found: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = there.get(path, limit=2, **query, **after)
        found += page["data"]
        if not page["has_more"]:
            return found
        after = last(page)


def test_conversations_are_listed_newest_first_page_by_page(there: There) -> None:
    talks = [there.say(f"talk {number}", user="cleo")["conversation_id"] for number in range(5)]
    there.say("again", talks[1], user="cleo")

    def listed(sort: str | None) -> list[str]:
        query = {"user": "cleo"} | ({"sort_by": sort} if sort else {})
        return [
            each["id"] for each in walk(there, "/conversations", lambda p: {"last_id": p["data"][-1]["id"]}, **query)
        ]

    updated = [talks[1], talks[4], talks[3], talks[2], talks[0]]
    assert listed(None) == listed("-updated_at") == updated
    assert listed("updated_at") == updated[::-1]
    assert listed("created_at") == talks
    assert listed("-created_at") == talks[::-1]
    missing = there.ask("GET", "/conversations", params={"user": "cleo", "last_id": UNKNOWN})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    (first, *_) = there.get("/conversations", user="cleo", pinned="true", first_id="x")["data"]
    assert first.keys() == {"id", "name", "inputs", "status", "introduction", "created_at", "updated_at"}
    assert (first["name"], first["status"], first["introduction"]) == ("talk 1", "normal", "Hello there")
    assert first["inputs"] == {"name": "n"}


def test_a_conversation_is_renamed_by_hand_and_after_its_first_message(there: There) -> None:
    talk = there.say("what is a ledger?", auto_generate_name=False)["conversation_id"]
    (item,) = [each for each in there.get("/conversations")["data"] if each["id"] == talk]
    assert item["name"] == "New conversation"
    path = f"/conversations/{talk}/name"
    assert there.ask("POST", path, json={"user": "ann", "name": "Books"}).json()["name"] == "Books"
    generated = there.ask("POST", path, json={"user": "ann", "auto_generate": True}).json()
    assert (generated["id"], generated["name"]) == (talk, "what is a ledger?")
    for body in ({}, {"name": " "}, {"auto_generate": False}, {"auto_generate": "x"}):
        answer = there.ask("POST", path, json={"user": "ann"} | body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


def test_a_deleted_conversation_is_gone_for_everybody(there: There) -> None:
    said = there.say("soon gone")
    talk = said["conversation_id"]
    assert there.ask("DELETE", f"/conversations/{talk}", json={"user": "bob"}).status_code == 404
    answer = there.ask("DELETE", f"/conversations/{talk}", json={"user": "ann"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert talk not in [each["id"] for each in there.get("/conversations", limit=100)["data"]]
    for method, path, body in (
        ("GET", f"/messages?user=ann&conversation_id={talk}", None),
        ("GET", f"/conversations/{talk}/variables?user=ann", None),
        ("DELETE", f"/conversations/{talk}", {"user": "ann"}),
        ("POST", "/chat-messages", BODY | {"conversation_id": talk}),
        ("POST", f"/messages/{said['id']}/feedbacks", {"rating": "like", "user": "ann"}),
    ):
        gone = there.ask(method, path, json=body)
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found"), path


def test_who_names_no_user_is_one_anonymous_user(there: There) -> None:
    talk = there.say("hello", user="DEFAULT-USER")["conversation_id"]
    listed = there.ask("GET", "/conversations").json()["data"]
    assert talk in [each["id"] for each in listed]
    assert there.ask("DELETE", f"/conversations/{talk}").status_code == 204


# --- messages of a conversation, what users think of them, what to ask next ------------------------------------------


def test_messages_come_newest_page_first_and_in_order_within_it(there: There) -> None:
    talk = there.say("q0")["conversation_id"]
    for number in range(1, 5):
        there.say(f"q{number}", talk)
    pages = []
    after: dict[str, str] = {}
    while True:
        page = there.get("/messages", conversation_id=talk, limit=2, **after)
        pages.append([each["query"] for each in page["data"]])
        if not page["has_more"]:
            break
        after = {"first_id": page["data"][0]["id"]}
    assert pages == [["q3", "q4"], ["q1", "q2"], ["q0"]]
    whole = there.get("/messages", conversation_id=talk)["data"]
    assert [each["parent_message_id"] for each in whole] == [None, *(each["id"] for each in whole[:-1])]
    last = whole[-1]
    assert (last["conversation_id"], last["status"], last["error"], last["feedback"]) == (talk, "normal", None, None)
    assert last["answer"].endswith("#5")
    assert [last[name] for name in ("retriever_resources", "agent_thoughts", "message_files", "extra_contents")] == [
        [], [], [], [],
    ]  # fmt: skip
    foreign = there.ask("GET", "/messages", params={"user": "ann", "conversation_id": talk, "first_id": UNKNOWN})
    assert (foreign.status_code, foreign.json()["code"]) == (404, "not_found")


def test_feedback_is_given_changed_and_taken_back(there: There) -> None:
    said = there.say("good?")
    path = f"/messages/{said['id']}/feedbacks"

    def shown() -> Any:
        (message,) = there.get("/messages", conversation_id=said["conversation_id"])["data"]
        return message["feedback"]

    def rate(**body: Any) -> httpx.Response:
        return there.ask("POST", path, json={"user": "ann"} | body)

    assert rate(rating="like", content="clear").json() == {"result": "success"}
    assert shown() == {"rating": "like"}
    (listed, *_) = there.ask("GET", "/app/feedbacks").json()["data"]
    assert (listed["message_id"], listed["rating"], listed["content"]) == (said["id"], "like", "clear")
    assert (listed["from_source"], listed["from_account_id"]) == ("user", None)
    assert listed["created_at"].endswith("Z")
    rate(rating="dislike")
    assert shown() == {"rating": "dislike"}
    rate(rating=None)
    assert shown() is None
    assert said["id"] not in [each["message_id"] for each in there.ask("GET", "/app/feedbacks").json()["data"]]
    assert rate(rating="good").json()["code"] == "invalid_param"
    assert rate(rating="like", content=7).json()["code"] == "invalid_param"
    assert rate(rating="like", user="").json()["code"] == "invalid_param"
    assert (rate(rating="like", user="bob").status_code, rate(rating="like", user="bob").json()["code"]) == (
        404, "not_found",
    )  # fmt: skip
    rate(rating="like")
    assert said["id"] in [each["message_id"] for each in there.ask("GET", "/app/feedbacks").json()["data"]]
    talk = f"/conversations/{said['conversation_id']}"
    assert there.ask("DELETE", talk, json={"user": "ann"}).status_code == 204
    assert said["id"] not in [each["message_id"] for each in there.ask("GET", "/app/feedbacks").json()["data"]]


def test_feedback_pages(there: There) -> None:
    for number in range(3):
        said = there.say(f"rate {number}", user="dora")
        there.ask("POST", f"/messages/{said['id']}/feedbacks", json={"user": "dora", "rating": "like"})
    whole = [each["id"] for each in there.ask("GET", "/app/feedbacks", params={"limit": 3}).json()["data"]]
    pages = [there.ask("GET", "/app/feedbacks", params={"limit": 1, "page": n}).json()["data"] for n in (1, 2, 3)]
    assert [page[0]["id"] for page in pages] == whole


def test_feedback_has_no_check_of_the_mode(there: There) -> None:
    assert there.ask("GET", "/app/feedbacks", "workflow").json() == {"data": []}
    answer = there.ask("POST", f"/messages/{UNKNOWN}/feedbacks", "workflow", json={"user": "ann", "rating": "like"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_questions_of_the_document_that_were_not_asked_are_suggested(there: There) -> None:
    said = there.say("one")
    assert there.get(f"/messages/{said['id']}/suggested") == {"result": "success", "data": ["What?", "Why?"]}
    foreign = there.ask("GET", f"/messages/{said['id']}/suggested", params={"user": "bob"})
    assert (foreign.status_code, foreign.json()["code"]) == (404, "not_found")


def test_an_app_that_suggests_nothing_says_so(there: There) -> None:
    said = there.ask("POST", "/chat-messages", "quiet", json=BODY).json()
    answer = there.ask("GET", f"/messages/{said['id']}/suggested", "quiet", params={"user": "ann"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


# --- variables --------------------------------------------------------------------------------------------------------


def test_variables_are_read_and_set(there: There) -> None:
    talk = there.say("start")["conversation_id"]
    path = f"/conversations/{talk}/variables"
    count, topics = there.get(path)["data"]
    assert {name: count[name] for name in ("name", "value_type", "value", "description")} == {
        "name": "count", "value_type": "number", "value": "1", "description": "messages so far",
    }  # fmt: skip
    assert (topics["value_type"], json.loads(topics["value"])) == ("array[string]", ["start"])
    assert [each["name"] for each in there.get(path, variable_name="topics")["data"]] == ["topics"]
    assert [each["name"] for each in walk(there, path, lambda p: {"last_id": p["data"][-1]["id"]})] == [
        "count", "topics",
    ]  # fmt: skip
    assert there.get(path, limit=1)["has_more"]
    put = there.ask("PUT", f"{path}/{count['id']}", json={"value": 41, "user": "ann"})
    assert (put.status_code, put.json()["value"], put.json()["id"]) == (200, "41", count["id"])
    assert there.say("next", talk)["answer"].endswith("#42")
    for body, status, code in (
        ({"value": "many"}, 400, "bad_request"),
        ({"value": None}, 400, "bad_request"),
        ({}, 400, "invalid_param"),
        ({"value": 1, "user": "bob"}, 404, "not_found"),
    ):
        answer = there.ask("PUT", f"{path}/{count['id']}", json={"user": "ann"} | body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), body
    answer = there.ask("PUT", f"{path}/{UNKNOWN}", json={"value": 1, "user": "ann"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    large = there.ask("PUT", f"{path}/{topics['id']}", json={"value": ["x" * 300_000], "user": "ann"})
    assert (large.status_code, large.json()["code"]) == (400, "bad_request")
    middling = there.ask("PUT", f"{path}/{topics['id']}", json={"value": ["x" * 100_000], "user": "ann"})
    assert len(json.loads(middling.json()["value"])[0]) == 100_000
    there.say("more", talk)
    assert json.loads(there.get(path, variable_name="topics")["data"][0]["value"])[1:] == ["more"]


def test_variables_follow_the_version_that_answers(there: There) -> None:
    count, topics = ({**one, "id": one["id"].upper()} for one in COUNTING)  # as a document may write them
    app = there.publish(counting([count, topics]))

    def say(query: str, talk: str | None = None) -> Any:
        body = {"inputs": {}, "query": query, "user": "ann", "conversation_id": talk}
        return there.ask("POST", "/chat-messages", app, json=body).json()

    def listed(talk: str) -> dict[str, str]:
        found = there.get(f"/conversations/{talk}/variables", app=app)["data"]
        assert len({each["id"] for each in found}) == len(found)
        return {f"{each['name']}: {each['value_type']}": each["value"] for each in found}

    talk = say("one")["conversation_id"]
    assert listed(talk) == {"count: number": "1", "topics: array[string]": '["one"]'}
    as_text = counting([{**count, "value_type": "string", "value": "none"}, topics])
    there.publish(as_text.replace('"+="', '"set"').replace('"value": 1}', '"value": "many"}'), app)
    assert say("two", talk)["answer"].endswith("#many")
    assert listed(talk) == {"count: string": "many", "topics: array[string]": '["one", "two"]'}
    renamed = counting([count, {**topics, "name": "asked"}])
    there.publish(renamed.replace('["conversation", "topics"]', '["conversation", "asked"]'), app)
    assert say("three", talk)["answer"].endswith("#2"), "as the last version with numbers left it"
    assert listed(talk) == {"count: number": "2", "asked: array[string]": '["one", "two", "three"]'}
    path = f"/conversations/{talk}/variables/{topics['id']}"
    put = there.ask("PUT", path, app, json={"value": ["set"], "user": "ann"})
    assert (put.status_code, put.json()["name"]) == (200, "asked")
    assert there.get(f"/conversations/{talk}/variables", app=app, last_id=topics["id"]) is not None
    say("four", talk)
    assert listed(talk) == {"count: number": "3", "asked: array[string]": '["set", "four"]'}
    unwritten = speaking(conversation_variables=[{**count, "value_type": "string", "value": "none"}])
    there.publish(unwritten, app)
    say("five", talk)
    assert listed(talk) == {"count: string": "many", "asked: array[string]": '["set", "four"]'}


def test_a_message_that_ends_behind_a_newer_version_writes_its_own_variables(there: There) -> None:
    def waiting(*variables: dict[str, Any]) -> str:
        items = [
            {"variable_selector": ["conversation", name], "operation": "over-write", "input_type": "constant",
             "value": value} for name, value in (("one", "first"), ("two", "second"))
        ]  # fmt: skip
        return document(
            [
                start(),
                human_input("ask"),
                node("assign", "assigner", version="2", items=items),
                node("answer", "answer", answer="{{#conversation.one#}}"),
            ],
            edges("start > ask[ok] > assign > answer"),
            mode="advanced-chat",
            conversation_variables=list(variables),
        )

    one, two = ({"id": f"v-{name}", "name": name, "value_type": "string", "value": ""} for name in ("one", "two"))
    app = there.publish(waiting(one, two))
    body = {"inputs": {}, "query": "hi", "user": "ann"}
    paused = there.ask("POST", "/chat-messages", app, json=body).json()
    talk, run_id = paused["conversation_id"], paused["workflow_run_id"]
    swapped = [one | {"name": "two"}, two | {"name": "one", "value_type": "number", "value": 0}]
    there.publish(speaking(conversation_variables=swapped), app)
    assert there.ask("POST", "/chat-messages", app, json=body | {"conversation_id": talk}).status_code == 200
    form = {"inputs": {"note": "tea"}, "action": "ok", "user": "ann"}
    token = paused["data"]["reasons"][0]["form_token"]
    assert there.ask("POST", f"/form/human_input/{token}", app, json=form).status_code == 200
    until(lambda: there.get(f"/workflows/run/{run_id}", app=app)["status"] == "succeeded")
    found = there.get(f"/conversations/{talk}/variables", app=app)["data"]
    assert {each["name"]: (each["id"], each["value"]) for each in found} == {
        "two": ("v-one", "first"),
        "one": ("v-two", "0"),
    }
    reading = node("answer", "answer", answer="{{#conversation.one#}} {{#conversation.two#}}")
    for variables, answer in ((swapped, "0 first"), ([one, two], "first second")):
        declared: dict[str, Any] = {"conversation_variables": variables}
        there.publish(document([start(), reading], edges("start > answer"), mode="advanced-chat", **declared), app)
        said = there.ask("POST", "/chat-messages", app, json=body | {"conversation_id": talk})
        assert said.json()["answer"] == answer


def test_a_conversation_goes_on_through_our_own_path(there: There) -> None:
    headers = {"Authorization": f"Bearer {there.keys['chat']}"}
    talk = there.say("one", user="eve")["conversation_id"]
    body = {"inputs": {}, "query": "two", "conversation_id": talk, "user": "eve"}
    answer = there.http.post("/v1/runs", json=body, headers=headers)
    assert answer.json()["data"]["outputs"]["answer"].endswith("#2")
    assert there.http.post("/v1/runs", json=body | {"conversation_id": "x"}, headers=headers).status_code == 400


def test_the_command_line_goes_on_with_a_conversation(
    there: There, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLEDGER_ADMIN_TOKEN", there.keys["admin"])
    apps = there.http.get("/v1/apps", headers={"Authorization": f"Bearer {there.keys['chat']}"}).json()["data"]
    again = ["run", apps[0]["app_id"], "--url", str(there.http.base_url), "--json", "--query"]
    assert run([*again, "one"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*again, "two", "--conversation", first["conversation_id"]]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["conversation_id"] == first["conversation_id"]
    assert second["outputs"]["answer"].endswith("#2")
    assert run([*again, "two", "--conversation", UNKNOWN]) == 3


def test_the_administrator_does_not_speak_for_a_user(there: There) -> None:
    said = there.say("mine")
    body = {"inputs": {"name": "n"}, "query": "and yours", "user": "ann", "conversation_id": said["conversation_id"]}
    app_id = there.ask("GET", "/runs", params={"limit": 1}).json()["data"][0]["app_id"]
    refused = there.ask("POST", "/runs", "admin", json=body | {"app_id": app_id})
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert there.say("more", said["conversation_id"])["conversation_id"] == said["conversation_id"]


@pytest.mark.parametrize("large", ["query", "user"])
def test_a_query_or_user_that_no_record_can_hold_is_refused(there: There, large: str) -> None:
    body = {"inputs": {"name": "n"}, "query": "hi", "user": "ann"} | {large: "x" * 1_000_000}
    answer = there.ask("POST", "/chat-messages", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_entity_too_large")
