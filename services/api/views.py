"""Runs as JSON: the reference's detail, our list items, and `show` (the fold of a history)."""

from collections.abc import Iterable, Mapping
from typing import Any

from libs.events.codec import Recorded, rfc3339
from libs.events.ids import execution_id, message_id_of
from libs.events.model import (
    Event,
    FormOpened,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    RunAccepted,
    RunEnd,
    RunFailed,
    RunStarted,
    StopRequested,
)
from libs.workflow.definition import Definition
from libs.workflow.machine import evolve, new_state
from libs.workflow.pool import Pool, for_display
from services.api.asked import Asked, AskedForm
from services.api.errors import invalid_param
from services.api.frames import END_STATUS, FrameMaker, Json, encode
from services.api.reads import RunSummary, inputs_text, summarize


def detail(run: RunSummary) -> Json:
    """`GET /v1/workflows/run/{id}`, in the reference's shape."""
    return {
        "id": run.id,
        "workflow_id": run.workflow_id,
        "status": run.status,
        "inputs": inputs_text(run),
        "outputs": run.outputs,
        "error": run.error,
        "total_steps": run.total_steps,
        "total_tokens": run.total_tokens,
        "created_at": run.created_us // 1_000_000,
        "finished_at": run.finished_us // 1_000_000 if run.finished_us is not None else None,
        "elapsed_time": run.elapsed_s,
    }


def blocking(run_id: str, task_id: str, workflow_id: str, created_us: int, end: RunEnd, ended_us: int) -> Json:
    """The answer of a blocking start, in the reference's shape."""
    data = {
        "id": run_id,
        "workflow_id": workflow_id,
        "status": END_STATUS[type(end)],
        "outputs": end.outputs,
        "error": end.error,
        "elapsed_time": end.elapsed_s,
        "total_tokens": end.total_tokens,
        "total_steps": end.total_steps,
        "created_at": created_us // 1_000_000,
        "finished_at": ended_us // 1_000_000,
    }
    return {"task_id": task_id, "workflow_run_id": run_id, "data": data}


def blocking_paused(run_id: str, task_id: str, workflow_id: str, paused: Json) -> Json:
    """The answer of a blocking start whose run is paused. `paused`: `FrameMaker.paused_answer`."""
    data = {name: value for name, value in paused.items() if name != "workflow_run_id"}
    data = {"id": run_id, "workflow_id": workflow_id} | data | {"error": None, "finished_at": None}
    return {"task_id": task_id, "workflow_run_id": run_id, "data": data}


def message_answer(maker: FrameMaker) -> tuple[int, bytes]:
    """Status and body of the answer to a blocking message, in the reference's shape."""
    assert maker.accepted is not None
    if isinstance(maker.end, RunFailed):
        failed = invalid_param(maker.end.error or "the run has failed")
        return failed.status, bytes(failed.response().body)
    message_id = message_id_of(maker.run_id)
    answer = maker.end.outputs.get("answer") if maker.end is not None else None
    message = {
        "id": message_id,
        "message_id": message_id,
        "conversation_id": maker.accepted.conversation_id,
        "mode": maker.accepted.mode,
        "answer": answer if isinstance(answer, str) else maker.text,
        "metadata": maker.metadata(),
        "created_at": maker.accepted_us // 1_000_000,
    }
    if maker.end is not None or maker.asked.paused is None:
        return 200, encode({"event": "message", "task_id": maker.task_id} | message)
    message |= {"workflow_run_id": maker.run_id}
    paused = maker.paused_answer(maker.asked.paused)
    names = ("paused_nodes", "reasons", "status", "elapsed_time", "total_tokens", "total_steps")
    data = message | {name: paused[name] for name in names}
    return 200, encode({"event": "workflow_paused", "task_id": maker.task_id} | message | {"data": data})


