"""Faults around an executor: no room for large values, clocks that jump or differ, an outage, a damaged checkpoint."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from libs.events.blobs import BlobError
from libs.events.codec import type_of
from libs.events.log import Record, Topic
from libs.events.model import CheckpointWritten, NodeRetryScheduled, NodeStarted
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.nodes.port import Attempt, Handler
from services.executor.partition import PartitionFold
from services.executor.recovery import PartitionReader, read_to, recover
from tests.documents import chain, code, document, edges, end, start
from tests.simulation.world import World, fails


def large(attempt: Attempt) -> Outcome:
    return Succeeded(outputs={"result": f"{attempt.node.id} " + "x" * 100_000})


def test_no_room_for_large_values_holds_a_run_up_until_there_is() -> None:
    world = World(script=large)
    run = world.submit(world.add("document", chain(2)))
    store, full = world.blobs.put, [True] * 5

    def put(run_id: str, data: bytes) -> "Future[dict[str, Any]]":
        if not full:
            return store(run_id, data)
        full.pop()
        failed: Future[dict[str, Any]] = Future()
        failed.set_exception(BlobError("cannot store blob: No space left on device"))
        return failed

    world.blobs.put = put  # type: ignore[method-assign]  # of this world alone
    world.start_executor()
    world.run()
    types = [type(each.event).__name__ for each in world.events(run)]
    assert types[-1] == "RunSucceeded"
    assert not full
    # What could not be stored was not recorded, so its owner began again: the same attempts, one outcome each.
    assert types.count("NodeSucceeded") == types.count("NodeStarted") == 4
    assert {each.event.attempt for each in world.events(run) if hasattr(each.event, "attempt")} == {1}
    world.close()


@pytest.mark.parametrize("jump_s", [3_600, -3_600], ids=["forward", "back"])
def test_times_of_events_never_fall_and_nothing_lasts_less_than_no_time_when_the_clock_jumps(jump_s: int) -> None:
    world, jumped = World(), [0]
    right = world.now_us
    world.now_us = lambda: right() + jumped[0] * 1_000_000  # type: ignore[method-assign]  # of this world alone
    run = world.submit(world.add("document", chain(4)))
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 2)
    jumped[0] = jump_s
    world.run()
    events = world.events(run)
    assert type(events[-1].event).__name__ == "RunSucceeded"
    times = [each.at_us for each in events]
    assert times == sorted(times)
    lasted = [each.event.elapsed_s for each in events if hasattr(each.event, "elapsed_s")]
    assert len(lasted) > 4
    assert min(lasted) >= 0
    world.close()


@pytest.mark.parametrize("skew_s", [-300, 300])
@pytest.mark.parametrize("crash_at_s", [0.5, 1.5])
def test_executors_whose_clocks_differ_fire_a_timer_once_and_late_rather_than_early(
    skew_s: int, crash_at_s: float
) -> None:
    """The instant of a retry is in the log, by the clock of the owner that failed; the next owner's clock differs."""
    retry = {"retry_enabled": True, "max_retries": 1, "retry_interval": 10_000}
    text = document([start(), code("a", retry_config=retry), end(out="a.result")], edges("start > a > end"))
    world, skewed = World(script=fails(1)), [0]
    right = world.now_us
    world.now_us = lambda: right() + skewed[0] * 1_000_000  # type: ignore[method-assign]  # of this world alone
    run = world.submit(world.add("document", text))
    world.start_executor()
    world.run(horizon_s=crash_at_s)
    world.crash()
    began_s = world.loop.time()
    skewed[0] = skew_s
    world.start_executor()
    world.run()
    events = world.events(run)
    kinds = [type(each.event).__name__ for each in events]
    assert kinds[-1] == "RunSucceeded"
    assert kinds.count("NodeRetryScheduled") == 1
    (scheduled,) = (each.event for each in events if isinstance(each.event, NodeRetryScheduled))
    again = next(each for each in events if isinstance(each.event, NodeStarted) and each.event.attempt == 2)
    assert again.at_us >= scheduled.due_us, "early"
    assert world.loop.time() - began_s < 10 + 2 * abs(skew_s)
    assert sorted(world.effects.calls.values()) == ([1, 1] if crash_at_s > 1 else [1, 2])  # the lost attempt, once more
    world.close()


def test_what_hundreds_of_runs_retry_after_an_outage_ends_well_and_keeps_to_its_slots() -> None:
    retry = {"retry_enabled": True, "max_retries": 3, "retry_interval": 1_000}
    text = document([start(), code("a", retry_config=retry), end(out="a.result")], edges("start > a > end"))
    at_once = [0, 0]

    class Outside(Handler):
        """Away for two and a half seconds; counts how many ask it at once."""

        async def run(self, attempt: Attempt) -> Outcome:
            at_once[0] += 1
            at_once[1] = max(at_once)
            await asyncio.sleep(0.05)
            at_once[0] -= 1
            if attempt.number <= 2:
                return Failed("503 from upstream", "HTTPError")
            return Succeeded(outputs={"result": "at last"})

    world = World(slots={"wait": 20, "process": 4}, handlers={"code": Outside()})
    digest = world.add("document", text)
    runs = [world.submit(digest) for _ in range(200)]
    world.start_executor()
    world.run()
    ends = Counter(world.fold(run).status for run in runs)
    assert ends == {"succeeded": 200}
    assert at_once[1] == 20
    kinds = Counter(type(each.event).__name__ for each in world.events())
    assert (kinds["NodeRetryScheduled"], kinds["NodeFailed"]) == (400, 0)
    world.close()


class Damaged:
    """A log in which the bodies of all checkpoints cannot be read any more."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.damaged = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, topic: Topic, *arguments: Any, **named: Any) -> Iterator[list[Record]]:
        for batch in self._log.read(topic, *arguments, **named):
            yield [self._read(record) for record in batch]

    def _read(self, record: Record) -> Record:
        if type_of(record) != "CheckpointWritten":
            return record
        self.damaged += 1
        return replace(record, value=b"\xff" * 8)


def test_a_damaged_checkpoint_costs_time_and_no_truth() -> None:
    world = World(checkpoint_bytes=2_000, snapshot_events=3)
    digest = world.add("document", chain(3))
    for _ in range(4):
        world.submit(digest)
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 8)
    assert any(isinstance(each.event, CheckpointWritten) for each in world.events())
    damaged, whole = Damaged(world.log), PartitionReader(PartitionFold(0))
    read_to(world.log, whole)
    found = recover(damaged, 0)  # type: ignore[arg-type]  # a log in all that recovery asks
    assert damaged.damaged
    assert (found.fold.validity, found.fold.next_command) == (whole.fold.validity, whole.fold.next_command)
    assert {run: entry.seq for run, entry in found.fold.runs.items()} == {
        run: entry.seq for run, entry in whole.fold.runs.items()
    }
    assert found.fold.runs
    world.close()
