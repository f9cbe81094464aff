"""Inputs of a run against the input form of the start node: checked before the run, all mistakes at once.

The texts follow the reference where clients match on them ("city is required in input form"). Values are never quoted.
Uploaded files are not looked up here: whoever stores uploads puts name, size and media type into the mapping before.
"""

import mimetypes
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import JsonValue

from libs.workflow.configs.flow import StartVariable
from libs.workflow.definition import Definition
from libs.workflow.problems import WorkflowError, kind_of
from libs.workflow.segments import FILE_IDENTITY, read_json

__all__ = [
    "InputInvalid",
    "StartVariable",
    "accepted_files",
    "allowed_file",
    "file_value",
    "takes_files",
    "type_of_extension",
    "type_of_file",
    "validate_inputs",
]

_WORDS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
FILE_TYPES: Final[Mapping[str, frozenset[str]]] = {
    "image": frozenset({"jpg", "jpeg", "png", "webp", "gif", "svg"}),
    "video": frozenset({"mp4", "mov", "mpeg", "webm"}),
    "audio": frozenset({"mp3", "m4a", "wav", "amr", "mpga"}),
    "document": frozenset(
        "txt markdown md mdx pdf html htm xlsx xls vtt properties doc docx csv eml msg ppt pptx xml epub odt".split()
    ),
}
_OFFICE: Final = "application/vnd.openxmlformats-officedocument"
_MIME_TYPES: Final[Mapping[str, str]] = {
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "pptx": f"{_OFFICE}.presentationml.presentation",
    "odt": "application/vnd.oasis.opendocument.text",
    "epub": "application/epub+zip",
    "msg": "application/vnd.ms-outlook",
    "md": "text/markdown",
    "markdown": "text/markdown",
    "mdx": "text/markdown",
    "webp": "image/webp",
    "m4a": "audio/mp4",
    "amr": "audio/amr",
    "mpga": "audio/mpeg",
    "xml": "application/xml",
}
"""Of extensions that Python does not know, or not in every version."""
_STANDARD: Final = mimetypes.MimeTypes()
"""Python's own list, without what files of this machine add to it: all replicas say the same."""
_RECORDS: Final = ("upload_file_id", "tool_file_id", "datasource_file_id", "reference", "related_id")


_EVENTFUL: Final = frozenset({"trigger-webhook", "trigger-plugin"})


