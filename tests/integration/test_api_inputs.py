"""Every row of the contract's table of inputs, through HTTP: what a run gets, or 400 `invalid_param` in both modes."""

from collections.abc import Iterator
from typing import Any

import pytest

from libs.events.memory import MemoryLog, MemoryStore
from tests.api_world import ScriptedExecutor, Server
from tests.documents import document, edges, end, node

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Server, ScriptedExecutor]]:
    log = MemoryLog(MemoryStore(partitions=2))
    executor = ScriptedExecutor(log)
    server = Server(log)
    yield server, executor
    server.close()
    executor.close()
    log.close()


def app_with(server: Server, kind: str, rules: dict[str, Any]) -> str:
    variable = {"variable": "v", "label": "V", "type": kind, "required": False, **rules}
    nodes = [node("start", "start", variables=[variable]), end(o="start.v")]
    return str(server.import_app(document(nodes, edges("start > end")))["api_key"])


def options(*names: str) -> dict[str, Any]:
    return {"options": list(names)}


@pytest.mark.parametrize(
    ("kind", "rules", "given", "value"),
    [
        ("text-input", {}, {"v": "hi", "unknown": 1}, "hi"),
        ("text-input", {"required": True}, {"v": ""}, ""),
        ("text-input", {"max_length": 3}, {"v": "äöü"}, "äöü"),
        ("text-input", {"max_length": 0}, {"v": "x" * 100}, "x" * 100),
        ("text-input", {}, {"v": "a\0b"}, "ab"),
        ("text-input", {"hide": True}, {"v": "seen"}, "seen"),
        ("text-input", {}, {}, None),
        ("text-input", {}, {"v": None}, None),
        ("text-input", {"default": "d"}, {}, "d"),
        ("text-input", {"required": True, "default": "d"}, {"v": "given"}, "given"),
        ("paragraph", {}, {"v": "a\nb"}, "a\nb"),
        ("select", options("s", "l"), {"v": "s"}, "s"),
        ("select", options("", "l"), {"v": ""}, ""),
        ("number", {}, {"v": 3}, 3),
        ("number", {}, {"v": 2.5}, 2.5),
        ("number", {}, {"v": True}, True),
        ("number", {}, {"v": "4"}, 4),
        ("number", {}, {"v": "4.5"}, 4.5),
        ("number", {}, {"v": "  "}, None),
        ("checkbox", {}, {"v": "YES"}, True),
        ("checkbox", {}, {"v": 1}, True),
        ("checkbox", {}, {"v": "off"}, False),
        ("checkbox", {}, {"v": 0}, False),
        ("checkbox", {}, {"v": "maybe"}, "maybe"),
        ("file", {}, {"v": ""}, None),
        ("file-list", {}, {"v": ""}, None),
        ("file-list", {}, {"v": []}, []),
        ("json_object", {}, {"v": {"a": [1]}}, {"a": [1]}),
        ("json_object", {}, {"v": ""}, None),
        ("json_object", {"json_schema": SCHEMA}, {"v": {"n": "no integer"}}, {"n": "no integer"}),
    ],
)
def test_an_input_that_fits_reaches_the_run(
    world: tuple[Server, ScriptedExecutor], kind: str, rules: dict[str, Any], given: dict[str, Any], value: Any
) -> None:
    server, executor = world
    answer = server.start(app_with(server, kind, rules), {"inputs": given})
    assert answer.status_code == 200, answer.text
    assert executor.accepted[answer.json()["workflow_run_id"]].inputs == {"v": value}


@pytest.mark.parametrize(
    ("kind", "rules", "given", "said"),
    [
        ("text-input", {"required": True}, {}, "v is required"),
        ("text-input", {"required": True}, {"v": None}, "v is required"),
        ("text-input", {}, {"v": 5}, "text-input"),
        ("text-input", {}, {"v": {"a": 1}}, "must be a string"),
        ("text-input", {}, {"v": [{"a": 1}]}, "must be a string"),
        ("text-input", {"max_length": 3}, {"v": "four"}, "3 characters"),
        ("text-input", {"max_length": 3, "default": "four"}, {}, "3 characters"),
        ("paragraph", {}, {"v": 5}, "paragraph"),
        ("paragraph", {"max_length": 3}, {"v": "four"}, "3 characters"),
        ("select", options("s", "l"), {"v": "x"}, "one of the following: s, l"),
        ("select", options("s", "l"), {"v": ""}, "one of the following"),
        ("select", options("s", "l"), {"v": 1}, "must be a string"),
        ("number", {}, {"v": "1e3"}, "valid number"),
        ("number", {}, {"v": "four"}, "valid number"),
        ("number", {}, {"v": [1]}, "must be a number"),
        ("number", {}, {"v": {"a": 1}}, "must be a number"),
        ("checkbox", {}, {"v": {"a": 1}}, "true or false"),
        ("file", {"required": True}, {}, "v is required"),
        ("file", {}, {"v": "text"}, "must be a file"),
        ("file-list", {}, {"v": {"type": "image"}}, "list of files"),
        ("file-list", {}, {"v": ["text"]}, "list of files"),
        ("json_object", {}, {"v": [1]}, "must be an object"),
        ("json_object", {}, {"v": "text"}, "must be an object"),
        ("json_object", {"required": True}, {}, "v is required"),
    ],
)
def test_an_input_that_does_not_fit_is_invalid_param(
    world: tuple[Server, ScriptedExecutor], kind: str, rules: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    server, _ = world
    key = app_with(server, kind, rules)
    for mode in ("blocking", "streaming"):
        answer = server.start(key, {"inputs": given, "response_mode": mode})
        body = answer.json()
        assert (answer.status_code, body["code"], body["status"]) == (400, "invalid_param", 400)
        assert said in body["message"]