def listed(row: Mapping[str, Any]) -> Json:
    """An item of `GET /v1/runs`, from its row."""
    item = {name: value for name, value in row.items() if name != "begun_at"}
    item["queue_time"] = queue_s(row["created_at"], row["started_at"], row["begun_at"], row["finished_at"])
    for name in ("created_at", "started_at", "finished_at"):
        item[name] = moment(item[name])
    return item


def queue_s(created_us: int, started_us: int | None, begun_us: int | None, finished_us: int | None) -> float | None:
    """How long the run waited until work on it began; one that ends without any, until it was admitted.

    None: it still waits, or has ended before it was admitted.
    """
    until_us = started_us if begun_us is None and finished_us is not None else begun_us
    return None if until_us is None else max(until_us - created_us, 0) / 1e6


def moment(at_us: int | None) -> str | None:
    return None if at_us is None else rfc3339(at_us)


def show(run_id: str, history: Iterable[Recorded], definition: Definition | None) -> Json | None:
    """The run as its history tells: list item, inputs, outputs, nodes, variables. None: the history is empty.

    Without a definition (its document cannot be read) there are no variables.
    """
    state = None if definition is None else new_state(definition, run_id)
    nodes = _Nodes(run_id)
    accepted: RunAccepted | None = None
    end: RunEnd | None = None
    created_us = started_us = ended_us = seq = 0
    begun_us: int | None = None
    stopping = False
    asked = Asked()
    for recorded in history:
        event, seq = recorded.event, recorded.seq
        if state is not None:
            evolve(state, recorded)
        nodes.take(recorded)
        asked.take(event, nodes.title(event))  # type: ignore[arg-type]  # a run event
        if isinstance(event, RunAccepted):
            accepted, created_us = event, recorded.at_us
        elif isinstance(event, RunStarted):
            started_us = recorded.at_us
        elif isinstance(event, NodeStarted):
            if accepted is not None and event.begins_work(alone=bool(accepted.only)):
                begun_us = recorded.at_us
        elif isinstance(event, StopRequested):
            stopping = True
        elif type(event) in END_STATUS:
            end, ended_us = event, recorded.at_us  # type: ignore[assignment]  # one of the four ends
    if accepted is None:
        return None
    ending = (end, ended_us if end else None)
    is_paused, pause = asked.paused is not None, asked.last_pause
    run = summarize(run_id, (accepted, created_us), started_us, ending, seq, paused=is_paused, pause=pause)
    return _item(run, begun_us) | {
        "root": accepted.root if state is None else state.definition.root,
        "inputs": run.inputs,
        "outputs": run.outputs,
        "nodes": nodes.view(),
        "variables": _variables(state.pool) if state is not None and state.frames else {},
        "waiting_for": _waiting_for(run, nodes, asked, stopping=stopping),
    }


def _item(run: RunSummary, begun_us: int | None) -> Json:
    return {
        "id": run.id,
        "app_id": run.app_id,
        "workflow_id": run.workflow_id,
        "version": run.version,
        "status": run.status,
        "error": run.error,
        "created_at": moment(run.created_us),
        "started_at": moment(run.started_us),
        "finished_at": moment(run.finished_us),
        "queue_time": queue_s(run.created_us, run.started_us, begun_us, run.finished_us),
        "elapsed_time": run.elapsed_s,
        "total_steps": run.total_steps,
        "total_tokens": run.total_tokens,
        "seq": run.seq,
        "triggered_from": run.triggered_from,
        "only": run.only,
        "forked_from": run.forked_from,
        "forked_at": run.forked_at,
    }


