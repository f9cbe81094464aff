"""Sealed values in events: `{"$sealed": token, "shown": masked}` in the place of a value that holds a secret.

Whoever runs the nodes opens them; every other reader (API, tables, command line, outside consumers) sees `shown` and
needs no key. A user's value that merely looks like one is sealed itself, so it comes back as what it was.
"""

from typing import TypeVar, cast

from pydantic import BaseModel, JsonValue
from pydantic_core import from_json, to_json

from libs.events.blobs import is_ref
from libs.events.model import EVENT, ConversationVariableSet, FormSubmitted, RunAccepted
from libs.events.sealing import Unopened, Vault
from libs.events.slots import Slot, is_sealed, slots, with_values

MARK = b'"$sealed"'

SENT = (RunAccepted, FormSubmitted, ConversationVariableSet)
"""Events that repeat what a client sent: nothing of ours is sealed in them, whatever their values look like."""

E = TypeVar("E", bound=BaseModel)


def seal_value(value: JsonValue, shown: JsonValue, vault: Vault) -> JsonValue:
    """What stands in the log for `value`. Raises SealError."""
    return {"$sealed": vault.seal(to_json(value, inf_nan_mode="null")), "shown": shown}


def read_value(value: JsonValue, vault: Vault | None) -> JsonValue:
    """The value itself with the key, what it shows without one. Raises SealError."""
    if not is_sealed(value) or isinstance(vault, Unopened):
        return value
    sealed = cast(dict[str, JsonValue], value)
    return sealed["shown"] if vault is None else from_json(vault.open(str(sealed["$sealed"])))


def read_copied(event: E, vault: Vault) -> E:
    """A fork's start with the secrets of the events and the conversation that it copies. Raises SealError.

    Those were copied sealed, as the first run has them in the log.

    Once only: what is open may look like a sealed value again.
    """
    if not isinstance(event, RunAccepted) or event.forked_from is None:
        return event
    changed: dict[str, JsonValue] = {}
    if isinstance(event.prefix, list):
        bodies = (read_sealed(EVENT.validate_python(body), vault) for body in event.prefix)
        changed["prefix"] = [body.model_dump(mode="json") for body in bodies]
    if event.conversation is not None and not is_ref(event.conversation):
        changed["conversation"] = {name: _opened(value, vault) for name, value in event.conversation.items()}
    return event.model_copy(update=changed)


def _opened(value: JsonValue, vault: Vault) -> JsonValue:
    """One part of a conversation: sealed itself, or an object of values that may be."""
    if is_sealed(value):
        return read_value(value, vault)
    return {name: read_value(one, vault) for name, one in value.items()} if isinstance(value, dict) else value


def read_sealed(event: E, vault: Vault | None) -> E:
    """The event with its sealed values opened, or with what they show. Raises SealError."""
    if isinstance(event, SENT):
        return event
    read: dict[Slot, JsonValue] = {slot: read_value(value, vault) for slot, value in slots(event) if is_sealed(value)}
    return with_values(event, read) if read else event
