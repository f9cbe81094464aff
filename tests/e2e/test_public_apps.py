"""Two apps that other people published, end to end: imported over HTTP, streamed, kept, replayed.

Once with the offline stand-in for models, once against a real server in the OpenAI-compatible form.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from docs.events import line_schema
from tests import servers
from tests.e2e.deployment import Api, Deployment, Frame, deployment, frames, wait_until
from tests.e2e.public_apps import check_members, loaded, replay, rows, shape, text_of
from tests.model_server import ModelServer, serving

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not CORPUS.is_dir(),
        reason=f"no corpus at {CORPUS}: put the published apps beside the project (../shared/corpus)",
    ),
]


@dataclass(frozen=True)
class Expected:
    """What a run of a published app must look like."""

    inputs: dict[str, str]
    nodes: tuple[str, ...]
    """Those that run, in order."""
    text_behind: str
    """The stream's text comes right behind the frame of this place (see `shape`)."""
    selector: list[str]
    """Where the text comes from."""
    asked: int
    """Calls of a model."""
    said: str
    """What the answer of a model that echoes contains."""
    output: str
    skipped: tuple[str, ...] = ()


TRANSLATION = "aws-samples__dify-aws-tool/andrew_translation_agent.yml"
ROUTING = "A1sh-4__dify-dsl-generator/conditional-routing.yml"
QUESTION = {"user_input": "Wie sortiert man eine Liste? 🙂"}

CASES = {
    "translation": (
        TRANSLATION,
        Expected(
            inputs={"source_text": "Good morning, größter Löwe!", "source_lang": "English", "target_lang": "German"},
            nodes=("1719155682798", "1719155705207", "1719155983575", "1719156156959", "1719156275567"),
            text_behind="+1719156156959",
            selector=["1719156156959", "text"],
            asked=3,
            said="Good morning, größter Löwe!",
            output="translation",
        ),
    ),
    "routing-code": (
        ROUTING,
        Expected(
            inputs={**QUESTION, "input_type": "code"},
            nodes=("1718002000001", "1718002000002", "1718002000003", "1718002000005", "1718002000006"),
            text_behind="+1718002000005",
            selector=["1718002000005", "output"],
            asked=1,
            said="Wie sortiert man eine Liste? 🙂",
            output="output",
            skipped=("1718002000004",),
        ),
    ),
    "routing-general": (
        ROUTING,
        Expected(
            inputs={**QUESTION, "input_type": "general"},
            nodes=("1718002000001", "1718002000002", "1718002000004", "1718002000005", "1718002000006"),
            text_behind="+1718002000005",
            selector=["1718002000005", "output"],
            asked=1,
            said="Wie sortiert man eine Liste? 🙂",
            output="output",
            skipped=("1718002000003",),
        ),
    ),
}


