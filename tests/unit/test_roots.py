"""Documents with several roots: where a run begins, what it runs, and that everything made of it begins there too."""

import json
from typing import Any

import pytest

from flowledger.testing import run_document
from libs.events.codec import Recorded
from libs.workflow.definition import check_document, compile_document
from libs.workflow.fork import fork, retry_point
from libs.workflow.inputs import validate_inputs
from libs.workflow.machine import evolve, new_state
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.roots import RootInvalid, default_root, named_root, rooted, roots_of
from libs.workflow.state import Key, dump_state, load_state
from services.api.why import why
from tests.documents import code, document, edges, end, node, start, template
from tests.driver import RUN_ID, Driver, done
from tests.screen import Screen

HOOK = node("order", "trigger-webhook", body=[{"name": "who", "type": "string", "required": True}])
TICK = node("tick", "trigger-schedule", mode="cron", cron_expression="0 * * * *")
EVENT = {"webhook_data": {"headers": {}, "query_params": {}, "body": {"who": "Ada"}, "files": {}}}
TRIGGERS = document(
    [
        HOOK,
        node("refund", "trigger-plugin"),
        TICK,
        *(code(name) for name in ("a", "b", "c", "behind_b", "shared")),
        end(a="a.result", b="b.result", c="c.result", shared="shared.result"),
    ],
    edges("order > a > shared > end", "refund > b > shared", "b > behind_b", "tick > c > end"),
)
RAN = {
    "order": ["order", "a", "shared", "end"],
    "refund": ["refund", "b", "behind_b", "shared", "end"],
    "tick": ["tick", "c", "end"],
}


def _driver(root: str | None, text: str = TRIGGERS, **more: Any) -> Driver:
    return Driver(text, accepted={"root": root, "inputs": EVENT} | more)


def _started(driver: Driver) -> list[str]:
    return [name[12:-1] for name in driver.names() if name.startswith("NodeStarted")]


def _fails(*names: str) -> Any:
    def answer(key: Key, attempt: int) -> Outcome:
        return Failed(f"{key.node_id} broke", "Boom") if key.node_id in names else done(key, attempt)

    return answer


# --- which one -------------------------------------------------------------------------------------------------------


def test_without_a_root_a_run_begins_at_the_start_node_and_without_that_at_the_first_trigger() -> None:
    definition = compile_document(TRIGGERS)
    assert roots_of(definition) == ("order", "refund", "tick")
    assert default_root(definition) == "order"
    mixed = compile_document(document([TICK, HOOK, start("q"), end()], edges("tick > end", "order > end")))
    assert roots_of(mixed) == ("tick", "order", "start")
    assert default_root(mixed) == "start"


def test_a_start_node_beside_triggers_is_a_warning_and_several_triggers_are_none() -> None:
    mixed = document([TICK, start("q"), end()], edges("tick > end", "start > end"))
    triggers, both = (
        [each for each in check_document(text)[1] if each.at == "workflow.graph.nodes"] for text in (TRIGGERS, mixed)
    )
    assert triggers == []
    assert [each.severity for each in both] == ["warning"]
    assert 'begin at "start", at "tick" when' in both[0].problem


def test_a_node_that_is_no_root_is_refused_with_those_that_are() -> None:
    definition = compile_document(TRIGGERS)
    with pytest.raises(RootInvalid, match=r'"shared"\. Roots of this workflow: order, refund, tick'):
        rooted(definition, "shared")


def test_runs_that_begin_at_one_root_share_one_definition() -> None:
    """What follows from a definition is worked out once for each: a copy for every run would do it for every run."""
    definition = compile_document(TRIGGERS)
    assert rooted(definition, "tick") is rooted(definition, "tick")
    assert rooted(definition, "order") is definition
    there = rooted(definition, "refund")
    assert (there.root, there.inactive_roots, roots_of(there)) == ("refund", ("order", "tick"), roots_of(definition))


def test_a_record_names_the_root_only_where_there_are_several() -> None:
    assert named_root(rooted(compile_document(TRIGGERS), "refund")) == "refund"
    assert named_root(compile_document(document([start("q"), end()], edges("start > end")))) is None


def test_inputs_are_checked_by_the_form_of_the_root() -> None:
    mixed = compile_document(document([HOOK, start("q"), end()], edges("order > end", "start > end")))
    given = {"q": "hello", "x": 1}
    assert validate_inputs(rooted(mixed, "start"), given) == {"q": "hello"}
    assert validate_inputs(rooted(mixed, "order"), given) == given


