"""Forks of any run at any place, over random graphs, outcomes and orders of completion."""

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.events.model import NodeFailed, NodeStarted
from libs.workflow.fork import ForkInvalid, fork, retry_point
from libs.workflow.machine import Stop, apply, decide, derived, new_state
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Form, Key, dump_state, load_state
from libs.workflow.streaming import ResponseStream
from tests.driver import RUN_ID, Driver
from tests.graphs import graphs

MANY = settings(max_examples=120, deadline=None)
INPUTS: dict[str, Any] = {"q": "yes", "items": ["x", "y", "z"]}


def _answers(seed: int, asked: set[tuple[Key, int]] | None = None) -> Any:
    """A pure function of node and attempt; `asked` notes who was asked."""

    def answer(key: Key, attempt: int) -> Outcome:
        if asked is not None:
            asked.add((key, attempt))
        if random.Random(f"{seed} {key} {attempt}").random() < 0.2:
            return Failed(f"{key.node_id} broke", "SomeError")
        return Succeeded(outputs={"result": f"{key.node_id} at {key.path}"})

    return answer


def _person(seed: int) -> Callable[[Form], str | None]:
    """As pure; sometimes nobody answers."""
    return lambda form: random.Random(f"{seed} {form.path} {form.node_id}").choice(["ok", "no", None])


def _run(text: str, seed: int, order: int) -> Driver:
    driver, chooser = Driver(text, **INPUTS), random.Random(order)
    driver.run(_answers(seed), choose=lambda keys: chooser.choice(keys), person=_person(seed))
    return driver


def _text(driver: Driver) -> str:
    """What a client's stream shows in the end."""
    state, shown = new_state(driver.definition, RUN_ID), ""
    stream = ResponseStream(driver.definition)
    for event in driver.events:
        apply(state, event, 1, 1)
        for said in stream.on_event(event, state):
            shown = said.text if said.replace else shown + said.text
    return shown


def _new(origin: Driver, prefix: list[Any]) -> Driver:
    return Driver(origin.definition, accepted={"prefix": prefix}, **INPUTS)


@MANY
@given(graphs(), st.integers(0, 1000), st.integers(0, 1000), st.data())
def test_a_fork_ends_alike(text: str, seed: int, order: int, data: st.DataObject) -> None:
    whole = _run(text, seed, order)
    at = data.draw(st.integers(1, len(whole.events) - 1))
    try:
        made = fork(whole.definition, whole.events, at)
    except ForkInvalid:
        assert any(isinstance(event, NodeFailed) and not event.path for event in whole.events[:at])
        return
    asked: set[tuple[Key, int]] = set()
    forked = _new(whole, made.prefix)
    state = forked.run(_answers(seed, asked), person=_person(seed))
    assert state.status == whole.state.status
    if state.status != "failed":
        assert state.outputs == whole.state.outputs
        assert state.exceptions_count == whole.state.exceptions_count
        assert state.total_steps == whole.state.total_steps
        assert _text(forked) == _text(whole)
    done = {
        (Key(event.path, event.node_id), event.attempt)
        for event in whole.events[:at]
        if event.type in ("NodeSucceeded", "NodeFailed", "NodeExcepted", "NodeRetryScheduled")
    }
    assert not asked & done
    assert not {key.node_id for key, _ in asked} - {event.node_id for event in whole.events if _is_start(event)} or (
        state.status == "failed"
    )
    starts = [event.index for event in forked.events if isinstance(event, NodeStarted) and event.attempt == 1]
    assert starts == list(range(1, len(starts) + 1))


def _is_start(event: Any) -> bool:
    return isinstance(event, NodeStarted)


@MANY
@given(graphs(), st.integers(0, 1000), st.integers(0, 1000), st.data())
def test_a_forks_history_is_cut_and_kept_like_any(text: str, seed: int, order: int, data: st.DataObject) -> None:
    whole = _run(text, seed, order)
    failed = [n for n, event in enumerate(whole.events, 1) if isinstance(event, NodeFailed) and not event.path]
    at = data.draw(st.integers(1, min(failed, default=len(whole.events)) - 1))
    forked = _new(whole, fork(whole.definition, whole.events, at).prefix)
    forked.run(_answers(seed), person=_person(seed))
    cut = data.draw(st.integers(1, len(forked.events)))
    resumed = _new(whole, [])
    resumed.state, resumed.events = new_state(whole.definition, RUN_ID), []
    for event in forked.events[:cut]:
        resumed.fold(event)
    image = dump_state(resumed.state)
    resumed.state = load_state(whole.definition, RUN_ID, image)
    assert dump_state(resumed.state) == image
    resumed.epoch = 2
    resumed.run(_answers(seed), person=_person(seed))
    assert resumed.state.status == forked.state.status
    if forked.state.status != "failed":
        assert resumed.state.outputs == forked.state.outputs


@MANY
@given(graphs(), st.integers(0, 1000), st.integers(0, 1000), st.data())
def test_a_stop_ends_a_fork_wherever_it_is(text: str, seed: int, order: int, data: st.DataObject) -> None:
    whole = _run(text, seed, order)
    failed = [n for n, event in enumerate(whole.events, 1) if isinstance(event, NodeFailed) and not event.path]
    at = data.draw(st.integers(1, min(failed, default=len(whole.events)) - 1))
    forked = _new(whole, fork(whole.definition, whole.events, at).prefix).begin()
    for _ in range(data.draw(st.integers(0, at))):
        event = derived(forked.state)
        if event is None or forked.state.ended:
            break
        forked.fold(event)
    if not forked.state.ended:
        forked.fold(decide(forked.state, Stop(7, "enough")))
        forked.derive()
        assert forked.state.status == "stopped"


@MANY
@given(graphs(), st.integers(0, 1000), st.integers(0, 1000))
def test_a_retry_whose_nodes_work_succeeds(text: str, seed: int, order: int) -> None:
    whole = _run(text, seed, order)
    if whole.state.status != "failed":
        return
    point = retry_point(whole.definition, whole.events)
    made = fork(whole.definition, whole.events, point.at, without=point.without)
    forked = _new(whole, made.prefix)
    state = forked.run(lambda key, attempt: Succeeded(outputs={"result": "mended"}), person=_person(seed))
    assert state.status in ("succeeded", "partial-succeeded")
    again = new_state(whole.definition, RUN_ID)
    for event in forked.events:
        apply(again, event, 1, 1)
    assert (again.status, again.outputs) == (state.status, state.outputs)
