"""The partition fold: commands are decided once, in order, from the table of unfinished runs alone."""

from libs.events.commands import AnyCommand, Caller, NoteEndUser, PauseRun, ResumeRun, StartRun, StopRun, SubmitForm
from libs.events.ids import new_run_id
from libs.events.model import (
    CommandRejected,
    EndUserSeen,
    Event,
    FormExpired,
    FormOpened,
    FormSubmitted,
    PartitionClaimed,
    PauseRequested,
    ResumeRequested,
    RunAccepted,
    StopRequested,
)
from libs.events.positions import Position
from services.executor.partition import KEY_LIFETIME_US, PartitionFold
from tests.calls import calls_of

NOW = 1_800_000_000_000_000
RUN = new_run_id(2, NOW, 1)
HERE = Position(10, 1, 4)


def _start(
    run_id: str = RUN,
    *,
    key: str | None = None,
    body: str = "b",
    not_after_us: int = NOW,
    app: str = "app",
    most: int = 0,
) -> StartRun:
    return StartRun(
        run_id=run_id,
        app_id=app,
        workflow_id="w",
        version="1",
        digest="d",
        max_app_runs=most or None,
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


def _rejection(fold: PartitionFold, command: AnyCommand, offset: int = 1, now_us: int = NOW) -> CommandRejected:
    _, event = fold.decide(command, offset, now_us)
    assert isinstance(event, CommandRejected)
    return event


def test_a_start_is_accepted_with_everything_the_run_needs() -> None:
    fold = PartitionFold(2)
    event = _accepted(fold, _start(key="k"), offset=41)
    assert (event.command_offset, event.inputs, event.idempotency_key) == (41, {"q": "x"}, "k")
    assert fold.next_command == 42
    assert fold.runs[RUN].seq == 1


def test_a_start_that_is_read_again_when_its_run_has_ended_makes_no_second_run() -> None:
    fold = PartitionFold(2)
    command = _start(not_after_us=NOW + 30_000_000)
    _accepted(fold, command, offset=0)
    fold.count("RunSucceeded", RUN, HERE)
    recovered = PartitionFold(2)
    recovered.load(fold.dump())
    for each in (fold, recovered):
        assert _rejection(each, command, 5, NOW + 20_000_000).code == "run_exists"
        each.forget_old_keys(NOW + 29_000_000)
        assert _rejection(each, command, 6, NOW + 29_000_000).code == "run_exists"
        each.forget_old_keys(NOW + 31_000_000)
        assert not each.ended
        assert _rejection(each, command, 7, NOW + 31_000_000).code == "expired"


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


def test_an_end_user_is_noted_and_the_command_counted() -> None:
    fold = PartitionFold(2)
    note = NoteEndUser(note_id=new_run_id(2, NOW, 5), app_id="app", caller=Caller(id="u", user="ann"))
    run_id, event = fold.decide(note, 7, NOW)
    assert (run_id, event) == ("", EndUserSeen(command_offset=7, app_id="app", caller=note.caller))
    fold.apply(event, run_id, NOW, HERE)
    assert (fold.next_command, fold.runs) == (8, {})


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


# --- pauses and forms ---

OPENED = FormOpened(
    node_id="ask", path="loop:l:1", form_id="form", token="t", actions=("ok", "no"), form={}, due_us=NOW + 5
)


def _waiting_run() -> PartitionFold:
    fold = PartitionFold(2)
    _accepted(fold, _start())
    fold.apply(OPENED, RUN, NOW, HERE)
    fold.count("RunPaused", RUN, HERE)
    return fold


def _decided(fold: PartitionFold, command: AnyCommand, offset: int = 5) -> Event:
    run_id, event = fold.decide(command, offset, NOW)
    assert run_id == RUN, event
    fold.apply(event, run_id, NOW, HERE)
    return event


def test_the_first_submission_of_a_form_counts() -> None:
    fold = _waiting_run()
    submission = SubmitForm(run_id=RUN, form_id="form", action="ok", inputs={"note": "x"}, by="ann")
    event = _decided(fold, submission, 41)
    assert isinstance(event, FormSubmitted)
    assert (event.command_offset, event.node_id, event.path) == (41, "ask", "loop:l:1")
    assert (event.action, event.inputs, event.by) == ("ok", {"note": "x"}, "ann")
    assert fold.next_command == 42
    assert _rejection(fold, submission, 42).code == "form_closed"


def test_a_submission_behind_the_expiry_is_refused() -> None:
    fold = _waiting_run()
    fold.apply(FormExpired(node_id="ask", path="loop:l:1", form_id="form"), RUN, NOW, HERE)
    assert _rejection(fold, SubmitForm(run_id=RUN, form_id="form", action="ok")).code == "form_closed"


def test_an_action_that_the_form_does_not_have_leaves_it_open() -> None:
    fold = _waiting_run()
    assert _rejection(fold, SubmitForm(run_id=RUN, form_id="form", action="maybe")).code == "unknown_action"
    assert "form" in fold.runs[RUN].forms


def test_a_run_is_paused_and_resumed_once() -> None:
    fold = _waiting_run()
    assert _rejection(fold, ResumeRun(run_id=RUN)).code == "not_paused"
    assert isinstance(_decided(fold, PauseRun(run_id=RUN)), PauseRequested)
    assert _rejection(fold, PauseRun(run_id=RUN)).code == "already_paused"
    assert isinstance(_decided(fold, ResumeRun(run_id=RUN), 6), ResumeRequested)
    assert _rejection(fold, ResumeRun(run_id=RUN)).code == "not_paused"


def test_a_run_that_stops_takes_neither_form_nor_pause() -> None:
    fold = _waiting_run()
    _decided(fold, StopRun(run_id=RUN))
    commands = (PauseRun(run_id=RUN), ResumeRun(run_id=RUN), SubmitForm(run_id=RUN, form_id="form", action="ok"))
    assert {_rejection(fold, command).code for command in commands} == {"not_running"}


def test_a_run_is_parked_while_nothing_lets_it_go_on() -> None:
    fold = _waiting_run()
    assert (fold.runs[RUN].parked, fold.runs[RUN].next_due_us) == (True, NOW + 5)
    _decided(fold, PauseRun(run_id=RUN))
    assert fold.runs[RUN].parked
    _decided(fold, SubmitForm(run_id=RUN, form_id="form", action="ok"), 6)
    assert (fold.runs[RUN].parked, fold.runs[RUN].next_due_us) == (False, None)


def test_a_checkpoint_holds_forms_and_pauses() -> None:
    fold = _waiting_run()
    _decided(fold, PauseRun(run_id=RUN))
    other = PartitionFold(2)
    other.load(fold.dump())
    assert other.runs == fold.runs


def test_a_checkpoint_of_a_release_without_pauses_is_read() -> None:
    fold = PartitionFold(2)
    _accepted(fold, _start())
    head, runs, *keys = fold.dump()
    runs["runs"][0] = runs["runs"][0][:9]  # type: ignore[call-overload,index]  # JSON
    other = PartitionFold(2)
    other.load([head, runs, *keys])
    fold.runs[RUN].not_after_us = 0  # nor deadlines
    assert other.runs == fold.runs


def test_runs_of_an_app_are_counted_exactly_and_paused_ones_aside() -> None:
    fold = PartitionFold(2)
    runs = [new_run_id(2, NOW, number) for number in range(1, 7)]
    for number, run_id in enumerate(runs[:3]):
        _accepted(fold, _start(run_id, most=3), number)
    rejected = _rejection(fold, _start(runs[3], most=3))
    assert rejected.code == "too_many_requests"
    assert "app app has 3 runs" in rejected.message
    _accepted(fold, _start(runs[4], app="other", most=3))
    fold.count("RunPaused", runs[0], HERE)
    _accepted(fold, _start(runs[3], most=3), 5)
    fold.count("ResumeRequested", runs[0], HERE)
    assert _rejection(fold, _start(runs[5], most=3)).code == "too_many_requests"
    again = PartitionFold(2)
    again.load(fold.dump())
    assert _rejection(again, _start(runs[5], most=3)).code == "too_many_requests"
    for run_id in runs[:2]:
        again.count("RunFailed", run_id, HERE)
    _accepted(again, _start(runs[5], most=3))


def test_a_start_under_a_limit_costs_the_same_however_many_runs_its_app_has() -> None:
    def decided_among(runs: int) -> int:
        fold = PartitionFold(2)
        for number in range(runs):
            _accepted(fold, _start(new_run_id(2, NOW, number)), number)
        one_more = _start(new_run_id(2, NOW, runs), most=runs + 1)
        return calls_of(lambda: fold.decide(one_more, runs, NOW))

    assert decided_among(1_000) == decided_among(10)


def test_a_start_that_is_not_to_be_admitted_is_answered_only_as_a_repeat() -> None:
    fold = PartitionFold(2)
    _accepted(fold, _start(key="k"))
    late = _start(new_run_id(2, NOW, 9), key="k").model_copy(update={"full": True})
    assert _rejection(fold, late).duplicate_of == RUN
    other = _start(new_run_id(2, NOW, 9), key="l").model_copy(update={"full": True})
    assert _rejection(fold, other).code == "too_many_requests"
