"""Facts applied to the state of a run: what an event that was recorded changes. No rules here, and nothing fails.

`apply` changes the state in place; whatever was decided has happened. The rules that decide are in
`libs.workflow.machine`, those of rounds in `libs.workflow.containers`. Pure.

How a graph is walked: a node that is done decides its outgoing edges (`_leave`); a node whose incoming edges are all
decided is ready when one of them is taken, and skippable when none is (`_settle`).
"""

from collections import deque
from typing import Any, assert_never

from pydantic import JsonValue

from libs.events.codec import Recorded
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
    VariableUpdate,
)
from libs.workflow import containers, forms
from libs.workflow.definition import Definition, Edge, NodeKind
from libs.workflow.modes import graph_of
from libs.workflow.outcome import Values
from libs.workflow.pool import Pool
from libs.workflow.state import (
    FAILED,
    PARTIAL,
    PAUSED,
    PENDING,
    ROOT,
    RUNNING,
    STOPPED,
    SUCCEEDED,
    Execution,
    Form,
    Frame,
    Key,
    RunState,
)
from libs.workflow.variables import fits

__all__ = ["apply", "evolve", "new_state"]


def new_state(definition: Definition, run_id: str) -> RunState:
    return RunState(definition, run_id)


def evolve(state: RunState, recorded: Recorded) -> None:
    """Apply one recorded fact, in place. No rules here: whatever was recorded has happened."""
    apply(state, recorded.event, recorded.at_us, recorded.epoch)  # type: ignore[arg-type]  # run events only


def apply(state: RunState, event: RunEvent, at_us: int, epoch: int) -> None:
    """`evolve` for an event that has no place in the log yet."""
    state.seq += 1
    state.at_us = at_us
    if state.prefix and event.type == state.prefix[0]["type"]:
        state.prefix.popleft()
    match event:
        case NodeStarted():
            _on_started(state, event, at_us, epoch)
        case NodeSucceeded():
            _on_finished(state, event, "succeeded", at_us)
            for update in event.updates:
                _write(state, event.path, update)
            if state.definition.nodes[event.node_id].type == "loop-end":
                containers.on_loop_end(state, event)
            _leave(state, event.path, event.node_id, event.handle, event.outputs, event.output_types)
        case NodeExcepted():
            _on_finished(state, event, "exception", at_us)
            state.exceptions_count += 1
            _leave(state, event.path, event.node_id, event.handle, event.outputs, {})
        case NodeSkipped():
            _on_skipped(state, event)
        case NodeRetryScheduled():
            execution = _begun_in_no_epoch(state, Key(event.path, event.node_id))
            execution.status, execution.due_us, execution.error = "retry", event.due_us, event.error
            _count_usage(state, execution.key, event.metadata)
        case NodeFailed():
            _on_finished(state, event, "failed", at_us)
            _on_failed(state, event)
        case NodeRestarted():
            execution = _begun_in_no_epoch(state, Key(event.path, event.node_id))
            execution.epoch, execution.attempt_started_us = epoch, at_us
            state.epochs[epoch] = state.epochs.get(epoch, 0) + 1
        case NodeStopped():
            _on_finished(state, event, "stopped", at_us)
            _close_one(state, state.frames[event.path])
        case RunAccepted():
            _on_accepted(state, event, at_us)
        case RunStarted():
            _on_run_started(state, event, at_us)
        case FormOpened():
            _on_form_opened(state, event)
        case FormSubmitted():
            _on_form_answered(state, Key(event.path, event.node_id), event.action, event.inputs)
        case FormExpired():
            _on_form_answered(state, Key(event.path, event.node_id), forms.TIMEOUT, {})
        case StopRequested():
            state.stop_reason = event.reason
            state.said = event.said if isinstance(event.said, str) else None
        case PauseRequested():
            state.pause_reason = event.reason
        case ResumeRequested():
            state.pause_reason = None
        case RunPaused():
            state.status, state.paused_since_us = PAUSED, at_us
        case RunResumed():
            state.status = RUNNING
            state.paused_us += max(at_us - state.paused_since_us, 0)
            state.paused_since_us = 0
        case LimitExceeded():
            state.error, state.limit = state.error or event.message, event.limit
        case RunSucceeded():
            _on_run_ended(state, event, SUCCEEDED, at_us)
        case RunPartiallySucceeded():
            _on_run_ended(state, event, PARTIAL, at_us)
        case RunFailed():
            _on_run_ended(state, event, FAILED, at_us)
        case RunStopped():
            _on_run_ended(state, event, STOPPED, at_us)
        case RoundStarted():
            frame = containers.on_round_started(state, event)
            start = state.definition.nodes[event.node_id].config.start_node_id
            for edge in state.definition.nodes[start].outgoing:
                _settle(state, frame, edge, start, None, taken=True)
        case RoundFinished():
            _merge_outputs(_response_outputs(state, event.path), containers.on_round_finished(state, event))
        case _:
            assert_never(event)


