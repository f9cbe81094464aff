"""What a form shows, and what fits as its answer."""

from typing import Any

import pytest

from libs.workflow.configs.flow import HumanInputConfig
from libs.workflow.forms import FormInvalid, ask, check_submission, fill, outcome
from libs.workflow.pool import Pool
from libs.workflow.state import Form

FILE = {"type": "document", "transfer_method": "remote_url", "url": "https://files.example/a.pdf"}


def _form(**config: Any) -> dict[str, Any]:
    pool = Pool()
    pool.set("llm", "text", "a draft")
    pool.set("llm", "options", ["red", "blue"])
    pool.set("env", "KEY", "sk-very-secret-key", "secret")
    return ask(HumanInputConfig.model_validate(config), pool).form


NOTE = {"type": "paragraph", "output_variable_name": "note"}
FILES = {"type": "file-list", "output_variable_name": "f"}
COLOUR = {"type": "select", "output_variable_name": "colour", "option_source": {"type": "constant", "value": ["red"]}}


def test_variables_are_put_in_and_fields_are_left() -> None:
    form = _form(form_content="{{#llm.text#}}? {{#$output.note#}} {{#nobody.knows#}}")
    assert form["form_content"] == "a draft? {{#$output.note#}} nobody.knows"


def test_a_secret_is_masked_in_the_form() -> None:
    form = _form(form_content="{{#env.KEY#}}", inputs=[NOTE | {"default": _variable("env.KEY")}])
    assert "very-secret" not in str(form)


def _variable(selector: str) -> dict[str, Any]:
    return {"type": "variable", "selector": selector.split("."), "value": ""}


def test_defaults_that_are_variables_are_resolved() -> None:
    fixed = {"type": "paragraph", "output_variable_name": "b", "default": {"type": "constant", "value": "x"}}
    form = _form(inputs=[NOTE | {"default": _variable("llm.text")}, fixed])
    assert form["resolved_default_values"] == {"note": "a draft"}


def test_options_that_are_a_variable_are_listed() -> None:
    field = {"type": "select", "output_variable_name": "c", "option_source": _variable("llm.options")}
    assert _form(inputs=[field])["inputs"][0]["option_source"]["value"] == ["red", "blue"]


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [({}, 129_600), ({"timeout": 2, "timeout_unit": "day"}, 172_800), ({"timeout": None, "timeout_unit": ""}, 129_600)],
)
def test_a_form_expires_after_36_hours_unless_it_says_otherwise(timeout: dict[str, Any], seconds: float) -> None:
    assert ask(HumanInputConfig.model_validate(timeout), Pool()).timeout_s == seconds


def test_a_submission_keeps_what_was_asked_for() -> None:
    form = _form(inputs=[NOTE, COLOUR])
    given = {"note": "x\x00y", "colour": "red", "other": 1}
    assert check_submission(form, ("ok",), "ok", given) == {"note": "xy", "colour": "red"}


@pytest.mark.parametrize(
    ("fields", "action", "given", "problem"),
    [
        ([NOTE], "maybe", {"note": "x"}, "unknown action 'maybe'. Actions: ok"),
        ([NOTE, COLOUR], "ok", {"note": None}, "missing inputs: note, colour"),
        ([NOTE], "ok", {"note": 3}, "note: expected a text, got a number"),
        ([COLOUR], "ok", {"colour": "green"}, "colour: expected one of: red"),
        ([{"type": "file", "output_variable_name": "f"}], "ok", {"f": "x"}, "f: expected a file, got text"),
        ([{"type": "file", "output_variable_name": "f"}], "ok", {"f": {"a": 1}}, "f: the file needs a transfer_method"),
        (
            [{"type": "file-list", "output_variable_name": "f", "number_limits": 1}],
            "ok",
            {"f": [FILE, FILE]},
            "f: at most 1 files, got 2",
        ),
        ([FILES | {"allowed_file_types": ["image"]}], "ok", {"f": [FILE]}, "f: files of type document are not allowed"),
        ([FILES], "ok", {"f": [FILE | {"type": "image"}]}, "f: the file is given as image, its extension .pdf says"),
        (
            [FILES | {"type": "file", "allowed_file_upload_methods": ["local_file"]}],
            "ok",
            {"f": FILE},
            "f: files by remote_url are not allowed; allowed: local_file",
        ),
        (
            [FILES | {"type": "file", "allowed_file_types": ["custom"], "allowed_file_extensions": [".DOCX"]}],
            "ok",
            {"f": FILE | {"type": "custom"}},
            "f: files with the extension .pdf are not allowed",
        ),
    ],
)
def test_what_does_not_fit_is_said(fields: list[Any], action: str, given: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormInvalid) as caught:
        check_submission(_form(inputs=fields), ("ok",), action, given)
    assert problem in str(caught.value)


def test_a_file_that_the_field_allows_fits() -> None:
    rules = {
        "allowed_file_types": ["document"],
        "allowed_file_upload_methods": ["remote_url"],
        "allowed_file_extensions": "nonsense of a document",
    }
    (file,) = check_submission(_form(inputs=[FILES | rules]), ("ok",), "ok", {"f": [FILE]})["f"]  # type: ignore[misc,union-attr]
    assert file["extension"] == ".pdf"  # type: ignore[call-overload,index]


def test_files_of_a_form_are_files_behind_it() -> None:
    form = _form(inputs=[FILES], form_content="{{#$output.f#}}", user_actions=[{"id": "ok", "title": "OK"}])
    values = check_submission(form, ("ok",), "ok", {"f": [FILE]})
    done = outcome(Form("ask", "", "form", form, 0, "ok", values))
    assert done.output_types == {"f": "array[file]"}
    assert done.outputs["__rendered_content"] == "[a.pdf](https://files.example/a.pdf)"
    assert done.outputs["__action_value"] == "OK"


def test_what_was_submitted_is_never_a_template_itself() -> None:
    form = _form(inputs=[NOTE], form_content="{{#$output.note#}}")
    assert fill(form, {"note": "{{#$output.note#}} {{#llm.text#}}"}) == "{{#$output.note#}} {{#llm.text#}}"


def test_a_form_that_expired_has_no_fields() -> None:
    form = _form(inputs=[NOTE], form_content="a {{#$output.note#}} b")
    done = outcome(Form("ask", "", "form", form, 0, "__timeout"))
    assert done.outputs == {"__action_id": "__timeout", "__action_value": "", "__rendered_content": "a  b"}
