"""The run machine: given a document and outcomes, what happens, in which order."""

import pytest

from libs.events.model import NodeExcepted, NodeRetryScheduled, NodeStarted, RunFailed, RunStopped
from libs.workflow.fork import fork
from libs.workflow.machine import CompleteAttempt, Rejection, StartAttempt, Stop, decide, derived, due
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key, dump_state, load_state
from tests.conversations import ANNOTATION, counting
from tests.documents import chain, code, document, edges, end, fan_out, if_else, node, start, template
from tests.driver import Driver, done


def _failing(*node_ids: str, times: int = 99) -> object:
    def answer(key: Key, attempt: int) -> Outcome:
        if key.node_id in node_ids and attempt <= times:
            return Failed(f"{key.node_id} broke", "SomeError")
        return done(key, attempt)

    return answer


def test_a_chain_runs_in_order_and_ends_with_its_outputs() -> None:
    driver = Driver(chain(2))
    state = driver.run()
    assert state.status == "succeeded"
    assert state.outputs == {"out": "n2 done"}
    assert driver.names() == [
        "RunAccepted",
        "RunStarted",
        "NodeStarted(start)",
        "NodeSucceeded(start)",
        "NodeStarted(n1)",
        "NodeSucceeded(n1)",
        "NodeStarted(n2)",
        "NodeSucceeded(n2)",
        "NodeStarted(end)",
        "NodeSucceeded(end)",
        "RunSucceeded",
    ]


def test_starts_are_numbered_in_true_order_with_their_predecessors() -> None:
    driver = Driver(chain(2))
    driver.run()
    starts = [event for event in driver.events if isinstance(event, NodeStarted)]
    assert [(event.node_id, event.index, event.predecessor_id) for event in starts] == [
        ("start", 1, None),
        ("n1", 2, "start"),
        ("n2", 3, "n1"),
        ("end", 4, "n2"),
    ]


def test_a_join_waits_for_the_slowest_branch() -> None:
    driver = Driver(fan_out(3))
    driver.run(choose=lambda keys: keys[-1])
    names = driver.names()
    assert names.index("NodeStarted(end)") > max(names.index(f"NodeSucceeded(n{i})") for i in (1, 2, 3))
    assert names.count("NodeStarted(end)") == 1


_BRANCH = document(
    [
        start("q"),
        if_else("choice", "start.q", "is", "yes"),
        code("left"),
        code("right"),
        code("far"),
        end(out="left.result"),
    ],
    edges("start > choice", "choice[true] > left > end", "choice[false] > right > far > end"),
)


def test_the_branch_that_is_not_taken_is_skipped_to_the_join_and_the_join_runs_once() -> None:
    driver = Driver(_BRANCH, q="yes")
    state = driver.run()
    assert state.status == "succeeded"
    names = driver.names()
    assert [name for name in names if name.startswith("NodeSkipped")] == ["NodeSkipped(right)", "NodeSkipped(far)"]
    assert names.count("NodeStarted(end)") == 1
    assert names.index("NodeSkipped(right)") < names.index("NodeStarted(left)")


def test_a_handle_without_edges_ends_the_branch_and_the_run_succeeds_without_outputs() -> None:
    text = document(
        [start("q"), if_else("choice", "start.q", "is", "yes"), end(out="start.q")],
        edges("start > choice", "choice[true] > end"),
    )
    state = Driver(text, q="no").run()
    assert (state.status, state.outputs) == ("succeeded", {})


def test_a_failure_without_strategy_fails_the_run_at_once_and_stops_the_siblings() -> None:
    driver = Driver(fan_out(3))
    state = driver.run(_failing("n2"), choose=lambda keys: next(k for k in keys if k.node_id == "n2"))
    assert (state.status, state.error) == ("failed", "n2 broke")
    assert driver.names()[-4:] == ["NodeFailed(n2)", "NodeStopped(n1)", "NodeStopped(n3)", "RunFailed(n2)"]


def _with(**data: object) -> str:
    return document([start(), code("a", **data), end(out="a.result", why="a.error_message")], edges("start > a > end"))


