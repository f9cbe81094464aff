"""What an epoch leaves behind when it ends: no slot, wake-up, task or answer may reach into the next, or be lost."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from libs.events.log import LogError, Topic
from libs.events.model import (
    CheckpointWritten,
    CommandRejected,
    NodeStarted,
    NodeSucceeded,
    OwnerConfirmed,
    PartitionReleased,
)
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.nodes.port import Attempt, Handler
from services.executor.recovery import recover
from services.executor.slots import Slots
from tests.documents import chain, code, document, edges, end, fan_out, node, start, template
from tests.simulation.world import World, fails

NARROW = {"wait": 1, "process": 1}


def _lose_epoch(world: World) -> None:
    """What waits for the log is lost; the executor goes on with a new epoch."""
    world.log.lose(1)
    world.log.deliver()


def _statuses(world: World, runs: list[str]) -> list[str]:
    return [world.fold(run_id).status for run_id in runs]


def test_a_slot_is_free_again_when_the_epoch_ends_before_its_attempt_began() -> None:
    world = World(slots=NARROW)
    run_id = world.submit(world.add("document", chain(1)))
    world.start_executor()
    world.run(until=lambda: world.log.waiting() > 0 and len(world.events(run_id)) >= 3)
    _lose_epoch(world)
    world.run()
    assert world.fold(run_id).status == "succeeded"
    world.close()


def test_a_slot_is_free_again_when_the_attempt_is_cancelled_before_its_first_step() -> None:
    """One batch of acknowledgements confirms the start of an attempt and then ends the epoch."""
    for landed in range(1, 12):
        world = World(slots=NARROW)
        digest = world.add("document", chain(2))
        runs = [world.submit(digest) for _ in range(2)]
        world.start_executor()
        world.run(landings=landed)
        world.log.land(1)
        _lose_epoch(world)
        world.run()
        assert _statuses(world, runs) == ["succeeded"] * 2, landed
        world.close()


def test_a_waiter_of_an_ended_epoch_does_not_act_in_the_next_one() -> None:
    """Runs wait for a slot when the epoch ends; as the next epoch knows them, they must not meet their ghosts."""
    for lost_after in range(1, 8):
        world = World(slots={"wait": 2, "process": 1}, delay_s=0.5)
        digest = world.add("document", fan_out(3))
        runs = [world.submit(digest) for _ in range(3)]
        world.start_executor()
        world.run(until=lambda world=world: len(world.effects.finished) >= 1)  # type: ignore[misc]
        world.run(landings=lost_after)
        _lose_epoch(world)
        world.run()
        assert _statuses(world, runs) == ["succeeded"] * 3, lost_after
        world.close()


def test_a_wake_up_goes_on_to_who_still_wants_the_slot() -> None:
    slots, woken = Slots({"wait": 1}), []
    slots.take("wait")

    def waiter(name: str, *, wants: bool) -> Callable[[], bool]:
        def wake() -> bool:
            woken.append(name)
            return wants

        return wake

    slots.wait("wait", waiter("gone", wants=False))
    slots.wait("wait", waiter("here", wants=True))
    slots.wait("wait", waiter("later", wants=True))
    slots.release("wait")
    assert woken == ["gone", "here"]


class Stubborn(Handler):
    """Answers although it is cancelled, the first time."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, attempt: Attempt) -> Outcome:
        self.calls += 1
        call = self.calls
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            if call > 1:
                raise
        return Succeeded(outputs={"result": f"call {call}"})


def test_the_answer_of_an_attempt_that_ignores_its_cancelling_does_not_count_in_the_next_epoch() -> None:
    stubborn = Stubborn()
    world = World(handlers={"code": stubborn})
    run_id = world.submit(world.add("document", chain(1)))
    other = world.submit("document")
    world.start_executor()
    world.run(until=lambda: stubborn.calls == 2)
    world.stop(other)
    world.loop.settle()
    _lose_epoch(world)
    world.run()
    state = world.fold(run_id)
    assert (state.status, state.outputs) == ("succeeded", {"out": f"call {stubborn.calls}"})
    world.close()


