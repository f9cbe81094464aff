"""The response stream: the text is a function of the events, and activation is the rule over paths."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from libs.events.model import NodeStopped
from libs.workflow.activation import Activation, watches
from libs.workflow.definition import Definition, NodeKind, compile_document
from libs.workflow.outcome import Failed, Outcome, Succeeded
from tests.documents import code, document, edges, if_else, node, start
from tests.driver import Driver
from tests.screen import Screen

RETRY = {"retry_enabled": True, "max_retries": 1, "retry_interval": 100}
DEFAULT: dict[str, Any] = {
    "error_strategy": "default-value",
    "default_value": [{"key": "result", "type": "string", "value": "default"}],
}


@st.composite
def chats(draw: st.DrawFn, *, cycles: bool = False) -> str:
    """A chat document: a DAG of code nodes, branches, assigners and answers that refer to any of them."""
    names = [f"n{number}" for number in range(draw(st.integers(1, 7)))]
    kinds = {name: draw(st.sampled_from(["code", "code", "retry", "if", "answer", "answer", "set"])) for name in names}
    nodes: list[dict[str, Any]] = [start("q")]
    arrows = []
    for number, name in enumerate(names):
        nodes.append(_node(draw, name, kinds[name], [*names, "gone"]))
        for source in draw(st.lists(st.sampled_from(["start", *names[:number]]), min_size=1, max_size=3, unique=True)):
            handle = f"[{draw(st.sampled_from(['true', 'false']))}]" if kinds.get(source) == "if" else ""
            arrows.append(f"{source}{handle} > {name}")
    if cycles and draw(st.booleans()):
        arrows.append(f"{draw(st.sampled_from(names))} > {draw(st.sampled_from(names))}")
    stored = [{"id": "1", "name": "topic", "value_type": "string", "value": "old"}]
    return document(nodes, edges(*arrows), mode="advanced-chat", conversation_variables=stored)


def _node(draw: st.DrawFn, name: str, kind: str, sources: list[str]) -> dict[str, Any]:
    if kind == "if":
        return if_else(name, "start.q", "is", draw(st.sampled_from(["yes", "no"])))
    if kind == "answer":
        values = st.sampled_from([*(f"{each}.result" for each in sources), "start.q", "conversation.topic"])
        parts = draw(st.lists(values.map("{{{{#{}#}}}}".format) | st.just(f" {name}: "), max_size=4))
        return node(name, "answer", answer="".join(parts) or "-")
    if kind == "set":
        return node(
            name,
            "assigner",
            version="2",
            items=[
                {
                    "variable_selector": ["conversation", "topic"],
                    "input_type": "constant",
                    "operation": "set",
                    "value": f"by {name}",
                }
            ],
        )
    return code(name, **({"retry_config": RETRY, **DEFAULT} if kind == "retry" else {}))


# --- activation ------------------------------------------------------------------------------------------------------


def simple_paths(definition: Definition, target: str) -> Iterator[tuple[int, ...]]:
    """Edge indexes of every simple path from the root."""

    def walk(here: str, seen: frozenset[str], path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if here == target:
            yield path
            return
        for edge in definition.nodes[here].outgoing:
            if edge.target not in seen:
                yield from walk(edge.target, seen | {edge.target}, (*path, edge.index))

    yield from walk(definition.root, frozenset({definition.root}), ())


@given(text=chats(cycles=True), data=st.data())
def test_activation_is_a_path_whose_blocking_edges_are_all_taken(text: str, data: st.DataObject) -> None:
    definition = compile_document(text)
    answers = [each.id for each in definition.nodes.values() if each.kind is NodeKind.RESPONSE]
    refers = {each: frozenset(data.draw(st.sets(st.just(("conversation", "topic"))))) for each in answers}
    writers = {each.id for each in definition.nodes.values() if each.type == "assigner"}
    blocking = {each.id for each in definition.nodes.values() if each.kind in (NodeKind.BRANCH, NodeKind.RESPONSE)}

    def expected(taken: set[int]) -> set[str]:
        found = set()
        for answer in answers:
            sources = blocking | writers if refers[answer] else blocking
            open_edges = taken | {edge.index for edge in definition.edges if edge.source not in sources}
            if any(open_edges.issuperset(path) for path in simple_paths(definition, answer)):
                found.add(answer)
        return found

    searches = [Activation(definition, each) for each in watches(definition, definition.root, refers)]
    active = [found for search in searches for found in search.start()]
    taken: set[int] = set()
    assert set(active) == expected(taken)
    for edge in data.draw(st.permutations(definition.edges)):
        active += [found for search in searches for found in search.take(edge)]
        taken.add(edge.index)
        assert set(active) == expected(taken)
    assert len(active) == len(set(active))


# --- text ------------------------------------------------------------------------------------------------------------


class Weather:
    """Everything that happens to a run from outside, the same for each run with the same `choices`."""

    def __init__(self, choices: list[int]) -> None:
        self._choices = choices
        self._next = 0

    def choose(self, count: int) -> int:
        self._next += 1
        return self._choices[self._next % len(self._choices)] % count


def run(driver: Driver, weather: Weather, chunks: Weather | None) -> None:
    """To the end; with `chunks`, running attempts of a `Screen` stream some of their text before they end."""
    driver.begin()
    while True:
        running = driver.start_due()
        if driver.state.ended:
            return
        if not running:
            driver.now_us += 1_000_000
            continue
        key = running[weather.choose(len(running))]
        if driver.epoch < 5 and weather.choose(5) == 0:
            driver.epoch += 1  # the owner is lost; its attempts begin anew
        outcome = _outcome(key.node_id, weather)
        if chunks is not None:
            assert isinstance(driver, Screen)
            for each in running:
                _stream(driver, each.node_id, outcome if each == key else None, chunks)
        if driver.state.executions[key].epoch == driver.epoch:
            driver.complete(key, outcome)


def _outcome(node_id: str, weather: Weather) -> Outcome:
    if node_id.startswith("n") and weather.choose(4) == 0:
        return Failed("broke", "SomeError")
    return Succeeded(outputs={"result": f"<{node_id} {'x' * weather.choose(9)}>"})


def _stream(screen: Screen, node_id: str, outcome: Outcome | None, chunks: Weather) -> None:
    """Chunks of the text to come, cut anywhere, some missing, some repeated, some of another text or owner."""
    text = str(outcome.outputs["result"]) if isinstance(outcome, Succeeded) else f"<{node_id} never mind>"
    if chunks.choose(6) == 0:
        text = text.upper()
    at = 0
    while at < len(text) and chunks.choose(5):
        length = 1 + chunks.choose(6)
        epoch = screen.epoch - (chunks.choose(4) == 0)
        screen.chunk(node_id, text[at : at + length], at, epoch=epoch)
        at += length if chunks.choose(4) else max(1, length // 2)


@given(
    text=chats(),
    q=st.sampled_from(["yes", "no"]),
    choices=st.lists(st.integers(0, 100), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 100), min_size=1, max_size=30),
)
def test_the_same_events_give_the_same_text_whatever_the_chunks(
    text: str, q: str, choices: list[int], cuts: list[int]
) -> None:
    definition = compile_document(text)
    quiet, busy = Screen(definition, q=q), Screen(definition, q=q)
    run(quiet, Weather(choices), None)
    run(busy, Weather(choices), Weather(cuts))
    assert quiet.events == busy.events
    assert not any(said.replace for _, said in quiet.said)
    if any(isinstance(event, NodeStopped) for event in busy.events):
        assert busy.shown.startswith(quiet.shown)  # what a stopped attempt had shown stays
    else:
        assert quiet.shown == busy.shown


@given(text=chats(), q=st.sampled_from(["yes", "no"]))
def test_a_run_that_works_says_every_value_that_its_answers_hold(text: str, q: str) -> None:
    definition = compile_document(text)
    screen = Screen(definition, q=q)
    run(screen, Weather([1]), None)
    for each in definition.nodes.values():
        if each.kind is NodeKind.RESPONSE and ("", each.id) in screen.state.executions:
            assert f" {each.id}: " in screen.shown or f" {each.id}: " not in each.config.answer
