"""The run machine: when a node may start, finish, be retried or be skipped, and how a run ends.

Pure: no I/O, clock, randomness, threads or logging; time arrives inside commands. `decide` holds the rules and never
changes the state; `evolve` holds none and never fails; `derived` and `due` are computed, never stored.

Invariants, each a property test of the same name in tests/property/test_machine.py:
  fold_is_total              evolve never raises on a history that decide and derived produced
  due_is_derived             due needs only the state, so a restarted executor simply asks again
  every_prefix_goes_on       cut a history anywhere: derived and due still lead to the same end
  a_fork_ends_alike          a run that shares another's beginning ends like it, for the same outcomes
  any_order_ends_alike       the order in which running nodes complete does not change how the run ends
  duplicates_change_nothing  a late or repeated outcome is rejected

Rules (the reference engine's, except where `docs/compatibility.md` says otherwise):
  - a node is ready when none of its incoming edges is undecided and at least one is taken; all skipped: it is skipped;
  - an ordinary node takes all its outgoing edges, a branch node those of the selected handle and skips the others;
  - a failure that neither a retry nor a strategy handles fails the run at once: running siblings are cancelled;
  - a run is paused when nothing of it runs and nothing can start before a person acts: all that is active waits for a
    form, or somebody asked for a pause. Whatever was answered first in the log counts: submission or expiry.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, assert_never

from pydantic import JsonValue

from libs.events.codec import Recorded
from libs.events.ids import execution_id
from libs.events.model import (
    EVENT,
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
from libs.workflow.definition import Definition, Edge, Node, NodeKind
from libs.workflow.modes import graph_of
from libs.workflow.outcome import Asked, Failed, Outcome, Succeeded, Values
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

SOURCE_HANDLE = "source"
FAIL_HANDLE = "fail-branch"


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Begin:
    """Admit the run. `conversation`: what `libs.workflow.conversation.opening` says, for chatflows."""

    max_steps: int
    max_time_s: float = 0.0
    conversation: Mapping[str, Any] | None = None


@dataclass(slots=True, frozen=True)
class StartAttempt:
    key: Key
    epoch: int
    now_us: int
    pinned: bool = False


@dataclass(slots=True, frozen=True)
class CompleteAttempt:
    """A handler answered. `epoch` and `attempt` say which try it was."""

    key: Key
    attempt: int
    epoch: int
    outcome: Outcome
    now_us: int
    pinned: bool = False


@dataclass(slots=True, frozen=True)
class Stop:
    command_offset: int
    reason: str
    by: str = ""


@dataclass(slots=True, frozen=True)
class CheckTime:
    now_us: int


@dataclass(slots=True, frozen=True)
class CheckForms:
    """Whether a form has expired."""

    now_us: int


@dataclass(slots=True, frozen=True)
class Abandon:
    """The run cannot go on for a reason outside its nodes (its document cannot be read, say)."""

    code: str
    error: str


Command = Begin | StartAttempt | CompleteAttempt | Stop | CheckTime | CheckForms | Abandon


@dataclass(slots=True, frozen=True)
class Rejection:
    """The command does not apply; nothing changes."""

    reason: str


class Due(NamedTuple):
    """An attempt that may begin now."""

    key: Key
    attempt: int
    lost: bool
    """It began in an earlier epoch and lost its owner: it begins again as the same attempt."""


# --- deciding --------------------------------------------------------------------------------------------------------


def decide(state: RunState, command: Command) -> RunEvent | Rejection:
    """The one fact that `command` causes, or why it does not apply. Never raises, never changes the state."""
    match command:
        case Begin(max_steps, max_time_s, conversation):
            if state.status != PENDING or state.ending:
                return Rejection(f"run {state.run_id} cannot begin: it is {state.status}")
            return RunStarted(max_steps=max_steps, max_time_s=max_time_s, **(conversation or {}))
        case StartAttempt():
            return _start(state, command)
        case CompleteAttempt():
            return _complete(state, command)
        case Stop(command_offset, reason, by):
            if state.ended or state.stop_reason is not None:
                return Rejection(f"run {state.run_id} is {'stopping' if not state.ended else state.status}")
            return StopRequested(command_offset=command_offset, reason=reason, by=by)
        case CheckTime(now_us):
            spent_s = state.spent_us(now_us) / 1e6
            if state.status != RUNNING or state.ending or not 0 < state.max_time_s < spent_s:
                return Rejection(f"run {state.run_id} is within its time limit")
            message = f"Maximum execution time exceeded: {spent_s:.2f}s > {state.max_time_s:g}s"
            return LimitExceeded(limit="max_time_s", message=message)
        case CheckForms(now_us):
            return _expired(state, now_us)
        case Abandon(code, error):
            if state.ended:
                return Rejection(f"run {state.run_id} is {state.status}")
            return RunFailed(code=code, error=error, **_totals(state))
        case _:
            assert_never(command)


def _expired(state: RunState, now_us: int) -> FormExpired | Rejection:
    """The open form whose instant has passed longest ago."""
    overdue = [form for form in state.forms.values() if form.action is None and form.due_us <= now_us]
    if state.ended or state.ending or not overdue:
        return Rejection(f"run {state.run_id} has no form that has expired")
    form = min(overdue, key=lambda each: each.due_us)
    return FormExpired(node_id=form.node_id, path=form.path, form_id=form.form_id)


def _start(state: RunState, command: StartAttempt) -> RunEvent | Rejection:
    key = command.key
    if state.status != RUNNING or state.ending:
        return Rejection(f"{key.node_id} cannot start: run {state.run_id} is {state.status}")
    node = state.definition.nodes[key.node_id]
    execution = state.executions.get(key)
    if state.pause_reason is not None and (execution is None or execution.status != "running"):
        return Rejection(f"{key.node_id} cannot start: run {state.run_id} is to pause")
    if execution is None:
        if key not in state.ready:
            return Rejection(f"{key.node_id} is not ready")
        return NodeStarted(
            node_id=key.node_id,
            path=key.path,
            node_type=node.type,
            title=node.title,
            index=state.steps + 1,
            predecessor_id=state.ready[key],
            inputs=None if command.pinned else _container_inputs(state, node, key),
            pinned=command.pinned,
        )
    if execution.status == "retry" and execution.due_us <= command.now_us:
        return NodeStarted(
            node_id=key.node_id,
            path=key.path,
            attempt=execution.attempt + 1,
            node_type=node.type,
            title=node.title,
            index=execution.index,
            predecessor_id=execution.predecessor_id,
            pinned=command.pinned,
        )
    if execution.status == "running" and execution.epoch < command.epoch:
        return NodeRestarted(node_id=key.node_id, path=key.path, attempt=execution.attempt)
    return Rejection(f"{key.node_id} has begun already: it is {execution.status}")


def _container_inputs(state: RunState, node: Node, key: Key) -> Values | None:
    if node.kind is not NodeKind.CONTAINER:
        return None
    inputs = containers.opening(node, state.frames[key.path].pool)
    return None if isinstance(inputs, str) else inputs


def _complete(state: RunState, command: CompleteAttempt) -> RunEvent | Rejection:
    key = command.key
    execution = state.executions.get(key)
    if execution is None or execution.status != "running":
        return Rejection(f"{key.node_id} is not running")
    if (execution.attempt, execution.epoch) != (command.attempt, command.epoch):
        return Rejection(f"{key.node_id}: attempt {command.attempt} of epoch {command.epoch} is not the current one")
    if state.ended:
        return Rejection(f"run {state.run_id} is {state.status}")
    return _outcome(state, key, execution, command.outcome, command.now_us, pinned=command.pinned)


def _outcome(
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
    if node.retry is not None and execution.attempt <= node.retry.max_retries:
        return NodeRetryScheduled(
            node_id=node.id,
            path=execution.path,
            attempt=execution.attempt,
            inputs=failed.inputs,
            process_data=failed.process_data,
            outputs=failed.outputs,
            metadata=failed.metadata,
            elapsed_s=elapsed_s,
            error=failed.error,
            error_type=failed.error_type,
            due_us=now_us + node.retry.interval_ms * 1000,
        )
    if node.strategy is not None:
        handle = FAIL_HANDLE if node.strategy == "fail-branch" else None
        selectable = node.strategy == "fail-branch" or node.kind is not NodeKind.BRANCH
        if selectable:
            details: Values = {"error_message": failed.error, "error_type": failed.error_type}
            defaults = dict(node.defaults) if node.strategy == "default-value" else {}
            return NodeExcepted(
                node_id=node.id,
                path=execution.path,
                attempt=execution.attempt,
                inputs=failed.inputs,
                process_data=failed.process_data,
                outputs=defaults | details,
                metadata=(failed.metadata or {}) | {"error_strategy": node.strategy},
                elapsed_s=elapsed_s,
                error=failed.error,
                error_type=failed.error_type,
                strategy=node.strategy,
                handle=handle,
            )
        failed = replace(failed, error=f"{failed.error} (Branch node {node.id} completed without selecting a branch)")
    return NodeFailed(
        node_id=node.id,
        path=execution.path,
        attempt=execution.attempt,
        inputs=failed.inputs,
        process_data=failed.process_data,
        outputs=failed.outputs,
        metadata=failed.metadata,
        elapsed_s=elapsed_s,
        error=failed.error,
        error_type=failed.error_type,
    )


# --- what follows ----------------------------------------------------------------------------------------------------


def derived(state: RunState) -> RunEvent | None:
    """The next fact that follows from the state alone, or None. Ask again after folding it, and after recovery."""
    if state.status == PENDING and state.stop_reason is not None:
        return _end(state)
    if state.status not in (RUNNING, PAUSED):
        return None
    if state.ending:
        for key in state.active:
            execution = state.executions[key]
            reason = state.stop_reason or f"the run has failed: {state.error}"
            return NodeStopped(node_id=key.node_id, path=key.path, attempt=execution.attempt, reason=reason)
        return _end(state)
    if state.status == PAUSED:
        return RunResumed() if _goes_on(state) else None
    if state.prefix:
        return EVENT.validate_python(state.prefix[0])  # type: ignore[return-value]  # what happened to nodes
    if state.steps > state.max_steps:
        message = f"Maximum execution steps exceeded: {state.steps} > {state.max_steps}"
        return LimitExceeded(limit="max_steps", message=message)
    if state.to_skip:
        key, by, handle = state.to_skip[0]
        return NodeSkipped(node_id=key.node_id, path=key.path, by=by, handle=handle)
    following = containers.following(state)
    if following is not None:
        key, fact = following
        if isinstance(fact, RoundStarted | RoundFinished):
            return fact
        return _outcome(state, key, state.executions[key], fact, state.at_us)
    for key in state.answered:
        return _outcome(state, key, state.executions[key], forms.outcome(state.forms[key]), state.at_us)
    if not state.frames[ROOT].open:
        return _end(state)
    return _pause(state)


def _pause(state: RunState) -> RunPaused | None:
    """That the run waits for a person, if nothing of it runs and nothing may start."""
    held = state.pause_reason is not None
    if not (held or state.forms) or state.epochs:
        return None
    if not held and (state.ready or any(waiting(state))):
        return None
    return RunPaused(
        forms=tuple(form.form_id for form in state.forms.values()),
        reason=state.pause_reason,
        total_steps=state.total_steps,
        total_tokens=state.total_tokens,
        elapsed_s=state.spent_us(state.at_us) / 1e6,
    )


def _goes_on(state: RunState) -> bool:
    """Whether a paused run has something to do."""
    if state.pause_reason is not None:
        return False
    return bool(state.answered or state.ready or not state.forms or any(waiting(state)))


def copying(state: RunState) -> bool:
    """Whether `derived` tells what another run did, which this one shares."""
    return bool(state.prefix) and state.status == RUNNING and not state.ending


def due(state: RunState, epoch: int, now_us: int) -> Iterator[Due]:
    """The attempts that the owner of `epoch` may begin now; the shell begins these and nothing else.

    Derived facts come first: ask only when `derived` answers None. Do not fold events while iterating.
    """
    if state.status != RUNNING or state.ending:
        return
    if any(begun < epoch for begun in state.epochs):
        for execution in state.running():
            if execution.status == "running" and execution.epoch < epoch and execution.key not in state.containers:
                yield Due(execution.key, execution.attempt, lost=True)
    if state.pause_reason is not None:
        return
    for key in state.ready:
        yield Due(key, 1, lost=False)
    for execution in waiting(state):
        if execution.due_us <= now_us:
            yield Due(execution.key, execution.attempt + 1, lost=False)


def waiting(state: RunState) -> Iterator[Execution]:
    """Executions that wait for the instant of their next attempt."""
    if len(state.active) > sum(state.epochs.values()):
        yield from (execution for execution in state.running() if execution.status == "retry")


def next_timer_us(state: RunState, now_us: int = 0) -> int | None:
    """When the owner must look at the run again although nothing happens: a retry, a form, or the time limit.

    Retries that were due by `now_us` have no instant any more: what they wait for is a slot.
    """
    if state.status not in (RUNNING, PAUSED) or state.ending:
        return None
    instants = [form.due_us for form in state.forms.values() if form.action is None]
    if state.status == RUNNING:
        if state.pause_reason is None:
            instants += [execution.due_us for execution in waiting(state) if execution.due_us > now_us]
        if state.max_time_s > 0:
            instants.append(state.started_us + state.paused_us + int(state.max_time_s * 1e6) + 1)
    return min(instants, default=None)


def _totals(state: RunState) -> dict[str, Any]:
    return {
        "outputs": state.outputs,
        "total_steps": state.total_steps,
        "total_tokens": state.total_tokens,
        "exceptions_count": state.exceptions_count,
        "elapsed_s": state.spent_us(state.at_us) / 1e6,
        **_left_to_the_conversation(state),
    }


def _left_to_the_conversation(state: RunState) -> dict[str, Any]:
    accepted = state.accepted
    if accepted is None or accepted.mode != "advanced-chat" or accepted.conversation_id is None:
        return {}
    pool = state.pool
    found = ((("conversation", name), kind) for name, kind in state.written.items())
    updates = (
        VariableUpdate(selector=selector, value=segment.value, value_type=kind)
        for selector, kind in found
        if (segment := pool.get(selector)) is not None
    )
    return {"conversation_id": accepted.conversation_id, "updates": tuple(updates) or None}


def _end(state: RunState) -> RunEvent:
    totals = _totals(state)
    if state.stop_reason is not None:
        return RunStopped(error=state.stop_reason, **totals)
    if state.error is not None:
        code = "limit_exceeded" if state.limit else "node_failed"
        return RunFailed(error=state.error, code=code, node_id=state.failed_node, **totals)
    if state.exceptions_count:
        return RunPartiallySucceeded(**totals)
    return RunSucceeded(**totals)


# --- folding ---------------------------------------------------------------------------------------------------------


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
            merge_outputs(_response_outputs(state, event.path), containers.on_round_finished(state, event))
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
    for name, value in system_variables(state.run_id, event, at_us).items():
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


def system_variables(run_id: str, event: RunAccepted, at_us: int) -> dict[str, JsonValue]:
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


def _leave(
    state: RunState, path: str, node_id: str, handle: str | None, outputs: Values | None, types: dict[str, str]
) -> None:
    """A node is done: its outputs are stored and its outgoing edges decided, skipped ones first."""
    node = state.definition.nodes[node_id]
    frame = state.frames[path]
    for name, value in (outputs or {}).items():
        frame.pool.set(node_id, name, value, types.get(name))
    if node.kind is NodeKind.RESPONSE:
        merge_outputs(_response_outputs(state, path), outputs or {})
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


def merge_outputs(outputs: dict[str, JsonValue], more: Values) -> None:
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
