"""Conversations while things happen: answers under way, forgotten conversations, tables that are behind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.events.blobs import is_ref
from libs.events.codec import decode_event, type_of
from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import (
    ConversationVariableSet,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    RunAccepted,
    RunPaused,
    RunStarted,
    RunStopped,
    RunSucceeded,
    VariableForm,
    VariableUpdate,
)
from libs.tables import open_engine, sqlite_url
from services.api import Limits
from services.api.records import Records
from services.projector.projector import Projector
from tests.api_world import ScriptedExecutor, Server, names, serving, until
from tests.conversations import counting, speaking

PICTURE: Any = {
    "dify_model_identity": "__dify__file__", "type": "image", "transfer_method": "tool_file", "related_id": "f1",
    "filename": "a.png", "mime_type": "image/png", "size": 3, "url": "/v1/files/f1/preview",
}  # fmt: skip


def script(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    """A model has begun to answer; `now` is answered at once."""
    executor.emit(
        run_id,
        RunStarted(
            max_steps=100,
            conversation_id=accepted.conversation_id,
            variables={"count": 0},
            forms={"count": VariableForm(id="v1", value_type="number")},
            history=[],
        ),
        NodeStarted(node_id="start", node_type="start", title="Start", index=1),
        NodeSucceeded(node_id="start", outputs={}),
        NodeStarted(node_id="llm", node_type="llm", title="Llm", index=2, predecessor_id="start"),
    )
    if accepted.query != "wait":
        finish(executor, run_id, accepted)


def finish(
    executor: ScriptedExecutor,
    run_id: str,
    accepted: RunAccepted,
    answer: str = "yes",
    files: tuple[Any, ...] = (PICTURE,),
) -> None:
    wrote = VariableUpdate(selector=("conversation", "count"), value=5, value_type="integer")
    executor.emit(
        run_id,
        NodeSucceeded(node_id="llm", outputs={"text": answer}),
        RunSucceeded(
            outputs={"answer": f"{answer} {accepted.query}", "files": [*files]},
            conversation_id=accepted.conversation_id,
            updates=(wrote,),
        ),
    )


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=3))
    yield made
    made.close()


@pytest.fixture
def engine_path(tmp_path: Path) -> Path:
    return tmp_path / "tables.db"


@pytest.fixture
def projector(log: MemoryLog, engine_path: Path) -> Iterator[Projector]:
    engine = open_engine(sqlite_url(engine_path))
    made = Projector(log, engine)
    made.start()
    yield made
    made.stop()
    engine.dispose()


@pytest.fixture
def executor(log: MemoryLog) -> Iterator[ScriptedExecutor]:
    made = ScriptedExecutor(log, script)
    yield made
    made.close()


@pytest.fixture
def server(log: MemoryLog, projector: Projector, executor: ScriptedExecutor, engine_path: Path) -> Iterator[Server]:
    engine = open_engine(sqlite_url(engine_path))
    made = Server(log, Records(engine, log.topic_id(Topic.EVENTS)), Limits(tables_s=10))
    yield made
    made.close()
    engine.dispose()


@pytest.fixture
def key(server: Server) -> str:
    return str(server.import_app(counting())["api_key"])


def say(server: Server, key: str, query: str, **more: Any) -> Any:
    body = {"inputs": {}, "query": query, "user": "ann"} | more
    answer = server.http.post("/v1/chat-messages", json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def recorded(log: MemoryLog, name: str) -> list[Any]:
    """The events of a type."""
    batches = (batch for partition in range(3) for batch in log.read(Topic.EVENTS, partition, 0))
    return [decode_event(record).event for batch in batches for record in batch if type_of(record) == name]


def test_an_answer_is_stopped_by_its_user_and_nobody_else(server: Server, key: str, executor: ScriptedExecutor) -> None:
    body = {"inputs": {}, "query": "wait", "user": "ann", "response_mode": "streaming"}
    headers = {"Authorization": f"Bearer {key}"}
    with server.stream("POST", "/v1/chat-messages", key, body) as stream:
        first = stream.next()
        assert first is not None
        path = f"/v1/chat-messages/{first.data['task_id']}/stop"
        before = executor.commands()
        for user, sent in (("bob", 0), ("ann", 1)):
            answer = server.http.post(path, json={"user": user}, headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"result": "success"})
            assert executor.commands() == before + sent
        until(lambda: executor.stops)
        assert executor.stops == [stream.run_id]
        executor.emit(stream.run_id, RunStopped(error="User requested stop", conversation_id="x"))
        assert names(stream.rest())[-2:] == ["message_end", "workflow_finished"]
    for body_ in ({}, {"user": ""}):
        answer = server.http.post(path, json=body_, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    unknown = server.http.post("/v1/chat-messages/nothing/stop", json={"user": "ann"}, headers=headers)
    assert unknown.json() == {"result": "success"}


@pytest.mark.parametrize("spoken", ["so far", "x" * 50_000])
def test_what_was_shown_of_a_stopped_message_is_its_answer_on_every_replica(
    server: Server, log: MemoryLog, executor: ScriptedExecutor, engine_path: Path, spoken: str
) -> None:
    key = str(server.import_app(speaking())["api_key"])
    headers = {"Authorization": f"Bearer {key}"}
    body = {"inputs": {}, "query": "wait", "user": "ann", "response_mode": "streaming"}
    with server.stream("POST", "/v1/chat-messages", key, body) as stream:
        (first, *_) = stream.take(5)
        executor.speak(stream.run_id, spoken, 0)
        (said,) = stream.take(1)
        assert said.data["answer"] == spoken
        server.http.post(f"/v1/chat-messages/{first.data['task_id']}/stop", json={"user": "ann"}, headers=headers)
        shown = f"Well: {spoken}"
        (requested,) = until(lambda: recorded(log, "StopRequested"))
        assert requested.said == shown or is_ref(requested.said)
        ended = RunStopped(
            outputs={"answer": shown},
            error="User requested stop",
            conversation_id=executor.accepted[stream.run_id].conversation_id,
        )
        executor.emit(stream.run_id, NodeStopped(node_id="llm", reason="User requested stop"), ended)
        rest = stream.rest()
        assert names(rest) == ["message_end", "workflow_finished"]  # the client has the text
        assert rest[-1].data["data"]["outputs"] == {"answer": shown}
    query = {"user": "ann", "conversation_id": first.data["conversation_id"]}
    (message,) = server.http.get("/v1/messages", params=query, headers=headers).json()["data"]
    assert (message["answer"], message["status"]) == (shown, "normal")
    engine = open_engine(sqlite_url(engine_path))
    with serving(log, records=Records(engine, log.topic_id(Topic.EVENTS)), limits=Limits(tables_s=10)) as other:
        path = f"/v1/workflow/{stream.run_id}/events?user=ann"
        for last, texts in (("0", shown), (said.id, "")):
            with other.stream("GET", path, key, Last_Event_ID=str(last)) as again:
                frames = again.rest()
            assert "".join(each.data["answer"] for each in frames if each.name == "message") == texts
            assert names(frames)[-2:] == ["message_end", "workflow_finished"]
    engine.dispose()


def test_only_the_replica_that_shows_a_message_knows_what_to_say_with_a_stop(
    server: Server, log: MemoryLog, executor: ScriptedExecutor, engine_path: Path
) -> None:
    key = str(server.import_app(speaking())["api_key"])
    engine = open_engine(sqlite_url(engine_path))
    body = {"inputs": {}, "query": "wait", "user": "ann", "response_mode": "streaming"}
    with serving(log, records=Records(engine, log.topic_id(Topic.EVENTS)), limits=Limits(tables_s=10)) as other:
        with server.stream("POST", "/v1/chat-messages", key, body) as stream:
            (first, *_) = stream.take(5)
            executor.speak(stream.run_id, "so far", 0)
            stream.take(1)
            path = f"/v1/chat-messages/{first.data['task_id']}/stop"
            until(lambda: other.parts.tail.outline(stream.run_id) is not None)
            other.http.post(path, json={"user": "ann"}, headers={"Authorization": f"Bearer {key}"})
            assert [each.said for each in until(lambda: recorded(log, "StopRequested"))] == [None]
            executor.emit(stream.run_id, RunStopped(error="User requested stop"))
            assert names(stream.rest()) == ["message_end", "workflow_finished"]
    engine.dispose()


def test_a_long_answer_of_a_message_that_waits_is_listed_whole(
    server: Server, key: str, executor: ScriptedExecutor
) -> None:
    large = "x" * 200_000
    body = {"inputs": {}, "query": "wait", "user": "ann", "response_mode": "streaming"}
    with server.stream("POST", "/v1/chat-messages", key, body) as stream:
        (first, *_) = stream.take(4)
        executor.emit(stream.run_id, RunPaused(answer=large))
        assert names(stream.rest())[-1] == "workflow_paused"
    query = {"user": "ann", "conversation_id": first.data["conversation_id"]}
    answer = server.http.get("/v1/messages", params=query, headers={"Authorization": f"Bearer {key}"})
    (message,) = answer.json()["data"]
    assert (message["answer"], message["status"]) == (large, "paused")


def test_a_stream_of_a_message_is_resumed_anywhere(server: Server, key: str, executor: ScriptedExecutor) -> None:
    body = {"inputs": {}, "query": "now", "user": "ann", "response_mode": "streaming"}
    with server.stream("POST", "/v1/chat-messages", key, body) as stream:
        frames, run_id = stream.rest(), stream.run_id
    for number, frame in enumerate(frames):
        if frame.id is None:
            continue
        path = f"/v1/workflow/{run_id}/events?user=ann"
        with server.stream("GET", path, key, Last_Event_ID=frame.id) as again:
            assert [each.data for each in again.rest()] == [each.data for each in frames[number + 1 :]]


def test_a_message_is_listed_while_it_is_being_answered(server: Server, key: str, executor: ScriptedExecutor) -> None:
    body = {"inputs": {}, "query": "wait", "user": "ann", "response_mode": "streaming"}
    headers = {"Authorization": f"Bearer {key}"}
    with server.stream("POST", "/v1/chat-messages", key, body) as stream:
        (first, *_) = stream.take(4)
        query = {"user": "ann", "conversation_id": first.data["conversation_id"]}
        (message,) = server.http.get("/v1/messages", params=query, headers=headers).json()["data"]
        assert (message["query"], message["answer"], message["status"]) == ("wait", "", "normal")
        finish(executor, stream.run_id, executor.accepted[stream.run_id])
        stream.rest()
        (message,) = server.http.get("/v1/messages", params=query, headers=headers).json()["data"]
        assert message["answer"] == "yes wait"


def test_files_of_a_message_say_whose_they_are(server: Server, key: str) -> None:
    said = say(server, key, "now")
    query = {"user": "ann", "conversation_id": said["conversation_id"]}
    headers = {"Authorization": f"Bearer {key}"}
    (message,) = server.http.get("/v1/messages", params=query, headers=headers).json()["data"]
    assert message["message_files"] == [
        {
            "id": "f1", "filename": "a.png", "type": "image", "url": "/v1/files/f1/preview", "mime_type": "image/png",
            "size": 3, "transfer_method": "tool_file", "belongs_to": "assistant", "upload_file_id": "f1",
        }
    ]  # fmt: skip


def test_every_file_of_a_message_has_an_id_of_its_own(server: Server, key: str, executor: ScriptedExecutor) -> None:
    body = {"inputs": {}, "query": "wait", "user": "ann", "response_mode": "streaming"}
    headers = {"Authorization": f"Bearer {key}"}
    with server.stream("POST", "/v1/chat-messages", key, body) as stream:
        (first, *_) = stream.take(4)
        links = tuple(
            PICTURE | {"transfer_method": "remote_url", "related_id": None, "url": f"https://files.example/{name}.png"}
            for name in "ab"
        )
        finish(executor, stream.run_id, executor.accepted[stream.run_id], files=(PICTURE, *links))
        stream.rest()
    query = {"user": "ann", "conversation_id": first.data["conversation_id"]}
    listed = [server.http.get("/v1/messages", params=query, headers=headers).json()["data"] for _ in range(2)]
    assert listed[0] == listed[1]
    ids = [each["id"] for each in listed[0][0]["message_files"]]
    assert ids[0] == "f1"
    assert len({*ids, first.data["message_id"]}) == 4


def test_conversations_and_messages_are_found_in_upper_case(server: Server, key: str) -> None:
    said = [say(server, key, "now")]
    said.append(say(server, key, "now", conversation_id=said[0]["conversation_id"].upper()))
    talk = said[0]["conversation_id"]
    assert said[1]["conversation_id"] == talk
    headers = {"Authorization": f"Bearer {key}"}
    query = {"user": "ann", "conversation_id": talk.upper(), "first_id": said[1]["message_id"].upper()}
    (message,) = server.http.get("/v1/messages", params=query, headers=headers).json()["data"]
    assert message["id"] == said[0]["message_id"]
    body = {"user": "ann", "name": "A1B2C3D4-0000-4000-8000-00000000000F"}
    named = server.http.post(f"/v1/conversations/{talk.upper()}/name", json=body, headers=headers).json()
    assert (named["id"], named["name"]) == (talk, body["name"])


def test_a_forgotten_conversation_goes_on_from_what_the_tables_hold(
    server: Server, key: str, executor: ScriptedExecutor
) -> None:
    talk = say(server, key, "one")["conversation_id"]
    say(server, key, "two", conversation_id=talk)
    executor.forget_conversations()
    say(server, key, "three", conversation_id=talk)
    told = executor.accepted[executor.run()]
    assert told.dialogue_count == 3
    assert told.earlier is None
    assert told.conversation == {
        "count": 2,
        "variables": {"count": 5},
        "forms": {"count": {"id": "v1", "value_type": "number", "description": ""}},
        "history": [["one", "yes one"], ["two", "yes two"]],
    }
    say(server, key, "four", conversation_id=talk)
    followed = executor.accepted[executor.run()]
    assert (followed.dialogue_count, followed.conversation) == (4, None)
    assert followed.earlier is not None
    assert followed.earlier[0].kind == "started"


def test_a_forgotten_conversation_that_is_changed_is_told_with_the_change(
    server: Server, key: str, executor: ScriptedExecutor
) -> None:
    talk = say(server, key, "one")["conversation_id"]
    executor.forget_conversations()
    path = f"/v1/conversations/{talk}/variables/v1"
    headers = {"Authorization": f"Bearer {key}"}
    assert server.http.put(path, json={"value": 9, "user": "ann"}, headers=headers).status_code == 200
    say(server, key, "two", conversation_id=talk)
    told = executor.accepted[executor.run()].conversation
    assert told is not None
    assert told["variables"] == {"count": 9}


def test_a_conversation_that_was_deleted_and_forgotten_stays_deleted(
    server: Server, key: str, executor: ScriptedExecutor
) -> None:
    talk = say(server, key, "one")["conversation_id"]
    headers = {"Authorization": f"Bearer {key}"}
    assert server.http.request("DELETE", f"/v1/conversations/{talk}", headers=headers, json={"user": "ann"}).is_success
    executor.forget_conversations()
    for mode in ("blocking", "streaming"):
        body = {"inputs": {}, "query": "two", "user": "ann", "conversation_id": talk, "response_mode": mode}
        answer = server.http.post("/v1/chat-messages", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_many_small_values_are_shown_and_told_before_anybody_has_written_them(
    server: Server, key: str, executor: ScriptedExecutor
) -> None:
    began = {f"v{number}": f"{number} " + "x" * 900 for number in range(90)}

    def many(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
        forms = {name: VariableForm(id=f"id-{name}", value_type="string") for name in began}
        talk = accepted.conversation_id
        executor.emit(
            run_id,
            RunStarted(max_steps=9, conversation_id=talk, variables=dict(began), forms=forms, history=[]),
            RunSucceeded(outputs={"answer": "yes"}, conversation_id=talk),
        )

    executor.script = many
    talk = say(server, key, "now")["conversation_id"]
    query = {"user": "ann", "limit": 100}
    headers = {"Authorization": f"Bearer {key}"}
    shown = server.http.get(f"/v1/conversations/{talk}/variables", params=query, headers=headers).json()["data"]
    assert {each["name"]: each["value"] for each in shown} == began
    executor.forget_conversations()
    executor.script = script
    say(server, key, "after", conversation_id=talk)
    told = executor.accepted[executor.run()].conversation
    assert told is not None
    assert json.loads(server.parts.blobs.get(told["variables"])) == began


def test_large_answers_and_values_come_back_whole(server: Server, key: str, executor: ScriptedExecutor) -> None:
    large = "x" * 200_000
    said = say(server, key, "now")
    executor.script = lambda executor, run_id, accepted: (
        script(executor, run_id, accepted.model_copy(update={"query": "wait"})),
        finish(executor, run_id, accepted, large),
    )[0]
    talk = said["conversation_id"]
    say(server, key, "big", conversation_id=talk)
    query = {"user": "ann", "conversation_id": talk}
    headers = {"Authorization": f"Bearer {key}"}
    messages = server.http.get("/v1/messages", params=query, headers=headers).json()["data"]
    assert messages[1]["answer"] == f"{large} big"
    executor.forget_conversations()
    say(server, key, "after", conversation_id=talk)
    history = executor.accepted[executor.run()].conversation
    assert history is not None


def test_without_tables_messages_are_answered_and_lists_are_not(log: MemoryLog, executor: ScriptedExecutor) -> None:
    server = Server(log, None, Limits(tables_s=0.2))
    try:
        key = str(server.import_app(counting())["api_key"])
        headers = {"Authorization": f"Bearer {key}"}
        talk = say(server, key, "one")["conversation_id"]
        say(server, key, "two", conversation_id=talk)
        for path in ("/v1/conversations", f"/v1/messages?conversation_id={talk}", "/v1/app/feedbacks"):
            answer = server.http.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
            assert answer.headers["retry-after"]
        executor.forget_conversations()
        body = {"inputs": {}, "query": "three", "user": "ann", "conversation_id": talk}
        assert server.http.post("/v1/chat-messages", json=body, headers=headers).status_code == 503
    finally:
        server.close()


def test_a_change_from_outside_is_one_event(server: Server, key: str, log: MemoryLog) -> None:
    talk = say(server, key, "one")["conversation_id"]
    headers = {"Authorization": f"Bearer {key}"}
    path = f"/v1/conversations/{talk}/variables/v1"
    server.http.put(path, json={"value": 9, "user": "ann"}, headers=headers)
    found = recorded(log, "ConversationVariableSet")
    assert [(type(each), getattr(each, "value", None)) for each in found] == [(ConversationVariableSet, 9)]
