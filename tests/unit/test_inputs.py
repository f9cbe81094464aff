"""Start inputs: what a run gets for what was sent, and what is refused."""

from typing import Any

import pytest

from libs.workflow.definition import Definition
from libs.workflow.inputs import InputInvalid, accepted_files, validate_inputs
from tests.unit.test_definition import END, compiled, node

UPLOAD = {"transfer_method": "local_file", "upload_file_id": "7d2a6f8e-9f5a-4c6b-8a57-0a2a4f3c1b00", "type": "document"}
REMOTE = {"transfer_method": "remote_url", "url": "https://example.org/a%20cat.PNG?x=1", "type": "image"}


def form(*variables: dict[str, Any], **workflow: Any) -> Definition:
    made = [{"label": each["variable"], "type": "text-input", **each} for each in variables]
    return compiled([node("start", "start", variables=made), END], [("start", "end")], **workflow)


def value(type: str, given: Any, **settings: Any) -> Any:
    return validate_inputs(form({"variable": "v", "type": type, **settings}), {"v": given})["v"]


def refusal(type: str, given: Any, **settings: Any) -> str:
    with pytest.raises(InputInvalid) as caught:
        value(type, given, **settings)
    (problem,) = caught.value.problems
    return problem


def test_unknown_inputs_are_dropped_and_missing_ones_are_null() -> None:
    assert validate_inputs(form({"variable": "a"}, {"variable": "b"}), {"a": "x", "z": 1}) == {"a": "x", "b": None}


def test_a_missing_required_input_is_refused_as_the_reference_does() -> None:
    with pytest.raises(InputInvalid) as caught:
        validate_inputs(form({"variable": "city", "required": True}), {"city": None})
    assert str(caught.value) == "city is required in input form"


def test_all_mistakes_are_reported_at_once() -> None:
    definition = form(
        {"variable": "city", "required": True},
        {"variable": "age", "type": "number"},
        {"variable": "kind", "type": "select", "options": ["a"]},
    )
    with pytest.raises(InputInvalid) as caught:
        validate_inputs(definition, {"age": "ten", "kind": "b"})
    assert [problem.split()[0] for problem in caught.value.problems] == ["city", "age", "kind"]


def test_inputs_that_are_no_object_are_refused() -> None:
    with pytest.raises(InputInvalid, match="must be an object, got a list"):
        validate_inputs(form(), ["a"])  # type: ignore[arg-type]  # what a client may send


def test_a_required_text_may_be_empty() -> None:
    assert value("text-input", "", required=True) == ""


def test_a_default_stands_in_for_null_and_is_checked_like_a_value() -> None:
    assert value("text-input", None, default="x") == "x"
    assert value("number", None, default="5") == 5
    assert value("select", None, default="", options=["a"]) is None
    assert "one of the following: a" in refusal("select", None, default="b", options=["a"])


def test_nul_characters_are_removed() -> None:
    assert value("paragraph", "a\x00b") == "ab"


@pytest.mark.parametrize("type", ["text-input", "paragraph", "select"])
@pytest.mark.parametrize("given", [1, True, {"a": 1}, [{"a": 1}], ["a"]])
def test_texts_must_be_strings(type: str, given: Any) -> None:
    assert "v in input form must be a string" in refusal(type, given, options=["a"])


def test_a_text_is_limited_in_characters() -> None:
    assert value("text-input", "äöü", max_length=3) == "äöü"
    assert value("text-input", "abcd", max_length=0) == "abcd"
    assert "less than 3 characters" in refusal("text-input", "abcd", max_length=3)


def test_a_select_takes_only_its_options_even_the_empty_text() -> None:
    assert value("select", "a", options=["a", "b"]) == "a"
    assert refusal("select", "", options=["a", "b"]).endswith("one of the following: a, b")


@pytest.mark.parametrize(
    ("given", "number"), [(1, 1), (1.5, 1.5), ("12", 12), ("1.50", 1.5), (" ", None), ("", None), (True, True)]
)
def test_numbers_are_read_from_text(given: Any, number: Any) -> None:
    assert value("number", given) == number


@pytest.mark.parametrize("given", ["1e3", "ten", "1,5", {"a": 1}, [], "9" * 5000])
def test_other_numbers_are_refused(given: Any) -> None:
    assert "v in input form must be a" in refusal("number", given)


@pytest.mark.parametrize(
    ("given", "checked"),
    [
        (True, True),
        (1, True),
        (0, False),
        ("Yes", True),
        ("on", True),
        ("OFF", False),
        ("0", False),
        ("maybe", "maybe"),
    ],
)
def test_checkbox_words(given: Any, checked: Any) -> None:
    assert value("checkbox", given) == checked


def test_a_mapping_for_a_checkbox_is_refused() -> None:
    assert "true or false" in refusal("checkbox", {"a": 1})


def test_json_takes_objects_only() -> None:
    assert value("json_object", {"a": [1]}) == {"a": [1]}
    assert value("json_object", None, default='{"a": 1}') == {"a": 1}
    assert "must be an object, got text" in refusal("json_object", "x")
    assert "must be an object, got a list" in refusal("json_object", [1])


