"""Values as long as browsers get them: texts, lists and whole mappings within the reference's limits. Pure."""

import json
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json

MAX_BYTES: Final = 1_024_000
"""Of a whole mapping, as JSON."""
MAX_ITEMS: Final = 1_000
MAX_CHARACTERS: Final = 100_000

_DOTS: Final = "..."
_SMALLEST: Final = 16
"""Bytes below which nothing is worth beginning."""


def shortened(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """(values within the limits, whether something was cut)."""
    kept, cut = _within(values)
    if _size(kept) > MAX_BYTES:
        return _fitted(kept, MAX_BYTES), True
    return kept, cut


def _within(value: Any) -> tuple[Any, bool]:
    """Texts and lists cut to their limits, at every depth; values that fit are not copied."""
    if isinstance(value, str):
        if len(value) <= MAX_CHARACTERS:
            return value, False
        return value[: MAX_CHARACTERS - len(_DOTS)] + _DOTS, True
    if isinstance(value, dict):
        members = {name: _within(each) for name, each in value.items()}
        if not any(cut for _, cut in members.values()):
            return value, False
        return {name: each for name, (each, _) in members.items()}, True
    if isinstance(value, list):
        items = [_within(each) for each in value[:MAX_ITEMS]]
        cut = len(value) > MAX_ITEMS or any(one for _, one in items)
        return ([each for each, _ in items], True) if cut else (value, False)
    return value, False


def _fitted(value: Any, budget: int) -> Any:
    """`value` in about `budget` bytes: members share what is left, so a large one leaves room for those behind it."""
    if _size(value) <= budget:
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace")[: max(0, budget - _SMALLEST)].decode("utf-8", "ignore") + _DOTS
    if isinstance(value, dict):
        members: dict[str, Any] = {}
        for number, (name, each) in enumerate(value.items()):
            if budget < _SMALLEST:
                break
            members[name] = _fitted(each, budget // (len(value) - number) - len(name) - 4)
            budget -= _size(members[name]) + len(name) + 4
        return members
    if isinstance(value, list):
        items: list[Any] = []
        for each in value:
            if budget < _SMALLEST:
                break
            items.append(_fitted(each, budget))
            budget -= _size(items[-1]) + 1
        return items
    return value


def _size(value: Any) -> int:
    try:
        return len(to_json(value, inf_nan_mode="null"))
    except PydanticSerializationError:
        return len(json.dumps(value))
