"""Invariants of the run machine, over random graphs, outcomes and orders of completion."""

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.events.model import NodeStarted, PauseRequested, ResumeRequested, RunEvent
from libs.workflow.definition import Definition
from libs.workflow.machine import CompleteAttempt, Rejection, apply, decide, derived, due, new_state
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Form, Key, dump_state, load_state
from tests.documents import edges, node
from tests.driver import RUN_ID, Driver
from tests.graphs import graphs

MANY = settings(max_examples=150, deadline=None)


def _answers(seed: int) -> object:
    """A pure function of node and attempt: the same node fails in every order of completion."""

    def answer(key: Key, attempt: int) -> Outcome:
        if random.Random(f"{seed} {key} {attempt}").random() < 0.2:
            return Failed(f"{key.node_id} broke", "SomeError")
        return Succeeded(outputs={"result": f"{key.node_id} at {key.path}"})

    return answer


def _person(seed: int) -> object:
    """As pure: the same form is answered alike in every order, or by nobody."""

    def person(form: Form) -> str | None:
        return random.Random(f"{seed} {form.node_id} {form.path}").choice(["ok", "no", None])

    return person


def _driver(text: str) -> Driver:
    driver = Driver(text, q="yes")
    driver.state.pool.set("start", "items", ["x", "y", "z"])
    return driver


def _run(text: str, seed: int, order: int) -> Driver:
    driver = _driver(text)
    chooser = random.Random(order)
    driver.run(_answers(seed), choose=lambda keys: chooser.choice(keys), person=_person(seed))  # type: ignore[arg-type]
    return driver


def _refold(driver: Driver, events: list[RunEvent]) -> object:
    state = new_state(driver.definition, RUN_ID)
    for number, event in enumerate(events):
        apply(state, event, 1_800_000_000_000_000 + number, 1)
        if number == 0:
            state.pool.set("start", "items", ["x", "y", "z"])
    return state


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000))
def test_fold_is_total(text: str, seed: int, order: int) -> None:
    driver = _run(text, seed, order)
    state = _refold(driver, driver.events)
    assert (state.status, state.outputs) == (driver.state.status, driver.state.outputs)  # type: ignore[attr-defined]
    assert type(driver.events[-1]).__name__.startswith("Run")


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_any_order_ends_alike(text: str, seed: int, one: int, other: int) -> None:
    first, second = _run(text, seed, one).state, _run(text, seed, other).state
    assert first.status == second.status
    if first.status != "failed":
        # Which of several failures is first, and what ran before it, is a matter of order.
        assert first.outputs == second.outputs
        assert first.exceptions_count == second.exceptions_count
        assert first.total_steps == second.total_steps
        skipped = [{key: frame.skipped for key, frame in state.frames.items()} for state in (first, second)]
        assert skipped[0] == skipped[1]


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000), st.data())
def test_every_prefix_goes_on(text: str, seed: int, order: int, data: st.DataObject) -> None:
    whole = _run(text, seed, order)
    cut = data.draw(st.integers(1, len(whole.events)))
    driver = _driver(text)
    for number, event in enumerate(whole.events[1:cut], 1):
        driver.epoch = 1
        driver.fold(event)
        assert len(driver.events) == number + 1
    driver.epoch = 2
    driver.run(_answers(seed), person=_person(seed))  # type: ignore[arg-type]
    assert driver.state.status == whole.state.status
    if whole.state.status != "failed":
        assert driver.state.outputs == whole.state.outputs


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000), st.data())
def test_a_snapshot_is_as_good_as_the_history(text: str, seed: int, order: int, data: st.DataObject) -> None:
    whole = _run(text, seed, order)
    cut = data.draw(st.integers(1, len(whole.events)))
    driver = _driver(text)
    for event in whole.events[1:cut]:
        driver.fold(event)
    image = dump_state(driver.state)
    driver.state = load_state(driver.definition, RUN_ID, image)
    assert dump_state(driver.state) == image
    for event in whole.events[cut:]:
        driver.fold(event)
    assert driver.state.status == whole.state.status
    assert driver.state.outputs == whole.state.outputs


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000), st.data())
def test_due_is_derived(text: str, seed: int, order: int, data: st.DataObject) -> None:
    whole = _run(text, seed, order)
    cut = data.draw(st.integers(1, len(whole.events)))
    state = _refold(whole, whole.events[:cut])
    while (event := derived(state)) is not None:  # type: ignore[arg-type]
        apply(state, event, 1_900_000_000_000_000, 1)  # type: ignore[arg-type]
    again = load_state(whole.definition, RUN_ID, dump_state(state))  # type: ignore[arg-type]
    assert derived(again) is None
    later = 2_000_000_000_000_000
    assert list(due(again, 2, later)) == list(due(state, 2, later))  # type: ignore[arg-type]


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000))
def test_duplicates_change_nothing(text: str, seed: int, order: int) -> None:
    driver = _driver(text)
    chooser = random.Random(order)
    answer = _answers(seed)
    driver.begin()
    while not driver.state.ended:
        running = driver.start_due()
        if not running:
            break
        key = chooser.choice(running)
        attempt = driver.state.executions[key].attempt
        outcome = answer(key, attempt)  # type: ignore[operator]
        driver.complete(key, outcome)
        again = decide(driver.state, CompleteAttempt(key, attempt, 1, outcome, driver.now_us))
        assert isinstance(again, Rejection)


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.integers(0, 1000))
def test_pauses_change_nothing(text: str, seed: int, order: int) -> None:
    plain = _run(text, seed, order).state
    driver = _driver(text)
    chooser, operator = random.Random(order), random.Random(seed)

    def meddle(driver: Driver) -> None:
        if operator.random() < 0.3:
            (driver.pause if driver.state.pause_reason is None else driver.resume)()

    state = driver.run(_answers(seed), lambda keys: chooser.choice(keys), _person(seed), meddle)  # type: ignore[arg-type]
    assert state.status == plain.status
    if state.status != "failed":
        assert (state.outputs, state.total_steps) == (plain.outputs, plain.total_steps)
    held = False
    for event in driver.events:
        held = isinstance(event, PauseRequested) or (held and not isinstance(event, ResumeRequested))
        assert not (held and isinstance(event, NodeStarted))