@pytest.fixture
def deployed(kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as it:
        yield it


@pytest.fixture(scope="module")
def models() -> Iterator[ModelServer]:
    with serving() as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_a_published_app_runs_offline(deployed: Deployment, name: str) -> None:
    deployed.start("executor")
    check(deployed, *CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_a_published_app_runs_with_a_model_server(deployed: Deployment, models: ModelServer, name: str) -> None:
    file, expected = CASES[name]
    models.requests.clear()
    deployed.start(
        "executor",
        FLOWLEDGER_MODELS="configured",
        FLOWLEDGER_PROVIDER_DEFAULT_BASE_URL=models.url,
        FLOWLEDGER_PROVIDER_DEFAULT_API_KEY="sk-of-the-test",
    )
    outputs = check(deployed, file, expected)
    assert expected.said in outputs[expected.output]
    assert len(models.requests) == expected.asked
    assert {request["headers"]["authorization"] for request in models.requests} == {"Bearer sk-of-the-test"}
    assert expected.said in json.dumps(models.requests[0]["body"], ensure_ascii=False)


def check(deployed: Deployment, file: str, expected: Expected) -> dict[str, Any]:
    """Import and run the app; its stream, record, rows, history and replay agree. Returns the run's outputs."""
    document = (CORPUS / file).read_text("utf-8")
    api = deployed.client(deployed.start("api"))
    deployed.start("projector")
    app = api.import_document(document)
    with api.run(app["api_key"], expected.inputs) as answer:
        run_id, task_id = answer.headers["X-Workflow-Run-Id"], answer.headers["X-Task-Id"]
        got = list(frames(answer))
    check_members(got, run_id, task_id)
    outputs: dict[str, Any] = got[-1]["data"]["outputs"]
    check_stream(got, expected, outputs)
    check_record(api, app, run_id, outputs)
    check_rows(deployed, app, run_id, expected, outputs)
    check_history(api, document, run_id, expected, outputs)
    return outputs


def check_stream(got: list[Frame], expected: Expected, outputs: dict[str, Any]) -> None:
    order = ["workflow_started"]
    for node in expected.nodes:
        for place in ("+" + node, "-" + node):
            order += [place, "text"] if place == expected.text_behind else [place]
    assert shape(got) == [*order, "workflow_finished"]
    chunks = [frame["data"] for frame in got if frame["event"] == "text_chunk"]
    assert {tuple(chunk["from_variable_selector"]) for chunk in chunks} == {tuple(expected.selector)}
    assert text_of(got) == outputs[expected.output] != ""
    started = [frame["data"] for frame in got if frame["event"] == "node_started"]
    finished = [frame["data"] for frame in got if frame["event"] == "node_finished"]
    assert [data["index"] for data in started] == [1, 2, 3, 4, 5]
    assert [data["predecessor_node_id"] for data in started] == [None, *expected.nodes[:-1]]
    assert [data["id"] for data in started] == [data["id"] for data in finished]
    assert {data["status"] for data in finished} == {"succeeded"}
    end = got[-1]["data"]
    assert (end["status"], end["error"], end["total_steps"], end["exceptions_count"]) == ("succeeded", None, 5, 0)
    assert end["created_by"]["user"] == "tester"
    assert got[0]["data"]["inputs"]["sys.user_id"] == "tester"
    assert got[0]["data"]["inputs"].items() >= expected.inputs.items()


def check_record(api: Api, app: dict[str, Any], run_id: str, outputs: dict[str, Any]) -> None:
    detail = api.detail(app["api_key"], run_id)
    assert (detail["id"], detail["workflow_id"], detail["status"]) == (run_id, app["workflow_id"], "succeeded")
    assert (loaded(detail["outputs"]) if isinstance(detail["outputs"], str) else detail["outputs"]) == outputs


def check_rows(
    deployed: Deployment, app: dict[str, Any], run_id: str, expected: Expected, outputs: dict[str, Any]
) -> None:
    database = deployed.settings["FLOWLEDGER_DATABASE_URL"]

    def finished() -> bool:
        row, _ = rows(database, run_id)
        return row is not None and row["finished_at"] is not None

    wait_until(finished, "the run's row to be finished")
    run, nodes = rows(database, run_id)
    assert run is not None
    assert (run["status"], run["app_id"], run["workflow_id"], run["type"]) == (
        "succeeded",
        app["app_id"],
        app["workflow_id"],
        "workflow",
    )
    assert (run["total_steps"], run["exceptions_count"], run["error"], run["created_by_user"]) == (5, 0, None, "tester")
    assert loaded(run["outputs"]) == outputs
    assert loaded(run["inputs"]).items() >= expected.inputs.items()
    assert run["created_at"] <= run["started_at"] <= run["finished_at"]
    ran = [row for row in nodes if row["status"] != "skipped"]
    assert [(row["node_id"], row["status"], row["index"], row["attempt"]) for row in ran] == [
        (node, "succeeded", number, 1) for number, node in enumerate(expected.nodes, 1)
    ]
    assert {row["node_id"] for row in nodes if row["status"] == "skipped"} <= set(expected.skipped)
    assert loaded(ran[-1]["outputs"]) == outputs
    assert [row["predecessor_node_id"] for row in ran] == [None, *expected.nodes[:-1]]


def check_history(api: Api, document: str, run_id: str, expected: Expected, outputs: dict[str, Any]) -> None:
    history = api.history(run_id)
    schema = Draft202012Validator(line_schema())
    for line in history:
        schema.validate(line)
    assert tuple(line["node_id"] for line in history if line["type"] == "NodeSucceeded") == expected.nodes
    assert tuple(line["node_id"] for line in history if line["type"] == "NodeSkipped") == expected.skipped
    # Without its last line the history says what must follow: outputs are derived, not copied from the end event.
    state = replay(document, history[:-1])
    assert (state.ended, state.outputs) == (False, outputs)
    state = replay(document, history)
    assert (state.status, state.outputs, state.seq) == ("succeeded", outputs, len(history))
