"""Runs that wait for a person, under executors that die: nothing is lost, nothing is decided twice.

Oracles: the run ends as it does without a crash; its sequence has no gap; every command has exactly one answer; a form
is submitted or expires, never both, and the branch that is taken is that of the first in the log.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from libs.events.model import CommandRejected, FormExpired, FormSubmitted, NodeStarted, NodeSucceeded
from libs.workflow.state import RunState
from tests.documents import code, document, edges, end, human_input, start
from tests.simulation.world import World

FORM_S = 18.0
REST_S = 8.0
"""Long enough for all that runs to end, too short for a form to expire."""

APPROVAL = document(
    [
        start(),
        code("draft"),
        human_input("ask", timeout=FORM_S / 3600),
        code("beside"),
        code("go"),
        code("late"),
        end(note="ask.note", action="ask.__action_id", go="go.result", late="late.result", beside="beside.result"),
    ],
    edges("start > draft > ask", "start > beside > end", "ask[ok] > go > end", "ask[__timeout] > late > end"),
)


def _world(**settings: object) -> tuple[World, str]:
    world = World(**settings)  # type: ignore[arg-type]
    return world, world.submit(world.add("document", APPROVAL))


def _answers(world: World) -> Counter[int]:
    """Command offset -> events that answer it."""
    return Counter(
        recorded.event.command_offset for recorded in world.events() if hasattr(recorded.event, "command_offset")
    )


def _check(world: World, run_id: str, commands: int) -> RunState:
    state = world.fold(run_id)
    assert _answers(world) == Counter(range(commands))
    outcomes = Counter(
        recorded.event.node_id for recorded in world.events(run_id) if isinstance(recorded.event, NodeSucceeded)
    )
    assert set(outcomes.values()) == {1}
    return state


def _with_crashes(act: Callable[[World, str], None], commands: int, **settings: object) -> list[RunState]:
    """Run, act on the run when it rests, run on; with a crash at every append of it. The states it ends in."""
    world, run_id = _world(**settings)
    world.start_executor()
    world.run(horizon_s=REST_S)
    act(world, run_id)
    world.run(horizon_s=3 * FORM_S)
    ends = [_check(world, run_id, commands)]
    appends = world.landed
    world.close()
    assert appends > 15
    for crash_at in range(appends + 1):
        world, run_id = _world(**settings)
        world.start_executor()
        acted = not world.run(landings=crash_at, horizon_s=REST_S)
        if acted:
            act(world, run_id)
            world.run(landings=crash_at - world.landed, horizon_s=3 * FORM_S)
        world.crash()
        world.start_executor()
        if not acted:
            world.run(horizon_s=REST_S)
            act(world, run_id)
        world.run(horizon_s=3 * FORM_S)
        ends.append(_check(world, run_id, commands))
        world.close()
    return ends


def test_a_submitted_run_ends_alike_wherever_its_executor_dies() -> None:
    def act(world: World, run_id: str) -> None:
        assert world.fold(run_id).status == "paused"
        (form,) = world.open_forms(run_id)
        world.submit_form(run_id, form.form_id, "ok", note="fine")

    for state in _with_crashes(act, commands=2):
        assert state.status == "succeeded"
        assert state.outputs == {
            "note": "fine", "action": "ok", "go": "go done", "late": None, "beside": "beside done",
        }  # fmt: skip


def test_a_form_expires_once_wherever_its_executor_dies() -> None:
    for state in _with_crashes(lambda world, run_id: None, commands=1):
        assert (state.status, state.outputs["action"], state.outputs["late"]) == ("succeeded", "__timeout", "late done")


@pytest.mark.parametrize("early_s", [-0.01, 0.0, 0.001, 0.02])
def test_submission_against_expiry_is_decided_by_the_order_of_the_log(early_s: float) -> None:
    """A submission around the form's last instant, with a crash at every append."""

    def act(world: World, run_id: str) -> None:
        (form,) = world.open_forms(run_id)
        instant_s = (form.due_us - world.now_us()) / 1e6 + world.loop.time() - early_s
        world.loop.advance(instant_s)
        world.submit_form(run_id, form.form_id, "ok", note="at last")

    for state in _with_crashes(act, commands=2):
        assert state.status == "succeeded"
        assert state.outputs["action"] in ("ok", "__timeout")
        assert (state.outputs["note"] == "at last") == (state.outputs["action"] == "ok")
        assert (state.outputs["go"] is None) == (state.outputs["action"] == "__timeout")


def test_a_submission_behind_the_expiry_is_rejected() -> None:
    world, run_id = _world()
    world.start_executor()
    world.run(horizon_s=REST_S)
    (form,) = world.open_forms(run_id)
    world.run(horizon_s=2 * FORM_S, until=lambda: world.effects.started[-1] == "late" and not world.log.waiting())
    world.submit_form(run_id, form.form_id, "ok", note="late")
    world.run()
    assert world.fold(run_id).outputs["action"] == "__timeout"
    (rejected,) = [each.event for each in world.events() if isinstance(each.event, CommandRejected)]
    assert rejected.code == "form_closed"
    world.close()


