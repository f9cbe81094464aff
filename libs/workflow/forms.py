"""Forms of `human-input` nodes: what a node asks, what fits as an answer, and what the answer makes of the node.

Pure, like the machine. A form is JSON from the moment it is opened (`FormOpened.form`): later versions of the document
do not change what a person was asked.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue

from libs.workflow.configs.flow import HumanInputConfig
from libs.workflow.inputs import allowed_file
from libs.workflow.outcome import Asked, Succeeded, Values
from libs.workflow.pool import Pool
from libs.workflow.problems import WorkflowError, kind_of
from libs.workflow.segments import Segment, as_log, as_markdown
from libs.workflow.state import Form
from libs.workflow.templates import render_log

__all__ = ["TIMEOUT", "FormInvalid", "ask", "check_submission", "fill", "outcome", "title_of"]

TIMEOUT: Final = "__timeout"
"""Handle, and action id, of a form that expired."""

_UNIT_S: Final[Mapping[str, float]] = {"hour": 3_600.0, "day": 86_400.0}
_FIELD: Final = re.compile(r"\{\{#\$output\.([a-zA-Z_][a-zA-Z0-9_]{0,99})#\}\}")
_FILE_TYPES: Final[Mapping[str, str]] = {"file": "file", "file-list": "array[file]"}
_FILE_RULES: Final = ("allowed_file_types", "allowed_file_extensions", "allowed_file_upload_methods")


class FormInvalid(WorkflowError):
    """The submission does not fit the form; the form stays open."""


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(config: HumanInputConfig, pool: Pool) -> Asked:
    """The form, with the values that it refers to. Secrets are masked: people and records see it."""
    fields = [_field(dict(each), pool) for each in config.inputs]
    actions: list[JsonValue] = [
        {"id": action.id, "title": action.title, "button_style": action.button_style} for action in config.user_actions
    ]
    form: Values = {
        "form_content": render_log(config.form_content, pool),
        "inputs": fields,  # type: ignore[dict-item]  # JSON from the document
        "user_actions": actions,
        "resolved_default_values": _defaults(fields, pool),
        "display_in_ui": True,
    }
    return Asked(
        form, tuple(action.id for action in config.user_actions), config.timeout * _UNIT_S[config.timeout_unit]
    )


def _field(field: dict[str, Any], pool: Pool) -> dict[str, Any]:
    """A select whose options come from a variable lists them: who answers does not see the run's variables."""
    source = field.get("option_source")
    if isinstance(source, dict) and source.get("type") == "variable":
        segment = pool.get(list(source.get("selector") or ()))
        options = segment.value if segment is not None and isinstance(segment.value, list) else []
        field["option_source"] = source | {"value": [str(option) for option in options]}
    return field


def _defaults(fields: list[dict[str, Any]], pool: Pool) -> Values:
    """Texts of defaults that are variables; constants stand in the field itself."""
    found: Values = {}
    for field in fields:
        default = field.get("default")
        if isinstance(default, dict) and default.get("type") == "variable":
            segment = pool.get(list(default.get("selector") or ()))
            found[_name(field)] = "" if segment is None else as_log(segment)
    return found


def _name(field: Mapping[str, Any]) -> str:
    return str(field.get("output_variable_name") or field.get("variable") or "")


def _fields(form: Values) -> list[dict[str, Any]]:
    inputs = form.get("inputs")
    return [each for each in inputs if isinstance(each, dict)] if isinstance(inputs, list) else []


def title_of(form: Values, action: str) -> str:
    """What the button of the action says."""
    actions = form.get("user_actions")
    for each in actions if isinstance(actions, list) else ():
        if isinstance(each, dict) and each.get("id") == action:
            return str(each.get("title") or "")
    return ""


# --- answering -------------------------------------------------------------------------------------------------------


def check_submission(form: Values, actions: tuple[str, ...], action: str, inputs: Mapping[str, Any]) -> Values:
    """The values of the form's fields; what it does not ask for is dropped. Raises FormInvalid, with all mistakes."""
    problems: list[str] = []
    if action not in actions:
        problems.append(f"unknown action {action[:40]!r}. Actions: {', '.join(actions) or '(none)'}")
    missing = [_name(field) for field in _fields(form) if inputs.get(_name(field)) is None]
    if missing:
        problems.append(f"missing inputs: {', '.join(missing)}")
    values: Values = {}
    for field in _fields(form):
        name = _name(field)
        if name not in missing:
            try:
                values[name] = _value(field, inputs[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise FormInvalid("; ".join(problems))
    return values


def _value(field: Mapping[str, Any], given: Any) -> JsonValue:
    """Raises ValueError."""
    kind = field.get("type")
    if kind == "file":
        if not isinstance(given, dict):
            raise ValueError(f"expected a file, got {kind_of(given)}")
        return allowed_file(given, _rules(field))
    if kind == "file-list":
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise ValueError(f"expected a list of files, got {kind_of(given)}")
        most = field.get("number_limits")
        if isinstance(most, int) and 0 < most < len(given):
            raise ValueError(f"at most {most} files, got {len(given)}")
        return [allowed_file(each, _rules(field)) for each in given]
    if not isinstance(given, str):
        raise ValueError(f"expected a text, got {kind_of(given)}")
    text = given.replace("\x00", "")
    options = _options(field) if kind == "select" else None
    if options is not None and text not in options:
        raise ValueError(f"expected one of: {', '.join(options) or '(the form lists no option)'}")
    return text


def _rules(field: Mapping[str, Any]) -> Mapping[str, list[str]]:
    """Which files the field takes; the form is JSON from a document, so any of it may be something else."""
    given = {name: field.get(name) for name in _FILE_RULES}
    return {name: [str(each) for each in rule] for name, rule in given.items() if isinstance(rule, list)}


def _options(field: Mapping[str, Any]) -> list[str] | None:
    """None: the document does not say which."""
    source = field.get("option_source")
    options = source.get("value") if isinstance(source, dict) else field.get("options")
    return [str(each) for each in options] if isinstance(options, list) else None


# --- what follows ----------------------------------------------------------------------------------------------------


def outcome(form: Form) -> Succeeded:
    """How the node ends whose form was answered or has expired."""
    assert form.action is not None
    types = {
        _name(field): _FILE_TYPES[str(field.get("type"))]
        for field in _fields(form.form)
        if field.get("type") in _FILE_TYPES and _name(field) in form.values
    }
    outputs: Values = dict(form.values) | {
        "__action_id": form.action,
        "__action_value": title_of(form.form, form.action),
        "__rendered_content": fill(form.form, form.values),
    }
    return Succeeded(outputs=outputs, inputs={}, handle=form.action, output_types=types)


def fill(form: Values, values: Values) -> str:
    """The form's text with what was submitted in the place of its fields; nothing where nothing was."""
    kinds = {_name(field): str(field.get("type")) for field in _fields(form)}

    def shown(found: re.Match[str]) -> str:
        value = values.get(found[1])
        if value is None:
            return ""
        return as_markdown(Segment(_FILE_TYPES.get(kinds.get(found[1], ""), "string"), value))

    return _FIELD.sub(shown, str(form.get("form_content") or ""))
