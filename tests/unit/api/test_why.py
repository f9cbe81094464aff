"""Why a run or a node is where it is, in one sentence."""

from typing import Any

import pytest

from libs.events.codec import Recorded
from libs.events.commands import Origin
from libs.events.model import PauseRequested, StopRequested
from libs.workflow.definition import compile_document
from libs.workflow.modes import PartInvalid
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key
from services.api.time_travel import difference
from services.api.why import why
from tests.conversations import ANNOTATION, counting
from tests.documents import chain, code, document, edges, end, fan_out, human_input, if_else, node, start
from tests.driver import RUN_ID, Driver, done

RETRY = {"retry_enabled": True, "max_retries": 2, "retry_interval": 1000}


def _history(driver: Driver, copied: int = 0) -> list[Recorded]:
    """`copied`: the last event that is shared with another run."""
    found = []
    for seq, event in enumerate(driver.events, 1):
        cause = "copied" if seq <= copied else "derived"
        found.append(Recorded(event, RUN_ID, seq, 1, seq, 1_800_000_000_000_000 + seq, cause, 0, seq))
    return found


def _why(driver: Driver, node_id: str | None = None, copied: int = 0) -> str:
    return str(why(driver.definition, _history(driver, copied), node_id)["why"])


def _fails(*names: str) -> Any:
    def answer(key: Key, attempt: int) -> Outcome:
        return Failed(f"{key.node_id} broke.\nmore", "Boom") if key.node_id in names else done(key, attempt)

    return answer


def _branching(answer: Any = done, **more: Any) -> Driver:
    text = document(
        [start("q"), if_else("choice", "start.q", "is", "yes"), code("a", **more), code("b"), end(out="a.result")],
        edges("start > choice", "choice[true] > a > end", "choice[false] > b > end"),
    )
    driver = Driver(text, q="yes")
    driver.run(answer)
    return driver


def test_a_run_that_succeeded_says_what_ran_and_what_did_not() -> None:
    assert _why(_branching()) == (
        "It succeeded at event 12: all that could be reached is done (4 nodes run, 1 skipped)."
    )


def test_a_skipped_node_names_the_branch_that_ruled_it_out() -> None:
    assert _why(_branching(), "b") == (
        'Node "B" (b) was skipped at event 7, because node "Choice" (choice) took the branch "true", '
        "which does not lead to it."
    )
    text = document(
        [start("q"), if_else("choice", "start.q", "is", "yes"), code("a"), code("b"), code("c"), end(out="a.result")],
        edges("start > choice", "choice[true] > a > end", "choice[false] > b > c > end"),
    )
    driver = Driver(text, q="yes")
    driver.run()
    assert _why(driver, "c").endswith('took the branch "true", which leads past it.')


def test_a_node_behind_a_fail_branch_that_was_not_taken() -> None:
    text = document(
        [start(), code("a", error_strategy="fail-branch"), end("good"), end("bad")],
        edges("start > a > good", "a[fail-branch] > bad"),
    )
    worked, failed = Driver(text), Driver(text)
    worked.run()
    failed.run(_fails("a"))
    assert "and its fail branch alone would have led to it" in _why(worked, "bad")
    assert "failed and took its fail branch, which does not lead to it" in _why(failed, "good")
    assert _why(failed, "a") == 'Node "A" (a) failed at event 6, and its fail branch handled that: a broke.'
    assert _why(failed) == 'It succeeded in part, because an exception was handled: node "A" (a) (a broke).'


def test_a_failed_run_names_the_node_the_event_and_the_attempt() -> None:
    driver = _branching(_fails("a"), retry_config=RETRY)
    place = driver.names().index("NodeFailed(a)") + 1
    assert _why(driver) == f'It failed because node "A" (a) failed at event {place}, attempt 3: a broke.'
    assert _why(driver, "A") == (f'Node "A" (a) failed at event {place} with attempt 3, and so did the run: a broke.')
    assert _why(driver, "end").startswith(
        'Node "End" (end) did not run: the run ended before it was its turn. It failed'
    )


def test_of_a_traceback_the_exception_is_told() -> None:
    error = 'Traceback (most recent call last):\n  File "<code>", line 1, in main\n    x["y"]\nKeyError: \'y\''
    driver = _branching(lambda key, attempt: Failed(error) if key.node_id == "a" else done(key, attempt))
    assert _why(driver) == "It failed because node \"A\" (a) failed at event 9: KeyError: 'y'."


def test_a_failure_inside_a_round_is_named_with_its_round() -> None:
    each = node(
        "each", "iteration", start_node_id="s", iterator_selector=["start", "items"], output_selector=["a", "result"]
    )
    body = [node("s", "iteration-start", iteration_id="each"), code("a", iteration_id="each")]
    text = document([start(), each, *body, end()], edges("start > each > end", "s > a"))
    driver = Driver(text, items=["x", "y", "z"])  # type: ignore[arg-type]
    driver.run(lambda key, attempt: Failed("no") if key.path.endswith(":1") else done(key, attempt))
    assert 'because node "A" (a) in round 2 of node "Each" (each) failed at event' in _why(driver)
    assert _why(driver, "a").startswith('Node "A" (a) ran 2 times: 1 succeeded, 1 failed. Node "A" (a) in round 2')


def test_what_is_under_way_is_waited_for() -> None:
    driver = Driver(fan_out(5)).begin()
    assert _why(driver) == 'It waits for a free slot for node "Start" (start).'
    driver.start_due()
    said = _why(driver)
    assert said.startswith('It waits for node "N1" (n1), under way since 20')
    assert said.endswith("; and 2 more.")
    assert 'Node "N1" (n1) is under way since 20' in _why(driver, "n1")
    assert _why(driver, "end").startswith(
        'Node "End" (end) has not begun: it waits for node "N1" (n1); node "N2" (n2);'
    )


