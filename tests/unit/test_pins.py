"""Pins: which node is answered, and with what."""

from typing import Any

import pytest

from libs.workflow.definition import Definition, Node
from libs.workflow.outcome import Failed, Succeeded
from libs.workflow.pins import PinsInvalid, answer, check_pins, parse_pins
from tests.unit.test_definition import START, compiled, node

LLM: dict[str, Any] = {"model": {}, "prompt_template": []}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["x", "y"]},
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "object", "properties": {"t": {"type": "string"}}}},
    },
}


def one(node_type: str, **data: Any) -> Node:
    return compiled([START, node("n", node_type, **data)]).nodes["n"]


def outputs(pins: Any, target: Node, *, index: int | None = None, attempt: int = 1) -> dict[str, Any]:
    pin = parse_pins(pins).for_node(target)
    assert pin is not None
    outcome = answer(pin, target, index, {"q": "hello"}, attempt)
    assert isinstance(outcome, Succeeded), outcome
    return outcome.outputs


def failure(pins: Any, target: Node) -> str:
    pin = parse_pins(pins).for_node(target)
    assert pin is not None
    outcome = answer(pin, target, None, {}, 1)
    assert isinstance(outcome, Failed), outcome
    return outcome.error


def problems(pins: Any) -> dict[str, str]:
    with pytest.raises(PinsInvalid) as caught:
        parse_pins(pins)
    return {problem.at: f"{problem.problem}. {problem.hint}" for problem in caught.value.problems}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_file_with_the_key_pins_is_read() -> None:
    pins = parse_pins("inputs: {a: 1}\npins:\n  types: {llm: {}}\n  nodes: {'17': {outputs: {text: a}}}\nends: x\n")
    assert set(pins.nodes) == {"17"}
    assert set(pins.types) == {"llm"}


@pytest.mark.parametrize("nothing", [None, "", {}, {"pins": None}, {"types": None, "nodes": {}}])
def test_no_pins_are_fine(nothing: Any) -> None:
    assert parse_pins(nothing).for_node(one("llm", **LLM)) is None


def test_numeric_node_ids_without_quotes_are_text() -> None:
    assert set(parse_pins("nodes: {17163: {outputs: {text: a}}}").nodes) == {"17163"}
    assert set(parse_pins({"nodes": {17163: None}}).nodes) == {"17163"}


def test_mistakes_are_reported_at_once_with_suggestions() -> None:
    found = problems(
        {
            "nodes": {"a": {"output": {}}, "b": {"times": 2}, "c": {"delay_s": -1}, "d": 5, "e": {"outputs": []}},
            "types": {"llmm": {}, "tool": {"outputs": {"text": ["{{ indx }}", "{{ broken"]}}},
        }
    )
    assert 'Did you mean "outputs"?' in found["pins.nodes.a.output"]
    assert "needs fail" in found["pins.nodes.b.times"]
    assert "seconds" in found["pins.nodes.c.delay_s"]
    assert "expected a mapping" in found["pins.nodes.d"]
    assert "expected a mapping" in found["pins.nodes.e.outputs"]
    assert 'Did you mean "llm"?' in found["pins.types.llmm"]
    assert 'Did you mean "index"?' in found["pins.types.tool.outputs.text[0]"]
    assert "broken template" in found["pins.types.tool.outputs.text[1]"]


def test_broken_yaml_names_its_place() -> None:
    assert "broken YAML" in problems("nodes:\n  a: b: c")["line 2, column 7"]


# --- which pin -------------------------------------------------------------------------------------------------------


def test_the_pin_of_a_node_wins_over_the_pin_of_its_type() -> None:
    target = one("llm", **LLM)
    pins = {"nodes": {"n": {"outputs": {"text": "mine"}}}, "types": {"llm": {"outputs": {"text": "all"}}}}
    assert outputs(pins, target) == {"text": "mine"}
    assert outputs({"types": pins["types"]}, target)["text"] == "all"


def test_templates_know_node_title_round_and_inputs() -> None:
    text = "{{ node_id }} {{ title }} {{ index }} {{ inputs.q }}"
    pins = {"types": {"llm": {"outputs": {"text": text}}}}
    assert outputs(pins, one("llm", **LLM), index=2)["text"] == "n n 2 hello"


def test_braces_of_json_and_placeholders_are_no_templates() -> None:
    texts = ['{"a": {"b": 1}}', "{{#sys.query#}}", "{# not a comment"]
    for text in texts:
        assert outputs({"nodes": {"n": {"outputs": {"text": text}}}}, one("llm", **LLM)) == {"text": text}