class Answers(Handler):
    """Answers at once, whatever it is told to."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def evaluate(self, node: Any, pool: Any) -> Outcome:
        return self._outcome


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (float("nan"), None),
        ([float("inf"), 1.5], [None, 1.5]),
        ("half \ud83d", "half ?"),
        ({"\ud83d": float("nan")}, {"?": None}),
        ((1, 2), [1, 2]),
        ({1: "x"}, {"1": "x"}),
        (_deep(150), _deep(150)),
    ],
    ids=["nan", "infinity", "half a pair", "both", "tuple", "number as key", "deep"],
)
def test_memory_holds_what_the_log_gives_back(value: Any, kept: Any) -> None:
    """A snapshot is taken from memory, the end of the run too: both must agree with a fold of the log."""
    world = World(handlers={"code": Answers(Succeeded(outputs={"result": value}))}, snapshot_events=2)
    run_id = world.submit(world.add("document", chain(2)))
    world.start_executor()
    world.run(landings=8)
    world.crash()
    world.start_executor()
    world.run()
    state = world.fold(run_id)
    assert (state.status, state.outputs) == ("succeeded", {"out": kept})
    assert world.executor.quarantined == {}
    world.close()


@pytest.mark.parametrize(
    "value",
    [object(), _deep(199), _deep(400), _deep(5000), 10**5000, b"\xff"],
    ids=["object", "deep", "deeper", "deepest", "huge number", "bytes"],
)
def test_an_answer_that_is_no_json_fails_its_node_and_nothing_else(value: Any) -> None:
    world = World(handlers={"code": Answers(Succeeded(outputs={"result": value}))})
    run_id = world.submit(world.add("document", chain(1)))
    world.start_executor()
    world.run()
    state = world.fold(run_id)
    assert state.status == "failed"
    assert "cannot be recorded" in (state.error or "")
    world.close()


def test_an_error_text_of_megabytes_is_cut() -> None:
    world = World(handlers={"code": Answers(Failed("x" * 3_000_000))})
    run_id = world.submit(world.add("document", chain(1)))
    world.start_executor()
    world.run()
    assert len(world.fold(run_id).error or "") < 100_000
    world.close()


def test_a_failure_at_once_inside_a_round_does_not_break_what_starts_beside_it() -> None:
    """One turn starts `a`, then `b` fails at once: `c`, due a moment ago, must not break the owner."""
    inner = [code("a", iteration_id="each"), template("b", "x"), code("c", iteration_id="each")]
    text = document(
        [
            start("q"),
            code("list"),
            node(
                "each",
                "iteration",
                start_node_id="eachstart",
                iterator_selector=["list", "items"],
                output_selector=["a", "result"],
                is_parallel=False,
                parallel_nums=1,
                error_handle_mode="continue-on-error",
                flatten_output=True,
            ),
            node("eachstart", "iteration-start", iteration_id="each"),
            *inner,
            end(out="each.output"),
        ],
        edges("start > list > each > end", "eachstart > a", "eachstart > b", "eachstart > c"),
    )

    def script(attempt: Attempt) -> Outcome:
        return Succeeded(outputs={"items": [1, 2], "result": "x"})

    world = World(script=script, handlers={"template-transform": Answers(Failed("broke"))})
    run_id = world.submit(world.add("document", text))
    world.start_executor()
    world.run()
    state = world.fold(run_id)
    assert (state.status, state.outputs) == ("partial-succeeded", {"out": [None, None]})
    world.close()


def test_a_run_that_cannot_be_folded_is_set_aside_and_its_neighbours_go_on() -> None:
    world = World()
    digest = world.add("document", chain(2))
    sick, well = world.submit(digest), world.submit(digest)
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 2)
    owner = world.executor._owners[0]  # noqa: SLF001  # a broken state cannot be made from outside
    state = owner._runs[sick].state  # noqa: SLF001  # as above
    assert state is not None
    state.frames.clear()
    world.run(horizon_s=60)
    assert world.fold(well).status == "succeeded"
    assert list(world.executor.quarantined) == [sick]
    world.close()


def test_a_run_that_was_set_aside_can_be_stopped() -> None:
    world = World()
    digest = world.add("document", chain(2))
    sick = world.submit(digest)
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 1)
    owner = world.executor._owners[0]  # noqa: SLF001  # a broken state cannot be made from outside
    state = owner._runs[sick].state  # noqa: SLF001  # as above
    assert state is not None
    state.frames.clear()
    world.run(horizon_s=60)
    world.stop(sick)
    world.run(horizon_s=60)
    assert [type(each.event).__name__ for each in world.events(sick)][-2:] == ["StopRequested", "RunStopped"]
    assert [each.seq for each in world.events(sick)] == list(range(1, len(world.events(sick)) + 1))
    assert recover(world.log, 0).fold.runs == {}
    world.close()


def test_a_log_that_cannot_be_read_for_a_moment_sets_no_run_aside() -> None:
    world = World()
    run_id = world.submit(world.add("document", chain(2)))
    world.start_executor()
    world.run(landings=5)
    world.crash()
    world.catalog._compiled.clear()  # noqa: SLF001  # a new process knows no definitions
    failures = [LogError("unreachable"), LogError("unreachable")]
    known = world.documents.copy()
    world.documents.clear()

    def refresh() -> None:
        if failures:
            raise failures.pop()
        world.documents.update(known)

    world.start_executor(refresh=refresh)
    world.run()
    assert world.fold(run_id).status == "succeeded"
    assert world.executor.quarantined == {}
    world.close()


def test_nothing_of_an_epoch_stands_behind_its_release() -> None:
    for landed in range(3, 12):
        world = World(delay_s=0.4, checkpoint_bytes=1_000)
        digest = world.add("document", fan_out(3))
        runs = [world.submit(digest) for _ in range(2)]
        world.start_executor()
        world.run(landings=landed)
        leaving = world.loop.create_task(world.executor.stop(grace_s=0.2))
        world.run(until=leaving.done, horizon_s=60)
        world.log.land()
        events = world.events()
        assert isinstance(events[-1].event, PartitionReleased), landed
        assert isinstance(events[-2].event, CheckpointWritten)
        world.crash()
        world.start_executor()
        world.run()
        assert _statuses(world, runs) == ["succeeded"] * 2
        assert all(count == 1 for count in _outcomes(world, runs).values())
        world.close()


def _outcomes(world: World, runs: list[str]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for run_id in runs:
        for each in world.events(run_id):
            if isinstance(each.event, NodeSucceeded):
                key = (run_id, each.event.node_id)
                counts[key] = counts.get(key, 0) + 1
    return counts


def test_a_partition_that_is_placed_here_again_while_it_is_released_is_owned_again() -> None:
    world = World(delay_s=3)
    run_id = world.submit(world.add("document", chain(1)))
    executor = world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 1)
    releasing = world.loop.create_task(executor._release({0}, 1.5))  # noqa: SLF001  # what placement's thread does
    world.loop.settle()
    executor._own({0})  # noqa: SLF001  # as above
    world.run(until=releasing.done, horizon_s=60)
    world.run()
    assert world.fold(run_id).status == "succeeded"
    world.close()


def test_an_outage_of_hours_does_not_wear_the_owner_out() -> None:
    world = World()
    world.submit(world.add("document", chain(1)))
    failures = 0
    topic_id = world.log.topic_id

    def unreachable(topic: Topic) -> str:
        nonlocal failures
        failures += 1
        if failures < 1_200:
            raise LogError("unreachable")
        return topic_id(topic)

    world.log.topic_id = unreachable  # type: ignore[method-assign]  # the outage
    executor = world.start_executor()
    world.run(until=lambda: executor.owned == {0: "active"}, horizon_s=20_000)
    assert executor.owned == {0: "active"}
    world.close()


def _land_slowly(world: World, latency_s: float) -> None:
    """Everything that waits lands, and its acknowledgements come, after `latency_s`; the executor runs meanwhile."""
    until = world.loop.time() + latency_s
    while (timer := world.loop.next_timer()) is not None and timer < until:
        world.loop.advance(timer)
        world.loop.settle()
    world.loop.advance(until)
    world.loop.settle()
    world.log.land()
    world.log.deliver()
    world.loop.settle()


def test_a_log_slower_than_a_session_holds_effects_up_and_does_not_stop_them() -> None:
    world = World(delay_s=0.1)
    run_id = world.submit(world.add("document", chain(2)))
    world.start_executor()
    for _ in range(40):
        _land_slowly(world, 3.0)
    assert world.fold(run_id).status == "succeeded"
    assert world.effects.started == ["n1", "n2"]
    world.close()


def test_an_owner_that_was_frozen_before_its_effect_confirms_again_first() -> None:
    world = World()
    run_id = world.submit(world.add("document", chain(1)))
    world.start_executor()
    started = lambda: [out.event.node_id for out in world.events(run_id) if isinstance(out.event, NodeStarted)]  # noqa: E731
    while "n1" not in started():
        assert not world.effects.started
        world.loop.settle()
        world.log.land(1)
        if "n1" in started():
            world.loop.advance(world.loop.time() + 30)  # frozen before it hears that its start is in the log
        world.log.deliver()
    world.loop.settle()
    assert world.log.waiting(), "nothing was asked of the log"
    assert not world.effects.started
    world.log.land()
    world.log.deliver()
    world.loop.settle()
    assert world.effects.started == ["n1"]
    assert any(isinstance(out.event, OwnerConfirmed) for out in world.events())
    world.close()


def test_records_that_vanished_before_recovery_stop_the_partition_and_raise_the_alarm() -> None:
    world = World()
    world.submit(world.add("document", chain(1)))
    world.start_executor()
    world.run()
    world.crash()
    world.store.truncate(Topic.EVENTS, 0, 3)
    end = world.log.bounds(Topic.EVENTS, 0)[1]
    executor = world.start_executor()
    world.loop.advance(60)
    world.loop.settle()
    assert "Restore the topic" in executor.health.alarms[0]
    assert (world.log.waiting(), world.log.bounds(Topic.EVENTS, 0)[1]) == (0, end), "it wrote behind what is gone"
    world.close()


def test_an_executor_counts_attempts_commands_appends_and_lost_epochs() -> None:
    retry = {"retry_enabled": True, "max_retries": 1, "retry_interval": 1}
    text = document(
        [start(), code("a", retry_config=retry), template("t", "x"), end(out="a.result")],
        edges("start > a > t > end"),
    )
    world = World(script=fails(1))
    run_id = world.submit(world.add("document", text))
    world.stop("rubbish")
    executor = world.start_executor()
    world.run(until=lambda: world.log.waiting() > 0 and len(world.events(run_id)) >= 3)
    _lose_epoch(world)
    world.run()
    counted = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in executor.measures.collect()
        for sample in metric.samples
        if not sample.name.endswith(("_created", "_bucket", "_sum"))
    }
    appends = counted.pop(("flowledger_append_seconds_count",))
    name = "flowledger_node_attempts_total"
    assert counted == {
        (name, "start", "succeeded"): 2,  # its first record was lost with the epoch
        (name, "code", "retry"): 1,
        (name, "code", "succeeded"): 1,
        (name, "template-transform", "succeeded"): 1,
        (name, "end", "succeeded"): 1,
        ("flowledger_commands_total", "accepted"): 1,
        ("flowledger_commands_total", "rejected"): 1,
        ("flowledger_epochs_lost_total",): 1,
    }
    assert 3 <= appends < 30
    assert executor.lag_records() == {0: 0}
    world.close()


@pytest.mark.parametrize("checkpoint_bytes", [1 << 30, 1])
def test_an_executor_keeps_away_from_a_partition_of_a_newer_release(
    monkeypatch: pytest.MonkeyPatch, checkpoint_bytes: int
) -> None:
    """Also when the claim that says so lies before the checkpoint from which recovery reads."""
    monkeypatch.setattr("services.executor.owner.FEATURES", ("timers",))
    world = World(checkpoint_bytes=checkpoint_bytes)
    digest = world.add("document", chain(3))
    runs = [world.submit(digest)]
    world.start_executor()
    world.run()
    world.crash()
    runs.append(world.submit(digest))
    end = world.log.bounds(Topic.EVENTS, 0)[1]

    monkeypatch.setattr("services.executor.owner.FEATURES", ())
    too_old = world.start_executor()
    world.loop.advance(60)
    world.loop.settle()
    assert "does not know: timers. Upgrade it" in too_old.health.alarms[0]
    assert (world.log.waiting(), world.log.bounds(Topic.EVENTS, 0)[1]) == (0, end), "it wrote"
    world.crash()

    monkeypatch.setattr("services.executor.owner.FEATURES", ("timers", "more"))
    world.start_executor()
    world.run()
    assert _statuses(world, runs) == ["succeeded"] * 2
    world.close()


def test_a_partition_whose_owner_breaks_raises_the_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("recovery broke")

    monkeypatch.setattr("services.executor.owner.recover", broken)
    world = World()
    world.start_executor()
    world.loop.settle()
    assert "recovery broke" in world.executor.health.alarms[0]
    world.close()


def test_commands_behind_a_hole_in_their_topic_are_decided() -> None:
    """Offsets that hold no record (a foreign transaction's marker) are no reason to wait for ever."""
    world = World()
    digest = world.add("document", chain(1))
    first = world.submit(digest)
    world.submit(digest)
    last = world.submit(digest)
    records = world.store._records[Topic.COMMANDS, 0]  # noqa: SLF001  # no log of ours makes holes
    del records[1]
    world._runs -= 1  # noqa: SLF001  # the run in the hole never was
    read = world.store.read

    def with_hole(topic: Topic, partition: int, begin: int, stop: int, limit: int) -> Any:
        if topic is Topic.COMMANDS:
            return [record for record in records if begin <= record.offset < stop][:limit]
        return read(topic, partition, begin, stop, limit)

    world.store.read = with_hole  # type: ignore[method-assign,assignment]  # as above
    world.start_executor()
    world.run()
    assert _statuses(world, [first, last]) == ["succeeded"] * 2
    world.close()


def test_commands_that_retention_removed_do_not_stop_the_partition() -> None:
    world = World()
    digest = world.add("document", chain(1))
    world.submit(digest)
    world.submit(digest)
    world._runs -= 1  # noqa: SLF001  # the first is gone before anybody saw it
    world.store.truncate(Topic.COMMANDS, 0, 1)
    world.start_executor()
    world.run()
    assert [world.fold(r).status for r in {e.run_id for e in world.events() if e.run_id}] == ["succeeded"]
    world.close()


def test_a_command_that_no_acceptance_could_repeat_is_refused() -> None:
    world = World()
    digest = world.add("document", chain(1))
    world.submit(digest, q="x" * 950_000)
    world._runs -= 1  # noqa: SLF001  # it never becomes a run
    run_id = world.submit(digest)
    world.start_executor()
    world.run()
    rejected = [each.event for each in world.events() if isinstance(each.event, CommandRejected)]
    assert [each.code for each in rejected] == ["unreadable"]
    assert world.fold(run_id).status == "succeeded"
    world.close()


def test_a_retry_that_is_due_and_finds_no_slot_sleeps_until_there_is_one() -> None:
    retry = {"retry_enabled": True, "max_retries": 1, "retry_interval": 100}
    text = document([start(), code("a", retry_config=retry), end(out="a.result")], edges("start > a > end"))

    def script(attempt: Attempt) -> Outcome:
        return Failed("no") if attempt.number == 1 else Succeeded(outputs={"result": "yes"})

    world = World(slots=NARROW, script=script, delay_s=10)
    digest = world.add("document", text)
    runs = [world.submit(digest) for _ in range(3)]
    world.start_executor()
    turns = 0
    turn = asyncio.SelectorEventLoop.call_later

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal turns
        turns += 1
        return turn(world.loop, *arguments, **more)

    world.loop.call_later = counted  # type: ignore[method-assign,assignment]  # counts timers
    world.run()
    assert _statuses(world, runs) == ["succeeded"] * 3
    assert turns < 1_000
    world.close()
