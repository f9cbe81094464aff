"""What a handler answered, as the log will give it back.

Memory must not hold what a fold of the log would not: a handler may answer NaN, half a surrogate pair, a tuple, an
object, a structure so deep that no reader could parse it, or an error text of megabytes. Here is where such an answer
becomes JSON, before the machine decides with it; what cannot become JSON is the node's failure.
"""

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from libs.workflow.outcome import Asked, Failed, Outcome, Succeeded

ERROR_CHARACTERS = 32_000
"""An error text never leaves its event for the blobs, and several events repeat it: beyond this it is cut."""

ROOM = 24
"""Levels of nesting kept free: JSON is read to depth 200, and events and snapshots put values into structures."""

_OPEN, _CLOSE = b"[" * ROOM, b"]" * ROOM


def recordable(outcome: Outcome) -> Outcome:
    """The outcome with plain JSON values, or the failure that they are none."""
    if isinstance(outcome, Asked):
        try:
            (form,) = _as_json([outcome.form])
        except (ValueError, TypeError, RecursionError) as error:
            return _not_json(Failed("the form cannot be opened"), error)
        return Asked(form, outcome.actions, outcome.timeout_s, outcome.token)
    updates = outcome.updates if isinstance(outcome, Succeeded) else ()
    written = [each.value for each in updates]
    values = [outcome.inputs, outcome.process_data, outcome.outputs, outcome.metadata, *written]
    try:
        inputs, process_data, outputs, metadata, *written = _as_json(values)
    except (ValueError, TypeError, RecursionError) as error:
        return _not_json(outcome, error)
    if isinstance(outcome, Failed):
        error_text, error_type = _text(outcome.error), _text(outcome.error_type)
        return Failed(error_text, error_type, inputs, process_data, outputs, metadata)
    if updates:
        pairs = zip(updates, written, strict=True)
        updates = tuple(update.model_copy(update={"value": value}) for update, value in pairs)
    return Succeeded(
        outputs, inputs, process_data, metadata, outcome.handle, outcome.output_types, updates
    )  # `replace` would cost more than all the JSON


def _as_json(values: Sequence[Any]) -> list[Any]:
    try:
        data = to_json(values, inf_nan_mode="null")
    except ValueError:  # half a surrogate pair, or something that is no JSON at all
        data = to_json(_whole_text(values), inf_nan_mode="null")
    found: Any = from_json(_OPEN + data + _CLOSE, allow_inf_nan=False)
    for _ in range(ROOM):
        found = found[0]
    return found  # type: ignore[no-any-return]  # what went in: a list


def _whole_text(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case list() | tuple():
            return [_whole_text(each) for each in value]
        case dict():
            return {_whole_text(key): _whole_text(each) for key, each in value.items()}
        case _:
            return value


def _text(text: str) -> str:
    return str(_whole_text(text[:ERROR_CHARACTERS]))


def _not_json(outcome: Outcome, error: Exception) -> Failed:
    reason = f"the node's answer cannot be recorded: {_text(str(error))[:200]}"
    if isinstance(outcome, Failed):
        return Failed(f"{_text(outcome.error)} ({reason})", _text(outcome.error_type))
    return Failed(reason, "WorkflowNodeError")
