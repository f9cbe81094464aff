"""A conversation of a chatflow: what its messages leave to later ones, as the fold of a few marked events.

Pure. A run works with the conversation as it was when the run was accepted: with what the runs that had ended by then
have said and written, and with the values that were set from outside by then. Messages that are sent at the same time
do not see each other. `RunStarted` carries the result, so that the fold of a run needs the run's own events only; and
so the events behind the newest one of those, with that one, are all that a later run has to read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from pydantic import JsonValue

from libs.events.ids import variable_id
from libs.events.model import (
    RUN_END_TYPES,
    ConversationVariableSet,
    Event,
    RunAccepted,
    RunStarted,
    VariableForm,
)
from libs.workflow.definition import Definition
from libs.workflow.outcome import Values
from libs.workflow.variables import fits

MOST_TURNS: Final = 100
"""Earlier messages that a run can remember, at most: every run of the conversation carries them."""

MOST_CHARACTERS: Final = 100_000
"""Of earlier messages and answers together; some 25,000 tokens."""


class Turn(NamedTuple):
    """A message and its answer."""

    query: str
    answer: str


@dataclass(slots=True)
class Conversation:
    """What earlier messages have left."""

    variables: dict[str, JsonValue] = field(default_factory=dict)
    forms: dict[str, VariableForm] = field(default_factory=dict)
    history: list[Turn] = field(default_factory=list)


def recall(events: Iterable[tuple[str, Event]], first: Mapping[str, JsonValue] | None = None) -> Conversation:
    """The fold of what a run's `earlier` marks, in that order: (run id, event) pairs with all their values.

    `first`: the state that `RunAccepted.conversation` holds, for a run that was told of it.
    """
    found = _told(first) if first is not None else Conversation()
    asked: dict[str, str] = {}
    for number, (run_id, event) in enumerate(events):
        if isinstance(event, RunStarted):
            found = Conversation(dict(event.variables or {}), dict(event.forms or {}), turns(event.history))
        elif isinstance(event, RunAccepted):
            asked[run_id] = event.query or ""
            if number == 0 and event.conversation is not None:  # only where it is the state that others follow
                found = _told(event.conversation)
        elif isinstance(event, ConversationVariableSet):
            _write(found, event.name, event.value, event.value_type)
        elif event.type in RUN_END_TYPES:
            _end(found, asked.pop(run_id, ""), event)
    return found


def _end(found: Conversation, query: str, event: Any) -> None:
    answer = event.outputs.get("answer")
    if isinstance(answer, str) and answer:
        found.history.append(Turn(query, answer))
    for update in event.updates or ():
        _write(found, update.selector[1], update.value, update.value_type)


def _write(found: Conversation, name: str, value: JsonValue, value_type: str) -> None:
    found.variables[name] = value
    # The declared type stays: of a number that was written, only `integer` or `float` is seen.
    found.forms.setdefault(name, VariableForm(id="", value_type=value_type))


def _told(state: Mapping[str, JsonValue]) -> Conversation:
    raw = cast(dict[str, Any], state)
    forms = {name: VariableForm.model_validate(form) for name, form in (raw.get("forms") or {}).items()}
    return Conversation(dict(raw.get("variables") or {}), forms, turns(raw.get("history")))


def told(found: Conversation, count: int) -> Values:
    """The state as `StartRun.conversation` carries it; `count`: messages so far."""
    return {
        "count": count,
        "variables": found.variables,
        "forms": {name: form.model_dump() for name, form in found.forms.items()},
        "history": [list(turn) for turn in kept(found.history)],
    }


def turns(history: JsonValue) -> list[Turn]:
    """The history as `RunStarted` carries it."""
    return [Turn(str(query), str(answer)) for query, answer in cast(list[list[Any]], history or [])]


def kept(history: Sequence[Turn]) -> list[Turn]:
    """The newest part of a history that a run carries."""
    size = 0
    for number, turn in enumerate(reversed(history)):
        size += len(turn.query) + len(turn.answer)
        if number >= MOST_TURNS or size > MOST_CHARACTERS:
            return list(history[len(history) - number :])
    return list(history)


def opening(definition: Definition, conversation_id: str, earlier: Conversation | None) -> dict[str, Any]:
    """What `RunStarted` says of the conversation.

    A variable that the document declares has the conversation's value if that is of the declared type, else the
    document's. One that had another name with this id has that one's value. Values of variables that this version does
    not declare are kept for versions that do.
    """
    past = earlier or Conversation()
    variables, forms = dict(past.variables), dict(past.forms)
    names = {declared.name for declared in definition.conversation}
    ids = {declared.id for declared in definition.conversation if declared.id}
    name_of = {form.id: name for name, form in past.forms.items() if form.id}
    renewed = []
    for declared in definition.conversation:
        name, form = declared.name, past.forms.get(declared.name)
        # Who has no id that is known goes by its name, unless that was another one's who has a new name now.
        freed = form is not None and form.id != declared.id and form.id in ids
        before = name_of.get(declared.id or "", "" if freed else name)
        stays = before in past.variables and fits(past.variables[before], declared.type)
        variables[name] = past.variables[before] if stays else declared.value
        known = not past.forms.keys().isdisjoint({name, before})
        if known and not (stays and before == name):
            renewed.append(name)
        if before and before not in names:
            variables.pop(before, None)
            forms[before] = forms[before].model_copy(update={"id": ""})
        forms[name] = VariableForm(
            id=declared.id or variable_id(name),
            value_type=declared.type,
            description=declared.description,
        )
    return {
        "conversation_id": conversation_id,
        "variables": variables,
        "forms": forms,
        "history": [list(turn) for turn in kept(past.history)],
        **({"renewed": tuple(renewed)} if renewed else {}),
    }
