"""How a run walks its graph: roots, skips, joins, branches side by side, and what is left at the end."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.events.model import VariableUpdate
from libs.workflow.machine import CheckTime, Rejection, decide
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.state import Key, dump_state, load_state
from tests.documents import chain, code, document, edges, end, if_else, node, start
from tests.driver import Driver


def answer(node_id: str, template: str) -> dict[str, Any]:
    return node(node_id, "answer", answer=template)


def chat(nodes: list[dict[str, Any]], *arrows: str, **workflow: Any) -> str:
    return document(nodes, edges(*arrows), mode="advanced-chat", **workflow)


def skipped(driver: Driver) -> list[str]:
    return [name[12:-1] for name in driver.names() if name.startswith("NodeSkipped")]


def started(driver: Driver) -> list[str]:
    return [name[12:-1] for name in driver.names() if name.startswith("NodeStarted")]


def by_node(key: Key, attempt: int) -> Outcome:
    return Succeeded(outputs={"result": key.node_id})


def chosen(*order: str) -> Any:
    """The next running node to complete, in this order."""
    return lambda keys: min(keys, key=lambda key: order.index(key.node_id))


# --- roots -----------------------------------------------------------------------------------------------------------


def test_other_roots_and_what_only_they_reach_are_skipped_to_their_ends() -> None:
    nodes = [
        start(),
        *(node(name, "trigger-webhook") for name in ("one", "two")),
        *(code(name) for name in ("a", "b", "c", "both", "shared")),
        end(),
    ]
    arrows = ["start > shared > end", "one > shared", "one > a > b > c", "one > both", "two > both"]
    driver = Driver(document(nodes, edges(*arrows)))
    assert driver.run().status == "succeeded"
    assert sorted(skipped(driver)) == ["a", "b", "both", "c", "one", "two"]
    assert started(driver) == ["start", "shared", "end"]


def test_nodes_on_a_cycle_never_run_and_the_run_succeeds_without_them() -> None:
    nodes = [start("q"), code("a"), code("b"), code("behind"), end("done", out="start.q")]
    driver = Driver(document(nodes, edges("start > a > b > a", "b > behind", "start > done")), q="x")
    state = driver.run()
    assert (state.status, state.outputs) == ("succeeded", {"out": "x"})
    assert started(driver) == ["start", "done"]


# --- skips and joins -------------------------------------------------------------------------------------------------


def test_a_skipped_edge_decides_nothing_while_another_one_is_open() -> None:
    nodes = [start("q"), if_else("choice", "start.q", "is", "yes"), code("slow"), code("join"), end()]
    text = document(nodes, edges("start > choice[true] > join", "start > slow > join", "choice[false] > end"))
    driver = Driver(text, q="no").begin()
    assert [key.node_id for key in driver.start_due()] == ["slow"]
    assert skipped(driver) == []
    assert driver.run().status == "succeeded"
    assert started(driver)[-1] == "join"


def test_what_is_not_taken_is_skipped_before_what_is_taken_starts() -> None:
    nodes = [start("q"), if_else("choice", "start.q", "is", "yes"), *(code(name) for name in "abcd"), end()]
    text = document(nodes, edges("start > choice[true] > a", "choice[true] > b > end", "choice[false] > c > d > end"))
    driver = Driver(text, q="yes")
    driver.run()
    names = driver.names()
    assert names[names.index("NodeSucceeded(choice)") :][:5] == [
        "NodeSucceeded(choice)",
        "NodeSkipped(c)",
        "NodeSkipped(d)",
        "NodeStarted(a)",
        "NodeStarted(b)",
    ]


@pytest.mark.parametrize(
    ("q", "order", "text"),
    [
        ("hello", ("say", "think"), "say|think"),
        ("hello", ("think", "say"), "think|say"),
        ("good day", ("think",), "think|"),
    ],
)
def test_a_branch_beside_a_parallel_node_adds_its_answer_in_order_of_completion(
    q: str, order: tuple[str, ...], text: str
) -> None:
    nodes = [
        start("q"),
        if_else("choice", "start.q", "contains", "hello"),
        code("say"),
        code("think"),
        answer("a1", "{{#say.result#}}"),
        answer("a2", "{{#think.result#}}"),
    ]
    driver = Driver(chat(nodes, "start > choice[true] > say > a1", "start > think > a2"), q=q)
    state = driver.run(by_node, chosen(*order))
    assert state.status == "succeeded"
    assert state.outputs["answer"] == text.replace("|", "")
    assert {"choice", "think"} <= set(started(driver))


@pytest.mark.parametrize("left", ["yes", "no"])
@pytest.mark.parametrize("right", ["yes", "no"])
def test_a_grouped_aggregator_behind_two_choices_has_the_taken_side_of_each(left: str, right: str) -> None:
    groups = [
        {"groupId": name, "group_name": name, "output_type": "string", "variables": [[f"{name}{way}", "result"]
         for way in ("yes", "no")]}
        for name in ("l", "r")
    ]  # fmt: skip
    settings = {"group_enabled": True, "groups": groups}
    nodes = [
        start("left", "right"),
        if_else("lc", "start.left", "is", "yes"),
        if_else("rc", "start.right", "is", "yes"),
        *(code(name) for name in ("lyes", "lno", "ryes", "rno")),
        node("all", "variable-aggregator", output_type="string", variables=[], advanced_settings=settings),
        end(l="all.l.output", r="all.r.output"),
    ]
    arrows = [f"{s}c[{way}] > {s}{name} > all" for s in "lr" for way, name in (("true", "yes"), ("false", "no"))]
    driver = Driver(document(nodes, edges("start > lc", "start > rc", *arrows, "all > end")), left=left, right=right)
    assert driver.run(by_node).outputs == {"l": f"l{left}", "r": f"r{right}"}


def test_no_answer_of_a_branch_that_is_not_taken_appears_among_parallel_branches() -> None:
    nodes = [start("q"), answer("plain", "plain "), *(if_else(f"c{i}", "start.q", "is", str(i)) for i in (1, 2, 3))]
    nodes += [answer(f"{word}{i}", f"{word}{i} ") for i in (1, 2, 3) for word in ("yes", "no")]
    arrows = [f"start > c{i}[{way}] > {word}{i}" for i in (1, 2, 3) for way, word in (("true", "yes"), ("false", "no"))]
    state = Driver(chat(nodes, "start > plain", *arrows), q="2").run()
    assert sorted(str(state.outputs["answer"]).split()) == ["no1", "no3", "plain", "yes2"]


def test_answers_are_joined_and_other_outputs_replaced() -> None:
    nodes = [start("q"), answer("a", "1 {{#start.q#}} "), answer("b", "2"), code("c")]
    state = Driver(chat(nodes, "start > a > c > b"), q="x").run()
    assert state.outputs == {"answer": "1 x 2", "files": []}


def test_an_answer_behind_the_start_makes_the_whole_run() -> None:
    driver = Driver(chat([start("q"), answer("a", "Hi {{#start.q#}}")], "start > a"), q="Bob")
    assert driver.run().outputs == {"answer": "Hi Bob", "files": []}
    assert driver.names() == [
        "RunAccepted",
        "RunStarted",
        "NodeStarted(start)",
        "NodeSucceeded(start)",
        "NodeStarted(a)",
        "NodeSucceeded(a)",
        "RunSucceeded",
    ]


def test_the_older_name_of_the_aggregator_is_the_same_node() -> None:
    old = node("all", "variable-assigner", output_type="string", variables=[["no", "such"], ["start", "q"]])
    state = Driver(document([start("q"), old, end(out="all.output")], edges("start > all > end")), q="x").run()
    assert state.outputs == {"out": "x"}


def test_updated_conversation_variables_are_in_a_snapshot() -> None:
    variable = {"id": "1", "name": "topic", "value_type": "string", "value": "old"}
    text = chat(
        [start(), code("a"), code("b"), answer("say", "{{#conversation.topic#}}")],
        "start > a > b > say",
        conversation_variables=[variable],
    )
    driver = Driver(text).begin()
    for node_id, value in (("a", "newer"), ("b", "newest")):
        driver.start_due()
        update = VariableUpdate(selector=("conversation", "topic"), value=value, value_type="string")
        driver.complete(Key("", node_id), Succeeded(updates=(update,)))
        driver.state = load_state(driver.definition, driver.state.run_id, dump_state(driver.state))
    assert driver.run().outputs["answer"] == "newest"


# --- limits of time --------------------------------------------------------------------------------------------------


def test_a_run_over_its_time_fails_with_limit_and_time() -> None:
    driver = Driver(chain(2), max_time_s=1.5).begin()
    driver.start_due()
    began_us = driver.state.started_us
    assert isinstance(decide(driver.state, CheckTime(began_us + 1_500_000)), Rejection)
    driver.fold(decide(driver.state, CheckTime(began_us + 1_510_000)))
    driver.derive()
    assert driver.state.error == "Maximum execution time exceeded: 1.51s > 1.5s"
    assert driver.names()[-3:] == ["LimitExceeded", "NodeStopped(n1)", "RunFailed"]


def test_the_time_of_a_run_that_has_not_begun_or_has_ended_is_not_looked_at() -> None:
    driver = Driver(chain(1), max_time_s=1)
    late_us = driver.now_us + 10_000_000_000
    assert isinstance(decide(driver.state, CheckTime(late_us)), Rejection)
    driver.run()
    assert isinstance(decide(driver.state, CheckTime(late_us)), Rejection)


def test_the_order_in_which_side_branches_complete_decides_equal_names_of_ends() -> None:
    nodes = [start(), code("a"), code("b"), end("e1", out="a.result"), end("e2", out="b.result", more="b.result")]
    text = document(nodes, edges("start > a > e1", "start > b > e2"))
    for order, out in ((("a", "b"), "b"), (("b", "a"), "a")):
        expected: dict[str, JsonValue] = {"out": out, "more": "b"}
        assert Driver(text).run(by_node, chosen(*order)).outputs == expected
