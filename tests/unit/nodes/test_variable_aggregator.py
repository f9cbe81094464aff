"""`variable-aggregator`: the first candidate that exists."""

from typing import Any

from libs.workflow.pool import Pool
from services.executor.nodes.variable_aggregator import VariableAggregatorHandler
from tests.unit.nodes.compiled import compiled, succeeded


def pool() -> Pool:
    pool = Pool()
    pool.set("a", "null", None)
    pool.set("b", "text", "b")
    pool.set("c", "files", [], "array[file]")
    pool.set("env", "key", "sk-1234567890", "secret")
    return pool


def ungrouped(*selectors: str) -> Any:
    node = compiled("variable-aggregator", output_type="string", variables=[each.split(".") for each in selectors])
    return succeeded(VariableAggregatorHandler().evaluate(node, pool()))


def test_the_first_existing_candidate_is_passed_on() -> None:
    outcome = ungrouped("x.missing", "b.text", "a.null")
    assert (outcome.outputs, outcome.inputs) == ({"output": "b"}, {"text": "b"})


def test_null_counts_as_existing() -> None:
    assert ungrouped("a.null", "b.text").outputs == {"output": None}


def test_nothing_found_is_still_a_success() -> None:
    assert ungrouped("x.missing").outputs == {}


def test_the_type_is_passed_on_and_a_secret_stays_one() -> None:
    assert ungrouped("c.files").output_types == {"output": "array[file]"}
    outcome = ungrouped("env.key")
    assert outcome.output_types == {"output": "secret"}
    assert "sk-1234567890" not in str(outcome.inputs)


def test_each_group_has_its_own_first_candidate() -> None:
    groups = [
        {"groupId": "1", "group_name": "g1", "output_type": "string", "variables": [["x", "y"], ["b", "text"]]},
        {"groupId": "2", "group_name": "g2", "output_type": "string", "variables": [["x", "y"]]},
        {"groupId": "3", "group_name": "g3", "output_type": "any", "variables": [["a", "null"]]},
    ]
    node = compiled(
        "variable-aggregator",
        output_type="any",
        variables=[["b", "text"]],
        advanced_settings={"group_enabled": True, "groups": groups},
    )
    outcome = succeeded(VariableAggregatorHandler().evaluate(node, pool()))
    assert outcome.outputs == {"g1": {"output": "b"}, "g3": {"output": None}}
    assert outcome.inputs == {"text": "b", "null": None}


def test_settings_that_are_switched_off_do_not_group() -> None:
    node = compiled(
        "variable-aggregator",
        output_type="any",
        variables=[["b", "text"]],
        advanced_settings={"group_enabled": False, "groups": []},
    )
    assert succeeded(VariableAggregatorHandler().evaluate(node, pool())).outputs == {"output": "b"}
