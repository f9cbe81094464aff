"""Annotations over HTTP: written, listed, changed, deleted; and messages that they answer in place of the workflow."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.cli import run
from flowledger.client import Client
from flowledger.dev import Embedded, start_embedded
from libs.events.annotations import AnnotationJobBegun
from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.registry import encode_fact
from libs.settings import Provider, load_settings
from services.api.account import ADMIN_ID
from tests.api_world import ECHO, Event_, Server, Sse, names, until
from tests.conversations import counting
from tests.documents import document, edges, node, start
from tests.model_server import ModelServer, serving

UNKNOWN = "01a219fe-cc6f-7000-9d2c-5a87966bf196"
REFUND, ANSWER = "What is your refund policy?", "Within 30 days, no questions."
OPENAI = {"embedding_provider_name": "langgenius/openai/openai", "embedding_model_name": "text-embedding-3-small"}
REPLY = {"score_threshold": 0.7, **OPENAI}


@dataclass
class There:
    """A chatflow at a server."""

    http: httpx.Client
    key: str
    app_id: str
    admin: str

    def ask(self, method: str, path: str, **parts: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {parts.pop('key', self.key)}"}
        return self.http.request(method, f"/v1{path}", headers=headers, **parts)

    def write(self, question: str = REFUND, answer: str = ANSWER) -> dict[str, Any]:
        made = self.ask("POST", "/apps/annotations", json={"question": question, "answer": answer})
        assert made.status_code == 201, made.text
        return dict(made.json())

    def listed(self, **query: Any) -> dict[str, Any]:
        found = self.ask("GET", "/apps/annotations", params=query)
        assert found.status_code == 200, found.text
        return dict(found.json())

    def hits(self) -> list[int]:
        return [each["hit_count"] for each in self.listed()["data"]]

    def switch(self, action: str = "enable", **settings: Any) -> dict[str, Any]:
        """The job, when it is done."""
        begun = self.ask("POST", f"/apps/annotation-reply/{action}", json=REPLY | settings)
        assert begun.status_code == 200, begun.text
        job_id = begun.json()["job_id"]

        def ended() -> dict[str, Any] | None:
            found = self.ask("GET", f"/apps/annotation-reply/{action}/status/{job_id}").json()
            return found if found["job_status"] in ("completed", "error") else None

        return dict(until(ended))

    def reply(self) -> Any:
        return self.ask("GET", "/parameters").json()["annotation_reply"]

    def say(self, query: str, conversation_id: str | None = None) -> dict[str, Any]:
        body = {"inputs": {}, "query": query, "user": "ann", "conversation_id": conversation_id}
        answer = self.ask("POST", "/chat-messages", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stream(self, query: str) -> list[Event_]:
        body = {"inputs": {}, "query": query, "user": "ann", "response_mode": "streaming"}
        return frames_of(self.http, "/v1/chat-messages", body, {"Authorization": f"Bearer {self.key}"})


def frames_of(http: httpx.Client, path: str, body: Any, headers: dict[str, str]) -> list[Event_]:
    with http.stream("POST", path, json=body, headers=headers) as response:
        assert response.status_code == 200, response.read()
        return Sse(response).rest()


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Embedded]:
    given = {"models": "offline"} | settings
    instance = start_embedded(folder, "127.0.0.1", 0, replace(load_settings(), data=folder, **given))
    yield instance
    instance.stop()


def app(http: httpx.Client, admin: str, document: str) -> There:
    answer = http.post("/v1/apps/import", content=document, headers={"Authorization": f"Bearer {admin}"})
    assert answer.status_code == 200, answer.text
    return There(http, answer.json()["api_key"], answer.json()["app_id"], admin)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with running(tmp_path_factory.mktemp("annotations")) as made:
        yield made


@pytest.fixture(scope="module")
def http(instance: Embedded) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=instance.url, timeout=20, trust_env=False) as made:
        yield made


@pytest.fixture
def there(instance: Embedded, http: httpx.Client) -> There:
    """A chatflow of the test's own."""
    return app(http, instance.admin_token, counting())


# --- what is written --------------------------------------------------------------------------------------------------


