"""The response stream: what a client sees, when, and in which order."""

import time
from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.machine import Stop, decide
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key
from libs.workflow.streaming import Text
from tests.conversations import ANNOTATION
from tests.documents import code, document, edges, end, fan_out, if_else, node, start, template
from tests.screen import Screen


def answer(node_id: str, template: str, **data: Any) -> dict[str, Any]:
    return node(node_id, "answer", answer=template, **data)


def chat(nodes: list[dict[str, Any]], *arrows: str, **workflow: Any) -> str:
    return document([start("q"), *nodes], edges(*arrows), mode="advanced-chat", **workflow)


def result(value: JsonValue) -> Succeeded:
    return Succeeded(outputs={"result": value})


def begun(text: str, q: str = "") -> Screen:
    """A run up to where it waits for its first handlers."""
    screen = Screen(text, q)
    screen.begin().start_due()
    return screen


def finish(screen: Screen, node_id: str, outcome: Outcome, path: str = "") -> None:
    screen.complete(Key(path, node_id), outcome)
    screen.start_due()


# --- order -----------------------------------------------------------------------------------------------------------


def test_leading_text_and_inputs_are_said_right_after_the_run_started() -> None:
    screen = begun(chat([answer("a", "Hi {{#start.q#}}!")], "start > a"), q="Bob")
    assert screen.texts() == [("RunStarted", "Hi "), ("RunStarted", "Bob"), ("RunStarted", "!")]
    assert [text.selector for _, text in screen.said] == [("a", "answer"), ("start", "q"), ("a", "answer")]
    assert [text.node_id for _, text in screen.said] == ["a", "start", "a"]


def test_a_value_that_does_not_stream_is_said_when_its_node_succeeds() -> None:
    screen = begun(chat([code("n"), answer("a", "<{{#n.result#}}>")], "start > n > a"))
    finish(screen, "n", result(["x", "y"]))
    assert screen.texts() == [
        ("RunStarted", "<"),
        ("NodeSucceeded(n)", "- x\n- y"),
        ("NodeSucceeded(n)", ">"),
    ]


def test_chunks_are_said_as_they_come_and_the_missing_tail_at_success() -> None:
    screen = begun(chat([code("n"), answer("a", "<{{#n.result#}}>")], "start > n > a"))
    screen.chunk("n", "one ")
    screen.chunk("n", "two ", 4)
    finish(screen, "n", result("one two three"))
    assert screen.texts() == [
        ("RunStarted", "<"),
        ("chunk", "one "),
        ("chunk", "two "),
        ("NodeSucceeded(n)", "three"),
        ("NodeSucceeded(n)", ">"),
    ]
    assert screen.said[1][1] == Text("one ", ("n", "result"), "n")


def test_chunks_that_come_before_the_branch_is_decided_are_said_after_it() -> None:
    text = chat(
        [
            code("n"),
            code("m"),
            if_else("choice", "m.result", "is", "go"),
            if_else("other", "n.result", "is not", "x"),
            answer("a", "<{{#n.result#}}>"),
        ],
        "start > n > other[true] > a",
        "start > m > choice[true] > a",
    )
    screen = begun(text)
    screen.chunk("n", "one")
    assert screen.shown == ""
    finish(screen, "m", result("go"))
    assert screen.texts() == [("NodeSucceeded(choice)", "<"), ("NodeSucceeded(choice)", "one")]
    screen.chunk("n", " two", 3)
    finish(screen, "n", result("one two"))
    assert screen.shown == "<one two>"


def test_parallel_answers_speak_one_after_the_other_by_node_id() -> None:
    nodes = [code("n"), answer("z", "z{{#n.result#}}"), answer("a", "a{{#n.result#}}")]
    screen = begun(chat(nodes, "start > z", "start > n > a"))
    screen.chunk("n", "...")
    assert screen.shown == "a..."
    finish(screen, "n", result("...!"))
    assert screen.shown == "a...!z...!"


