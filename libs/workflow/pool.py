"""The variable pool: what a run has produced, addressed by selector (`node.name`, and keys inside objects).

A run has one root pool; each iteration round has a thin layer over its parent, so nothing is copied: reads fall
through, writes stay in the layer (`set`) or go to the layer that holds the variable (`update`). One thread at a time.

A value is stored as it is given; its type is found at the first read, because most values are read once or never.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from libs.workflow.segments import (
    FILE_ATTRIBUTES,
    NONE,
    Segment,
    TypeMismatch,
    as_log,
    as_markdown,
    as_text,
    declared_types,
    file_attribute,
    for_display,
    infer,
    is_file,
    mask,
    typed,
)

__all__ = [
    "Pool",
    "Segment",
    "TypeMismatch",
    "as_log",
    "as_markdown",
    "as_text",
    "declared_types",
    "for_display",
    "infer",
    "mask",
    "typed",
]


class _Removed:
    """Stands in a layer for a variable that its parent has and this layer has not."""


_REMOVED: Final = _Removed()
_Slot = Segment | JsonValue | _Removed
_Layer = dict[str, dict[str, _Slot]]

_OLDER_NAMES: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("sys", "workflow_execution_id"): ("sys", "workflow_run_id"),
}
"""Names that documents of older releases read. They are looked up after a miss only and listed nowhere."""


class Pool:
    """Variables by node id and name, in layers."""

    __slots__ = ("_own", "layers", "parent")

    def __init__(self, parent: "Pool | None" = None) -> None:
        self._own: _Layer = {}
        self.parent = parent
        self.layers: tuple[_Layer, ...] = (self._own, *(parent.layers if parent is not None else ()))
        """What this pool sees, nearest first; the first one is its own. For reading only."""

    def child(self) -> "Pool":
        """A new layer over this pool."""
        return Pool(self)

    def get(self, selector: Sequence[str]) -> Segment | None:
        """The value at `selector`, or None when there is none: `[node, name]` or `[node, name, key, ...]`.

        Keys walk through objects and attributes of files, never through lists. A key whose value is null is found.
        """
        if len(selector) < 2:
            return None
        node_id, name = selector[0], selector[1]
        for layer in self.layers:
            names = layer.get(node_id)
            if names is not None and name in names:
                slot = names[name]
                if type(slot) is not Segment:
                    if slot is _REMOVED:
                        return None
                    slot = names[name] = infer(slot)  # type: ignore[arg-type]  # neither Segment nor removed: JSON
                return slot if len(selector) == 2 else _walk(slot.value, selector)
        renamed = _OLDER_NAMES.get((node_id, name))
        return self.get((*renamed, *selector[2:])) if renamed is not None else None

    def set(self, node_id: str, name: str, value: JsonValue, type: str | None = None) -> None:
        """Write `[node_id, name]` in this layer. `type`: declared type; None or `number`: what the value shows.

        The type is trusted (it comes from events): only null overrides it, which has a type of its own.
        """
        _write(self._own, node_id, name, value, type)

    def update(self, selector: Sequence[str], value: JsonValue, type: str | None = None) -> None:
        """Write a variable where it lives: in the nearest layer that holds it, else in this one."""
        node_id, name = selector
        for layer in self.layers:
            names = layer.get(node_id)
            if names is not None and name in names:
                if names[name] is _REMOVED:
                    break
                _write(layer, node_id, name, value, type)
                return
        self.set(node_id, name, value, type)

    def names(self, node_id: str) -> dict[str, Segment]:
        """All variables of a node, by name, in the order in which they came."""
        names = dict.fromkeys(name for layer in reversed(self.layers) for name in layer.get(node_id, {}))
        found = {name: self.get((node_id, name)) for name in names}
        return {name: segment for name, segment in found.items() if segment is not None}

    def remove(self, node_id: str, name: str | None = None) -> None:
        """Make `[node_id, name]`, or all variables of the node, unknown to this layer and those above it."""
        hidden = self.parent.names(node_id) if self.parent is not None else {}
        for each in [name] if name is not None else [*self._own.get(node_id, {}), *hidden]:
            if each in hidden:
                self._own.setdefault(node_id, {})[each] = _REMOVED
            else:
                self._own.get(node_id, {}).pop(each, None)
        if not self._own.get(node_id, True):
            del self._own[node_id]

    def secrets(self) -> tuple[str, ...]:
        """The plain text of every variable of type `secret`, for masking records."""
        found = {
            slot.value: None
            for layer in self.layers
            for names in layer.values()
            for slot in names.values()
            if isinstance(slot, Segment) and slot.type == "secret" and isinstance(slot.value, str) and slot.value
        }
        return tuple(found)

    def dump(self) -> dict[str, JsonValue]:
        """This layer as JSON: node id -> name -> `[value]`, `[value, declared type]`, or `[]` for a removed one."""
        return {node_id: {name: _dump(slot) for name, slot in names.items()} for node_id, names in self._own.items()}

    @classmethod
    def load(cls, data: Mapping[str, JsonValue], parent: "Pool | None" = None) -> "Pool":
        """The layer that `dump` described. Raises ValueError when `data` is not a dump."""
        pool = cls(parent)
        for node_id, names in data.items():
            if not isinstance(names, dict):
                raise ValueError(f"pool dump: {node_id}: expected a mapping of names, got {type(names).__name__}")
            pool.layers[0][node_id] = {name: _load(f"{node_id}.{name}", entry) for name, entry in names.items()}
        return pool


def _write(layer: _Layer, node_id: str, name: str, value: JsonValue, kind: str | None) -> None:
    names = layer.get(node_id)
    if names is None:
        names = layer[node_id] = {}
    if value is None:
        names[name] = NONE
    elif kind is None or kind == "number":
        names[name] = value
    else:
        names[name] = Segment(kind, value)


def _walk(value: JsonValue, selector: Sequence[str]) -> Segment | None:
    for key in selector[2:]:
        if not isinstance(value, dict):
            return None
        if is_file(value):  # an attribute is a scalar; whatever follows it is ignored
            return infer(file_attribute(value, key)) if key in FILE_ATTRIBUTES else None
        if key not in value:
            return None
        value = value[key]
    return infer(value)


def _dump(slot: _Slot) -> list[JsonValue]:
    if isinstance(slot, _Removed):
        return []
    if not isinstance(slot, Segment):
        return [slot]
    # A type found at a read is left out, so that a dump does not tell who has read what.
    return [slot.value] if infer(slot.value).type == slot.type else [slot.value, slot.type]


def _load(place: str, entry: JsonValue) -> _Slot:
    match entry:
        case []:
            return _REMOVED
        case [value]:
            return value
        case [value, str(kind)]:
            return Segment(kind, value)
    raise ValueError(f"pool dump: {place}: expected [], [value] or [value, type]")
