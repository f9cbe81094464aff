"""Types of values and the ways they are written as text."""

import pytest
from pydantic import JsonValue

from libs.workflow.segments import (
    Segment,
    TypeMismatch,
    as_log,
    as_markdown,
    as_text,
    declared_types,
    file_attribute,
    for_display,
    infer,
    mask,
    read_json,
    typed,
    zero,
)

IMAGE: dict[str, JsonValue] = {
    "dify_model_identity": "__dify__file__",
    "type": "image",
    "filename": "cat.png",
    "remote_url": "http://x/cat.png",
    "transfer_method": "remote_url",
    "extension": ".png",
    "mime_type": "image/png",
    "size": 7,
    "upload_file_id": "f-1",
}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "none"),
        (True, "boolean"),
        (1, "integer"),
        (1.0, "float"),
        ("", "string"),
        ({}, "object"),
        (IMAGE, "file"),
        ([], "array[any]"),
        (["a"], "array[string]"),
        ([1, 2.5], "array[number]"),
        ([True, False], "array[boolean]"),
        ([True, 1], "array[any]"),
        ([{}, {"a": 1}], "array[object]"),
        ([IMAGE], "array[file]"),
        ([IMAGE, {}], "array[any]"),
        ([[1], [2]], "array[any]"),
        ([None, None], "array[any]"),
        ([None, "a"], "array[any]"),
        (["a", None], "array[any]"),
    ],
)
def test_a_value_shows_its_type(value: JsonValue, kind: str) -> None:
    assert infer(value) == Segment(kind, value)


def test_a_value_that_is_not_json_has_no_type() -> None:
    with pytest.raises(TypeMismatch, match="expected a JSON value, got set"):
        infer({1})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("value", "declared", "kind"),
    [
        (1, "number", "integer"),
        (1.5, "number", "float"),
        ([], "array[file]", "array[file]"),
        ("x", "secret", "secret"),
        (None, "none", "none"),
    ],
)
def test_a_declared_type_is_taken_where_the_value_fits(value: JsonValue, declared: str, kind: str) -> None:
    assert typed(value, declared) == Segment(kind, value)


@pytest.mark.parametrize(
    ("value", "declared"),
    [(None, "string"), ("1", "number"), (1, "float"), (True, "number"), (["a"], "array[any]"), ([], "object")],
)
def test_a_value_of_another_type_is_not_converted(value: JsonValue, declared: str) -> None:
    with pytest.raises(TypeMismatch, match="expected a value of type"):
        typed(value, declared)


@pytest.mark.parametrize("kind", ["file", "array[file]", "secret", "none"])
def test_files_secrets_and_nothing_have_no_zero_value(kind: str) -> None:
    with pytest.raises(TypeMismatch, match="cannot be cleared"):
        zero(kind)


def test_a_zero_value_is_new_each_time() -> None:
    first = zero("array[string]")
    assert isinstance(first, list)
    first.append("x")
    assert zero("array[string]") == []


_INDENTED = '{\n  "a": "ä",\n  "b": null\n}'


@pytest.mark.parametrize(
    ("value", "text", "markdown", "log"),
    [
        ("ä\n", "ä\n", "ä\n", "ä\n"),
        (1, "1", "1", "1"),
        (1.0, "1.0", "1.0", "1.0"),
        (1e-07, "1e-07", "1e-07", "1e-07"),
        (True, "True", "True", "True"),
        (None, "", "", ""),
        ({"a": "ä", "b": None}, '{"a": "ä", "b": null}', _INDENTED, _INDENTED),
        ([], "", "", "[]"),
        (["a", "ä"], '["a", "ä"]', "- a\n- ä", "['a', 'ä']"),
        ([1, 2], "[1, 2]", "- 1\n- 2", "[1, 2]"),
        ([{"a": 1}], "[{'a': 1}]", "- {'a': 1}", "[{'a': 1}]"),
        ([True, None], "[True, None]", "- True\n- None", "[True, None]"),
        (IMAGE, "", "![cat.png](http://x/cat.png)", ""),
        ([IMAGE, IMAGE], "", "![cat.png](http://x/cat.png)\n![cat.png](http://x/cat.png)", ""),
    ],
)
def test_each_type_has_its_text_forms(value: JsonValue, text: str, markdown: str, log: str) -> None:
    segment = infer(value)
    assert (as_text(segment), as_markdown(segment), as_log(segment)) == (text, markdown, log)


def test_a_document_without_a_name_is_linked_by_its_url() -> None:
    assert as_markdown(infer({**IMAGE, "type": "document", "filename": None})) == "[http://x/cat.png](http://x/cat.png)"


@pytest.mark.parametrize(
    ("secret", "masked"),
    [("", ""), ("12345678", "*" * 20), ("sk-123456789", "sk-123" + "*" * 12 + "89")],
)
def test_a_secret_is_masked_in_records_only(secret: str, masked: str) -> None:
    segment = typed(secret, "secret")
    assert mask(secret) == as_log(segment) == for_display(segment) == masked
    assert as_text(segment) == as_markdown(segment) == secret


def test_file_attributes_have_the_names_of_selectors() -> None:
    attributes = {name: file_attribute(IMAGE, name) for name in ("name", "url", "size", "related_id", "mime_type")}
    assert attributes == {
        "name": "cat.png",
        "url": "http://x/cat.png",
        "size": 7,
        "related_id": "f-1",
        "mime_type": "image/png",
    }


def test_only_types_that_the_values_do_not_show_are_declared() -> None:
    segments = {"a": infer("x"), "b": typed([], "array[file]"), "c": typed("x", "secret"), "d": Segment("integer", 1.5)}
    assert declared_types(segments) == {"b": "array[file]", "c": "secret", "d": "integer"}


def test_whole_and_broken_numbers_are_shown_as_numbers() -> None:
    assert [infer(value).shown_type for value in (1, 1.5, "x")] == ["number", "number", "string"]


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, ""])
def test_what_the_log_would_not_give_back_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever the text: it is shown beside the value's name
        read_json(text)
