"""A conversation over a real deployment: replicas take turns, and its executor is killed in the middle of an answer."""

from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.conversations import COUNTING, citing, found, llm, model_named
from tests.documents import document, edges, node, start
from tests.e2e.deployment import Api, deployment, frames
from tests.e2e.witness import Witness
from tests.model_server import PICTURE, serving

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]


def calling(witness: Witness) -> str:
    """start > a slow call > llm with a memory > count += 1 > answer."""
    call = node(
        "call",
        "http-request",
        method="post",
        url=f"{witness.url}/call?delay=0.5",
        headers="",
        params="",
        body={"type": "none", "data": []},
        authorization={"type": "no-auth", "config": None},
        timeout={},
    )
    item = {"variable_selector": ["conversation", "count"], "operation": "+=", "input_type": "constant", "value": 1}
    return document(
        [
            start(),
            call,
            llm(),
            node("assign", "assigner", version="2", items=[item]),
            node("answer", "answer", answer="{{#llm.text#}} #{{#conversation.count#}}"),
        ],
        edges("start > call > llm > assign > answer"),
        mode="advanced-chat",
        conversation_variables=COUNTING,
    )


def say(api: Api, key: str, query: str, talk: str | None = None) -> dict[str, Any]:
    body = {"inputs": {}, "query": query, "user": "ann", "conversation_id": talk}
    answer = api.http.post("/v1/chat-messages", json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def asked(api: Api, run_id: str) -> list[tuple[str, str]]:
    """What the model of a run was asked, without the words of the stand-in."""
    outcome = next(line for line in api.history(run_id) if line["type"] == "NodeSucceeded" and line["node_id"] == "llm")
    return [
        (prompt["role"], prompt["text"].partition(" (answer")[0])
        for prompt in outcome["data"]["process_data"]["prompts"]
    ]


def test_a_conversation_goes_on_at_any_replica_and_survives_its_executors(
    kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path
) -> None:
    with (
        Witness() as witness,
        deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as deployed,
    ):
        executors = [deployed.start("executor")]
        deployed.start("projector")
        here, there = (deployed.client(deployed.start("api")) for _ in range(2))
        key = here.import_document(calling(witness))["api_key"]
        headers = {"Authorization": f"Bearer {key}"}
        first = say(here, key, "one")
        talk = first["conversation_id"]
        body = {"inputs": {}, "query": "two", "user": "ann", "conversation_id": talk, "response_mode": "streaming"}
        with there.http.stream("POST", "/v1/chat-messages", json=body, headers=headers) as answer:
            got = []
            for frame in frames(answer):
                got.append(frame)
                if frame["event"] == "node_started" and frame["data"]["node_id"] == "call":
                    executors.pop().kill()
                    executors.append(deployed.start("executor"))
            second = got[-1]["data"]
        assert [frame["event"] for frame in got[-2:]] == ["message_end", "workflow_finished"]
        assert second["outputs"]["answer"].endswith("#2")
        third = say(here, key, "three", talk)
        assert third["answer"].endswith("#3")

        query = {"user": "ann", "conversation_id": talk}
        messages = there.http.get("/v1/messages", params=query, headers=headers).json()["data"]
        assert [each["query"] for each in messages] == ["one", "two", "three"]
        assert [each["answer"] for each in messages] == [first["answer"], second["outputs"]["answer"], third["answer"]]
        count = there.http.get(f"/v1/conversations/{talk}/variables", params=query, headers=headers).json()["data"][0]
        assert (count["name"], count["value"]) == ("count", "3")
        texts = [text for _, text in asked(here, messages[2]["workflow_run_id"])]
        assert [text for text in texts if text in ("one", "two", "three")] == ["one", "two", "three"]
        assert len(texts) == 6  # the system's, two messages with their answers, the new one


def test_files_and_sources_of_a_model_belong_to_its_message_at_every_replica(
    kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path
) -> None:
    with (
        serving() as models,
        deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as deployed,
    ):
        deployed.start("executor", FLOWLEDGER_MODELS="configured", FLOWLEDGER_PROVIDER_OPENAI_BASE_URL=models.url)
        deployed.start("projector")
        here, there = (deployed.client(deployed.start("api")) for _ in range(2))
        text = citing("{{#llm.text#}}", [found("h", "one")], model=model_named("drawing"))
        key = here.import_document(text)["api_key"]
        headers = {"Authorization": f"Bearer {key}"}
        body = {"inputs": {}, "query": "draw", "user": "ann", "response_mode": "streaming"}
        with here.http.stream("POST", "/v1/chat-messages", json=body, headers=headers) as answer:
            (end,) = (frame for frame in frames(answer) if frame["event"] == "message_end")
        (file,) = end["files"]
        (cited,) = end["metadata"]["retriever_resources"]
        assert (cited["document_id"], cited["content"]) == ("h", "one")

        query = {"user": "ann", "conversation_id": end["conversation_id"]}
        (message,) = there.http.get("/v1/messages", params=query, headers=headers).json()["data"]
        assert message["retriever_resources"] == [cited]
        assert [each["url"] for each in message["message_files"]] == [file["url"]]
        assert there.http.get(file["url"], headers=headers).content == PICTURE
