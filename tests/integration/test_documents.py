"""Documents read in processes of their own, and fetched over real sockets on 127.0.0.1."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from libs.net import GuardedHttp
from libs.workflow.inputs import file_value
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.documents import process
from services.executor.documents.process import Unreadable, read_document
from services.executor.nodes.document_extractor import DocumentExtractorHandler
from services.executor.sandbox.inside import seccomp
from tests.attempts import attempt_of
from tests.integration.test_http_node import Served, Server


def read(content: bytes, extension: str) -> str:
    return asyncio.run(read_document(content, extension, ""))


def refusal(content: bytes, extension: str) -> str:
    with pytest.raises(Unreadable) as caught:
        read(content, extension)
    return str(caught.value)


def archive(**files: str) -> bytes:
    """`_` in a name stands for `/`, `__` for `.`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in files.items():
            made.writestr(name.replace("__", ".").replace("_", "/"), text)
    return buffer.getvalue()


def pdf_of(*pages: str) -> bytes:
    """A small PDF, one line of text per page."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        resources = f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {resources} >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    made, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{each}\nendobj\n"
    rows = "".join(f"{place:010d} 00000 n \n" for place in places)
    tail = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF"
    return f"{made}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}{tail}".encode()


# --- formats ----------------------------------------------------------------------------------------------------------


def test_pages_of_a_pdf_follow_each_other() -> None:
    pytest.importorskip("pypdf")
    assert read(pdf_of("first page", "second page"), "pdf") == "first page\nsecond page"


def test_a_pdf_without_text_is_empty_text() -> None:
    pytest.importorskip("pypdf")
    assert read(pdf_of("", ""), "pdf") == ""


def test_paragraphs_and_tables_of_a_docx_keep_their_order() -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_paragraph("before")
    table = document.add_table(rows=2, cols=2)
    for at, text in enumerate(("a", "b", "1", "two\nlines")):
        table.rows[at // 2].cells[at % 2].text = text
    document.add_paragraph("after")
    buffer = io.BytesIO()
    document.save(buffer)
    expected = "before\n| a | b |\n| --- | --- |\n| 1 | two lines |\nafter"
    assert read(buffer.getvalue(), "docx") == expected


def test_sheets_of_an_xlsx_are_tables() -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["name", "sum"])
    book.active.append(["Ada", 3.5])
    book.create_sheet("empty")
    book.create_sheet("more").append(["x"])
    buffer = io.BytesIO()
    book.save(buffer)
    assert read(buffer.getvalue(), "xlsx") == "| name | sum |\n| --- | --- |\n| Ada | 3.5 |\n\n| x |\n| --- |"


def test_texts_tables_and_notes_of_a_pptx_are_read_slide_by_slide() -> None:
    pptx = pytest.importorskip("pptx")
    show = pptx.Presentation()
    for number in (1, 2):
        slide = show.slides.add_slide(show.slide_layouts[5])
        slide.shapes.title.text = f"title {number}"
    slide.notes_slide.notes_text_frame.text = "say this"
    table = slide.shapes.add_table(1, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text = "a", "b"
    buffer = io.BytesIO()
    show.save(buffer)
    assert read(buffer.getvalue(), "pptx") == "title 1\n\ntitle 2\n| a | b |\n| --- | --- |\nsay this"


def test_chapters_of_an_epub_come_in_the_order_of_its_spine() -> None:
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="b" href="b.xhtml"/>'
        '<item id="a" href="a.xhtml"/></manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>'
    )
    container = '<container><rootfiles><rootfile full-path="OEBPS/p.opf"/></rootfiles></container>'
    book = archive(**{
        "META-INF_container__xml": container, "OEBPS_p__opf": package,
        "OEBPS_b__xhtml": "<p>Two</p>", "OEBPS_a__xhtml": "<h1>One</h1><p>text</p>",
    })  # fmt: skip
    assert read(book, "epub") == "One\n\ntext\n\nTwo"


OPEN = """<?xml version="1.0"?><office:document-content xmlns:office="urn:o" xmlns:text="urn:t" xmlns:table="urn:b">
<office:body><office:KIND>%s</office:KIND></office:body></office:document-content>"""
SHEET = (
    "<table:table><table:table-row><table:table-cell><text:p>a</text:p></table:table-cell>"
    "<table:table-cell><text:p>b</text:p></table:table-cell></table:table-row>"
    "<table:table-row><table:table-cell table:number-columns-repeated='2'><text:p>1</text:p></table:table-cell>"
    "<table:table-cell table:number-columns-repeated='16382'/></table:table-row>"
    "<table:table-row table:number-rows-repeated='1048574'><table:table-cell/></table:table-row></table:table>"
)
WRITTEN = (
    "<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes><text:h>Head</text:h>"
    "<text:list><text:list-item><text:p>one <text:span>bold</text:span><text:s text:c='2'/>two<text:line-break/>three"
    "</text:p></text:list-item></text:list>" + SHEET + "<text:p>after</text:p>"
)
AS_TABLE = "| a | b |\n| --- | --- |\n| 1 | 1 |"


@pytest.mark.parametrize(
    ("extension", "body", "text"),
    [
        ("odt", WRITTEN, f"Head\none bold  two\nthree\n{AS_TABLE}\nafter"),
        ("ods", SHEET, AS_TABLE),
        ("odp", "<draw><frame><text:p>slide</text:p></frame></draw>", "slide"),
    ],
)
def test_open_documents_are_read_in_their_order(extension: str, body: str, text: str) -> None:
    assert read(archive(content__xml=OPEN % body), extension) == text


def test_an_open_document_that_is_none_is_an_error() -> None:
    assert "it is not a odt file that can be read" in refusal(archive(other__xml="<a/>"), "odt")


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["docx", "xlsx", "pptx", "epub", "odt"])
def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(kind: str) -> None:
    if kind not in ("epub", "odt"):
        pytest.importorskip({"docx": "docx", "xlsx": "openpyxl", "pptx": "pptx"}[kind])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made, made.open("big", "w", force_zip64=True) as big:
        for _ in range(201):
            big.write(bytes(1024 * 1024))
    assert "it unpacks to 201 MB in 1 parts; at most 200 MB" in refusal(buffer.getvalue(), kind)


def test_a_reader_that_needs_too_much_memory_is_an_error_and_not_the_service_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MEMORY_BYTES", 120 * 1024 * 1024)
    said = refusal(b"[" + b"{}," * 2_000_000 + b"{}]", "json")
    assert "memory" in said or "ended without an answer" in said


def test_a_reader_that_computes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CPU_S", 1)
    slow = b"\n".join(b"- {a%d: [1, 2, 3], b: &x%d y}" % (number, number) for number in range(400_000))
    assert "processor time" in refusal(slow, "yaml")


def test_a_reader_that_is_closed_off_has_no_network_and_starts_no_program() -> None:
    if seccomp.supported() is not None:
        pytest.skip(f"this machine has no filter for system calls: {seccomp.supported()}")
    program = (
        "import socket, subprocess, sys\n"
        "from services.executor.documents.child import close_off\n"
        "close_off(sys.argv[1])\n"
        "for attempt in (socket.socket, lambda: subprocess.run(['/bin/true'])):\n"
        "    try: attempt()\n"
        "    except PermissionError: print('refused')\n"
    )
    root = Path(process.__file__).parents[3]
    command = [sys.executable, "-c", program, str(root / "services/executor/sandbox")]
    assert (
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split() == ["refused"] * 2
    )


def test_a_reading_that_is_cancelled_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = b"\n".join(b"- {a%d: [1, 2, 3], b: &x%d y}" % (number, number) for number in range(400_000))
    started: list[Any] = []
    spawn = asyncio.create_subprocess_exec

    async def spawned(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        child = await spawn(*args, **options)
        started.append(child)
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawned)

    async def go() -> None:
        reading = asyncio.ensure_future(read_document(slow, "yaml", ""))
        while not started:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)  # into the reading, which takes seconds
        assert not reading.done()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(go())
    (child,) = started
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetched(body: bytes, target: str = "/a.csv", *, allow: bool = True, **headers: str) -> Outcome:
    async def respond(request: Served) -> None:
        await request.answer(body, **headers)

    async def go() -> Outcome:
        async with Server(respond) as server:
            http = GuardedHttp([f"127.0.0.1:{server.port}"] if allow else [])
            file = file_value({"transfer_method": "remote_url", "url": server.url + target})
            attempt = attempt_of("document-extractor", {"variable_selector": ["s", "f"]}, {"s.f": file})
            try:
                return await DocumentExtractorHandler(http).run(attempt)
            finally:
                await http.aclose()

    return asyncio.run(go())


def test_a_file_at_a_url_is_fetched_and_read() -> None:
    outcome = fetched(b"a,b\n1,2\n")
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs == {"text": "| a | b |\n| --- | --- |\n| 1 | 2 |"}


def test_what_a_file_without_extension_is_says_its_server() -> None:
    outcome = fetched(b'{"a":1}', "/report", Content_Type="application/json; charset=utf-8")
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs == {"text": '{\n  "a": 1\n}'}


def test_a_private_address_is_refused_with_the_setting_that_allows_it() -> None:
    outcome = fetched(b"x", allow=False)
    assert isinstance(outcome, Failed), outcome
    assert "FLOWLEDGER_HTTP_ALLOW" in outcome.error


def test_a_file_that_is_too_large_is_not_read_to_its_end() -> None:
    outcome = fetched(bytes(15 * 1024 * 1024 + 1), "/big.txt")
    assert isinstance(outcome, Failed), outcome
    assert outcome.error == "file big.txt: it is larger than 15 MB"


def test_a_file_that_is_not_there_fails_with_the_status() -> None:
    async def respond(request: Served) -> None:
        await request.answer(b"gone", "404 Not Found")

    async def go() -> Outcome:
        async with Server(respond) as server:
            http = GuardedHttp([f"127.0.0.1:{server.port}"])
            file = file_value({"transfer_method": "remote_url", "url": f"{server.url}/a.pdf"})
            attempt = attempt_of("document-extractor", {"variable_selector": ["s", "f"]}, {"s.f": file})
            try:
                return await DocumentExtractorHandler(http).run(attempt)
            finally:
                await http.aclose()

    outcome = asyncio.run(go())
    assert isinstance(outcome, Failed), outcome
    assert outcome.error == "file a.pdf: its server answered with status 404"
