"""`assigner`: changes variables that exist (conversation variables, loop variables, outputs of other nodes).

Version 1 writes one variable. Version 2 applies a list of items in order on a working layer over the pool, so later
items see earlier changes; any error means that nothing is written.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import JsonValue

from libs.events.model import VariableUpdate
from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool, Segment, TypeMismatch, typed
from libs.workflow.segments import ARRAY_TYPES, NUMBER_TYPES, is_file, read_json, zero
from services.executor.nodes.port import Handler


class AssignerHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        return _many(node, pool) if node.version == "2" else _one(node.config, pool)


class _Invalid(Exception):
    """The assignment cannot be made. The text names the reason by the contract's class name; it holds no value."""


# --- version 1 -------------------------------------------------------------------------------------------------------


def _one(config: Any, pool: Pool) -> Outcome:
    target = _variable(config.assigned_variable_selector, pool)
    if target is None:
        return _thrown(f"assigned variable {_dotted(config.assigned_variable_selector)} not found")
    if config.write_mode == "clear":
        try:
            new = shown = zero(target.type)
        except TypeMismatch as error:
            return _thrown(f"{_dotted(config.assigned_variable_selector)}: {error}")
        return _written(config.assigned_variable_selector, Segment(target.type, new), shown)
    source = pool.get(config.input_variable_selector or ())
    if source is None:
        return _thrown(f"input variable {_dotted(config.input_variable_selector or ())} not found")
    if config.write_mode == "append":
        if not isinstance(target.value, list):
            return _thrown(
                f"{_dotted(config.assigned_variable_selector)}: append needs an array, the variable is a {target.type}"
            )
        appended = Segment(target.type, [*target.value, source.value])
        return _written(config.assigned_variable_selector, appended, source.value)
    return _written(config.assigned_variable_selector, _fitting(source, target.type), source.value)


def _fitting(source: Segment, declared: str) -> Segment:
    """The value under the target's type where it fits: over-writing does not check types."""
    try:
        typed(source.value, declared)
    except TypeMismatch:
        return source
    return Segment(declared, source.value)


def _written(selector: Sequence[str], new: Segment, shown: JsonValue) -> Outcome:
    return Succeeded(
        inputs={"value": shown},
        process_data={"__updated_variables": [_updated(selector, new)]},
        updates=(VariableUpdate(selector=tuple(selector), value=new.value, value_type=new.type),),
    )


def _thrown(text: str) -> Failed:
    return Failed(text, "WorkflowNodeError")


# --- version 2 -------------------------------------------------------------------------------------------------------


def _many(node: Node, pool: Pool) -> Outcome:
    working = pool.child()
    changed: dict[tuple[str, ...], Segment] = {}
    inputs: Values = dict(node.data)
    try:
        for item in node.config.items:
            new = _assigned(item, working)
            if new is not None:
                working.set(item.variable_selector[0], item.variable_selector[1], new.value, new.type)
                changed[tuple(item.variable_selector)] = new  # keeps the place of the first change
    except _Invalid as error:
        return Failed(str(error), inputs=inputs, process_data={})
    process_data: Values = {selector[1]: new.value for selector, new in changed.items()}
    process_data["__updated_variables"] = [_updated(selector, new) for selector, new in changed.items()]
    return Succeeded(
        inputs=inputs,
        process_data=process_data,
        updates=tuple(
            VariableUpdate(selector=selector, value=new.value, value_type=new.type) for selector, new in changed.items()
        ),
    )


def _assigned(item: Any, working: Pool) -> Segment | None:
    """The target's new value, or None: the source is null, the item is skipped. Raises _Invalid."""
    operation, selector = item.operation, item.variable_selector
    target = _variable(selector, working)
    if target is None:
        raise _Invalid(f"VariableNotFoundError: variable {_dotted(selector)} not found")
    if not _supports(operation, target.type):
        raise _Invalid(f"OperationNotSupportedError: {operation} is not supported for a variable of type {target.type}")
    if not _takes(operation, item.input_type, target.type):
        raise _Invalid(
            f"InputTypeNotSupportedError: {operation} does not take a {item.input_type} as input "
            f"for a variable of type {target.type}"
        )
    value: JsonValue = list(item.value) if isinstance(item.value, tuple) else item.value
    if item.input_type == "variable" and operation not in _WITHOUT_VALUE:
        source = working.get(item.value or ())
        if source is None:
            raise _Invalid(f"VariableNotFoundError: variable {_dotted(item.value or ())} not found")
        if source.type == "none":
            return None
        value = source.value
    if operation == "set" and target.type == "object" and isinstance(value, str):
        value = _parsed(value, selector)
    if not _valid(operation, target.type, value):
        raise _Invalid(f"InvalidInputValueError: invalid value for {operation} on {_dotted(selector)} ({target.type})")
    try:
        new = _OPERATIONS[operation](target, value)
    except (TypeMismatch, OverflowError) as error:
        raise _Invalid(f"InvalidDataError: {_dotted(selector)}: {error}") from error
    if isinstance(new, float) and not math.isfinite(new):  # no record could hold it
        raise _Invalid(f"InvalidDataError: {_dotted(selector)}: the result of {operation} is too large for a number")
    return Segment(target.type, new)


