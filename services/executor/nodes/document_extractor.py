"""`document-extractor`: the text of a file, or of each file of a list.

Files at a URL come through the guarded client and are bounded while they arrive; parsers run in processes of their
own (services/executor/documents). One file that cannot be read fails the node: a text that silently lacks a document
would be believed.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from pydantic import JsonValue

from libs.net import GuardedHttp
from libs.workflow.configs.values import DocumentExtractorConfig
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool
from libs.workflow.segments import is_file
from services.executor.documents.kinds import UnsupportedKind, extension_of_text
from services.executor.documents.process import Unreadable, read_document
from services.executor.download import NotFetched, content_of
from services.executor.files import FileReader, FileStore, reader
from services.executor.nodes.masking import Masking
from services.executor.nodes.port import Attempt, Handler

MAX_FILE_BYTES: Final = 15 * 1024 * 1024
MAX_FILES: Final = 100
MAX_HELD: Final = 32
"""Files in memory at once, of all runs."""
MAX_TEXT_CHARS: Final = 16_000_000
"""Of all files of a node together."""

File = Mapping[str, JsonValue]
Read = Callable[[bytes, str, str], Awaitable[str]]


class _Refused(Exception):
    """The node fails; the text is for its author."""


class DocumentExtractorHandler(Handler):
    effect = True
    slot = "wait"  # most of it is waiting for servers, which must not keep code nodes from running

    def __init__(self, http: GuardedHttp, files: FileStore | None = None, read: Read = read_document) -> None:
        """`read`: text of content, extension and media type."""
        self._http = http
        self._files = files
        self._read = read
        self._held = asyncio.Semaphore(MAX_HELD)
        self._reading = asyncio.Semaphore(max(2, os.cpu_count() or 1))

    async def run(self, attempt: Attempt) -> Outcome:
        config: DocumentExtractorConfig = attempt.node.config
        masked = Masking(attempt.pool)
        inputs: Values = {"variable_selector": list(config.variable_selector)}
        record: Values | None = None
        try:
            documents, many = _documents(config, attempt.pool)
            record = {"documents": [_shown(each) for each in documents]}
            texts = await self._texts(documents, reader(self._files, attempt))
        except _Refused as refused:
            return Failed(masked.text(str(refused)), "", inputs, record)
        if many:
            return Succeeded({"text": list(texts)}, inputs, record, output_types={"text": "array[string]"})
        return Succeeded({"text": texts[0]}, inputs, record)

    async def _texts(self, documents: list[File], kept: FileReader | None) -> list[str]:
        texts: list[str] = []
        for document in documents:
            texts.append(await self._text(document, kept))
            if sum(map(len, texts)) > MAX_TEXT_CHARS:
                raise _Refused(f"the files have more than {MAX_TEXT_CHARS} characters of text, the most a node takes")
        return texts

    async def _text(self, document: File, kept: FileReader | None) -> str:
        label = f"file {document.get('filename') or document.get('related_id') or 'without a name'}"
        async with self._held:
            try:
                content, media_type = await content_of(document, kept, self._http, MAX_FILE_BYTES)
                async with self._reading:
                    return await self._read(content, _extension(document), str(document.get("mime_type") or media_type))
            except (NotFetched, Unreadable, UnsupportedKind) as error:
                raise _Refused(f"{label}: {error}") from error


def _documents(config: DocumentExtractorConfig, pool: Pool) -> tuple[list[File], bool]:
    """The files, and whether the answer is a list. Raises _Refused."""
    where = ".".join(config.variable_selector) or "(no variable)"
    found = pool.get(config.variable_selector)
    if found is None:
        raise _Refused(f"variable {where} not found; choose a file or a list of files")
    if not found.value:
        return [], True
    given = found.value if isinstance(found.value, list) else [found.value]
    documents: list[File] = []
    for value in given:
        if not value:
            continue
        if not isinstance(value, dict) or not is_file(value):
            raise _Refused(f"variable {where} is of type {found.shown_type}; expected a file or a list of files")
        documents.append(value)
    if len(documents) > MAX_FILES:
        raise _Refused(f"variable {where} has {len(documents)} files; a node reads at most {MAX_FILES}")
    return documents, isinstance(found.value, list)


def _extension(document: File) -> str:
    extension = document.get("extension")
    if not isinstance(extension, str) or not extension:
        name = document.get("filename")
        extension = name.rpartition(".")[2] if isinstance(name, str) and "." in name else ""
    return extension_of_text(extension) if isinstance(document.get("text"), str) else extension


def _shown(document: File) -> JsonValue:
    """The file as records show it: without a content that is part of the value."""
    shown = {name: value for name, value in document.items() if name != "text"}
    for name in ("remote_url", "url"):
        url = shown.get(name)
        if isinstance(url, str) and url.startswith("data:"):
            shown[name] = url.partition(",")[0]
    return shown