def test_a_remote_file_becomes_a_file_value() -> None:
    file = value("file", REMOTE)
    assert file["dify_model_identity"] == "__dify__file__"
    assert (file["filename"], file["extension"], file["size"]) == ("a cat.PNG", ".png", -1)
    assert file["url"] == file["remote_url"] == REMOTE["url"]


@pytest.mark.parametrize(
    ("name", "mime_type"),
    [
        ("a.PDF", "application/pdf"),
        ("a.webp", "image/webp"),
        ("a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.bin", None),
        ("a.nobodyknows", None),
        ("a", None),
        ("", None),
    ],
)
def test_the_extension_of_a_remote_file_says_its_media_type(name: str, mime_type: str | None) -> None:
    file = {"type": "custom", "transfer_method": "remote_url", "url": f"https://files.example/{name}"}
    made = value("file", file)
    assert (made["mime_type"], made["reference"]) == (mime_type, None)
    assert value("file", file | {"mime_type": "x/y"})["mime_type"] == "x/y"


def test_an_uploaded_file_becomes_a_file_value_that_names_its_record() -> None:
    made = value("file", UPLOAD | {"name": "a.txt"})
    assert made["related_id"] == made["reference"] == UPLOAD["upload_file_id"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("x", "must be a file"),
        ({"type": "image"}, "transfer_method"),
        ({"transfer_method": "local_file", "upload_file_id": "17"}, "upload_file_id"),
        ({"transfer_method": "remote_url"}, "url"),
        ({"transfer_method": "remote_url", "url": "file:///etc/passwd"}, "starts with http"),
        (REMOTE | {"type": "video"}, "extension .png says image"),
    ],
)
def test_wrong_files_are_refused(given: Any, words: str) -> None:
    assert words in refusal("file", given)


def test_files_are_limited_to_the_allowed_kinds() -> None:
    assert "allowed: document" in refusal("file", REMOTE, allowed_file_types=["document"])
    assert "allowed: local_file" in refusal("file", REMOTE, allowed_file_upload_methods=["local_file"])
    custom = {"allowed_file_types": ["custom"], "allowed_file_extensions": [".md"]}
    assert ".png" in refusal("file", REMOTE | {"type": "custom"}, **custom)
    assert value("file", UPLOAD | {"type": "custom", "name": "x.MD"}, **custom)["extension"] == ".md"


def test_file_lists_are_checked_one_by_one() -> None:
    assert len(value("file-list", [REMOTE, UPLOAD])) == 2
    assert value("file-list", "") is None
    assert "at most 1 files" in refusal("file-list", [REMOTE, UPLOAD], max_length=1)
    assert "v[1]" in refusal("file-list", [REMOTE, {}])
    assert "list of files" in refusal("file-list", REMOTE)


def test_a_file_given_as_text_is_a_document_unless_it_says_otherwise() -> None:
    given = {"name": "a.csv", "text": "1,2"}
    found = value("file", given, allowed_file_types=["document", "image"])
    assert isinstance(found, dict)
    assert (found["type"], found["text"]) == ("document", "1,2")
    assert "files of type document are not allowed" in refusal("file", given, allowed_file_types=["image"])


def test_an_empty_text_for_a_required_file_counts_as_missing() -> None:
    assert refusal("file", "", required=True) == "v is required in input form"


UPLOAD_FEATURE = {"file_upload": {"enabled": True, "number_limits": 1, "allowed_file_types": ["image"]}}


def test_top_level_files_follow_the_features() -> None:
    definition = form(features=UPLOAD_FEATURE)
    assert len(accepted_files(definition, [REMOTE, {"type": "image"}, {"transfer_method": "remote_url"}])) == 1
    with pytest.raises(InputInvalid, match="at most 1"):
        validate_inputs(definition, {}, files=[REMOTE, REMOTE])
    with pytest.raises(InputInvalid, match="not allowed"):
        validate_inputs(definition, {}, files=[UPLOAD])


def test_a_type_must_be_that_of_the_extension_for_one_file_of_a_workflow_only() -> None:
    wrong = {"transfer_method": "remote_url", "url": "https://x.example/a.pdf", "type": "image"}
    one = form({"variable": "f", "type": "file"})
    with pytest.raises(InputInvalid, match="given as image"):
        validate_inputs(one, {"f": wrong})
    with pytest.raises(InputInvalid, match=r"files\[0\]: the file is given as image"):
        accepted_files(one, [wrong])
    many = form({"variable": "f", "type": "file-list"})
    assert validate_inputs(many, {"f": [wrong]})["f"]


def test_an_uploaded_file_without_an_extension_is_none_of_those_that_are_allowed() -> None:
    rules: dict[str, Any] = {"allowed_file_types": ["custom"], "allowed_file_extensions": [".xyz"]}
    named = {**UPLOAD, "type": "custom", "filename": "noext"}
    assert "has no extension" in refusal("file", named, **rules)
    assert value("file", {**named, "filename": "a.xyz"}, **rules)
    assert value(
        "file", {"transfer_method": "remote_url", "url": "https://x.example/get?f=1", "type": "custom"}, **rules
    )


def test_a_chatflow_without_upload_ignores_top_level_files() -> None:
    definition = form(features={"file_upload": {"enabled": False}}, mode="advanced-chat")
    assert accepted_files(definition, [REMOTE]) == []