class _Nodes:
    """Node executions, as a history tells them."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._executions: dict[tuple[str, str], Json] = {}
        self._skipped: dict[str, Json] = {}
        self._due: dict[tuple[str, str], int] = {}

    def take(self, recorded: Recorded) -> None:
        event = recorded.event
        match event:
            case NodeStarted():
                self._start(event, recorded.at_us)
            case NodeRestarted():
                self._change(event.path, event.node_id, status="running", attempt=event.attempt)
            case NodeSucceeded():
                self._finish(event, "succeeded", None)
            case NodeFailed():
                self._finish(event, "failed", event.error)
            case NodeExcepted():
                self._finish(event, "exception", event.error)
            case NodeRetryScheduled():
                self._finish(event, "retry", event.error)
                self._due[event.path, event.node_id] = event.due_us
            case NodeStopped():
                self._change(event.path, event.node_id, status="stopped", error=event.reason or None)
            case FormOpened():
                self._change(event.path, event.node_id, status="paused")
            case NodeSkipped():
                skipped = {"path": event.path, "by": event.by, "handle": event.handle}
                self._skipped.setdefault(event.node_id, skipped)

    def _start(self, event: NodeStarted, at_us: int) -> None:
        key = (event.path, event.node_id)
        self._due.pop(key, None)
        if key not in self._executions:
            self._executions[key] = {
                "id": execution_id(self._run_id, event.path, event.node_id),
                "path": event.path,
                "attempt": event.attempt,
                "status": "running",
                "error": None,
                "inputs": event.inputs,
                "outputs": None,
                "elapsed_time": 0.0,
                "index": event.index,
                "node_type": event.node_type,
                "title": event.title,
                "predecessor_node_id": event.predecessor_id,
                "started_at": moment(at_us),
            }
        self._change(event.path, event.node_id, status="running", attempt=event.attempt, error=None)

    def _finish(
        self, event: NodeSucceeded | NodeFailed | NodeExcepted | NodeRetryScheduled, status: str, error: str | None
    ) -> None:
        found: Json = {"status": status, "attempt": event.attempt, "error": error, "elapsed_time": event.elapsed_s}
        if event.inputs is not None:
            found["inputs"] = event.inputs
        found["outputs"] = event.outputs
        self._change(event.path, event.node_id, **found)

    def _change(self, path: str, node_id: str, **values: Any) -> None:
        execution = self._executions.get((path, node_id))
        if execution is not None:
            execution |= values

    def title(self, event: Event) -> str:
        """Of the node that an event is about."""
        execution = self._executions.get((getattr(event, "path", ""), getattr(event, "node_id", "")))
        return "" if execution is None else str(execution["title"])

    def view(self) -> Json:
        nodes: Json = {}
        for (_, node_id), execution in self._executions.items():
            node = nodes.setdefault(node_id, {"status": "", "executions": []})
            node["executions"].append(execution)
            node["status"] = execution["status"]  # of the execution that began last
        for node_id, skipped in self._skipped.items():
            if node_id not in nodes:
                nodes[node_id] = {"status": "skipped", "executions": [], "skipped": skipped}
        return nodes

    def open(self) -> list[Json]:
        """What the run waits for: running nodes, and retries with their instant."""
        waits = []
        for (path, node_id), execution in self._executions.items():
            if execution["status"] == "running":
                waits.append({"kind": "node", "node_id": node_id, "path": path, "attempt": execution["attempt"]})
            elif execution["status"] == "retry":
                due = moment(self._due.get((path, node_id)))
                waits.append({"kind": "retry", "node_id": node_id, "path": path, "due_at": due})
        return waits


def _waiting_for(run: RunSummary, nodes: _Nodes, asked: Asked, *, stopping: bool) -> list[Json]:
    if run.ended:
        return []
    if stopping:
        return [{"kind": "stop"}]
    if run.started_us is None:
        return [{"kind": "admission"}]
    held = [{"kind": "pause", "reason": asked.pause_reason}] if asked.pause_reason is not None else []
    return [*held, *map(_form, asked.open_forms()), *nodes.open()]


def _form(form: AskedForm) -> Json:
    """A form that the run waits for, with all that is needed to answer it."""
    found = {"kind": "form", "path": form.opened.path, "expires_at": moment(form.opened.due_us)} | form.required()
    del found["expiration_time"]
    return found


def _variables(pool: Pool) -> Json:
    """The values of the main graph by node and name; secrets masked."""
    return {
        node_id: {name: for_display(segment) for name, segment in pool.names(node_id).items()}
        for node_id in pool.layers[0]
    }
