"""What the reference's clients expect of a run: the members of every frame, the rows that are left, a replay."""

import json
from typing import Any

from sqlalchemy import RowMapping, create_engine, select

from libs.events.codec import Recorded, from_rfc3339
from libs.events.model import EVENT
from libs.tables import workflow_node_executions, workflow_runs
from libs.workflow.definition import compile_document
from libs.workflow.machine import evolve, new_state
from libs.workflow.state import RunState
from tests.e2e.deployment import Frame

ENVELOPE = {"event", "workflow_run_id", "task_id", "data"}
NODE = set(
    "id node_id node_type title index predecessor_node_id inputs inputs_truncated created_at iteration_id"
    " loop_id".split()
)
RESULT = set(
    "process_data process_data_truncated outputs outputs_truncated status error elapsed_time execution_metadata"
    " finished_at files".split()
)
END = set(
    "id workflow_id status outputs error elapsed_time total_tokens total_steps created_by created_at finished_at"
    " exceptions_count files".split()
)
MEMBERS = {
    "workflow_started": {"id", "workflow_id", "inputs", "created_at", "reason"},
    "node_started": NODE | {"extras", "agent_strategy"},
    "node_finished": NODE | RESULT,
    "text_chunk": {"text", "from_variable_selector"},
    "workflow_finished": END,
}
"""Members of `data` by event, from the reference's contract of streams."""


def check_members(got: list[Frame], run_id: str, task_id: str) -> None:
    """Every frame has the reference's members and no other, and the ids of its run."""
    for frame in got:
        assert set(frame) == ENVELOPE, frame
        assert set(frame["data"]) == MEMBERS[frame["event"]], frame
        assert (frame["workflow_run_id"], frame["task_id"]) == (run_id, task_id)


def shape(got: list[Frame]) -> list[str]:
    """The order of a stream: `workflow_started`, `+node`, `-node`, `text` (chunks in a row are one)."""
    order: list[str] = []
    for frame in got:
        match frame["event"]:
            case "node_started":
                order.append("+" + frame["data"]["node_id"])
            case "node_finished":
                order.append("-" + frame["data"]["node_id"])
            case "text_chunk":
                if order[-1] != "text":
                    order.append("text")
            case other:
                order.append(other)
    return order


def text_of(got: list[Frame]) -> str:
    return "".join(frame["data"]["text"] for frame in got if frame["event"] == "text_chunk")


def rows(database: str, run_id: str) -> tuple[RowMapping | None, list[RowMapping]]:
    """The run's row and its node rows, in the order of their starts."""
    engine = create_engine(database)
    nodes = workflow_node_executions
    try:
        with engine.connect() as connection:
            run = connection.execute(select(workflow_runs).where(workflow_runs.c.id == run_id)).mappings()
            executions = select(nodes).where(nodes.c.workflow_run_id == run_id).order_by(nodes.c.index)
            return run.one_or_none(), list(connection.execute(executions).mappings())
    finally:
        engine.dispose()


def replay(document: str, history: list[dict[str, Any]]) -> RunState:
    """The run as its history alone tells it: no log, no table, no service."""
    state = new_state(compile_document(document), history[0]["run_id"])
    for line in history:
        place = {name: line[name] for name in ("node_id", "path", "attempt") if name in line}
        event = EVENT.validate_python({"type": line["type"], **place, **line["data"]})
        at_us, epoch = from_rfc3339(line["at"]), line["epoch"]
        evolve(
            state,
            Recorded(event, line["run_id"], line["seq"], epoch, 0, at_us, "", line["partition"], line["offset"]),
        )
    return state


def loaded(text: str | None) -> Any:
    """A JSON column's value."""
    return None if text is None else json.loads(text)