def _write(state: RunState, path: str, update: VariableUpdate) -> None:
    """Conversation variables live with the conversation; every other write stays in its round and vanishes with it."""
    pool = state.frames[path].pool
    if update.selector[0] == "conversation":
        pool.update(update.selector, update.value, update.value_type)
        state.written[update.selector[1]] = update.value_type
    else:
        node_id, name = update.selector
        pool.set(node_id, name, update.value, update.value_type)


def _on_accepted(state: RunState, event: RunAccepted, at_us: int) -> None:
    state.status, state.accepted_us = PENDING, at_us
    # What is copied leaves the state as it is recorded; kept in the start it would be in every snapshot.
    state.accepted = event if event.prefix is None else event.model_copy(update={"prefix": None})
    state.prefix = deque(event.prefix or ())  # type: ignore[arg-type]  # as `libs.workflow.fork` makes it
    state.definition = graph_of(state.definition, event)
    pool = Pool()
    state.frames[ROOT] = Frame(ROOT, pool)
    for name, value in _system_variables(state.run_id, event, at_us).items():
        pool.set("sys", name, value)
    for variable in state.definition.environment:
        pool.set("env", variable.name, variable.value, variable.type)
    if event.mode == "advanced-chat":
        for variable in state.definition.conversation:
            pool.set("conversation", variable.name, variable.value, variable.type)
    given: dict[str, Any] = event.variables or {}
    for node_id, names in given.items():
        for name, (value, *declared) in names.items():
            pool.set(node_id, name, value, *declared)
    for name, value in event.inputs.items():
        pool.set(state.definition.root, name, value)


def _system_variables(run_id: str, event: RunAccepted, at_us: int) -> dict[str, JsonValue]:
    """The `sys.*` values of a run, by name without the prefix."""
    values: dict[str, JsonValue] = {
        "files": list(event.files),
        "user_id": event.caller.user,
        "app_id": event.app_id,
        "workflow_id": event.workflow_id,
        "workflow_run_id": run_id,
        "timestamp": at_us // 1_000_000,
    }
    if event.mode == "advanced-chat":
        values |= {
            "query": event.query or "",
            "conversation_id": event.conversation_id or "",
            "dialogue_count": event.dialogue_count or 1,
        }
    return values


def _on_run_started(state: RunState, event: RunStarted, at_us: int) -> None:
    state.status, state.started_us = RUNNING, at_us
    state.max_steps, state.max_time_s = event.max_steps, event.max_time_s
    state.history = event.history
    for variable in state.definition.conversation:
        if event.variables is not None and variable.name in event.variables:
            value = event.variables[variable.name]
            state.pool.set("conversation", variable.name, value, variable.type if fits(value, variable.type) else None)
    annotation = state.accepted.annotation if state.accepted is not None else None
    if annotation is not None:  # nothing becomes ready, so that the run ends at once
        state.outputs = {"answer": annotation.answer}
        return
    _make_ready(state, state.frames[ROOT], state.definition.root, None)
    for node_id in state.definition.inactive_roots:
        _make_skippable(state, state.frames[ROOT], node_id, None, None)


def _on_started(state: RunState, event: NodeStarted, at_us: int, epoch: int) -> None:
    key = Key(event.path, event.node_id)
    execution = state.executions.get(key)
    if execution is None:
        execution = Execution(event.node_id, event.path, event.index, event.predecessor_id, at_us)
        state.executions[key] = execution
        state.ready.pop(key, None)
        state.active[key] = None
        state.steps += 1
        if event.path != ROOT:
            state.frames[event.path].executions.append(key)
    execution.status, execution.attempt, execution.epoch = "running", event.attempt, epoch
    execution.attempt_started_us = at_us
    if event.path == ROOT:
        state.total_steps += 1
    if state.definition.nodes[event.node_id].kind is NodeKind.CONTAINER and not event.pinned:
        containers.on_opened(state, event)
    else:
        state.epochs[epoch] = state.epochs.get(epoch, 0) + 1


def _on_finished(
    state: RunState, event: NodeSucceeded | NodeExcepted | NodeFailed | NodeStopped, status: str, at_us: int
) -> None:
    key = Key(event.path, event.node_id)
    execution = _begun_in_no_epoch(state, key)
    execution.status, execution.finished_us = status, at_us
    state.active.pop(key, None)
    state.forms.pop(key, None)
    state.answered.pop(key, None)
    if not isinstance(event, NodeStopped):
        _count_usage(state, key, event.metadata)
    state.containers.pop(key, None)
    if isinstance(event, NodeSucceeded | NodeExcepted):
        execution.handle = event.handle
    if isinstance(event, NodeExcepted | NodeFailed):
        execution.error = event.error


def _on_form_opened(state: RunState, event: FormOpened) -> None:
    key = Key(event.path, event.node_id)
    _begun_in_no_epoch(state, key).status = "paused"
    state.forms[key] = Form(event.node_id, event.path, event.form_id, event.form, event.due_us)


