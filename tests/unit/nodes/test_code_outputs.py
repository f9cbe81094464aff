"""`code`: which results a node may return, and how they are normalised."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.configs.values import CodeOutput
from libs.workflow.pool import Pool
from services.executor.nodes.code import MAX_NUMBER, OutputInvalid, TooDeep, bound_values, checked_outputs
from tests.unit.nodes.compiled import compiled
from tests.unit.test_segments import IMAGE


def outputs(**types: Any) -> dict[str, CodeOutput]:
    declared = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in types.items()}
    return {name: CodeOutput.model_validate(kind) for name, kind in declared.items()}


def checked(value: JsonValue, kind: Any) -> JsonValue:
    return checked_outputs({"it": value}, outputs(it=kind))["it"]


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        ("string", "a\x00b", "ab"),
        ("string", None, None),
        ("string", "x" * 400_000, "x" * 400_000),
        ("number", 1, 1),
        ("number", 1.5, 1.5),
        ("number", True, 1),
        ("number", None, None),
        ("number", -MAX_NUMBER, -MAX_NUMBER),
        ("boolean", True, True),
        ("boolean", "anything", "anything"),
        ("object", None, None),
        ("object", {"a": [1, True, None], "b": {"c": "d\x00"}}, {"a": [1, 1, None], "b": {"c": "d"}}),
        ("object", {"a": [None, 1, "x"]}, {"a": [None, 1, "x"]}),
        ("object", {"a": [[1], None, [2, 3]]}, {"a": [[1], None, [2, 3]]}),
        ("array[number]", [1, 2.5, True], [1, 2.5, 1]),
        ("array[number]", [0] * 1000, [0] * 1000),
        ("array[string]", ["a", None], ["a", None]),
        ("array[object]", [{"a": 1}, None], [{"a": 1}, None]),
        ("array[boolean]", [True, None] * 600, [True, None] * 600),
        ("array[number]", None, None),
    ],
)
def test_a_value_of_the_declared_type_is_kept(kind: str, value: JsonValue, kept: JsonValue) -> None:
    assert checked(value, kind) == kept


def test_a_number_made_of_a_boolean_is_no_boolean() -> None:
    assert type(checked(True, "number")) is int


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("string", 1, "Output it must be a string, got int"),
        ("string", "x" * 400_001, "length of output it must be less than 400000 characters"),
        ("number", "1", "Output it must be a number"),
        ("number", MAX_NUMBER + 1, "Output it is out of range"),
        ("number", float("nan"), "Output it is out of range"),
        ("number", 1e-21, "Output it is too precise"),
        ("object", [1], "Output it must be an object, got list"),
        ("array[number]", [1, None], r"Output it\[1\] must be a number, got NoneType"),
        ("array[number]", [0] * 1001, "length of output it must be less than 1000 elements, got 1001"),
        ("array[string]", ["a", 1], r"Output it\[1\] must be a string"),
        ("array[string]", ["a"] * 31, "length of output it must be less than 30 elements"),
        ("array[object]", [{}, 1], r"Output it\[1\] must be an object"),
        ("array[object]", [{}] * 31, "length of output it must be less than 30 elements"),
        ("array[boolean]", [True, 1], r"Output it\[1\] must be a boolean"),
        ("array[string]", "a", "Output it must be an array, got str"),
        ("object", {"a": [1, "x"]}, r"Output it.a is not a list of one kind.*it.a\[1\] is a string"),
        ("object", {"a": {"b": MAX_NUMBER * 2}}, "Output it.a.b is out of range"),
    ],
)
def test_another_value_is_refused_by_its_path(kind: str, value: JsonValue, words: str) -> None:
    with pytest.raises(OutputInvalid, match=words) as caught:
        checked(value, kind)
    assert caught.value.error_type == "OutputValidationError"


ITEMS = {"type": "array[object]", "children": {"name": {"type": "string"}, "tags": {"type": "array[string]"}}}
RESULT = {"type": "object", "children": {"items": ITEMS}}


def item(**values: JsonValue) -> dict[str, JsonValue]:
    return {"name": "n", "tags": [], **values}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"items": [item(), item(), {"tags": []}]}, r"^Output result.items\[2\].name is missing.$"),
        ({"items": [item(tags=["a", 7])]}, r"^Output result.items\[0\].tags\[1\] must be a string"),
        ({"items": [item(tags={})]}, r"^Output result.items\[0\].tags must be an array"),
        ({"items": [item(), "x"]}, r"^Output result.items\[1\] must be an object"),
        ({"items": [item(more=1)]}, r"^Not all output parameters are validated.*result.items\[0\].more"),
        ({}, "^Output result.items is missing.$"),
    ],
)
def test_declared_members_are_checked_by_path(value: JsonValue, words: str) -> None:
    with pytest.raises(OutputInvalid, match=words):
        checked_outputs({"result": value}, outputs(result=RESULT))


def test_declared_members_are_kept() -> None:
    value: JsonValue = {"items": [item(), None, item(tags=["a"])]}
    assert checked_outputs({"result": value}, outputs(result=RESULT)) == {"result": value}


def test_what_is_declared_must_be_there_and_nothing_else() -> None:
    with pytest.raises(OutputInvalid, match=r"^Output b is missing\.$"):
        checked_outputs({"a": 1}, outputs(a="number", b="string"))
    with pytest.raises(OutputInvalid, match=r"^Not all output parameters are validated\. .*: c$"):
        checked_outputs({"a": 1, "c": 2}, outputs(a="number"))


def nested(levels: int) -> JsonValue:
    value: JsonValue = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def test_five_levels_are_the_most() -> None:
    assert checked(nested(4), "object") == nested(4)  # the result itself is the first level
    with pytest.raises(TooDeep, match=r"Output it\.a\.a\.a\.a is nested too deeply") as caught:
        checked(nested(5), "object")
    assert caught.value.error_type == "DepthLimitError"


def test_lists_count_as_levels_of_free_objects() -> None:
    with pytest.raises(TooDeep):
        checked({"a": [[[[[[]]]]]]}, "object")


def test_inputs_are_raw_values_and_records_hide_secrets() -> None:
    selectors = {"text": ["n", "t"], "none": ["n", "x"], "files": ["n", "f"], "file": ["n", "g"], "key": ["env", "k"]}
    node = compiled(
        "code",
        code="",
        code_language="python3",
        outputs={},
        variables=[{"variable": name, "value_selector": selector} for name, selector in selectors.items()],
    )
    pool = Pool()
    pool.set("n", "t", "text")
    pool.set("n", "f", [], "array[file]")
    pool.set("n", "g", IMAGE)
    pool.set("env", "k", "sk-0123456789", "secret")
    values, shown = bound_values(node.config.variables, pool)
    assert values == {"text": "text", "none": None, "files": None, "file": IMAGE, "key": "sk-0123456789"}
    assert shown == {**values, "key": "sk-012************89"}