class InputInvalid(WorkflowError):
    """The inputs do not fit the input form. `problems`: one text per mistake, each with the variable's name."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("; ".join(self.problems))


class _Wrong(Exception):
    """One value does not fit its variable; the text says why."""


def validate_inputs(
    definition: Definition, inputs: Mapping[str, Any], *, files: Sequence[Any] | None = None
) -> dict[str, JsonValue]:
    """The value of every declared variable; unknown inputs are dropped. Raises InputInvalid.

    Where a trigger begins the run there is no form: its inputs are the event, kept as it is.
    `files`: the request's files beside the inputs, checked against what the workflow's features allow.
    """
    if not isinstance(inputs, Mapping):
        raise InputInvalid([f"inputs must be an object, got {kind_of(inputs)}"])
    values: dict[str, JsonValue] = dict(inputs) if definition.nodes[definition.root].type in _EVENTFUL else {}
    strict = definition.mode == "workflow"  # chatflows and lists of files take a type as it is given
    problems: list[str] = []
    for variable in definition.start_variables:
        try:
            given = inputs.get(variable.variable)
            values[variable.variable] = _value(variable, given)
            if strict and variable.type == "file" and isinstance(given, dict):
                _check_type(variable.variable, given)
        except _Wrong as wrong:
            problems.append(str(wrong))
    try:
        accepted_files(definition, files or ())
    except InputInvalid as error:
        problems.extend(error.problems)
    if problems:
        raise InputInvalid(problems)
    return values


def takes_files(definition: Definition) -> bool:
    """Whether files beside the inputs mean anything: a chatflow may have its upload switched off."""
    return definition.mode != "advanced-chat" or _upload_rules(definition).get("enabled") is True


def _upload_rules(definition: Definition) -> Mapping[str, Any]:
    upload = definition.features.get("file_upload")
    return upload if isinstance(upload, dict) else {}


class FilesInvalid(InputInvalid):
    """The top-level files are what does not fit."""


def accepted_files(definition: Definition, files: Sequence[Any]) -> list[JsonValue]:
    """The file values of `sys.files`. Raises FilesInvalid.

    Entries without a method or without their URL are dropped; a chatflow without file upload drops all.
    """
    if not takes_files(definition):
        return []
    rules = _upload_rules(definition)
    usable = [
        file
        for file in files
        if isinstance(file, dict)
        and file.get("transfer_method")
        and (file["transfer_method"] != "remote_url" or _url(file))
    ]
    made: list[JsonValue] = []
    problems: list[str] = []
    limit = rules.get("number_limits")
    if isinstance(limit, int) and 0 < limit < len(usable):
        problems.append(f"files: at most {limit} are allowed, got {len(usable)}")
    for number, file in enumerate(usable):
        try:
            made.append(file_value(file))
            if definition.mode == "workflow":
                _check_type(f"files[{number}]", file)
            if rules.get("enabled") is True:
                _check_allowed(f"files[{number}]", file, rules)
        except (_Wrong, ValueError) as wrong:
            problems.append(str(wrong) if isinstance(wrong, _Wrong) else f"files[{number}] {wrong}")
    if problems:
        raise FilesInvalid(problems)
    return made


def _value(variable: StartVariable, given: Any) -> JsonValue:
    name = variable.variable
    if given == "" and variable.type in ("file", "file-list"):
        given = None
    if given is None:
        if variable.required:
            raise _Wrong(f"{name} is required in input form")
        given = _default(variable)
        if given is None:
            return None
    if variable.type not in ("file", "file-list", "json_object") and (
        isinstance(given, dict) or (isinstance(given, list) and any(isinstance(each, dict) for each in given))
    ):
        raise _Wrong(f"{name} in input form must be {_WANTED[variable.type]}, got {kind_of(given)}")
    return _READERS[variable.type](variable, _without_nul(given))


def _default(variable: StartVariable) -> Any:
    default = variable.default
    if default == "" and variable.type not in ("text-input", "paragraph"):
        return None
    if variable.type == "json_object" and isinstance(default, str):
        try:
            return read_json(default)
        except ValueError:
            return default
    if variable.type in ("text-input", "paragraph", "select") and isinstance(default, int | float):
        return str(default)  # an unquoted default in YAML
    return default if default != [] or variable.type == "file-list" else None


def _without_nul(value: Any) -> Any:
    return value.replace("\x00", "") if isinstance(value, str) else value


# --- readers by type -------------------------------------------------------------------------------------------------


def _text(variable: StartVariable, given: Any) -> JsonValue:
    if not isinstance(given, str):
        raise _Wrong(
            f"{variable.variable} in input form must be a string (type '{variable.type}'), got {kind_of(given)}"
        )
    limit = variable.max_length
    if limit and variable.type != "select" and len(given) > limit:
        raise _Wrong(
            f"{variable.variable} in input form must be less than {limit} characters (at most {limit}), "
            f"got {len(given)}"
        )
    return given


def _select(variable: StartVariable, given: Any) -> JsonValue:
    text = _text(variable, given)
    if text not in variable.options:
        options = ", ".join(variable.options) or "(the form lists no option)"
        raise _Wrong(f"{variable.variable} in input form must be one of the following: {options}")
    return text


def _number(variable: StartVariable, given: Any) -> JsonValue:
    if isinstance(given, int | float):
        return given
    if not isinstance(given, str):
        raise _Wrong(f"{variable.variable} in input form must be a number, got {kind_of(given)}")
    if not given.strip():
        return None
    try:
        number = float(given) if "." in given else int(given)
    except ValueError:
        raise _Wrong(f"{variable.variable} in input form must be a valid number") from None
    if number in (float("inf"), float("-inf")):
        raise _Wrong(f"{variable.variable} in input form must be a valid number, this one is too large")
    return number


def _checkbox(_variable: StartVariable, given: Any) -> JsonValue:
    if isinstance(given, bool):
        return given
    if isinstance(given, str):
        return _WORDS.get(given.strip().lower(), given)
    return bool(given) if given in (0, 1) else given


def _json(variable: StartVariable, given: Any) -> JsonValue:
    if given and not isinstance(given, dict):
        raise _Wrong(f"{variable.variable} in input form must be an object, got {kind_of(given)}")
    return given if isinstance(given, dict) else None


def _file(variable: StartVariable, given: Any) -> JsonValue:
    if not isinstance(given, dict):
        raise _Wrong(f"{variable.variable} in input form must be a file, got {kind_of(given)}")
    return _checked_file(variable, given, variable.variable)


def _file_list(variable: StartVariable, given: Any) -> JsonValue:
    name = variable.variable
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise _Wrong(f"{name} in input form must be a list of files, got {kind_of(given)}")
    if variable.max_length and len(given) > variable.max_length:
        raise _Wrong(f"{name} in input form must have at most {variable.max_length} files, got {len(given)}")
    return [_checked_file(variable, each, f"{name}[{number}]") for number, each in enumerate(given)]


def _external(variable: StartVariable, given: Any) -> JsonValue:
    return _text(variable, given)


_READERS: Final[Mapping[str, Callable[[StartVariable, Any], JsonValue]]] = {
    "text-input": _text,
    "paragraph": _text,
    "select": _select,
    "number": _number,
    "checkbox": _checkbox,
    "json_object": _json,
    "file": _file,
    "file-list": _file_list,
    "external_data_tool": _external,
}
_WANTED: Final[Mapping[str, str]] = {
    "text-input": "a string",
    "paragraph": "a string",
    "select": "a string",
    "external_data_tool": "a string",
    "number": "a number",
    "checkbox": "true or false",
}


# --- files -----------------------------------------------------------------------------------------------------------


def file_value(given: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The value of a file in the variable pool, from what a request says of it. Raises ValueError."""
    if given.get("dify_model_identity") == FILE_IDENTITY:
        return dict(given)
    method = given.get("transfer_method")
    if method is None and isinstance(given.get("text"), str):
        return _written(given, given["text"])
    if method not in ("local_file", "remote_url", "tool_file", "datasource_file"):
        raise ValueError("needs a transfer_method: local_file or remote_url")
    url = _url(given)
    record = next((given[name] for name in _RECORDS if given.get(name)), None)
    if method == "remote_url" and not (url or "").startswith("http"):
        raise ValueError("needs a url that starts with http, because its transfer_method is remote_url")
    if method == "local_file" and not _is_uuid(given.get("upload_file_id") or record):
        raise ValueError("needs the upload_file_id (a UUID) of an uploaded file, because it is a local_file")
    if method not in ("remote_url", "local_file") and record is None:
        raise ValueError(f"needs the id of the file, because its transfer_method is {method}")
    name = given.get("filename") or given.get("name") or _name_of(url)
    extension = given.get("extension") or _extension_of(name)
    record_id = None if method == "remote_url" else str(record)
    value: dict[str, JsonValue] = {
        "dify_model_identity": FILE_IDENTITY,
        "id": given.get("id"),
        "type": given.get("type") or "custom",
        "transfer_method": method,
        "remote_url": url if method == "remote_url" else None,
        "reference": record_id,
        "related_id": record_id,
        "filename": name,
        "extension": f".{extension.lstrip('.')}" if isinstance(extension, str) and extension else None,
        "mime_type": given.get("mime_type") or _mime_type_of(extension),
        "size": given.get("size") if isinstance(given.get("size"), int) else -1,
        "url": url,
    }
    return value