def _with_trigger(text: str, data: st.DataObject) -> str:
    """The document with a second root, above some of its nodes, behind or in front of the first."""
    made = json.loads(text)
    graph = made["workflow"]["graph"]
    inside = {each["data"].get("iteration_id") or each["data"].get("loop_id") for each in graph["nodes"]} - {None}
    within = {each["id"] for each in graph["nodes"] if each["data"].get("iteration_id") or each["data"].get("loop_id")}
    names = sorted({each["id"] for each in graph["nodes"]} - within - {"start"} - {f"{name}start" for name in inside})
    below = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    place = data.draw(st.sampled_from([0, len(graph["nodes"])]))
    graph["nodes"].insert(place, node("hook", "trigger-plugin"))
    graph["edges"] += edges(*(f"hook > {name}" for name in below))
    return json.dumps(made)


@MANY
@given(graphs(people=True), st.integers(0, 1000), st.sampled_from(["start", "hook"]), st.data())
def test_a_run_ends_and_runs_only_what_its_root_reaches(text: str, seed: int, root: str, data: st.DataObject) -> None:
    driver = Driver(_with_trigger(text, data), q="yes", accepted={"root": root})
    driver.state.pool.set("start", "items", ["x", "y", "z"])
    driver.run(_answers(seed), person=_person(seed))  # type: ignore[arg-type]
    ran = {event.node_id for event in driver.events if isinstance(event, NodeStarted) and not event.path}
    assert ran <= _below(driver.definition, root)
    if driver.state.status != "failed":
        whole = _below(driver.definition, "start") | _below(driver.definition, "hook")
        assert driver.state.frames[""].skipped == whole - ran


def _below(definition: Definition, root: str) -> set[str]:
    """The root and all that its edges lead to."""
    reached, waiting = {root}, [root]
    while waiting:
        more = {edge.target for edge in definition.nodes[waiting.pop()].outgoing} - reached
        reached |= more
        waiting += more
    return reached
