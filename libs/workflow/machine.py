"""The run machine: when a node may start, finish, be retried or be skipped, and how a run ends.

Pure: no I/O, clock, randomness, threads or logging; time arrives inside commands. `decide` holds the rules and never
changes the state; `evolve` holds none and never fails; `derived` and `due` are computed, never stored.

Here is what decides. How facts change the state is in `folding`, how the end of an attempt is recorded in
`attempt_end`, what rounds do in `containers`, what people answer in `forms`.

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
  - a message that an annotation answers starts no node: its run ends at once with that answer;
  - the answer of a message that was stopped is what the person who stopped it saw, where that is more than finished
    answer nodes have said;
  - a run is paused when nothing of it runs and nothing can start before a person acts: all that is active waits for a
    form, or somebody asked for a pause. Whatever was answered first in the log counts: submission or expiry.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, assert_never

from libs.events.model import (
    EVENT,
    FormExpired,
    LimitExceeded,
    NodeRestarted,
    NodeSkipped,
    NodeStarted,
    NodeStopped,
    RoundFinished,
    RoundStarted,
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
from libs.workflow.attempt_end import fact_of
from libs.workflow.definition import Node, NodeKind
from libs.workflow.folding import apply, evolve, new_state
from libs.workflow.outcome import Outcome, Values
from libs.workflow.state import PAUSED, PENDING, ROOT, RUNNING, Execution, Key, RunState
from libs.workflow.variables import fits

__all__ = [
    "Abandon",
    "Begin",
    "CheckForms",
    "CheckTime",
    "Command",
    "CompleteAttempt",
    "Due",
    "Rejection",
    "StartAttempt",
    "Stop",
    "apply",
    "copying",
    "decide",
    "derived",
    "due",
    "evolve",
    "new_state",
    "next_timer_us",
]


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
    said: str | None = None


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
        case Stop(command_offset, reason, by, said):
            if state.ended or state.stop_reason is not None:
                return Rejection(f"run {state.run_id} is {'stopping' if not state.ended else state.status}")
            return StopRequested(command_offset=command_offset, reason=reason, by=by, said=said)
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
    return fact_of(state, key, execution, command.outcome, command.now_us, pinned=command.pinned)


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
        return fact_of(state, key, state.executions[key], fact, state.at_us)
    for key in state.answered:
        return fact_of(state, key, state.executions[key], forms.outcome(state.forms[key]), state.at_us)
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
        answer=state.outputs.get("answer") if _conversation_of(state) is not None else None,
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


def _conversation_of(state: RunState) -> str | None:
    """Whose message the run answers; None: it answers none."""
    accepted = state.accepted
    return accepted.conversation_id if accepted is not None and accepted.mode == "advanced-chat" else None


def _left_to_the_conversation(state: RunState) -> dict[str, Any]:
    conversation_id = _conversation_of(state)
    if conversation_id is None:
        return {}
    written = (
        (one, state.pool.get(one.selector)) for one in state.definition.conversation if one.name in state.written
    )
    updates = [
        VariableUpdate(selector=one.selector, value=segment.value, value_type=one.type, id=one.id)
        for one, segment in written
        if segment is not None and fits(segment.value, one.type)  # an assigner of version 1 may write anything
    ]
    return {"conversation_id": conversation_id, "updates": tuple(updates) or None}


def _outputs_when_stopped(state: RunState) -> Values:
    """With the text that was shown, which no node may have finished; it goes on from what finished ones have said."""
    finished = state.outputs.get("answer", "")
    if (
        state.said
        and _conversation_of(state) is not None
        and isinstance(finished, str)
        and state.said.startswith(finished)
    ):
        return state.outputs | {"answer": state.said}
    return state.outputs


def _end(state: RunState) -> RunEvent:
    totals = _totals(state)
    if state.stop_reason is not None:
        return RunStopped(error=state.stop_reason, **totals | {"outputs": _outputs_when_stopped(state)})
    if state.error is not None:
        code = "limit_exceeded" if state.limit else "node_failed"
        return RunFailed(error=state.error, code=code, node_id=state.failed_node, **totals)
    if state.exceptions_count:
        return RunPartiallySucceeded(**totals)
    return RunSucceeded(**totals)
