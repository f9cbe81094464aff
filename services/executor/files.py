"""What nodes need of the place where files are kept."""

from collections.abc import Mapping
from typing import Protocol

from pydantic import JsonValue


class FileStore(Protocol):
    """Reads the files that values of the pool refer to, and keeps those that nodes produce."""

    async def read(self, file: Mapping[str, JsonValue]) -> bytes:
        """The content of a file value whose transfer method is not `remote_url`. Raises OSError when it is gone."""
        ...

    async def save(self, run_id: str, filename: str, mime_type: str, content: bytes) -> dict[str, JsonValue]:
        """Keep the content; the file value that refers to it. The same content of the same run is kept once."""
        ...