def test_an_annotation_is_written_listed_changed_and_deleted(there: There) -> None:
    made = there.write()
    assert made.keys() == {"id", "question", "answer", "hit_count", "created_at"}
    assert (made["question"], made["answer"], made["hit_count"]) == (REFUND, ANSWER, 0)
    assert abs(made["created_at"] - time.time()) < 60
    assert there.listed() == {"data": [made], "has_more": False, "limit": 20, "total": 1, "page": 1}
    path = f"/apps/annotations/{made['id']}"
    changed = there.ask("PUT", path, json={"question": "Refunds?", "answer": "Yes."})
    assert (changed.status_code, changed.json()) == (200, made | {"question": "Refunds?", "answer": "Yes."})
    assert there.listed()["data"] == [changed.json()]
    gone = there.ask("DELETE", path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert there.listed()["total"] == 0
    for method in ("PUT", "DELETE"):
        answer = there.ask(method, path, json={"question": "q", "answer": "a"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_pages_come_newest_first_and_a_keyword_looks_into_both_texts(there: There) -> None:
    made = [there.write(f"Question {number}", f"Answer {'ÄPFEL' if number % 2 else 'pears'}") for number in range(5)]
    ids = [each["id"] for each in made][::-1]
    pages = [there.listed(page=page, limit=2) for page in (1, 2, 3, 4)]
    assert [[each["id"] for each in page["data"]] for page in pages] == [ids[:2], ids[2:4], ids[4:], []]
    assert [page["has_more"] for page in pages] == [True, True, False, False]
    assert {(page["total"], page["limit"]) for page in pages} == {(5, 2)}
    assert [each["id"] for each in there.listed(keyword="äpfel")["data"]] == [ids[1], ids[3]]
    assert there.listed(keyword=" question 3 ")["total"] == 1
    assert there.listed(keyword="nothing")["data"] == []
    assert there.listed(limit=5_000)["limit"] == 100, "as the reference: more than a page holds is a full page"
    assert "from 1 to 100" in there.ask("GET", "/apps/annotations?limit=0").json()["message"]


GREETING = document([start(), node("answer", "answer", answer="Hello")], edges("start > answer"), mode="advanced-chat")
WRITTEN = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("method", "path", "body", "params"),
    [
        ("POST", "/apps/annotations", {"answer": "a"}, "question"),
        ("POST", "/apps/annotations", {"question": "q"}, "answer"),
        ("POST", "/apps/annotations", WRITTEN | {"question": " \n"}, "question"),
        ("POST", "/apps/annotations", WRITTEN | {"question": 7}, "question"),
        ("POST", "/apps/annotations", WRITTEN | {"question": "x" * 2_001}, "question"),
        ("POST", "/apps/annotations", WRITTEN | {"answer": "x" * 10_001}, "answer"),
        ("PUT", f"/apps/annotations/{UNKNOWN}", {"question": "q"}, "answer"),
        ("GET", "/apps/annotations?page=0", None, "page"),
        ("GET", "/apps/annotations?limit=many", None, "limit"),
        ("POST", "/apps/annotation-reply/enable", OPENAI, "score_threshold"),
        ("POST", "/apps/annotation-reply/enable", REPLY | {"score_threshold": 1.5}, "score_threshold"),
        ("POST", "/apps/annotation-reply/enable", REPLY | {"score_threshold": -0.1}, "score_threshold"),
        ("POST", "/apps/annotation-reply/enable", REPLY | {"score_threshold": True}, "score_threshold"),
        ("POST", "/apps/annotation-reply/enable", REPLY | {"embedding_provider_name": ""}, "embedding_provider_name"),
        ("POST", "/apps/annotation-reply/enable", REPLY | {"embedding_model_name": None}, "embedding_model_name"),
        ("POST", "/apps/annotation-reply/perhaps", REPLY, "action"),
        ("GET", f"/apps/annotation-reply/perhaps/status/{UNKNOWN}", None, "action"),
    ],
)
def test_what_is_wrong_is_named(there: There, method: str, path: str, body: Any, params: str) -> None:
    answer = there.ask(method, path, json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["params"]) == (400, "invalid_param", params)


def test_what_is_unknown_is_not_found(there: There) -> None:
    assert there.ask("GET", f"/apps/annotation-reply/enable/status/{UNKNOWN}").status_code == 404
    done = there.switch("disable")
    assert there.ask("GET", f"/apps/annotation-reply/enable/status/{done['job_id']}").status_code == 404
    for path in (f"/apps/annotations/{UNKNOWN}", "/apps/annotations/x", "/apps/annotations/%F0%9F%92%A5"):
        assert there.ask("DELETE", path).status_code == 404


def test_what_no_database_would_take_is_left_out(there: There) -> None:
    assert there.write("a\x00b", "c\x00")["question"] == "ab"
    assert there.listed()["data"][0]["answer"] == "c"


def test_annotations_of_another_app_are_not_there(there: There, instance: Embedded, http: httpx.Client) -> None:
    other = app(http, instance.admin_token, counting())
    made = there.write()
    job_id = there.switch()["job_id"]
    assert other.listed()["data"] == []
    assert other.ask("PUT", f"/apps/annotations/{made['id']}", json=WRITTEN).status_code == 404
    assert other.ask("DELETE", f"/apps/annotations/{made['id']}").status_code == 404
    assert other.ask("GET", f"/apps/annotation-reply/enable/status/{job_id}").status_code == 404
    assert other.reply() == {"enabled": False}
    assert "annotation_reply" not in other.say(REFUND)["metadata"]


# --- whether they answer ----------------------------------------------------------------------------------------------


def test_parameters_say_whether_annotations_answer(there: There) -> None:
    assert there.reply() == {"enabled": False}
    done = there.switch()
    assert done == {"job_id": done["job_id"], "job_status": "completed", "error_msg": ""}
    assert there.reply() == {
        "enabled": True, "id": done["job_id"], "score_threshold": 0.7, "embedding_model": OPENAI,
    }  # fmt: skip
    again = there.switch(score_threshold=1)
    assert there.reply()["score_threshold"] == 1
    assert there.reply()["id"] == again["job_id"]
    assert there.switch("disable")["job_status"] == "completed"
    assert there.reply() == {"enabled": False}


def test_a_document_does_not_say_whether_annotations_answer(instance: Embedded, http: httpx.Client) -> None:
    claims = {"annotation_reply": {"enabled": True, "score_threshold": 0.5}}
    made = app(http, instance.admin_token, counting(features=claims))
    assert made.reply() == {"enabled": False}


def test_an_app_that_is_no_chat_has_annotations_that_answer_nothing(instance: Embedded, http: httpx.Client) -> None:
    made = app(http, instance.admin_token, ECHO)
    made.write("hi", "no")
    assert made.switch()["job_status"] == "completed"
    body = {"inputs": {"q": "hi"}, "user": "u", "query": "hi"}
    answer = made.ask("POST", "/workflows/run", json=body).json()
    assert answer["data"]["outputs"] == {"answer": "hi"}


def test_a_provider_that_is_not_there_ends_the_job_with_what_is_missing(tmp_path: Path) -> None:
    away = {"OPENAI": Provider("http://127.0.0.1:9/v1", "sk-secret-key")}
    with running(tmp_path, models="configured", providers=away) as made, httpx.Client(base_url=made.url) as http:
        there = app(http, made.admin_token, counting())
        ended = there.switch()
        assert ended["job_status"] == "error"
        assert "openai: " in ended["error_msg"]
        unset = there.switch(embedding_provider_name="langgenius/cohere/cohere")
        assert "FLOWLEDGER_PROVIDER_COHERE_API_KEY" in unset["error_msg"]
        assert there.reply() == {"enabled": False}


@pytest.mark.parametrize(
    ("late_us", "status", "words"), [(60_000_000, "processing", ""), (-1, "error", "Ask for it again")]
)
def test_a_job_whose_process_has_died_counts_as_failed_when_its_time_is_over(
    late_us: int, status: str, words: str
) -> None:
    log = MemoryLog(MemoryStore(partitions=1))
    server = Server(log, models="offline")
    made = server.import_app()
    job = AnnotationJobBegun(
        job_id="lost", app_id=made["app_id"], action="enable", score_threshold=0.9, embedding_provider_name="p",
        embedding_model_name="m", begun_at_us=1, ends_by_us=time.time_ns() // 1000 + late_us,
    )  # fmt: skip
    log.send(Topic.DEFINITIONS, 0, encode_fact(job)).result(30)
    headers = {"Authorization": f"Bearer {made['api_key']}"}
    found = server.http.get("/v1/apps/annotation-reply/enable/status/lost", headers=headers).json()
    assert (found["job_status"], words in found["error_msg"]) == (status, True)
    server.close()
    log.close()


def test_what_was_changed_or_deleted_may_be_forgotten_by_the_log() -> None:
    log = MemoryLog(MemoryStore(partitions=1))
    server = Server(log, models="offline")
    headers = {"Authorization": f"Bearer {server.import_app()['api_key']}"}
    made = server.http.post("/v1/apps/annotations", json={"question": "a", "answer": "1"}, headers=headers).json()
    path = f"/v1/apps/annotations/{made['id']}"
    for number in range(2):
        body = {"question": "a", "answer": f"changed {number}"}
        server.http.put(path, json=body, headers=headers)  # hit counts need tables, and there are none
    assert server.http.delete(path, headers=headers).status_code == 204
    newest: dict[bytes | None, bytes | None] = {}
    for batch in log.read(Topic.DEFINITIONS, 0, 0, log.bounds(Topic.DEFINITIONS, 0)[1]):
        newest |= {record.key: record.value for record in batch}
    written = [value for key, value in newest.items() if key is not None and key.startswith(b"annotation/")]
    assert written == [None, None, None]
    server.close()
    log.close()


# --- messages ---------------------------------------------------------------------------------------------------------


def test_an_annotation_answers_without_any_event_of_the_workflow(there: There) -> None:
    made = there.write()
    there.switch()
    assert "#1" in there.say("Something else altogether")["answer"]
    said = there.say("what is your REFUND policy")
    assert (said["answer"], said["event"], said["mode"]) == (ANSWER, "message", "advanced-chat")
    by = {"id": made["id"], "account": {"id": ADMIN_ID, "name": "admin"}}
    assert said["metadata"]["annotation_reply"] == by
    assert said["metadata"]["usage"]["total_tokens"] == 0
    frames = there.stream("What is the refund policy")
    assert names(frames) == ["message", "message_end"]
    first, end = (frame.data for frame in frames)
    assert first["answer"] == ANSWER
    assert end["metadata"]["annotation_reply"] == by
    assert first["id"] == end["id"] == end["message_id"]
    assert there.hits() == [2]


def test_a_stream_of_an_annotations_answer_goes_on_behind_every_id(there: There) -> None:
    there.write()
    there.switch()
    frames = there.stream(REFUND)
    run_id = there.ask("GET", "/runs").json()["data"][0]["id"]

    def behind(last: str) -> tuple[list[str], str]:
        headers = {"Authorization": f"Bearer {there.key}", "Last-Event-ID": last}
        with there.http.stream("GET", f"/v1/workflow/{run_id}/events?user=ann", headers=headers) as response:
            rest = Sse(response).rest()
        return names(rest), "".join(frame.data.get("answer", "") for frame in rest)

    assert [frame.id for frame in frames] == [f"2.{len(ANSWER)}", "3"]
    assert behind("0") == behind("1") == behind("2.0") == (["message", "message_end"], ANSWER)
    assert behind("2.6") == (["message", "message_end"], ANSWER[6:])
    assert behind(f"2.{len(ANSWER)}") == (["message_end"], "")
    assert behind("3") == ([], "")
    whole = there.http.get(
        f"/v1/workflow/{run_id}/events?user=ann", headers={"Authorization": f"Bearer {there.key}"}
    ).text
    assert '"event":"message_end"' in whole
    assert "workflow" not in whole


def test_the_longest_answer_comes_whole(there: There) -> None:
    longest = "💥" * 10_000
    there.write("x" * 2_000, longest)
    there.switch()
    said = there.say("X" * 2_000)
    assert said["answer"] == longest
    params = {"user": "ann", "conversation_id": said["conversation_id"]}
    assert there.ask("GET", "/messages", params=params).json()["data"][0]["answer"] == longest


def test_an_annotations_answer_is_a_message_like_any_other(there: There) -> None:
    there.write()
    there.switch()
    first = there.say(REFUND)
    talk = first["conversation_id"]
    second = there.say("And what did I ask before?", talk)
    alone = there.say("And what did I ask before?")
    told, untold = (each["metadata"]["usage"]["prompt_tokens"] for each in (second, alone))
    assert told == untold + len(REFUND.split()) + len(ANSWER.split()), "the model is told of it"
    found = there.ask("GET", "/messages", params={"user": "ann", "conversation_id": talk}).json()["data"]
    assert [(each["query"], each["answer"], each["status"]) for each in found] == [
        (REFUND, ANSWER, "normal"),
        ("And what did I ask before?", second["answer"], "normal"),
    ]
    assert found[1]["parent_message_id"] == first["message_id"]
    rated = there.ask("POST", f"/messages/{first['message_id']}/feedbacks", json={"rating": "like", "user": "ann"})
    assert rated.json() == {"result": "success"}


def test_what_answered_stays_what_it_was_when_the_annotation_changes(there: There) -> None:
    made = there.write()
    there.switch()
    said = there.say(REFUND)
    there.ask("PUT", f"/apps/annotations/{made['id']}", json={"question": "Money back?", "answer": "Never."})
    assert there.say("money back")["answer"] == "Never."
    assert "annotation_reply" not in there.say("Who are you, by the way")["metadata"]
    params = {"user": "ann", "conversation_id": said["conversation_id"]}
    assert there.ask("GET", "/messages", params=params).json()["data"][0]["answer"] == ANSWER
    assert there.hits() == [2]
    there.ask("DELETE", f"/apps/annotations/{made['id']}")
    assert "annotation_reply" not in there.say("money back")["metadata"]


def test_a_page_gets_the_answer_and_does_not_learn_where_it_comes_from(there: There) -> None:
    there.write()
    there.switch()
    admin = {"Authorization": f"Bearer {there.admin}"}
    code = there.http.get(f"/console/api/apps/{there.app_id}", headers=admin).json()["site"]["code"]
    passport = there.http.get("/api/passport", headers={"X-App-Code": code}).json()["access_token"]
    visitor = {"X-App-Code": code, "X-App-Passport": passport}
    frames = frames_of(there.http, "/api/chat-messages", {"inputs": {}, "query": REFUND}, visitor)
    assert names(frames) == ["message", "message_end"]
    assert frames[0].data["answer"] == ANSWER
    assert "annotation_reply" not in frames[1].data["metadata"]
    assert there.http.get("/api/parameters", headers=visitor).json()["annotation_reply"]["enabled"] is True


def test_a_draft_is_answered_too_and_a_run_that_is_asked_for_runs(there: There) -> None:
    made = there.write()
    there.switch()
    admin = {"Authorization": f"Bearer {there.admin}"}
    path = f"/console/api/apps/{there.app_id}/advanced-chat/workflows/draft/run"
    frames = frames_of(there.http, path, {"inputs": {}, "query": REFUND, "files": []}, admin)
    assert names(frames) == ["message", "message_end"]
    assert frames[1].data["metadata"]["annotation_reply"]["id"] == made["id"]
    body = {"inputs": {}, "query": REFUND, "response_mode": "streaming"}
    frames = frames_of(there.http, "/v1/runs", body, {"Authorization": f"Bearer {there.key}"})
    assert names(frames)[-1] == "workflow_finished"


def test_a_message_that_is_repeated_with_its_key_is_answered_once(there: There) -> None:
    there.write()
    there.switch()
    body = {"inputs": {}, "query": REFUND, "user": "ann"}
    headers = {"Authorization": f"Bearer {there.key}", "Idempotency-Key": "once"}
    first, again = (there.http.post("/v1/chat-messages", json=body, headers=headers).json() for _ in range(2))
    assert first == again
    assert first["answer"] == ANSWER
    assert there.hits() == [1]


def test_who_follows_or_forks_the_run_behind_an_answer_sees_it_end(
    there: There, instance: Embedded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there.write()
    there.switch()
    body = {"inputs": {}, "query": REFUND, "user": "ann"}
    answer = there.ask("POST", "/chat-messages", json=body)
    run_id = answer.headers["x-workflow-run-id"]
    with Client(instance.url, there.key) as client:
        followed = client.run(run_id, user="ann")
        assert [event.event for event in followed.events(timeout_s=20)] == ["message", "message_end"]
        assert followed.result(timeout_s=20).outputs == {"answer": ANSWER}
    monkeypatch.setenv("FLOWLEDGER_ADMIN_TOKEN", there.admin)
    assert run(["watch", run_id, "--timeout", "20", "--url", instance.url]) == 0
    assert ANSWER in capsys.readouterr().out
    lines = there.ask("GET", f"/runs/{run_id}/history").text.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["RunAccepted", "RunStarted", "RunSucceeded"]
    assert json.loads(lines[0])["data"]["annotation"]["answer"] == ANSWER
    forked = there.ask("POST", f"/runs/{run_id}/fork", json={"at": 2}).json()
    state = until(lambda: (s := there.ask("GET", f"/runs/{forked['id']}").json())["status"] == "succeeded" and s)
    assert state["outputs"] == {"answer": ANSWER}
    assert there.hits() == [1], "a fork is no message"


# --- what stays -------------------------------------------------------------------------------------------------------


def test_annotations_survive_a_restart_and_hits_a_rebuild_of_the_tables(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder) as made, httpx.Client(base_url=made.url, timeout=20) as http:
        first = app(http, made.admin_token, counting())
        kept, gone = first.write(), first.write("Hours?", "9 to 5")
        first.ask("DELETE", f"/apps/annotations/{gone['id']}")
        job = first.switch()
        first.say(REFUND)
        before, reply = first.listed(), first.reply()
    for file in folder.glob("tables.db*"):
        file.unlink()
    with running(folder) as made, httpx.Client(base_url=made.url, timeout=20) as http:
        there = There(http, first.key, first.app_id, made.admin_token)
        assert there.listed() == before
        assert [each["id"] for each in before["data"]] == [kept["id"]]
        assert there.reply() == reply
        assert there.ask("GET", f"/apps/annotation-reply/enable/status/{job['job_id']}").json() == job
        assert there.say("What is the refund policy")["answer"] == ANSWER, "vectors are made again"
        assert there.hits() == [2]


def test_a_configured_provider_is_asked_and_one_that_goes_away_fails_no_message(tmp_path: Path) -> None:
    def asked(server: ModelServer) -> list[Any]:
        return [each["body"]["input"] for each in server.requests if each["path"].endswith("/embeddings")]

    with serving() as server:
        providers = {"OPENAI": Provider(server.url, "sk-secret-key")}
        with (
            running(tmp_path, models="configured", providers=providers) as made,
            httpx.Client(base_url=made.url, timeout=20) as http,
        ):
            there = app(http, made.admin_token, GREETING)
            there.write()
            assert there.switch(embedding_model_name="dying-2", score_threshold=0.95)["job_status"] == "completed"
            assert there.switch(embedding_model_name="status-401")["job_status"] == "error"
            assert there.reply()["score_threshold"] == 0.95, "what held goes on"
            server.requests.pop()
            assert there.say("Your refund policy, what is it?")["answer"] == ANSWER
            assert asked(server) == [[REFUND], ["Your refund policy, what is it?"]]
            begun = time.monotonic()
            assert there.say("Refund policy: what is yours?")["answer"] == "Hello"
            assert there.say("And yours, what policy is it?")["answer"] == "Hello"
            assert time.monotonic() - begun < 5
            assert len(asked(server)) == 3, "a provider that has failed is left alone for a while"
            assert there.say(REFUND.upper())["answer"] == ANSWER, "equal texts need no provider"
