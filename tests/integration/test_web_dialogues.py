"""A chatflow's page, after the first message: what a visitor has said is its own, listed, named, judged and deleted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import start_embedded
from libs.settings import load_settings
from tests.api_world import ECHO
from tests.conversations import counting

FEATURES = {"suggested_questions": ["What?", "one"], "suggested_questions_after_answer": {"enabled": True}}
UNKNOWN = "01a219fe-cc6f-7000-9d2c-5a87966bf196"


@dataclass
class Browser:
    http: httpx.Client
    headers: dict[str, str]

    def ask(self, method: str, path: str, **parts: Any) -> httpx.Response:
        return self.http.request(method, f"/api{path}", headers=self.headers, **parts)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def say(self, query: str, conversation_id: str | None = None) -> dict[str, Any]:
        body = {"inputs": {"name": "n"}, "query": query, "conversation_id": conversation_id}
        answer = self.ask("POST", "/chat-messages", json=body)
        assert answer.status_code == 200, answer.text
        frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        return next(frame for frame in frames if frame["event"] == "message_end")


@dataclass
class Pages:
    http: httpx.Client
    admin: dict[str, str]
    apps: dict[str, dict[str, Any]]

    def browser(self, app: str = "chat", user: str = "ann") -> Browser:
        code = self.code(app)
        answer = self.http.get("/api/passport", params={"user_id": user}, headers={"X-App-Code": code})
        return Browser(self.http, {"X-App-Code": code, "X-App-Passport": answer.json()["access_token"]})

    def code(self, app: str = "chat") -> str:
        path = f"/console/api/apps/{self.apps[app]['app_id']}"
        return str(self.http.get(path, headers=self.admin).json()["site"]["code"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder: Path = tmp_path_factory.mktemp("pages")
    instance = start_embedded(folder, "127.0.0.1", 0, replace(load_settings(), models="offline", data=folder))
    with httpx.Client(base_url=instance.url, timeout=30, trust_env=False) as http:
        admin = {"Authorization": f"Bearer {instance.admin_token}"}
        texts = {"chat": counting(inputs=("name",), features=FEATURES), "quiet": counting(), "workflow": ECHO}
        apps = {name: http.post("/v1/apps/import", content=text, headers=admin).json() for name, text in texts.items()}
        yield Pages(http, admin, apps)
    instance.stop()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_visitor_lists_names_and_deletes_its_conversations(pages: Pages) -> None:
    ann = pages.browser(user="lister")
    first, second = ann.say("first")["conversation_id"], ann.say("second")["conversation_id"]
    listed = ann.get("/conversations", sort_by="-created_at")
    assert [each["id"] for each in listed["data"]] == [second, first]
    assert listed["data"][1]["name"] == "first"
    assert (listed["limit"], listed["has_more"]) == (20, False)
    page = ann.get("/conversations", limit=1, sort_by="-created_at")
    assert page["has_more"]
    assert [each["id"] for each in ann.get("/conversations", last_id=second, sort_by="-created_at")["data"]] == [first]
    named = ann.ask("POST", f"/conversations/{first}/name", json={"name": "Mine"})
    assert (named.status_code, named.json()["name"]) == (200, "Mine")
    assert ann.ask("DELETE", f"/conversations/{first}").status_code == 204
    assert [each["id"] for each in ann.get("/conversations")["data"]] == [second]


def ids(browser: Browser, **query: Any) -> list[str]:
    return [each["id"] for each in browser.get("/conversations", sort_by="created_at", **query)["data"]]


def pin(browser: Browser, conversation_id: str, verb: str = "pin") -> httpx.Response:
    return browser.ask("PATCH", f"/conversations/{conversation_id}/{verb}")


def test_a_visitor_pins_conversations_and_lists_them_apart(pages: Pages) -> None:
    ann = pages.browser(user="pinner")
    first, second, third = (ann.say(each)["conversation_id"] for each in ("a", "b", "c"))
    assert (ids(ann, pinned="true"), ids(ann, pinned="false")) == ([], [first, second, third])
    for _ in range(2):  # it is pinned once
        pinned = pin(ann, second)
        assert (pinned.status_code, pinned.json()) == (200, {"result": "success"})
    pin(ann, third)
    assert (ids(ann, pinned="true"), ids(ann, pinned="false")) == ([second, third], [first])
    assert ids(ann) == ids(ann, pinned="") == [first, second, third]
    assert ids(ann, pinned="true", last_id=second) == [third]
    ann.say("more", second)  # what happens in it leaves it where it is
    ann.ask("POST", f"/conversations/{second}/name", json={"name": "Mine"})
    assert ids(ann, pinned="true") == [second, third]
    assert pin(ann, second, "unpin").json() == {"result": "success"}
    ann.ask("DELETE", f"/conversations/{third}")
    assert (ids(ann, pinned="true"), ids(ann, pinned="false")) == ([], [first, second])


def test_pins_are_a_visitors_own(pages: Pages) -> None:
    talk = pages.browser(user="owner-of-pins").say("mine")["conversation_id"]
    other = pages.browser(user="other")
    for verb in ("pin", "unpin"):
        assert code_of(pin(other, talk, verb)) == (404, "not_found")
        assert code_of(pin(other, UNKNOWN, verb)) == (404, "not_found")
        assert code_of(pin(other, "nonsense", verb)) == (404, "not_found")
        assert code_of(pin(pages.browser("workflow"), talk, verb)) == (400, "not_chat_app")
    assert ids(pages.browser(user="owner-of-pins"), pinned="true") == []
    key = {"Authorization": f"Bearer {pages.apps['chat']['api_key']}"}
    body = {"inputs": {"name": "n"}, "query": "hello", "user": "api-user"}
    pages.http.post("/v1/chat-messages", json=body, headers=key)
    for pinned in ("true", "false"):  # the service API knows no pins
        query = {"user": "api-user", "pinned": pinned}
        assert len(pages.http.get("/v1/conversations", params=query, headers=key).json()["data"]) == 1


def test_pins_are_in_the_log(tmp_path: Path) -> None:
    def served() -> Any:
        return start_embedded(tmp_path, "127.0.0.1", 0, replace(load_settings(), models="offline", data=tmp_path))

    instance = served()
    with httpx.Client(base_url=instance.url, timeout=30, trust_env=False) as http:
        admin = {"Authorization": f"Bearer {instance.admin_token}"}
        app = http.post("/v1/apps/import", content=counting(inputs=("name",)), headers=admin).json()
        ann = Pages(http, admin, {"chat": app}).browser()
        talk = ann.say("hello")["conversation_id"]
        pin(ann, talk)
        ann.say("another")
    instance.stop()
    for file in tmp_path.glob("tables.db*"):
        file.unlink()
    instance = served()
    with httpx.Client(base_url=instance.url, timeout=30, trust_env=False) as http:
        assert ids(Browser(http, ann.headers), pinned="true") == [talk]
    instance.stop()


def test_messages_are_shown_and_judged(pages: Pages) -> None:
    ann = pages.browser(user="judge")
    said = ann.say("one")
    again = ann.say("two", said["conversation_id"])
    messages = ann.get("/messages", conversation_id=said["conversation_id"])["data"]
    assert [each["query"] for each in messages] == ["one", "two"]
    assert messages[1]["parent_message_id"] == said["message_id"]
    path = f"/messages/{again['message_id']}"
    assert ann.ask("POST", f"{path}/feedbacks", json={"rating": "like"}).json() == {"result": "success"}
    shown = ann.get("/messages", conversation_id=said["conversation_id"])["data"]
    assert [each["feedback"] for each in shown] == [None, {"rating": "like"}]
    assert ann.get(f"{path}/suggested-questions") == {"data": ["What?"]}
    older = ann.get("/messages", conversation_id=said["conversation_id"], first_id=again["message_id"])["data"]
    assert [each["query"] for each in older] == ["one"]
    oldest = ann.get("/messages", conversation_id=said["conversation_id"], first_id=said["message_id"])
    assert (oldest["data"], oldest["has_more"]) == ([], False)


def test_what_another_visitor_has_said_does_not_exist(pages: Pages) -> None:
    said = pages.browser(user="owner").say("mine")
    talk, message = said["conversation_id"], said["message_id"]
    other = pages.browser(user="other")
    assert code_of(other.ask("GET", "/messages", params={"conversation_id": talk})) == (404, "not_found")
    assert code_of(other.ask("DELETE", f"/conversations/{talk}")) == (404, "not_found")
    assert code_of(other.ask("POST", f"/conversations/{talk}/name", json={"name": "x"})) == (404, "not_found")
    assert code_of(other.ask("POST", f"/messages/{message}/feedbacks", json={"rating": "like"})) == (404, "not_found")
    assert code_of(other.ask("GET", f"/messages/{message}/suggested-questions")) == (404, "not_found")
    # A user of the service API with that name is somebody else, too.
    key = {"Authorization": f"Bearer {pages.apps['chat']['api_key']}"}
    listed = pages.http.get("/v1/conversations", params={"user": "owner"}, headers=key).json()
    assert listed["data"] == []


def test_a_page_says_what_is_wrong_with_a_request(pages: Pages) -> None:
    ann = pages.browser()
    said = ann.say("hello")
    assert code_of(ann.ask("GET", "/messages")) == (400, "invalid_param")
    assert code_of(ann.ask("GET", "/conversations", params={"sort_by": "name"})) == (400, "invalid_param")
    assert code_of(ann.ask("GET", "/conversations", params={"pinned": "true", "limit": "0"})) == (400, "invalid_param")
    assert code_of(ann.ask("GET", "/conversations", params={"pinned": "perhaps"})) == (400, "invalid_param")
    assert code_of(ann.ask("GET", "/conversations", params={"last_id": UNKNOWN})) == (404, "not_found")
    wrong = {"rating": "so-so"}
    assert code_of(ann.ask("POST", f"/messages/{said['message_id']}/feedbacks", json=wrong)) == (400, "invalid_param")
    quiet = pages.browser("quiet")
    message = quiet.say("hello")["message_id"]
    assert code_of(quiet.ask("GET", f"/messages/{message}/suggested-questions")) == (400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/conversations"),
        ("DELETE", f"/conversations/{UNKNOWN}"),
        ("GET", f"/messages?conversation_id={UNKNOWN}"),
        ("GET", f"/messages/{UNKNOWN}/suggested-questions"),
    ],
)
def test_a_workflows_page_has_no_conversations(pages: Pages, method: str, path: str) -> None:
    assert code_of(pages.browser("workflow").ask(method, path)) == (400, "not_chat_app")
    without = pages.http.request(method, f"/api{path}")
    assert code_of(without) == (401, "unauthorized")


def test_a_browser_asks_whether_it_has_a_passport(pages: Pages) -> None:
    ann = pages.browser()
    asked = {"app_code": pages.code()}
    assert ann.get("/login/status", **asked) == {"logged_in": True, "app_logged_in": True}
    assert ann.get("/login/status", app_code="another") == {"logged_in": True, "app_logged_in": False}
    without = pages.http.get("/api/login/status", params=asked)
    assert without.json() == {"logged_in": True, "app_logged_in": False}