def test_a_retry_that_succeeds_leaves_the_run_succeeded() -> None:
    retry = {"retry_enabled": True, "max_retries": 2, "retry_interval": 1500}
    driver = Driver(_with(retry_config=retry))
    state = driver.run(_failing("a", times=2))
    assert (state.status, state.exceptions_count, state.total_steps) == ("succeeded", 0, 5)
    retries = [event for event in driver.events if isinstance(event, NodeRetryScheduled)]
    assert [event.attempt for event in retries] == [1, 2]
    starts = [event for event in driver.events if isinstance(event, NodeStarted) and event.node_id == "a"]
    assert [(event.attempt, event.index) for event in starts] == [(1, 2), (2, 2), (3, 2)]


def test_a_retry_is_not_due_before_its_instant() -> None:
    retry = {"retry_enabled": True, "max_retries": 1, "retry_interval": 1500}
    driver = Driver(_with(retry_config=retry)).begin()
    driver.start_due()
    driver.complete(Key("", "a"), Failed("no"))
    assert list(due(driver.state, 1, driver.now_us)) == []
    assert [item.attempt for item in due(driver.state, 1, driver.now_us + 1_500_000)] == [2]


def test_a_default_value_replaces_a_failure_and_the_run_is_partially_succeeded() -> None:
    defaults = [{"key": "result", "type": "string", "value": "instead"}]
    driver = Driver(_with(error_strategy="default-value", default_value=defaults))
    state = driver.run(_failing("a"))
    assert (state.status, state.exceptions_count) == ("partial-succeeded", 1)
    assert state.outputs == {"out": "instead", "why": "a broke"}


def test_a_fail_branch_is_taken_only_after_a_failure() -> None:
    nodes = [
        start(),
        code("a", error_strategy="fail-branch"),
        end("good", out="a.result"),
        end("bad", why="a.error_message"),
    ]
    text = document(nodes, edges("start > a > good", "a[fail-branch] > bad"))
    assert Driver(text).run().outputs == {"out": "a done"}
    driver = Driver(text)
    state = driver.run(_failing("a"))
    assert (state.status, state.outputs) == ("partial-succeeded", {"why": "a broke"})
    excepted = next(event for event in driver.events if isinstance(event, NodeExcepted))
    assert excepted.outputs == {"error_message": "a broke", "error_type": "SomeError"}


def test_a_stop_cancels_what_runs_and_ends_the_run() -> None:
    driver = Driver(fan_out(2)).begin()
    driver.start_due()
    driver.fold(decide(driver.state, Stop(7, "User requested stop")))
    driver.derive()
    assert driver.names()[-4:] == ["StopRequested", "NodeStopped(n1)", "NodeStopped(n2)", "RunStopped"]
    assert driver.state.status == "stopped"
    assert isinstance(decide(driver.state, Stop(8, "again")), Rejection)


TALKING = [start("q"), node("hi", "answer", answer="Hi. "), code("n"), node("all", "answer", answer="{{#n.result#}}")]


def _stopped(said: str | None, mode: str = "advanced-chat") -> Driver:
    text = document(TALKING, edges("start > hi > n > all"), mode=mode)
    driver = Driver(text, accepted={"conversation_id": "c"}, q="x").begin()
    driver.start_due()
    driver.fold(decide(driver.state, Stop(7, "enough", said=said)))
    driver.state = load_state(driver.definition, driver.state.run_id, dump_state(driver.state))
    driver.derive()
    return driver


@pytest.mark.parametrize(
    ("said", "answer"),
    [("Hi. par", "Hi. par"), ("Hi. ", "Hi. "), ("H", "Hi. "), ("Else", "Hi. "), ("", "Hi. "), (None, "Hi. ")],
)
def test_the_answer_of_a_stopped_message_is_what_was_shown_of_it(said: str | None, answer: str) -> None:
    driver = _stopped(said)
    assert (driver.state.status, driver.state.outputs["answer"]) == ("stopped", answer)
    assert isinstance(driver.events[-1], RunStopped)
    assert driver.events[-1].outputs == driver.state.outputs


def test_a_message_that_was_stopped_before_anything_was_shown_has_no_answer() -> None:
    driver = Driver(counting(), accepted={"conversation_id": "c"}).begin()
    driver.start_due()
    driver.fold(decide(driver.state, Stop(7, "enough", said="")))
    driver.derive()
    assert driver.state.outputs == {}


def test_a_pending_run_can_be_stopped_before_it_begins() -> None:
    driver = Driver(chain(1))
    driver.fold(decide(driver.state, Stop(7, "User requested stop")))
    driver.derive()
    assert driver.names() == ["RunAccepted", "StopRequested", "RunStopped"]


