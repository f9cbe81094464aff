"""Why a run, or one of its nodes, is where it is: one sentence, from the run's own events.

Says what is waited for, by whom something was decided, and where in the history it stands. Pure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from libs.events.codec import Recorded, rfc3339
from libs.events.model import (
    FormOpened,
    LimitExceeded,
    NodeExcepted,
    NodeFailed,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    PauseRequested,
    RunFailed,
    RunPaused,
    StopRequested,
)
from libs.gist import gist
from libs.workflow.definition import Definition, Node, NodeKind
from libs.workflow.fork import cause
from libs.workflow.machine import copying
from libs.workflow.modes import find_node, part_of
from libs.workflow.state import ROOT, Execution, Key, RunState, rounds_of
from services.api.folds import accepted_in, fold
from services.api.frames import Json

__all__ = ["why", "why_set_aside"]

_MANY = 3
"""Things that a sentence names before it only counts them."""


def why(definition: Definition, history: list[Recorded], node: str | None) -> Json:
    """`{id, status, node_id, why}`. `node`: an id or a title. Raises PartInvalid when there is no such node."""
    state = fold(definition, history)
    said = _Why(state.definition, history, state)
    only = accepted_in(history).only
    node_id = None
    if node is None:
        sentence = said.run()
    else:
        node_id = find_node(definition, node)
        inside = only is None or node_id in part_of(definition, only).nodes
        sentence = said.node(node_id) if inside else f"Only {said.named(str(only))} runs in this run."
    return {"id": state.run_id, "status": state.status, "node_id": node_id, "why": sentence}


def why_set_aside(row: Mapping[str, Any], *, admin: bool) -> Json:
    """As `why`, for a run that executors leave alone; its row says the reason, which names places of the deployment."""
    sentence = "It is set aside, since no executor can go on from its history; it can be stopped."
    if admin:
        sentence = (
            f"It is set aside: {_clause(row['set_aside'])}. Nothing of it runs until it is released "
            f"(flowledger quarantine release {row['id']}); it can be stopped."
        )
    return {"id": row["id"], "status": row["status"], "node_id": None, "why": sentence}


class _Why:
    def __init__(self, definition: Definition, history: list[Recorded], state: RunState) -> None:
        self._definition = definition
        self._history = history
        self._state = state

    def named(self, node_id: str, path: str = ROOT) -> str:
        node = self._definition.nodes.get(node_id)
        name = f'node "{node.title}" ({node_id})' if node and node.title not in ("", node_id) else f'node "{node_id}"'
        rounds = [f"round {each.index + 1} of {self.named(each.node_id)}" for each in reversed(rounds_of(path))]
        return " in ".join([name, *rounds])

    # --- the run ---

    def run(self) -> str:
        state = self._state
        if state.ended:
            return self._ended()
        if state.stop_reason is not None:
            return f"It is being stopped{self._by(StopRequested)}: {_clause(state.stop_reason)}."
        if state.status == "pending":
            since = _instant(state.accepted_us)
            return f"It waits since {since} to be admitted: no executor has taken it up yet."
        if state.status == "paused":
            return self._paused()
        if copying(state):
            origin = state.accepted.forked_from if state.accepted else None
            return (
                f"It repeats what it shares with run {origin.run_id if origin else 'another'}: "
                f"{len(state.prefix)} events are left."
            )
        waits = [*self._forms(), *(self._under_way(each) for each in state.running() if self._is_attempt(each))]
        waits += [f"a free slot for {self.named(key.node_id, key.path)}" for key in state.ready]
        if state.pause_reason is not None:
            until = f" It still waits for {_listed(waits)}." if waits else ""
            return f"It is to pause{self._by(PauseRequested)}: {_clause(state.pause_reason)}.{until}"
        if not waits:
            return "Nothing of it is under way: it goes on as soon as an executor owns its partition."
        return f"It waits for {_listed(waits)}."

    def _ended(self) -> str:
        state, seq = self._state, self._history[-1].seq
        match state.status:
            case "stopped":
                return f"It was stopped{self._by(StopRequested)}: {_clause(state.stop_reason or '')}."
            case "failed":
                return self._failed(seq)
            case "partial-succeeded":
                excepted = [
                    f"{self.named(each.event.node_id, each.event.path)} ({_clause(each.event.error)})"
                    for each in self._all(NodeExcepted)
                ]
                several = "exceptions were" if len(excepted) > 1 else "an exception was"
                told = _listed(excepted) if excepted else "items of an iteration that failed"
                return f"It succeeded in part, because {several} handled: {told}."
        annotation = state.accepted.annotation if state.accepted is not None else None
        if annotation is not None:
            question = f'"{annotation.question[:100]}" ({annotation.id}, score {annotation.score:.2f})'
            return f"It succeeded at event {seq}: the annotation for {question} answered the message, so no node runs."
        skipped = sum(1 for _ in self._all(NodeSkipped))
        ran = len({(each.event.path, each.event.node_id) for each in self._all(NodeStarted)})
        past = f", {skipped} skipped" if skipped else ""
        return f"It succeeded at event {seq}: all that could be reached is done ({ran} nodes run{past})."

    def _failed(self, seq: int) -> str:
        end = self._history[-1].event
        assert isinstance(end, RunFailed)
        for limit in self._all(LimitExceeded):
            return f"It failed at event {limit.seq}, over its limit: {_clause(limit.event.message)}."
        events: list[Any] = [each.event for each in self._history]
        for number, event in enumerate(events):
            if isinstance(event, NodeFailed) and event.path == ROOT:
                first = cause(self._definition, events, number)
                failed = events[first]
                tried = f", attempt {failed.attempt}" if failed.attempt > 1 else ""
                return (
                    f"It failed because {self.named(failed.node_id, failed.path)} failed at event {first + 1}{tried}: "
                    f"{_clause(failed.error)}."
                )
        return f"It failed at event {seq} ({end.code}): {_clause(end.error or '')}."

    def _paused(self) -> str:
        state = self._state
        since = next((each for each in reversed(self._history) if isinstance(each.event, RunPaused)), None)
        when = f" since {_instant(since.at_us)}" if since else ""
        if state.pause_reason is not None:
            return (
                f"It is paused{when}{self._by(PauseRequested)}: {_clause(state.pause_reason)}. "
                f"It goes on when it is resumed."
            )
        return f"It waits{when} for {_listed(self._forms())}."

    def _forms(self) -> list[str]:
        return [
            f"a person to answer {self.named(form.node_id, form.path)}, whose form expires at {_instant(form.due_us)}"
            for form in self._state.forms.values()
            if form.action is None
        ]

    def _is_attempt(self, execution: Execution) -> bool:
        return execution.key not in self._state.containers and execution.key not in self._state.forms

    def _under_way(self, execution: Execution) -> str:
        name = self.named(execution.node_id, execution.path)
        if execution.status == "retry":
            attempt = self._of_most(execution.attempt + 1, execution)
            error = _clause(execution.error or "")
            return f"{_instant(execution.due_us)}, to try {name} again (attempt {attempt}, after: {error})"
        tried = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
        return f"{name}{tried}, under way since {_instant(execution.attempt_started_us)}"

    def _of_most(self, attempt: int, execution: Execution) -> str:
        retry = self._definition.nodes[execution.node_id].retry
        return f"{attempt} of {retry.max_retries + 1}" if retry is not None else str(attempt)

    def _by(self, kind: type[Any]) -> str:
        asked = next((each.event for each in reversed(self._history) if isinstance(each.event, kind)), None)
        return f" by {asked.by}" if asked is not None and asked.by else ""

    # --- a node ---

    def node(self, node_id: str) -> str:
        mine = [each for each in self._history if getattr(each.event, "node_id", None) == node_id]
        starts = {each.event.path: each for each in mine if isinstance(each.event, NodeStarted)}
        last = [each for each in mine if isinstance(each.event, _TOLD)]
        if len(starts) > 1:
            return self._rounds(node_id, last, len(starts))
        if starts or last:
            return self._told(last[-1])
        return self._not_begun(self._definition.nodes[node_id])

    def _rounds(self, node_id: str, told: list[Recorded], count: int) -> str:
        newest = {each.event.path: each for each in told}  # type: ignore[union-attr]  # node events
        states = Counter(_STATES[type(each.event)] for each in newest.values())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        telling = [each for each in newest.values() if not isinstance(each.event, NodeSucceeded)]
        last = f" {_capital(self._told(telling[-1]))}" if telling else ""
        return f"{_capital(self.named(node_id))} ran {count} times: {counts}.{last}"

    def _told(self, recorded: Recorded) -> str:
        event: Any = recorded.event
        name, place = _capital(self.named(event.node_id, event.path)), f"at event {recorded.seq}"
        execution = self._state.executions.get(Key(event.path, event.node_id))
        match event:
            case NodeSkipped():
                return f"{name} was skipped {place}, {self._skipped(event)}."
            case NodeSucceeded():
                return f"{name} succeeded {place}{self._how(recorded, event)}."
            case NodeExcepted():
                way = "its fail branch" if event.strategy == "fail-branch" else "its default value"
                return f"{name} failed {place}, and {way} handled that: {_clause(event.error)}."
            case NodeFailed():
                tried = f" with attempt {event.attempt}" if event.attempt > 1 else ""
                whose = "the run" if event.path == ROOT else "its round"
                return f"{name} failed {place}{tried}, and so did {whose}: {_clause(event.error)}."
            case NodeStopped():
                return f"{name} was cancelled {place}: {_clause(event.reason)}."
            case NodeRetryScheduled() if execution is not None:
                return f"{name} failed {place} and waits for {self._under_way(execution)}."
            case FormOpened() if (event.path, event.node_id) in self._state.forms:
                return f"{name} waits for a person since {_instant(recorded.at_us)}; its form expires at " + (
                    f"{_instant(event.due_us)}."
                )
        if execution is not None and execution.key in self._state.containers:
            inner = self._state.containers[execution.key]
            return f"{name} is open: {inner.started} rounds have begun, {len(inner.running)} of them are under way."
        since = execution.attempt_started_us if execution is not None else recorded.at_us
        return f"{name} is under way since {_instant(since)}, attempt {getattr(event, 'attempt', 1)}."

    def _skipped(self, event: NodeSkipped) -> str:
        if event.by is None:
            return "because the run began at another entry of the workflow"
        by = self.named(event.by, event.path)
        direct = any(edge.source == event.by for edge in self._definition.nodes[event.node_id].incoming)
        leads = "does not lead to it" if direct else "leads past it"
        if event.handle == "fail-branch":
            return f"because {by} failed and took its fail branch, which {leads}"
        if event.handle in (None, "source"):
            return f"because {by} succeeded, and its fail branch alone would have led to it"
        return f'because {by} took the branch "{event.handle}", which {leads}'

    def _how(self, recorded: Recorded, event: NodeSucceeded) -> str:
        facts = [f" with attempt {event.attempt}"] if event.attempt > 1 else []
        if event.handle not in (None, "source"):
            facts.append(f', took the branch "{event.handle}"')
        if event.pinned:
            facts.append(", its answer was pinned")
        if recorded.cause == "copied":
            origin = accepted_in(self._history).forked_from
            facts.append(f", copied from run {origin.run_id if origin else '?'}: it was not run again")
        edited = (event.metadata or {}).get("edited")
        if isinstance(edited, list):
            facts.append(f", with another {' and '.join(map(str, edited))}")
        return "".join(facts)

    def _not_begun(self, node: Node) -> str:
        name, state = _capital(self.named(node.id)), self._state
        if node.kind is NodeKind.MARKER:
            return f"{name} marks where a body begins; it never runs."
        if node.container is not None and not any(
            each.event.node_id == node.container for each in self._all(NodeStarted)
        ):
            return f"{name} runs in rounds of {self.named(node.container)}, which has not begun."
        if state.ended:
            return f"{name} did not run: the run ended before it was its turn. {self._ended()}"
        open_edges = [edge for edge in node.incoming if state.edge_taken(ROOT, edge.index) is None]
        if node.container is not None or not open_edges:
            return f"{name} has not begun: nothing that is done leads to it yet."
        waits = dict.fromkeys(self.named(edge.source) for edge in open_edges)
        return f"{name} has not begun: it waits for {_listed(list(waits))}."

    def _all(self, kind: type[Any]) -> Iterable[Any]:
        return (each for each in self._history if isinstance(each.event, kind))


_STATES: dict[type[Any], str] = {
    NodeStarted: "under way",
    NodeSucceeded: "succeeded",
    NodeFailed: "failed",
    NodeExcepted: "failed and handled",
    NodeRetryScheduled: "waiting for a retry",
    NodeStopped: "cancelled",
    NodeSkipped: "skipped",
    FormOpened: "waiting for a person",
}
_TOLD = tuple(_STATES)


def _listed(things: list[str]) -> str:
    shown = things[:_MANY]
    if len(things) > len(shown):
        shown.append(f"{len(things) - len(shown)} more")
    return shown[0] if len(shown) == 1 else f"{'; '.join(shown[:-1])}; and {shown[-1]}"


def _clause(text: str) -> str:
    """A message inside a sentence: the line that says what happened, without the end of one."""
    return gist(text, 300).rstrip(". ") or "no reason was given"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _instant(at_us: int) -> str:
    return rfc3339(at_us)
