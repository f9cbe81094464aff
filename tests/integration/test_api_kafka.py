"""Two API replicas over a real broker and database: what one starts the other streams, reads, lists and stops."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from libs.events.kafka import KafkaLog
from libs.events.log import Topic
from libs.events.model import RunAccepted, RunStarted, RunStopped, RunSucceeded
from libs.tables import open_engine
from services.api import Limits
from services.api.records import Records
from services.projector.projector import Projector
from tests import servers
from tests.api_world import ECHO, SPEAKING, ScriptedExecutor, Server, finish_llm, names, text_of, to_llm, until
from tests.conversations import counting

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def open_log(server: servers.Kafka, prefix: str) -> KafkaLog:
    return KafkaLog(server.bootstrap, {}, prefix, 4)


@pytest.fixture
def executor(kafka_server: servers.Kafka, kafka_prefix: str) -> Iterator[ScriptedExecutor]:
    log = open_log(kafka_server, kafka_prefix)
    made = ScriptedExecutor(log)
    yield made
    made.close()
    log.close()


@pytest.fixture
def replicas(
    executor: ScriptedExecutor, kafka_server: servers.Kafka, kafka_prefix: str
) -> Iterator[tuple[Server, Server]]:
    logs = [open_log(kafka_server, kafka_prefix) for _ in range(2)]
    made = [Server(log) for log in logs]
    yield made[0], made[1]
    for server, log in zip(made, logs, strict=True):
        server.close()
        log.close()


def test_a_run_started_at_one_replica_is_streamed_at_the_other(
    replicas: tuple[Server, Server], executor: ScriptedExecutor
) -> None:
    here, there = replicas
    executor.script = to_llm
    key = here.import_app(SPEAKING)["api_key"]
    with here.running(key) as first:
        begun = first.take(4)
        executor.speak(first.run_id, "Hel", 0)
        begun += first.take(1)
        with there.attached(first.run_id, key, last=begun[2].id) as second:
            assert second.take(1) == begun[3:4]
            finish_llm(executor, first.run_id, "Hello")
            rest, other = first.rest(), second.rest()
    assert text_of([*begun, *rest]) == text_of(other) == "Hello"
    assert names(other)[-1] == "workflow_finished"
    with there.attached(first.run_id, key, last="0") as again:
        assert names(again.rest())[-1] == "workflow_finished"


def test_a_read_at_one_replica_is_not_older_than_an_answer_of_the_other(
    replicas: tuple[Server, Server], executor: ScriptedExecutor
) -> None:
    here, there = replicas
    key = here.import_app()["api_key"]
    for _ in range(10):
        run_id = here.start(key).json()["workflow_run_id"]
        for path in (f"/v1/workflows/run/{run_id}", f"/v1/runs/{run_id}"):
            answer = there.http.get(path, headers={"Authorization": f"Bearer {key}"})
            assert answer.json()["status"] == "succeeded", answer.text


def test_a_run_started_at_one_replica_is_stopped_at_the_other(
    replicas: tuple[Server, Server], executor: ScriptedExecutor
) -> None:
    here, there = replicas
    executor.script = to_llm
    key = here.import_app(SPEAKING)["api_key"]
    with here.running(key) as stream:
        stream.take(4)
        answer = there.http.post(
            f"/v1/workflows/tasks/{stream.headers['x-task-id']}/stop",
            json={"user": "x"},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.json() == {"result": "success"}
        until(lambda: executor.stops)
        executor.emit(stream.run_id, RunStopped(error="User requested stop"))
        assert stream.rest()[-1].data["data"]["status"] == "stopped"


def test_one_idempotency_key_makes_one_run_at_both_replicas(
    replicas: tuple[Server, Server], executor: ScriptedExecutor
) -> None:
    here, there = replicas
    key = here.import_app()["api_key"]
    one = here.start(key, Idempotency_Key="k").json()
    two = there.start(key, Idempotency_Key="k").json()
    assert one == two
    assert len(executor.accepted) == 1


@pytest.mark.postgres
def test_runs_are_listed_from_postgres(
    executor: ScriptedExecutor, kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str
) -> None:
    log = open_log(kafka_server, kafka_prefix)
    engine = open_engine(postgres_url)
    projector = Projector(log, engine)
    projector.start()
    server = Server(log, Records(engine, log.topic_id(Topic.EVENTS)))
    try:
        key = server.import_app()["api_key"]
        made = [server.start(key).json()["workflow_run_id"] for _ in range(3)]

        def listed() -> list[str]:
            rows = server.http.get("/v1/runs?status=succeeded", headers=server.admin()).json()["data"]
            return [row["id"] for row in rows]

        until(lambda: listed() == made[::-1], 20)
        page = server.http.get("/v1/runs?limit=2", headers=server.admin()).json()
        rest = server.http.get(f"/v1/runs?cursor={page['next_cursor']}", headers=server.admin()).json()
        assert [row["id"] for row in page["data"] + rest["data"]] == made[::-1]
        server.parts.tail._outlines.clear()  # noqa: SLF001  # the tables must answer
        detail = server.http.get(f"/v1/workflows/run/{made[0]}", headers={"Authorization": f"Bearer {key}"}).json()
        assert detail["outputs"] == {"answer": "hi"}
        app = server.http.get("/console/api/apps", headers=server.admin()).json()["data"][0]["id"]

        def console(path: str, **query: str) -> Any:
            params = {"triggered_from": "app-run"} | query
            return server.http.get(f"/console/api/apps/{app}{path}", params=params, headers=server.admin()).json()

        assert [run["id"] for run in console("/workflow-runs")["data"]] == made[::-1]
        assert [run["id"] for run in console("/workflow-runs", last_id=made[1])["data"]] == made[:1]
        assert console("/workflow-runs/count", time_range="1d")["succeeded"] == 3
        days = console("/workflow/statistics/daily-conversations", start="2020-01-01 00:00")["data"]
        assert sum(day["runs"] for day in days) == 3
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day["date"]) for day in days)
        assert {day["terminal_count"] for day in console("/workflow/statistics/daily-terminals")["data"]} == {1}
        assert console("/workflows/draft/nodes/start/last-run")["code"] == "not_found"
        assert console("/workflows/draft/variables") == {"items": [], "total": 0}
    finally:
        server.close()
        projector.stop()
        engine.dispose()
        log.close()


def test_a_draft_saved_at_one_replica_is_published_at_the_other_and_of_two_saves_one_wins(
    replicas: tuple[Server, Server], executor: ScriptedExecutor
) -> None:
    here, there = replicas
    made = here.http.post("/console/api/apps", json={"name": "d", "mode": "workflow"}, headers=here.admin())
    path = f"/console/api/apps/{made.json()['id']}"
    draft = {"graph": json.loads(ECHO)["workflow"]["graph"]}
    first = there.http.post(f"{path}/workflows/draft", json=draft, headers=there.admin()).json()["hash"]
    moved = [draft["graph"] | {"viewport": {"x": number}} for number in range(2)]
    saves = [
        server.http.post(f"{path}/workflows/draft", json={"graph": graph, "hash": first}, headers=server.admin())
        for server, graph in zip(replicas, moved, strict=True)
    ]
    assert [answer.status_code for answer in saves] == [200, 409]
    shown = there.http.get(f"{path}/workflows/draft", headers=there.admin()).json()
    assert (shown["hash"], shown["graph"]) == (saves[0].json()["hash"], moved[0])
    published = there.http.post(f"{path}/workflows/publish", headers=there.admin())
    assert published.json()["result"] == "success", published.text
    key = here.http.post(f"{path}/api-keys", headers=here.admin()).json()["token"]
    assert there.start(key).json()["data"]["outputs"] == {"answer": "hi"}
    assert here.http.get(f"{path}/workflows/publish", headers=here.admin()).json()["graph"] == moved[0]


def answered(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    """As the machine does with a message that an annotation answers."""
    assert accepted.annotation is not None
    talk = accepted.conversation_id
    ended = RunSucceeded(outputs={"answer": accepted.annotation.answer}, conversation_id=talk)
    executor.emit(run_id, RunStarted(max_steps=100, conversation_id=talk), ended)


@pytest.mark.postgres
def test_what_is_annotated_at_one_replica_answers_at_the_other(
    executor: ScriptedExecutor, kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str
) -> None:
    executor.script = answered
    log = open_log(kafka_server, kafka_prefix)
    engine = open_engine(postgres_url)
    projector = Projector(log, engine)
    projector.start()
    here, there = (
        Server(log, Records(engine, log.topic_id(Topic.EVENTS)), Limits(tables_s=10), models="offline")
        for _ in range(2)
    )
    try:
        headers = {"Authorization": f"Bearer {here.import_app(counting())['api_key']}"}
        written = {"question": "What is your refund policy?", "answer": "Within 30 days."}
        made = here.http.post("/v1/apps/annotations", json=written, headers=headers).json()
        assert there.http.get("/v1/apps/annotations", headers=headers).json()["data"] == [made]
        reply = {"score_threshold": 0.7, "embedding_provider_name": "p", "embedding_model_name": "m"}
        job = here.http.post("/v1/apps/annotation-reply/enable", json=reply, headers=headers).json()
        path = f"/v1/apps/annotation-reply/enable/status/{job['job_id']}"
        until(lambda: there.http.get(path, headers=headers).json()["job_status"] == "completed")
        body = {"inputs": {}, "query": "What is the refund policy", "user": "ann"}
        answer = there.http.post("/v1/chat-messages", json=body, headers=headers)
        assert answer.json()["answer"] == "Within 30 days.", answer.text
        for server in (here, there):
            (listed,) = server.http.get("/v1/apps/annotations", headers=headers).json()["data"]
            assert listed["hit_count"] == 1
        assert there.http.delete(f"/v1/apps/annotations/{made['id']}", headers=headers).status_code == 204
        assert here.http.get("/v1/apps/annotations", headers=headers).json()["total"] == 0
    finally:
        here.close()
        there.close()
        projector.stop()
        engine.dispose()
        log.close()
