"""Forks: what the new run shares, what it does again, and values that are edited."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.events.model import NodeStarted, NodeSucceeded, RunEvent
from libs.workflow.fork import Fork, ForkInvalid, fork, retry_point
from libs.workflow.machine import Stop, decide
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key
from tests.documents import chain, code, document, edges, end, fan_out, human_input, node, start, template
from tests.driver import Driver, done

RETRY = {"retry_enabled": True, "max_retries": 2, "retry_interval": 100}


def _run(text: str, answer: Any = done, **inputs: str) -> Driver:
    driver = Driver(text, **inputs)
    driver.run(answer)
    return driver


def _seq(driver: Driver, word: str) -> int:
    return driver.names().index(word) + 1


def _forked(origin: Driver, made: Fork, answer: Any = done) -> Driver:
    fields = {"variables": made.accepted.variables, "prefix": made.prefix}
    driver = Driver(origin.definition, accepted=fields, **made.accepted.inputs)  # type: ignore[arg-type]
    driver.run(answer)
    return driver


def _fails(*names: str) -> Any:
    def answer(key: Key, attempt: int) -> Outcome:
        return Failed(f"{key.node_id} broke", "Boom") if key.node_id in names else done(key, attempt)

    return answer


def _iteration(items: str, name: str = "a") -> list[dict[str, Any]]:
    """`each` over `items`, with one code node as its body."""
    return [
        node(
            "each",
            "iteration",
            start_node_id="begin",
            iterator_selector=items.split("."),
            output_selector=[name, "result"],
        ),
        node("begin", "iteration-start", iteration_id="each"),
        code(name, iteration_id="each"),
    ]


def _starts(events: list[RunEvent]) -> list[tuple[str, int, int]]:
    return [(each.node_id, each.attempt, each.index) for each in events if isinstance(each, NodeStarted)]


def test_a_fork_does_not_repeat_what_was_done() -> None:
    origin = _run(chain(3))
    made = fork(origin.definition, origin.events, _seq(origin, "NodeSucceeded(n2)"))
    assert (made.again, made.first) == (("n3", "end"), ("n3",))
    asked: list[str] = []
    forked = _forked(origin, made, lambda key, attempt: asked.append(key.node_id) or done(key, attempt))
    assert asked == ["n3"]
    assert forked.state.outputs == origin.state.outputs
    assert forked.names() == origin.names()


def test_a_fork_of_the_first_event_runs_everything_again() -> None:
    origin = _run(chain(2))
    made = fork(origin.definition, origin.events, 1)
    assert (made.prefix, made.again, made.first) == ([], ("start", "n1", "n2", "end"), ("start",))


def test_attempts_that_ran_at_the_place_begin_anew_and_starts_are_numbered_again() -> None:
    driver = Driver(fan_out(3)).begin()
    driver.start_due()
    driver.complete(Key("", "n2"), Succeeded(outputs={"result": "two"}))
    made = fork(driver.definition, driver.events, len(driver.events))
    assert made.first == ("n1", "n3")
    forked = _forked(driver, made)
    assert _starts(forked.events) == [("start", 1, 1), ("n2", 1, 2), ("n1", 1, 3), ("n3", 1, 4), ("end", 1, 5)]


def test_a_waiting_retry_goes_on_with_its_next_attempt() -> None:
    text = document([start(), code("a", retry_config=RETRY), end(out="a.result")], edges("start > a > end"))
    origin = _run(text, lambda key, attempt: Failed("no") if attempt == 1 else done(key, attempt))
    made = fork(origin.definition, origin.events, _seq(origin, "NodeRetryScheduled(a)"))
    assert made.first == ("a",)
    assert _starts(_forked(origin, made).events) == [("start", 1, 1), ("a", 1, 2), ("a", 2, 2), ("end", 1, 3)]


def test_a_stop_is_not_inherited() -> None:
    driver = Driver(chain(2)).begin()
    driver.start_due()
    driver.fold(decide(driver.state, Stop(7, "enough")))
    driver.derive()
    made = fork(driver.definition, driver.events, len(driver.events) - 1)
    assert _forked(driver, made).state.status == "succeeded"


def test_a_container_goes_on_with_the_round_that_was_under_way() -> None:
    nodes = [start("q"), *_iteration("start.items"), end(out="each.output")]
    text = document(nodes, edges("start > each > end", "begin > a"))
    origin = Driver(text, items=["x", "y", "z"])  # type: ignore[arg-type]
    origin.run()
    second = [n for n, event in enumerate(origin.events) if isinstance(event, NodeStarted) and event.node_id == "a"][1]
    made = fork(origin.definition, origin.events, second + 1)
    assert (made.again, made.first) == (("a", "end"), ("a",))
    asked: list[str] = []
    forked = _forked(origin, made, lambda key, attempt: asked.append(key.path) or done(key, attempt))
    assert asked == ["iteration:each:1", "iteration:each:2"]
    assert forked.state.outputs == origin.state.outputs


def test_an_answered_form_is_not_asked_again_and_an_open_one_is() -> None:
    text = document(
        [start(), human_input("ask"), human_input("more"), end(out="ask.note")],
        edges("start > ask", "ask[ok] > more", "more[ok] > end"),
    )
    driver = Driver(text)
    driver.run()
    driver.submit("ask", "ok", note="fine")
    driver.run()
    assert driver.state.status == "paused"
    made = fork(driver.definition, driver.events, len(driver.events))
    assert (made.first, made.again) == (("more",), ("more",))
    forked = _forked(driver, made)
    assert forked.state.status == "paused"
    assert [key.node_id for key in forked.open_forms()] == ["more"]
    forked.submit("more", "ok")
    forked.run()
    assert forked.state.outputs == {"out": "fine"}


# --- places ---


@pytest.mark.parametrize(
    ("at", "said"),
    [(0, "events 1 to 11"), (12, "Fork at 1 to 10"), (99, "events 1 to 11"), (11, "event 11 is the run's end")],
)
def test_a_place_that_is_none_is_refused_with_those_there_are(at: int, said: str) -> None:
    origin = _run(chain(2))
    with pytest.raises(ForkInvalid, match=said):
        fork(origin.definition, origin.events, at)


def test_behind_the_failure_there_is_nothing_to_fork() -> None:
    origin = _run(chain(2), _fails("n1"))
    place = _seq(origin, "NodeFailed(n1)")
    with pytest.raises(ForkInvalid, match=f"Fork before event {place}, or retry"):
        fork(origin.definition, origin.events, place)


# --- edits ---

WRITING = document(
    [start("q"), code("a"), template("t", "{{ x }} {{ y }}", x="a.result", y="start.q"), end(out="t.output")],
    edges("start > a > t > end"),
    environment_variables=[
        {"name": "key", "value": "s3cret", "value_type": "secret"},
        {"name": "size", "value": 3, "value_type": "number"},
    ],
)


def _edit(origin: Driver, word: str, **edits: JsonValue) -> Fork:
    values = {name.replace("__", "."): value for name, value in edits.items()}
    return fork(origin.definition, origin.events, _seq(origin, word), values)


def test_an_edited_output_is_what_followers_read_and_is_marked() -> None:
    origin = _run(WRITING, q="you")
    forked = _forked(origin, _edit(origin, "NodeSucceeded(a)", a__result="edited"))
    assert forked.state.outputs == {"out": "edited you"}
    event = next(each for each in forked.events if isinstance(each, NodeSucceeded) and each.node_id == "a")
    assert (event.outputs, event.metadata) == ({"result": "edited"}, {"edited": ["result"]})


def test_an_edited_input_is_the_runs_input_too() -> None:
    origin = _run(WRITING, q="you")
    made = _edit(origin, "NodeSucceeded(a)", start__q="me")
    assert made.accepted.inputs == {"q": "me"}
    assert _forked(origin, made).state.outputs == {"out": "a done me"}
    assert _edit(origin, "RunAccepted", start__q="me").accepted.inputs == {"q": "me"}


def test_an_environment_value_is_edited_and_a_secret_is_not() -> None:
    origin = _run(WRITING, q="you")
    assert _edit(origin, "RunStarted", env__size=4).accepted.variables == {"env": {"size": [4]}}
    with pytest.raises(ForkInvalid, match=r"env\.key is secret"):
        _edit(origin, "RunStarted", env__key="other")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a__reslt", "x", r'there is no value "a\.reslt"\. Did you mean "a\.result"'),
        ("b__result", "x", r"there is no value"),
        ("t__output", "x", r"there is no value"),
        ("a", "x", r'there is no value "a"'),
        ("a__result", 4, r"a\.result: expected a value of type string, got number"),
        ("a__result", None, r"expected a value of type string, got none"),
        ("env__size", [], r"expected a value of type number, got array\[any\]"),
        ("sys__user_id", "x", r"sys\.user_id cannot be edited"),
        ("a__result", {"$sealed": "1.k.t", "shown": "x"}, r"stands for a secret in the log"),
    ],
)
def test_wrong_edits_are_refused_with_what_is_there(name: str, value: JsonValue, said: str) -> None:
    origin = _run(WRITING, q="you")
    with pytest.raises(ForkInvalid, match=said):
        _edit(origin, "NodeSucceeded(a)", **{name: value})


# --- retries ---


def test_a_retry_keeps_what_siblings_did_and_begins_with_the_first_attempt() -> None:
    text = document(
        [start(), code("a", retry_config=RETRY), code("b"), end(out="b.result")],
        edges("start > a > end", "start > b > end"),
    )
    driver = Driver(text).begin()
    driver.start_due()
    driver.complete(Key("", "b"), done(Key("", "b"), 1))
    driver.run(_fails("a"))
    point = retry_point(driver.definition, driver.events)
    assert point.at == _seq(driver, "NodeFailed(a)") - 1
    made = fork(driver.definition, driver.events, point.at, without=point.without)
    assert made.first == ("a",)
    forked = _forked(driver, made)
    assert _starts(forked.events) == [("start", 1, 1), ("b", 1, 2), ("a", 1, 3), ("end", 1, 4)]
    assert forked.state.status == "succeeded"


def test_a_retry_of_a_failed_container_begins_in_the_round_that_failed() -> None:
    nodes = [start(), *_iteration("start.items"), end(out="each.output")]
    text = document(nodes, edges("start > each > end", "begin > a"))
    origin = Driver(text, items=["x", "y"])  # type: ignore[arg-type]
    origin.run(lambda key, attempt: Failed("no") if key.path.endswith(":1") else done(key, attempt))
    point = retry_point(origin.definition, origin.events)
    asked: list[str] = []
    made = fork(origin.definition, origin.events, point.at, without=point.without)
    forked = _forked(origin, made, lambda key, attempt: asked.append(key.path) or done(key, attempt))
    assert asked == ["iteration:each:1"]
    assert forked.state.outputs == {"out": ["a done", "a done"]}


@pytest.mark.parametrize("ended", [False, True], ids=["round-open", "round-ended"])
def test_a_retry_tries_again_what_would_have_made_the_run_fail_next(ended: bool) -> None:
    nodes = [
        start(),
        code("beside"),
        *_iteration("start.items"),
        code("b", iteration_id="each"),
        end(out="each.output"),
    ]
    nodes[2]["data"] |= {"is_parallel": True, "parallel_nums": 2}
    text = document(nodes, edges("start > each > end", "start > beside > end", "begin > a", "begin > b"))
    origin = Driver(text, items=["x", "y"]).begin()  # type: ignore[arg-type]
    origin.start_due()
    first, second = "iteration:each:0", "iteration:each:1"
    origin.complete(Key(second, "b"), done(Key(second, "b"), 1))
    origin.complete(Key(first, "a"), Failed("no"))
    if ended:
        origin.complete(Key(first, "b"), done(Key(first, "b"), 1))
    origin.complete(Key("", "beside"), Failed("first"))
    origin.run()
    assert (origin.state.status, origin.state.error) == ("failed", "first")
    point = retry_point(origin.definition, origin.events)
    asked: list[tuple[str, str]] = []
    made = fork(origin.definition, origin.events, point.at, without=point.without)
    forked = _forked(origin, made, lambda key, attempt: asked.append((key.path, key.node_id)) or done(key, attempt))
    assert forked.state.outputs == {"out": ["a done", "a done"]}
    again = {("", "beside"), (first, "a"), (second, "a"), (first, "b")}
    assert set(asked) == again - ({(first, "b")} if ended else set())


def test_a_container_that_could_not_open_is_opened_again() -> None:
    nodes = [start(), code("a"), *_iteration("a.result", "b"), end(out="each.output")]
    text = document(nodes, edges("start > a > each > end", "begin > b"))
    origin = _run(text)
    point = retry_point(origin.definition, origin.events)
    made = fork(origin.definition, origin.events, point.at, without=point.without)
    assert (made.first, made.again) == (("each",), ("each",))
    with pytest.raises(ForkInvalid, match="expected a value of type string, got array"):
        fork(origin.definition, origin.events, point.at, {"a.result": ["x"]}, point.without)


def test_a_run_over_its_limit_is_retried_before_the_limit() -> None:
    driver = Driver(chain(4), max_steps=3)
    driver.run()
    point = retry_point(driver.definition, driver.events)
    assert point.at == _seq(driver, "LimitExceeded") - 1
    assert _forked(driver, fork(driver.definition, driver.events, point.at)).state.status == "succeeded"


def test_a_run_that_has_not_failed_is_not_retried() -> None:
    origin = _run(chain(1))
    with pytest.raises(ForkInvalid, match="has not failed") as raised:
        retry_point(origin.definition, origin.events)
    assert raised.value.code == "run_not_failed"
