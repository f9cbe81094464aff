"""Conditions over the pool: the cases of an if-else node and the break conditions of a loop.

Conditions are read by attribute (`variable_selector`, `comparison_operator`, `value`, `sub_variable_condition`), so any
config model that has these names will do. Evaluation stops at the first condition that decides; what was evaluated up
to there is recorded for the node's record. A condition that cannot be evaluated is an error, never false.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from pydantic import JsonValue

from libs.workflow.pool import Pool
from libs.workflow.problems import WorkflowError
from libs.workflow.segments import FILE_ATTRIBUTES, Segment, file_attribute, for_display, read_json
from libs.workflow.templates import render_log, render_text

Values = dict[str, JsonValue]
LogicalOperator = Literal["and", "or"]


class Condition(Protocol):
    @property
    def variable_selector(self) -> Sequence[str]: ...
    @property
    def comparison_operator(self) -> str: ...
    @property
    def value(self) -> Any: ...  # str, list of str, or bool
    @property
    def sub_variable_condition(self) -> Any: ...  # {logical_operator, conditions: [{key, comparison_operator, value}]}


class Case(Protocol):
    @property
    def case_id(self) -> str: ...
    @property
    def logical_operator(self) -> str: ...
    @property
    def conditions(self) -> Sequence[Any]: ...


@dataclass(slots=True)
class Verdict:
    """What came out of a list of conditions, with one result and one record per evaluated condition."""

    holds: bool = False
    results: list[bool] = field(default_factory=list)
    compared: list[JsonValue] = field(default_factory=list)
    """`{actual_value, expected_value, comparison_operator}`; tests of existence and of files leave none."""


@dataclass(slots=True)
class Choice:
    """Which case was chosen, with the records of the evaluation."""

    case_id: str | None = None
    """None: no case holds."""
    conditions: list[JsonValue] = field(default_factory=list)
    """Records of the case evaluated last."""
    condition_results: list[JsonValue] = field(default_factory=list)
    """One `{group, results, final_result}` per evaluated case."""


class ConditionError(WorkflowError):
    """A condition cannot be evaluated; the text says why, without values, which may hold secrets.

    `choice`: the records of the cases before it.
    """

    choice: Choice | None = None


class VariableMissing(ConditionError):
    """A condition names a variable that is not in the pool."""

    def __init__(self, selector: Sequence[str]) -> None:
        super().__init__(f"Variable {list(selector)} not found")


def evaluate(conditions: Sequence[Condition], logical_operator: str, pool: Pool) -> Verdict:
    """Whether the conditions hold. No condition at all: true for `and`, false for `or`. Raises ConditionError."""
    verdict = Verdict(holds=logical_operator == "and")
    for condition in conditions:
        holds = _holds(condition, pool, verdict.compared)
        verdict.results.append(holds)
        if holds != (logical_operator == "and"):
            verdict.holds = holds
            break
    return verdict


def evaluate_cases(cases: Sequence[Case], pool: Pool) -> Choice:
    """The first case that holds; later ones are not looked at. Raises ConditionError."""
    choice = Choice()
    for case in cases:
        verdict = _recorded(choice, _as_json(case), case.conditions, case.logical_operator, pool)
        if verdict.holds:
            choice.case_id = case.case_id
            break
    return choice


def evaluate_legacy(conditions: Sequence[Condition], logical_operator: str, pool: Pool) -> Choice:
    """The form with one unnamed case: `case_id` is `true` or None. Raises ConditionError."""
    choice = Choice()
    if _recorded(choice, "default", conditions, logical_operator, pool).holds:
        choice.case_id = "true"
    return choice


def compare(operator: str, actual: JsonValue, expected: JsonValue) -> bool:
    """Apply one comparison operator. Raises ConditionError when it is unknown or the values do not suit it."""
    rule = _RULES.get(operator)
    if rule is None:
        raise ConditionError(f"Unknown comparison operator {operator!r}")
    return rule(actual, expected)


def _recorded(
    choice: Choice, group: JsonValue, conditions: Sequence[Condition], logical_operator: str, pool: Pool
) -> Verdict:
    try:
        verdict = evaluate(conditions, logical_operator, pool)
    except ConditionError as error:
        error.choice = choice
        raise
    results: list[JsonValue] = list(verdict.results)
    choice.conditions = verdict.compared
    choice.condition_results.append({"group": group, "results": results, "final_result": verdict.holds})
    return verdict


def _as_json(case: Any) -> JsonValue:
    group: JsonValue = case.model_dump(mode="json") if hasattr(case, "model_dump") else case.case_id
    return group


def _holds(condition: Condition, pool: Pool, compared: list[JsonValue]) -> bool:
    operator = condition.comparison_operator
    segment = pool.get(condition.variable_selector)
    if segment is None:
        raise VariableMissing(condition.variable_selector)
    if segment.type == "array[file]" and operator in ("contains", "not contains", "all of"):
        return _files_match(segment, condition)
    if operator in ("exists", "not exists"):
        return compare(operator, segment.value, None)
    expected, shown = _expected(condition, segment, pool)
    compared.append({"actual_value": for_display(segment), "expected_value": shown, "comparison_operator": operator})
    return compare(operator, segment.value, expected)


def _expected(condition: Condition, segment: Segment, pool: Pool) -> tuple[JsonValue, JsonValue]:
    """The expected value to compare with, and the form of it that a record may show."""
    expected = shown = condition.value
    if isinstance(expected, str):
        expected, shown = render_text(expected, pool), render_log(expected, pool)
    if segment.type in ("boolean", "array[boolean]") and condition.comparison_operator not in _WITHOUT_EXPECTED:
        several = isinstance(expected, list | tuple)
        expected = shown = [_as_bool(item) for item in expected] if several else _as_bool(expected)
    return expected, list(shown) if isinstance(shown, tuple) else shown


def _as_bool(expected: object) -> bool:
    if isinstance(expected, int):
        return bool(expected)
    if isinstance(expected, str):
        try:
            parsed = read_json(expected)
        except ValueError:
            parsed = None
        if isinstance(parsed, int):
            return bool(parsed)
    raise ConditionError("the expected value for a boolean variable must be true, false or an integer")


def _files_match(segment: Segment, condition: Condition) -> bool:
    """The sub-conditions on the attributes of the files. Which of the three outer operators it is does not matter."""
    outer = condition.sub_variable_condition
    if not outer:
        raise ConditionError(f"{'.'.join(condition.variable_selector)}: a list of files needs conditions on its files")
    files = segment.value if isinstance(segment.value, list) else []
    results = [_every_or_any(sub, files) for sub in outer.conditions]
    return all(results) if outer.logical_operator == "and" else any(results)


def _every_or_any(sub: Any, files: Sequence[JsonValue]) -> bool:
    if sub.key not in FILE_ATTRIBUTES:
        known = ", ".join(sorted(FILE_ATTRIBUTES))
        raise ConditionError(f"Unknown file attribute {sub.key!r}, expected one of {known}")
    values = [file_attribute(file, sub.key) for file in files if isinstance(file, Mapping)]
    expected = sub.value
    if sub.key == "extension":
        if not isinstance(expected, str):
            raise ConditionError("the expected value of a condition on `extension` must be a string")
        expected, values = _dotted(expected), [_dotted(value) for value in values]
    results = (compare(sub.comparison_operator, value, expected) for value in values)
    return all(results) if "not" in sub.comparison_operator else any(results)


def _dotted(extension: JsonValue) -> JsonValue:
    if isinstance(extension, str) and extension and not extension.startswith("."):
        return f".{extension}"
    return extension


# --- the operators ---------------------------------------------------------------------------------------------------


def _contains(actual: JsonValue, expected: JsonValue) -> bool:
    if not actual:
        return False
    if isinstance(actual, str):
        return str(expected) in actual
    return expected in _is_a(actual, list, "contains: a string or a list")


def _starts(actual: JsonValue, expected: JsonValue) -> bool:
    return bool(actual) and str(_is_a(actual, str, "start with: a string")).startswith(_text(expected))


def _ends(actual: JsonValue, expected: JsonValue) -> bool:
    return bool(actual) and str(_is_a(actual, str, "end with: a string")).endswith(_text(expected))


def _is(actual: JsonValue, expected: JsonValue) -> bool:
    return actual is not None and bool(_is_a(actual, (str, bool), "is: a string or a boolean") == expected)


def _is_not(actual: JsonValue, expected: JsonValue) -> bool:
    # Nothing is neither equal nor different: null makes both `is` and `is not` false.
    return actual is not None and not _is(actual, expected)


def _in(actual: JsonValue, expected: JsonValue) -> bool:
    return bool(actual) and actual in _is_a(expected, (list, tuple), "in: a list as expected value")


def _not_in(actual: JsonValue, expected: JsonValue) -> bool:
    return not actual or not _in(actual, expected)


def _all_of(actual: JsonValue, expected: JsonValue) -> bool:
    if not actual:
        return False
    items = _is_a(expected, (list, tuple), "all of: a list as expected value")
    if not (all(isinstance(item, str) for item in items) or all(isinstance(item, bool) for item in items)):
        raise ConditionError("all of: the expected list must hold only strings or only booleans")
    _is_a(actual, (str, list), "all of: a list or a string")
    if isinstance(actual, str):
        return all(str(item) in actual for item in items)
    return all(item in actual for item in items)  # type: ignore[operator]  # a list, as just checked


def _equal(actual: JsonValue, expected: JsonValue) -> bool:
    if actual is None:
        return False
    number = _is_a(actual, (int, float), "=: a number or a boolean")
    try:
        if isinstance(number, bool):
            return number == bool(expected)
        return bool(number == (int if isinstance(number, int) else float)(expected))  # type: ignore[arg-type]  # caught
    except (TypeError, ValueError) as error:
        kind = "an integer" if isinstance(number, int) else "a number"
        raise ConditionError(f"the expected value is not {kind}") from error


def _not_equal(actual: JsonValue, expected: JsonValue) -> bool:
    return actual is not None and not _equal(actual, expected)


def _ordered(test: Callable[[int | float, int | float], bool], operator: str) -> Callable[[JsonValue, JsonValue], bool]:
    def holds(actual: JsonValue, expected: JsonValue) -> bool:
        if actual is None:
            return False
        number = _is_a(actual, (int, float), f"{operator}: a number")
        return test(number, _number(expected))

    return holds


def _number(expected: JsonValue) -> int | float:
    """An int where the text is a whole number, so that large integers compare exactly."""
    if isinstance(expected, int | float):
        return expected
    try:
        return int(expected)  # type: ignore[arg-type]  # what is neither text nor number raises TypeError
    except (TypeError, ValueError):
        try:
            return float(expected)  # type: ignore[arg-type]  # as above
        except (TypeError, ValueError) as error:
            raise ConditionError("the expected value is not a number") from error


def _text(expected: JsonValue) -> str:
    return str(_is_a(expected, str, "expected value: a string"))


def _is_a(value: JsonValue, kinds: type | tuple[type, ...], wanted: str) -> Any:
    if not isinstance(value, kinds):
        operator, _, words = wanted.partition(": ")
        raise ConditionError(f"{operator}: expected {words}, got {type(value).__name__}")
    return value


_RULES: Final[dict[str, Callable[[JsonValue, JsonValue], bool]]] = {
    "contains": _contains,
    "not contains": lambda actual, expected: not _contains(actual, expected),
    "start with": _starts,
    "end with": _ends,
    "is": _is,
    "is not": _is_not,
    "empty": lambda actual, _: not actual,
    "not empty": lambda actual, _: bool(actual),
    "in": _in,
    "not in": _not_in,
    "all of": _all_of,
    "=": _equal,
    "≠": _not_equal,
    ">": _ordered(lambda a, b: a > b, ">"),
    "<": _ordered(lambda a, b: a < b, "<"),
    "≥": _ordered(lambda a, b: a >= b, "≥"),
    "≤": _ordered(lambda a, b: a <= b, "≤"),
    "null": lambda actual, _: actual is None,
    "not null": lambda actual, _: actual is not None,
    "exists": lambda actual, _: actual is not None,
    "not exists": lambda actual, _: actual is None,
}
_WITHOUT_EXPECTED: Final = frozenset({"empty", "not empty", "null", "not null", "exists", "not exists"})
OPERATORS: Final = frozenset(_RULES)
