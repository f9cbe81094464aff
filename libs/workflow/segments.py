"""Values with a type: inference, declared types, and the ways a value is written as text.

A value is plain JSON. Its type is mostly what the value shows; a declared type says what the value cannot
(`secret`, an empty `array[file]`). Files are mappings with the model identity of `FILE_IDENTITY`.

Text forms, by reader: `as_text` (prompts, HTTP, conditions), `as_markdown` (answers, streams), `as_log` (records; the
only form that masks secrets). Lists other than lists of strings appear in Python notation, as the document format's
other engines write them and as prompts have come to expect.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from libs.workflow.problems import WorkflowError

FILE_IDENTITY: Final = "__dify__file__"

# Attribute of a selector, a condition or the list operator -> field of the file value.
_FILE_FIELDS: Final = {
    "type": "type",
    "size": "size",
    "name": "filename",
    "mime_type": "mime_type",
    "transfer_method": "transfer_method",
    "url": "url",
    "extension": "extension",
    "related_id": "related_id",
}
FILE_ATTRIBUTES: Final = frozenset(_FILE_FIELDS)

ARRAY_TYPES: Final = frozenset(
    {"array[any]", "array[string]", "array[number]", "array[object]", "array[file]", "array[boolean]"}
)
NUMBER_TYPES: Final = frozenset({"number", "integer", "float"})

# Newer payloads keep the record behind a file under one name, older ones under a name per origin.
_RECORD_FIELDS: Final = ("related_id", "reference", "upload_file_id", "tool_file_id", "datasource_file_id")

_ZERO: Final[dict[str, JsonValue]] = {
    "object": {},
    "string": "",
    "integer": 0,
    "float": 0.0,
    "number": 0,
    "boolean": False,
    "array[any]": [],
    "array[string]": [],
    "array[number]": [],
    "array[object]": [],
    "array[boolean]": [],
}


class TypeMismatch(WorkflowError):
    """A value does not fit its declared type, or the type has no such value."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A value of the pool with its type."""

    type: str
    value: JsonValue

    @property
    def shown_type(self) -> str:
        """The type as clients see it: whole and broken numbers are both `number`."""
        return "number" if self.type in NUMBER_TYPES else self.type


NONE: Final = Segment("none", None)


def infer(value: JsonValue) -> Segment:
    """The value with the type it shows. Raises TypeMismatch when it is not JSON."""
    return Segment(_type_of(value), value)


def typed(value: JsonValue, declared: str) -> Segment:
    """The value under a declared type, without any conversion. Raises TypeMismatch.

    `number` takes whole and broken numbers and yields the one the value is; an empty list fits every array type.
    """
    shown = _type_of(value)
    if shown == declared or (declared == "number" and shown in ("integer", "float")):
        return Segment(shown, value)
    if (value == [] and declared in ARRAY_TYPES) or (declared == "secret" and shown == "string"):
        return Segment(declared, value)
    raise TypeMismatch(f"expected a value of type {declared}, got {shown}")


def zero(declared: str) -> JsonValue:
    """A new empty value of the type (what clearing a variable leaves). Raises TypeMismatch when there is none."""
    if declared not in _ZERO:
        raise TypeMismatch(f"a variable of type {declared} cannot be cleared")
    value = _ZERO[declared]
    return value.copy() if isinstance(value, (dict, list)) else value


def is_file(value: JsonValue) -> bool:
    return isinstance(value, dict) and value.get("dify_model_identity") == FILE_IDENTITY


def files_in(value: JsonValue) -> list[dict[str, JsonValue]]:
    """The file values that a value is, or is a list of."""
    return [
        each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict) and is_file(each)
    ]


def file_attribute(file: Mapping[str, JsonValue], attribute: str) -> JsonValue:
    """An attribute of a file value. Raises KeyError for a name outside FILE_ATTRIBUTES."""
    field = _FILE_FIELDS[attribute]
    if field == "url":
        return file.get("url") or file.get("remote_url")
    if field == "related_id":
        return next((file[name] for name in _RECORD_FIELDS if file.get(name)), None)
    return file.get(field)


def declared_types(segments: Mapping[str, Segment]) -> dict[str, str]:
    """The types that a reader of the bare values would not find again, by name."""
    return {name: segment.type for name, segment in segments.items() if segment.type != _type_of(segment.value)}


def read_json(text: str) -> JsonValue:
    """JSON as the log gives it back: Python's NaN and Infinity are none, nor is a number too large for a float.

    Raises ValueError.
    """
    try:
        value: JsonValue = json.loads(text, parse_constant=_refused, parse_float=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def finite(text: str) -> float:
    """A number in a text; infinity and no number are none. Raises ValueError."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large, or none")
    return number


def mask(secret: str) -> str:
    """What a record shows of a secret."""
    if not secret:
        return ""
    return "*" * 20 if len(secret) <= 8 else f"{secret[:6]}{'*' * 12}{secret[-2:]}"


def for_display(segment: Segment) -> JsonValue:
    """The value as JSON for records and people: a secret is masked."""
    return mask(str(segment.value)) if segment.type == "secret" else segment.value


def as_text(segment: Segment) -> str:
    """The form of prompts, HTTP requests and conditions; secrets are plain."""
    value = segment.value
    if isinstance(value, str):
        return value
    if value is None or segment.type in ("file", "array[file]") or value == []:
        return ""
    if isinstance(value, dict) or segment.type == "array[string]":
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def as_markdown(segment: Segment) -> str:
    """The form of answers and streams; secrets are plain."""
    value = segment.value
    if isinstance(value, list):
        return "\n".join(_file_link(item) if is_file(item) else f"- {item}" for item in value)
    if isinstance(value, dict):
        return _file_link(value) if segment.type == "file" else json.dumps(value, ensure_ascii=False, indent=2)
    return as_text(segment)


def as_log(segment: Segment) -> str:
    """The form of records: secrets are masked."""
    value = segment.value
    if segment.type == "secret":
        return mask(str(value))
    if segment.type in ("file", "array[file]"):
        return ""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, indent=2)
    return str(value) if isinstance(value, list) else as_text(segment)


def _file_link(file: JsonValue) -> str:
    assert isinstance(file, dict)
    url = str(file_attribute(file, "url") or "")
    link = f"[{file.get('filename') or url}]({url})"
    return f"!{link}" if file.get("type") == "image" else link


def _type_of(value: JsonValue) -> str:
    kind = type(value)
    if kind is str:
        return "string"
    if kind is dict:
        return "file" if is_file(value) else "object"
    if kind is list:
        return _array_type(value)  # type: ignore[arg-type]  # `kind is list`, which mypy does not follow
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise TypeMismatch(f"expected a JSON value, got {kind.__name__}")
    return scalar


_SCALARS: Final = {type(None): "none", bool: "boolean", int: "integer", float: "float"}
_ARRAY_OF: Final = {
    "string": "array[string]",
    "integer": "array[number]",
    "float": "array[number]",
    "object": "array[object]",
    "file": "array[file]",
    "boolean": "array[boolean]",
}


def _array_type(values: list[JsonValue]) -> str:
    """The one array type that all elements agree on, else `array[any]`: also for empty lists, lists in lists, nulls."""
    found = ""
    for value in values:
        kind = "" if type(value) is list else _ARRAY_OF.get(_type_of(value), "")
        if not kind or kind != (found or kind):
            return "array[any]"
        found = kind
    return found or "array[any]"
