"""What an event means for the tables. Pure: events in, row changes out.

How changes of a row come together: `services/projector/rows.py`.

Promises: the rows are the same however the log is cut into batches (tests/unit/test_projection.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from pydantic import JsonValue

from libs.events.codec import Recorded
from libs.events.ids import execution_id
from libs.events.model import (
    EndUserSeen,
    FormOpened,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    RunAccepted,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunReleased,
    RunResumed,
    RunSetAside,
    RunStarted,
    RunStopped,
    RunSucceeded,
)
from libs.tables import TENANT_ID
from services.projector.rows import REPLACED, Row, as_json, clean, fold
from services.projector.talks import TalkChanges, project_talk

_STATUS = {
    NodeSucceeded: "succeeded",
    NodeFailed: "failed",
    NodeExcepted: "exception",
    NodeRetryScheduled: "retry",
    RunSucceeded: "succeeded",
    RunPartiallySucceeded: "partial-succeeded",
    RunFailed: "failed",
    RunStopped: "stopped",
}


@dataclass(slots=True, frozen=True)
class RunContext:
    """What the rows of a run's nodes repeat of the run."""

    app_id: str | None
    workflow_id: str | None
    created_by_role: str | None
    created_by: str | None
    only: str | None = None


@dataclass(slots=True)
class Changes:
    """Row changes of a batch, by row id."""

    runs: dict[str, Row] = field(default_factory=dict)
    nodes: dict[str, Row] = field(default_factory=dict)
    talks: TalkChanges = field(default_factory=TalkChanges)
    end_users: dict[tuple[str, int], Row] = field(default_factory=dict)
    contexts: dict[str, RunContext] = field(default_factory=dict)
    """Of the runs that were accepted in the batch."""


def unknown_runs(events: Iterable[Recorded], known: Mapping[str, RunContext]) -> set[str]:
    """The runs whose context `project` needs and neither `events` nor `known` hold."""
    starting = {one.run_id for one in events if type(one.event) is NodeStarted}
    accepted = {one.run_id for one in events if type(one.event) is RunAccepted}
    return {run_id for run_id in starting - accepted if run_id not in known}


def project(events: Iterable[Recorded], contexts: Mapping[str, RunContext]) -> Changes:
    """The row changes that `events` cause, in order. `contexts`: the runs of `unknown_runs`, as far as they exist."""
    changes = Changes()
    for recorded in events:
        project_talk(changes.talks, recorded)
        if recorded.seq:
            _project_one(changes, contexts, recorded)
            continue
        match recorded.event:
            case EndUserSeen() as event:
                _on_seen(changes, event, recorded)
            case RunSetAside() as event:
                _on_set_aside(changes, event.run_id, event.error, recorded)
            case RunReleased() as event:
                _on_set_aside(changes, event.run_id, "", recorded)
            case _:
                pass
    return changes


def _on_set_aside(changes: Changes, run_id: str, reason: str, recorded: Recorded) -> None:
    row = {"id": run_id, "set_aside": clean(reason), "partition": recorded.partition}
    fold(changes.runs, row, REPLACED["workflow_runs"])


def _on_seen(changes: Changes, event: EndUserSeen, recorded: Recorded) -> None:
    # Of its own for each partition: a log that was brought into more of them may have the user in two.
    row: Row = {
        "id": clean(event.caller.id),
        "partition": recorded.partition,
        "tenant_id": TENANT_ID,
        "app_id": clean(event.app_id),
        "invoke_from": clean(event.invoke_from),
        "external_user": clean(event.caller.user),
        "created_at": recorded.at_us,
        "updated_at": recorded.at_us,
        "last_offset": recorded.offset,
    }
    fold(changes.end_users, row, frozenset(), (event.caller.id, recorded.partition))


def _project_one(changes: Changes, contexts: Mapping[str, RunContext], recorded: Recorded) -> None:
    event = recorded.event
    run_id = recorded.run_id
    run: Row = {
        "id": run_id,
        "seq": recorded.seq,
        "partition": recorded.partition,
        "last_offset": recorded.offset,
        "epoch": recorded.epoch,
    }
    match event:
        case RunAccepted():
            changes.contexts[run_id] = RunContext(
                clean(event.app_id),
                clean(event.workflow_id),
                event.caller.role,
                clean(event.caller.id),
                clean(event.only),
            )
            run |= _accepted(event, recorded)
        case RunStarted():
            run |= {"status": "running", "started_at": recorded.at_us}
        case RunPaused():
            run |= {
                "status": "paused",
                "elapsed_time": event.elapsed_s,
                "total_tokens": event.total_tokens,
                "total_steps": event.total_steps,
            }
        case RunResumed():
            run |= {"status": "running"}
        case RunSucceeded() | RunPartiallySucceeded() | RunFailed() | RunStopped():
            run |= _ended(event, recorded)
        case NodeStarted():
            context = changes.contexts.get(run_id) or contexts.get(run_id)
            if event.begins_work(alone=context is not None and bool(context.only)):
                run["begun_at"] = recorded.at_us
            _change_node(changes, recorded, event.path, event.node_id, _node_started(event, recorded, context))
        case NodeRestarted():
            _change_node(changes, recorded, event.path, event.node_id, {"status": "running", "attempt": event.attempt})
        case FormOpened():
            paused = {"status": "paused", "attempt": event.attempt}
            _change_node(changes, recorded, event.path, event.node_id, paused)
        case NodeSucceeded() | NodeFailed() | NodeExcepted() | NodeRetryScheduled():
            _change_node(changes, recorded, event.path, event.node_id, _node_ended(event, recorded))
        case NodeStopped():
            stopped = {
                "status": "stopped",
                "attempt": event.attempt,
                "error": clean(event.reason) or None,
                "finished_at": recorded.at_us,
            }
            _change_node(changes, recorded, event.path, event.node_id, stopped)
        case _:
            pass  # requests, limits, skips, rounds and answers to forms move the run's sequence on and change no more
    fold(changes.runs, run, REPLACED["workflow_runs"])


