"""Oddities of real documents: each loads, and a warning names it with its place. What could not be right is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from libs.workflow.definition import check_document
from libs.workflow.problems import Problem
from tests.documents import code, document, edges, end, human_input, if_else, node, start

Document = dict[str, Any]


def plain(*nodes: Document, arrows: str = "start > end", out: str = "start.q") -> Document:
    """A document without any oddity."""
    made: Document = json.loads(document([start("q"), *nodes, end(out=out)], edges(*arrows.split(", "))))
    return {**made, "dependencies": []}


def scheduled(**said: Any) -> Document:
    nodes = [node("tick", "trigger-schedule", **said), end(at="sys.timestamp")]
    return {**json.loads(document(nodes, edges("tick > end"))), "dependencies": []}


def without(*names: str) -> Document:
    return {name: value for name, value in plain().items() if name not in names}


def changed(change: Callable[[Document], object]) -> Document:
    made = plain()
    change(made)
    return made


NOTE = {"id": "9", "type": "custom-note", "data": {"type": "", "title": "", "text": "hi"}}
HTTP = {"url": "http://x", "method": "get", "headers": "", "params": "", "authorization": {"type": "no-auth"}}
OLD_CHOICE = node(
    "i",
    "if-else",
    conditions=[{"variable_selector": ["start", "q"], "comparison_operator": "is", "value": "x"}],
    logical_operator="and",
)
LISTED = node("it", "iteration", iterator_selector=["start", "q"], output_selector=["x", "result"])
MODEL = {"provider": "p", "name": "m", "mode": "chat", "completion_params": {}}

ODDITIES: dict[str, tuple[Document | str, str, str]] = {
    "no kind": (without("kind"), "kind", "is missing; read as app"),
    "another kind": (changed(lambda it: it.update(kind="application")), "kind", "read as app, not 'application'"),
    "no version": (without("version"), "version", "is missing; read as 0.1.0"),
    "no dependencies": (without("dependencies"), "dependencies", "is missing"),
    "a newer version": (changed(lambda it: it.update(version="9.0.0")), "version", "is newer than"),
    "a note of the canvas": (
        changed(lambda it: it["workflow"]["graph"]["nodes"].append(NOTE)),
        "workflow.graph.nodes",
        "1 canvas note left out",
    ),
    "a null schema": (
        plain(node("t", "tool", tool_name="t", output_schema=None), arrows="start > t > end"),
        "workflow.graph.nodes[1].data.output_schema",
        "is null",
    ),
    "a schedule that no clock can keep": (
        scheduled(mode="cron", cron_expression="0 25 * * *"),
        "workflow.graph.nodes[0].data.cron_expression",
        'hour "25" is not in 0 to 23',
    ),
    "a schedule of a day that never comes": (
        scheduled(mode="cron", cron_expression="0 0 30 2 *"),
        "workflow.graph.nodes[0].data.cron_expression",
        "no day of any year matches it",
    ),
    "a schedule of a zone that nobody knows": (
        scheduled(timezone="Mars/Olympus"),
        "workflow.graph.nodes[0].data.timezone",
        "is not known here",
    ),
    "structured output without a schema": (
        plain(
            node("l", "llm", model=MODEL, prompt_template=[{"role": "user", "text": "x"}],
                 structured_output_enabled=True, structured_output=None),
            arrows="start > l > end",
        ),
        "workflow.graph.nodes[1].data.structured_output",
        "is switched on and has no schema",
    ),
    "a flag that claims a container": (
        plain(code("c", isInIteration=True), arrows="start > c > end"),
        "workflow.graph.nodes[1].data",
        "is marked as inside a container",
    ),
    "an iteration_id that is not true": (
        plain(code("c", iteration_id="gone"), arrows="start > c > end"),
        "workflow.graph.nodes[1].data.iteration_id",
        "is not in the body",
    ),
    "an iteration of plain children": (
        plain(LISTED, {**code("x"), "parentId": "it"}, arrows="start > it > end", out="it.output"),
        "workflow.graph.nodes[1].data.start_node_id",
        'the body begins with "x"',
    ),
    "an if-else of the older form": (
        plain(OLD_CHOICE, arrows="start > i, i[true] > end"),
        "workflow.graph.nodes[1].data.conditions",
        "the older form of an if-else",
    ),
    "a body of HTTP as one text": (
        plain(node("h", "http-request", **HTTP, body={"type": "json", "data": "{}"}), arrows="start > h > end"),
        "workflow.graph.nodes[1].data.body.data",
        "the older form of a body",
    ),
    "a handle that leads nowhere": (
        plain(if_else("i", "start.q", "is", "x"), arrows="start > i, i[true] > end, i[yes] > end"),
        "workflow.graph.edges[2].sourceHandle",
        'has no handle "yes"',
    ),
    "a case without an edge": (
        plain(if_else("i", "start.q", "is", "x"), arrows="start > i, i[false] > end"),
        "workflow.graph.nodes[1].data.cases[0]",
        "leads nowhere",
    ),
    "a selector of a node that is missing": (
        plain(out="gone.q"),
        "workflow.graph.nodes[1].data.outputs[0].value_selector",
        'refers to node "gone", which does not exist',
    ),
    "an export wrapped in JSON": (json.dumps({"data": yaml.safe_dump(plain())}), "", "wrapped in JSON"),
    "an id that templates cannot name": (
        plain(code("my-code"), arrows="start > my-code > end"),
        "workflow.graph.nodes[1].id",
        'templates cannot refer to the id "my-code"',
    ),
    "no end": (
        json.loads(document([start("q"), code("c")], edges("start > c"))) | {"dependencies": []},
        "workflow.graph.nodes",
        "no end node",
    ),
    "an answer in a workflow": (
        plain(node("a", "answer", answer="x"), arrows="start > a > end"),
        "workflow.graph.nodes",
        "an answer node in an app of mode workflow",
    ),
    "a node that nothing leads to": (
        plain(code("alone")),
        "workflow.graph.nodes[1]",
        'node "alone" is not reachable',
    ),
}  # fmt: skip


def test_a_plain_document_has_no_warning() -> None:
    definition, problems = check_document(json.dumps(plain()))
    assert definition is not None
    assert problems == ()


@pytest.mark.parametrize("name", ODDITIES)
def test_an_oddity_is_named_and_tolerated(name: str) -> None:
    odd, at, words = ODDITIES[name]
    definition, problems = check_document(odd if isinstance(odd, str) else json.dumps(odd))
    assert definition is not None, problems
    assert [each.at for each in problems if words in each.problem] == [at], problems
    assert {each.severity for each in problems} == {"warning"}


def test_options_of_a_form_are_no_selectors() -> None:
    def problems(*options: str) -> tuple[Problem, ...]:
        source = {"type": "constant", "value": options}
        asked = human_input(
            "ask", "ok", inputs=[{"type": "select", "output_variable_name": "c", "option_source": source}]
        )
        return check_document(json.dumps(plain(asked, arrows="start > ask, ask[ok] > end, ask[__timeout] > end")))[1]

    assert problems("approve", "reject later") == ()
    (problem,) = problems("{{#gone.q#}}", "later")
    assert 'refers to node "gone"' in problem.problem


@pytest.mark.parametrize("name", ["7", "not-a-uuid", ""])
def test_ids_of_variables_and_cases_may_be_anything(name: str) -> None:
    choice = if_else("i", "start.q", "is", "x")
    choice["data"]["cases"][0]["id"] = name
    made = plain(choice, arrows="start > i, i[true] > end, i[false] > end")
    made["workflow"]["environment_variables"] = [{"id": name, "name": "e", "value_type": "string", "value": "x"}]
    definition, problems = check_document(json.dumps(made))
    assert definition is not None
    assert problems == ()