def _written(given: Mapping[str, Any], text: str) -> dict[str, JsonValue]:
    """A file whose content is in the request, as text."""
    name = str(given.get("filename") or given.get("name") or "text.txt")
    extension = _extension_of(name)
    return {
        "dify_model_identity": FILE_IDENTITY,
        "id": None,
        "type": given.get("type") or "document",
        "transfer_method": "local_file",
        "remote_url": None,
        "reference": None,
        "related_id": None,
        "filename": name,
        "extension": f".{extension}" if extension else None,
        "mime_type": given.get("mime_type") or "text/plain",
        "size": len(text.encode("utf-8", "replace")),
        "url": None,
        "text": text,
    }


def allowed_file(given: Mapping[str, Any], rules: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The value of a file that must be of the type that it is given as, and fit `rules`. Raises ValueError."""
    try:
        value = file_value(given)
    except ValueError as error:
        raise ValueError(f"the file {error}") from None
    problem = _mistyped(given) or _refused({**given, "type": value["type"]}, rules)
    if problem:
        raise ValueError(problem)
    return value


def _checked_file(variable: StartVariable, given: Mapping[str, Any], name: str) -> JsonValue:
    try:
        value = file_value(given)
    except ValueError as error:
        raise _Wrong(f"{name} in input form: the file {error}") from None
    rules = {
        "allowed_file_types": variable.allowed_file_types,
        "allowed_file_extensions": variable.allowed_file_extensions,
        "allowed_file_upload_methods": variable.allowed_file_upload_methods,
    }
    # A file that is given as text needs no type: its value has one.
    _check_allowed(name, {**given, "type": value["type"]}, rules)
    return value


def _check_allowed(name: str, given: Mapping[str, Any], rules: Mapping[str, Any]) -> None:
    problem = _refused(given, rules)
    if problem:
        raise _Wrong(f"{name}: {problem}")


def _refused(given: Mapping[str, Any], rules: Mapping[str, Any]) -> str | None:
    """Why the rules do not allow the file; None: they do."""
    methods = rules.get("allowed_file_upload_methods") or ()
    method = given.get("transfer_method")
    if methods and method in ("local_file", "remote_url") and method not in methods:
        return f"files by {method} are not allowed; allowed: {', '.join(methods)}"
    types = rules.get("allowed_file_types") or ()
    kind = given.get("type") or "custom"
    if types and kind not in types and "custom" not in types:
        return f"files of type {str(kind)[:40]} are not allowed; allowed: {', '.join(types)}"
    extensions = {str(each).lower().lstrip(".") for each in rules.get("allowed_file_extensions") or ()}
    own = _own_extension(given)
    judged = own or method == "local_file"  # an address need not show what kind of file it leads to
    if judged and extensions and "custom" in types and kind not in set(types) - {"custom"} and own not in extensions:
        return f"files with the extension .{own[:20]} are not allowed" if own else "it has no extension, and needs one"
    return None


def type_of_extension(extension: str) -> str:
    """The type of file that an extension (lower case, without dot) shows; `custom` when it shows none."""
    return next((kind for kind, known in FILE_TYPES.items() if extension in known), "custom")


def type_of_file(extension: str, mime_type: str) -> str:
    """The type of file that an extension shows, or where it shows none the media type; else `custom`."""
    shown = type_of_extension(extension)
    if shown != "custom":
        return shown
    group, _, subtype = mime_type.partition(";")[0].strip().lower().partition("/")
    if group in ("image", "video", "audio"):
        return group
    return "document" if group == "text" or "pdf" in subtype else "custom"


def _check_type(name: str, given: Mapping[str, Any]) -> None:
    problem = _mistyped(given)
    if problem:
        raise _Wrong(f"{name}: {problem}")


def _mistyped(given: Mapping[str, Any]) -> str | None:
    """The type that the request gives must be the one that the extension shows; `custom` is any."""
    kind, own = given.get("type"), _own_extension(given)
    detected = type_of_extension(own)
    if kind in FILE_TYPES and detected not in (kind, "custom"):
        return f"the file is given as {kind}, its extension .{own} says {detected}"
    return None


def _url(given: Mapping[str, Any]) -> str | None:
    url = given.get("url") or given.get("remote_url")
    return url if isinstance(url, str) and url else None


def _own_extension(given: Mapping[str, Any]) -> str:
    name = given.get("filename") or given.get("name") or _name_of(_url(given))
    extension = given.get("extension") or _extension_of(name)
    return extension.lower().lstrip(".") if isinstance(extension, str) else ""


def _name_of(url: str | None) -> str | None:
    if not url:
        return None
    try:
        return unquote(urlsplit(url).path.rpartition("/")[2]) or None
    except ValueError:
        return None


def _extension_of(name: object) -> str:
    return name.rpartition(".")[2].lower() if isinstance(name, str) and "." in name else ""


def _mime_type_of(extension: object) -> str | None:
    """What the extension alone says; None when it says nothing, so that who reads the file believes the server."""
    own = extension.lower().lstrip(".") if isinstance(extension, str) else ""
    found = _MIME_TYPES.get(own) or _STANDARD.guess_type(f"x.{own}")[0]
    return None if found == "application/octet-stream" else found


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False
