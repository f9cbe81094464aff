"""What a `document-extractor` makes of its variable. Reading is real for plain text; no network, no process."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from libs.net import GuardedHttp
from libs.workflow.inputs import file_value
from libs.workflow.outcome import Outcome
from services.executor.documents.process import Unreadable, read_document
from services.executor.nodes.document_extractor import MAX_FILES, DocumentExtractorHandler
from tests.attempts import attempt_of
from tests.unit.nodes.compiled import failed, succeeded
from tests.unit.nodes.kept import kept_files


async def upper(content: bytes, extension: str, media_type: str) -> str:
    """Stands for the readers."""
    if content == b"broken":
        raise Unreadable("it is not a pdf file that can be read: no header")
    return f"{extension}|{media_type}|{content.decode().upper()}"


def written(name: str, text: str) -> Any:
    return file_value({"name": name, "text": text})


def run(value: Any, *, read: Any = upper, selector: str = "s.f") -> Outcome:
    attempt = attempt_of("document-extractor", {"variable_selector": selector.split(".")}, {"s.f": value})
    return asyncio.run(DocumentExtractorHandler(GuardedHttp(), read=read).run(attempt))


def test_one_file_is_text() -> None:
    outcome = succeeded(run(written("a.md", "hello")))
    assert outcome.outputs == {"text": ".md|text/plain|HELLO"}
    assert outcome.inputs == {"variable_selector": ["s", "f"]}


def test_the_record_names_the_file_and_leaves_its_content_out() -> None:
    ((shown,),) = ((succeeded(run(written("a.md", "hello"))).process_data or {}).values(),)  # type: ignore[misc]
    assert "hello" not in repr(shown)
    assert "a.md" in repr(shown)


def test_a_list_of_files_is_a_list_of_texts_in_its_order_without_empty_entries() -> None:
    outcome = succeeded(run([written("a.txt", "x"), None, written("b.txt", "y")], read=read_document))
    assert outcome.outputs == {"text": ["x", "y"]}


@pytest.mark.parametrize(
    ("name", "extension"), [("a.md", ".md"), ("a.json", ".json"), ("a.pdf", "txt"), ("a.doc", "txt"), ("a", "")]
)
def test_a_file_that_is_given_as_text_is_not_parsed_as_what_text_cannot_be(name: str, extension: str) -> None:
    assert succeeded(run(written(name, "words"))).outputs == {"text": f"{extension}|text/plain|WORDS"}


@pytest.mark.parametrize("nothing", [None, [], ""])
def test_nothing_is_an_empty_list_of_texts(nothing: Any) -> None:
    outcome = succeeded(run(nothing))
    assert (outcome.outputs, outcome.output_types) == ({"text": []}, {"text": "array[string]"})


def test_a_missing_variable_and_a_value_that_is_no_file_fail() -> None:
    assert failed(run(None, selector="s.other")).error.startswith("variable s.other not found")
    outcome = failed(run("just text"))
    assert outcome.error == "variable s.f is of type string; expected a file or a list of files"
    assert outcome.error_type == ""


def test_one_file_that_cannot_be_read_fails_the_node_by_its_name() -> None:
    outcome = failed(run([written("a.txt", "fine"), written("b.pdf", "broken")]))
    assert outcome.error == "file b.pdf: it is not a pdf file that can be read: no header"


def test_a_data_url_is_read_without_network() -> None:
    file = {**written("", ""), "text": None, "transfer_method": "remote_url", "filename": None, "extension": None,
            "mime_type": None, "remote_url": "data:text/csv;base64,YSxi"}  # fmt: skip
    assert succeeded(run(file)).outputs == {"text": "|text/csv|A,B"}
    assert failed(run({**file, "remote_url": "data:;base64,%%"})).error.endswith("not valid base64")


def test_an_uploaded_file_says_how_to_pass_it_instead() -> None:
    file = {**written("a.pdf", ""), "text": None}
    assert failed(run(file)).error.endswith("this server keeps no uploaded files; pass it as a remote URL")


def test_too_many_files_fail() -> None:
    assert f"at most {MAX_FILES}" in failed(run([written("a.txt", "x")] * (MAX_FILES + 1))).error


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.doc", "save it as .docx"), ("a.exe", "the extension .exe has no reader here"), ("a.msg", "save it as .eml")],
)
def test_a_format_without_a_reader_says_what_to_do(name: str, words: str) -> None:
    files, kept = kept_files({name: b"x"})
    attempt = attempt_of("document-extractor", {"variable_selector": ["s", "f"]}, {"s.f": kept[name]})
    assert words in failed(asyncio.run(DocumentExtractorHandler(GuardedHttp(), files).run(attempt))).error


def test_a_file_that_is_kept_here_is_read_from_its_store_and_a_missing_one_fails() -> None:
    files, kept = kept_files({"a.md": b"hello"})
    attempt = attempt_of("document-extractor", {"variable_selector": ["s", "f"]}, {"s.f": kept["a.md"]})
    outcome = asyncio.run(DocumentExtractorHandler(GuardedHttp(), files, read=upper).run(attempt))
    assert succeeded(outcome).outputs == {"text": ".md|text/plain|HELLO"}
    foreign = replace(attempt, app_id="another")  # the value may have been made up by a node
    outcome = asyncio.run(DocumentExtractorHandler(GuardedHttp(), files, read=upper).run(foreign))
    assert "a.md: it cannot be read" in failed(outcome).error
    gone = kept["a.md"] | {"related_id": "00000000-0000-4000-8000-000000000009"}
    attempt = attempt_of("document-extractor", {"variable_selector": ["s", "f"]}, {"s.f": gone})
    outcome = asyncio.run(DocumentExtractorHandler(GuardedHttp(), files, read=upper).run(attempt))
    assert "a.md: it cannot be read: no file 00000000" in failed(outcome).error
