"""How a `parameter-extractor` asks, and what values it makes of an answer. The model is a script; no network."""

import asyncio
import json
from typing import Any

import pytest

from libs.workflow.outcome import Outcome
from services.executor.models import Delta, ModelError, Models
from services.executor.nodes.parameter_extractor import ParameterExtractorHandler
from tests.attempts import attempt_of
from tests.unit.nodes.compiled import failed, succeeded
from tests.unit.nodes.scripted_model import MODEL, ScriptedModel


def parameter(name: str, kind: str = "string", **rest: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "description": f"the {name}", "required": False, **rest}


CITY, COUNT = parameter("city", required=True), parameter("count", "number")


def extract(asked: Models, *parameters: dict[str, Any], values: dict[str, Any] | None = None, **data: Any) -> Outcome:
    complete = {"model": MODEL, "query": ["s", "q"], "parameters": list(parameters or (CITY, COUNT)), **data}
    secrets = {"key": "sk-1234567890"}
    attempt = attempt_of("parameter-extractor", complete, values or {"s.q": "2 to Rome"}, secrets=secrets)
    return asyncio.run(ParameterExtractorHandler(asked).run(attempt))


def outputs(said: dict[str, Any] | str, *parameters: dict[str, Any]) -> dict[str, Any]:
    """Without usage; what was said comes as arguments of the function."""
    text = said if isinstance(said, str) else json.dumps(said)
    found = succeeded(extract(ScriptedModel(Delta(arguments=text)), *parameters)).outputs
    return {name: value for name, value in found.items() if name != "__usage"}


def test_arguments_of_the_function_are_the_values() -> None:
    model = ScriptedModel(Delta(arguments='{"city": "Ro'), Delta(arguments='me", "count": 2}'))
    outcome = succeeded(extract(model))
    usage = outcome.outputs.pop("__usage")
    assert isinstance(usage, dict)
    assert usage["total_tokens"] == 4
    assert outcome.outputs == {"__is_success": 1, "__reason": None, "city": "Rome", "count": 2}
    function = model.asked[0].function
    assert function is not None
    assert function.parameters["required"] == ["city"]
    assert function.parameters["properties"]["count"] == {"type": "number", "description": "the count"}
    record = outcome.process_data or {}
    assert record["tool_call"] == {"name": function.name, "arguments": '{"city": "Rome", "count": 2}'}
    assert set(record) == {
        "model_mode", "prompts", "usage", "function", "tool_call", "llm_text", "model_provider", "model_name"
    }  # fmt: skip
    assert set(outcome.inputs or {}) == {"query", "files", "parameters", "instruction", "model_provider", "model_name"}


def test_a_model_that_does_not_call_may_answer_in_text() -> None:
    said = 'Of course [1]: ```json\n{"city": "Rome", "count": 2}\n```'
    assert succeeded(extract(ScriptedModel(Delta(said)))).outputs["city"] == "Rome"


def test_the_prompt_mode_asks_without_a_function_and_shows_the_schema() -> None:
    model = ScriptedModel(Delta('{"city": "Rome", "count": 2}'))
    outcome = succeeded(extract(model, reasoning_mode="prompt", instruction="in {{#s.q#}}"))
    assert outcome.outputs["count"] == 2
    assert model.asked[0].function is None
    (_, system), (_, user) = model.prompt
    assert '"required": ["city"]' in system
    assert "in 2 to Rome" in system
    assert user == "Text:\n2 to Rome"
    assert (outcome.process_data or {})["function"] is None


@pytest.mark.parametrize("said", ["I do not know", "", "{}", "[]", "{broken"])
def test_an_answer_without_an_object_gives_empty_values_and_a_reason(said: str) -> None:
    found = succeeded(extract(ScriptedModel(Delta(said)), CITY, COUNT, parameter("tags", "array[string]")))
    reason = found.outputs["__reason"]
    assert isinstance(reason, str)
    assert (found.outputs["__is_success"], found.outputs["city"], found.outputs["count"]) == (0, "", 0)
    assert found.outputs["tags"] == []
    assert found.output_types == {"tags": "array[string]"}


