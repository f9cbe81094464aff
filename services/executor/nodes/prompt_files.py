"""Files of prompts: which of them go to the model, and how it gets at them.

An address goes to the model's server as it is where the server takes addresses; what it does not take, and what was
uploaded here, goes with its content. Types that the operator's settings, or what is known of the provider, say that
it does not take are left out, and `left_out` names them.
"""

import asyncio
import base64
import mimetypes
from collections.abc import Iterable, Mapping
from typing import Final, cast, get_args

from pydantic import JsonValue

from libs.events.files import extension_of
from libs.net import GuardedHttp
from libs.workflow.configs.models import ModelSettings
from services.executor.download import NotFetched, content_of
from services.executor.files import FileReader, FileStore, reader
from services.executor.models import Models
from services.executor.models.parts import BY_CONTENT
from services.executor.models.port import Media, MediaKind
from services.executor.nodes.port import Attempt

MAX_BYTES: Final = 50 * 1024 * 1024
"""Of all content in one prompt: with its copies in base64 and JSON it is in memory several times."""

KINDS: Final[frozenset[str]] = frozenset(get_args(MediaKind))
_UNKNOWN_TYPES: Final = {
    "image": "image/png",
    "audio": "audio/mpeg",
    "video": "video/mp4",
    "document": "application/octet-stream",
}

File = Mapping[str, JsonValue]


class FileUnavailable(Exception):
    """A file of the prompt cannot be had. The text names it and says what to do."""


class PromptFiles:
    """Of one attempt. `parts`: types of files that the model's server takes, and in which part of a message."""

    def __init__(self, parts: Mapping[str, str], kept: FileReader | None, http: GuardedHttp | None) -> None:
        self._parts = parts
        self._kept = kept
        self._http = http
        self._size = 0
        self.left_out: list[str] = []
        """Names of files that the model does not get."""

    async def media(self, files: Iterable[File], detail: str) -> tuple[Media, ...]:
        """What the model gets of the files. Raises FileUnavailable."""
        found = []
        for file in files:
            kind = str(file.get("type"))
            if kind in self._parts and kind in KINDS:
                url = await self._url(file, kind)
                found.append(Media(cast(MediaKind, kind), url, _name(file), _extension(file), detail))
            else:
                self.left_out.append(_name(file))
        return tuple(found)

    async def _url(self, file: File, kind: str) -> str:
        url = file.get("remote_url") or file.get("url")
        remote = file.get("transfer_method") == "remote_url" and isinstance(url, str)
        if remote and self._parts[kind] not in BY_CONTENT:
            return str(url)
        label = f"{kind} {_name(file)}"
        try:
            content, said = await content_of(file, self._kept, self._http, MAX_BYTES)
        except NotFetched as error:
            raise FileUnavailable(f"{label}: {error}") from error
        self._size += len(content)
        if self._size > MAX_BYTES:
            raise FileUnavailable(
                f"{label}: the files of the prompt are larger than {MAX_BYTES // 1024 // 1024} MB together"
            )
        guessed = mimetypes.guess_type(f"x.{_extension(file)}")[0]
        mime_type = file.get("mime_type") or guessed or said.partition(";")[0].strip() or _UNKNOWN_TYPES[kind]
        encoded = await asyncio.to_thread(base64.b64encode, content)
        return f"data:{mime_type};base64,{encoded.decode()}"


def prompt_files(
    attempt: Attempt, model: ModelSettings, models: Models, store: FileStore | None, http: GuardedHttp | None
) -> PromptFiles:
    """For an attempt that asks this model. The form of completions has no place for files."""
    parts = {} if model.mode == "completion" else models.parts(model.provider)
    return PromptFiles(parts, reader(store, attempt), http)


def _name(file: File) -> str:
    return str(file.get("filename") or file.get("related_id") or "without a name")


def _extension(file: File) -> str:
    """Lower case, without dot; what the type says when the file has none."""
    own = str(file.get("extension") or "").lstrip(".") or extension_of(str(file.get("filename") or ""))
    if own:
        return own.lower()
    return (mimetypes.guess_extension(str(file.get("mime_type") or "")) or "").lstrip(".")