def _on_form_answered(state: RunState, key: Key, action: str, values: Values) -> None:
    """A submission may come when its node was stopped already: then it changes nothing."""
    form = state.forms.get(key)
    if form is not None and form.action is None:
        form.action, form.values = action, values
        state.answered[key] = None


def _begun_in_no_epoch(state: RunState, key: Key) -> Execution:
    """The execution, taken out of the count of attempts that run."""
    execution = state.executions[key]
    if execution.status == "running" and key not in state.containers:
        left = state.epochs[execution.epoch] - 1
        if left:
            state.epochs[execution.epoch] = left
        else:
            del state.epochs[execution.epoch]
    return execution


def _on_skipped(state: RunState, event: NodeSkipped) -> None:
    frame = state.frames[event.path]
    if state.to_skip and state.to_skip[0][0] == (event.path, event.node_id):
        state.to_skip.popleft()
    frame.skipped.add(event.node_id)
    for edge in state.definition.nodes[event.node_id].outgoing:
        _settle(state, frame, edge, event.by, event.handle, taken=False)
    _close_one(state, frame)


def _on_failed(state: RunState, event: NodeFailed) -> None:
    """The main graph's failure is the run's. A round's is its container's affair: what can still run in it does."""
    frame = state.frames[event.path]
    if event.path != ROOT:
        frame.error = frame.error or event.error
    elif state.error is None:
        state.error, state.failed_node = event.error, event.node_id
    _close_one(state, frame)


# --- walking the graph -----------------------------------------------------------------------------------------------


def _leave(
    state: RunState, path: str, node_id: str, handle: str | None, outputs: Values | None, types: dict[str, str]
) -> None:
    """A node is done: its outputs are stored and its outgoing edges decided, skipped ones first."""
    node = state.definition.nodes[node_id]
    frame = state.frames[path]
    for name, value in (outputs or {}).items():
        frame.pool.set(node_id, name, value, types.get(name))
    if node.kind is NodeKind.RESPONSE:
        _merge_outputs(_response_outputs(state, path), outputs or {})
    elif node_id == state.definition.root and state.accepted is not None and state.accepted.only is not None:
        state.outputs = dict(outputs or {})
    if node.branches:
        for edge in node.outgoing:
            if edge.handle != handle:
                _settle(state, frame, edge, node_id, handle, taken=False)
    for edge in node.outgoing:
        if not node.branches or edge.handle == handle:
            _settle(state, frame, edge, node_id, handle, taken=True)
    _close_one(state, frame)


def _response_outputs(state: RunState, path: str) -> dict[str, JsonValue]:
    return state.outputs if path == ROOT else state.frames[path].outputs


def _merge_outputs(outputs: dict[str, JsonValue], more: Values) -> None:
    """Outputs of response nodes in order of completion: `answer` texts are joined, other keys replaced."""
    for name, value in more.items():
        before = outputs.get(name)
        if name == "answer" and isinstance(before, str) and isinstance(value, str):
            value = before + value
        outputs[name] = value


def _settle(state: RunState, frame: Frame, edge: Edge, by: str | None, handle: str | None, *, taken: bool) -> None:
    if edge.index in frame.edges:
        return
    frame.edges[edge.index] = taken
    target = edge.target
    left = frame.undecided.get(target)
    if left is None:
        left = len(state.definition.nodes[target].incoming)
    frame.undecided[target] = left = left - 1
    if taken:
        frame.reached[target] = edge.source
    if left:
        return
    if target in frame.reached:
        _make_ready(state, frame, target, frame.reached[target])
    else:
        _make_skippable(state, frame, target, by, handle)


def _make_ready(state: RunState, frame: Frame, node_id: str, predecessor_id: str | None) -> None:
    key = Key(frame.path, node_id)
    if key not in state.executions and key not in state.ready:
        state.ready[key] = predecessor_id
        frame.open += 1


def _make_skippable(state: RunState, frame: Frame, node_id: str, by: str | None, handle: str | None) -> None:
    state.to_skip.append((Key(frame.path, node_id), by, handle))
    frame.open += 1


def _close_one(state: RunState, frame: Frame) -> None:
    frame.open -= 1
    if not frame.open and frame.container is not None:
        state.touched[frame.container] = None


def _count_usage(state: RunState, key: Key, metadata: Values | None) -> None:
    tokens = (metadata or {}).get("total_tokens")
    if isinstance(tokens, int):
        state.frames[key.path].tokens += tokens
        # What a container reports was counted when its nodes reported it.
        if key not in state.containers:
            state.total_tokens += tokens


def _on_run_ended(
    state: RunState,
    event: RunSucceeded | RunPartiallySucceeded | RunFailed | RunStopped,
    status: str,
    at_us: int,
) -> None:
    state.status, state.ended_us = status, at_us
    state.outputs, state.error = event.outputs, event.error
    state.ready.clear()
    state.to_skip.clear()