@pytest.mark.parametrize(
    ("kind", "given", "value", "fits"),
    [
        ("number", "5", 5, False),
        ("number", "2.5", 2.5, False),
        ("number", "1e3", 1000.0, False),
        ("number", "many", 0, False),
        ("number", "nan", 0, False),
        ("number", True, 1, True),
        ("boolean", 1, True, False),
        ("bool", True, True, True),
        ("boolean", "false", False, False),
        ("boolean", "perhaps", False, False),
        ("string", 5, "", False),
        ("string", None, "", False),
        ("array[number]", [1, "2", "x", 2.5], [1, 2, 2.5], False),
        ("array[string]", ["a", 1, "b"], ["a", "b"], False),
        ("array[object]", [{"a": 1}, 2], [{"a": 1}], False),
        ("array[boolean]", [True, False], [True, False], True),
        ("array[string]", "a", [], False),
    ],
)
def test_values_become_their_type_and_what_does_not_fit_is_told(kind: str, given: Any, value: Any, fits: bool) -> None:
    found = outputs({"it": given}, parameter("it", kind))
    assert found["it"] == value
    assert type(found["it"]) is type(value)
    assert (found["__is_success"] == 1, found["__reason"] is None) == (fits, fits)


def test_a_value_outside_of_its_options_is_told_and_kept() -> None:
    found = outputs({"size": "huge"}, parameter("size", "select", options=["small", "large"]))
    assert found["size"] == "huge"
    assert found["__reason"] == "size: the model gave a value that is not one of its options (small, large)"
    assert outputs({"size": "small"}, parameter("size", "select", options=["small", "large"]))["__is_success"] == 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"count": 1, "other": 2}, "city: is required, and the model did not give it"),
        ({"city": "Rome"}, "expected 2 parameters, the model gave 1"),
        ({"city": "Rome", "count": "x"}, "count: expected number, the model gave text"),
    ],
)
def test_what_is_wrong_with_an_answer_is_the_reason(said: dict[str, Any], reason: str) -> None:
    found = outputs(said)
    assert (found["__is_success"], found["__reason"]) == (0, reason)


def test_only_a_model_that_cannot_be_asked_fails_the_node() -> None:
    outcome = failed(extract(ScriptedModel(ModelError("InvokeRateLimitError", "openai: too fast"))))
    assert (outcome.error, outcome.error_type) == ("openai: too fast", "")
    assert outcome.outputs == {"__is_success": 0, "__reason": "openai: too fast"}


def test_a_node_without_a_model_says_where_to_choose_one() -> None:
    outcome = failed(extract(ScriptedModel(), model={**MODEL, "name": ""}))
    assert outcome.error_type == "WorkflowNodeError"
    assert "model.name" in outcome.error


def test_the_query_is_no_template_and_a_secret_is_in_no_record() -> None:
    model = ScriptedModel(Delta("{}"))
    outcome = extract(model, values={"s.q": "{{#env.key#}}"}, instruction="{{#env.key#}}")
    assert model.prompt[1] == ("user", "Text:\n{{#env.key#}}")
    assert "sk-1234567890" in model.prompt[0][1]
    assert "sk-1234567890" not in repr(outcome)


@pytest.mark.parametrize("mode", ["function_call", "prompt"])
def test_offline_every_parameter_has_a_value_of_its_type(mode: str) -> None:
    offline = Models({}, offline=True, offline_delay_s=0)
    parameters = (CITY, COUNT, parameter("ok", "boolean"), parameter("tags", "array[string]"),
                  parameter("size", "select", options=["small", "large"]))  # fmt: skip
    found = succeeded(extract(offline, *parameters, reasoning_mode=mode)).outputs
    del found["__usage"]
    assert found == {
        "__is_success": 1, "__reason": None, "city": "stub", "count": 1, "ok": True, "tags": ["stub"], "size": "small"
    }  # fmt: skip
