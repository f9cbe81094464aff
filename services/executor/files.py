"""What nodes need of the place where files are kept."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from libs.events.files import Files, StoredFile
from libs.events.log import LogError
from libs.workflow.inputs import type_of_extension
from libs.workflow.segments import FILE_IDENTITY, file_attribute

if TYPE_CHECKING:
    from services.executor.nodes.port import Attempt


class FileStore(Protocol):
    """Reads the files that values of the pool refer to, and keeps those that nodes produce."""

    async def read(self, file: Mapping[str, JsonValue]) -> bytes:
        """The content of a file value whose transfer method is not `remote_url`. Raises OSError when it is gone."""
        ...

    async def save(self, attempt: "Attempt", filename: str, mime_type: str, content: bytes) -> dict[str, JsonValue]:
        """Keep the content for the attempt's run; the file value that refers to it. Raises OSError."""
        ...


class KeptFiles:
    """Files in the blob store. Its reads wait in threads, so that the loop never does."""

    def __init__(self, files: Files) -> None:
        self._files = files

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
        if known is None:
            raise OSError(f"no file {file_id[:64]} is kept here")
        return self._files.content(known)

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
            "type": type_of_extension(kept.extension),
            "transfer_method": "tool_file",
            "remote_url": None,
            "related_id": kept.file_id,
            "filename": kept.name,
            "extension": f".{kept.extension}" if kept.extension else None,
            "mime_type": kept.mime_type,
            "size": kept.size,
            "url": f"/v1/files/{kept.file_id}/preview",
        }
