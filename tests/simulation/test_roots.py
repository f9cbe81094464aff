"""Runs that begin at a root of several, under executors that die at any append: they go on from where they began."""

import pytest

from libs.events.model import NodeStarted, RunAccepted
from tests.documents import code, document, edges, end, node
from tests.simulation.world import World

TRIGGERS = document(
    [
        *(node(name, "trigger-plugin") for name in ("first", "second", "third")),
        *(code(name) for name in ("a", "b", "c", "shared")),
        end(out="shared.result", b="b.result"),
    ],
    edges("first > a > shared > end", "second > b > shared", "third > c > end"),
)


def _world(snapshot_events: int) -> tuple[World, str]:
    world = World(snapshot_events=snapshot_events)
    return world, world.request(world.add("document", TRIGGERS), root="second", inputs={"who": "Ada"})


def _check(world: World, run_id: str) -> None:
    state = world.fold(run_id)
    assert (state.status, state.outputs) == ("succeeded", {"out": "shared done", "b": "b done"})
    events = [each.event for each in world.events(run_id)]
    assert isinstance(events[0], RunAccepted)
    assert events[0].root == "second"
    started = [event.node_id for event in events if isinstance(event, NodeStarted)]
    assert started == ["second", "b", "shared", "end"]
    assert state.frames[""].skipped == {"first", "a", "third", "c"}
    assert state.pool.get(("second", "who")).value == "Ada"  # type: ignore[union-attr]


@pytest.mark.parametrize("after", [False, True], ids=["before it lands", "after it landed"])
@pytest.mark.parametrize("snapshot_events", [1_000, 4])
def test_a_run_goes_on_from_its_root_wherever_its_executor_dies(snapshot_events: int, *, after: bool) -> None:
    world, run_id = _world(snapshot_events)
    world.start_executor()
    world.run()
    appends = world.landed
    _check(world, run_id)
    world.close()
    for crash_at in range(appends):
        world, run_id = _world(snapshot_events)
        world.start_executor()
        world.run(landings=crash_at + after)
        world.crash()
        world.start_executor()
        world.run()
        _check(world, run_id)
        world.close()
