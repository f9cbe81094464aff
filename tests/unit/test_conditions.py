"""Conditions: operators, expected values, files, and what is recorded."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.conditions import ConditionError, VariableMissing, evaluate, evaluate_cases, evaluate_legacy
from libs.workflow.pool import Pool
from tests.unit.test_segments import IMAGE


def condition(operator: str, value: Any = None, selector: str = "n.v", files: Any = None) -> Any:
    return SimpleNamespace(
        variable_selector=selector.split("."), comparison_operator=operator, value=value, sub_variable_condition=files
    )


def case(case_id: str, *conditions: Any, logical_operator: str = "and") -> Any:
    return SimpleNamespace(case_id=case_id, conditions=conditions, logical_operator=logical_operator)


def holding(value: JsonValue, kind: str | None = None) -> Pool:
    pool = Pool()
    pool.set("n", "v", value, kind)
    return pool


def holds(value: JsonValue, operator: str, expected: Any = None, kind: str | None = None) -> bool:
    return evaluate([condition(operator, expected)], "and", holding(value, kind)).holds


@pytest.mark.parametrize(
    ("actual", "operator", "expected", "result"),
    [
        ("hello", "contains", "ell", True),
        ("hello", "contains", "x", False),
        ("", "contains", "x", False),
        (None, "contains", "x", False),
        (["a", "b"], "contains", "a", True),
        ([1, 2], "contains", "1", False),
        ([True], "contains", "true", True),
        ("hello", "not contains", "x", True),
        (None, "not contains", "x", True),
        (["a"], "not contains", "a", False),
        ("hello", "start with", "he", True),
        ("hello", "end with", "lo", True),
        (None, "start with", "he", False),
        ("", "end with", "", False),
        ("a", "is", "a", True),
        ("", "is", "", True),
        (None, "is", "a", False),
        (None, "is not", "a", False),
        ("a", "is not", "b", True),
        (False, "is", "false", True),
        (True, "is", True, True),
        (True, "is not", "0", True),
        (None, "empty", "", True),
        (0, "empty", "", True),
        (False, "empty", "", True),
        ([], "not empty", "", False),
        ({"a": 1}, "not empty", "", True),
        ("a", "in", ["a", "b"], True),
        (None, "in", ["a"], False),
        ("", "in", "no list", False),
        ("c", "not in", ["a"], True),
        (None, "not in", "no list", True),
        (["a", "b"], "all of", ["a"], True),
        (["a", "b"], "all of", ["a", "c"], False),
        ("a and b", "all of", ["a", "b"], True),
        ([True, False], "all of", ["true", "false"], True),
        ([], "all of", ["a"], False),
        (5, "=", "5", True),
        (5, "≠", "6", True),
        (None, "=", "5", False),
        (None, "≠", "5", False),
        (1.5, "=", "1.50", True),
        (5.0, "=", "5", True),
        (True, "=", "1", True),
        (False, "≠", "true", True),
        (0, "≤", "0.95", True),
        (1, "≥", "0.95", True),
        (1.1, "≥", "0.95", True),
        (1.1, ">", "0", True),
        (9007199254740993, ">", "9007199254740992", True),
        (2, "<", "2.0", False),
        (None, ">", "0", False),
        (True, "≥", "1", True),
        (None, "null", "", True),
        ("a", "not null", "", True),
        ("a", "exists", None, True),
        (None, "exists", None, False),
        (None, "not exists", None, True),
    ],
)
def test_operators(actual: JsonValue, operator: str, expected: Any, result: bool) -> None:
    assert holds(actual, operator, expected) is result


@pytest.mark.parametrize(
    ("actual", "operator", "expected"),
    [
        (5, "contains", "5"),
        (5, "start with", "5"),
        (5, "is", "5"),
        ("a", "in", "a"),
        (["a"], "all of", "a"),
        (["a"], "all of", ["a", True]),
        ({"a": 1}, "all of", ["a"]),
        (5, "=", "5.0"),
        (5, "=", ""),
        ("5", "=", "5"),
        ("5", ">", "4"),
        (5, ">", "four"),
        (5, ">", None),
        (True, "is", "yes"),
        (True, "is", None),
        ("a", "like", "a"),
    ],
)
def test_a_condition_that_cannot_be_evaluated_is_an_error(actual: JsonValue, operator: str, expected: Any) -> None:
    with pytest.raises(ConditionError):
        holds(actual, operator, expected)


def test_the_expected_value_is_a_template() -> None:
    pool = holding("w")
    pool.set("m", "limit", "w")
    verdict = evaluate([condition("is", "{{#m.limit#}}")], "and", pool)
    assert verdict.holds
    assert verdict.compared == [{"actual_value": "w", "expected_value": "w", "comparison_operator": "is"}]


def test_a_missing_variable_is_an_error_for_existence_too() -> None:
    with pytest.raises(VariableMissing, match=r"^Variable \['n', 'x'\] not found$"):
        evaluate([condition("not exists", selector="n.x")], "and", Pool())


@pytest.mark.parametrize(("logical_operator", "result"), [("and", True), ("or", False)])
def test_no_condition_at_all(logical_operator: str, result: bool) -> None:
    assert evaluate([], logical_operator, Pool()).holds is result


@pytest.mark.parametrize(("logical_operator", "first"), [("and", "x"), ("or", "w")])
def test_evaluation_stops_at_the_condition_that_decides(logical_operator: str, first: str) -> None:
    missing = condition("is", "x", selector="no.such")
    verdict = evaluate([condition("is", first), missing], logical_operator, holding("w"))
    assert (verdict.holds, verdict.results) == (first == "w", [first == "w"])


def test_secrets_are_masked_in_the_record_and_compared_in_full() -> None:
    pool = holding("sk-1234567890", "secret")
    verdict = evaluate([condition("is", "{{#n.v#}}")], "and", pool)
    assert verdict.holds
    assert "sk-1234567890" not in str(verdict.compared)


def test_existence_leaves_no_record() -> None:
    assert evaluate([condition("exists"), condition("empty", "")], "or", holding("w")).compared == []


def files(*conditions: tuple[str, str, Any], logical_operator: str = "and") -> Any:
    subs = [SimpleNamespace(key=key, comparison_operator=operator, value=value) for key, operator, value in conditions]
    return SimpleNamespace(logical_operator=logical_operator, conditions=subs)


PDF: dict[str, JsonValue] = {**IMAGE, "type": "document", "filename": "a.pdf", "extension": ".pdf", "size": 90}


@pytest.mark.parametrize(
    ("sub", "result"),
    [
        (files(("type", "in", ["image"])), True),
        (files(("type", "not in", ["image"])), False),
        (files(("type", "not in", ["audio"])), True),
        (files(("extension", "is", "pdf")), True),
        (files(("name", "contains", "cat"), ("size", ">", "50")), True),
        (files(("name", "contains", "dog"), ("size", ">", "50")), False),
        (files(("name", "contains", "dog"), ("size", ">", "50"), logical_operator="or"), True),
    ],
)
@pytest.mark.parametrize("outer", ["contains", "not contains", "all of"])
def test_files_are_tested_by_attribute_any_of_them_or_all_for_a_negation(outer: str, sub: Any, result: bool) -> None:
    verdict = evaluate([condition(outer, files=sub)], "and", holding([IMAGE, PDF]))
    assert (verdict.holds, verdict.compared) == (result, [])


@pytest.mark.parametrize("sub", [None, files(("extension", "in", [".pdf"])), files(("weight", "is", "1"))])
def test_wrong_file_conditions_are_errors(sub: Any) -> None:
    with pytest.raises(ConditionError):
        evaluate([condition("contains", files=sub)], "and", holding([PDF]))


def test_the_first_case_that_holds_is_chosen_and_later_ones_are_not_looked_at() -> None:
    choice = evaluate_cases(
        [
            case("one", condition("is", "x")),
            case("two", condition("is", "w")),
            case("three", condition("is", "x", selector="no.such")),
        ],
        holding("w"),
    )
    assert choice.case_id == "two"
    assert [each["final_result"] for each in choice.condition_results] == [False, True]  # type: ignore[call-overload, index]
    assert choice.conditions == [{"actual_value": "w", "expected_value": "w", "comparison_operator": "is"}]


def test_an_error_carries_the_records_of_the_cases_before_it() -> None:
    with pytest.raises(VariableMissing) as caught:
        evaluate_cases([case("one", condition("is", "x")), case("two", condition("is", "x", "no.such"))], holding("w"))
    assert caught.value.choice is not None
    assert len(caught.value.choice.condition_results) == 1


def test_the_older_form_is_one_case_named_default() -> None:
    choice = evaluate_legacy([condition("is", "w")], "and", holding("w"))
    assert choice.case_id == "true"
    assert choice.condition_results == [{"group": "default", "results": [True], "final_result": True}]
    assert evaluate_legacy([condition("is", "x")], "and", holding("w")).case_id is None
