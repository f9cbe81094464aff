"""Runs that wait for a person: forms, and pauses that somebody asked for."""

from typing import Any

import pytest

from libs.events.model import FormOpened, NodeSucceeded, RunPaused
from libs.workflow.machine import (
    CheckForms,
    CheckTime,
    CompleteAttempt,
    Rejection,
    StartAttempt,
    Stop,
    decide,
    next_timer_us,
)
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key, dump_state, load_state
from tests.documents import code, document, edges, end, fan_out, human_input, node, start
from tests.driver import Driver, done

HOUR_US = 3_600_000_000

ASK = document(
    [start("q"), human_input("ask"), code("go"), end("yes", out="go.result", note="ask.note"), end("late"), end("no")],
    edges("start > ask", "ask[ok] > go > yes", "ask[no] > no", "ask[__timeout] > late"),
)
TWO = document(
    [start("q"), human_input("one"), human_input("two"), code("behind"), end(out="behind.result")],
    edges("start > one", "start > two", "one[ok] > behind > end", "two[ok] > end"),
)
BESIDE = document(
    [start(), human_input("ask"), code("slow"), end()], edges("start > ask[ok] > end", "start > slow > end")
)
SAYING = {"hi": "Hi. ", "bye": "Bye."}


def _waiting(text: str = ASK, **limits: Any) -> Driver:
    driver = Driver(text, q="x", **limits)
    driver.run()
    return driver


def test_a_run_whose_only_node_waits_is_paused() -> None:
    driver = _waiting()
    assert driver.state.status == "paused"
    assert driver.names()[-3:] == ["NodeStarted(ask)", "FormOpened(ask)", "RunPaused"]
    opened, paused = driver.events[-2:]
    assert isinstance(opened, FormOpened)
    assert isinstance(paused, RunPaused)
    assert paused.forms == (opened.form_id,)
    assert (opened.actions, opened.token) == (("ok", "no"), "token of ask")


@pytest.mark.parametrize(("begins", "conversation", "answer"), [
    ("start > hi > ask", "c", "Hi. "), ("start > ask", "c", None), ("start > hi > ask", None, None),
])  # fmt: skip
def test_a_message_that_waits_says_what_its_answer_is_so_far(
    begins: str, conversation: str | None, answer: str | None
) -> None:
    nodes = [start(), human_input("ask"), *(node(each, "answer", answer=text) for each, text in SAYING.items())]
    text = document(nodes, edges(begins, "ask[ok] > bye"), mode="advanced-chat")
    driver = Driver(text, accepted={"conversation_id": conversation})
    driver.run()
    paused = driver.events[-1]
    assert isinstance(paused, RunPaused)
    assert paused.answer == answer
    driver.submit("ask", "ok")
    assert driver.run().outputs["answer"] == (SAYING["hi"] if "hi" in begins else "") + SAYING["bye"]


def test_a_submission_takes_the_branch_of_its_action() -> None:
    driver = _waiting()
    driver.submit("ask", "ok", note="fine")
    state = driver.run()
    assert (state.status, state.outputs) == ("succeeded", {"out": "go done", "note": "fine"})
    at = driver.names().index("FormSubmitted(ask)")
    assert driver.names()[at : at + 3] == ["FormSubmitted(ask)", "RunResumed", "NodeSucceeded(ask)"]
    done = next(each for each in driver.events if isinstance(each, NodeSucceeded) and each.node_id == "ask")
    assert done.handle == "ok"
    assert done.outputs == {
        "note": "fine",
        "__action_id": "ok",
        "__action_value": "Ok",
        "__rendered_content": "Well?\nfine",
    }


def test_a_form_that_nobody_answers_takes_the_branch_of_its_expiry_at_its_instant() -> None:
    driver = _waiting()
    opened = next(each for each in driver.events if isinstance(each, FormOpened))
    assert next_timer_us(driver.state) == opened.due_us
    assert opened.due_us - driver.now_us == pytest.approx(36 * HOUR_US, abs=1_000_000)
    assert isinstance(decide(driver.state, CheckForms(opened.due_us - 1)), Rejection)
    driver.fold(decide(driver.state, CheckForms(opened.due_us)))
    driver.run()
    names = driver.names()
    assert names[names.index("FormExpired(ask)") + 1 :][:2] == ["RunResumed", "NodeSucceeded(ask)"]
    assert "NodeStarted(late)" in names
    assert isinstance(decide(driver.state, CheckForms(opened.due_us)), Rejection)


