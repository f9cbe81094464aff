"""Generators of the console: a stand-in's answers have the shapes that editors read, a model's failures their codes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import start_embedded
from libs.events.log import LogError
from libs.events.memory import MemoryLog, MemoryStore
from libs.settings import Provider, Settings, load_settings
from services.api.generating import GENERATORS
from tests.api_world import ScriptedExecutor, Server, nothing, until
from tests.documents import code, document, edges, end, start, template
from tests.model_server import serving
from tests.unit.api.speaking import llm

FLOW = document(
    [start("q"), llm(), code("c"), template("t", "{{ c }}", c="c.result"), end(a="t.output")],
    edges("start > llm > c > t > end"),
)
PYTHON = 'def main(arg1: str, arg2: str):\n    return {\n        "result": arg1 + arg2,\n    }\n'
"""What the console puts into a new node."""


@dataclass
class Console:
    http: httpx.Client
    requests: list[dict[str, Any]]
    """That came to the model server."""

    def post(self, path: str, model: str = "echo", **body: Any) -> httpx.Response:
        named = {"provider": "langgenius/openai/openai", "name": model, "mode": "chat", "completion_params": {}}
        return self.http.post(path, json={"model_config": named} | body)

    def made(self, path: str, model: str = "echo", **body: Any) -> dict[str, Any]:
        answer = self.post(path, model, **body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def imported(self) -> str:
        answer = self.http.post("apps/imports", json={"mode": "yaml-content", "yaml_content": FLOW})
        return str(answer.json()["app_id"])

    def told(self) -> tuple[str, str]:
        """System and user message of the last call."""
        system, user = self.requests[-1]["body"]["messages"]
        return system["content"], user["content"]


def connected(url: str, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{url}/console/api/", headers=headers, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("offline")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    with connected(instance.url, instance.admin_token) as http:
        yield Console(http, [])
    instance.stop()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder: Path = tmp_path_factory.mktemp("models")
    with serving() as server:
        settings = replace(load_settings({}, None), providers={"OPENAI": Provider(server.url)}, data=folder)
        instance = start_embedded(folder, "127.0.0.1", 0, settings)
        with connected(instance.url, instance.admin_token) as http:
            yield Console(http, server.requests)
        instance.stop()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_stand_in_answers_every_generator_in_its_shape_and_always_alike(offline: Console) -> None:
    app = offline.imported()
    asked: dict[str, dict[str, Any]] = {
        "rule-generate": {"instruction": "Translate"},
        "rule-code-generate": {"instruction": "Add", "code_language": "python3"},
        "rule-structured-output-generate": {"instruction": "A city"},
        "instruction-generate": {"instruction": "Shorter", "flow_id": app, "node_id": "llm", "current": "You are."},
    }
    made = {path: offline.made(path, **body) for path, body in asked.items()}
    assert made == {path: offline.made(path, **body) for path, body in asked.items()}
    assert {path: (sorted(answer), answer["error"]) for path, answer in made.items()} == {
        "rule-generate": (["error", "opening_statement", "prompt", "variables"], ""),
        "rule-code-generate": (["code", "error", "language"], ""),
        "rule-structured-output-generate": (["error", "output"], ""),
        "instruction-generate": (["error", "message", "modified"], ""),
    }
    assert isinstance(made["rule-generate"]["variables"], list)
    assert json.loads(made["rule-structured-output-generate"]["output"])["type"] == "object"
    assert made["rule-code-generate"]["language"] == "python3"
    plain = offline.made("rule-generate", instruction="Translate", no_variable=True)
    assert "Translate" in plain["prompt"]
    assert (plain["variables"], plain["opening_statement"]) == ([], "")


def test_what_a_model_writes_is_freed_from_its_fence(console: Console) -> None:
    fenced = "```python\ndef main() -> dict:\n    return {}\n```"
    made = console.made("rule-code-generate", instruction=fenced, code_language="python3")
    assert made == {"code": "def main() -> dict:\n    return {}", "language": "python3", "error": ""}
    assert "Python 3" in console.told()[0]
    console.made("rule-code-generate", instruction="x")
    assert "JavaScript" in console.told()[0]
    assert console.made("rule-generate", instruction="be brief", no_variable=True)["prompt"] == "echo: be brief"


def test_an_object_that_a_model_writes_becomes_the_answer(console: Console) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    made = console.made("rule-structured-output-generate", instruction=json.dumps(schema))
    assert (json.loads(made["output"]), made["error"]) == (schema, "")
    rule = {"prompt": "Translate {{text}}", "variables": ["text"], "opening_statement": "Hello"}
    assert console.made("rule-generate", instruction=json.dumps(rule)) == rule | {"error": ""}


def test_an_answer_that_is_no_use_says_so_in_its_shape(console: Console) -> None:
    for path, body in (
        ("rule-generate", {}),
        ("rule-structured-output-generate", {}),
        ("instruction-generate", {"current": "You are."}),
    ):
        made = console.made(path, "json", instruction="x", **body)
        assert "structured output" in made["error"]
        assert not any(made.get(name) for name in ("prompt", "output", "modified"))


@pytest.mark.parametrize(
    ("model", "provider", "status", "code"),
    [
        ("echo", "nobody/knows/it", 400, "provider_not_initialize"),
        ("status-401", "langgenius/openai/openai", 400, "completion_request_error"),
        ("status-400", "langgenius/openai/openai", 400, "completion_request_error"),
        ("garbage", "langgenius/openai/openai", 400, "completion_request_error"),
    ],
)
def test_a_model_that_cannot_be_asked_is_an_error(
    console: Console, model: str, provider: str, status: int, code: str
) -> None:
    named = {"model_config": {"provider": provider, "name": model}, "instruction": "x"}
    for path in ("rule-generate", "rule-code-generate", "rule-structured-output-generate"):
        assert code_of(console.http.post(path, json=named)) == (status, code)
    assert code_of(console.http.post("instruction-generate", json=named | {"current": "x"})) == (status, code)


def test_the_parameters_of_the_model_reach_it(console: Console) -> None:
    named = {"provider": "openai", "name": "echo", "completion_params": {"temperature": 0.25}}
    console.http.post("rule-generate", json={"instruction": "x", "no_variable": True, "model_config": named})
    assert console.requests[-1]["body"]["temperature"] == 0.25
    named = {"provider": "openai", "name": "echo", "mode": "completion"}
    answer = console.http.post("rule-generate", json={"instruction": "Do", "no_variable": True, "model_config": named})
    assert answer.status_code == 200
    assert console.requests[-1]["body"]["prompt"].endswith("Do")


def test_an_empty_node_is_written_anew_and_another_one_changed(console: Console) -> None:
    here: dict[str, Any] = {"flow_id": console.imported(), "instruction": "Do it", "language": "python3"}
    assert set(console.made("instruction-generate", **here, node_id="llm")) >= {"prompt", "error"}
    for current in ("", PYTHON):
        made = console.made("instruction-generate", **here, node_id="c", current=current)
        assert made == {"code": "echo: Do it", "language": "python3", "error": ""}
    changed = {"modified": "new", "message": "shorter"}
    here["instruction"] = json.dumps(changed)
    made = console.made("instruction-generate", **here, node_id="c", current="def main(): pass")
    system, user = console.told()
    assert "`main`" in system
    assert json.loads(user)["current"] == "def main(): pass"
    assert set(made) == {"modified", "message", "error"}


def test_a_change_is_told_of_the_last_run(console: Console) -> None:
    app = console.imported()
    ran = console.http.post(f"apps/{app}/workflows/draft/nodes/t/run", json={"inputs": {"c.result": "seen before"}})
    assert ran.status_code == 200, ran.text
    console.made(
        "instruction-generate", flow_id=app, node_id="t", current="{{ c }}", ideal_output="better",
        instruction="Of {{#last_run#}} keep {{#current#}}, error {{#error_message#}}",
    )  # fmt: skip
    told = json.loads(console.told()[1])
    assert "seen before" in told["last_run"]
    assert "seen before" in told["instruction"]
    assert told["instruction"].endswith("keep {{ c }}, error null")
    assert told["ideal_output"] == "better"


def test_what_is_wrong_with_a_request_is_said(console: Console) -> None:
    app = console.imported()
    for path in ("rule-generate", "rule-code-generate", "rule-structured-output-generate", "instruction-generate"):
        assert code_of(console.post(path)) == (400, "invalid_param")
        assert code_of(console.post(path, instruction=" ")) == (400, "invalid_param")
        for wrong in (
            None,
            "echo",
            {},
            {"provider": "openai", "name": ""},
            {"provider": "openai", "name": "echo", "mode": "odd"},
            {"provider": "openai", "name": "echo", "completion_params": "hot"},
        ):
            assert code_of(console.post(path, instruction="x", model_config=wrong)) == (400, "invalid_param")
    assert code_of(console.post("rule-code-generate", instruction="x", code_language="cobol")) == (
        400,
        "invalid_param",
    )
    for odd in (
        {},
        {"node_id": "llm"},
        {"node_id": "llm", "flow_id": "no-app"},
        {"node_id": "nowhere", "flow_id": app},
        {"node_id": "end", "flow_id": app},
        {"node_id": 5, "flow_id": app},
    ):
        assert code_of(console.post("instruction-generate", instruction="x", **odd)) == (400, "invalid_param")


def test_there_is_a_template_for_prompts_and_for_code(console: Console) -> None:
    for kind in ("prompt", "code"):
        answer = console.http.post("instruction-generate/template", json={"type": kind})
        assert "{{#current#}}" in answer.json()["data"]
    assert code_of(console.http.post("instruction-generate/template", json={"type": "odd"})) == (400, "invalid_param")


def test_what_was_asked_is_a_run_like_any_other_of_no_app(console: Console) -> None:
    console.made("rule-generate", instruction="find me", no_variable=True)
    root = str(console.http.base_url).removesuffix("/console/api/")
    runs = httpx.get(
        f"{root}/v1/runs", params={"limit": "1"}, headers=dict(console.http.headers), trust_env=False
    ).json()["data"]
    assert (runs[0]["app_id"], runs[0]["triggered_from"], runs[0]["version"]) == (
        GENERATORS.app_id, "debugging", "generator",
    )  # fmt: skip
    assert all(app["id"] != GENERATORS.app_id for app in console.http.get("apps").json()["data"])


def test_who_waits_for_a_model_is_told_when_this_process_reads_the_log_no_more() -> None:
    log = MemoryLog(MemoryStore(partitions=1))
    executor, server = ScriptedExecutor(log, nothing), Server(log, schedules=False)
    body = {"instruction": "x", "no_variable": True, "model_config": {"provider": "openai", "name": "m"}}
    try:
        with ThreadPoolExecutor(1) as asking:
            asked = asking.submit(server.http.post, "/console/api/rule-generate", json=body, headers=server.admin())
            until(lambda: executor.accepted)
            tail = server.parts.tail
            tail.loop.call_soon_threadsafe(tail._failed, LogError("the topic is another one"))  # noqa: SLF001  # the log's
            answer = asked.result(20)
        assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    finally:
        server.close()
        executor.close()
        log.close()
