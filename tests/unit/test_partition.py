"""The partition fold: commands are decided once, in order, from the table of unfinished runs alone."""

from libs.events.commands import Caller, StartRun, StopRun
from libs.events.ids import new_run_id
from libs.events.model import CommandRejected, PartitionClaimed, RunAccepted, StopRequested
from services.executor.partition import KEY_LIFETIME_US, PartitionFold, Position

NOW = 1_800_000_000_000_000
RUN = new_run_id(2, NOW, 1)
HERE = Position(10, 1, 4)


def _start(run_id: str = RUN, *, key: str | None = None, body: str = "b", not_after_us: int = NOW) -> StartRun:
    return StartRun(
        run_id=run_id,
        app_id="app",
        workflow_id="w",
        version="1",
        digest="d",
        inputs={"q": "x"},
        caller=Caller(id="c", user="u"),
        idempotency_key=key,
        body_digest=body,
        not_after_us=not_after_us,
    )


def _accepted(fold: PartitionFold, command: StartRun, offset: int = 0, now_us: int = NOW) -> RunAccepted:
    run_id, event = fold.decide(command, offset, now_us)
    assert isinstance(event, RunAccepted)
    fold.apply(event, run_id, now_us, HERE)
    return event


def _rejection(fold: PartitionFold, command: StartRun | StopRun, offset: int = 1, now_us: int = NOW) -> CommandRejected:
    _, event = fold.decide(command, offset, now_us)
    assert isinstance(event, CommandRejected)
    return event


def test_a_start_is_accepted_with_everything_the_run_needs() -> None:
    fold = PartitionFold(2)
    event = _accepted(fold, _start(key="k"), offset=41)
    assert (event.command_offset, event.inputs, event.idempotency_key) == (41, {"q": "x"}, "k")
    assert fold.next_command == 42
    assert fold.runs[RUN].seq == 1


def test_a_repeat_with_the_same_key_names_the_first_run() -> None:
    fold = PartitionFold(2)
    _accepted(fold, _start(key="k"))
    other = new_run_id(2, NOW, 2)
    rejected = _rejection(fold, _start(other, key="k"))
    assert (rejected.code, rejected.duplicate_of) == ("duplicate", RUN)


def test_the_same_key_with_another_body_is_refused() -> None:
    fold = PartitionFold(2)
    _accepted(fold, _start(key="k"))
    assert _rejection(fold, _start(key="k", body="other")).code == "idempotency_key_reused"


def test_a_key_is_forgotten_after_its_lifetime() -> None:
    fold = PartitionFold(2)
    _accepted(fold, _start(key="k"))
    later = NOW + KEY_LIFETIME_US + 1
    other = new_run_id(2, NOW, 2)
    _accepted(fold, _start(other, key="k", not_after_us=later), now_us=later)


def test_a_start_after_its_deadline_is_refused() -> None:
    assert _rejection(PartitionFold(2), _start(not_after_us=NOW - 1)).code == "expired"


def test_a_run_of_another_partition_is_refused() -> None:
    assert _rejection(PartitionFold(3), _start()).code == "misrouted"
    assert _rejection(PartitionFold(3), StopRun(run_id="rubbish")).code == "misrouted"


def test_a_stop_of_an_unknown_or_ended_run_is_refused() -> None:
    fold = PartitionFold(2)
    assert _rejection(fold, StopRun(run_id=RUN)).code == "not_running"
    _accepted(fold, _start())
    fold.count("RunSucceeded", RUN, HERE)
    assert _rejection(fold, StopRun(run_id=RUN)).code == "not_running"


def test_a_run_is_asked_to_stop_once() -> None:
    fold = PartitionFold(2)
    _accepted(fold, _start())
    run_id, event = fold.decide(StopRun(run_id=RUN, reason="enough"), 5, NOW)
    assert isinstance(event, StopRequested)
    fold.apply(event, run_id, NOW, HERE)
    assert (fold.next_command, fold.runs[RUN].seq) == (6, 2)
    assert _rejection(fold, StopRun(run_id=RUN), 6).code == "not_running"


def test_a_new_commands_topic_starts_the_count_again() -> None:
    fold = PartitionFold(2)
    fold.apply(PartitionClaimed(owner="x", commands_topic_id="one"), "", NOW, HERE)
    _accepted(fold, _start(), offset=7)
    fold.apply(PartitionClaimed(owner="x", commands_topic_id="one"), "", NOW, HERE)
    assert fold.next_command == 8
    fold.apply(PartitionClaimed(owner="x", commands_topic_id="two"), "", NOW, HERE)
    assert fold.next_command == 0


def test_a_checkpoint_gives_back_the_same_table() -> None:
    fold = PartitionFold(2, commands_topic_id="one", next_command=9)
    _accepted(fold, _start(key="k"))
    again = PartitionFold(2)
    again.load(fold.dump())
    assert (again.runs, again.keys, again.next_command) == (fold.runs, fold.keys, fold.next_command)


def test_recovery_begins_at_the_oldest_event_that_no_snapshot_covers() -> None:
    fold = PartitionFold(2)
    now = Position(900, 1, 890)
    assert fold.scan_from(now) == now
    _accepted(fold, _start())
    assert fold.scan_from(now) == HERE
    fold.snapshotted(RUN, 1, 20, Position(21, 1, 15))
    assert fold.scan_from(now) == now
    fold.count("RunStarted", RUN, Position(30, 1, 24))
    assert fold.scan_from(now) == Position(30, 1, 24)