def test_a_retry_is_waited_for_with_its_time_and_attempt() -> None:
    text = document([start(), code("a", retry_config=RETRY), end()], edges("start > a > end"))
    driver = Driver(text).begin()
    driver.start_due()
    driver.complete(Key("", "a"), Failed("503"))
    assert 'to try node "A" (a) again (attempt 2 of 3, after: 503).' in _why(driver)
    assert 'Node "A" (a) failed at event 6 and waits for 20' in _why(driver, "a")


def test_pending_stopping_pausing_and_stopped_runs() -> None:
    driver = Driver(chain(1))
    assert _why(driver).startswith("It waits since 20")
    driver.begin().start_due()
    driver.fold(PauseRequested(command_offset=1, reason="maintenance.", by="ann"))
    assert _why(driver).startswith('It is to pause by ann: maintenance. It still waits for node "N1" (n1)')
    driver.fold(StopRequested(command_offset=2, reason="enough", by="bob"))
    assert _why(driver) == "It is being stopped by bob: enough."
    driver.derive()
    assert _why(driver) == "It was stopped by bob: enough."
    assert _why(driver, "n1").endswith(": enough.")


def test_a_paused_run_says_who_paused_it() -> None:
    driver = Driver(chain(1)).begin()
    driver.start_due()
    driver.fold(PauseRequested(command_offset=1, reason="maintenance", by="ann"))
    driver.complete(Key("", "n1"), done(Key("", "n1"), 1))
    driver.derive()
    assert " by ann: maintenance. It goes on when it is resumed." in _why(driver)


def test_a_form_is_waited_for_with_its_end() -> None:
    text = document([start(), human_input("ask"), end()], edges("start > ask", "ask[ok] > end"))
    driver = Driver(text)
    driver.run()
    assert 'for a person to answer node "Ask" (ask), whose form expires at 20' in _why(driver)
    assert 'Node "Ask" (ask) waits for a person since 20' in _why(driver, "ask")
    driver.submit("ask", "no")
    driver.run()
    assert 'Node "End" (end) was skipped' in _why(driver, "end")


def test_a_run_over_its_limit_names_it() -> None:
    driver = Driver(chain(4), max_steps=2)
    driver.run()
    assert "over its limit: Maximum execution steps exceeded: 3 > 2." in _why(driver)


def test_a_copied_and_edited_node_says_so() -> None:
    origin = Driver(chain(2))
    origin.run()
    prefix = [event.model_dump(mode="json") for event in origin.events[2:6]]
    prefix[3]["metadata"] = {"edited": ["result"]}
    driver = Driver(chain(2), accepted={"prefix": prefix, "forked_from": Origin(run_id="r1", seq=6)}).begin()
    assert _why(driver) == "It repeats what it shares with run r1: 4 events are left."
    driver.run()
    assert _why(driver, "n1", copied=6) == (
        'Node "N1" (n1) succeeded at event 6, copied from run r1: it was not run again, with another result.'
    )


def test_nodes_are_found_by_title_and_unknown_ones_named() -> None:
    driver = _branching()
    assert why(driver.definition, _history(driver), "Choice")["node_id"] == "choice"
    with pytest.raises(PartInvalid, match=r'no node "choise"\. Did you mean "choice"'):
        _why(driver, "choise")


def test_only_the_part_that_runs_is_told_of() -> None:
    definition = compile_document(chain(2))
    driver = Driver(definition, accepted={"only": "n1"})
    driver.run()
    assert _why(driver, "n2") == 'Only node "N1" (n1) runs in this run.'


def test_every_node_of_every_prefix_has_a_sentence() -> None:
    driver = _branching(lambda key, attempt: Failed("x") if attempt == 1 else Succeeded(), retry_config=RETRY)
    for cut in range(1, len(driver.events) + 1):
        history = _history(driver)[:cut]
        for name in (None, *driver.definition.nodes):
            sentence = why(driver.definition, history, name)["why"]
            assert sentence.endswith(".")
            assert "None" not in sentence


# --- differences ---


def test_a_difference_names_what_came_what_changed_and_what_did_not() -> None:
    driver = _branching()
    found = difference(driver.definition, _history(driver), 4, 9)
    assert found["status"] == {"from": "running", "to": "running"}
    assert found["nodes"] == {
        "choice": {"to": "succeeded"}, "b": {"to": "skipped"}, "a": {"to": "succeeded"},
    }  # fmt: skip
    assert found["variables"]["a.result"] == {"to": "a done"}
    assert "start.q" not in found["variables"]
    assert difference(driver.definition, _history(driver), 9, 9)["variables"] == {}
    whole = difference(driver.definition, _history(driver), 1, 12)
    assert (whole["status"], whole["outputs"]) == ({"from": "pending", "to": "succeeded"}, {"out": {"to": "a done"}})


def test_a_message_that_an_annotation_answered_says_which_one() -> None:
    driver = Driver(counting(), accepted={"query": "hi", "conversation_id": "c1", "annotation": ANNOTATION}).begin()
    driver.derive()
    sentence = (
        'It succeeded at event 3: the annotation for "How late is it?" (a1, score 0.97) answered the message, '
        "so no node runs."
    )
    assert _why(driver) == sentence
    assert _why(driver, "llm").endswith(sentence)
