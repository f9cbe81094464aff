"""`code`: the author's own function, run in the sandbox; its result must be what the node declares.

The rules for outputs (types, limits, normalisation) are those of spec graph-semantics 6.7.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from pydantic import JsonValue

from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool, for_display
from services.executor.nodes.port import Attempt, Handler
from services.executor.sandbox import Sandbox, SandboxUnavailable

TIMEOUT_S: Final = 60.0
MAX_STRING_CHARS: Final = 400_000
MAX_NUMBER: Final = 9_223_372_036_854_775_807
MAX_DECIMALS: Final = 20
MAX_DEPTH: Final = 5
MAX_STRINGS: Final = 30
MAX_OBJECTS: Final = 30
MAX_NUMBERS: Final = 1000


class CodeHandler(Handler):
    effect = True
    slot = "process"

    def __init__(self, sandbox: Sandbox, *, timeout_s: float = TIMEOUT_S) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s

    async def run(self, attempt: Attempt) -> Outcome:
        config = attempt.node.config
        inputs, shown = bound_values(config.variables, attempt.pool)
        try:
            done = await self._sandbox.run(config.code_language, config.code, inputs, timeout_s=self._timeout_s)
        except SandboxUnavailable as problem:
            return Failed(str(problem), "CodeExecutionError", inputs=shown)
        if done.error is not None:
            return Failed(done.error, "CodeExecutionError", inputs=shown)
        try:
            outputs = checked_outputs(done.result, config.outputs)
        except OutputInvalid as problem:
            return Failed(str(problem), problem.error_type, inputs=shown)
        # An empty list does not show what it is a list of.
        types = {name: config.outputs[name].type for name, value in outputs.items() if value == []}
        return Succeeded(outputs=outputs, inputs=shown, output_types=types)


def bound_values(bindings: Any, pool: Pool) -> tuple[Values, Values]:
    """Values for code and templates by name, and the same for records, which never show a secret.

    What is missing, and an empty list of files, is null.
    """
    values: Values = {}
    shown: Values = {}
    for binding in bindings:
        segment = pool.get(binding.value_selector)
        if segment is None or (segment.type == "array[file]" and not segment.value):
            values[binding.variable] = shown[binding.variable] = None
        else:
            values[binding.variable], shown[binding.variable] = segment.value, for_display(segment)
    return values, shown


class OutputInvalid(Exception):
    """The result is not what the node declares. The text names the output by its path."""

    error_type = "OutputValidationError"


class TooDeep(OutputInvalid):
    error_type = "DepthLimitError"


def checked_outputs(result: Mapping[str, JsonValue], declared: Mapping[str, Any]) -> Values:
    """The declared outputs, normalised. Raises OutputInvalid.

    `declared`: by name, with `type` and, for objects, `children` of the same shape.
    """
    return _members(result, declared, "", 1)


def _members(found: Mapping[str, JsonValue], declared: Mapping[str, Any], path: str, depth: int) -> Values:
    _check_depth(depth, path)
    outputs: Values = {}
    for name, output in declared.items():
        place = f"{path}.{name}" if path else name
        if name not in found:
            raise OutputInvalid(f"Output {place} is missing.")
        outputs[name] = _declared(found[name], output, place, depth)
    extra = [name for name in found if name not in declared]
    if extra:
        names = ", ".join(f"{path}.{name}" if path else name for name in extra[:10])
        raise OutputInvalid(f"Not all output parameters are validated. Returned but not declared: {names}")
    return outputs


def _declared(value: JsonValue, output: Any, place: str, depth: int) -> JsonValue:
    if value is None:
        return None
    match output.type:
        case "string":
            return _string(value, place)
        case "number":
            return _number(value, place)
        case "boolean":
            return value
        case "object":
            return _object(value, output.children, place, depth)
        case "array[number]":
            items = _list(value, place, MAX_NUMBERS)
            return [_number(item, f"{place}[{index}]") for index, item in enumerate(items)]
        case "array[string]":
            items = _list(value, place, MAX_STRINGS)
            return [_optional(_string, item, f"{place}[{index}]") for index, item in enumerate(items)]
        case "array[object]":
            items = _list(value, place, MAX_OBJECTS)
            return [
                None if item is None else _object(item, output.children, f"{place}[{index}]", depth)
                for index, item in enumerate(items)
            ]
        case "array[boolean]":
            items = _list(value, place, None)
            return [_optional(_boolean, item, f"{place}[{index}]") for index, item in enumerate(items)]
    raise OutputInvalid(f"Output {place} is declared as {output.type}, which a code node cannot return")


def _object(value: JsonValue, children: Mapping[str, Any] | None, place: str, depth: int) -> JsonValue:
    if not isinstance(value, dict):
        raise _mismatch(place, "an object", value)
    return _members(value, children, place, depth + 1) if children else _free_members(value, place, depth + 1)


def _free_members(found: Mapping[str, JsonValue], path: str, depth: int) -> Values:
    """An object whose members nobody declared."""
    _check_depth(depth, path)
    return {name: _free(value, f"{path}.{name}", depth) for name, value in found.items()}


def _free(value: JsonValue, place: str, depth: int) -> JsonValue:
    match value:
        case None | bool():
            return value
        case str():
            return _string(value, place)
        case int() | float():
            return _number(value, place)
        case dict():
            return _free_members(value, place, depth + 1)
        case list():
            return _free_list(value, place, depth)


def _free_list(items: list[JsonValue], place: str, depth: int) -> JsonValue:
    """All elements are of the kind of the first one, or null; a list that starts with null is anybody's."""
    _check_depth(depth, place)
    if not items or items[0] is None:
        return items
    kind = _kind(items[0])
    for index, item in enumerate(items):
        if item is not None and _kind(item) != kind:
            raise OutputInvalid(
                f"Output {place} is not a list of one kind: it starts with {kind}, {place}[{index}] is {_kind(item)}"
            )
    return [
        _free_list(item, f"{place}[{index}]", depth + 1)
        if isinstance(item, list)
        else _free(item, f"{place}[{index}]", depth)
        for index, item in enumerate(items)
    ]


