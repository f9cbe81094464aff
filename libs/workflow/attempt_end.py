"""How the end of an attempt is recorded: as a success, another attempt, the node's error strategy, or a failed node.

Pure: `fact_of` makes the one fact from what a handler, a container or a person answered.
"""

from dataclasses import replace
from typing import Any

from libs.events.ids import execution_id
from libs.events.model import FormOpened, NodeExcepted, NodeFailed, NodeRetryScheduled, NodeSucceeded
from libs.workflow.definition import Node, NodeKind
from libs.workflow.outcome import Asked, Failed, Outcome, Succeeded, Values
from libs.workflow.state import Execution, Key, RunState

__all__ = ["fact_of"]

SOURCE_HANDLE = "source"
FAIL_HANDLE = "fail-branch"


def fact_of(
    state: RunState, key: Key, execution: Execution, outcome: Outcome, now_us: int, *, pinned: bool = False
) -> NodeSucceeded | NodeRetryScheduled | NodeExcepted | NodeFailed | FormOpened:
    """The one fact that records how an attempt ended, or that it waits for a person."""
    if isinstance(outcome, Asked):
        return FormOpened(
            node_id=key.node_id,
            path=key.path,
            attempt=execution.attempt,
            form_id=execution_id(state.run_id, key.path, key.node_id),
            token=outcome.token,
            actions=outcome.actions,
            form=outcome.form,
            due_us=now_us + int(outcome.timeout_s * 1e6),
        )
    node = state.definition.nodes[key.node_id]
    elapsed_s = max(now_us - execution.attempt_started_us, 0) / 1e6
    if isinstance(outcome, Succeeded):
        handle, problem = _selected(node, outcome.handle)
        if problem is None:
            return NodeSucceeded(
                node_id=key.node_id,
                path=key.path,
                attempt=execution.attempt,
                inputs=outcome.inputs,
                process_data=outcome.process_data,
                outputs=outcome.outputs,
                metadata=outcome.metadata,
                elapsed_s=elapsed_s,
                handle=handle,
                output_types=outcome.output_types,
                updates=outcome.updates,
                pinned=pinned,
            )
        outcome = Failed(error=problem, inputs=outcome.inputs, process_data=outcome.process_data)
    return _failure(node, execution, outcome, elapsed_s, now_us)


def _selected(node: Node, handle: str | None) -> tuple[str | None, str | None]:
    """The handle that a success selects, or what is wrong with it."""
    if not node.branches:
        return None, None
    if handle is None and node.strategy == "fail-branch":
        handle = SOURCE_HANDLE
    if not handle:
        return None, f"Branch node {node.id} completed without selecting a branch"
    return handle, None


def _failure(
    node: Node, execution: Execution, failed: Failed, elapsed_s: float, now_us: int
) -> NodeRetryScheduled | NodeExcepted | NodeFailed:
    """What a failed attempt leads to: another attempt, the node's error strategy, or a failed node."""
    told: dict[str, Any] = {
        "node_id": node.id,
        "path": execution.path,
        "attempt": execution.attempt,
        "inputs": failed.inputs,
        "process_data": failed.process_data,
        "elapsed_s": elapsed_s,
        "error_type": failed.error_type,
    }
    if node.retry is not None and execution.attempt <= node.retry.max_retries:
        due_us = now_us + node.retry.interval_ms * 1000
        return NodeRetryScheduled(
            **told, outputs=failed.outputs, metadata=failed.metadata, error=failed.error, due_us=due_us
        )
    if node.strategy is not None:
        handle = FAIL_HANDLE if node.strategy == "fail-branch" else None
        selectable = node.strategy == "fail-branch" or node.kind is not NodeKind.BRANCH
        if selectable:
            details: Values = {"error_message": failed.error, "error_type": failed.error_type}
            defaults = dict(node.defaults) if node.strategy == "default-value" else {}
            return NodeExcepted(
                **told,
                outputs=defaults | details,
                metadata=(failed.metadata or {}) | {"error_strategy": node.strategy},
                error=failed.error,
                strategy=node.strategy,
                handle=handle,
            )
        failed = replace(failed, error=f"{failed.error} (Branch node {node.id} completed without selecting a branch)")
    return NodeFailed(**told, outputs=failed.outputs, metadata=failed.metadata, error=failed.error)
