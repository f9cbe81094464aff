"""Runs a definition through the machine alone: no log, no loop, no clock. For unit and property tests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from libs.events.commands import Caller
from libs.events.model import FormExpired, FormSubmitted, PauseRequested, ResumeRequested, RunAccepted, RunEvent
from libs.workflow.definition import Definition, compile_document
from libs.workflow.machine import (
    Begin,
    CompleteAttempt,
    Rejection,
    StartAttempt,
    apply,
    decide,
    derived,
    due,
    new_state,
    next_timer_us,
)
from libs.workflow.outcome import Asked, Outcome, Succeeded
from libs.workflow.state import Form, Key, RunState
from tests.simulation.inline import inline_handlers

RUN_ID = "01900000-0000-7000-8000-000000000001"
HANDLERS = inline_handlers()

Answer = Callable[[Key, int], Outcome]


Person = Callable[[Form], str | None]
"""The action that a person chooses for a form; None: nobody answers."""


def done(key: Key, attempt: int) -> Outcome:
    """The answer of a node that just works."""
    return Succeeded(outputs={"result": f"{key.node_id} done"})


class Driver:
    """Decides, folds and remembers. `events` is the run's history so far."""

    def __init__(
        self,
        document: str | Definition,
        *,
        max_steps: int = 100_000,
        max_time_s: float = 0,
        accepted: dict[str, Any] | None = None,
        **inputs: str,
    ) -> None:
        """`accepted`: more fields of the run's first event."""
        self.definition = compile_document(document) if isinstance(document, str) else document
        self.state: RunState = new_state(self.definition, RUN_ID)
        self.events: list[RunEvent] = []
        self.now_us = 1_800_000_000_000_000
        self.epoch = 1
        self.limits = Begin(max_steps, max_time_s)
        self.fold(
            RunAccepted(
                command_offset=0,
                task_id="task",
                app_id="app",
                workflow_id="workflow",
                version="1",
                digest=self.definition.digest,
                mode=self.definition.mode,
                caller=Caller(id="caller", user="somebody"),
                **{"inputs": dict(inputs)} | (accepted or {}),
            )
        )

    def fold(self, event: RunEvent | Rejection) -> None:
        assert not isinstance(event, Rejection), event.reason
        self.now_us += 1000
        apply(self.state, event, self.now_us, self.epoch)
        self.events.append(event)

    def begin(self) -> "Driver":
        self.fold(decide(self.state, self.limits))
        return self

    def derive(self) -> None:
        while (event := derived(self.state)) is not None:
            self.fold(event)

    def start_due(self) -> list[Key]:
        """Start all that is due; inline nodes are completed at once. Returns the attempts that are under way."""
        while True:
            self.derive()
            items = list(due(self.state, self.epoch, self.now_us))
            if not items:
                running = (each.key for each in self.state.running() if each.status == "running")
                return [key for key in running if key not in self.state.containers]
            for item in items:
                if derived(self.state) is not None:
                    break
                self.fold(decide(self.state, StartAttempt(item.key, self.epoch, self.now_us)))
                node = self.definition.nodes[item.key.node_id]
                handler = HANDLERS.get(node.type)
                if handler is not None:
                    outcome = handler.evaluate(node, self.state.frames[item.key.path].pool)
                    assert outcome is not None
                    self.complete(item.key, outcome)

    def open_forms(self) -> list[Key]:
        return [key for key, form in self.state.forms.items() if form.action is None]

    def submit(self, node_id: str, action: str, path: str = "", **inputs: str) -> None:
        form = self.state.forms[Key(path, node_id)]
        self.fold(
            FormSubmitted(
                node_id=node_id, path=path, form_id=form.form_id, command_offset=1, action=action, inputs=dict(inputs)
            )
        )

    def expire(self, key: Key) -> None:
        form = self.state.forms[key]
        self.fold(FormExpired(node_id=key.node_id, path=key.path, form_id=form.form_id))

    def pause(self) -> None:
        self.fold(PauseRequested(command_offset=1, reason="maintenance"))

    def resume(self) -> None:
        self.fold(ResumeRequested(command_offset=1))

    def complete(self, key: Key, outcome: Outcome) -> None:
        if isinstance(outcome, Asked):
            outcome = replace(outcome, token=f"token of {key.node_id}")
        execution = self.state.executions[key]
        command = CompleteAttempt(key, execution.attempt, execution.epoch, outcome, self.now_us)
        self.fold(decide(self.state, command))

    def run(
        self,
        answer: Answer = done,
        choose: Callable[[list[Key]], Key] = lambda keys: keys[0],
        person: Person | None = None,
        meddle: Callable[["Driver"], None] = lambda _: None,
    ) -> RunState:
        """To the end, or until the run waits for a `person` that is not there.

        `choose` says which of the running nodes and open forms is done next; `meddle` may do something before that.
        """
        if self.state.status == "pending":
            self.begin()
        while True:
            meddle(self)
            running = self.start_due()
            if self.state.ended:
                return self.state
            asking = self.open_forms() if person is not None else []
            if running or asking:
                key = choose([*running, *asking])
                if key in running:
                    self.complete(key, answer(key, self.state.executions[key].attempt))
                elif (action := person(self.state.forms[key])) is None:  # type: ignore[misc]  # there is a person
                    self.expire(key)
                else:
                    self.submit(key.node_id, action, key.path, result=f"{action} at {key.path}")
                continue
            if self.state.pause_reason is not None:
                self.resume()
                continue
            if self.state.status == "paused" and person is None:
                return self.state
            timer = next_timer_us(self.state)
            assert timer is not None, f"the run hangs: {self.state}"
            self.now_us = max(self.now_us, timer)

    def names(self) -> list[str]:
        """`NodeStarted(a)`-like words of the history, for assertions."""
        words = []
        for event in self.events:
            node_id = getattr(event, "node_id", None)
            words.append(f"{type(event).__name__}({node_id})" if node_id else type(event).__name__)
        return words
