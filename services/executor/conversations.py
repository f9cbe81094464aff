"""Conversations in the fold of a partition: where the events stand that make up what the next message finds.

Pure. Values are not kept, only marks of the few events that hold them (`libs.workflow.conversation.recall` folds
those): the newest `RunStarted`, which repeats what was before it, the runs that have ended since its run was accepted,
and what was set from outside since then. A conversation in which nothing has happened for a day is forgotten; who
continues it tells its state from the tables, and which change from outside is the last one in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import JsonValue
from pydantic_core import from_json, to_json

from libs.events.commands import StartRun
from libs.events.model import ConversationDeleted, ConversationEvent, ConversationVariableSet, Mark, RunAccepted
from libs.events.positions import Position
from libs.workflow.variables import variable_key

MOST_MARKED = 1_000
"""Unrepeated events of one conversation; beyond them the oldest are left out. Messages in order never come near."""


Place = tuple[int, int, int]
"""As `libs.events.positions.Position`."""


class Unit(NamedTuple):
    """What happened since the base: a run that ended, or a variable that was set."""

    kind: Literal["ended", "edited"]
    of: str
    """The run, or the cause of the record."""
    order: int
    """Place in the order of what happened in this conversation, as are those of the base."""
    at: Place
    accepted: Place | None
    """Of a run: where its `RunAccepted` stands."""
    variable: str = ""
    """The one that was set."""


@dataclass(slots=True)
class Talk:
    """One conversation."""

    app_id: str
    caller_id: str
    count: int = 0
    """Messages accepted."""
    order: int = 0
    """Things that happened, to tell which was first."""
    base: tuple[str, str, Place] | None = None
    """Kind, run and place of the event that repeats what was before it."""
    base_order: int = 0
    """Everything that had happened by then is in the base."""
    units: list[Unit] = field(default_factory=list)
    open: dict[str, tuple[int, Place]] = field(default_factory=dict)
    """Runs that have not ended: when and where they were accepted."""
    used_us: int = 0
    complete: bool = True
    """Whether its state follows from what is marked; else somebody must tell it."""
    changed_by: int | None = None
    """Offset of the last command that set a variable."""
    gone: bool = False

    def marks(self) -> tuple[Mark, ...]:
        """What `RunAccepted.earlier` says now."""
        found = [_mark(*self.base)] if self.base is not None else []
        for unit in self.units:
            if unit.accepted is not None:
                found.append(_mark("accepted", unit.of, unit.accepted))
            found.append(_mark(unit.kind, unit.of, unit.at))
        return tuple(found)


def _mark(kind: Any, of: str, place: Place) -> Mark:
    return Mark(offset=place[0], epoch=place[1], n=place[2], kind=kind, of=of)


class Conversations:
    """By id; see the module docstring."""

    def __init__(self) -> None:
        self._talks: dict[str, Talk] = {}

    def deleted(self, conversation_id: str) -> bool:
        talk = self._talks.get(conversation_id)
        return talk is not None and talk.gone

    # --- deciding ---

    def of_start(self, command: StartRun) -> dict[str, Any] | str:
        """What `RunAccepted` says of the conversation, or the code with which the start is refused."""
        if command.mode != "advanced-chat" or command.conversation_id is None:
            return {}
        talk = self._talks.get(command.conversation_id)
        if talk is not None and (talk.gone or not _belongs(talk, command)):
            return "conversation_not_found"
        if talk is not None and talk.complete:
            return {"dialogue_count": talk.count + 1, "earlier": talk.marks() or None}
        if not command.continues:
            return {"dialogue_count": 1}
        if command.conversation is None or (talk is not None and command.conversation_as_of != talk.changed_by):
            return "conversation_unknown"
        count = command.conversation.get("count")
        return {
            "dialogue_count": (count if isinstance(count, int) else 0) + 1,
            "conversation": command.conversation,
        }

    # --- folding ---

    def accepted(self, run_id: str, event: RunAccepted, at_us: int, before: Position) -> None:
        assert event.conversation_id is not None
        talk = self._talks.get(event.conversation_id)
        if talk is None or not talk.complete:
            talk = self._talks[event.conversation_id] = Talk(event.app_id, event.caller.id)
        talk.count = event.dialogue_count or talk.count + 1
        talk.order += 1
        talk.used_us = at_us
        talk.open[run_id] = (talk.order, before)
        if event.conversation is not None:
            talk.base, talk.base_order = ("accepted", run_id, before), talk.order

    def started(self, conversation_id: str, run_id: str, before: Position) -> None:
        """The run's `RunStarted` repeats what was there when the run was accepted."""
        talk = self._talks.get(conversation_id)
        if talk is None or run_id not in talk.open:
            return
        order, _ = talk.open[run_id]
        if order >= talk.base_order:
            talk.base, talk.base_order = ("started", run_id, before), order
            talk.units = [unit for unit in talk.units if unit.order > order]

    def ended(self, conversation_id: str, run_id: str, at_us: int, before: Position) -> None:
        talk = self._talks.get(conversation_id)
        if talk is None or run_id not in talk.open:
            return
        _, accepted = talk.open.pop(run_id)
        self._happened(talk, Unit("ended", run_id, talk.order + 1, before, accepted), at_us)

    def changed(self, event: ConversationEvent, at_us: int, before: Position) -> None:
        talk = self._talks.get(event.conversation_id)
        if isinstance(event, ConversationDeleted):
            if talk is None:
                talk = self._talks[event.conversation_id] = Talk("", "")
            talk.gone, talk.used_us = True, at_us
        elif isinstance(event, ConversationVariableSet):
            if talk is None:
                talk = self._talks[event.conversation_id] = Talk("", "", complete=False)
            talk.changed_by = event.command_offset
            variable = event.name if event.id is None else ":".join(variable_key(event.id, event.value_type))
            talk.units = [unit for unit in talk.units if unit.variable != variable]
            cause = f"command:{event.command_offset}"
            self._happened(talk, Unit("edited", cause, talk.order + 1, before, None, variable), at_us)

    def _happened(self, talk: Talk, unit: Unit, at_us: int) -> None:
        talk.order += 1
        talk.used_us = max(talk.used_us, at_us)
        if talk.complete:
            talk.units = [*talk.units[1 - MOST_MARKED :], unit]

    def forget(self, before_us: int) -> None:
        """Forget conversations in which nothing has happened since `before_us`."""
        self._talks = {name: talk for name, talk in self._talks.items() if talk.open or talk.used_us > before_us}

    # --- checkpoints ---

    def dump(self) -> list[JsonValue]:
        rows: list[Any] = [
            [
                conversation_id, t.app_id, t.caller_id, t.count, t.order, t.base, t.base_order, t.units, t.open,
                t.used_us, t.complete, t.changed_by, t.gone,
            ]
            for conversation_id, t in self._talks.items()
        ]  # fmt: skip
        return list(from_json(to_json(rows)))  # as `load` will see it, wherever it is kept meanwhile

    def load(self, rows: Iterable[Any]) -> None:
        for conversation_id, app_id, caller_id, count, order, base, base_order, units, opened, *rest in rows:
            self._talks[conversation_id] = Talk(
                app_id,
                caller_id,
                count,
                order,
                (base[0], base[1], tuple(base[2])) if base else None,
                base_order,
                [_unit(*unit) for unit in units],
                {run: (number, tuple(place)) for run, (number, place) in opened.items()},
                *rest,
            )


def _unit(kind: Any, of: str, order: int, at: Any, accepted: Any, variable: str) -> Unit:
    return Unit(kind, of, order, tuple(at), tuple(accepted) if accepted else None, variable)


def _belongs(talk: Talk, command: StartRun) -> bool:
    """Whether the conversation is the app's and was begun by this user, as far as it is known here."""
    return talk.app_id in ("", command.app_id) and talk.caller_id in ("", command.caller.id)
