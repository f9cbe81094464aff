"""Readers of pdf, docx, xlsx, pptx, epub and OpenDocument. Libraries are optional: without one, LibraryMissing says so.

They parse what strangers made, in a process with bounded time and memory. An archive says how large it unpacks before
anything of it is unpacked, and is not read beyond that.
"""

import importlib
import io
import posixpath
import zipfile
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote
from xml.etree import ElementTree

from services.executor.documents.plain import markdown_table, text_of_html

MAX_UNPACKED_BYTES: Final = 200 * 1024 * 1024
MAX_ENTRIES: Final = 20_000
MAX_REPEATED: Final = 1_000
"""Of cells, rows and spaces that an OpenDocument file writes once with a count."""


class LibraryMissing(Exception):
    """The reader of this format is not installed."""


def read_pdf(content: bytes) -> str:
    pypdf = _library("pypdf", "pdf")
    try:
        reader = pypdf.PdfReader(io.BytesIO(content), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("the file is encrypted; save it without a password")
        pages = list(reader.pages)
        text = "\n".join(page.extract_text() for page in pages).strip()
        # Some files defeat the first way of reading and not the second; scans have no text in either.
        return text or "\n".join(page.extract_text(extraction_mode="layout") for page in pages).strip()
    except pypdf.errors.PyPdfError as error:
        raise ValueError(str(error)) from error


def read_docx(content: bytes) -> str:
    docx = _library("docx", "docx")
    _check_archive(content)
    parts = []
    for block in docx.Document(io.BytesIO(content)).iter_inner_content():
        if hasattr(block, "rows"):
            parts.append(markdown_table([[cell.text for cell in _cells(row)] for row in block.rows]))
        else:
            parts.append(block.text)
    return "\n".join(part for part in parts if part.strip())


def _cells(row: Any) -> list[Any]:
    """Cells of a row; one that spans columns is named by the library once per column."""
    found: list[Any] = []
    for cell in row.cells:
        if not found or found[-1]._tc is not cell._tc:  # noqa: SLF001  # the only identity that cells have
            found.append(cell)
    return found


def read_xlsx(content: bytes) -> str:
    openpyxl = _library("openpyxl", "xlsx")
    _check_archive(content)
    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
    tables = []
    for sheet in book.worksheets:
        try:
            sheet.reset_dimensions()  # files may claim a million columns
            tables.append(markdown_table(sheet.iter_rows(values_only=True)))
        except (ValueError, KeyError, TypeError):  # one bad sheet does not take the others with it
            continue
    return "\n\n".join(table for table in tables if table)


def read_pptx(content: bytes) -> str:
    pptx = _library("pptx", "pptx")
    _check_archive(content)
    slides = []
    for slide in pptx.Presentation(io.BytesIO(content)).slides:
        texts = [text for shape in slide.shapes for text in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(slide.notes_slide.notes_text_frame.text)
        slides.append("\n".join(text for text in texts if text.strip()))
    return "\n\n".join(slide for slide in slides if slide)


def _shape_texts(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):
        for inner in shape.shapes:
            yield from _shape_texts(inner)
    elif shape.has_text_frame:
        yield shape.text_frame.text
    elif getattr(shape, "has_table", False):
        yield markdown_table([[cell.text for cell in row.cells] for row in shape.table.rows])


def read_epub(content: bytes) -> str:
    _check_archive(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        package_path = next(each.attrib["full-path"] for each in _named(container, "rootfile"))
        package = ElementTree.fromstring(archive.read(package_path))
        places = {each.attrib.get("id"): each.attrib.get("href", "") for each in _named(package, "item")}
        folder = posixpath.dirname(package_path)
        chapters = []
        for each in _named(package, "itemref"):
            path = posixpath.normpath(posixpath.join(folder, unquote(places.get(each.attrib.get("idref"), ""))))
            if path in archive.NameToInfo:
                chapters.append(text_of_html(archive.read(path).decode("utf-8", "replace")))
    return "\n\n".join(chapter for chapter in chapters if chapter)


def read_opendocument(content: bytes) -> str:
    """Texts, sheets and slides: paragraphs and tables in their order."""
    _check_archive(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        body = next(_named(ElementTree.fromstring(archive.read("content.xml")), "body"))
    return "\n".join(block for block in _blocks(body) if block.strip())


def _blocks(element: ElementTree.Element) -> Iterator[str]:
    for each in element:
        match _local(each):
            case "p" | "h":
                yield _paragraph(each)
            case "table":
                yield markdown_table(_rows(each))
            case "tracked-changes" | "annotation":
                continue  # what was deleted, and what people say about it
            case _:
                yield from _blocks(each)


def _paragraph(element: ElementTree.Element) -> str:
    parts = [element.text or ""]
    for each in element:
        match _local(each):
            case "s":
                parts.append(" " * _repeated(each, "c"))
            case "tab":
                parts.append("\t")
            case "line-break":
                parts.append("\n")
            case "annotation":
                pass
            case _:
                parts.append(_paragraph(each))
        parts.append(each.tail or "")
    return "".join(parts)


def _rows(table: ElementTree.Element) -> Iterator[list[str]]:
    for row in _named(table, "table-row"):
        cells: list[str] = []
        for cell in row:
            if _local(cell) in ("table-cell", "covered-table-cell"):
                cells += ["\n".join(_blocks(cell))] * _repeated(cell, "number-columns-repeated")
        for _ in range(_repeated(row, "number-rows-repeated") if any(cells) else 1):
            yield cells


def _repeated(element: ElementTree.Element, name: str) -> int:
    """How often it stands there; sheets repeat their last empty cell up to the end of all columns."""
    count = next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "1")
    return min(int(count), MAX_REPEATED) if count.isdecimal() else 1


def _local(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _named(tree: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (each for each in tree.iter() if each.tag.rpartition("}")[2] == name)


def _check_archive(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > MAX_UNPACKED_BYTES or len(entries) > MAX_ENTRIES:
        raise ValueError(
            f"it unpacks to {size / 1024 / 1024:.0f} MB in {len(entries)} parts; "
            f"at most {MAX_UNPACKED_BYTES // 1024 // 1024} MB in {MAX_ENTRIES} parts are read"
        )


def _library(module: str, kind: str) -> Any:
    try:
        if module == "pypdf":
            importlib.import_module("pypdf.errors")
        return importlib.import_module(module)
    except ImportError as error:
        raise LibraryMissing(
            f"reading .{kind} needs a library that is not installed here: pip install 'flowledger[documents]'"
        ) from error