def test_of_two_answers_in_a_row_the_second_speaks_when_the_first_is_done() -> None:
    screen = begun(chat([code("n"), answer("b", "1 "), answer("a", "2 {{#n.result#}}")], "start > b > n > a"))
    assert screen.texts()[:2] == [("RunStarted", "1 "), ("NodeSucceeded(b)", "2 ")]
    screen.chunk("n", "x")
    finish(screen, "n", result("xy"))
    assert screen.shown == "1 2 xy"
    assert screen.state.outputs["answer"] == screen.shown


def test_an_end_says_its_values_separated_by_newlines() -> None:
    text = document([start("q"), code("n"), end(query="start.q", text="n.result")], edges("start > n > end"))
    screen = begun(text, q="Q")
    screen.chunk("n", "x")
    finish(screen, "n", result("xy"))
    assert screen.texts() == [
        ("RunStarted", "Q"),
        ("RunStarted", "\n"),
        ("chunk", "x"),
        ("NodeSucceeded(n)", "y"),
    ]
    assert screen.said[1][1].selector == ("end", "answer")


def test_a_template_between_model_and_end_is_said_in_one_piece() -> None:
    nodes = [start("q"), code("n"), template("t", "<{{ n }}>", n="n.result"), end(query="start.q", text="t.output")]
    screen = begun(document(nodes, edges("start > n > t > end")), q="Q")
    screen.chunk("n", "x")
    finish(screen, "n", result("xy"))
    assert screen.texts() == [("RunStarted", "Q"), ("RunStarted", "\n"), ("NodeSucceeded(t)", "<xy>")]
    assert [text.node_id for _, text in screen.said] == ["start", "end", "t"]


def test_parallel_answers_are_in_the_output_in_order_of_completion() -> None:
    screen = begun(chat([answer("z", "first "), answer("a", "second ")], "start > z", "start > a"))
    assert (screen.shown, screen.state.outputs["answer"]) == ("second first ", "first second ")


def test_an_answer_that_uses_a_variable_waits_for_the_assigner_before_it() -> None:
    text = chat(
        [
            node(
                "set",
                "assigner",
                version="2",
                items=[
                    {
                        "variable_selector": ["conversation", "topic"],
                        "input_type": "constant",
                        "operation": "set",
                        "value": "new",
                    }
                ],
            ),
            answer("a", "{{#conversation.topic#}}"),
        ],
        "start > set > a",
        conversation_variables=[{"id": "1", "name": "topic", "value_type": "string", "value": "old"}],
    )
    screen = begun(text)
    assert screen.texts() == [("NodeSucceeded(set)", "new")]
    assert screen.said[0][1].node_id == "a"


def _beside_an_assigner(*arrows: str) -> Screen:
    change = {
        "variable_selector": ["conversation", "topic"],
        "input_type": "constant",
        "operation": "set",
        "value": "new",
    }
    return begun(
        chat(
            [code("n"), code("m"), node("set", "assigner", version="2", items=[change]), answer("a", ANSWER)],
            *arrows,
            conversation_variables=[{"id": "1", "name": "topic", "value_type": "string", "value": "old"}],
        )
    )


ANSWER = "<{{#conversation.topic#}}{{#m.result#}}"


@pytest.mark.parametrize(("order", "topic"), [("nm", "new"), ("mn", "old")])
def test_a_variable_that_a_parallel_assigner_may_change_is_said_as_the_answer_has_it(order: str, topic: str) -> None:
    screen = _beside_an_assigner("start > n > set", "start > m > a")
    screen.chunk("m", "text")
    assert screen.shown == "<"
    for node_id in order:
        finish(screen, node_id, result("text"))
    assert (screen.shown, screen.state.outputs["answer"]) == (f"<{topic}text", f"<{topic}text")


def test_an_assigner_behind_the_answer_holds_up_nothing() -> None:
    screen = _beside_an_assigner("start > n", "start > m > a > set")
    screen.chunk("m", "te")
    assert screen.shown == "<oldte"
    finish(screen, "m", result("text"))
    assert (screen.shown, screen.state.outputs["answer"]) == ("<oldtext", "<oldtext")


# --- where the text would be lost elsewhere --------------------------------------------------------------------------


def test_a_variable_that_is_referred_to_twice_is_said_twice() -> None:
    screen = begun(chat([code("n"), answer("a", "{{#n.result#}}|{{#n.result#}}")], "start > n > a"))
    screen.chunk("n", "x")
    finish(screen, "n", result("xy"))
    assert screen.shown == "xy|xy"


