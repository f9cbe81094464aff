"""A conversation of a chatflow: what its messages leave to later ones, as the fold of a few marked events.

Pure. A run works with the conversation as it was when the run was accepted: with what the runs that had ended by then
have said and written, and with the values that were set from outside by then. Messages that are sent at the same time
do not see each other. `RunStarted` carries the result, so that the fold of a run needs the run's own events only; and
so the events behind the newest one of those, with that one, are all that a later run has to read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from libs.workflow.variables import Variable, VariableKey, fits, variable_key

MOST_TURNS: Final = 100
"""Earlier messages that a run can remember, at most: every run of the conversation carries them."""

MOST_CHARACTERS: Final = 100_000
"""Of earlier messages and answers together; some 25,000 tokens."""


class Turn(NamedTuple):
    """A message and its answer."""

    query: str
    answer: str


class Held(NamedTuple):
    """A variable with its value."""

    name: str
    form: VariableForm
    value: JsonValue

    @property
    def key(self) -> VariableKey:
        return variable_key(self.form.id, self.form.value_type)


@dataclass(slots=True)
class Conversation:
    """What earlier messages have left."""

    variables: dict[VariableKey, Held] = field(default_factory=dict)
    """First those of the version that answered last, then what others have left."""
    history: list[Turn] = field(default_factory=list)


def recall(events: Iterable[tuple[str, Event]], first: Mapping[str, JsonValue] | None = None) -> Conversation:
    """The fold of what a run's `earlier` marks, in that order: (run id, event) pairs with all their values.

    `first`: the state that `RunAccepted.conversation` holds, for a run that was told of it.
    """
    found = _told(first) if first is not None else Conversation()
    asked: dict[str, str] = {}
    for number, (run_id, event) in enumerate(events):
        if isinstance(event, RunStarted):
            found = Conversation(_held(event.variables or {}, event.forms or {}), turns(event.history))
        elif isinstance(event, RunAccepted):
            asked[run_id] = event.query or ""
            if number == 0 and event.conversation is not None:  # only where it is the state that others follow
                found = _told(event.conversation)
        elif isinstance(event, ConversationVariableSet):
            _write(found, event.name, event.id, event.value_type, event.value)
        elif event.type in RUN_END_TYPES:
            _end(found, asked.pop(run_id, ""), event)
    return found


def _end(found: Conversation, query: str, event: Any) -> None:
    answer = event.outputs.get("answer")
    if isinstance(answer, str) and answer:
        found.history.append(Turn(query, answer))
    for update in event.updates or ():
        _write(found, update.selector[1], update.id, update.value_type, update.value)


def _write(found: Conversation, name: str, id_: str | None, value_type: str, value: JsonValue) -> None:
    """A value for the variable of that id and type; records from before they told the id mean the one of the name."""
    if id_ is None:
        held = next((each for each in found.variables.values() if each.name == name), None)
    else:
        held = found.variables.get(variable_key(id_, value_type))
    if held is None:  # of a version that has answered beside the one whose variables these are
        held = Held(name, VariableForm(id=id_ or variable_id(name), value_type=value_type), None)
    found.variables[held.key] = held._replace(value=value)


def _told(state: Mapping[str, JsonValue]) -> Conversation:
    raw = cast(dict[str, Any], state)
    forms = {name: VariableForm.model_validate(form) for name, form in (raw.get("forms") or {}).items()}
    return Conversation(_held(raw.get("variables") or {}, forms), turns(raw.get("history")))


def told(found: Conversation, count: int) -> Values:
    """The state as `StartRun.conversation` carries it; `count`: messages so far."""
    values, forms = _by_name(found.variables.values())
    return {
        "count": count,
        "variables": values,
        "forms": {name: form.model_dump(exclude_none=True) for name, form in forms.items()},
        "history": [list(turn) for turn in kept(found.history)],
    }


def _by_name(variables: Iterable[Held]) -> tuple[dict[str, JsonValue], dict[str, VariableForm]]:
    """Values and forms as events carry them: by name, or else, behind one with that name or id, by id and type."""
    values: dict[str, JsonValue] = {}
    forms: dict[str, VariableForm] = {}
    ids: set[str] = set()
    for name, form, value in variables:
        if name in forms or form.id in ids:
            place, form = f"{form.id}:{form.value_type}", form.model_copy(update={"name": name})
        else:
            place, form = name, form.model_copy(update={"name": None})
        ids.add(form.id)
        values[place], forms[place] = value, form
    return values, forms


def _held(values: Mapping[str, JsonValue], forms: Mapping[str, VariableForm]) -> dict[VariableKey, Held]:
    """What `_by_name` has spread out. Forms without an id are of records that marked former names with them."""
    found = {}
    for place, value in values.items():
        form = forms.get(place) or VariableForm(id="", value_type="")
        name = form.name or place
        held = Held(name, form.model_copy(update={"id": form.id or variable_id(name), "name": None}), value)
        found[held.key] = held
    return found


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
    document's. What this version does not declare is kept for versions that do.
    """
    past = earlier or Conversation()
    variables: dict[VariableKey, Held] = {}
    for declared in definition.conversation:
        form = VariableForm(id=declared.id, value_type=declared.type, description=declared.description)
        known = (held.value for held in _before(declared, definition, past) if fits(held.value, declared.type))
        held = Held(declared.name, form, next(known, declared.value))
        variables[held.key] = held
    others = (held for key, held in past.variables.items() if key not in variables)
    values, forms = _by_name((*variables.values(), *others))
    return {
        "conversation_id": conversation_id,
        "variables": values,
        "forms": forms,
        "history": [list(turn) for turn in kept(past.history)],
    }


def _before(declared: Variable, definition: Definition, past: Conversation) -> Iterator[Held]:
    """What it may go on with: itself, others with its id, then those with its name whose id this version has not."""
    known = past.variables.values()
    own = past.variables.get(variable_key(declared.id, declared.type))
    if own is not None:
        yield own
    yield from (held for held in known if held.form.id == declared.id)
    ids = {each.id for each in definition.conversation}
    yield from (held for held in known if held.name == declared.name and held.form.id not in ids)
