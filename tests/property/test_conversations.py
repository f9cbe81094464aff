"""The marks of a conversation lead to what a reader of the whole log finds, whatever happens in which order.

The model folds every event of the conversation; the fold of the partition keeps marks only, and loses its memory to
checkpoints now and then.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from libs.events.commands import Caller, StartRun
from libs.events.ids import new_conversation_id, new_run_id
from libs.events.model import ConversationVariableSet, Event, RunAccepted, RunStarted, RunSucceeded, VariableUpdate
from libs.workflow.conversation import Conversation, Turn, opening, recall
from libs.workflow.definition import compile_document
from services.executor.partition import PartitionFold, Position
from tests.conversations import counting

AT_US = 1_800_000_000_000_000
TALK = new_conversation_id(0, AT_US, 1)
DEFINITION = compile_document(counting())

KINDS: dict[type[Event], str] = {
    RunAccepted: "accepted",
    RunStarted: "started",
    RunSucceeded: "ended",
    ConversationVariableSet: "edited",
}
STEP = st.one_of(
    st.tuples(st.just("say")),
    st.tuples(st.just("start"), st.integers(0, 5)),
    st.tuples(st.just("end"), st.integers(0, 5), st.booleans(), st.none() | st.integers(0, 99)),
    st.tuples(st.just("set"), st.integers(100, 199)),
    st.tuples(st.just("checkpoint")),
)


@dataclass
class Told:
    """A log of one conversation, its fold, and the model."""

    fold: PartitionFold = field(default_factory=lambda: PartitionFold(0))
    log: list[tuple[str, Event]] = field(default_factory=list)
    model: Conversation = field(default_factory=Conversation)
    found: dict[str, tuple[dict[str, Any], list[Turn]]] = field(default_factory=dict)
    """Run -> what the model held when it was accepted."""
    pending: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)

    def append(self, run_id: str, event: Event) -> None:
        before = Position(len(self.log), 1, len(self.log))
        self.log.append((run_id, event))
        if isinstance(event, RunAccepted | ConversationVariableSet):
            self.fold.apply(event, run_id, AT_US, before)
        else:
            self.fold.count(type(event).__name__, run_id, before)

    def say(self) -> None:
        number = len(self.found) + 1
        run_id = new_run_id(0, AT_US, number)
        command = StartRun(
            run_id=run_id, app_id="a", workflow_id="w", version="1", digest="d", mode="advanced-chat",
            query=f"q{number}", conversation_id=TALK, continues=number > 1 or None, not_after_us=2 * AT_US,
            caller=Caller(id="c", user="u"),
        )  # fmt: skip
        accepted = self.fold.decide(command, number, AT_US).event
        assert isinstance(accepted, RunAccepted)
        assert accepted.dialogue_count == number
        self.found[run_id] = (dict(self.model.variables), list(self.model.history))
        self.append(run_id, accepted)
        self.pending.append(run_id)

    def marked(self, run_id: str) -> Conversation:
        accepted = next(event for run, event in self.log if run == run_id and isinstance(event, RunAccepted))
        events = []
        for mark in accepted.earlier or ():
            for run, event in self.log[mark.offset :]:
                of = f"command:{event.command_offset}" if isinstance(event, ConversationVariableSet) else run
                if (KINDS[type(event)], of) == (mark.kind, mark.of):
                    events.append((run, event))
                    break
        assert len(events) == len(accepted.earlier or ())
        return recall(events)

    def start(self, index: int) -> None:
        if self.pending:
            run_id = self.pending.pop(index % len(self.pending))
            carried = opening(DEFINITION, TALK, self.marked(run_id))
            self.append(run_id, RunStarted(max_steps=1, **carried))
            self.running.append(run_id)

    def end(self, index: int, begun: bool, wrote: int | None) -> None:
        """A run ends; one that never began can be stopped as well."""
        runs = self.running if begun else self.pending
        if not runs:
            return
        run_id = runs.pop(index % len(runs))
        query = next(event.query for run, event in self.log if run == run_id and isinstance(event, RunAccepted))
        update = VariableUpdate(selector=("conversation", "count"), value=wrote, value_type="integer")
        answer = f"a{query}" if begun else ""
        ended = RunSucceeded(outputs={"answer": answer}, updates=(update,) if begun and wrote is not None else None)
        self.append(run_id, ended)
        if answer:
            self.model.history.append(Turn(query or "", answer))
        if ended.updates:
            self.model.variables["count"] = wrote

    def set(self, value: int) -> None:
        offset = 1000 + len(self.log)
        self.append("", ConversationVariableSet(
            command_offset=offset, conversation_id=TALK, name="count", value=value, value_type="number"
        ))  # fmt: skip
        self.model.variables["count"] = value

    def checkpoint(self) -> None:
        parts = from_json(to_json(self.fold.dump()))
        self.fold = PartitionFold(0)
        self.fold.load(parts)


OVERTAKING: list[tuple[Any, ...]] = [
    ("start", 0), ("say",), ("end", 0, True, 1), ("say",), ("start", 1), ("start", 0), ("checkpoint",),
]  # fmt: skip


@given(steps=st.lists(STEP, max_size=60))
@example(steps=OVERTAKING)
def test_marks_lead_to_what_the_whole_log_says(steps: list[tuple[Any, ...]]) -> None:
    told = Told()
    told.say()
    for name, *arguments in steps:
        getattr(told, name)(*arguments)
    told.say()
    for run_id, (variables, history) in told.found.items():
        marked = told.marked(run_id)
        assert marked.history == history
        assert marked.variables.get("count", 0) == variables.get("count", 0)