@pytest.mark.parametrize("selector", ["n.typo", "nobody.text", "conversation.unset", "n.result.deep"])
def test_a_value_that_never_comes_is_left_out_and_blocks_nothing(selector: str) -> None:
    text = document(
        [start("q"), code("n"), end(first="start.q", gone=selector, last="n.result")], edges("start > n > end")
    )
    screen = begun(text, q="Q")
    finish(screen, "n", result("R"))
    assert screen.shown == "Q\n\nR"


def test_a_source_that_was_skipped_is_left_out() -> None:
    text = chat(
        [code("n"), code("m"), if_else("choice", "start.q", "is", "n"), answer("a", "{{#n.result#}}{{#m.result#}}.")],
        "start > choice[true] > n > a",
        "choice[false] > m > a",
    )
    screen = begun(text, q="m")
    finish(screen, "m", result("M"))
    assert screen.shown == "M."


def test_a_source_on_a_cycle_is_left_out() -> None:
    text = chat([code("n"), code("m"), answer("a", "1{{#n.result#}}2")], "start > a", "start > n > m > n")
    screen = begun(text)
    assert screen.shown == "12"


def test_what_an_answer_says_is_fixed_when_it_is_done() -> None:
    text = chat(
        [
            code("n"),
            answer("a", "{{#n.result#}} "),
            answer("b", "{{#m.result#}}"),
            code("m"),
            node("set", "assigner", assigned_variable_selector=["m", "result"], write_mode="clear"),
        ],
        "start > n > a",
        "start > m > b > set",
    )
    screen = begun(text)
    finish(screen, "m", result("before"))
    assert screen.state.pool.get(("m", "result")).value == ""  # type: ignore[union-attr]  # it is there
    finish(screen, "n", result("N"))
    assert screen.shown == "N before"


# --- text that no longer holds ---------------------------------------------------------------------------------------


def retried(template: str = "<{{#n.result#}}>") -> Screen:
    retry = {"retry_enabled": True, "max_retries": 1, "retry_interval": 100}
    return begun(chat([code("n", retry_config=retry), answer("a", template)], "start > n > a"))


def test_a_retry_takes_back_what_the_failed_attempt_had_shown() -> None:
    screen = retried()
    screen.chunk("n", "wrong")
    assert screen.shown == "<wrong"
    finish(screen, "n", Failed("broke", "SomeError"))
    assert screen.said[-1] == ("NodeRetryScheduled(n)", Text("<", ("n", "result"), "n", replace=True))
    screen.now_us += 1_000_000
    screen.start_due()
    screen.chunk("n", "late", 5, attempt=1)
    screen.chunk("n", "right")
    finish(screen, "n", result("right!"))
    assert screen.shown == "<right!>"


def test_a_restart_takes_back_what_the_lost_owner_had_shown() -> None:
    screen = retried()
    began = screen.state.seq
    screen.chunk("n", "wrong")
    screen.epoch += 1
    screen.start_due()
    assert screen.said[-1] == ("NodeRestarted(n)", Text("<", ("n", "result"), "n", replace=True))
    screen.chunk("n", "from the old owner", epoch=1, after=began)
    screen.chunk("n", "right")
    screen.chunk("n", " from the old owner", 5, epoch=1)
    finish(screen, "n", result("right"))
    assert screen.shown == "<right>"


def test_a_retry_without_text_shown_says_nothing() -> None:
    screen = retried()
    finish(screen, "n", Failed("broke", "SomeError"))
    assert screen.texts() == [("RunStarted", "<")]


def test_a_durable_output_that_differs_replaces_what_was_shown() -> None:
    screen = retried()
    screen.chunk("n", "wrong")
    finish(screen, "n", result("right"))
    assert ("NodeSucceeded(n)", Text("<right", ("n", "result"), "n", replace=True)) in screen.said
    assert screen.shown == "<right>"


