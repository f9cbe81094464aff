"""Retries and error strategies: what a failure leads to, for every node type that honours them."""

from typing import Any

import pytest

from libs.events.model import NodeExcepted, NodeRetryScheduled
from libs.workflow.machine import due
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key
from tests.documents import code, document, edges, end, if_else, node, start
from tests.driver import Answer, Driver, done

MODEL = {"provider": "p", "name": "m", "mode": "chat", "completion_params": {}}
WORKS: dict[str, dict[str, Any]] = {
    "code": {"code": "", "code_language": "python3", "variables": [], "outputs": {"result": {"type": "string"}}},
    "http-request": {
        "method": "get", "url": "http://x", "headers": "", "params": "", "authorization": {"type": "no-auth"},
        "body": {"type": "none", "data": []},
    },
    "tool": {
        "provider_id": "p", "provider_name": "p", "provider_type": "builtin", "tool_name": "t", "tool_label": "t",
        "tool_configurations": {}, "tool_parameters": {},
    },
    "llm": {"model": MODEL, "prompt_template": [{"role": "user", "text": "x"}], "context": {}, "vision": {}},
}  # fmt: skip

DEFAULTS = {
    "error_strategy": "default-value",
    "default_value": [
        {"key": "result", "type": "string", "value": "instead"},
        {"key": "error_message", "type": "string", "value": "hidden"},
    ],
}


def broken(kind: str = "SomeError", times: int = 99, node_id: str = "work") -> Answer:
    def answer(key: Key, attempt: int) -> Outcome:
        return Failed("it broke", kind) if key.node_id == node_id and attempt <= times else done(key, attempt)

    return answer


def retrying(retries: int, interval_ms: int = 100) -> dict[str, Any]:
    return {"retry_config": {"retry_enabled": True, "max_retries": retries, "retry_interval": interval_ms}}


def straight(kind: str, **data: Any) -> str:
    nodes = [start(), node("work", kind, **WORKS[kind], **data), end(out="work.result", why="work.error_message")]
    return document(nodes, edges("start > work > end"))


def branched(kind: str, **data: Any) -> str:
    work = node("work", kind, **WORKS[kind], error_strategy="fail-branch", **data)
    nodes = [start(), work, end("good", out="work.result", why="work.error_message"), code("other"),
             end("bad", why="work.error_message", kind="work.error_type", out="work.result")]  # fmt: skip
    arrows = ("start > work > good", "work[fail-branch] > bad", "work[success-branch] > other")
    return document(nodes, edges(*arrows))


@pytest.mark.parametrize("kind", WORKS)
def test_a_default_value_answers_for_the_failure_and_hides_its_error_from_nobody(kind: str) -> None:
    state = Driver(straight(kind, **DEFAULTS)).run(broken())
    assert (state.status, state.exceptions_count) == ("partial-succeeded", 1)
    assert state.outputs == {"out": "instead", "why": "it broke"}


@pytest.mark.parametrize("kind", WORKS)
def test_behind_a_fail_branch_the_error_is_readable_and_no_output_is(kind: str) -> None:
    state = Driver(branched(kind)).run(broken())
    assert (state.status, state.exceptions_count) == ("partial-succeeded", 1)
    assert state.outputs == {"why": "it broke", "kind": "SomeError", "out": None}


@pytest.mark.parametrize("kind", WORKS)
def test_without_a_failure_the_strategy_leaves_no_trace(kind: str) -> None:
    state = Driver(straight(kind, **DEFAULTS)).run()
    assert (state.status, state.outputs) == ("succeeded", {"out": "work done", "why": None})
    driver = Driver(branched(kind))
    state = driver.run()
    assert (state.status, state.outputs) == ("succeeded", {"out": "work done", "why": None})
    # The older name of the success side leads nowhere.
    assert [name for name in driver.names() if "Skipped" in name] == ["NodeSkipped(bad)", "NodeSkipped(other)"]


@pytest.mark.parametrize("kind", WORKS)
def test_each_repetition_is_recorded_once_and_the_last_failure_goes_to_the_strategy(kind: str) -> None:
    driver = Driver(branched(kind, **retrying(2)))
    state = driver.run(broken("HTTPResponseCodeError"))
    words = [name for name in driver.names() if "(work)" in name]
    assert words == [
        "NodeStarted(work)", "NodeRetryScheduled(work)",
        "NodeStarted(work)", "NodeRetryScheduled(work)",
        "NodeStarted(work)", "NodeExcepted(work)",
    ]  # fmt: skip
    retries = [event for event in driver.events if isinstance(event, NodeRetryScheduled)]
    assert [event.attempt for event in retries] == [1, 2]
    excepted = next(event for event in driver.events if isinstance(event, NodeExcepted))
    assert excepted.outputs == {"error_message": "it broke", "error_type": "HTTPResponseCodeError"}
    assert (state.status, state.exceptions_count) == ("partial-succeeded", 1)
    assert state.pool.get(("work", "status_code")) is None


def test_a_parallel_branch_goes_on_while_a_retry_waits() -> None:
    nodes = [start(), code("work", **retrying(1, 1500)), code("a"), code("b"), end(out="b.result", late="work.result")]
    driver = Driver(document(nodes, edges("start > work > end", "start > a > b > end"))).begin()
    driver.start_due()
    driver.complete(Key("", "work"), Failed("no"))
    for node_id in ("a", "b"):
        driver.start_due()
        driver.complete(Key("", node_id), Succeeded(outputs={"result": node_id}))
    assert [name for name in driver.names() if "(b)" in name] == ["NodeStarted(b)", "NodeSucceeded(b)"]
    assert list(due(driver.state, 1, driver.now_us)) == []
    assert driver.run().outputs == {"out": "b", "late": "work done"}


def test_a_branch_node_that_cannot_choose_fails_although_it_has_a_default_value() -> None:
    choice = if_else("work", "nobody.value", "is", "yes")
    choice["data"] |= {"error_strategy": "default-value", "default_value": []}
    driver = Driver(document([start(), choice, end()], edges("start > work > end")))
    state = driver.run()
    assert state.status == "failed"
    assert driver.names()[-2:] == ["NodeFailed(work)", "RunFailed(work)"]
    assert "Branch node work completed without selecting a branch" in (state.error or "")
