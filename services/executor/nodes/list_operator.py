"""`list-operator`: filters a list, then extracts one element, orders, and cuts it, in this order."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import JsonValue

from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.pool import Pool, Segment
from libs.workflow.segments import file_attribute
from libs.workflow.templates import render_text
from services.executor.nodes.port import Handler


class ListOperatorHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        config = node.config
        segment = pool.get(config.variable)
        if segment is None:
            return Failed(f"Variable {list(config.variable)} not found")
        items = segment.value or []  # whatever is empty is an empty list
        if not isinstance(items, list):
            return Failed(f"{'.'.join(config.variable)}: expected a list, got a {segment.type}")
        record: dict[str, JsonValue] = {"variable": items}
        if items and segment.type not in _SUPPORTED:
            problem = f"{'.'.join(config.variable)}: a list of type {segment.type} is not supported"
            return Failed(problem, inputs=record, process_data=record)
        try:
            result = _applied(config, items, segment.type, pool) if items else []
        except _Refused as error:
            return Failed(str(error), inputs=record, process_data=record)
        except _Thrown as error:
            return Failed(str(error), "WorkflowNodeError", inputs=record, process_data=record)
        return _succeeded(result, segment, record)


def _succeeded(result: list[JsonValue], segment: Segment, record: dict[str, JsonValue]) -> Outcome:
    kind = segment.type if isinstance(segment.value, list) else "array[any]"
    return Succeeded(
        outputs={
            "result": result,
            "first_record": result[0] if result else None,
            "last_record": result[-1] if result else None,
        },
        inputs=record,
        process_data=record,
        output_types={"result": kind},
    )


class _Refused(Exception):
    """The settings do not suit the list: an ordinary failure, without a class name in the contract."""


class _Thrown(Exception):
    """A wrong type or an unreadable number: `WorkflowNodeError` in the contract."""


def _applied(config: Any, items: list[JsonValue], kind: str, pool: Pool) -> list[JsonValue]:
    if config.filter_by is not None and config.filter_by.enabled:
        for condition in config.filter_by.conditions:
            test = _test(condition, kind, pool)
            items = [item for item in items if test(item)]
    if config.extract_by is not None and config.extract_by.enabled:
        items = [_extracted(config.extract_by.serial, items, pool)]
    if config.order_by is not None and config.order_by.enabled:
        items = _ordered(config.order_by, items, kind)
    if config.limit is not None and config.limit.enabled:
        items = items[: config.limit.size]
    return items


# --- filter ----------------------------------------------------------------------------------------------------------

_Test = Callable[[Any], bool]


def _test(condition: Any, kind: str, pool: Pool) -> _Test:
    operator, value = condition.comparison_operator, _rendered(condition.value, pool)
    match kind:
        case "array[string]":
            return _text_test(operator, value)
        case "array[number]":
            return _number_test(operator, value)
        case "array[boolean]":
            return _boolean_test(operator, value)
    return _file_test(condition.key, operator, value)


def _rendered(value: Any, pool: Pool) -> Any:
    if isinstance(value, str):
        return render_text(value, pool)
    if isinstance(value, list | tuple):
        return [_rendered(item, pool) for item in value]
    return value


def _text_test(operator: str, value: Any) -> _Test:
    if not isinstance(value, str):
        raise _Refused(f"filter: expected a text as value of {operator!r}, got {type(value).__name__}")
    rule = _TEXT_RULES.get(operator)
    if rule is None:
        raise _Refused(f"filter: operator {operator!r} is not supported for texts")
    return lambda item: rule(item, value)


_TEXT_RULES: Final[dict[str, Callable[[str, str], bool]]] = {
    "contains": lambda item, value: value in item,
    "not contains": lambda item, value: value not in item,
    "start with": lambda item, value: item.startswith(value),
    "end with": lambda item, value: item.endswith(value),
    "is": lambda item, value: item == value,
    "is not": lambda item, value: item != value,
    "in": lambda item, value: item in value,
    "not in": lambda item, value: item not in value,
    "empty": lambda item, _: item == "",
    "not empty": lambda item, _: item != "",
}


def _number_test(operator: str, value: Any) -> _Test:
    if not isinstance(value, str):
        raise _Refused(f"filter: expected a number as text for {operator!r}, got {type(value).__name__}")
    rule = _NUMBER_RULES.get(operator)
    if rule is None:
        raise _Refused(f"filter: operator {operator!r} is not supported for numbers")
    try:
        number = float(value)
    except ValueError as error:
        raise _Thrown(f"filter: the value of {operator!r} is not a number") from error
    return lambda item: rule(item, number)


_NUMBER_RULES: Final[dict[str, Callable[[float, float], bool]]] = {
    "=": lambda item, value: item == value,
    "≠": lambda item, value: item != value,
    "<": lambda item, value: item < value,
    "≤": lambda item, value: item <= value,
    ">": lambda item, value: item > value,
    "≥": lambda item, value: item >= value,
}


def _boolean_test(operator: str, value: Any) -> _Test:
    if not isinstance(value, bool):
        raise _Thrown(f"filter: expected true or false as value of {operator!r}, got {type(value).__name__}")
    match operator:
        case "is":
            return lambda item: bool(item == value)
        case "is not":
            return lambda item: bool(item != value)
    raise _Refused(f"filter: operator {operator!r} is not supported for booleans")


def _file_test(key: str, operator: str, value: Any) -> _Test:
    if key in _FILE_TEXTS:
        test = _text_test(operator, value)
        return lambda file: test(str(file_attribute(file, key) or ""))
    if key in ("type", "transfer_method"):
        return _membership(key, operator, value)
    if key == "size":
        test = _number_test(operator, value)
        return lambda file: test(_size(file))
    raise _Refused(f"filter: unknown file attribute {key!r}")


def _membership(key: str, operator: str, value: Any) -> _Test:
    if not isinstance(value, list):
        raise _Refused(f"filter: expected a list as value for {key!r}, got {type(value).__name__}")
    match operator:
        case "in":
            return lambda file: file_attribute(file, key) in value
        case "not in":
            return lambda file: file_attribute(file, key) not in value
    raise _Refused(f"filter: operator {operator!r} is not supported for {key!r}, use 'in' or 'not in'")


_FILE_TEXTS: Final = frozenset({"name", "extension", "mime_type", "url", "related_id"})
_SUPPORTED: Final = frozenset({"array[string]", "array[number]", "array[file]", "array[boolean]"})


def _size(file: Any) -> float:
    size = file_attribute(file, "size")
    return size if isinstance(size, int | float) else -1  # -1: unknown


# --- extract, order --------------------------------------------------------------------------------------------------


def _extracted(serial: str, items: Sequence[JsonValue], pool: Pool) -> JsonValue:
    try:
        number = int(render_text(serial, pool))
    except ValueError as error:
        raise _Thrown("extract: the number of the element is not an integer") from error
    if number < 1:
        raise _Thrown(f"extract: expected the number of an element, from 1, got {number}")
    if number > len(items):
        raise _Refused(f"extract: element {number} was asked for, the list has {len(items)}")
    return items[number - 1]


def _ordered(order: Any, items: list[JsonValue], kind: str) -> list[JsonValue]:
    return sorted(items, key=_order_key(order.key, kind), reverse=order.value == "desc")


def _order_key(attribute: str, kind: str) -> Callable[[Any], Any]:
    if kind != "array[file]":
        return lambda item: item
    if attribute == "size":
        return _size
    if attribute in _FILE_TEXTS or attribute in ("type", "transfer_method"):
        return lambda file: str(file_attribute(file, attribute) or "")
    raise _Refused(f"order: unknown file attribute {attribute!r}")
