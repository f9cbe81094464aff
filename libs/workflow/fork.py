"""A new run that begins as another one did: the events up to some place, with other values where somebody wants them.

The beginning is copied, as events, into the start of the new run; its owner records them one by one before anything
else happens (`libs.workflow.machine.derived`). So the new run's history says all of it by itself: nothing needs the
first run again, and every reader, stream and table works as for any run. Pure.

Copied is what happened to nodes and rounds. Not copied: what somebody wished for the first run (stops, pauses), its
limits, its forms, and attempts whose outcome it did not have yet: those begin anew, with keys of their own, and a form
that was open is asked anew under an address of its own.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from libs.events.codec import encode_body
from libs.events.model import (
    RUN_END_TYPES,
    LimitExceeded,
    NodeExcepted,
    NodeFailed,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeSucceeded,
    RoundFinished,
    RoundStarted,
    RunAccepted,
    RunEvent,
    RunFailed,
    RunStarted,
)
from libs.events.sealed_values import read_sealed
from libs.events.slots import is_sealed
from libs.workflow.definition import Definition, Node, NodeKind
from libs.workflow.machine import apply, derived, new_state
from libs.workflow.modes import graph_of
from libs.workflow.pool import Pool, TypeMismatch, infer
from libs.workflow.problems import WorkflowError, did_you_mean
from libs.workflow.segments import NUMBER_TYPES
from libs.workflow.state import ROOT, Key, RunState, round_path, rounds_of

__all__ = ["Fork", "ForkInvalid", "RetryPoint", "cause", "fork", "retry_point"]

Copied = (
    NodeStarted
    | NodeSucceeded
    | NodeRetryScheduled
    | NodeFailed
    | NodeExcepted
    | NodeSkipped
    | RoundStarted
    | RoundFinished
)
_NO_LIMIT = 2**62
_ENDS = NodeSucceeded | NodeFailed | NodeExcepted
_OUTCOMES = _ENDS | NodeRetryScheduled


class ForkInvalid(WorkflowError):
    """There can be no such fork. `code`: `invalid_param`, or `run_not_failed` and `nothing_to_retry` of a retry."""

    def __init__(self, message: str, code: str = "invalid_param") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Fork:
    """How the new run begins."""

    at: int
    accepted: RunAccepted
    """Of the first run, with the values that were edited."""
    started: RunStarted
    """Of the first run as the log has it, with edited conversation variables."""
    prefix: list[JsonValue]
    """The copied events, as their bodies in the log."""
    again: tuple[str, ...]
    """Nodes that ran in the first run and are not copied, in the order in which they began there.

    They run again, unless a branch decides otherwise: by edited values, or by what a node gives this time.
    """
    first: tuple[str, ...]
    """Nodes that begin at once."""
    tokens: int
    """Counted by the copied events."""


@dataclass(frozen=True, slots=True)
class RetryPoint:
    at: int
    without: frozenset[int] = frozenset()
    """Indices of events before it that are not copied: what failed begins anew with its first attempt."""


def fork(
    definition: Definition,
    history: Sequence[RunEvent],
    at: int,
    edits: Mapping[str, JsonValue] | None = None,
    without: Collection[int] = (),
) -> Fork:
    """The fork behind event `at` of `history` (from the run's first event on). Raises ForkInvalid.

    `edits`: `node.name` -> another value of the same type. `without`: as `RetryPoint` has it.
    Sealed values of `history` are copied as they stand; they are judged by what they show.
    """
    as_logged, history = history, [read_sealed(event, None) for event in history]
    accepted = history[0]
    assert isinstance(accepted, RunAccepted)  # sequence 1 is nothing else
    definition = graph_of(definition, accepted)
    _check_place(history, at)
    numbers = _copied(definition, history[:at], without)
    copied = _numbered([history[number] for number in numbers])
    copies = _numbered([as_logged[number] for number in numbers])
    started, sealed = (
        next((event for event in events if isinstance(event, RunStarted)), RunStarted(max_steps=_NO_LIMIT))
        for events in (history, as_logged)
    )
    before = _fold(definition, accepted, started, copied)
    if before.error is not None:
        failed = next(n for n, event in enumerate(history, 1) if isinstance(event, NodeFailed) and event.path == ROOT)
        raise ForkInvalid(
            f"at: by event {at} the run has failed, so nothing would follow. "
            f"Fork before event {failed}, or retry the run"
        )
    if edits:
        edited = _Edited(definition, accepted, (started, sealed), copied, copies, before.pool, at)
        edited.take(edits)
        accepted, copied, copies = edited.accepted, edited.copied, edited.as_logged
        started, sealed = edited.started
        before = _fold(definition, accepted, started, copied)
    kept = {Key(event.path, event.node_id) for event in copied if isinstance(event, NodeStarted)}
    begun = (event for event in history if isinstance(event, NodeStarted))
    again = dict.fromkeys(event.node_id for event in begun if Key(event.path, event.node_id) not in kept)
    while (event := derived(before)) is not None:
        apply(before, event, 0, 1)
    due = [*before.ready, *(each.key for each in before.running() if each.status == "retry")]
    first = dict.fromkeys(key.node_id for key in due)
    prefix = [json.loads(encode_body(event)) for event in copies]
    return Fork(at, accepted, sealed, prefix, tuple(again), tuple(first), before.total_tokens)


def retry_point(definition: Definition, history: Sequence[RunEvent]) -> RetryPoint:
    """Where to fork a failed run so that what made it fail is tried again. Raises ForkInvalid."""
    if not isinstance(history[-1], RunFailed):
        raise ForkInvalid(
            "the run has not failed, so there is nothing to retry. Fork it at some event", "run_not_failed"
        )
    for number, event in enumerate(history):
        if isinstance(event, LimitExceeded):
            return RetryPoint(number, frozenset(_dooming(definition, history[:number])))
        if isinstance(event, NodeFailed) and event.path == ROOT:
            number = cause(definition, history, number)
            failed, before = history[number], history[:number]
            assert isinstance(failed, NodeFailed)
            return RetryPoint(number, frozenset({*_all_of(definition, before, failed), *_dooming(definition, before)}))
    raise ForkInvalid("the run failed before any of its nodes did: start a new one", "nothing_to_retry")


def cause(definition: Definition, history: Sequence[RunEvent], number: int) -> int:
    """Index of the failure behind that of a container: of the node that failed in one of its rounds."""
    while True:
        failed = history[number]
        assert isinstance(failed, NodeFailed)
        node = definition.nodes[failed.node_id]
        if node.kind is not NodeKind.CONTAINER:
            return number
        path = next(
            (
                round_path(failed.path, node.type, node.id, event.index)
                for event in history[:number]
                if isinstance(event, RoundFinished)
                and (event.path, event.node_id) == (failed.path, failed.node_id)
                and event.error is not None
            ),
            None,
        )
        inner = (n for n, event in enumerate(history[:number]) if isinstance(event, NodeFailed) and event.path == path)
        found = next(inner, None) if path is not None else None
        if found is None:
            return number
        number = found


def _all_of(definition: Definition, history: Sequence[RunEvent], failed: NodeFailed) -> Iterator[int]:
    """Indices of the events of an execution, and of its rounds when it is a container."""
    path, node = failed.path, definition.nodes[failed.node_id]
    rounds = round_path(path, node.type, node.id, 0)[:-1] if node.kind is NodeKind.CONTAINER else None
    for number, event in enumerate(history):
        if isinstance(event, Copied) and (
            (event.path, event.node_id) == (path, node.id) or (rounds is not None and event.path.startswith(rounds))
        ):
            yield number


def _dooming(definition: Definition, history: Sequence[RunEvent]) -> Iterator[int]:
    """Indices of the events by which containers that are still open will fail, and the run with them."""
    ended = {event.node_id for event in history if isinstance(event, _ENDS) and event.path == ROOT}

    def doomed(path: str) -> bool:
        around = rounds_of(path)
        fatal = (_fails_with_a_round(definition.nodes[each.node_id]) for each in around)
        return bool(around) and around[0].node_id not in ended and all(fatal)

    for number, event in enumerate(history):
        if isinstance(event, NodeFailed) and doomed(event.path):
            if cause(definition, history, number) == number:
                yield from _all_of(definition, history, event)
            else:
                yield number
        elif isinstance(event, RoundFinished) and event.error is not None:
            node = definition.nodes[event.node_id]
            if doomed(round_path(event.path, node.type, node.id, event.index)):
                yield number


def _fails_with_a_round(node: Node) -> bool:
    return node.strategy is None and (node.type == "loop" or node.config.error_handle_mode == "terminated")


# --- what is copied --------------------------------------------------------------------------------------------------


def _check_place(history: Sequence[RunEvent], at: int) -> None:
    last = len(history)
    if 1 <= at <= last and type(history[at - 1]).__name__ in RUN_END_TYPES:
        raise ForkInvalid(f"at: event {at} is the run's end, nothing follows it. Fork at 1 to {last - 1}")
    if not 1 <= at <= last:
        ended = type(history[-1]).__name__ in RUN_END_TYPES
        raise ForkInvalid(f"at: the run has events 1 to {last}. Fork at 1 to {last - ended}")


def _copied(definition: Definition, history: Sequence[RunEvent], without: Collection[int]) -> list[int]:
    """Which events are copied, by their index."""
    copied: list[int] = []
    begun: dict[Key, int] = {}
    for number, event in enumerate(history):
        if not isinstance(event, Copied) or number in without:
            continue
        key = Key(event.path, event.node_id)
        if isinstance(event, NodeStarted):
            # A container that is open goes on with its next round; only attempts of handlers begin anew.
            if event.pinned or definition.nodes[event.node_id].kind is not NodeKind.CONTAINER:
                begun[key] = number
        elif isinstance(event, _OUTCOMES):
            begun.pop(key, None)
        copied.append(number)
    without_outcome = set(begun.values())
    return [number for number in copied if number not in without_outcome]


def _numbered(copied: list[RunEvent]) -> list[Copied]:
    """Starts in true order again, as some were left out."""
    numbers: dict[Key, int] = {}
    made: list[Copied] = []
    for event in copied:
        assert isinstance(event, Copied)  # chosen so
        if isinstance(event, NodeStarted):
            index = numbers.setdefault(Key(event.path, event.node_id), len(numbers) + 1)
            event = event.model_copy(update={"index": index})
        made.append(event)
    return made


def _fold(definition: Definition, accepted: RunAccepted, started: RunStarted, copied: Sequence[Copied]) -> RunState:
    state = new_state(definition, "")
    # `definition` is the run's own already; what is copied is given here.
    apply(state, accepted.model_copy(update={"only": None, "root": None, "prefix": None}), 0, 1)
    apply(state, started.model_copy(update={"max_steps": _NO_LIMIT}), 0, 1)
    for event in copied:
        apply(state, event, 0, 1)
    return state


# --- edited values ---------------------------------------------------------------------------------------------------


class _Edited:
    """Puts other values where the copied events, or the start, say the old ones."""

    def __init__(
        self,
        definition: Definition,
        accepted: RunAccepted,
        started: tuple[RunStarted, RunStarted],
        copied: list[Copied],
        as_logged: list[Copied],
        pool: Pool,
        at: int,
    ) -> None:
        """`started`: as readers see it, and as the log has it; so are `copied` and `as_logged`."""
        self.accepted = accepted
        self.started = started
        self.copied = list(copied)
        self.as_logged = list(as_logged)
        self._definition = definition
        self._pool = pool
        self._at = at

    def take(self, edits: Mapping[str, JsonValue]) -> None:
        """Raises ForkInvalid."""
        for text, value in edits.items():
            scope, _, name = text.partition(".")
            self._check(text, scope, name, value)
            if not self._edit(scope, name, value):
                raise ForkInvalid(f"set: {text} cannot be edited. {self._editable()}")

    def _check(self, text: str, scope: str, name: str, value: JsonValue) -> None:
        old = self._pool.get((scope, name)) if name else None
        if old is None:
            raise ForkInvalid(f'set: at event {self._at} there is no value "{text[:100]}". {self._editable(text)}')
        if old.type == "secret":
            raise ForkInvalid(f"set: {text} is secret: change it in the document, no secret belongs into a request")
        if is_sealed(value):  # it would be opened as one of ours
            raise ForkInvalid(f"set: {text}: a value of this form stands for a secret in the log. Give another one")
        try:
            new = infer(value)
        except TypeMismatch as error:
            raise ForkInvalid(f"set: {text}: {error}") from error
        alike = new.type == old.type or {new.type, old.type} <= NUMBER_TYPES
        lists = isinstance(value, list) and isinstance(old.value, list) and (not value or old.type == "array[any]")
        if not (alike or lists or old.type == "none"):
            raise ForkInvalid(f"set: {text}: expected a value of type {old.shown_type}, got {new.shown_type}")

    def _edit(self, scope: str, name: str, value: JsonValue) -> bool:
        """Change every place that says the value; False: there is none."""
        accepted, found = self.accepted, False
        if scope == self._definition.root and name in accepted.inputs:
            self.accepted = accepted.model_copy(update={"inputs": accepted.inputs | {name: value}})
            found = True
        elif (scope, name) == ("sys", "query") and isinstance(value, str):
            self.accepted = accepted.model_copy(update={"query": value})
            self._edit_outputs(self._definition.root, "sys.query", value)
            return True
        return self._edit_outputs(scope, name, value) or self._edit_update(scope, name, value) or found or (
            self._edit_given(scope, name, value)
        )  # fmt: skip

    def _edit_outputs(self, node_id: str, name: str, value: JsonValue) -> bool:
        for number in range(len(self.copied) - 1, -1, -1):
            event = self.copied[number]
            if not isinstance(event, NodeSucceeded | NodeExcepted) or (event.path, event.node_id) != (ROOT, node_id):
                continue
            if name not in (event.outputs or {}):
                return False
            for events in (self.copied, self.as_logged):
                events[number] = _with_output(events[number], event, name, value)
            return True
        return False

    def _edit_update(self, scope: str, name: str, value: JsonValue) -> bool:
        """The last write of an assigner."""
        for number in range(len(self.copied) - 1, -1, -1):
            event = self.copied[number]
            if not isinstance(event, NodeSucceeded) or (event.path != ROOT and scope != "conversation"):
                continue
            for place in range(len(event.updates) - 1, -1, -1):
                if event.updates[place].selector == (scope, name):
                    for events in (self.copied, self.as_logged):
                        events[number] = _with_update(events[number], place, value)
                    return True
        return False

    def _edit_given(self, scope: str, name: str, value: JsonValue) -> bool:
        """A value that was there from the beginning: the conversation's, the document's, or given with the start."""
        shown, sealed = self.started
        if scope == "conversation" and name in (shown.variables or {}):
            self.started = _with_variable(shown, shown, name, value), _with_variable(sealed, shown, name, value)
            return True
        given = self.accepted.variables or {}
        names = given.get(scope)
        if scope != "env" and not (isinstance(names, dict) and name in names):
            return False
        kept = names if isinstance(names, dict) else {}
        self.accepted = self.accepted.model_copy(update={"variables": given | {scope: kept | {name: [value]}}})
        return True

    def _editable(self, wanted: str = "") -> str:
        known = [f"{scope}.{name}" for scope in self._pool.layers[0] for name in self._pool.names(scope)]
        known = [each for each in known if not each.startswith("sys.") or each == "sys.query"]
        hint = did_you_mean(wanted, known) if wanted else ""
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        return hint or f"Values there: {shown or 'none'}"


def _with_output(event: Copied, shown: Copied, name: str, value: JsonValue) -> Copied:
    """`event` with another output; `shown`: the same event as readers see it, where outputs are sealed as a whole."""
    assert isinstance(event, NodeSucceeded | NodeExcepted)
    assert isinstance(shown, NodeSucceeded | NodeExcepted)
    outputs = shown.outputs if is_sealed(event.outputs) else event.outputs
    metadata = (shown.metadata if is_sealed(event.metadata) else event.metadata) or {}
    edited = metadata.get("edited")
    names = [*(edited if isinstance(edited, list) else []), name]
    return event.model_copy(
        update={"outputs": (outputs or {}) | {name: value}, "metadata": metadata | {"edited": names}}
    )


def _with_variable(event: RunStarted, shown: RunStarted, name: str, value: JsonValue) -> RunStarted:
    """As `_with_output`, for a variable of the conversation."""
    variables = shown.variables if is_sealed(event.variables) else event.variables
    return event.model_copy(update={"variables": (variables or {}) | {name: value}})


def _with_update(event: Copied, place: int, value: JsonValue) -> Copied:
    assert isinstance(event, NodeSucceeded)
    updates = list(event.updates)
    updates[place] = updates[place].model_copy(update={"value": value})
    return event.model_copy(update={"updates": tuple(updates)})
