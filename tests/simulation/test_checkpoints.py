"""Crashes at every append while snapshots and checkpoints are written all the time.

Snapshots every 3 events and checkpoints every 2 KB put a cut between every two parts of both: recovery from the
table, the snapshots and the events behind them must be as good as from the whole history.
"""

import json

import pytest

from benchmarks.containers import document as container_document
from libs.events.model import CheckpointWritten, RunSnapshotted
from services.executor.partition import PartitionFold
from services.executor.recovery import PartitionReader, read_to, recover
from tests.documents import chain, code, document, edges, end, node, start
from tests.simulation.test_crashes import ITERATION, SCENARIOS, _lists
from tests.simulation.world import World, fails

LOOP = document(
    [
        start("q"),
        node(
            "again",
            "loop",
            start_node_id="againstart",
            loop_count=3,
            break_conditions=[],
            logical_operator="and",
            loop_variables=[{"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": 1}],
        ),
        node("againstart", "loop-start", loop_id="again"),
        code("a", loop_id="again"),
        code("b", loop_id="again"),
        end(out="a.result", rounds="again.loop_round"),
    ],
    edges("start > again > end", "againstart > a", "againstart > b"),
)

ALL = {**SCENARIOS, "iteration": (ITERATION, {}, _lists), "loop": (LOOP, {}, None)}


def _world(name: str, runs: int) -> tuple[World, list[str]]:
    text, inputs, script = ALL[name]
    world = World(script=script, snapshot_events=3, checkpoint_bytes=2_000)
    if name == "retries":
        world.script = lambda attempt: fails(1)(attempt) if attempt.node.id == "a" else fails(0)(attempt)
    digest = world.add("document", text)
    return world, [world.submit(digest, **inputs) for _ in range(runs)]


def _ends(world: World, runs: list[str]) -> list[tuple[str, object]]:
    return [(state.status, state.outputs) for state in map(world.fold, runs)]


def _check_recovery(world: World) -> None:
    """What recovery finds behind a checkpoint is what reading everything finds."""
    found = recover(world.log, 0)
    whole = PartitionReader(PartitionFold(0))
    read_to(world.log, whole)
    assert found.checkpoint_at is None
    assert found.fold.validity == whole.fold.validity
    assert found.fold.next_command == whole.fold.next_command
    assert found.fold.keys == whole.fold.keys
    table, expected = found.fold.runs, whole.fold.runs
    assert {r: (e.seq, e.stopping, e.started) for r, e in table.items()} == {
        r: (e.seq, e.stopping, e.started) for r, e in expected.items()
    }


@pytest.mark.parametrize("after", [False, True], ids=["before it lands", "after it landed"])
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_runs_end_alike_wherever_an_executor_that_writes_checkpoints_dies(name: str, runs: int, after: bool) -> None:
    world, ids = _world(name, runs)
    world.start_executor()
    world.run()
    expected, appends = _ends(world, ids), world.landed
    kinds = {type(each.event) for each in world.events()}
    assert {RunSnapshotted, CheckpointWritten} <= kinds
    world.close()
    for crash_at in range(0, appends, 1 if runs == 1 else 3):
        world, ids = _world(name, runs)
        world.start_executor()
        world.run(landings=crash_at + after)
        world.crash()
        _check_recovery(world)
        world.start_executor()
        world.run()
        assert _ends(world, ids) == expected, f"crash at {crash_at}"
        world.close()


def test_a_table_larger_than_the_interval_is_not_written_for_ever() -> None:
    world = World(slots={"wait": 1, "process": 1}, checkpoint_bytes=500, delay_s=10)
    digest = world.add("document", chain(2))
    for _ in range(10):
        world.submit(digest)
    world.start_executor()
    world.run(landings=300)
    events = world.events()
    checkpoints = {each.event.checkpoint_id for each in events if isinstance(each.event, CheckpointWritten)}
    assert 1 <= len(checkpoints) < 30
    world.close()


def test_snapshots_of_a_run_that_grows_cost_no_more_than_a_few_of_its_last_one() -> None:
    """Counted in what is written: with a fixed distance it would be half the number of snapshots."""
    world = World(snapshot_events=10, max_steps=10_000)
    run = world.submit(world.add("document", container_document("loop", 500)))
    world.start_executor()
    world.run()
    assert world.fold(run).status == "succeeded"
    sizes = [len(json.dumps(each.event.state)) for each in world.events() if isinstance(each.event, RunSnapshotted)]
    assert len(sizes) > 10
    assert sum(sizes) < 6 * max(sizes)
    world.close()