def test_a_default_value_replaces_what_the_failed_attempt_had_shown() -> None:
    default = {
        "error_strategy": "default-value",
        "default_value": [{"key": "result", "type": "string", "value": "sorry"}],
    }
    screen = begun(chat([code("n", **default), answer("a", "<{{#n.result#}}>")], "start > n > a"))
    screen.chunk("n", "par")
    finish(screen, "n", Failed("broke", "SomeError"))
    assert screen.shown == "<sorry>"


def test_a_failed_run_keeps_only_what_holds() -> None:
    screen = begun(chat([code("n"), answer("a", "<{{#n.result#}}>")], "start > n > a"))
    screen.chunk("n", "par")
    finish(screen, "n", Failed("broke", "SomeError"))
    assert (screen.state.status, screen.shown) == ("failed", "<")


def test_a_stopped_run_keeps_what_was_shown_and_says_no_more() -> None:
    screen = begun(chat([code("n"), answer("a", "<{{#n.result#}}>")], "start > n > a"))
    screen.chunk("n", "par")
    screen.fold(decide(screen.state, Stop(99, "enough", "")))
    screen.start_due()
    screen.chunk("n", "tial", 3)
    assert (screen.state.status, screen.shown) == ("stopped", "<par")


@pytest.mark.parametrize("seen", ["", "par", "partial"])
def test_who_has_seen_less_than_was_shown_where_the_stop_was_asked_for_sees_the_rest(seen: str) -> None:
    text = chat([code("n"), answer("a", "<{{#n.result#}}>")], "start > n > a")
    screen = Screen(text, accepted={"conversation_id": "c"})
    screen.begin().start_due()
    screen.chunk("n", seen)
    screen.fold(decide(screen.state, Stop(99, "enough", said="<partial")))
    screen.start_due()
    assert (screen.state.outputs, screen.shown) == ({"answer": "<partial"}, "<partial")
    assert [cause for cause, _ in screen.said if cause not in ("RunStarted", "chunk")] == (
        ["RunStopped"] if seen != "partial" else []
    )


def test_who_has_seen_more_or_other_text_than_a_stop_says_keeps_it() -> None:
    text = chat([code("n"), answer("a", "<{{#n.result#}}>")], "start > n > a")
    for seen in ("partial", "other"):
        screen = Screen(text, accepted={"conversation_id": "c"})
        screen.begin().start_due()
        screen.chunk("n", seen)
        screen.fold(decide(screen.state, Stop(99, "enough", said="<par")))
        screen.start_due()
        assert (screen.state.outputs, screen.shown) == ({"answer": "<par"}, f"<{seen}")


# --- chunks ----------------------------------------------------------------------------------------------------------


def test_repeated_and_overlapping_chunks_are_said_once_and_nothing_is_said_behind_a_hole() -> None:
    screen = retried("{{#n.result#}}")
    screen.chunk("n", "abc")
    screen.chunk("n", "abc")
    screen.chunk("n", "bcde", 1)
    screen.chunk("n", "zz", 9)
    assert screen.texts() == [("chunk", "abc"), ("chunk", "de")]
    finish(screen, "n", result("abcdefghizz"))
    assert screen.shown == "abcdefghizz"


def test_chunks_of_other_outputs_and_of_finished_nodes_are_dropped() -> None:
    screen = retried("{{#n.result#}}")
    screen.chunk("n", "thinking", name="reasoning_content")
    finish(screen, "n", result("x"))
    screen.chunk("n", "y", 1)
    assert screen.texts() == [("NodeSucceeded(n)", "x")]


# --- containers ------------------------------------------------------------------------------------------------------


def iteration(template: str = "{{#each.item#}}\n", *, is_parallel: bool = False) -> list[dict[str, Any]]:
    return [
        code("list"),
        node(
            "each",
            "iteration",
            start_node_id="each_start",
            iterator_selector=["list", "result"],
            output_selector=["each", "item"],
            is_parallel=is_parallel,
            parallel_nums=10,
            error_handle_mode="terminated",
        ),
        node("each_start", "iteration-start", iteration_id="each"),
        answer("inner", template, iteration_id="each"),
        answer("outer", "done"),
    ]


