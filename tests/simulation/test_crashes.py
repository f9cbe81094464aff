"""An executor that dies at every append, before and after it lands; another one goes on.

Oracles after every crash: the run ends as it does without a crash; the sequence has no gap; every node execution has
exactly one outcome; a node whose outcome was in the log is not run again; an attempt keeps its idempotency key.
"""

from collections import Counter

import pytest

from libs.events.model import NodeExcepted, NodeFailed, NodeSucceeded
from tests.documents import chain, code, document, edges, end, fan_out, if_else, start, template
from tests.simulation.world import World, fails

RETRY = {"retry_enabled": True, "max_retries": 2, "retry_interval": 500}

SCENARIOS = {
    "chain": (chain(4), {}, None),
    "fan out": (fan_out(5), {}, None),
    "pure and slow": (
        document(
            [
                start("q"),
                template("t1", "{{ q }}!", q="start.q"),
                if_else("choice", "start.q", "is", "yes"),
                code("a"),
                template("t2", "{{ a }}?", a="a.result"),
                code("skipped"),
                end(out="t2.output", t="t1.output"),
            ],
            edges("start > t1 > choice", "choice[true] > a > t2 > end", "choice[false] > skipped > end"),
        ),
        {"q": "yes"},
        None,
    ),
    "retries": (
        document([start(), code("a", retry_config=RETRY), code("b"), end(out="b.result")], edges("start > a > b > end")),
        {},
        fails(1),
    ),
    "fail branch": (
        document(
            [start(), code("a", error_strategy="fail-branch"), end("good"), end("bad", why="a.error_message")],
            edges("start > a > good", "a[fail-branch] > bad"),
        ),
        {},
        fails(9),
    ),
    "failure among siblings": (fan_out(3), {}, fails(9)),
}


def _world(name: str) -> tuple[World, str]:
    text, inputs, script = SCENARIOS[name]
    world = World(script=script if name != "retries" else None)
    if name == "retries":
        world.script = lambda attempt: fails(1)(attempt) if attempt.node.id == "a" else fails(0)(attempt)
    digest = world.add("document", text)
    run_id = world.submit(digest, **inputs)
    return world, run_id


def _plain(name: str) -> tuple[str, dict[str, object], int]:
    world, run_id = _world(name)
    world.start_executor()
    world.run()
    state = world.fold(run_id)
    count = world.landed
    world.close()
    return state.status, state.outputs, count  # type: ignore[return-value]


def _check(world: World, run_id: str, status: str, outputs: dict[str, object]) -> None:
    state = world.fold(run_id)
    assert (state.status, state.outputs) == (status, outputs)
    outcomes = Counter(
        (event.event.path, event.event.node_id)
        for event in world.events(run_id)
        if isinstance(event.event, NodeSucceeded | NodeFailed | NodeExcepted)
    )
    assert all(count == 1 for count in outcomes.values())
    ends = [event for event in world.events(run_id) if event.seq == state.seq]
    assert len(ends) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before it lands", "after it landed"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_ends_alike_wherever_its_executor_dies(name: str, after: bool) -> None:
    status, outputs, appends = _plain(name)
    assert appends > 5
    for crash_at in range(appends):
        world, run_id = _world(name)
        world.start_executor()
        reached = world.run(landings=crash_at + after)
        assert reached or world.landed == crash_at + after
        outcomes_before = {
            event.event.node_id for event in world.events(run_id) if isinstance(event.event, NodeSucceeded | NodeExcepted)
        }
        started_before = len(world.effects.started)
        world.crash()
        world.start_executor()
        world.run()
        _check(world, run_id, status, outputs)
        run_again = set(world.effects.started[started_before:])
        assert not run_again & outcomes_before, f"crash at {crash_at}: finished nodes ran again"
        world.close()


def test_every_executor_of_many_dies_after_one_append_and_the_run_still_ends() -> None:
    world = World(delay_s=0.1)
    run_id = world.submit(world.add("document", chain(3)))
    for _ in range(200):
        world.start_executor()
        if not world.run(landings=2):
            break
        world.crash()
    state = world.fold(run_id)
    assert state.status == "succeeded"
    world.close()


def test_nothing_starts_before_its_start_is_in_the_log() -> None:
    world = World()
    run_id = world.submit(world.add("document", chain(2)))
    world.start_executor()
    for _ in range(100):
        reached = world.run(landings=1)
        started = {event.event.node_id for event in world.events(run_id) if type(event.event).__name__ == "NodeStarted"}
        assert set(world.effects.started) <= started
        if not reached:
            break
    assert world.fold(run_id).status == "succeeded"
    world.close()


def test_an_effect_is_given_the_same_key_when_its_owner_is_lost() -> None:
    world = World(delay_s=5)
    run_id = world.submit(world.add("document", chain(1)))
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 1)
    world.crash()
    world.start_executor()
    world.run()
    assert world.fold(run_id).status == "succeeded"
    assert world.effects.calls == {f"{run_id}/n1//1": 2}
    assert [type(e.event).__name__ for e in world.events(run_id)].count("NodeRestarted") == 1
    world.close()
