"""`list-operator`: filter, extract, order, limit."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.list_operator import ListOperatorHandler
from tests.unit.nodes.compiled import compiled, failed, succeeded
from tests.unit.test_segments import IMAGE

PDF: dict[str, JsonValue] = {
    **IMAGE,
    "type": "document",
    "filename": "a.pdf",
    "extension": ".pdf",
    "size": 90,
    "mime_type": "application/pdf",
}


def operated(items: JsonValue, kind: str | None = None, **config: Any) -> Outcome:
    pool = Pool()
    pool.set("n", "list", items, kind)
    pool.set("n", "two", "2")
    pool.set("n", "letter", "b")
    settings = {
        "filter_by": {"enabled": False, "conditions": []},
        "extract_by": {"enabled": False, "serial": "1"},
        "order_by": {"enabled": False, "key": "", "value": "asc"},
        "limit": {"enabled": False, "size": 10},
        **config,
    }
    return ListOperatorHandler().evaluate(compiled("list-operator", variable=["n", "list"], **settings), pool)


def result(outcome: Outcome) -> JsonValue:
    return succeeded(outcome).outputs["result"]


def filtered(operator: str, value: Any, key: str = "") -> dict[str, Any]:
    return {
        "filter_by": {
            "enabled": True,
            "conditions": [{"key": key, "comparison_operator": operator, "value": value}],
        }
    }


def test_nothing_enabled_passes_the_list_on_with_its_ends() -> None:
    outcome = succeeded(operated(["a", "b", "c"]))
    assert outcome.outputs == {"result": ["a", "b", "c"], "first_record": "a", "last_record": "c"}
    assert outcome.inputs == outcome.process_data == {"variable": ["a", "b", "c"]}
    assert outcome.output_types == {"result": "array[string]"}


@pytest.mark.parametrize(
    ("operator", "value", "kept"),
    [
        ("contains", "b", ["ab", "b"]),
        ("not contains", "b", ["", "a"]),
        ("start with", "a", ["ab", "a"]),
        ("end with", "{{#n.letter#}}", ["ab", "b"]),
        ("is", "a", ["a"]),
        ("is not", "a", ["", "ab", "b"]),
        ("in", "xaby", ["", "ab", "b", "a"]),
        ("not in", "xby", ["ab", "a"]),
        ("empty", "", [""]),
        ("not empty", "", ["ab", "b", "a"]),
    ],
)
def test_texts_are_filtered(operator: str, value: str, kept: list[JsonValue]) -> None:
    assert result(operated(["", "ab", "b", "a"], **filtered(operator, value))) == kept


@pytest.mark.parametrize(
    ("operator", "kept"), [("=", [2]), ("≠", [1, 3.5]), ("<", [1]), ("≤", [1, 2]), (">", [3.5]), ("≥", [2, 3.5])]
)
def test_numbers_are_filtered(operator: str, kept: list[JsonValue]) -> None:
    assert result(operated([1, 2, 3.5], **filtered(operator, "{{#n.two#}}"))) == kept


@pytest.mark.parametrize(("operator", "kept"), [("is", [True]), ("is not", [False, False])])
def test_booleans_are_filtered(operator: str, kept: list[JsonValue]) -> None:
    assert result(operated([False, True, False], **filtered(operator, True))) == kept


@pytest.mark.parametrize(
    ("key", "operator", "value", "kept"),
    [
        ("name", "contains", "cat", [IMAGE]),
        ("extension", "is", ".pdf", [PDF]),
        ("extension", "is", "pdf", []),
        ("type", "in", ["document", "audio"], [PDF]),
        ("type", "not in", ["document"], [IMAGE]),
        ("size", ">", "10", [PDF]),
    ],
)
def test_files_are_filtered_by_attribute(key: str, operator: str, value: Any, kept: list[JsonValue]) -> None:
    assert result(operated([IMAGE, PDF], **filtered(operator, value, key))) == kept


def test_all_conditions_of_a_filter_are_required() -> None:
    conditions = [{"key": "", "comparison_operator": "contains", "value": letter} for letter in "ab"]
    assert result(operated(["a", "ab"], filter_by={"enabled": True, "conditions": conditions})) == ["ab"]


@pytest.mark.parametrize(
    ("items", "config", "kind"),
    [
        (["a"], filtered("=", "1"), ""),
        (["a"], filtered("is", ["a"]), ""),
        ([1], filtered("contains", "1"), ""),
        ([IMAGE], filtered("is", "x", "weight"), ""),
        ([IMAGE], filtered("in", "image", "type"), ""),
        ([IMAGE], filtered("is", ["image"], "type"), ""),
        (["a"], {"extract_by": {"enabled": True, "serial": "2"}}, ""),
        ([IMAGE], {"order_by": {"enabled": True, "key": "weight", "value": "asc"}}, ""),
        ([{"a": 1}], {}, ""),
        (["a", 1], {}, ""),
        ("text", {}, ""),
        ([1], filtered("=", "one"), "WorkflowNodeError"),
        ([True], filtered("is", "true"), "WorkflowNodeError"),
        (["a"], {"extract_by": {"enabled": True, "serial": "0"}}, "WorkflowNodeError"),
        (["a"], {"extract_by": {"enabled": True, "serial": "one"}}, "WorkflowNodeError"),
    ],
)
def test_settings_that_do_not_suit_the_list_fail(items: JsonValue, config: dict[str, Any], kind: str) -> None:
    assert failed(operated(items, **config)).error_type == kind


def test_a_missing_list_fails() -> None:
    node = compiled("list-operator", variable=["n", "none"])
    assert failed(ListOperatorHandler().evaluate(node, Pool())).error == "Variable ['n', 'none'] not found"


@pytest.mark.parametrize(("items", "kind"), [([], "array[object]"), (None, None)])
def test_an_empty_list_or_null_gives_an_empty_result(items: JsonValue, kind: str | None) -> None:
    outcome = succeeded(operated(items, kind, extract_by={"enabled": True, "serial": "9"}))
    assert outcome.outputs == {"result": [], "first_record": None, "last_record": None}


def test_an_element_is_extracted_by_its_number_from_1() -> None:
    assert result(operated(["a", "b"], extract_by={"enabled": True, "serial": "{{#n.two#}}"})) == ["b"]


@pytest.mark.parametrize(
    ("items", "order", "ordered"),
    [
        ([3, 1, 2.5], {"value": "asc"}, [1, 2.5, 3]),
        (["b", "a"], {"value": "desc"}, ["b", "a"]),
        ([PDF, IMAGE], {"key": "size", "value": "asc"}, [IMAGE, PDF]),
        ([PDF, IMAGE], {"key": "name", "value": "desc"}, [IMAGE, PDF]),
    ],
)
def test_order(items: list[JsonValue], order: dict[str, str], ordered: list[JsonValue]) -> None:
    assert result(operated(items, order_by={"enabled": True, "key": "", **order})) == ordered


@pytest.mark.parametrize(("size", "kept"), [(2, ["a", "b"]), (0, []), (-1, ["a", "b"]), (9, ["a", "b", "c"])])
def test_limit_cuts_from_the_front_and_negative_ones_from_the_end(size: int, kept: list[JsonValue]) -> None:
    assert result(operated(["a", "b", "c"], limit={"enabled": True, "size": size})) == kept


def test_the_steps_apply_in_order_filter_extract_order_limit() -> None:
    config: dict[str, Any] = {
        **filtered("contains", "b"),
        "order_by": {"enabled": True, "key": "", "value": "desc"},
        "limit": {"enabled": True, "size": 1},
    }
    assert result(operated(["b1", "a", "b2"], **config)) == ["b2"]
    assert result(operated(["b1", "a", "b2"], **config, extract_by={"enabled": True, "serial": "1"})) == ["b1"]


@pytest.mark.parametrize("empty", ["", 0, False, {}, None])
def test_whatever_is_empty_is_an_empty_list(empty: JsonValue) -> None:
    outcome = succeeded(operated(empty, **filtered("contains", "a")))
    assert outcome.outputs == {"result": [], "first_record": None, "last_record": None}
    assert outcome.output_types == {"result": "array[any]"}
