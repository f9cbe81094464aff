"""Frames of hand-written histories: order, members and ids of the reference's stream."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from libs.events.codec import Recorded
from libs.events.commands import Caller
from libs.events.ids import execution_id, message_id_of, new_run_id, task_id_of
from libs.events.model import (
    Event,
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
    RoundFinished,
    RoundStarted,
    RunAccepted,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSucceeded,
    StopRequested,
)
from services.api.frames import KEPT_OF_ROUNDS, Cursor, Frame, FrameMaker, encode, error_frame
from tests.conversations import ANNOTATION

RUN = str(new_run_id(0, 1_767_000_000_000_000, 7))
T0 = 1_767_000_000_000_000


@dataclass(frozen=True)
class Said:
    text: str
    selector: tuple[str, ...] = ("llm", "text")
    replace: bool = False


class History:
    """Feeds a maker, event by event, one second apart."""

    def __init__(self) -> None:
        self.maker = FrameMaker(RUN)
        self.seq = 0
        self.frames: list[Frame] = []

    def add(self, event: Event, *texts: Said) -> list[dict[str, Any]]:
        """The bodies of the frames that `event` makes."""
        self.seq += 1
        recorded = Recorded(event, RUN, self.seq, 1, self.seq, T0 + self.seq * 1_000_000, "derived", 0, self.seq)
        made = self.maker.on_event(recorded, texts)
        self.frames += made
        return [body(frame) for frame in made]

    def begin(self, mode: str = "workflow") -> "History":
        self.add(accepted(mode))
        self.add(RunStarted(max_steps=100))
        return self


def body(frame: Frame) -> dict[str, Any]:
    data = [line for line in frame.wire.decode().split("\n") if line.startswith("data: ")]
    assert frame.wire.endswith(b"\n\n")
    assert len(data) == 1
    found: dict[str, Any] = json.loads(data[0][6:])
    return found


def identity(frame: Frame) -> str | None:
    first = frame.wire.decode().split("\n")[0]
    return first[4:] if first.startswith("id: ") else None


def accepted(mode: str = "workflow") -> RunAccepted:
    return RunAccepted(
        command_offset=0,
        task_id=task_id_of(RUN),
        app_id="app",
        workflow_id="wf",
        version="v",
        digest="d",
        mode=mode,  # type: ignore[arg-type]
        inputs={"city": "Lyon"},
        query="hello" if mode == "advanced-chat" else None,
        conversation_id="c1" if mode == "advanced-chat" else None,
        caller=Caller(id="77aa", user="crm-42"),
    )


def started(node_id: str = "n1", kind: str = "code", **more: Any) -> NodeStarted:
    return NodeStarted(node_id=node_id, node_type=kind, title=node_id.title(), **({"index": 1} | more))


def test_workflow_started_carries_declared_and_system_inputs() -> None:
    history = History()
    assert history.add(accepted()) == []
    (frame,) = history.add(RunStarted(max_steps=5))
    assert frame == {
        "event": "workflow_started",
        "workflow_run_id": RUN,
        "task_id": task_id_of(RUN),
        "data": {
            "id": RUN,
            "workflow_id": "wf",
            "inputs": {
                "city": "Lyon",
                "sys.files": [],
                "sys.user_id": "crm-42",
                "sys.app_id": "app",
                "sys.workflow_id": "wf",
                "sys.workflow_run_id": RUN,
            },
            "created_at": T0 // 1_000_000 + 1,
            "reason": "initial",
        },
    }


def test_a_node_has_a_started_and_a_finished_frame_with_one_id() -> None:
    history = History().begin()
    (begun,) = history.add(started(predecessor_id="start", index=2))
    (done,) = history.add(NodeSucceeded(node_id="n1", inputs={"x": 2}, outputs={"y": 4}, elapsed_s=0.5))
    assert begun["event"] == "node_started"
    assert begun["data"] == {
        "id": execution_id(RUN, "", "n1"),
        "node_id": "n1",
        "node_type": "code",
        "title": "N1",
        "index": 2,
        "predecessor_node_id": "start",
        "inputs": None,
        "inputs_truncated": False,
        "created_at": T0 // 1_000_000 + 3,
        "extras": {},
        "iteration_id": None,
        "loop_id": None,
        "agent_strategy": None,
    }
    assert done["event"] == "node_finished"
    assert done["data"] == {
        "id": begun["data"]["id"],
        "node_id": "n1",
        "node_type": "code",
        "title": "N1",
        "index": 2,
        "predecessor_node_id": "start",
        "inputs": {"x": 2},
        "inputs_truncated": False,
        "process_data": {},
        "process_data_truncated": False,
        "outputs": {"y": 4},
        "outputs_truncated": False,
        "status": "succeeded",
        "error": None,
        "elapsed_time": 0.5,
        "execution_metadata": None,
        "created_at": T0 // 1_000_000 + 3,
        "finished_at": T0 // 1_000_000 + 4,
        "files": [],
        "iteration_id": None,
        "loop_id": None,
    }


def test_a_retry_is_announced_just_before_the_next_attempt_and_starts_nothing_twice() -> None:
    history = History().begin()
    history.add(started())
    assert history.add(NodeRetryScheduled(node_id="n1", error="503", due_us=0, elapsed_s=0.1)) == []
    (retry,) = history.add(started(attempt=2))
    assert (retry["event"], retry["data"]["status"], retry["data"]["error"]) == ("node_retry", "retry", "503")
    assert retry["data"]["retry_index"] == 1
    assert retry["data"]["id"] == execution_id(RUN, "", "n1")
    history.add(NodeRetryScheduled(node_id="n1", attempt=2, error="504", due_us=0))
    (second,) = history.add(started(attempt=3))
    assert second["data"]["retry_index"] == 2
    (done,) = history.add(NodeFailed(node_id="n1", attempt=3, error="505"))
    assert (done["event"], done["data"]["status"], done["data"]["error"]) == ("node_finished", "failed", "505")


def test_a_restarted_attempt_makes_no_frame() -> None:
    history = History().begin()
    history.add(started())
    assert history.add(NodeRestarted(node_id="n1")) == []


def test_a_handled_failure_is_an_exception_with_its_error() -> None:
    history = History().begin()
    history.add(started())
    (done,) = history.add(
        NodeExcepted(node_id="n1", error="boom", strategy="fail-branch", metadata={"error_strategy": "fail-branch"})
    )
    assert (done["data"]["status"], done["data"]["error"]) == ("exception", "boom")
    assert done["data"]["execution_metadata"] == {"error_strategy": "fail-branch"}


@pytest.mark.parametrize(
    "event",
    [
        NodeSkipped(node_id="n2"),
        NodeStopped(node_id="n1"),
        StopRequested(command_offset=1, reason="r"),
        LimitExceeded(limit="max_steps", message="m"),
    ],
)
def test_events_that_the_reference_does_not_show_make_no_frame(event: Event) -> None:
    history = History().begin()
    history.add(started())
    assert history.add(event) == []


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (RunSucceeded(outputs={"a": 1}), "succeeded"),
        (RunPartiallySucceeded(exceptions_count=1), "partial-succeeded"),
        (RunFailed(error="e"), "failed"),
        (RunStopped(error="r"), "stopped"),
    ],
)
def test_the_end_of_a_run_is_the_last_frame(event: Any, status: str) -> None:
    history = History().begin()
    (end,) = history.add(event)
    assert history.frames[-1].last
    assert end["event"] == "workflow_finished"
    assert end["data"] == {
        "id": RUN,
        "workflow_id": "wf",
        "status": status,
        "outputs": event.outputs,
        "error": event.error,
        "elapsed_time": 0.0,
        "total_tokens": 0,
        "total_steps": 0,
        "created_by": {"id": "77aa", "user": "crm-42"},
        "created_at": T0 // 1_000_000 + 1,
        "finished_at": T0 // 1_000_000 + 3,
        "exceptions_count": event.exceptions_count,
        "files": [],
    }


def test_a_run_that_stops_before_it_starts_still_begins_with_workflow_started() -> None:
    history = History()
    history.add(accepted())
    frames = history.add(RunStopped(error="r"))
    assert [frame["event"] for frame in frames] == ["workflow_started", "workflow_finished"]
    assert [identity(frame) for frame in history.frames] == [None, "2"]


def test_files_among_outputs_are_listed() -> None:
    file: Any = {"dify_model_identity": "__dify__file__", "type": "document"}
    history = History().begin()
    history.add(started())
    (done,) = history.add(NodeSucceeded(node_id="n1", outputs={"one": file, "many": [file, 3], "other": "x"}))
    assert done["data"]["files"] == [file, file]


def test_an_iteration_has_its_brackets_and_its_children_name_it() -> None:
    history = History().begin()
    (begun,) = history.add(started("it", "iteration", inputs={"iterator_selector": ["a", "b"]}))
    assert begun["event"] == "iteration_started"
    assert (begun["data"]["id"], begun["data"]["metadata"]) == ("it", {"iteration_length": 2})
    assert begun["data"]["inputs"] == {"iterator_selector": ["a", "b"]}
    (first,) = history.add(RoundStarted(node_id="it", index=0))
    assert (first["event"], first["data"]["index"], first["data"]["id"]) == ("iteration_next", 0, "it")
    assert history.add(started("s", "iteration-start", path="iteration:it:0", index=2)) == []
    assert history.add(NodeSucceeded(node_id="s", path="iteration:it:0")) == []
    (child,) = history.add(started("n1", path="iteration:it:0", index=3))
    assert (child["data"]["iteration_id"], child["data"]["loop_id"]) == ("it", None)
    (done,) = history.add(NodeSucceeded(node_id="n1", path="iteration:it:0", outputs={"x": 1}))
    assert done["data"]["execution_metadata"] == {"iteration_id": "it", "iteration_index": 0}
    assert history.add(RoundFinished(node_id="it", index=0)) == []
    (end,) = history.add(NodeSucceeded(node_id="it", outputs={"output": ["A", "B"]}, elapsed_s=1.2))
    assert end["event"] == "iteration_completed"
    assert (end["data"]["status"], end["data"]["steps"], end["data"]["error"]) == ("succeeded", 2, None)
    assert end["data"]["execution_metadata"]["total_price"] == "0"


def test_an_empty_iteration_has_brackets_and_no_rounds() -> None:
    history = History().begin()
    (begun,) = history.add(started("it", "iteration", inputs={"iterator_selector": []}))
    (end,) = history.add(NodeSucceeded(node_id="it", outputs={"output": []}))
    assert begun["data"]["metadata"] == {"iteration_length": 0}
    assert (end["event"], end["data"]["outputs"], end["data"]["steps"]) == ("iteration_completed", {"output": []}, 0)


def test_a_loop_without_a_round_has_no_steps() -> None:
    history = History().begin()
    history.add(started("lo", "loop", inputs={"loop_count": 3}))
    metadata = {"loop_duration_map": {}, "completed_reason": "loop_break"}
    (end,) = history.add(NodeSucceeded(node_id="lo", outputs={}, metadata=metadata))
    assert (end["event"], end["data"]["steps"], end["data"]["outputs"]) == ("loop_completed", 0, {})


def test_a_failed_container_says_why() -> None:
    history = History().begin()
    history.add(started("lo", "loop", inputs={"loop_count": 3}))
    (end,) = history.add(NodeFailed(node_id="lo", error="round 2 failed"))
    assert (end["event"], end["data"]["status"], end["data"]["error"]) == ("loop_completed", "failed", "round 2 failed")


def test_loop_next_comes_only_before_a_further_round() -> None:
    history = History().begin()
    (begun,) = history.add(started("lo", "loop", inputs={"loop_count": 3, "n": 0}))
    assert (begun["event"], begun["data"]["metadata"]) == ("loop_started", {"loop_length": 3})
    assert history.add(RoundStarted(node_id="lo", index=0)) == []
    (second,) = history.add(RoundStarted(node_id="lo", index=1))
    assert (second["event"], second["data"]["index"], second["data"]["pre_loop_output"]) == ("loop_next", 1, {})


def test_text_precedes_the_frame_of_its_event_and_ids_rise() -> None:
    history = History()
    history.add(accepted())
    history.add(RunStarted(max_steps=1), Said("Hi ", ("end", "answer")))
    history.add(started("llm", "llm"))
    history.frames += history.maker.on_texts([Said("wor"), Said("ld")])
    history.add(NodeSucceeded(node_id="llm", outputs={"text": "world!"}), Said("!"))
    history.add(RunSucceeded())
    assert [body(frame)["event"] for frame in history.frames] == [
        "workflow_started", "text_chunk", "node_started", "text_chunk", "text_chunk", "text_chunk", "node_finished",
        "workflow_finished",
    ]  # fmt: skip
    assert [identity(frame) for frame in history.frames] == ["2", "2.3", "3", "3.6", "3.8", "3.9", "4", "5"]
    assert body(history.frames[1])["data"] == {"text": "Hi ", "from_variable_selector": ["end", "answer"]}
    assert history.maker.text == "Hi world!"


def test_a_replacement_holds_all_text_and_counts_from_its_end() -> None:
    history = History().begin()
    history.add(started("llm", "llm"))
    history.maker.on_texts([Said("wrong")])
    (replaced,) = history.add(NodeRestarted(node_id="llm"), Said("", replace=True))
    assert (replaced["event"], replaced["data"]) == ("text_replace", {"text": ""})
    assert identity(history.frames[-1]) == "4.0"
    (more,) = history.maker.on_texts([Said("right")])
    assert (identity(more), history.maker.text) == ("4.5", "right")


def test_a_chatflow_speaks_in_messages() -> None:
    history = History().begin("advanced-chat")
    (started_frame,) = [body(frame) for frame in history.frames]
    assert started_frame["conversation_id"] == "c1"
    assert started_frame["data"]["inputs"]["sys.query"] == "hello"
    (text,) = history.maker.on_texts([Said("Hi")])
    assert {"event": "message", "answer": "Hi"}.items() <= body(text).items()
    assert "workflow_run_id" not in body(text)
    frames = history.add(RunSucceeded())
    assert [frame["event"] for frame in frames] == ["message_end", "workflow_finished"]
    assert [identity(frame) for frame in history.frames][-2:] == [None, "3"]


@pytest.mark.parametrize("end", [RunPartiallySucceeded(), RunStopped(error="User requested stop")])
def test_a_message_ends_before_its_run(end: Any) -> None:
    history = History().begin("advanced-chat")
    message, run = history.add(end)
    assert (message["event"], message["id"], message["files"]) == ("message_end", message_id_of(RUN), [])
    assert run["event"] == "workflow_finished"
    assert history.frames[-1].last


def test_a_failed_message_ends_with_its_error() -> None:
    history = History().begin("advanced-chat")
    finished, error = history.add(RunFailed(error="boom"))
    assert (finished["event"], finished["data"]["status"]) == ("workflow_finished", "failed")
    assert {"event": "error", "code": "invalid_param", "status": 400, "message": "boom"}.items() <= error.items()
    assert error["message_id"] == message_id_of(RUN)
    assert [frame.last for frame in history.frames[-2:]] == [False, True]
    assert b"workflow_finished" in history.maker.finished_frame()


def test_what_the_models_used_is_added_up_in_the_message() -> None:
    history = History().begin("advanced-chat")
    usage = {
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "total_price": "0.0000001", "currency": "USD",
        "latency": 0.5, "time_to_first_token": 0.1, "time_to_generate": 0.4, "prompt_unit_price": "0.01",
    }  # fmt: skip
    for node_id, kind, where in (("a", "llm", "outputs"), ("b", "question-classifier", "process_data")):
        history.add(started(node_id, kind))
        history.add(NodeSucceeded(node_id=node_id, **{where: {"usage": usage}}))
    history.add(started("c", "code"))
    history.add(NodeSucceeded(node_id="c", outputs={"usage": usage}))  # its own affair, whatever it is called
    message, _ = history.add(RunSucceeded(total_tokens=14))
    shown = message["metadata"]["usage"]
    assert (shown["prompt_tokens"], shown["completion_tokens"], shown["total_tokens"]) == (6, 8, 14)
    assert (shown["total_price"], shown["prompt_unit_price"], shown["currency"]) == ("0.0000002", "0.01", "USD")
    assert (shown["latency"], shown["time_to_first_token"], shown["time_to_generate"]) == (1.0, 0.1, 0.8)


def test_a_source_of_an_earlier_model_is_named_once_and_every_file_once() -> None:
    history = History().begin("advanced-chat")
    file = {"dify_model_identity": "__dify__file__", "related_id": "f1"}

    def source(document_id: str | None, content: str) -> dict[str, Any]:
        return {"dataset_id": "d", "document_id": document_id, "content": content, "position": 9}

    for node_id, sources in (("a", [source("x", "1"), source("x", "2")]), ("b", [source("x", "3"), source("y", "4")])):
        history.add(started(node_id, "llm"))
        process_data: Any = {"retriever_resources": sources}
        history.add(NodeSucceeded(node_id=node_id, outputs={"files": [file]}, process_data=process_data))
    message, _ = history.add(RunSucceeded(outputs={"answer": "", "files": [file]}))
    cited = message["metadata"]["retriever_resources"]
    assert [(each["position"], each["content"]) for each in cited] == [(1, "1"), (2, "2"), (3, "4")]
    assert message["files"] == [file]


def test_a_frame_is_one_line_of_utf8() -> None:
    history = History().begin()
    history.add(started())
    history.add(NodeSucceeded(node_id="n1", outputs={"t": "línea\nzwei \u2028 \x00"}))
    wire = history.frames[-1].wire
    assert wire.count(b"\n") == 3  # behind the id, and the two that end the frame
    assert "línea".encode() in wire


def test_half_a_surrogate_pair_does_not_break_a_frame() -> None:
    history = History().begin()
    history.add(started())
    (done,) = history.add(NodeSucceeded(node_id="n1", outputs={"t": "\ud83d"}))
    assert done["data"]["outputs"] == {"t": "\ud83d"}


def test_a_streaming_attempt_leaves_later_events_unsettled_until_it_is_done() -> None:
    history = History().begin()
    history.add(started("llm", "llm"))
    assert not history.frames[-1].unsettled
    history.add(started("other"))
    assert history.frames[-1].unsettled
    history.add(NodeSucceeded(node_id="llm"))
    assert not history.frames[-1].unsettled


def test_a_snapshot_is_the_run_so_far_in_reduced_form() -> None:
    history = History().begin()
    history.add(started("a", index=1))
    history.add(NodeSucceeded(node_id="a", outputs={"secret": 1}))
    history.add(started("b", index=2))
    shown = [json.loads(wire.split(b"data: ")[1]) for wire in history.maker.snapshot()]
    assert [frame["event"] for frame in shown] == ["workflow_started", "node_started", "node_finished", "node_started"]
    assert shown[2]["data"]["outputs"] is None
    assert shown[3]["data"]["index"] == 2
    assert "inputs_truncated" not in shown[2]["data"]


def test_a_snapshot_of_many_rounds_has_the_newest_and_keeps_no_more() -> None:
    history, rounds = History().begin(), KEPT_OF_ROUNDS + 500
    history.add(started("lo", "loop", inputs={"loop_count": rounds}))
    for index in range(rounds):
        path = f"loop:lo:{index}"
        history.add(RoundStarted(node_id="lo", index=index))
        history.add(started("in", path=path, index=index + 2))
        history.add(NodeSucceeded(node_id="in", path=path, outputs={"large": "x" * 100}))
        history.add(RoundFinished(node_id="lo", index=index))
    shown = [json.loads(wire.split(b"data: ")[1]) for wire in history.maker.snapshot()]
    assert len(shown) == 2 + 2 * KEPT_OF_ROUNDS
    assert (shown[1]["event"], shown[1]["data"]["node_id"]) == ("node_started", "lo")
    assert [shown[2]["data"]["index"], shown[-1]["data"]["index"]] == [502, rounds + 1]


def test_a_snapshot_begins_a_container_and_ends_it() -> None:
    history = History().begin()
    history.add(started("each", "iteration", inputs={"iterator_selector": ["x"]}))
    history.add(RoundStarted(node_id="each", index=0))
    history.add(started("in", path="iteration:each:0", index=2))

    def events() -> list[tuple[str, str]]:
        frames = [json.loads(wire.split(b"data: ")[1]) for wire in history.maker.snapshot()]
        return [(frame["event"], frame["data"].get("node_id")) for frame in frames]

    assert events()[1:] == [("node_started", "each"), ("node_started", "in")]
    history.add(NodeSucceeded(node_id="in", path="iteration:each:0"))
    history.add(RoundFinished(node_id="each", index=0))
    history.add(NodeSucceeded(node_id="each", outputs={"output": ["x"]}))
    assert events()[1:] == [
        ("node_started", "each"), ("node_finished", "each"), ("node_started", "in"), ("node_finished", "in"),
    ]  # fmt: skip


def test_an_error_frame_names_the_run() -> None:
    frame = json.loads(error_frame(RUN, "internal_server_error", 500, "why")[6:])
    assert frame == {
        "event": "error",
        "code": "internal_server_error",
        "status": 500,
        "message": "why",
        "task_id": task_id_of(RUN),
        "workflow_run_id": RUN,
    }


@pytest.mark.parametrize(
    ("text", "cursor"), [("0", Cursor(0, 0)), ("7", Cursor(7, None)), ("7.12", Cursor(7, 12)), (" 3.0 ", Cursor(3, 0))]
)
def test_a_last_event_id_is_a_cursor(text: str, cursor: Cursor) -> None:
    assert Cursor.parse(text) == cursor


@pytest.mark.parametrize("text", ["", "x", "-1", "1.", "1.x", "1.2.3", "\u0661"])
def test_other_last_event_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Last-Event-ID"):
        Cursor.parse(text)


# --- pauses and forms ---

FORM = FormOpened(
    node_id="n1",
    form_id=execution_id(RUN, "", "n1"),
    token="secret",
    actions=("ok",),
    form={
        "form_content": "Well? {{#$output.note#}}",
        "inputs": [{"type": "paragraph", "output_variable_name": "note"}],
        "user_actions": [{"id": "ok", "title": "OK", "button_style": "primary"}],
        "resolved_default_values": {"note": "x"},
        "display_in_ui": True,
    },
    due_us=T0 + 60_000_000,
)
PAUSED = RunPaused(forms=(FORM.form_id,), total_steps=2, total_tokens=7, elapsed_s=0.5)


def _asking() -> History:
    history = History().begin()
    history.add(started(kind="human-input"))
    return history


def test_a_form_and_the_pause_for_it_carry_the_same_members() -> None:
    history = _asking()
    (required,) = history.add(FORM)
    (paused,) = history.add(PAUSED)
    assert (required["event"], paused["event"]) == ("human_input_required", "workflow_paused")
    assert required["data"] == {
        "form_id": FORM.form_id,
        "node_id": "n1",
        "node_title": "N1",
        "form_content": "Well? {{#$output.note#}}",
        "inputs": [{"type": "paragraph", "output_variable_name": "note"}],
        "actions": [{"id": "ok", "title": "OK", "button_style": "primary"}],
        "display_in_ui": True,
        "form_token": "secret",
        "resolved_default_values": {"note": "x"},
        "expiration_time": T0 // 1_000_000 + 60,
    }
    kind = "human_input_required"
    assert paused["data"] == {
        "workflow_run_id": RUN,
        "paused_nodes": ["n1"],
        "outputs": {},
        "reasons": [{"TYPE": kind, "type": kind} | required["data"]],
        "status": "paused",
        "created_at": T0 // 1_000_000 + 1,
        "elapsed_time": 0.5,
        "total_tokens": 7,
        "total_steps": 2,
    }
    assert [(frame.pauses, frame.last) for frame in history.frames[-2:]] == [(False, False), (True, False)]


def test_a_pause_on_request_says_why() -> None:
    history = History().begin()
    assert history.add(PauseRequested(command_offset=1, reason="maintenance")) == []
    (paused,) = history.add(RunPaused(reason="maintenance"))
    assert paused["data"]["reasons"] == [
        {"TYPE": "scheduled_pause", "type": "scheduled_pause", "message": "maintenance"}
    ]
    assert history.maker.asked.parked


def test_a_submission_is_shown_when_its_run_goes_on() -> None:
    history = _asking()
    history.add(FORM)
    history.add(PAUSED)
    submitted = FormSubmitted(
        node_id="n1", form_id=FORM.form_id, command_offset=3, action="ok", inputs={"note": "fine"}
    )
    assert history.add(submitted) == []
    resumed, filled = history.add(RunResumed())
    assert (resumed["event"], resumed["data"]["reason"]) == ("workflow_started", "resumption")
    assert (filled["event"], filled["data"]["rendered_content"]) == ("human_input_form_filled", "Well? fine")
    assert [identity(frame) for frame in history.frames[-2:]] == [None, "7"]
    (done,) = history.add(NodeSucceeded(node_id="n1", handle="ok", outputs={"note": "fine"}))
    assert (done["event"], done["data"]["id"]) == ("node_finished", execution_id(RUN, "", "n1"))


def test_a_submission_is_shown_at_once_while_other_nodes_run() -> None:
    history = _asking()
    history.add(FORM)
    (timeout,) = history.add(FormExpired(node_id="n1", form_id=FORM.form_id))
    assert timeout["event"] == "human_input_form_timeout"
    (done,) = history.add(NodeSucceeded(node_id="n1", handle="timeout"))
    assert done["event"] == "node_finished"


def test_a_snapshot_of_a_run_that_is_about_to_go_on_shows_no_pause() -> None:
    history = _asking()
    history.add(FORM)
    history.add(PAUSED)
    assert b"workflow_paused" in history.maker.snapshot()[-1]
    history.add(FormExpired(node_id="n1", form_id=FORM.form_id))
    assert history.maker.paused
    assert not any(b"workflow_paused" in wire for wire in history.maker.snapshot())


def test_a_pinned_answer_of_a_person_has_no_form() -> None:
    history = _asking()
    (done,) = history.add(NodeSucceeded(node_id="n1", handle="ok", outputs={"__action_id": "ok"}, pinned=True))
    assert done["event"] == "node_finished"


# --- messages that an annotation answers ---


def annotated(invoke_from: str) -> History:
    history = History()
    more = {"annotation": ANNOTATION, "invoke_from": invoke_from}
    assert history.add(accepted("advanced-chat").model_copy(update=more)) == []
    return history


def test_an_annotations_answer_has_no_frame_of_a_workflow() -> None:
    history = annotated("service-api")
    (said,) = history.add(RunStarted(max_steps=5), Said(ANNOTATION.answer, ()))
    assert (said["event"], said["answer"], said["id"]) == ("message", ANNOTATION.answer, message_id_of(RUN))
    (end,) = history.add(RunSucceeded(outputs={"answer": ANNOTATION.answer}))
    assert (end["event"], end["id"]) == ("message_end", message_id_of(RUN))
    assert end["metadata"]["annotation_reply"] == {"id": "a1", "account": {"id": "admin-id", "name": "admin"}}
    assert [identity(frame) for frame in history.frames] == [f"2.{len(ANNOTATION.answer)}", "3"]
    assert history.frames[-1].last
    assert [json.loads(each.split(b"data: ")[1])["event"] for each in history.maker.snapshot()] == ["message_replace"]
    assert json.loads(history.maker.finished_frame().split(b"data: ")[1])["event"] == "message_end"


def test_callers_without_full_detail_do_not_learn_of_the_annotation() -> None:
    history = annotated("web-app")
    history.add(RunStarted(max_steps=5), Said(ANNOTATION.answer, ()))
    (end,) = history.add(RunSucceeded(outputs={"answer": ANNOTATION.answer}))
    assert "annotation_reply" not in end["metadata"]


def test_callers_without_full_detail_see_neither_what_a_message_used_nor_all_of_its_sources() -> None:
    source = {"segment_id": "s", "position": 1, "document_name": "d", "score": 0.5, "content": "c", "dataset_id": "x"}
    ends = {}
    for invoke_from in ("service-api", "web-app"):
        history = History()
        history.add(accepted("advanced-chat").model_copy(update={"invoke_from": invoke_from}))
        history.add(RunStarted(max_steps=5))
        history.add(NodeStarted(node_id="m", node_type="llm", index=1))
        history.add(NodeSucceeded(node_id="m", process_data={"retriever_resources": [source]}, outputs={"text": "t"}))
        ends[invoke_from] = history.add(RunSucceeded(outputs={"answer": "t"}))[0]["metadata"]
    assert ends["service-api"]["retriever_resources"] == [source]
    assert "usage" in ends["service-api"]
    del source["dataset_id"]
    assert ends["web-app"] == {"retriever_resources": [source]}


def test_a_run_of_an_account_says_so_in_the_accounts_shape() -> None:
    history = History()
    caller = Caller(role="account", id="acc", user="acc")
    history.add(accepted().model_copy(update={"caller": caller}))
    history.add(RunStarted(max_steps=5))
    (end,) = history.add(RunSucceeded())
    assert end["data"]["created_by"] == {"id": "acc", "name": "admin", "email": "admin"}


def test_an_annotated_message_that_is_stopped_before_it_begins_ends_without_an_answer() -> None:
    history = annotated("service-api")
    assert [body["event"] for body in history.add(RunStopped(error="stopped"))] == ["message_end"]
    failed = annotated("service-api")
    assert [body["event"] for body in failed.add(RunFailed(error="gone"))] == ["error"]


def test_json_is_one_line_for_clients_that_take_any_line_end_of_unicode_for_one() -> None:
    value = {"a": "x\u2028y\u2029z\x85\n\x0b\x1c “ä”"}
    data = encode(value)
    assert len(data.decode().splitlines()) == 1
    assert json.loads(data) == value
    assert "“ä”" in data.decode()