def test_other_branches_run_on_and_the_run_is_paused_when_they_have_ended() -> None:
    driver = Driver(
        document(
            [start(), human_input("ask"), code("slow"), end()], edges("start > ask[ok] > end", "start > slow > end")
        )
    ).begin()
    assert driver.start_due() == [Key("", "slow")]
    assert driver.state.status == "running"
    driver.complete(Key("", "slow"), done(Key("", "slow"), 1))
    driver.derive()
    assert driver.state.status == "paused"


def test_a_submission_while_others_run_needs_no_pause() -> None:
    driver = Driver(
        document(
            [start(), human_input("ask"), code("slow"), end()], edges("start > ask[ok] > end", "start > slow > end")
        )
    ).begin()
    driver.start_due()
    driver.submit("ask", "ok")
    driver.run()
    assert driver.state.status == "succeeded"
    assert "RunPaused" not in driver.names()


def test_two_forms_one_answered_its_branch_runs_on_and_the_run_waits_again() -> None:
    driver = _waiting(TWO)
    driver.submit("one", "ok")
    driver.run()
    assert driver.state.status == "paused"
    assert "NodeSucceeded(behind)" in driver.names()
    assert driver.names().count("RunPaused") == 2
    driver.submit("two", "ok")
    state = driver.run()
    assert state.status == "succeeded"
    assert driver.names().count("NodeStarted(end)") == 1


def test_paused_time_counts_for_no_limit_and_in_no_total() -> None:
    driver = _waiting(max_time_s=10)
    driver.now_us += HOUR_US
    assert isinstance(decide(driver.state, CheckTime(driver.now_us)), Rejection)
    driver.submit("ask", "ok")
    driver.start_due()
    assert driver.state.status == "running"
    assert isinstance(decide(driver.state, CheckTime(driver.now_us)), Rejection)
    timer = next_timer_us(driver.state)
    assert timer is not None
    assert 9_000_000 < timer - driver.now_us < 10_000_001
    assert driver.run().status == "succeeded"
    assert driver.events[-1].elapsed_s < 1  # type: ignore[union-attr]  # the end of the run


def test_a_stop_ends_a_paused_run_and_closes_its_form() -> None:
    driver = _waiting()
    driver.fold(decide(driver.state, Stop(5, "enough")))
    driver.derive()
    assert driver.names()[-3:] == ["StopRequested", "NodeStopped(ask)", "RunStopped"]
    assert not driver.state.forms


def test_a_submission_behind_the_end_of_its_node_changes_nothing() -> None:
    driver = _waiting()
    form = driver.state.forms[Key("", "ask")]
    driver.submit("ask", "ok", note="first")
    driver.state.forms[Key("", "ask")] = form
    driver.submit("ask", "no", note="second")
    state = driver.run()
    assert state.outputs["note"] == "first"


def test_the_outcome_of_an_attempt_that_waits_is_rejected() -> None:
    driver = _waiting()
    late = CompleteAttempt(Key("", "ask"), 1, 1, Succeeded(handle="ok"), driver.now_us)
    assert isinstance(decide(driver.state, late), Rejection)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_form_inside_an_iteration_resumes_inside_its_item_and_results_keep_their_order(parallel: bool) -> None:
    text = document(
        [
            start("items"),
            node(
                "each", "iteration", start_node_id="eachstart", iterator_selector=["start", "items"],
                output_selector=["ask", "note"], is_parallel=parallel, parallel_nums=3,
                error_handle_mode="terminated", flatten_output=True,
            ),
            node("eachstart", "iteration-start", iteration_id="each"),
            human_input("ask", iteration_id="each"),
            end(out="each.output"),
        ],
        edges("start > each > end", "eachstart > ask"),
    )  # fmt: skip
    driver = Driver(text)
    driver.state.pool.set("start", "items", ["a", "b", "c"])
    driver.run()
    assert len(driver.open_forms()) == (3 if parallel else 1)
    for _ in range(3):
        key = driver.open_forms()[-1]
        driver.submit(key.node_id, "ok", key.path, note=f"at {key.path[-1]}")
        driver.run()
    assert driver.state.outputs == {"out": ["at 0", "at 1", "at 2"]}