# --- how it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", RAN)
def test_a_run_runs_what_its_root_reaches_and_skips_the_rest(root: str) -> None:
    driver = _driver(root)
    state = driver.run()
    assert state.status == "succeeded"
    assert sorted(_started(driver)) == sorted(RAN[root])
    assert state.frames[""].skipped == set(driver.definition.nodes) - set(RAN[root])
    assert state.outputs == {name: f"{name} done" if name in RAN[root] else None for name in ("a", "b", "c", "shared")}


def test_a_record_that_names_no_root_is_of_a_run_that_began_at_the_first() -> None:
    """Records of before there were others, of documents with the start node behind a trigger too."""
    driver = _driver(None)
    driver.run()
    assert sorted(_started(driver)) == sorted(RAN["order"])
    mixed = Driver(document([TICK, start("q"), end()], edges("tick > end", "start > end")))
    mixed.run()
    assert _started(mixed) == ["tick", "end"]


def test_inputs_are_values_of_the_root_where_the_run_begins() -> None:
    driver = _driver("refund")
    driver.run()
    assert driver.state.pool.get(("refund", "webhook_data")).value == EVENT["webhook_data"]  # type: ignore[union-attr]
    assert driver.state.pool.get(("order", "webhook_data")) is None
    hook = _driver("order")
    hook.run()
    assert hook.state.pool.get(("order", "who")).value == "Ada"  # type: ignore[union-attr]


def test_a_snapshot_begins_where_its_run_did() -> None:
    driver = _driver("refund").begin()
    driver.start_due()
    image = dump_state(driver.state)
    again = load_state(compile_document(TRIGGERS), RUN_ID, image)
    assert again.definition.root == "refund"
    assert dump_state(again) == image


def test_text_in_front_of_an_answer_is_said_at_once_wherever_its_root_stands() -> None:
    nodes = [HOOK, node("refund", "trigger-plugin"), code("slow"), node("b", "answer", answer="Hi {{#slow.result#}}")]
    text = document(nodes, edges("order > slow", "refund > slow > b"), mode="advanced-chat")
    for root in ("order", "refund"):
        screen = Screen(text, accepted={"root": root, "inputs": EVENT})
        screen.begin().start_due()
        screen.complete(Key("", "slow"), Succeeded(outputs={"result": "there"}))
        screen.start_due()
        assert screen.texts() == [("RunStarted", "Hi "), ("NodeSucceeded(slow)", "there")]


def test_a_document_in_a_test_begins_at_any_of_its_roots() -> None:
    text = document(
        [HOOK, node("refund", "trigger-plugin"), template("t", "{{ w }}", w="order.who"), end(who="t.output")],
        edges("order > t > end", "refund > end"),
    )
    assert run_document(text, EVENT).outputs == {"who": "Ada"}
    run = run_document(text, EVENT, root="refund")
    assert (run.outputs, run.types("t"), run.types("order")) == ({"who": None}, ["NodeSkipped"], ["NodeSkipped"])
    with pytest.raises(RootInvalid, match="order, refund"):
        run_document(text, root="t")


# --- what is made of it ----------------------------------------------------------------------------------------------


def test_a_fork_begins_at_the_root_of_its_origin() -> None:
    origin = _driver("refund")
    origin.run()
    at = origin.names().index("NodeSucceeded(b)") + 1
    made = fork(origin.definition, origin.events, at, {"b.result": "other", "refund.webhook_data": {"body": {}}})
    assert made.accepted.root == "refund"
    assert set(made.again) == {"behind_b", "shared", "end"}
    assert set(made.first) == {"behind_b", "shared"}
    forked = _driver(made.accepted.root, inputs=made.accepted.inputs, prefix=made.prefix)
    state = forked.run()
    assert state.outputs == {"a": None, "b": "other", "c": None, "shared": "shared done"}
    assert state.pool.get(("refund", "webhook_data")).value == {"body": {}}  # type: ignore[union-attr]


def test_a_retry_begins_at_the_root_of_the_run_that_failed() -> None:
    failed = _driver("tick")
    assert failed.run(_fails("c")).status == "failed"
    point = retry_point(failed.definition, failed.events)
    made = fork(failed.definition, failed.events, point.at, None, point.without)
    again = _driver(made.accepted.root, prefix=made.prefix)
    assert again.run().outputs == {"a": None, "b": None, "c": "c done", "shared": None}


def test_a_history_says_why_another_root_was_skipped() -> None:
    driver = _driver("tick")
    driver.run()
    history = [Recorded(event, RUN_ID, n, 1, n, n, "derived", 0, n) for n, event in enumerate(driver.events, 1)]
    state = new_state(driver.definition, RUN_ID)
    for recorded in history:
        evolve(state, recorded)
    assert state.definition.root == "tick"
    assert "because the run began at another entry" in str(why(driver.definition, history, "order"))
    assert json.dumps(why(driver.definition, history, "tick")).count("succeeded") == 2