def _accepted(event: RunAccepted, recorded: Recorded) -> Row:
    return {
        "tenant_id": TENANT_ID,
        "app_id": clean(event.app_id),
        "workflow_id": clean(event.workflow_id),
        "type": "workflow" if event.mode == "workflow" else "chat",
        "triggered_from": clean(event.triggered_from),
        "invoke_from": clean(event.invoke_from),
        "version": clean(event.version),
        "digest": clean(event.digest),
        "inputs": as_json(_run_inputs(event, recorded.run_id)),
        "status": "pending",
        "outputs": "{}",
        "elapsed_time": 0.0,
        "total_tokens": 0,
        "total_steps": 0,
        "exceptions_count": 0,
        "created_by_role": event.caller.role,
        "created_by": clean(event.caller.id),
        "created_by_user": clean(event.caller.user),
        "created_at": recorded.at_us,
        "task_id": clean(event.task_id),
        "query": clean(event.query),
        "conversation_id": clean(event.conversation_id),
        "idempotency_key": clean(event.idempotency_key),
        "only": clean(event.only),
        "forked_from": clean(event.forked_from.run_id) if event.forked_from else None,
        "forked_at": event.forked_from.seq if event.forked_from else None,
        "forked_tokens": event.forked_from.tokens or 0 if event.forked_from else 0,
        "first_offset": recorded.offset,
    }


def _run_inputs(event: RunAccepted, run_id: str) -> dict[str, JsonValue]:
    """Start inputs and system values, as the reference stores them (its http document, section 2.3)."""
    inputs: dict[str, JsonValue] = {**event.inputs, "sys.files": list(event.files)}
    if event.mode == "advanced-chat":
        inputs |= {"sys.query": event.query or "", "sys.conversation_id": event.conversation_id or ""}
    return inputs | {
        "sys.user_id": event.caller.user,
        "sys.app_id": event.app_id,
        "sys.workflow_id": event.workflow_id,
        "sys.workflow_run_id": run_id,
    }


def _ended(event: RunSucceeded | RunPartiallySucceeded | RunFailed | RunStopped, recorded: Recorded) -> Row:
    row: Row = {
        "status": _STATUS[type(event)],
        "outputs": as_json(event.outputs),
        "error": clean(event.error),
        "elapsed_time": event.elapsed_s,
        "total_tokens": event.total_tokens,
        "total_steps": event.total_steps,
        "exceptions_count": event.exceptions_count,
        "finished_at": recorded.at_us,
    }
    if isinstance(event, RunFailed):
        row |= {"error_code": clean(event.code), "error_node_id": clean(event.node_id)}
    return row


def _node_started(event: NodeStarted, recorded: Recorded, context: RunContext | None) -> Row:
    row: Row = {
        "tenant_id": TENANT_ID,
        "triggered_from": "workflow-run" if context is None or context.only is None else "single-step",
        "workflow_run_id": recorded.run_id,
        "index": event.index,
        "predecessor_node_id": clean(event.predecessor_id),
        "node_type": clean(event.node_type),
        "title": clean(event.title),
        "attempt": event.attempt,
        "inputs": as_json(event.inputs),
        "status": "running",
        "elapsed_time": 0.0,
        "created_at": recorded.at_us,
        "first_seq": recorded.seq,
        "first_offset": recorded.offset,
    }
    if context is not None:
        row |= {
            "app_id": context.app_id,
            "workflow_id": context.workflow_id,
            "created_by_role": context.created_by_role,
            "created_by": context.created_by,
        }
    return row


def _node_ended(event: NodeSucceeded | NodeFailed | NodeExcepted | NodeRetryScheduled, recorded: Recorded) -> Row:
    metadata = _rounds(event.path) | (event.metadata or {})
    row: Row = {
        "status": _STATUS[type(event)],
        "attempt": event.attempt,
        "inputs": as_json(event.inputs),
        "process_data": as_json(event.process_data),
        "outputs": as_json(event.outputs),
        "elapsed_time": event.elapsed_s,
        "execution_metadata": as_json(metadata) if metadata else None,
        "finished_at": None if isinstance(event, NodeRetryScheduled) else recorded.at_us,
    }
    if not isinstance(event, NodeSucceeded):
        row |= {"error": clean(event.error), "error_type": clean(event.error_type)}
    return row


def _rounds(path: str) -> dict[str, JsonValue]:
    """`iteration_id`, `iteration_index`, `loop_id`, `loop_index` of the innermost containers around a node."""
    found: dict[str, JsonValue] = {}
    for part in path.split("/") if path else ():
        kind, _, rest = part.partition(":")
        node_id, _, index = rest.rpartition(":")
        found |= {f"{kind}_id": unquote(node_id), f"{kind}_index": int(index) if index.isdigit() else index}
    return found


def _change_node(changes: Changes, recorded: Recorded, path: str, node_id: str, columns: Row) -> None:
    row_id = execution_id(recorded.run_id, path, node_id)
    row = {
        "id": row_id,
        "node_execution_id": row_id,
        "workflow_run_id": recorded.run_id,
        "node_id": clean(node_id),
        "path": clean(path),
        "seq": recorded.seq,
        "partition": recorded.partition,
        "last_offset": recorded.offset,
        "epoch": recorded.epoch,
        # A change of a node decides all of these, also when it has nothing to say about them.
        **dict.fromkeys(REPLACED["workflow_node_executions"]),
        **columns,
    }
    fold(changes.nodes, row, REPLACED["workflow_node_executions"])
