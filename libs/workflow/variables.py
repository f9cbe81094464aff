"""Environment and conversation variables of a document, and the default values of nodes: declared type and value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pydantic import JsonValue

from libs.events.ids import variable_id
from libs.workflow.problems import Findings, kind_of
from libs.workflow.segments import TypeMismatch, finite, read_json, typed, zero

MAX_VARIABLE_BYTES: Final = 200 * 1024

VARIABLE_TYPES: Final = (
    "string",
    "secret",
    "number",
    "integer",
    "float",
    "boolean",
    "object",
    "array[any]",
    "array[string]",
    "array[number]",
    "array[object]",
    "array[boolean]",
)
_LONGEST_ID: Final = 255
"""Characters. Ids are keys of a table; one that is longer, or has a NUL, is none."""

_NUMBERS: Final = frozenset({"number", "integer", "float"})
_DEFAULT_TYPES: Final = (
    "string",
    "number",
    "object",
    "array[string]",
    "array[number]",
    "array[object]",
    "array[file]",
)
_MEMBERS: Final[Mapping[str, type | tuple[type, ...]]] = {"string": str, "number": (int, float), "object": dict}


VariableKey = tuple[str, str]
"""Which conversation variable it is: its id in the document, and the family of its type. Its name may change; one of
another type is another variable.
"""


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment or conversation variable with its declared type and initial value."""

    name: str
    type: str
    value: JsonValue
    selector: tuple[str, ...]
    id: str
    """The document's, or where it has none of its own the one that follows from the name."""
    description: str = ""


def read_variables(
    raw: object, scope: Literal["env", "conversation"], at: str, findings: Findings
) -> tuple[Variable, ...]:
    """The variables of a list in the document. A mistake drops its entry and is reported."""
    if raw is None or raw == "":
        return ()
    if not isinstance(raw, list):
        findings.error(at, f"expected a list of variables, got {kind_of(raw)}")
        return ()
    made: dict[str, Variable] = {}
    for number, entry in enumerate(raw):
        place = f"{at}[{number}]"
        variable = _variable(entry, scope, place, findings)
        if variable is None:
            continue
        if variable.name in made:
            findings.warn(f"{place}.name", f'a second variable "{variable.name}"; the last one counts', "Remove one")
        if scope == "conversation" and any(v.id == variable.id and v.name != variable.name for v in made.values()):
            problem = f'"{variable.name}" has the id of another variable; it goes by its name'
            findings.warn(f"{place}.id", problem, "Give it an id of its own")
            variable = replace(variable, id=variable_id(variable.name))
        made[variable.name] = variable
    return tuple(made.values())


def _variable(entry: object, scope: str, at: str, findings: Findings) -> Variable | None:
    if not isinstance(entry, dict):
        findings.error(at, f"expected a mapping with name, value_type and value, got {kind_of(entry)}")
        return None
    name, declared = entry.get("name"), entry.get("value_type")
    if not isinstance(name, str) or not name:
        findings.error(f"{at}.name", f"expected a name, got {kind_of(name)}", "Every variable needs a name")
        return None
    if not isinstance(declared, str) or declared not in VARIABLE_TYPES:
        shown = f'"{declared[:40]}"' if isinstance(declared, str) else kind_of(declared)
        hint = findings.suggest(declared, VARIABLE_TYPES) if isinstance(declared, str) else ""
        findings.error(
            f"{at}.value_type", f"expected one of {', '.join(VARIABLE_TYPES)}; got {shown}", hint or "Give its type"
        )
        return None
    value = _value(name, declared, entry.get("value"), at, findings)
    if value is None:
        return None
    id_ = _text(entry.get("id"))
    if not 0 < len(id_) <= _LONGEST_ID or "\0" in id_:
        id_ = variable_id(name)
    return Variable(name, declared, value, (scope, name), id_, _text(entry.get("description")))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _value(name: str, declared: str, value: Any, at: str, findings: Findings) -> JsonValue:
    """The value under its declared type, or None after reporting why there is none."""
    if value is None:
        findings.warn(f"{at}.value", f'variable "{name}" has no value; an empty {declared} is used', "Set a value")
        return "" if declared == "secret" else zero(declared)
    if declared in _NUMBERS and isinstance(value, str):
        value = _number(value)
    if declared in ("string", "secret") and isinstance(value, int | float) and not isinstance(value, bool):
        findings.warn(f"{at}.value", "a number stands where text is declared; it is read as text", "Put it in quotes")
        value = str(value)
    if len(json.dumps(value, ensure_ascii=False).encode(errors="replace")) > MAX_VARIABLE_BYTES:
        findings.error(f"{at}.value", f'variable "{name}" is larger than {MAX_VARIABLE_BYTES} bytes', "Make it smaller")
        return None
    if not fits(value, declared):
        findings.error(
            f"{at}.value",
            f'variable "{name}" is declared as {declared}, its value is {kind_of(value)}',
            "Change the type or the value",
        )
        return None
    return value  # type: ignore[no-any-return]  # JSON: it comes from the parsed document


