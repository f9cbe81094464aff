"""`assigner`, versions 1 and 2."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.pool import Pool
from services.executor.nodes.assigner import AssignerHandler
from tests.unit.nodes.compiled import compiled, failed, succeeded
from tests.unit.test_segments import IMAGE

STORED: dict[str, tuple[JsonValue, str]] = {
    "text": ("old", "string"),
    "number": (3, "number"),
    "large": (1e300, "number"),
    "flag": (False, "boolean"),
    "object": ({"a": 1}, "object"),
    "texts": (["a", "b"], "array[string]"),
    "numbers": ([], "array[number]"),
    "any": ([], "array[any]"),
    "files": ([], "array[file]"),
    "secret": ("sk-1234567890", "secret"),
    "file": (IMAGE, "file"),
}


def stored() -> Pool:
    pool = Pool()
    for name, (value, kind) in STORED.items():
        pool.set("c", name, value, kind)
    pool.set("n", "text", "new")
    pool.set("n", "null", None)
    pool.set("n", "list", ["x"])
    pool.set("n", "number", 0)
    pool.set("n", "file", IMAGE)
    return pool


def written(outcome: Outcome | None) -> dict[str, JsonValue]:
    return {update.selector[1]: update.value for update in succeeded(outcome).updates}


# --- version 1 -------------------------------------------------------------------------------------------------------


def one(target: str, mode: str, source: str = "n.text") -> Outcome:
    node = compiled(
        "assigner",
        assigned_variable_selector=target.split("."),
        write_mode=mode,
        input_variable_selector=source.split("."),
    )
    return AssignerHandler().evaluate(node, stored())


@pytest.mark.parametrize(
    ("target", "mode", "value", "shown", "kind"),
    [
        ("text", "over-write", "new", "new", "string"),
        ("number", "over-write", "new", "new", "string"),
        ("texts", "append", ["a", "b", "new"], "new", "array[string]"),
        ("texts", "clear", [], [], "array[string]"),
        ("number", "clear", 0, 0, "number"),
    ],
)
def test_version_1_writes_and_records_the_update(
    target: str, mode: str, value: JsonValue, shown: JsonValue, kind: str
) -> None:
    outcome = succeeded(one(f"c.{target}", mode))
    assert written(outcome) == {target: value}
    assert outcome.inputs == {"value": shown}
    assert outcome.outputs == {}
    updated = {"name": target, "selector": ["c", target], "value_type": kind, "new_value": value}
    assert outcome.process_data == {"__updated_variables": [updated]}


@pytest.mark.parametrize(
    ("target", "mode", "source", "words"),
    [
        ("c.none", "over-write", "n.text", "assigned variable c.none not found"),
        ("c.text", "over-write", "n.none", "input variable n.none not found"),
        ("c.text", "append", "n.text", "c.text: append needs an array"),
        ("c.secret", "clear", "n.text", "c.secret: a variable of type secret cannot be cleared"),
    ],
)
def test_version_1_fails_as_a_node_error(target: str, mode: str, source: str, words: str) -> None:
    outcome = failed(one(target, mode, source))
    assert outcome.error_type == "WorkflowNodeError"
    assert outcome.error.startswith(words)


# --- version 2 -------------------------------------------------------------------------------------------------------


def item(target: str, operation: str, value: Any = None, source: str | None = None) -> dict[str, Any]:
    return {
        "variable_selector": target.split("."),
        "operation": operation,
        "input_type": "variable" if source is not None else "constant",
        "value": source.split(".") if source else value,
    }


def many(*items: dict[str, Any]) -> Outcome:
    return AssignerHandler().evaluate(compiled("assigner", version="2", items=list(items)), stored())


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (item("c.text", "over-write", "x"), "x"),
        (item("c.text", "over-write", source="n.text"), "new"),
        (item("c.text", "set", "x"), "x"),
        (item("c.object", "set", '{"b": 2}'), {"b": 2}),
        (item("c.object", "set", {"b": 2}), {"b": 2}),
        (item("c.flag", "set", True), True),
        (item("c.number", "+=", 2), 5),
        (item("c.number", "+=", True), 4),
        (item("c.number", "-=", 0.5), 2.5),
        (item("c.number", "*=", 2), 6),
        (item("c.number", "/=", 2), 1.5),
        (item("c.number", "clear", source=""), 0),
        (item("c.texts", "clear", source=""), []),
        (item("c.texts", "append", source="n.text"), ["a", "b", "new"]),
        (item("c.any", "append", source="n.text"), ["new"]),
        (item("c.files", "append", source="n.file"), [IMAGE]),
        (item("c.texts", "extend", source="n.list"), ["a", "b", "x"]),
        (item("c.texts", "over-write", source="n.list"), ["x"]),
        (item("c.texts", "remove-first", source=""), ["b"]),
        (item("c.texts", "remove-last", source=""), ["a"]),
        (item("c.any", "remove-first", source=""), []),
        (item("n.text", "set", "any existing variable"), "any existing variable"),
    ],
)
def test_operations(change: dict[str, Any], value: JsonValue) -> None:
    assert written(many(change)) == {change["variable_selector"][1]: value}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (item("c.none", "set", "x"), "VariableNotFoundError"),
        (item("c.object.a", "set", "x"), "VariableNotFoundError"),
        (item("c.text", "over-write", source="n.none"), "VariableNotFoundError"),
        (item("c.text", "+=", 1), "OperationNotSupportedError"),
        (item("c.text", "append", source="n.text"), "OperationNotSupportedError"),
        (item("c.text", "clear", None), "InputTypeNotSupportedError"),
        (item("c.text", "set", source="n.text"), "InputTypeNotSupportedError"),
        (item("c.number", "+=", source="n.number"), "InputTypeNotSupportedError"),
        (item("c.texts", "over-write", ["x"]), "InputTypeNotSupportedError"),
        (item("c.number", "set", "4"), "InvalidInputValueError"),
        (item("c.number", "/=", 0), "InvalidInputValueError"),
        (item("c.number", "over-write", source="n.text"), "InvalidInputValueError"),
        (item("c.object", "set", "{"), "InvalidInputValueError"),
        (item("c.object", "set", "[1]"), "InvalidInputValueError"),
        (item("c.object", "set", '{"a": NaN}'), "InvalidInputValueError"),
        (item("c.object", "set", '{"a": 1e999}'), "InvalidInputValueError"),
        (item("c.large", "*=", 1e10), "InvalidDataError"),
        (item("c.numbers", "append", source="n.text"), "InvalidInputValueError"),
        (item("c.numbers", "extend", source="n.list"), "InvalidInputValueError"),
        (item("c.files", "over-write", source="n.list"), "InvalidInputValueError"),
        (item("c.secret", "over-write", source="n.text"), "InvalidInputValueError"),
        (item("c.file", "over-write", source="n.file"), "InvalidInputValueError"),
        (item("c.file", "clear", source=""), "InvalidDataError"),
    ],
)
def test_an_invalid_item_fails_and_nothing_is_written(change: dict[str, Any], kind: str) -> None:
    outcome = failed(many(item("c.text", "set", "x"), change))
    assert outcome.error.split(":")[0] == kind
    assert outcome.error_type == ""


def test_later_items_see_earlier_changes_and_each_variable_is_updated_once() -> None:
    outcome = succeeded(
        many(
            item("c.number", "+=", 1),
            item("c.text", "set", "x"),
            item("c.number", "*=", 10),
            item("c.texts", "append", source="c.text"),
        )
    )
    assert [(update.selector, update.value, update.value_type) for update in outcome.updates] == [
        (("c", "number"), 40, "integer"),
        (("c", "text"), "x", "string"),
        (("c", "texts"), ["a", "b", "x"], "array[string]"),
    ]
    process_data = outcome.process_data or {}
    assert {name: value for name, value in process_data.items() if not name.startswith("__")} == {
        "number": 40,
        "text": "x",
        "texts": ["a", "b", "x"],
    }


def test_a_source_that_is_null_skips_its_item() -> None:
    outcome = many(item("c.text", "over-write", source="n.null"))
    assert isinstance(outcome, Succeeded)
    assert (outcome.updates, outcome.process_data) == ((), {"__updated_variables": []})


def test_the_pool_itself_is_not_written() -> None:
    pool = stored()
    before = pool.dump()
    node = compiled("assigner", version="2", items=[item("c.texts", "append", source="n.text")])
    succeeded(AssignerHandler().evaluate(node, pool))
    assert pool.dump() == before
