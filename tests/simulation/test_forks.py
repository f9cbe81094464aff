"""Forked runs under executors that die: what was copied is recorded once, what was done is not done again."""

import json

import pytest

from libs.events.commands import Origin
from libs.events.model import NodeSucceeded
from libs.workflow.definition import compile_document
from libs.workflow.fork import Fork, fork
from tests.documents import chain
from tests.simulation.world import World


def _origin(**options: int) -> tuple[World, str, Fork]:
    """A world in which a chain of five nodes has run, and its fork behind the third of them, with another value."""
    world = World(**options)
    run_id = world.submit(world.add("document", chain(5)))
    world.start_executor()
    world.run()
    events = [each.event for each in world.events(run_id)]
    done = next(n for n, event in enumerate(events, 1) if isinstance(event, NodeSucceeded) and event.node_id == "n3")
    made = fork(compile_document(chain(5)), events, done, {"n1.result": "edited"})  # type: ignore[arg-type]
    return world, run_id, made


def _start(world: World, origin: str, made: Fork) -> str:
    world.effects.started.clear()
    return world.request("document", forked_from=Origin(run_id=origin, seq=made.at), prefix=made.prefix)


def _told(world: World, run_id: str) -> list[tuple[str, str]]:
    return [(each.event.type, getattr(each.event, "node_id", "")) for each in world.events(run_id)]


def test_a_fork_has_a_history_of_its_own_and_says_what_is_copied() -> None:
    world, origin, made = _origin()
    run_id = _start(world, origin, made)
    world.run()
    events = world.events(run_id)
    assert world.effects.started == ["n4", "n5"]
    assert world.fold(run_id).pool.get(("n1", "result")).value == "edited"  # type: ignore[union-attr]
    copied = [event for event in events if event.cause == "copied"]
    assert len(copied) == len(made.prefix) == made.at - 2
    assert [event.event.type for event in copied] == [each["type"] for each in made.prefix]  # type: ignore[index,call-overload]
    assert _told(world, run_id) == _told(world, origin)
    world.close()


@pytest.mark.parametrize("after", [False, True], ids=["before it lands", "after it landed"])
@pytest.mark.parametrize("snapshot_events", [1_000, 4])
def test_a_fork_ends_alike_wherever_its_executor_dies(snapshot_events: int, *, after: bool) -> None:
    world, origin, made = _origin(snapshot_events=snapshot_events)
    before = world.landed
    run_id = _start(world, origin, made)
    world.run()
    appends = world.landed - before
    plain = _told(world, run_id)
    world.close()
    assert appends > len(made.prefix)
    for crash_at in range(appends):
        world, origin, made = _origin(snapshot_events=snapshot_events)
        run_id = _start(world, origin, made)
        world.run(landings=crash_at + after)
        finished = {
            event.event.node_id for event in world.events(run_id) if isinstance(event.event, NodeSucceeded)
        } | {"n1", "n2", "n3"}  # fmt: skip
        started = len(world.effects.started)
        world.crash()
        world.start_executor()
        world.run()
        state = world.fold(run_id)
        assert (state.status, state.outputs) == ("succeeded", {"out": "n5 done"})
        assert not finished & set(world.effects.started[started:])
        assert [each for each in _told(world, run_id) if each[0] != "NodeRestarted"] == plain
        world.close()


def test_a_stop_reaches_a_fork_that_still_copies() -> None:
    world, origin, made = _origin()
    run_id = _start(world, origin, made)
    world.run(landings=4)
    world.crash()
    world.stop(run_id)
    world.start_executor()
    world.run()
    assert world.fold(run_id).status == "stopped"
    assert world.effects.started == []
    world.close()


def test_a_long_beginning_travels_through_the_blobs() -> None:
    world, origin, made = _origin()
    ref = world.blobs.put("", json.dumps(made.prefix).encode()).result()
    run_id = world.request("document", forked_from=Origin(run_id=origin, seq=made.at), prefix=ref)
    world.effects.started.clear()
    world.run()
    assert world.effects.started == ["n4", "n5"]
    assert world.events(run_id)[-1].event.type == "RunSucceeded"
    world.close()
