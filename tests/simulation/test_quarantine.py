"""A run that cannot be folded: set aside in the log, in nobody's way, released by a command, and safe from crashes."""

from collections.abc import Iterator
from typing import Any

import pytest

from libs.events.blobs import BlobError, BlobLost
from libs.events.commands import ReleaseRun
from libs.events.log import Record, Topic
from libs.events.memory import MemoryLog
from libs.events.model import CommandRejected, RunReleased, RunSetAside, RunSnapshotted
from libs.workflow.outcome import Succeeded
from services.executor import live
from services.executor.quarantine import set_aside
from services.executor.recovery import recover
from tests.documents import chain
from tests.simulation.world import VAULT, World


class Sickness:
    """Makes this program unable to fold one run, as one that has lost an event type would be."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.run_id = ""
        self._apply = live.apply
        patch.setattr(live, "apply", self._broken)

    def _broken(self, state: Any, *arguments: Any) -> None:
        if state.run_id == self.run_id:
            raise KeyError("no such event")
        self._apply(state, *arguments)


@pytest.fixture
def sickness(monkeypatch: pytest.MonkeyPatch) -> Sickness:
    return Sickness(monkeypatch)


class Counting:
    """A log that counts the records of events that are read."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.records = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, topic: Topic, *arguments: Any, **named: Any) -> Iterator[list[Record]]:
        for batch in self._log.read(topic, *arguments, **named):
            self.records += len(batch) if topic is Topic.EVENTS else 0
            yield batch


def _sick_world(sickness: Sickness) -> tuple[World, str, str]:
    """(world, sick run, digest): the run is half done and set aside; its executor lives."""
    world = World(checkpoint_bytes=6_000)
    digest = world.add("document", chain(2))
    sick = world.submit(digest)
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 1)
    world.crash()
    sickness.run_id = sick
    world.start_executor()
    world.run(horizon_s=5)
    return world, sick, digest


def _others(world: World, digest: str, count: int) -> None:
    runs = [world.submit(digest) for _ in range(count)]
    world.run(horizon_s=20)
    assert {world.fold(run).status for run in runs} == {"succeeded"}


def _read_by_recovery(world: World) -> int:
    counting = Counting(world.log)
    assert recover(counting, 0).checkpoint_at is None  # type: ignore[arg-type]  # a log in all that recovery asks
    return counting.records


def test_recovery_reads_no_more_however_long_a_run_lies_set_aside(sickness: Sickness) -> None:
    world, sick, digest = _sick_world(sickness)
    _others(world, digest, 6)
    early = _read_by_recovery(world)
    for _ in range(6):
        _others(world, digest, 6)
    late, written = _read_by_recovery(world), world.log.bounds(Topic.EVENTS, 0)[1]
    assert list(world.executor.quarantined) == [sick]
    # Two intervals between checkpoints at most: where the last one stands differs.
    assert late < 2 * early
    assert late < written / 4
    world.close()


def test_a_run_stays_set_aside_at_the_next_executor_and_is_named_with_its_reason(sickness: Sickness) -> None:
    world, sick, digest = _sick_world(sickness)
    _others(world, digest, 6)
    sickness.run_id = ""
    world.crash()
    world.start_executor()
    world.run(horizon_s=20)
    assert "no such event" in world.executor.quarantined[sick]
    (named,) = set_aside(world.log, world.blobs, VAULT, world.catalog.get)  # type: ignore[arg-type]  # needs no close
    assert (named.run_id, named.recorded, named.foldable) == (sick, True, True)
    assert "no such event" in named.reason
    assert world.effects.started.count("n1") == 7
    world.close()