def test_an_answer_inside_an_iteration_speaks_in_every_round_before_the_outer_one() -> None:
    screen = begun(chat(iteration(), "start > list > each > outer", "each_start > inner"))
    finish(screen, "list", result(["apple", "banana"]))
    assert screen.shown == "apple\nbanana\ndone"
    paths = [text.path for _, text in screen.said if text.selector == ("each", "item")]
    assert paths == ["iteration:each:0", "iteration:each:1"]


def test_chunks_inside_a_round_are_said_as_they_come() -> None:
    nodes = [*iteration("{{#n.result#}};"), code("n", iteration_id="each")]
    screen = begun(chat(nodes, "start > list > each > outer", "each_start > n > inner"))
    finish(screen, "list", result(["a", "b"]))
    for index, word in enumerate(["one", "two"]):
        path = f"iteration:each:{index}"
        screen.chunk("n", word[:1], path=path)
        finish(screen, "n", result(word), path)
    assert [text for cause, text in screen.texts() if cause == "chunk"] == ["o", "t"]
    assert screen.shown == "one;two;done"


def test_rounds_that_run_in_parallel_speak_in_order() -> None:
    nodes = [*iteration("{{#n.result#}};", is_parallel=True), code("n", iteration_id="each")]
    screen = begun(chat(nodes, "start > list > each > outer", "each_start > n > inner"))
    finish(screen, "list", result(["a", "b"]))
    screen.chunk("n", "two", path="iteration:each:1")
    finish(screen, "n", result("two"), "iteration:each:1")
    assert screen.shown == ""
    finish(screen, "n", result("one"), "iteration:each:0")
    assert screen.shown == "one;two;done"


def test_the_rounds_of_a_loop_and_what_it_leaves_behind_are_said_in_order() -> None:
    nodes = [
        node(
            "loop",
            "loop",
            start_node_id="loop_start",
            loop_count=2,
            break_conditions=[],
            logical_operator="and",
            loop_variables=[{"label": "num", "var_type": "number", "value_type": "constant", "value": 0}],
        ),
        node("loop_start", "loop-start", loop_id="loop"),
        node(
            "add",
            "assigner",
            version="2",
            loop_id="loop",
            items=[{"variable_selector": ["loop", "num"], "input_type": "constant", "operation": "+=", "value": 1}],
        ),
        answer("inner", "{{#loop.num#}}\n", loop_id="loop"),
        answer("outer", "hi + {{#loop.num#}}"),
    ]
    screen = begun(chat(nodes, "start > loop > outer", "loop_start > add > inner"))
    assert screen.state.status == "succeeded"
    assert screen.shown == "1\n2\nhi + 2"
    assert screen.state.outputs["answer"] == screen.shown


# --- cost ------------------------------------------------------------------------------------------------------------


def test_a_large_graph_with_many_answers_costs_a_moment() -> None:
    count = 300
    names = [f"n{i}" for i in range(count)]
    nodes = [*(code(name) for name in names), *(answer(f"a{i}", f"{{{{#n{i}.result#}}}} ") for i in range(count))]
    screen = Screen(chat(nodes, *(f"start > {name} > a{name[1:]}" for name in names)))
    recorded: list[Any] = []
    screen.run(lambda key, attempt: result(key.node_id))
    recorded = screen.events
    again = Screen(screen.definition)
    assert again.stream is not None
    began = time.process_time()
    for event in recorded:
        again.stream.on_event(event, screen.state)
    # Some 20 ms here; a quadratic stream takes seconds.
    assert time.process_time() - began < 2
    assert sorted(screen.shown.split()) == sorted(names)


def test_a_run_without_response_text_says_nothing() -> None:
    screen = Screen(document([start("q"), code("n")], edges("start > n")))
    screen.run()
    assert screen.said == []
    screen = Screen(fan_out(2))
    screen.run()
    assert screen.shown == "n1 done"


def test_a_message_that_an_annotation_answers_says_that_answer_and_nothing_of_the_document() -> None:
    screen = Screen(chat([answer("a", "Hi {{#start.q#}}!")], "start > a"), accepted={"annotation": ANNOTATION})
    screen.begin().start_due()
    assert screen.texts() == [("RunStarted", ANNOTATION.answer)]
    assert screen.stream.position == len(ANNOTATION.answer)
