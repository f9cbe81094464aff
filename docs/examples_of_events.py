"""One believable example of every public event, as `docs/events.md` shows them."""

from typing import Any

from libs.events.codec import Recorded, public_record
from libs.events.commands import Caller
from libs.events.ids import execution_id
from libs.events.model import (
    FormExpired,
    FormOpened,
    FormSubmitted,
    LimitExceeded,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    PauseRequested,
    ResumeRequested,
    RoundFinished,
    RoundStarted,
    RunAccepted,
    RunEvent,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSucceeded,
    StopRequested,
)

RUN = "019a3d3e-4d80-7003-8000-00000000002a"
START_US = 1_777_713_224_120_000
TOTALS: dict[str, Any] = {"total_steps": 6, "total_tokens": 412, "elapsed_s": 2.31}

_EVENTS: tuple[RunEvent, ...] = (
    RunAccepted(
        command_offset=1041,
        task_id="83027cfc-308a-4b7d-8094-e81b56f0a3f2",
        app_id="5f0c1f2e-7f0b-4a52-9d5e-0d8a3f1f8b11",
        workflow_id="0f5d9a52-8a0e-4b53-a7b1-2f2f9f4d7c66",
        version="2026-05-02 09:13:44",
        digest="sha256:5b1d…",
        inputs={"text": "good morning", "languages": ["de", "fr"]},
        caller=Caller(id="8d0c2f57-6e5c-4f4e-9a35-8f3e6a0b7c21", user="ann"),
        idempotency_key="order-4711",
    ),
    RunStarted(max_steps=100_000),
    NodeStarted(node_id="check", node_type="if-else", title="Long text?", index=2, predecessor_id="start"),
    NodeSucceeded(
        node_id="check",
        inputs={"text": "good morning"},
        process_data={"condition_results": []},
        outputs={"result": False, "selected_case_id": "false"},
        elapsed_s=0.0004,
        handle="false",
    ),
    NodeSkipped(node_id="shorten", by="check", handle="false"),
    RoundStarted(node_id="each", index=1),
    NodeRetryScheduled(
        node_id="translate",
        path="iteration:each:1",
        error="the provider answered 503",
        error_type="InvokeServerUnavailableError",
        elapsed_s=0.21,
        due_us=START_US + 1_500_000,
    ),
    NodeRestarted(node_id="translate", path="iteration:each:1", attempt=2),
    RoundFinished(node_id="each", index=1, output="bonjour", elapsed_s=1.9),
    NodeExcepted(
        node_id="glossary",
        attempt=3,
        outputs={"body": "", "error_message": "503 from upstream", "error_type": "HTTPResponseCodeError"},
        metadata={"error_strategy": "default-value"},
        elapsed_s=0.4,
        error="503 from upstream",
        error_type="HTTPResponseCodeError",
        strategy="default-value",
    ),
    NodeFailed(
        node_id="post",
        attempt=4,
        error="connection refused by reports.example",
        error_type="HttpRequestNodeError",
        elapsed_s=0.03,
    ),
    FormOpened(
        node_id="approve",
        form_id="6a4f7a55-3c52-4a57-8d0e-7a0f0f5a9d31",
        token="AZo9Pk2AcAOAAAAAAAAAKhv3Qd0uJ2m7cXe1y0aT5pQ",
        actions=("publish", "revise"),
        form={
            "form_content": "Publish this?\n\nguten Morgen\n\n{{#$output.note#}}",
            "inputs": [{"type": "paragraph", "output_variable_name": "note"}],
            "user_actions": [
                {"id": "publish", "title": "Publish", "button_style": "primary"},
                {"id": "revise", "title": "Revise", "button_style": "default"},
            ],
            "resolved_default_values": {},
            "display_in_ui": True,
        },
        due_us=START_US + 129_600_000_000,
    ),
    RunPaused(forms=("6a4f7a55-3c52-4a57-8d0e-7a0f0f5a9d31",), **TOTALS),
    FormSubmitted(
        node_id="approve",
        form_id="6a4f7a55-3c52-4a57-8d0e-7a0f0f5a9d31",
        command_offset=1043,
        action="publish",
        inputs={"note": "well done"},
        by="bob",
    ),
    RunResumed(),
    FormExpired(node_id="second_opinion", form_id="0b8f4c1c-5a0e-4c86-9a63-5b0b9f3d7e22"),
    PauseRequested(command_offset=1044, reason="maintenance of reports.example", by="ann"),
    ResumeRequested(command_offset=1045, by="ann"),
    StopRequested(command_offset=1042, reason="User requested stop", by="ann"),
    LimitExceeded(limit="max_steps", message="Maximum execution steps exceeded: 501 > 500"),
    NodeStopped(node_id="summary", reason="User requested stop"),
    RunSucceeded(outputs={"translations": ["guten Morgen", "bonjour"]}, **TOTALS),
    RunPartiallySucceeded(outputs={"translations": ["guten Morgen"]}, exceptions_count=1, **TOTALS),
    RunFailed(error="connection refused by reports.example", node_id="post", **TOTALS),
    RunStopped(error="User requested stop", **TOTALS),
)

EXAMPLES: dict[str, RunEvent] = {type(event).__name__: event for event in _EVENTS}


def history() -> list[dict[str, Any]]:
    """The examples as lines of a history. They show the form; not one run had them all."""
    lines = []
    for seq, event in enumerate(_EVENTS, 1):
        command = getattr(event, "command_offset", None)
        cause = "derived" if command is None else f"command:{command}"
        recorded = Recorded(
            event, RUN, seq, 7, 200 + seq, START_US + seq * 1000, cause, partition=3, offset=88_000 + seq
        )
        node_id, path = getattr(event, "node_id", None), getattr(event, "path", None)
        identity = execution_id(RUN, path, node_id) if node_id and path is not None else None
        lines.append(dict(public_record(recorded, identity)))
    return lines
