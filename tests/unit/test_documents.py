"""Which reader a file gets, and the readers that need the standard library only."""

import csv
import sys

import pytest

from services.executor.documents.child import answered
from services.executor.documents.kinds import UnsupportedKind, kind_of
from services.executor.documents.plain import decoded, markdown_table, text_of_html


def read(kind: str, content: str | bytes) -> str:
    answer = answered(kind, content.encode() if isinstance(content, str) else content)
    assert "error" not in answer, answer
    return answer["text"]


def error(kind: str, content: str | bytes) -> str:
    return answered(kind, content.encode() if isinstance(content, str) else content)["error"]


@pytest.mark.parametrize(
    ("extension", "media_type", "kind"),
    [
        (".PDF", "text/plain", "pdf"),
        ("", "application/pdf", "pdf"),
        ("txt", "application/pdf", "text"),
        ("", "text/x-anything; charset=utf-8", "text"),
        (".vtt", "", "text"),
        ("", "text/vtt", "vtt"),
        ("yml", "", "yaml"),
        ("html", "", "text"),
    ],
)
def test_the_extension_decides_and_else_the_media_type(extension: str, media_type: str, kind: str) -> None:
    assert kind_of(extension, media_type) == kind


@pytest.mark.parametrize(("extension", "media_type"), [("exe", "text/plain"), ("", "image/png"), ("", "")])
def test_an_unknown_kind_is_refused_with_what_can_be_read(extension: str, media_type: str) -> None:
    with pytest.raises(UnsupportedKind, match="has no reader here; there are readers for plain text"):
        kind_of(extension, media_type)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("grüße 你好 😀", "utf-8"),
        ("grüße", "utf-8-sig"),
        ("grüße", "utf-16"),
        ("grüße", "utf-32"),
        ("Müller & Söhne, Straße", "cp1252"),
        ("你好世界。这是一个测试。", "gb18030"),
        ("これはテストです。", "shift_jis"),
    ],
)
def test_the_encoding_of_a_text_is_found(text: str, encoding: str) -> None:
    assert decoded(text.encode(encoding)) == text


def test_a_declared_encoding_counts_and_an_unknown_one_does_not() -> None:
    page = '<meta charset="iso-8859-2"><p>Łódź</p>'
    assert decoded(page.encode("iso-8859-2")) == page
    assert decoded('<meta charset="klingon">ä'.encode("cp1252")) == '<meta charset="klingon">ä'


def test_json_is_indented_and_keeps_its_letters() -> None:
    assert read("json", '{"a":"ü","b":[1]}') == '{\n  "a": "ü",\n  "b": [\n    1\n  ]\n}'


def test_yaml_is_read_and_its_aliases_stay_aliases() -> None:
    assert read("yaml", "b: 1\na: ü\n") == "b: 1\na: ü\n"
    levels = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [x, x]\n" + "".join(f"{key}: &{key} [*{last}, *{last}, *{last}]\n" for last, key in levels)
    assert len(read("yaml", bomb)) < 2_000
    assert error("yaml", "a: !!python/object:os.system x").startswith("it is not a yaml file that can be read")


def test_csv_is_a_table_whose_cells_have_no_line_breaks() -> None:
    assert read("csv", 'name,note\nAda,"two\nlines"\n\nBob,a|b\n') == (
        "| name | note |\n| --- | --- |\n| Ada | two lines |\n| Bob | a\\|b |"
    )
    assert read("csv", "a;b\n1;2\n") == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_reading_csv_never_lowers_the_limit_of_a_cell_for_the_rest_of_the_process() -> None:
    before = csv.field_size_limit()
    try:
        read("csv", "a\n1\n")
        assert csv.field_size_limit() == before
        csv.field_size_limit(10)
        assert read("csv", f"a\n{'x' * 1000}\n").endswith(f"| {'x' * 1000} |")
        limit = csv.field_size_limit()
        assert limit > 1000
        read("csv", "a\n1\n")
        assert csv.field_size_limit() == limit
    finally:
        csv.field_size_limit(before)


def test_empty_rows_and_columns_of_a_table_are_left_out() -> None:
    assert markdown_table([["a", None, "b"], [], [1, None, None]]) == "| a | b |\n| --- | --- |\n| 1 |  |"
    assert markdown_table([[None], []]) == ""


def test_properties_are_lines_of_key_and_value() -> None:
    assert read("properties", "# note\na = 1\nb:2=3\n\nc\n") == "# note\na: 1\nb: 2=3\n\nc: "


def test_subtitles_are_merged_by_speaker() -> None:
    text = (
        "WEBVTT\n\n1\n00:00.000 --> 00:01.000\n<v Ada>Hello\n\n00:01.000 --> 00:02.000\n<v Ada>again</v>\n\n"
        "NOTE nothing\n\n00:02.000 --> 00:03.000\n<v Bob><i>Hi</i>\n"
    )
    assert read("vtt", text) == "Ada: Hello again\nBob: Hi"


def test_a_mail_is_its_head_its_body_and_the_names_of_attachments() -> None:
    mail = (
        "From: Ada <ada@x.example>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n'
        "Content-Transfer-Encoding: 8bit\r\n\r\n<style>p{}</style><p>Hallo</p><p>Welt &amp; du</p>\r\n--b\r\n"
        'Content-Type: application/pdf\r\nContent-Disposition: attachment; filename="a.pdf"\r\n\r\nx\r\n--b--\r\n'
    )
    assert read("eml", mail) == "From: Ada <ada@x.example>\nSubject: Grüße\n\nHallo\n\nWelt & du\n\nAttachment: a.pdf"


def test_scripts_and_styles_of_a_page_are_no_text() -> None:
    assert text_of_html("<head><title>t</title></head><p>a<br>b</p><script>x<y</script>c") == "a\nb\nc"


@pytest.mark.parametrize("kind", ["json", "yaml", "pdf", "docx", "xlsx", "pptx", "epub"])
def test_a_broken_file_is_an_error_with_its_kind(kind: str) -> None:
    said = error(kind, "{[broken")
    assert said.startswith(f"it is not a {kind} file that can be read: ") or "flowledger[documents]" in said


@pytest.mark.parametrize(
    ("kind", "library"), [("pdf", "pypdf"), ("docx", "docx"), ("xlsx", "openpyxl"), ("pptx", "pptx")]
)
def test_a_format_whose_library_is_missing_says_what_to_install(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.errors", None)
    expected = f"reading .{kind} needs a library that is not installed here: pip install 'flowledger[documents]'"
    assert error(kind, "x") == expected


def test_json_nested_beyond_reason_is_an_error() -> None:
    assert error("json", "[" * 100_000).endswith("nested too deeply")
