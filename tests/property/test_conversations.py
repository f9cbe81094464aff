"""The marks of a conversation lead to what a reader of the whole log finds, whatever happens in which order.

The model folds every event of the conversation; the fold of the partition keeps marks only, and loses its memory to
checkpoints now and then. Messages are answered by versions that rename variables, swap their names, give them other
types and take them away, at the same time too: what is written is its own variable's, in the tables as well.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json
from sqlalchemy import create_engine

from libs.events.codec import Recorded
from libs.events.commands import Caller, StartRun
from libs.events.ids import new_conversation_id, new_run_id
from libs.events.model import ConversationVariableSet, Event, RunAccepted, RunStarted, RunSucceeded, VariableUpdate
from libs.tables import metadata, workflow_conversation_variables
from libs.workflow.conversation import Conversation, Turn, opening, recall
from libs.workflow.definition import Definition, compile_document
from libs.workflow.variables import Variable, VariableKey, variable_key
from services.api.talk_records import listed, variables
from services.executor.partition import PartitionFold, Position
from services.projector.talks import TalkChanges, project_talk
from services.projector.writer import TableWriter
from tests.conversations import speaking

AT_US = 1_800_000_000_000_000
TALK = new_conversation_id(0, AT_US, 1)


def version(*declared: tuple[str, str, str]) -> Definition:
    """(id, name, type) of its conversation variables. Nothing of its graph runs here."""
    empty: dict[str, Any] = {"number": 0, "integer": 0, "string": ""}
    made = [{"id": id_, "name": name, "value_type": kind, "value": empty[kind]} for id_, name, kind in declared]
    return compile_document(speaking(conversation_variables=made))


VERSIONS = [
    version(("1", "a", "number"), ("2", "b", "number")),
    version(("1", "b", "number"), ("2", "a", "number")),
    version(("1", "a", "string"), ("2", "b", "integer")),
    version(("1", "c", "number")),
    version(("3", "a", "number"), ("1", "d", "string")),
]

KINDS: dict[type[Event], str] = {
    RunAccepted: "accepted",
    RunStarted: "started",
    RunSucceeded: "ended",
    ConversationVariableSet: "edited",
}
WHICH = st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("say"), st.integers(0, len(VERSIONS) - 1)),
    st.tuples(st.just("start"), WHICH),
    st.tuples(st.just("end"), WHICH, st.booleans(), st.none() | st.tuples(WHICH, st.integers(0, 99))),
    st.tuples(st.just("set"), WHICH, WHICH, st.integers(100, 199)),
    st.tuples(st.just("checkpoint")),
)


@dataclass
class Told:
    """A log of one conversation, its fold, and the model."""

    fold: PartitionFold = field(default_factory=lambda: PartitionFold(0))
    log: list[tuple[str, Event]] = field(default_factory=list)
    written: dict[VariableKey, Any] = field(default_factory=dict)
    history: list[Turn] = field(default_factory=list)
    found: dict[str, tuple[dict[VariableKey, Any], list[Turn]]] = field(default_factory=dict)
    """Run -> what the model held when it was accepted."""
    versions: dict[str, Definition] = field(default_factory=dict)
    """Run -> the version that answers."""
    pending: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    begun: list[Definition] = field(default_factory=list)
    """Versions that have answered."""

    def append(self, run_id: str, event: Event) -> None:
        before = Position(len(self.log), 1, len(self.log))
        self.log.append((run_id, event))
        if isinstance(event, RunAccepted | ConversationVariableSet):
            self.fold.apply(event, run_id, AT_US, before)
        else:
            self.fold.count(type(event).__name__, run_id, before)

    def say(self, which: int = 0) -> None:
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
        self.found[run_id] = (dict(self.written), list(self.history))
        self.versions[run_id] = VERSIONS[which]
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
            carried = opening(self.versions[run_id], TALK, self.marked(run_id))
            self.append(run_id, RunStarted(max_steps=1, **carried))
            self.running.append(run_id)
            self.begun.append(self.versions[run_id])

    def end(self, index: int, begun: bool, wrote: tuple[int, int] | None) -> None:
        """A run ends; one that never began can be stopped as well."""
        runs = self.running if begun else self.pending
        if not runs:
            return
        run_id = runs.pop(index % len(runs))
        query = next(event.query for run, event in self.log if run == run_id and isinstance(event, RunAccepted))
        updates = None
        if begun and wrote is not None:
            variable, value = self._write(self.versions[run_id], *wrote)
            updates = (
                VariableUpdate(selector=variable.selector, value=value, value_type=variable.type, id=variable.id),
            )
        answer = f"a{query}" if begun else ""
        self.append(run_id, RunSucceeded(outputs={"answer": answer}, conversation_id=TALK, updates=updates))
        if answer:
            self.history.append(Turn(query or "", answer))

    def _write(self, definition: Definition, index: int, value: int) -> tuple[Variable, Any]:
        variable = definition.conversation[index % len(definition.conversation)]
        written = str(value) if variable.type == "string" else value
        self.written[variable_key(variable.id, variable.type)] = written
        return variable, written

    def set(self, which: int, index: int, value: int) -> None:
        if not self.begun:
            return
        variable, written = self._write(self.begun[which % len(self.begun)], index, value)
        self.append("", ConversationVariableSet(
            command_offset=1000 + len(self.log), conversation_id=TALK, name=variable.name, value=written,
            value_type=variable.type, id=variable.id,
        ))  # fmt: skip

    def checkpoint(self) -> None:
        parts = from_json(to_json(self.fold.dump()))
        self.fold = PartitionFold(0)
        self.fold.load(parts)

    def rows(self) -> Any:
        """What the tables say."""
        changes = TalkChanges()
        for offset, (run_id, event) in enumerate(self.log):
            project_talk(changes, Recorded(event, run_id, 0, 1, offset, AT_US, "", 0, offset))
        engine = create_engine("sqlite://")
        with engine.begin() as connection:
            metadata.create_all(connection, tables=[workflow_conversation_variables])
            TableWriter(workflow_conversation_variables).write(connection, list(changes.variables.values()))
            return variables(connection, TALK)


OVERTAKING: list[tuple[Any, ...]] = [
    ("start", 0), ("say",), ("end", 0, True, (0, 1)), ("say",), ("start", 1), ("start", 0), ("checkpoint",),
]  # fmt: skip
SWAPPED_MEANWHILE: list[tuple[Any, ...]] = [
    ("start", 0), ("say", 1), ("start", 0), ("end", 0, True, (0, 1)), ("end", 0, True, (1, 2)),
]  # fmt: skip


@given(steps=st.lists(STEP, max_size=60))
@example(steps=OVERTAKING)
@example(steps=SWAPPED_MEANWHILE)
def test_marks_lead_to_what_the_whole_log_says(steps: list[tuple[Any, ...]]) -> None:
    told = Told()
    told.say()
    for name, *arguments in steps:
        getattr(told, name)(*arguments)
    told.say()
    for run_id, (written, history) in told.found.items():
        marked = told.marked(run_id)
        assert marked.history == history
        assert {key: marked.variables[key].value for key in written} == written
    told.start(len(told.pending) - 1)
    rows = told.rows()
    in_tables = {(row["id"], row["family"]): from_json(row["value"] or row["initial"]) for row in rows}
    assert {key: in_tables[key] for key in told.written} == told.written
    shown = {row["name"]: row["id"] for row in listed(rows)}
    assert len(set(shown.values())) == len(shown)
    assert {"a": "1", "b": "2"}.items() <= shown.items()