def test_a_late_outcome_changes_nothing() -> None:
    driver = Driver(chain(1)).begin()
    driver.start_due()
    key = Key("", "n1")
    driver.complete(key, Succeeded(outputs={"result": "first"}))
    late = CompleteAttempt(key, 1, 1, Succeeded(outputs={"result": "second"}), driver.now_us)
    assert isinstance(decide(driver.state, late), Rejection)


def test_an_attempt_of_an_earlier_epoch_is_due_again_as_the_same_attempt() -> None:
    driver = Driver(chain(1)).begin()
    driver.start_due()
    driver.epoch = 2
    [item] = due(driver.state, 2, driver.now_us)
    assert (item.attempt, item.lost) == (1, True)
    driver.fold(decide(driver.state, StartAttempt(item.key, 2, driver.now_us)))
    assert driver.names()[-1] == "NodeRestarted(n1)"
    assert list(due(driver.state, 2, driver.now_us)) == []
    stale = CompleteAttempt(item.key, 1, 1, Succeeded(), driver.now_us)
    assert isinstance(decide(driver.state, stale), Rejection)


def test_too_many_steps_fail_the_run_with_limit_and_count() -> None:
    driver = Driver(chain(5), max_steps=3)
    state = driver.run()
    assert state.status == "failed"
    assert state.error == "Maximum execution steps exceeded: 4 > 3"
    assert isinstance(driver.events[-1], RunFailed)
    assert driver.events[-1].code == "limit_exceeded"


def test_two_end_nodes_merge_their_outputs_in_order_of_completion() -> None:
    text = document(
        [start(), code("a"), code("b"), end("e1", out="a.result", one="a.result"), end("e2", out="b.result")],
        edges("start > a > e1", "start > b > e2"),
    )
    state = Driver(text).run(choose=lambda keys: keys[-1])
    assert state.outputs == {"out": "a done", "one": "a done"}


def test_an_inactive_root_is_skipped_with_what_only_it_reaches() -> None:
    trigger = {"id": "other", "type": "custom", "data": {"type": "trigger-webhook", "title": "hook"}}
    text = document(
        [start(), trigger, code("a"), code("only"), end(out="a.result")], edges("start > a > end", "other > only")
    )
    driver = Driver(text)
    assert driver.run().status == "succeeded"
    assert [name for name in driver.names() if "Skipped" in name] == ["NodeSkipped(other)", "NodeSkipped(only)"]


def test_templates_run_ahead_without_anybody_waiting() -> None:
    text = document(
        [start("q"), template("t", "hello {{ q }}", q="start.q"), end(out="t.output")], edges("start > t > end")
    )
    driver = Driver(text, q="Ada").begin()
    assert driver.start_due() == []
    assert driver.state.outputs == {"out": "hello Ada"}


def test_a_snapshot_gives_back_an_equal_state() -> None:
    driver = Driver(_BRANCH, q="no").begin()
    driver.start_due()
    data = dump_state(driver.state)
    again = load_state(driver.definition, driver.state.run_id, data)
    assert dump_state(again) == data
    assert derived(again) == derived(driver.state)
    assert list(due(again, 2, driver.now_us)) == list(due(driver.state, 2, driver.now_us))


def test_a_message_that_an_annotation_answers_ends_at_once_with_that_answer() -> None:
    driver = Driver(counting(), accepted={"query": "hi", "conversation_id": "c1", "annotation": ANNOTATION})
    driver.begin()
    assert driver.start_due() == []
    assert driver.names() == ["RunAccepted", "RunStarted", "RunSucceeded"]
    assert driver.events[-1].outputs == {"answer": ANNOTATION.answer}  # type: ignore[union-attr]
    assert (driver.state.status, driver.state.total_steps) == ("succeeded", 0)


def test_a_fork_of_a_message_that_an_annotation_answered_ends_like_it() -> None:
    origin = Driver(counting(), accepted={"query": "hi", "conversation_id": "c1", "annotation": ANNOTATION}).begin()
    origin.derive()
    made = fork(origin.definition, origin.events, 2)
    assert (made.again, made.first) == ((), ())
    forked = Driver(counting(), accepted={"annotation": made.accepted.annotation, "prefix": made.prefix}).begin()
    forked.derive()
    assert forked.state.outputs == origin.state.outputs