def test_templates_reach_nothing_but_their_values() -> None:
    text = "{{ inputs.__class__.__mro__ }}"
    assert "template failed" in failure({"nodes": {"n": {"outputs": {"text": text}}}}, one("llm", **LLM))


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_pinned_failure_lasts_for_its_attempts_then_the_outputs_answer() -> None:
    target = one("llm", **LLM)
    pin = parse_pins({"nodes": {"n": {"fail": "503", "times": 2, "outputs": {"text": "ok"}}}}).nodes["n"]
    answers = [answer(pin, target, None, {}, attempt) for attempt in (1, 2, 3)]
    assert [isinstance(each, Failed) and each.error for each in answers] == ["503", "503", False]


def test_after_the_failures_the_node_runs_when_nothing_else_is_pinned() -> None:
    pin = parse_pins({"nodes": {"n": {"fail": "503", "times": 1}}}).nodes["n"]
    assert (pin.answers(1), pin.answers(2)) == (True, False)
    assert answer(pin, one("llm", **LLM), None, {}, 2) is None


def test_a_failure_without_times_is_for_ever() -> None:
    pin = parse_pins({"nodes": {"n": {"fail": "503", "delay_s": 2}}}).nodes["n"]
    assert isinstance(answer(pin, one("llm", **LLM), None, {}, 99), Failed)
    assert pin.delay_s == 2


# --- what an empty pin answers ---------------------------------------------------------------------------------------


def test_an_empty_pin_of_an_llm() -> None:
    made = outputs({"types": {"llm": {}}}, one("llm", **LLM))
    assert made["text"] == "stub n"
    assert made["usage"]["total_tokens"] == 0
    assert "structured_output" not in made


def test_an_empty_pin_of_an_llm_with_structured_output() -> None:
    target = one("llm", **LLM, structured_output={"schema": SCHEMA}, structured_output_enabled=True)
    assert outputs({"types": {"llm": {}}}, target)["structured_output"] == {
        "kind": "x",
        "name": "stub",
        "count": 1,
        "ok": True,
        "tags": [{"t": "stub"}],
    }


def test_an_empty_pin_of_a_parameter_extractor() -> None:
    parameters = [
        {"name": "s", "type": "string"},
        {"name": "n", "type": "number"},
        {"name": "b", "type": "bool"},
        {"name": "l", "type": "array[object]"},
        {"name": "o", "type": "select", "options": ["first", "second"]},
    ]
    target = one("parameter-extractor", model={}, query=["sys", "query"], parameters=parameters)
    assert outputs({"types": {"parameter-extractor": None}}, target) == {
        "s": "stub",
        "n": 1,
        "b": True,
        "l": [{}],
        "o": "first",
        "__is_success": 1,
        "__reason": None,
    }


def test_an_empty_pin_of_a_code_node_has_its_declared_outputs() -> None:
    declared = {
        "s": {"type": "string", "children": None},
        "o": {"type": "object", "children": {"n": {"type": "number"}}},
        "l": {"type": "array[number]"},
    }
    target = one("code", code="", code_language="python3", outputs=declared)
    assert outputs({"types": {"code": {}}}, target) == {"s": "stub", "o": {"n": 1}, "l": [1]}


@pytest.mark.parametrize(
    ("node_type", "data", "expected"),
    [
        ("tool", {"tool_name": "t"}, {"text": "stub", "files": [], "json": [{}]}),
        (
            "tool",
            {"tool_name": "t", "output_schema": {"type": "object", "properties": {"extra": {"type": "number"}}}},
            {"text": "stub", "files": [], "json": [{}], "extra": 1},
        ),
        ("http-request", {"url": "http://x"}, {"status_code": 200, "body": "{}", "headers": {}, "files": []}),
        ("document-extractor", {"variable_selector": ["a", "b"], "is_array_file": True}, {"text": ["stub"]}),
        ("document-extractor", {"variable_selector": ["a", "b"]}, {"text": "stub"}),
    ],
)
def test_empty_pins_of_other_types(node_type: str, data: dict[str, Any], expected: dict[str, Any]) -> None:
    assert outputs({"types": {node_type: {}}}, one(node_type, **data)) == expected


def test_an_empty_pin_of_a_retrieval_has_one_result() -> None:
    (result,) = outputs({"types": {"knowledge-retrieval": {}}}, one("knowledge-retrieval"))["result"]
    assert {"content", "title", "url", "icon", "metadata", "files"} <= result.keys()


def test_empty_files_keep_their_type() -> None:
    target = one("tool", tool_name="t")
    pin = parse_pins({"types": {"tool": {}}}).types["tool"]
    outcome = answer(pin, target, None, {}, 1)
    assert isinstance(outcome, Succeeded)
    assert outcome.output_types == {"files": "array[file]"}