def test_a_form_inside_a_loop_keeps_what_the_loop_has_done() -> None:
    text = document(
        [
            start(),
            node("loop", "loop", start_node_id="loopstart", loop_count=2, break_conditions=[], logical_operator="and",
                 loop_variables=[{"label": "n", "var_type": "number", "value_type": "constant", "value": 7}]),
            node("loopstart", "loop-start", loop_id="loop"),
            human_input("ask", loop_id="loop"),
            end(rounds="loop.loop_round", n="loop.n"),
        ],
        edges("start > loop > end", "loopstart > ask"),
    )  # fmt: skip
    driver = Driver(text)
    for number in range(2):
        driver.run()
        assert driver.state.status == "paused"
        driver.submit("ask", "ok", f"loop:loop:{number}")
    assert driver.run().outputs == {"rounds": 2, "n": 7}


def test_a_failure_elsewhere_ends_the_run_and_its_form() -> None:
    driver = Driver(BESIDE)

    def answer(key: Key, attempt: int) -> Outcome:
        return Failed("broke")

    assert driver.run(answer).status == "failed"
    assert "NodeStopped(ask)" in driver.names()


def test_a_snapshot_holds_forms_and_pauses() -> None:
    driver = _waiting(TWO)
    driver.pause()
    driver.submit("one", "ok", note="x")
    image = dump_state(driver.state)
    driver.state = load_state(driver.definition, driver.state.run_id, image)
    assert dump_state(driver.state) == image
    driver.resume()
    driver.run()
    assert "NodeSucceeded(behind)" in driver.names()


# --- pauses that somebody asked for ---


def test_a_pause_lets_running_nodes_end_and_starts_nothing_new() -> None:
    driver = Driver(fan_out(2)).begin()
    first, second = driver.start_due()
    driver.pause()
    driver.derive()
    assert driver.state.status == "running"
    driver.complete(first, done(first, 1))
    driver.complete(second, done(second, 1))
    driver.derive()
    assert driver.state.status == "paused"
    assert isinstance(driver.events[-1], RunPaused)
    assert driver.events[-1].reason == "maintenance"
    assert isinstance(decide(driver.state, StartAttempt(Key("", "end"), 1, driver.now_us)), Rejection)
    driver.resume()
    assert driver.run().status == "succeeded"
    assert "RunResumed" in driver.names()


def test_a_pause_before_the_start_starts_the_run_and_pauses_it() -> None:
    driver = Driver(fan_out(1))
    driver.pause()
    driver.begin()
    driver.derive()
    assert driver.names()[-2:] == ["RunStarted", "RunPaused"]
    driver.resume()
    assert driver.run().status == "succeeded"


def test_a_pause_lets_a_run_end_that_has_nothing_left_to_start() -> None:
    driver = Driver(document([start(), code("last")], edges("start > last"))).begin()
    (last,) = driver.start_due()
    driver.pause()
    driver.complete(last, done(last, 1))
    driver.derive()
    assert driver.state.status == "succeeded"


def test_a_submission_to_a_run_that_is_paused_on_request_waits_until_the_pause_is_taken_back() -> None:
    driver = _waiting()
    driver.pause()
    driver.derive()
    driver.submit("ask", "ok", note="fine")
    driver.derive()
    assert driver.state.status == "paused"
    assert "NodeSucceeded(ask)" not in driver.names()
    driver.resume()
    assert driver.run().outputs["note"] == "fine"


def test_taking_a_pause_back_leaves_a_run_paused_that_waits_for_a_form() -> None:
    driver = _waiting()
    driver.pause()
    driver.resume()
    driver.derive()
    assert driver.state.status == "paused"
    assert "RunResumed" not in driver.names()
