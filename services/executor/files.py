"""What nodes need of the place where files are kept."""

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import JsonValue

from libs.events.files import EVERY_APP, Files, StoredFile
from libs.events.log import LogError
from libs.workflow.inputs import type_of_file
from libs.workflow.segments import FILE_IDENTITY, file_attribute

if TYPE_CHECKING:
    from services.executor.nodes.port import Attempt


_UNFIT: Final = re.compile(r"[\x00-\x1f/\\]")
_LONGEST_NAME: Final = 200


def fit_name(name: str) -> str:
    """What names of files may be: who chose this one is a server, a model, or whoever wrote to it."""
    return _UNFIT.sub("_", name)[-_LONGEST_NAME:]


class FileReader(Protocol):
    """Reads the files that values of one app's runs refer to."""

    async def read(self, file: Mapping[str, JsonValue]) -> bytes:
        """The content of a file value whose transfer method is not `remote_url`.

        Raises OSError when there is no such file, or not for this app: a node can make up any value.
        """
        ...


class FileStore(Protocol):
    """Where the files of all apps are kept, those that nodes produce among them."""

    def of(self, app_id: str) -> FileReader: ...

    async def save(self, attempt: "Attempt", filename: str, mime_type: str, content: bytes) -> dict[str, JsonValue]:
        """Keep the content for the attempt's run; the file value that refers to it. Raises OSError."""
        ...


def reader(files: FileStore | None, attempt: "Attempt") -> FileReader | None:
    """What the attempt may read with; None where no files are kept."""
    return None if files is None else files.of(attempt.app_id)


class AppFiles:
    """The files of one app in the blob store. Reads wait in threads, so that the loop never does."""

    def __init__(self, files: Files, app_id: str) -> None:
        self._files = files
        self._app_id = app_id

    async def read(self, file: Mapping[str, JsonValue]) -> bytes:
        file_id = file_attribute(file, "related_id")
        if not isinstance(file_id, str):
            raise OSError("its value names no kept file")
        try:
            return await asyncio.to_thread(self._content, file_id)
        except LogError as error:
            raise OSError(f"the blob store does not give it: {error}") from error

    def _content(self, file_id: str) -> bytes:
        known = self._files.find(file_id)
        if known is None or known.app_id not in (self._app_id, EVERY_APP):
            raise OSError(f"no file {file_id[:64]} is kept here")
        return self._files.content(known)


class KeptFiles:
    """Files in the blob store."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def of(self, app_id: str) -> AppFiles:
        return AppFiles(self._files, app_id)

    async def save(self, attempt: "Attempt", filename: str, mime_type: str, content: bytes) -> dict[str, JsonValue]:
        def store() -> StoredFile:
            return self._files.store(
                content, app_id=attempt.app_id, owner="", name=filename, mime_type=mime_type, run_id=attempt.run_id
            )

        try:
            kept = await asyncio.to_thread(store)
        except LogError as error:
            raise OSError(f"the blob store does not take it: {error}") from error
        return {
            "dify_model_identity": FILE_IDENTITY,
            "id": None,
            "type": type_of_file(kept.extension, kept.mime_type),
            "transfer_method": "tool_file",
            "remote_url": None,
            "reference": kept.file_id,
            "related_id": kept.file_id,
            "filename": kept.name,
            "extension": f".{kept.extension}" if kept.extension else None,
            "mime_type": kept.mime_type,
            "size": kept.size,
            "url": f"/v1/files/{kept.file_id}/preview",
        }
