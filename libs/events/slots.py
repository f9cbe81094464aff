"""Where in an event something may stand in the place of a value: a reference to a blob, or a sealed secret.

Values of `inputs`, `outputs`, `process_data`, `metadata`, `variables`, `pins`, `form`, `conversation`, written
variables, a round's output, a snapshot's state, a conversation's history, the beginning of a fork, the answer of a
message so far. Stand-ins are nowhere else, so a reader looks nowhere else.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue

from libs.events.blobs import is_ref

OBJECTS = ("inputs", "outputs", "process_data", "metadata", "variables", "pins", "form", "conversation")
WHOLE = ("state", "output", "history", "value", "prefix", "said", "answer")

Slot = tuple[str, str | int | None]
"""A field, and in it a key (objects), a position (`updates`) or None (all of it)."""

E = TypeVar("E", bound=BaseModel)


def is_sealed(value: object) -> bool:
    """Whether a JSON value is a sealed one: a token, and what readers without the key are shown."""
    return isinstance(value, dict) and value.keys() == {"$sealed", "shown"} and isinstance(value["$sealed"], str)


def slots(event: BaseModel) -> Iterator[tuple[Slot, JsonValue]]:
    """Every place where a stand-in may be, with what is there."""
    objects, whole, updates = fields_of(type(event))
    for name in objects:
        value = getattr(event, name)
        if is_ref(value) or is_sealed(value):
            yield (name, None), value
        elif value:
            for key, item in value.items():
                yield (name, key), item
    for name in whole:
        yield (name, None), getattr(event, name)
    if updates:
        for index, update in enumerate(getattr(event, "updates") or ()):  # noqa: B009  # known by name only
            yield ("updates", index), update.value


def with_values(event: E, values: dict[Slot, JsonValue]) -> E:
    """The event with other values in some of its places."""
    changed: dict[str, Any] = {}
    for (name, at), value in values.items():
        if at is None:
            changed[name] = value
        elif isinstance(at, str):
            changed.setdefault(name, dict(getattr(event, name)))[at] = value
        else:
            updates = changed.setdefault(name, list(getattr(event, name)))
            updates[at] = updates[at].model_copy(update={"value": value})
    if "updates" in changed:
        changed["updates"] = tuple(changed["updates"])
    return event.model_copy(update=changed)


@lru_cache(maxsize=256)
def fields_of(model: type[BaseModel]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """(its fields that hold named values, its fields that are replaced as a whole, whether it has `updates`)."""
    names = model.model_fields
    return (
        tuple(name for name in OBJECTS if name in names),
        tuple(name for name in WHOLE if name in names),
        "updates" in names,
    )
