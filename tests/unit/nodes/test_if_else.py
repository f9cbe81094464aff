"""`if-else`: which branch, and what is recorded."""

from typing import Any

from libs.workflow.pool import Pool
from services.executor.nodes.if_else import IfElseHandler
from tests.unit.nodes.compiled import compiled, failed, succeeded


def case(case_id: str, value: str, selector: str = "start.q") -> dict[str, Any]:
    condition = {
        "id": "c",
        "varType": "string",
        "variable_selector": selector.split("."),
        "comparison_operator": "is",
        "value": value,
    }
    return {"id": case_id, "case_id": case_id, "logical_operator": "and", "conditions": [condition]}


def asked(q: str = "yes") -> Pool:
    pool = Pool()
    pool.set("start", "q", q)
    return pool


def test_the_first_case_that_holds_selects_its_branch() -> None:
    node = compiled("if-else", cases=[case("a", "no"), case("b", "yes"), case("c", "x", "start.missing")])
    outcome = succeeded(IfElseHandler().evaluate(node, asked()))
    assert outcome.handle == "b"
    assert outcome.outputs == {"result": True, "selected_case_id": "b"}
    assert outcome.inputs == {
        "conditions": [{"actual_value": "yes", "expected_value": "yes", "comparison_operator": "is"}]
    }
    results = (outcome.process_data or {})["condition_results"]
    assert isinstance(results, list)
    assert [(each["results"], each["group"]["case_id"]) for each in results] == [([False], "a"), ([True], "b")]  # type: ignore[call-overload, index]


def test_no_case_that_holds_is_the_else_branch() -> None:
    outcome = succeeded(IfElseHandler().evaluate(compiled("if-else", cases=[case("a", "no")]), asked()))
    assert (outcome.handle, outcome.outputs) == ("false", {"result": False, "selected_case_id": "false"})


def test_the_older_form_selects_true_or_false() -> None:
    node = compiled("if-else", conditions=case("a", "yes")["conditions"], logical_operator="or")
    assert [succeeded(IfElseHandler().evaluate(node, asked(q))).handle for q in ("yes", "no")] == ["true", "false"]


def test_an_empty_list_of_cases_does_not_fall_back_to_the_older_form() -> None:
    node = compiled("if-else", cases=[], conditions=case("a", "yes")["conditions"])
    outcome = succeeded(IfElseHandler().evaluate(node, asked()))
    assert (outcome.handle, outcome.inputs) == ("false", {"conditions": []})


def test_a_missing_variable_fails_without_a_class_name_and_keeps_the_records_before_it() -> None:
    node = compiled("if-else", cases=[case("a", "no"), case("b", "x", "start.missing")])
    outcome = failed(IfElseHandler().evaluate(node, asked()))
    assert (outcome.error, outcome.error_type) == ("Variable ['start', 'missing'] not found", "")
    assert len((outcome.process_data or {})["condition_results"]) == 1  # type: ignore[arg-type]  # a list