def _kind(value: JsonValue) -> str:
    match value:
        case bool() | int() | float():
            return "a number"  # booleans count as numbers here
        case str():
            return "a string"
        case dict():
            return "an object"
        case list():
            return "a list"
    return "null"


def _optional(check: Any, item: JsonValue, place: str) -> JsonValue:
    return None if item is None else check(item, place)


def _string(value: JsonValue, place: str) -> str:
    if not isinstance(value, str):
        raise _mismatch(place, "a string", value)
    if len(value) > MAX_STRING_CHARS:
        raise OutputInvalid(
            f"The length of output {place} must be less than {MAX_STRING_CHARS} characters, got {len(value)}"
        )
    return value.replace("\x00", "")


def _number(value: JsonValue, place: str) -> int | float:
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int | float):
        raise _mismatch(place, "a number", value)
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise OutputInvalid(f"Output {place} is out of range: it must lie between {-MAX_NUMBER} and {MAX_NUMBER}")
    if isinstance(value, float) and _decimals(value) > MAX_DECIMALS:
        raise OutputInvalid(f"Output {place} is too precise: it must have less than {MAX_DECIMALS} decimal places")
    return value


def _decimals(value: float) -> int:
    if not math.isfinite(value):
        return 0
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return -exponent if isinstance(exponent, int) and exponent < 0 else 0


def _boolean(value: JsonValue, place: str) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(place, "a boolean", value)
    return value


def _list(value: JsonValue, place: str, most: int | None) -> list[JsonValue]:
    if not isinstance(value, list):
        raise _mismatch(place, "an array", value)
    if most is not None and len(value) > most:
        raise OutputInvalid(f"The length of output {place} must be less than {most} elements, got {len(value)}")
    return value


def _check_depth(depth: int, path: str) -> None:
    if depth > MAX_DEPTH:
        raise TooDeep(f"Output {path} is nested too deeply: at most {MAX_DEPTH} levels are allowed")


def _mismatch(place: str, expected: str, value: JsonValue) -> OutputInvalid:
    return OutputInvalid(f"Output {place} must be {expected}, got {type(value).__name__}")