def fits(value: JsonValue, declared: str) -> bool:
    """Whether a variable that is declared as `declared` may hold the value."""
    try:
        typed(value, family(declared))
    except TypeMismatch:
        return _is_loose_array(value, declared)
    return True


def family(declared: str) -> str:
    """Of declared types that hold the same values, the one that stands for them."""
    if declared in _NUMBERS:
        return "number"
    return "string" if declared == "secret" else declared


def variable_key(id_: str, declared: str) -> VariableKey:
    return id_, family(declared)


def _is_loose_array(value: object, declared: str) -> bool:
    return isinstance(value, list) and declared == "array[any]"


def _number(text: str) -> int | float | str:
    try:
        return finite(text) if "." in text else int(text)
    except ValueError:
        return text


# --- default values of nodes -----------------------------------------------------------------------------------------


def read_defaults(raw: object, at: str, findings: Findings) -> dict[str, JsonValue]:
    """What successors see of a failed node: `default_value` converted to its declared types, by key."""
    if raw is None or raw == "":
        return {}
    if not isinstance(raw, list):
        findings.error(at, f"expected a list of key, type and value, got {kind_of(raw)}")
        return {}
    defaults: dict[str, JsonValue] = {}
    for number, entry in enumerate(raw):
        place = f"{at}[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            findings.error(place, "expected a mapping with key, type and value")
            continue
        declared = entry.get("type")
        if declared not in _DEFAULT_TYPES:
            hint = findings.suggest(declared, _DEFAULT_TYPES) if isinstance(declared, str) else ""
            findings.error(f"{place}.type", f"expected one of {', '.join(_DEFAULT_TYPES)}", hint)
            continue
        try:
            defaults[entry["key"]] = converted_default(entry.get("value"), declared)
        except ValueError as error:
            findings.error(f"{place}.value", f'default of "{entry["key"]}": {error}', "Correct the default value")
    return defaults


def converted_default(value: Any, declared: str) -> JsonValue:
    """The value of a default under its declared type; text is converted. Raises ValueError when it does not fit."""
    if isinstance(value, str) and declared != "string":
        value = _converted(value, declared)
    if declared == "array[file]":
        return value  # type: ignore[no-any-return]  # JSON; lists of files are not checked by the format
    if declared.startswith("array["):
        members = _MEMBERS[declared[6:-1]]
        if not isinstance(value, list):
            raise ValueError(f"expected {declared}, got {kind_of(value)}")
        wrong = next((number for number, member in enumerate(value) if not isinstance(member, members)), None)
        if wrong is not None:
            raise ValueError(f"expected {declared}, element {wrong} is {kind_of(value[wrong])}")
    elif not isinstance(value, _MEMBERS[declared]):
        raise ValueError(f"expected {declared}, got {kind_of(value)}")
    return value  # type: ignore[no-any-return]  # JSON, checked above


def _converted(text: str, declared: str) -> Any:
    try:
        return finite(text) if declared == "number" else read_json(text)
    except ValueError:
        form = "a number" if declared == "number" else "JSON"
        raise ValueError(f"expected {declared}, got text that is not {form}") from None
