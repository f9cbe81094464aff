"""Node executions of a run, in the reference's shape, folded from its history: complete, and never older than asked."""

from collections.abc import Iterable

from libs.events.codec import Recorded
from libs.events.ids import execution_id
from libs.events.model import (
    FormOpened,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    RunAccepted,
)
from libs.workflow.state import rounds_of
from services.api.account import ADMIN_ACCOUNT
from services.api.frames import Json


def executions(history: Iterable[Recorded]) -> list[Json]:
    """In the order of their first starts."""
    found: dict[tuple[str, str], Json] = {}
    by: Json = {}
    for recorded in history:
        event = recorded.event
        match event:
            case RunAccepted():
                by = created_by(event.caller.role, event.caller.id, event.caller.user, event.invoke_from)
            case NodeStarted():
                key = (event.path, event.node_id)
                if key not in found:
                    found[key] = _begun(recorded, event) | by
                found[key] |= {"status": "running", "finished_at": None}
            case NodeRestarted():
                found[event.path, event.node_id]["status"] = "running"
            case NodeSucceeded():
                _end(found, recorded, event, "succeeded", None)
            case NodeFailed():
                _end(found, recorded, event, "failed", event.error)
            case NodeExcepted():
                _end(found, recorded, event, "exception", event.error)
            case NodeRetryScheduled():
                _end(found, recorded, event, "retry", event.error)
            case FormOpened():
                found[event.path, event.node_id]["status"] = "paused"
            case NodeStopped() if (event.path, event.node_id) in found:
                stopped = {"status": "stopped", "error": event.reason or None, "finished_at": _s(recorded.at_us)}
                found[event.path, event.node_id] |= stopped
    return sorted(found.values(), key=lambda one: one["index"])


def created_by(role: str, caller_id: str, user: str, invoke_from: str) -> Json:
    """Who made a run or a node execution, as records of the console say it."""
    if role == "account":
        return {"created_by_role": role, "created_by_account": ADMIN_ACCOUNT, "created_by_end_user": None}
    kind = "browser" if invoke_from == "web-app" else "service-api"
    end_user = {"id": caller_id, "type": kind, "is_anonymous": False, "session_id": user}
    return {"created_by_role": role, "created_by_account": None, "created_by_end_user": end_user}


def _begun(recorded: Recorded, event: NodeStarted) -> Json:
    return {
        "id": execution_id(recorded.run_id, event.path, event.node_id),
        "index": event.index,
        "predecessor_node_id": event.predecessor_id,
        "node_id": event.node_id,
        "node_type": event.node_type,
        "title": event.title,
        "inputs": event.inputs,
        "process_data": None,
        "outputs": None,
        "status": "running",
        "error": None,
        "elapsed_time": 0.0,
        "execution_metadata": _rounds(event.path) or None,
        "extras": {},
        "created_at": _s(recorded.at_us),
        "finished_at": None,
        "inputs_truncated": False,
        "outputs_truncated": False,
        "process_data_truncated": False,
    }


def _end(
    found: dict[tuple[str, str], Json],
    recorded: Recorded,
    event: NodeSucceeded | NodeFailed | NodeExcepted | NodeRetryScheduled,
    status: str,
    error: str | None,
) -> None:
    execution = found.get((event.path, event.node_id))
    if execution is None:
        return
    metadata = _rounds(event.path) | dict(event.metadata or {})
    execution |= {
        "status": status,
        "error": error,
        "process_data": event.process_data,
        "outputs": event.outputs,
        "elapsed_time": event.elapsed_s,
        "execution_metadata": metadata or None,
        "finished_at": _s(recorded.at_us),
    }
    if event.inputs is not None:
        execution["inputs"] = event.inputs


def _rounds(path: str) -> Json:
    found: Json = {}
    for each in rounds_of(path):
        found |= {f"{each.kind}_id": each.node_id, f"{each.kind}_index": each.index}
    return found


def _s(at_us: int) -> int:
    return at_us // 1_000_000