def _parsed(text: str, selector: Sequence[str]) -> JsonValue:
    try:
        return read_json(text)
    except ValueError as error:
        raise _Invalid(f"InvalidInputValueError: the value for {_dotted(selector)} is not JSON") from error


def _supports(operation: str, kind: str) -> bool:
    match operation:
        case "over-write" | "clear":
            return True
        case "set":
            return kind in _CONSTANTS
        case "+=" | "-=" | "*=" | "/=":
            return kind in NUMBER_TYPES
        case "append" | "extend" | "remove-first" | "remove-last":
            return kind in ARRAY_TYPES
    return False


def _takes(operation: str, input_type: str, kind: str) -> bool:
    if input_type == "variable":
        return operation != "set" and operation not in _ARITHMETIC
    return operation in _ARITHMETIC or (operation in ("set", "over-write") and kind in _CONSTANTS)


def _valid(operation: str, kind: str, value: JsonValue) -> bool:
    if operation in _WITHOUT_VALUE:
        return True
    if kind in NUMBER_TYPES:
        return isinstance(value, int | float) and not (operation == "/=" and value == 0)
    if kind not in ARRAY_TYPES:
        return isinstance(value, _SCALARS[kind]) if kind in _SCALARS else False
    if operation == "append":
        return _element(kind, value)
    return kind != "array[file]" and isinstance(value, list) and all(_element(kind, item) for item in value)


def _element(kind: str, value: JsonValue) -> bool:
    return is_file(value) if kind == "array[file]" else isinstance(value, _ELEMENTS[kind])


def _elements(target: Segment) -> list[JsonValue]:
    return target.value if isinstance(target.value, list) else []


def _replace(target: Segment, value: JsonValue) -> JsonValue:
    return value


_WITHOUT_VALUE: Final = frozenset({"clear", "remove-first", "remove-last"})
_ARITHMETIC: Final = frozenset({"+=", "-=", "*=", "/="})
_CONSTANTS: Final = NUMBER_TYPES | {"string", "object", "boolean"}
_SCALARS: Final[dict[str, type]] = {"string": str, "boolean": bool, "object": dict}
_ELEMENTS: Final[dict[str, type | tuple[type, ...]]] = {
    "array[any]": (str, int, float, dict),
    "array[string]": str,
    "array[number]": (int, float),
    "array[object]": dict,
    "array[boolean]": bool,
}
# Arithmetic is checked to have numbers on both sides before it is applied, list operations to have a list.
_OPERATIONS: Final[dict[str, Callable[[Segment, Any], JsonValue]]] = {
    "over-write": _replace,
    "set": _replace,
    "clear": lambda target, _: zero(target.type),
    "+=": lambda target, value: target.value + value,
    "-=": lambda target, value: target.value - value,
    "*=": lambda target, value: target.value * value,
    "/=": lambda target, value: target.value / value,
    "append": lambda target, value: [*_elements(target), value],
    "extend": lambda target, value: [*_elements(target), *value],
    "remove-first": lambda target, _: _elements(target)[1:],
    "remove-last": lambda target, _: _elements(target)[:-1],
}


def _variable(selector: Sequence[str], pool: Pool) -> Segment | None:
    """A stored variable; a value inside one is no target."""
    return pool.get(selector) if len(selector) == 2 else None


def _updated(selector: Sequence[str], new: Segment) -> JsonValue:
    return {"name": selector[1], "selector": list(selector), "value_type": new.shown_type, "new_value": new.value}


def _dotted(selector: Sequence[str]) -> str:
    return ".".join(selector)
