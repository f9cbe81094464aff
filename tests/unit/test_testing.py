"""`flowledger.testing`: what a test of a document can say and see, and that it neither waits nor calls anybody."""

import asyncio
from pathlib import Path

import pytest

from flowledger.testing import Attempt, run_document
from libs.workflow.inputs import InputInvalid
from libs.workflow.pins import PinsInvalid
from tests.documents import code, document, edges, end, node, start, template

ROOT = Path(__file__).resolve().parents[2]
RETRY = {"retry_enabled": True, "max_retries": 3, "retry_interval": 60_000}
CALL = node("call", "http-request", method="get", url="http://x.example/", retry_config=RETRY, body={"type": "none"})
FETCH = document([start("q"), CALL, end(body="call.body")], edges("start > call > end"))


def test_a_document_runs_to_its_end() -> None:
    run = run_document(document([start("q"), template("t", "{{ q }}!", q="start.q"), end(a="t.output")],
                                edges("start > t > end")), {"q": "hi"})  # fmt: skip
    assert (run.status, run.outputs, run.error) == ("succeeded", {"a": "hi!"}, None)
    assert run.types("t") == ["NodeStarted", "NodeSucceeded"]
    assert [event.seq for event in run.events] == list(range(1, len(run.events) + 1))
    assert run.output_of("t") == {"output": "hi!"}
    assert run.output_of("nowhere") is None


def test_a_document_runs_within_a_test_that_has_a_loop_of_its_own() -> None:
    text = document([start("q"), template("t", "{{ q }}!", q="start.q"), end(a="t.output")],
                    edges("start > t > end"))  # fmt: skip

    async def test() -> object:
        return run_document(text, {"q": "hi"}).outputs

    assert asyncio.run(test()) == {"a": "hi!"}


def test_hours_of_retries_cost_no_real_time() -> None:
    run = run_document(FETCH, pins={"nodes": {"call": {"fail": "503", "times": 3, "delay_s": 1_000,
                                                       "outputs": {"status_code": 200, "body": "x", "headers": {},
                                                                   "files": []}}}})  # fmt: skip
    assert run.outputs == {"body": "x"}
    assert run.types("call").count("NodeRetryScheduled") == 3
    assert run.elapsed_s >= 3 * 60 + 4 * 1_000


def test_what_would_reach_outside_fails_and_says_what_to_do() -> None:
    run = run_document(FETCH)
    assert run.status == "failed"
    assert run.error is not None
    assert "pin it" in run.error
    assert "NodeFailed" in run.types("call")


def test_a_test_answers_for_a_node_or_a_type() -> None:
    seen: list[tuple[str, int]] = []

    def answer(attempt: Attempt) -> dict[str, object]:
        seen.append((attempt.node.id, attempt.number))
        if attempt.number == 1:
            raise ValueError("not yet")
        return {"status_code": 200, "body": "from the test", "headers": {}, "files": []}

    for name in ("call", "http-request"):
        run = run_document(FETCH, answers={name: answer})  # type: ignore[dict-item]  # JSON
        assert run.outputs == {"body": "from the test"}
    assert seen == [("call", 1), ("call", 2)] * 2
    with pytest.raises(ValueError, match="caal"):
        run_document(FETCH, answers={"caal": answer})  # type: ignore[dict-item]  # JSON


def test_code_runs_really_and_twice_alike() -> None:
    made = code("c", code="def main(q):\n    return {'result': q * 2}\n",
                variables=[{"variable": "q", "value_selector": ["start", "q"]}])  # fmt: skip
    text = document([start("q"), made, end(a="c.result")], edges("start > c > end"))
    first, second = run_document(text, {"q": "ab"}), run_document(text, {"q": "ab"})
    assert first.outputs == second.outputs == {"a": "abab"}
    assert first.types() == second.types()


def test_a_run_that_waits_for_a_person_is_paused() -> None:
    ask = node(
        "ask",
        "human-input",
        form_content="Well?",
        inputs=[],
        user_actions=[{"id": "yes", "title": "Yes"}],
        timeout=3,
        timeout_unit="day",
        delivery_methods=[],
    )
    run = run_document(document([start(), ask, end()], edges("start > ask", "ask[yes] > end")))
    assert run.status == "paused"
    assert run.types()[-1] == "RunPaused"


def test_what_a_server_would_refuse_is_refused(tmp_path: Path) -> None:
    required = node(
        "start", "start", variables=[{"variable": "q", "label": "q", "type": "text-input", "required": True}]
    )
    file = tmp_path / "flow.yml"
    file.write_text(document([required, end()], edges("start > end")))
    with pytest.raises(InputInvalid):
        run_document(file)
    with pytest.raises(PinsInvalid):
        run_document(file, {"q": "x"}, pins={"nodes": {"nowhere": {}}})


@pytest.mark.parametrize("name", ["hello", "retries", "slow"])
def test_the_examples_run(name: str) -> None:
    pins = {"types": {"http-request": {}}} if name == "retries" else None
    inputs = {"seconds": 0} if name == "slow" else {}
    assert run_document(ROOT / "examples" / f"{name}.yml", inputs, pins=pins).status == "succeeded"