def test_a_type_without_a_stand_in_needs_outputs() -> None:
    assert "needs outputs" in failure({"types": {"variable-aggregator": {}}}, one("variable-aggregator"))


# --- branches --------------------------------------------------------------------------------------------------------


def classifier() -> Node:
    classes = [{"id": "1", "name": "one"}, {"id": "two", "name": "two", "label": "Two"}]
    return one("question-classifier", model={}, query_variable_selector=["sys", "query"], classes=classes)


@pytest.mark.parametrize(
    ("pin", "handle"),
    [
        ({}, "1"),
        ({"branch": "first"}, "1"),
        ({"branch": "two"}, "two"),
        ({"branch": 1}, "1"),
        ({"outputs": {"class_id": "two"}}, "two"),
    ],
)
def test_a_pinned_classifier_takes_the_branch(pin: dict[str, Any], handle: str) -> None:
    found = parse_pins({"types": {"question-classifier": pin}}).types["question-classifier"]
    outcome = answer(found, classifier(), None, {}, 1)
    assert isinstance(outcome, Succeeded)
    assert (outcome.handle, outcome.outputs["class_id"]) == (handle, handle)


def test_a_pinned_if_else_takes_the_case() -> None:
    target = one("if-else", cases=[{"case_id": "true", "conditions": []}, {"case_id": "c2", "conditions": []}])
    pin = parse_pins({"nodes": {"n": {"branch": "c2", "outputs": {}}}}).nodes["n"]
    outcome = answer(pin, target, None, {}, 1)
    assert isinstance(outcome, Succeeded)
    assert outcome.handle == "c2"


def test_an_unknown_branch_is_refused_with_the_known_ones() -> None:
    assert "Its branches: 1, two" in failure({"nodes": {"n": {"branch": "zzz"}}}, classifier())
    assert "has no branches" in failure({"nodes": {"n": {"branch": "x"}}}, one("tool", tool_name="t"))


# --- what does not fit -----------------------------------------------------------------------------------------------


def code() -> dict[str, Any]:
    declared = {"result": {"type": "array[number]"}, "text": {"type": "string"}}
    return {"code": "", "code_language": "python3", "outputs": declared}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"result": [1]}, 'the output "text"'),
        ({"result": [1], "text": "a", "txet": "b"}, 'Did you mean "text"?'),
        ({"result": "x", "text": "a"}, "declares array[number], the pin gives text"),
        ({"result": ["x"], "text": "a"}, "result[0]"),
        ({"result": [], "text": True}, "declares text, the pin gives a boolean"),
    ],
)
def test_outputs_that_a_code_node_does_not_declare_are_refused(given: dict[str, Any], words: str) -> None:
    assert words in failure({"nodes": {"n": {"outputs": given}}}, one("code", **code()))


def test_outputs_of_a_wrong_type_are_refused() -> None:
    assert "pins.nodes.n.outputs.text" in failure({"nodes": {"n": {"outputs": {"text": 5}}}}, one("llm", **LLM))


def document() -> Definition:
    return compiled([START, node("summary", "llm", **LLM), node("code", "code", **code())], [("start", "summary")])


def test_pins_are_checked_against_a_definition_before_a_run() -> None:
    pins = parse_pins({"nodes": {"sumary": {}, "code": {"outputs": {}}}, "types": {"tool": {}, "llm": {}}})
    found = {problem.at: problem for problem in check_pins(pins, document())}
    assert found["pins.nodes.sumary"].hint == 'Did you mean "summary"?'
    assert found["pins.nodes.code.outputs"].severity == "error"
    assert found["pins.types.tool"].severity == "warning"
    assert len(found) == 3


def test_pins_that_fit_have_no_problem() -> None:
    assert (
        check_pins(parse_pins({"nodes": {"summary": {"fail": "x", "times": 2}}, "types": {"code": {}}}), document())
        == ()
    )


@pytest.mark.parametrize(
    ("pin", "branch", "value"),
    [({}, "ok", "Fine"), ({"branch": "no"}, "no", "No"), ({"branch": "__timeout"}, "__timeout", "")],
)
def test_a_pin_answers_in_the_place_of_a_person(pin: dict[str, Any], branch: str, value: str) -> None:
    asks = one("human-input", user_actions=[{"id": "ok", "title": "Fine"}, {"id": "no", "title": "No"}])
    given = parse_pins({"types": {"human-input": pin}}).for_node(asks)
    assert given is not None
    outcome = answer(given, asks, None, {}, 1)
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.handle == branch
    assert outcome.outputs == {"__action_id": branch, "__action_value": value, "__rendered_content": ""}
