"""An executor that dies at every append, before and after it lands; another one goes on.

Oracles after every crash: the run ends as it does without a crash; the sequence has no gap; every node execution has
exactly one outcome; a node whose outcome was in the log is not run again; an attempt keeps its idempotency key.
"""

from collections import Counter
from typing import Any

import pytest

from libs.events.log import Record, Topic
from libs.events.memory import MemoryLog
from libs.events.model import NodeExcepted, NodeFailed, NodeSucceeded
from libs.workflow.outcome import Outcome, Succeeded
from services.executor.nodes.port import Attempt
from tests.documents import chain, code, document, edges, end, fan_out, if_else, node, start, template
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
        document(
            [start(), code("a", retry_config=RETRY), code("b"), end(out="b.result")], edges("start > a > b > end")
        ),
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
            event.event.node_id
            for event in world.events(run_id)
            if isinstance(event.event, NodeSucceeded | NodeExcepted)
        }
        started_before = len(world.effects.started)
        world.crash()
        world.start_executor()
        world.run()
        _check(world, run_id, status, outputs)
        run_again = set(world.effects.started[started_before:])
        assert not run_again & outcomes_before, f"crash at {crash_at}: finished nodes ran again"
        world.close()


def test_a_run_ends_although_every_executor_dies_soon() -> None:
    # Claim, restart of what was lost, its outcome, one more: less than that is no progress.
    world = World(delay_s=0.1)
    run_id = world.submit(world.add("document", chain(3)))
    for _ in range(50):
        world.start_executor()
        if not world.run(landings=4):
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


ITERATION = document(
    [
        start("items"),
        code("list"),
        node(
            "each",
            "iteration",
            start_node_id="eachstart",
            iterator_selector=["list", "items"],
            output_selector=["work", "result"],
            is_parallel=True,
            parallel_nums=2,
            error_handle_mode="terminated",
            flatten_output=True,
        ),
        node("eachstart", "iteration-start", iteration_id="each"),
        code("work", iteration_id="each"),
        end(out="each.output"),
    ],
    edges("start > list > each > end", "eachstart > work"),
)


def _lists(attempt: Attempt) -> Outcome:
    if attempt.node.id == "list":
        return Succeeded(outputs={"items": ["a", "b", "c"]})
    return Succeeded(outputs={"result": f"done at {attempt.path}"})


def test_a_parallel_iteration_ends_alike_wherever_its_executor_dies() -> None:
    def world_with_run() -> tuple[World, str]:
        world = World(script=_lists)
        return world, world.submit(world.add("document", ITERATION))

    world, run_id = world_with_run()
    world.start_executor()
    world.run()
    whole = world.fold(run_id)
    appends = world.landed
    world.close()
    assert whole.status == "succeeded"
    assert len(whole.outputs["out"]) == 3  # type: ignore[arg-type]
    for crash_at in range(appends + 1):
        world, run_id = world_with_run()
        world.start_executor()
        world.run(landings=crash_at)
        world.crash()
        world.start_executor()
        world.run()
        _check(world, run_id, "succeeded", whole.outputs)
        world.close()


def test_a_parallel_iteration_completes_with_a_single_slot_in_the_order_of_its_items() -> None:
    world = World(script=_lists, slots={"wait": 1, "process": 1})
    run_id = world.submit(world.add("document", ITERATION))
    world.start_executor()
    world.run()
    state = world.fold(run_id)
    assert state.status == "succeeded"
    assert state.outputs["out"] == [f"done at iteration:each:{index}" for index in range(3)]
    world.close()


def test_a_stop_ends_a_running_node_and_the_run() -> None:
    world = World(delay_s=100)
    run_id = world.submit(world.add("document", fan_out(3)))
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 3)
    world.stop(run_id)
    world.run()
    assert world.loop.time() < 1
    assert world.fold(run_id).status == "stopped"
    assert not world.effects.finished
    world.close()


def test_a_stop_is_not_lost_when_the_executor_dies_at_any_append() -> None:
    for crash_at in range(12):
        world = World(delay_s=100)
        run_id = world.submit(world.add("document", fan_out(2)))
        world.start_executor()
        world.run(until=lambda world=world: len(world.effects.started) == 2)  # type: ignore[misc]
        world.stop(run_id)
        world.run(landings=crash_at)
        world.crash()
        world.start_executor()
        world.run()
        assert world.fold(run_id).status == "stopped"
        world.close()


def test_an_appended_record_that_is_reported_as_lost_is_not_written_again() -> None:
    """The broker says "timed out" although the records are in the log: nothing doubles."""
    for failing_at in range(1, 14):
        world = World()
        run_id = world.submit(world.add("document", chain(3)))
        world.start_executor()
        world.run(landings=failing_at)
        world.log.land(error="timed out")
        world.log.deliver()
        world.run()
        state = world.fold(run_id)
        assert state.status == "succeeded"
        kinds = Counter(type(each.event).__name__ for each in world.events(run_id))
        assert (kinds["NodeSucceeded"], kinds["RunSucceeded"]) == (5, 1)
        world.close()


def test_records_that_were_lost_in_a_burst_leave_a_hole_that_costs_nothing() -> None:
    """Records 1 2 3 6 7 of an epoch are in the log: 6 and 7 do not count, whatever runs they belong to."""
    for lost_at in range(1, 14):
        world = World(slots={"wait": 1000, "process": 4})
        digest = world.add("document", fan_out(4))
        runs = [world.submit(digest) for _ in range(3)]
        world.start_executor()
        world.run(landings=lost_at)
        world.log.lose(2)
        world.log.land(2, error="timed out")
        world.log.deliver()
        world.run()
        assert [world.fold(run_id).status for run_id in runs] == ["succeeded"] * 3
        world.close()


def test_two_executors_on_one_partition_never_record_an_outcome_twice() -> None:
    """Placement is wrong for a while: both think that they own it. Claims in the log decide."""
    for moment in range(1, 14):
        world = World(delay_s=0.3)
        run_id = world.submit(world.add("document", chain(3)))
        world.start_executor()
        world.run(landings=moment)
        first = world.executor
        world.start_executor()
        world.run()
        state = world.fold(run_id)
        assert (state.status, state.outputs) == ("succeeded", {"out": "n3 done"})
        kinds = Counter(type(each.event).__name__ for each in world.events(run_id))
        assert (kinds["NodeSucceeded"], kinds["RunSucceeded"]) == (5, 1)
        assert first is not world.executor
        world.close()


def test_a_late_batch_of_commands_does_not_hide_the_commands_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail that was moved may still deliver what it had under way: later commands before earlier ones."""
    tail = MemoryLog.tail

    def stale_first(self: MemoryLog, topic: Topic, starts: Any, deliver: Any, on_error: Any, **more: Any) -> Any:
        fresh = [topic is Topic.COMMANDS]

        def late(records: list[Record]) -> None:
            if fresh[0]:
                fresh[0] = False
                deliver(records[1:])
            deliver(records)

        return tail(self, topic, starts, late, on_error, **more)

    monkeypatch.setattr(MemoryLog, "tail", stale_first)
    world = World()
    digest = world.add("document", chain(1))
    runs = [world.submit(digest) for _ in range(3)]
    world.start_executor()
    world.run()
    assert [world.fold(run_id).status for run_id in runs] == ["succeeded"] * 3
    world.close()
