"""Iteration and loop in the run machine."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.events.model import NodeFailed, NodeSucceeded, RoundStarted, VariableUpdate
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key, dump_state, load_state, rounds_of
from tests.documents import code, document, edges, end, if_else, node, start
from tests.driver import Answer, Driver


def iteration(name: str = "each", **data: Any) -> dict[str, Any]:
    return node(
        name,
        "iteration",
        **{
            "start_node_id": f"{name}start",
            "iterator_selector": ["start", "items"],
            "output_selector": ["work", "result"],
            "is_parallel": False,
            "parallel_nums": 10,
            "error_handle_mode": "terminated",
            "flatten_output": True,
            **data,
        },
    )


def _document(
    *, body: list[dict[str, Any]] | None = None, inner: tuple[str, ...] = ("eachstart > work",), **data: Any
) -> str:
    nodes = [
        start("items"),
        iteration(**data),
        node("eachstart", "iteration-start", iteration_id="each"),
        *(body or [code("work", iteration_id="each")]),
        end(out="each.output"),
    ]
    return document(nodes, edges("start > each > end", *inner))


def _run(text: str, items: JsonValue, answer: Answer, choose: Any = lambda keys: keys[0]) -> Driver:
    driver = Driver(text)
    driver.state.pool.set("start", "items", items)
    driver.run(answer, choose)
    return driver


def _doubled(key: Key, attempt: int) -> Outcome:
    return Succeeded(outputs={"result": f"item {rounds_of(key.path)[-1].index}"})


def _broken(*indexes: int) -> Answer:
    def answer(key: Key, attempt: int) -> Outcome:
        index = rounds_of(key.path)[-1].index
        return Failed(f"item {index} broke") if index in indexes else Succeeded(outputs={"result": index})

    return answer


def test_a_sequential_iteration_runs_item_after_item() -> None:
    driver = _run(_document(), ["a", "b"], _doubled)
    assert driver.state.outputs == {"out": ["item 0", "item 1"]}
    words = [word for word in driver.names() if "each" in word or "work" in word]
    assert words == [
        "NodeStarted(each)",
        "RoundStarted(each)",
        "NodeStarted(work)",
        "NodeSucceeded(work)",
        "RoundFinished(each)",
        "RoundStarted(each)",
        "NodeStarted(work)",
        "NodeSucceeded(work)",
        "RoundFinished(each)",
        "NodeSucceeded(each)",
    ]


def test_a_parallel_iteration_keeps_its_window_and_the_order_of_its_results() -> None:
    text = _document(is_parallel=True, parallel_nums=2)
    seen: list[int] = []

    def last(keys: list[Key]) -> Key:
        seen.append(len(keys))
        return keys[-1]

    driver = _run(text, ["a", "b", "c", "d"], _doubled, last)
    assert driver.state.outputs == {"out": [f"item {index}" for index in range(4)]}
    assert max(seen) == 2
    started = [event.index for event in driver.events if isinstance(event, RoundStarted)]
    assert started == [0, 1, 2, 3]


def test_an_empty_list_gives_an_empty_list() -> None:
    assert _run(_document(), [], _doubled).state.outputs == {"out": []}


def test_a_value_that_is_no_list_fails_the_node() -> None:
    driver = _run(_document(), "text", _doubled)
    assert driver.state.status == "failed"
    assert driver.state.error == "iterator variable start.items must be a list, it is a string"


def test_a_failing_item_terminates_the_iteration() -> None:
    driver = _run(_document(), ["a", "b", "c"], _broken(1))
    assert (driver.state.status, driver.state.error) == ("failed", "item 1 broke")
    assert len([event for event in driver.events if isinstance(event, RoundStarted)]) == 2
    assert [event.node_id for event in driver.events if isinstance(event, NodeFailed)] == ["work", "each"]


def test_a_failing_item_is_null_when_the_iteration_continues() -> None:
    driver = _run(_document(error_handle_mode="continue-on-error"), ["a", "b", "c"], _broken(1))
    assert driver.state.outputs == {"out": [0, None, 2]}
    assert (driver.state.status, driver.state.exceptions_count) == ("partial-succeeded", 1)


def test_a_failing_item_is_left_out_when_abnormal_output_is_removed() -> None:
    driver = _run(_document(error_handle_mode="remove-abnormal-output"), ["a", "b", "c"], _broken(1))
    assert driver.state.outputs == {"out": [0, 2]}


def test_lists_are_flattened_one_level_unless_told_otherwise() -> None:
    def pair(key: Key, attempt: int) -> Outcome:
        index = rounds_of(key.path)[-1].index
        return Succeeded(outputs={"result": [index, [index]]})

    assert _run(_document(), ["a", "b"], pair).state.outputs == {"out": [0, [0], 1, [1]]}
    assert _run(_document(flatten_output=False), ["a", "b"], pair).state.outputs == {"out": [[0, [0]], [1, [1]]]}


def test_an_item_with_branches_waits_for_all_of_them() -> None:
    body = [code("work", iteration_id="each"), code("other", iteration_id="each")]
    text = _document(body=body, inner=("eachstart > work", "eachstart > other"))
    driver = _run(text, ["a"], _doubled, lambda keys: keys[0])
    names = driver.names()
    assert names.index("RoundFinished(each)") > names.index("NodeSucceeded(other)")


def test_branches_of_an_item_run_to_their_ends_although_another_one_failed() -> None:
    # The branch node fails at once, while the others are only ready: whether they run must not depend on that.
    body = [
        if_else("choice", "nobody.value", "is", "yes"),
        code("work", iteration_id="each"),
        code("after", iteration_id="each"),
    ]
    body[0]["data"]["iteration_id"] = "each"
    text = _document(
        body=body,
        inner=("eachstart > choice", "eachstart > work > after"),
        error_handle_mode="continue-on-error",
    )
    driver = _run(text, ["a"], _doubled)
    assert [word for word in driver.names() if "(choice)" in word or "(work)" in word or "(after)" in word] == [
        "NodeStarted(choice)",
        "NodeFailed(choice)",
        "NodeStarted(work)",
        "NodeSucceeded(work)",
        "NodeStarted(after)",
        "NodeSucceeded(after)",
    ]
    assert driver.state.outputs == {"out": [None]}


def test_finished_rounds_leave_nothing_but_their_results() -> None:
    driver = _run(_document(), list(range(50)), _doubled)
    assert list(driver.state.frames) == [""]
    assert {key.node_id for key in driver.state.executions} == {"start", "each", "end"}


def test_a_snapshot_inside_parallel_rounds_goes_on() -> None:
    driver = Driver(_document(is_parallel=True, parallel_nums=3))
    driver.state.pool.set("start", "items", ["a", "b", "c", "d"])
    driver.begin()
    running = driver.start_due()
    driver.complete(running[1], _doubled(running[1], 1))
    driver.start_due()
    driver.state = load_state(driver.definition, driver.state.run_id, dump_state(driver.state))
    assert driver.run(_doubled).outputs == {"out": [f"item {index}" for index in range(4)]}


def _loop(body: list[dict[str, Any]], *inner: str, count: int = 5, **data: Any) -> str:
    variable = {"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": 1}
    settings = {
        "start_node_id": "roundstart",
        "loop_count": count,
        "break_conditions": [],
        "logical_operator": "and",
        "loop_variables": [variable],
        **data,
    }
    nodes = [start(), node("round", "loop", **settings), node("roundstart", "loop-start", loop_id="round"), *body]
    return document([*nodes, end(count="round.count", rounds="round.loop_round")], edges("start > round > end", *inner))


def _adds(name: str = "add") -> dict[str, Any]:
    item = {"variable_selector": ["round", "count"], "input_type": "constant", "operation": "+=", "value": 1}
    return node(name, "assigner", version="2", items=[item], loop_id="round")


def test_a_loop_runs_its_rounds_with_shared_variables() -> None:
    driver = Driver(_loop([_adds()], "roundstart > add", count=3))
    state = driver.run()
    assert (state.status, state.outputs) == ("succeeded", {"count": 4, "rounds": 3})


def test_a_loop_breaks_when_its_condition_holds() -> None:
    condition = {"variable_selector": ["round", "count"], "comparison_operator": "≥", "value": "3", "varType": "number"}
    driver = Driver(_loop([_adds()], "roundstart > add", break_conditions=[condition]))
    assert driver.run().outputs == {"count": 3, "rounds": 2}
    done = next(e for e in driver.events if isinstance(e, NodeSucceeded) and e.node_id == "round")
    assert done.metadata is not None
    assert done.metadata["completed_reason"] == "loop_break"


def test_a_loop_whose_condition_holds_at_once_runs_no_round() -> None:
    condition = {"variable_selector": ["round", "count"], "comparison_operator": "=", "value": "1", "varType": "number"}
    driver = Driver(_loop([_adds()], "roundstart > add", break_conditions=[condition]))
    # The variable was set when the loop opened; the node itself has no outputs.
    assert driver.run().outputs == {"count": 1, "rounds": None}
    done = next(e for e in driver.events if isinstance(e, NodeSucceeded) and e.node_id == "round")
    assert done.outputs == {}


def test_a_loop_end_breaks_the_loop_after_the_round() -> None:
    body = [_adds(), node("stop", "loop-end", loop_id="round")]
    driver = Driver(_loop(body, "roundstart > add > stop"))
    assert driver.run().outputs == {"count": 2, "rounds": 1}


def test_a_failure_in_a_round_fails_the_loop() -> None:
    driver = Driver(_loop([code("work", loop_id="round")], "roundstart > work"))
    state = driver.run(lambda key, attempt: Failed("no"))
    assert (state.status, state.error) == ("failed", "no")


def test_a_missing_variable_in_a_break_condition_fails_the_loop_after_the_first_round() -> None:
    condition = {"variable_selector": ["nobody", "x"], "comparison_operator": "=", "value": "1", "varType": "number"}
    driver = Driver(_loop([_adds()], "roundstart > add", break_conditions=[condition]))
    assert driver.run().status == "failed"
    assert len([event for event in driver.events if isinstance(event, RoundStarted)]) == 1
    (failed,) = [event for event in driver.events if isinstance(event, NodeFailed)]
    assert (failed.metadata or {})["completed_reason"] == "error"


def test_a_loop_variable_that_the_log_could_not_give_back_fails_the_loop() -> None:
    """Python reads NaN as a number; the log holds null for it, and a fold of the log would go another way."""
    variable = {"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": "NaN"}
    loop = node(
        "again",
        "loop",
        start_node_id="againstart",
        loop_count=1,
        break_conditions=[],
        logical_operator="and",
        loop_variables=[variable],
    )
    nodes = [start(), loop, node("againstart", "loop-start", loop_id="again"), code("work", loop_id="again"), end()]
    state = Driver(document(nodes, edges("start > again > end", "againstart > work"))).run()
    assert state.status == "failed"
    assert "NaN is no JSON" in (state.error or "")


def test_a_round_keeps_its_writes_to_itself_save_for_the_conversation() -> None:
    driver = _run(_document(is_parallel=True), ["x", "y"], _doubled)
    again = Driver(_document(is_parallel=True))
    again.state.pool.set("start", "items", ["x", "y"])
    again.state.pool.set("conversation", "seen", 0)
    again.begin()
    again.start_due()
    written = tuple(
        VariableUpdate(selector=selector, value=1, value_type="integer")
        for selector in (("conversation", "seen"), ("start", "items"))
    )
    for key in [each.key for each in again.state.running() if each.node_id == "work"]:
        again.complete(key, Succeeded(outputs={"result": 1}, updates=written))
    again.start_due()
    assert again.state.status == driver.state.status == "succeeded"
    seen, items = again.state.pool.get(("conversation", "seen")), again.state.pool.get(("start", "items"))
    assert seen is not None
    assert seen.value == 1
    assert items is not None
    assert items.value == ["x", "y"]


# --- what the rounds of an iteration leave ----------------------------------------------------------------------------


def _all_broken(key: Key, attempt: int) -> Outcome:
    return Failed("it broke")


def test_a_body_of_lists_gives_one_list_in_the_order_of_the_items() -> None:
    def pair(key: Key, attempt: int) -> Outcome:
        item = rounds_of(key.path)[-1].index + 1
        return Succeeded(outputs={"result": [item, 2 * item]})

    assert _run(_document(is_parallel=True), [1, 2, 3], pair, lambda keys: keys[-1]).state.outputs == {
        "out": [1, 2, 2, 4, 3, 6]
    }


def test_lists_beside_something_else_are_left_alone_with_their_nulls() -> None:
    def mixed(key: Key, attempt: int) -> Outcome:
        return Succeeded(outputs={"result": ([1], "text", None)[rounds_of(key.path)[-1].index]})

    def nothing_else(key: Key, attempt: int) -> Outcome:
        return Succeeded(outputs={"result": ([1], None, [2])[rounds_of(key.path)[-1].index]})

    assert _run(_document(), [1, 2, 3], mixed).state.outputs == {"out": [[1], "text", None]}
    assert _run(_document(), [1, 2, 3], nothing_else).state.outputs == {"out": [1, 2]}


def test_a_body_that_always_fails_ends_as_the_mode_says() -> None:
    driver = _run(_document(), ["a", "b"], _all_broken)
    assert (driver.state.status, driver.state.error, driver.state.exceptions_count) == ("failed", "it broke", 0)
    failed = next(event for event in driver.events if isinstance(event, NodeFailed) and event.node_id == "each")
    assert failed.outputs == {"output": []}
    for mode, out in (("continue-on-error", [None, None]), ("remove-abnormal-output", [])):
        state = _run(_document(error_handle_mode=mode), ["a", "b"], _all_broken).state
        assert (state.status, state.exceptions_count, state.outputs) == ("partial-succeeded", 2, {"out": out})


def test_a_terminated_iteration_leaves_what_it_had_collected() -> None:
    def answer(key: Key, attempt: int) -> Outcome:
        index = rounds_of(key.path)[-1].index
        return Failed("it broke") if index == 1 else Succeeded(outputs={"result": [index]})

    for parallel, collected in ((False, [0]), (True, [0, 2])):
        driver = _run(_document(is_parallel=parallel), ["a", "b", "c"], answer)
        failed = next(event for event in driver.events if isinstance(event, NodeFailed) and event.node_id == "each")
        assert failed.outputs == {"output": collected}


def test_a_legitimate_null_stays_when_abnormal_output_is_removed() -> None:
    def answer(key: Key, attempt: int) -> Outcome:
        index = rounds_of(key.path)[-1].index
        return Failed("it broke") if index == 1 else Succeeded(outputs={"result": None})

    text = _document(error_handle_mode="remove-abnormal-output", is_parallel=True)
    assert _run(text, ["a", "b", "c"], answer).state.outputs == {"out": [None, None]}


def test_a_failed_item_waits_for_the_items_beside_it() -> None:
    text = _document(is_parallel=True, parallel_nums=2)
    driver = _run(text, ["a", "b", "c"], _broken(0), lambda keys: keys[0])
    words = [word for word in driver.names() if "(work)" in word or word == "NodeFailed(each)"]
    assert words == ["NodeStarted(work)", "NodeStarted(work)", "NodeFailed(work)", "NodeSucceeded(work)",
                     "NodeFailed(each)"]  # fmt: skip


def test_answers_of_rounds_are_in_the_outputs_by_the_last_item_whichever_completes_last() -> None:
    body = [code("work", iteration_id="each"), node("say", "answer", answer="{{#work.result#}};", iteration_id="each")]
    nodes = [start("items"), iteration(is_parallel=True, parallel_nums=2), node("eachstart", "iteration-start"), *body]
    text = document(nodes, edges("start > each", "eachstart > work > say"), mode="advanced-chat")
    order = {1: 0, 2: 1, 0: 2}
    driver = _run(
        text, ["a", "b", "c"], _doubled, lambda keys: min(keys, key=lambda k: order[rounds_of(k.path)[-1].index])
    )
    started = [event.index for event in driver.events if isinstance(event, RoundStarted)]
    assert started == [0, 1, 2]
    assert driver.state.outputs["answer"] == "item 2;"


# --- what the rounds of a loop leave ----------------------------------------------------------------------------------


def _counted(operator: str, value: str) -> dict[str, Any]:
    selector = ["round", "count"]
    return {"variable_selector": selector, "comparison_operator": operator, "value": value, "varType": "number"}


def test_a_counter_breaks_where_its_condition_holds() -> None:
    driver = Driver(_loop([_adds()], "roundstart > add", count=10, break_conditions=[_counted("≥", "5")]))
    assert driver.run().outputs == {"count": 5, "rounds": 4}


def test_a_failed_round_leaves_its_answers_out_and_says_why_the_loop_ended() -> None:
    body = [
        node("say", "answer", answer="{{#round.count#}};", loop_id="round"),
        _adds(),
        code("work", loop_id="round"),
    ]
    nodes = [start(), *_loop_nodes(), *body]
    text = document(nodes, edges("start > round", "roundstart > say > add > work"), mode="advanced-chat")
    driver = Driver(text)

    def second_breaks(key: Key, attempt: int) -> Outcome:
        return Failed("it broke") if rounds_of(key.path)[-1].index == 1 else Succeeded(outputs={"result": "x"})

    state = driver.run(second_breaks)
    assert (state.status, state.error, state.exceptions_count) == ("failed", "it broke", 0)
    assert state.outputs["answer"] == "1;"
    failed = next(event for event in driver.events if isinstance(event, NodeFailed) and event.node_id == "round")
    assert failed.metadata is not None
    assert failed.metadata["completed_reason"] == "error"


def _loop_nodes(**data: Any) -> list[dict[str, Any]]:
    variable = {"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": 1}
    settings = {"start_node_id": "roundstart", "loop_count": 3, "break_conditions": [], "logical_operator": "and",
                "loop_variables": [variable], **data}  # fmt: skip
    return [node("round", "loop", **settings), node("roundstart", "loop-start", loop_id="round")]


def test_values_of_the_body_are_cleared_before_each_round() -> None:
    both = node("seen", "variable-aggregator", output_type="any", variables=[["work", "result"], ["round", "count"]])
    both["data"]["loop_id"] = "round"
    nodes = [start(), *_loop_nodes(), both, code("work", loop_id="round"), _adds(), end(out="seen.output")]
    text = document(nodes, edges("start > round > end", "roundstart > seen > work > add"))
    assert Driver(text).run(lambda key, attempt: Succeeded(outputs={"result": "old"})).outputs == {"out": 3}


def test_a_loop_end_inside_an_iteration_breaks_the_loop_around_it() -> None:
    each = iteration(iterator_selector=["start", "items"], output_selector=["work", "result"])
    each["data"]["loop_id"] = "round"
    inner = {"iteration_id": "each", "loop_id": "round"}
    nodes = [
        start("items"), *_loop_nodes(loop_count=5), each, node("eachstart", "iteration-start", **inner),
        code("work", **inner), node("stop", "loop-end", **inner), end(rounds="round.loop_round", out="each.output"),
    ]  # fmt: skip
    text = document(nodes, edges("start > round > end", "roundstart > each", "eachstart > work > stop"))
    driver = _run(text, ["a", "b"], _doubled)
    assert driver.state.outputs == {"rounds": 1, "out": ["item 0", "item 1"]}
    deepest = max((str(getattr(event, "path", "")) for event in driver.events), key=len)
    assert [(each.kind, each.node_id) for each in rounds_of(deepest)] == [("loop", "round"), ("iteration", "each")]


def test_a_loop_inside_a_parallel_iteration_keeps_its_variables_to_its_item() -> None:
    adds = {"variable_selector": ["round", "count"], "input_type": "constant", "operation": "+=", "value": 5}
    variable = {"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": "0"}
    nodes = [
        start("items"),
        iteration(is_parallel=True, parallel_nums=3, output_selector=["round", "count"]),
        node("eachstart", "iteration-start", iteration_id="each"),
        *_loop_nodes(loop_count=2, loop_variables=[variable]),
        code("work", loop_id="round"),
        node("add", "assigner", version="2", items=[adds], loop_id="round"),
        end(out="each.output"),
    ]
    text = document(nodes, edges("start > each > end", "eachstart > round", "roundstart > work > add"))
    for choose in (lambda keys: keys[0], lambda keys: keys[-1]):
        assert _run(text, [1, 2, 3], _doubled, choose).state.outputs == {"out": [10, 10, 10]}


@pytest.mark.parametrize(
    ("declared", "value", "begins"),
    [
        ("array[number]", [1, 2], []),
        ("array[number]", "[1,2]", [1, 2]),
        ("number", "1", 1),
        ("boolean", "true", True),
        ("string", "text", "text"),
        ("object", '{"a": 1}', {"a": 1}),
        ("array[boolean]", [True], [True]),
    ],
)
def test_a_constant_of_a_loop_is_read_as_its_declared_type(declared: str, value: JsonValue, begins: JsonValue) -> None:
    variable = {"id": "v", "label": "it", "var_type": declared, "value_type": "constant", "value": value}
    nodes = [start(), *_loop_nodes(loop_count=1, loop_variables=[variable]), code("work", loop_id="round")]
    text = document([*nodes, end(out="round.it")], edges("start > round > end", "roundstart > work"))
    assert Driver(text).run().outputs == {"out": begins}


def test_a_constant_that_is_not_of_its_declared_type_fails_the_loop() -> None:
    variable = {"id": "v", "label": "it", "var_type": "string", "value_type": "constant", "value": 5}
    nodes = [start(), *_loop_nodes(loop_variables=[variable]), code("work", loop_id="round"), end()]
    state = Driver(document(nodes, edges("start > round > end", "roundstart > work"))).run()
    assert state.status == "failed"
    assert "loop variable 'it'" in (state.error or "")
