"""`start`: outputs, and inputs with a schema."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.definition import Node, compile_document
from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.start import StartHandler
from tests.documents import document, edges, end, node
from tests.unit.nodes.compiled import failed, succeeded

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


def start_node(*variables: dict[str, Any]) -> Node:
    inputs = [{"label": each["variable"], "type": "paragraph", "required": False, **each} for each in variables]
    text = document([node("s", "start", variables=inputs), end(out="s.q")], edges("s > end"))
    return compile_document(text).nodes["s"]


def evaluated(variable: dict[str, Any], value: JsonValue) -> Outcome:
    pool = Pool()
    pool.set("s", "data", value)
    return StartHandler().evaluate(start_node({"variable": "data", "type": "json_object", **variable}), pool)


def test_outputs_are_own_variables_and_system_variables_under_dotted_names() -> None:
    pool = Pool()
    pool.set("s", "q", "hello")
    pool.set("sys", "user_id", "somebody")
    pool.set("sys", "files", [], "array[file]")
    pool.set("env", "key", "sk-1", "secret")
    outcome = succeeded(StartHandler().evaluate(start_node({"variable": "q"}), pool))
    assert outcome.outputs == {"q": "hello", "sys.user_id": "somebody", "sys.files": []}
    assert outcome.inputs == outcome.outputs
    assert outcome.output_types == {"sys.files": "array[file]"}


def test_a_secret_of_the_environment_is_in_no_part_of_the_outcome() -> None:
    pool = Pool()
    pool.set("env", "key", "sk-1234567890", "secret")
    assert "sk-1234567890" not in repr(StartHandler().evaluate(start_node({"variable": "q"}), pool))


@pytest.mark.parametrize("value", [None, {}, {"age": 7}])
def test_an_object_that_fits_its_schema_or_is_empty_passes(value: JsonValue) -> None:
    assert succeeded(evaluated({"json_schema": SCHEMA}, value)).outputs == {"data": value}


def test_an_object_that_violates_its_schema_fails_with_the_place_and_without_the_value() -> None:
    outcome = failed(evaluated({"json_schema": SCHEMA}, {"age": "private"}))
    assert outcome.error_type == "WorkflowNodeError"
    assert outcome.error.startswith("data.age: does not fit the JSON schema of this input (type)")
    assert "private" not in outcome.error


def test_a_schema_given_as_text_is_read() -> None:
    assert failed(evaluated({"json_schema": '{"required": ["age"]}'}, {"name": "x"})).error_type == "WorkflowNodeError"


def test_a_reference_to_somewhere_else_is_not_fetched() -> None:
    outcome = failed(evaluated({"json_schema": '{"$ref": "http://127.0.0.1:9/schema.json"}'}, {"name": "x"}))
    assert outcome.error.startswith("data: its JSON schema refers to http://127.0.0.1:9/schema.json")


def test_a_required_object_must_be_there() -> None:
    assert failed(evaluated({"required": True}, None)).error == "data: expected a JSON object, got nothing"


def test_anything_but_an_object_fails() -> None:
    assert failed(evaluated({}, "text")).error == "data: expected a JSON object, got str"
