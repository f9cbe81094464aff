"""Files that a model answers with: kept as files of the run, so that they last longer than its addresses for them."""

import asyncio
import mimetypes
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from libs.events.files import extension_of
from libs.net import GuardedHttp
from libs.workflow.inputs import file_value
from libs.workflow.outcome import Values
from services.executor.download import NotFetched, fetched, inlined
from services.executor.files import FileStore, fit_name
from services.executor.models import Media
from services.executor.nodes.port import Attempt

MAX_BYTES: Final = 50 * 1024 * 1024

_EXTENSIONS: Final = {"audio/mpeg": "mp3", "audio/wav": "wav", "audio/x-wav": "wav", "image/jpeg": "jpg"}
"""Where the table of the system has another one, or none."""
_USUAL: Final = {"image": "png", "audio": "wav", "video": "mp4", "document": "bin"}


class NotKept(Exception):
    """A file of the answer would be lost. The text says why."""


class AnswerFiles:
    """Of one attempt."""

    def __init__(self, attempt: Attempt, store: FileStore | None, http: GuardedHttp | None) -> None:
        self._attempt = attempt
        self._store = store
        self._http = http
        self._count = 0

    async def keep(self, media: Media) -> Values:
        """The value of the file. One at an address that does not give it stays there. Raises NotKept."""
        self._count += 1
        if not media.url.startswith("data:"):
            return await self._kept_from(media)
        if self._store is None:
            raise NotKept("the model answered with a file, and this server keeps no files")
        try:
            content, mime_type = await asyncio.to_thread(inlined, media.url, MAX_BYTES)
        except NotFetched as error:
            raise NotKept(f"the model answered with a file that cannot be kept: {error}") from error
        said = "" if media.url.startswith("data:;") else mime_type
        return await self._saved(self._store, media, content, said)

    async def _kept_from(self, media: Media) -> Values:
        if self._store is not None and self._http is not None:
            try:
                content, said = await fetched(self._http, media.url, MAX_BYTES)
                return await self._saved(self._store, media, content, said)
            except NotFetched:
                pass
        given = {"transfer_method": "remote_url", "url": media.url, "type": media.kind}
        try:
            return file_value(given | ({"filename": media.name} if media.name else {}))
        except ValueError as error:
            raise NotKept(f"the model answered with a file whose address cannot be used: {error}") from error

    async def _saved(self, store: FileStore, media: Media, content: bytes, said: str) -> Values:
        mime_type = said.partition(";")[0].strip().lower()
        name = fit_name(media.name or _name_at(media.url))
        if not extension_of(name):
            extension = media.format or _extension_of(mime_type) or _USUAL[media.kind]
            name = f"{name or f'{media.kind}-{self._count}'}.{extension}"
        mime_type = mime_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        try:
            return await store.save(self._attempt, name, mime_type, content)
        except OSError as error:
            raise NotKept(f"the model answered with a file that cannot be kept: {error}") from error


def _name_at(url: str) -> str:
    return "" if url.startswith("data:") else PurePosixPath(unquote(urlsplit(url).path)).name


def _extension_of(mime_type: str) -> str:
    return _EXTENSIONS.get(mime_type) or (mimetypes.guess_extension(mime_type) or "").lstrip(".")