@pytest.mark.parametrize("upgraded", [False, True], ids=["the same executor", "a new executor"])
def test_a_released_run_goes_on_where_it_was(sickness: Sickness, upgraded: bool) -> None:
    world, sick, digest = _sick_world(sickness)
    _others(world, digest, 6)
    sickness.run_id = ""
    if upgraded:
        world.crash()
        world.start_executor()
        world.run(horizon_s=5)
    world.command(ReleaseRun(run_id=sick, by="ann"))
    world.run(horizon_s=60)
    assert world.fold(sick).status == "succeeded"
    assert world.executor.quarantined == {}
    outcome = next(
        each for each in world.events() if isinstance(each.event, RunSnapshotted) and each.event.run_id == sick
    )
    (released,) = [each for each in world.events() if isinstance(each.event, RunReleased)]
    assert outcome.cause == released.cause
    assert released.event.by == "ann"  # type: ignore[union-attr]  # chosen by its type
    world.close()


def test_a_release_that_helps_nothing_is_answered_with_the_reason(sickness: Sickness) -> None:
    world, sick, digest = _sick_world(sickness)
    _others(world, digest, 2)
    world.command(ReleaseRun(run_id=sick))
    world.run(horizon_s=20)
    events = world.events()
    (released,) = [each for each in events if isinstance(each.event, RunReleased)]
    again = [each for each in events if isinstance(each.event, RunSetAside)][-1]
    assert again.cause == released.cause
    assert "no such event" in again.event.error  # type: ignore[union-attr]  # chosen by its type
    assert list(world.executor.quarantined) == [sick]
    world.stop(sick)
    world.run(horizon_s=20)
    assert world.executor.quarantined == {}
    assert recover(world.log, 0).fold.runs == {}
    world.close()


def test_only_a_run_that_is_set_aside_is_released() -> None:
    world = World(delay_s=30)
    run = world.submit(world.add("document", chain(2)))
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 1)
    world.command(ReleaseRun(run_id=run))
    world.run()
    rejected = [each.event for each in world.events() if isinstance(each.event, CommandRejected)]
    assert [each.code for each in rejected] == ["not_set_aside"]
    assert world.fold(run).status == "succeeded"
    world.close()


@pytest.mark.parametrize("helps", [True, False], ids=["it helps", "it does not"])
def test_a_release_survives_a_crash_at_every_append(sickness: Sickness, helps: bool) -> None:
    for crash_at in range(14):
        world, sick, digest = _sick_world(sickness)
        _others(world, digest, 1)
        sickness.run_id = "" if helps else sick
        world.command(ReleaseRun(run_id=sick))
        world.pause(sick)
        world.run(landings=crash_at, horizon_s=30)
        world.crash()
        world.start_executor()
        world.run(horizon_s=30)
        if helps:
            assert world.fold(sick).status == "paused", f"crash at {crash_at}"
            world.resume(sick)
            world.run(horizon_s=30)
            assert world.fold(sick).status == "succeeded", f"crash at {crash_at}"
        else:
            assert list(world.executor.quarantined) == [sick], f"crash at {crash_at}"
        world.close()


@pytest.mark.parametrize(
    ("error", "aside"), [(BlobError("no answer"), False), (BlobLost("not there"), True)], ids=["away", "lost"]
)
def test_a_blob_store_that_is_away_for_a_moment_sets_no_run_aside(error: BlobError, aside: bool) -> None:
    script = lambda attempt: Succeeded(outputs={"result": "x" * 100_000})  # noqa: E731  # a script
    world = World(script=script)
    run = world.submit(world.add("document", chain(2)))
    world.start_executor()
    world.run(until=lambda: len(world.effects.started) == 2)
    world.crash()
    kept, asked = dict(world.blobs.kept), []

    def get(ref: Any) -> bytes:
        asked.append(ref)
        if len(asked) == 1:
            raise error
        return kept[ref["$blob"]["id"]]

    world.blobs.get = get  # type: ignore[method-assign]  # of this world alone
    world.start_executor()
    world.run(horizon_s=30)
    assert (list(world.executor.quarantined) == [run]) == aside
    ended = world.records(run)[-1].headers["ce_type"].decode().split(".")[1]
    assert (ended == "RunSucceeded") == (not aside)
    world.close()