def test_a_pause_on_request_holds_what_would_start_wherever_its_executor_dies() -> None:
    for crash_at in range(20):
        world, run_id = _world(delay_s=2.0)
        world.start_executor()
        world.run(until=lambda world=world: len(world.effects.started) == 2 and not world.log.waiting())  # type: ignore[misc]
        world.pause(run_id)
        world.run(landings=crash_at, horizon_s=REST_S)
        world.crash()
        world.start_executor()
        world.run(horizon_s=REST_S)
        state = world.fold(run_id)
        assert state.status == "paused"
        assert not world.open_forms(run_id)
        world.resume(run_id)
        world.run(horizon_s=REST_S)
        (form,) = world.open_forms(run_id)
        world.submit_form(run_id, form.form_id, "ok", note="x")
        world.run()
        state = _check(world, run_id, commands=4)
        assert state.status == "succeeded"
        world.close()


def test_a_paused_run_leaves_memory_and_is_not_loaded_by_the_next_owner() -> None:
    world, _ = _world()
    for _ in range(20):
        world.submit("document")
    executor = world.start_executor()
    world.run(horizon_s=REST_S)
    assert (executor.unfinished_runs, executor.runs_in_memory) == (21, 0)
    world.crash()
    executor = world.start_executor()
    world.run(horizon_s=REST_S)
    assert (executor.unfinished_runs, executor.runs_in_memory) == (21, 0)
    world.close()


def test_a_pause_of_a_paused_run_does_not_keep_it_in_memory() -> None:
    world, run_id = _world()
    executor = world.start_executor()
    world.run(horizon_s=REST_S)
    world.pause(run_id)
    world.run(horizon_s=REST_S)
    assert executor.runs_in_memory == 0
    (form,) = world.open_forms(run_id)
    world.submit_form(run_id, form.form_id, "ok", note="x")
    world.run(horizon_s=REST_S)
    assert (executor.runs_in_memory, world.fold(run_id).status) == (0, "paused")
    world.resume(run_id)
    world.run()
    assert world.fold(run_id).status == "succeeded"
    world.close()


def test_a_stop_ends_a_run_that_is_not_in_memory() -> None:
    world, run_id = _world()
    executor = world.start_executor()
    world.run(horizon_s=REST_S)
    assert executor.runs_in_memory == 0
    world.stop(run_id)
    world.run()
    assert world.fold(run_id).status == "stopped"
    world.close()


def test_an_expiry_survives_a_hand_over() -> None:
    world, run_id = _world()
    executor = world.start_executor()
    world.run(horizon_s=REST_S)
    (form,) = world.open_forms(run_id)
    stopping = asyncio.ensure_future(executor.stop(), loop=world.loop)
    while not stopping.done():
        world.loop.settle()
        world.log.land()
        world.log.deliver()
        if not stopping.done() and (timer := world.loop.next_timer()) is not None:
            world.loop.advance(min(timer, world.loop.time() + 0.1))
    next_owner = world.start_executor()
    world.run(horizon_s=REST_S)
    assert next_owner.runs_in_memory == 0
    world.run(horizon_s=2 * FORM_S)
    assert world.fold(run_id).outputs["action"] == "__timeout"
    expired = next(each for each in world.events(run_id) if isinstance(each.event, FormExpired))
    assert 0 <= expired.at_us - form.due_us < 1_000_000
    world.close()


def test_an_expiry_that_fell_into_a_time_without_executor_comes_with_the_next_one() -> None:
    world, run_id = _world()
    world.start_executor()
    world.run(horizon_s=REST_S)
    world.crash()
    world.loop.advance(world.loop.time() + 5 * FORM_S)
    world.start_executor()
    world.run(horizon_s=REST_S)
    state = world.fold(run_id)
    assert (state.status, state.outputs["action"]) == ("succeeded", "__timeout")
    world.close()


def test_paused_time_does_not_use_up_the_time_limit() -> None:
    world, run_id = _world(max_time_s=10.0)
    world.start_executor()
    world.run(horizon_s=REST_S)
    world.loop.advance(world.loop.time() + FORM_S - 3)
    (form,) = world.open_forms(run_id)
    world.submit_form(run_id, form.form_id, "ok", note="x")
    world.run()
    assert world.fold(run_id).status == "succeeded"
    world.close()


def test_nothing_starts_behind_a_form_before_it_is_answered() -> None:
    world, run_id = _world()
    world.start_executor()
    world.run(horizon_s=REST_S)
    (form,) = world.open_forms(run_id)
    world.submit_form(run_id, form.form_id, "ok", note="x")
    world.run()
    events = world.events(run_id)
    submitted = next(each.seq for each in events if isinstance(each.event, FormSubmitted))
    go = next(each.seq for each in events if isinstance(each.event, NodeStarted) and each.event.node_id == "go")
    assert submitted < go
    world.close()
