"""Uploaded files: what is taken, who may use it, and how a request's mention of one becomes a value of the run.

A run refers to a file by its id; the bytes stay in the blobs, where the executor reads them. An end user's upload is
for that user of that app; what nodes made is for the whole app.
"""

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue

from libs.events.files import EVERY_APP, Files, StoredFile, extension_of
from libs.events.log import LogError
from libs.workflow.definition import Definition
from libs.workflow.forms import FormInvalid
from libs.workflow.inputs import FilesInvalid, InputInvalid, takes_files, type_of_extension
from services.api.access import Principal
from services.api.errors import ApiError, invalid_param, unavailable
from services.api.frames import Json
from services.api.multipart import Part
from services.api.requests import canonical_id, is_uuid
from services.api.threads import Threads

LIMITS_MB: Final[Mapping[str, int]] = {"image": 10, "audio": 50, "video": 100}
OTHER_MB: Final = 15
MAX_UPLOAD_BYTES: Final = max(LIMITS_MB.values()) * 1024 * 1024 + 64 * 1024
"""Of the whole body: the largest file, and what stands around it."""

MAX_HELD_BYTES: Final = 512 * 1024 * 1024
"""Of all uploads that are arriving: they are in memory until they are stored."""

MAX_NAME: Final = 200
_IDS: Final = ("upload_file_id", "tool_file_id", "datasource_file_id", "related_id", "reference")
_KEPT_HERE: Final = frozenset({"local_file", "tool_file", "datasource_file"})


def preview_path(file_id: str) -> str:
    """Where a holder of the app's key reads the file."""
    return f"/v1/files/{file_id}/preview"


class Room:
    """What uploads under way may take of the memory; one that finds no room is told to come again."""

    def __init__(self, size_bytes: int = MAX_HELD_BYTES) -> None:
        self._left = size_bytes

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Raises ApiError 503."""
        if size_bytes > self._left:
            raise unavailable("this server is taking in as many uploads as it can hold. Try again", retry_after_s=5)
        self._left -= size_bytes
        try:
            yield
        finally:
            self._left += size_bytes


@dataclass(slots=True, frozen=True)
class Uploads:
    files: Files
    threads: Threads
    blocked: frozenset[str] = field(default_factory=frozenset)
    """Extensions that nobody may upload."""
    room: Room = field(default_factory=Room)

    async def take(self, parts: Sequence[Part], app_id: str, owner: str) -> StoredFile:
        """Keep the one file of a form. Raises ApiError."""
        part = self._file_of(parts)
        name = part.filename or ""
        try:
            return await self.threads.run(
                self.files.store,
                part.content,
                app_id=app_id,
                owner=owner,
                name=_shortened(name),
                mime_type=part.mime_type,
            )
        except LogError as error:
            raise unavailable("the file could not be stored now. Try again") from error

    def _file_of(self, parts: Sequence[Part]) -> Part:
        given = [part for part in parts if part.filename is not None]
        part = next((part for part in given if part.name == "file"), None)
        if part is None or part.filename is None:
            raise ApiError(400, "no_file_uploaded", "the form has no part `file`. Send the file under that name")
        if len({each.name for each in given}) > 1:
            raise ApiError(400, "too_many_files", "the form has more than one file. Send one at a time")
        if not part.filename.strip():
            raise ApiError(400, "filename_not_exists_error", "the file has no name. Send it with its filename")
        if any(letter in part.filename for letter in "/\\\0"):
            raise invalid_param("the filename contains a slash, a backslash or a NUL. Rename the file", "file")
        if not part.mime_type:
            raise ApiError(415, "unsupported_file_type", "the part `file` has no Content-Type. Send one")
        extension = extension_of(part.filename)
        if extension in self.blocked:
            raise invalid_param(f"files with the extension .{extension} are not taken by this server", "file")
        limit_mb = LIMITS_MB.get(type_of_extension(extension), OTHER_MB)
        if len(part.content) > limit_mb * 1024 * 1024:
            message = f"the file is larger than {limit_mb} MB, the most for its kind. Make it smaller"
            raise ApiError(413, "file_too_large", message)
        return part

    async def find(self, file_id: str) -> StoredFile | None:
        """Raises ApiError 503."""
        try:
            return await self.threads.run(self.files.find, file_id)
        except LogError as error:
            raise unavailable("files cannot be looked up now. Try again") from error

    async def content(self, file: StoredFile, span: range) -> AsyncIterator[bytes]:
        """These bytes of the file, piece by piece; the first one is there when this returns. Raises ApiError 503."""
        pieces = self.files.pieces(file, span.start)
        try:
            first = await self.threads.following(pieces)
        except LogError as error:
            raise unavailable("the file cannot be read now. Try again") from error
        return self._rest(pieces, first, len(span))

    async def _rest(self, pieces: Iterator[bytes], piece: object, left: int) -> AsyncIterator[bytes]:
        """`piece`: the first one, or DONE. An error breaks the connection off: the client knows the length.

        A piece leaves when the next one is there, so a blob that turns out to be damaged is never whole at the client.
        """
        while isinstance(piece, bytes) and left > 0:
            following = await self.threads.following(pieces)
            yield piece[:left]
            left -= len(piece)
            piece = following

    # --- files in the inputs of a run ---

    async def resolved(
        self, definition: Definition, inputs: Mapping[str, JsonValue], files: Sequence[JsonValue], user: "FileUser"
    ) -> tuple[dict[str, JsonValue], list[JsonValue]]:
        """The inputs and top-level files with what is known of each uploaded file. Raises InputInvalid, ApiError."""
        problems: list[str] = []
        found = dict(inputs)
        for variable in definition.start_variables:
            name = variable.variable
            if variable.type == "file":
                found[name] = await self._known(name, inputs.get(name), user, problems)
            elif variable.type == "file-list" and isinstance(inputs.get(name), list):
                found[name] = await self._each_known(name, inputs[name], user, problems)
        meant = files if takes_files(definition) else ()
        of_inputs = len(problems)
        top = [await self._known(f"files[{number}]", each, user, problems) for number, each in enumerate(meant)]
        if problems:
            raise InputInvalid(problems) if of_inputs else FilesInvalid(problems)
        return found, top

    async def among(self, values: Mapping[str, JsonValue], user: "FileUser") -> dict[str, JsonValue]:
        """Values of which any may be an uploaded file or a list of them. Raises InputInvalid, ApiError."""
        problems: list[str] = []
        found = {name: await self._each_known(name, value, user, problems) for name, value in values.items()}
        if problems:
            raise InputInvalid(problems)
        return found

    async def mentioned(self, name: str, value: JsonValue, user: "FileUser") -> JsonValue:
        """A value of a form with what is known of the uploaded files in it. Raises FormInvalid, ApiError."""
        problems: list[str] = []
        found = await self._each_known(name, value, user, problems)
        if problems:
            raise FormInvalid(f"{name}: invalid upload file. Upload it with the same `user` first")
        return found

    async def _each_known(self, name: str, value: JsonValue, user: "FileUser", problems: list[str]) -> JsonValue:
        """As `_known`; of a list, its elements."""
        if not isinstance(value, list):
            return await self._known(name, value, user, problems)
        return [await self._known(f"{name}[{number}]", each, user, problems) for number, each in enumerate(value)]

    async def _known(self, where: str, given: JsonValue, user: "FileUser", problems: list[str]) -> JsonValue:
        """A mention of a file that is kept here, completed by what is known of it; anything else as it is."""
        if not isinstance(given, dict) or given.get("transfer_method") not in _KEPT_HERE:
            return given
        file_id = next((given[name] for name in _IDS if given.get(name)), None)
        if not isinstance(file_id, str) or not is_uuid(file_id):
            return {name: value for name, value in given.items() if name != "dify_model_identity"}
        file = await self.find(canonical_id(file_id))
        if file is None or not user.may_use(file):
            problems.append(f"{where} in input form: invalid upload file. Upload it with the same `user` first")
            return None
        return {
            "type": given.get("type") or "custom",
            "transfer_method": given["transfer_method"],
            "upload_file_id": file.file_id,
            "filename": file.name,
            "extension": file.extension,
            "mime_type": file.mime_type,
            "size": file.size,
            "url": preview_path(file.file_id),
        }


@dataclass(slots=True, frozen=True)
class FileUser:
    """Who mentions files, and in which app."""

    app_id: str
    principal: Principal
    user: str

    def may_use(self, file: StoredFile) -> bool:
        if file.app_id not in (self.app_id, EVERY_APP):
            return False
        return self.principal.admin or file.owner in ("", self.principal.caller(self.user).id)


class Signer:
    """Links that work without a key, for `lifetime_s`. `secret` is the same on all replicas."""

    def __init__(
        self, secret: str, now_us: Callable[[], int], random_bits: Callable[[int], int], lifetime_s: int = 300
    ) -> None:
        self._secret = secret.encode()
        self._now_us = now_us
        self._random_bits = random_bits
        self._lifetime_s = lifetime_s

    def link(self, file_id: str) -> str:
        """To a file."""
        return self._signed(f"/files/{file_id}/file-preview", f"file-preview|{file_id}")

    def history_link(self, run_id: str) -> tuple[str, int]:
        """(link to a run's history, when it expires in microseconds since the epoch)."""
        expires_us = self._now_us() + self._lifetime_s * 1_000_000
        return self._signed(f"/files/runs/{run_id}/history", f"run-history|{run_id}"), expires_us

    def _signed(self, path: str, subject: str) -> str:
        at, nonce = str(self._now_us() // 1_000_000), f"{self._random_bits(128):032x}"
        return f"{path}?timestamp={at}&nonce={nonce}&sign={self._sign(subject, at, nonce)}"

    def holds(self, file_id: str, query: Mapping[str, str]) -> bool:
        return self._holds(f"file-preview|{file_id}", query)

    def holds_for_history(self, run_id: str, query: Mapping[str, str]) -> bool:
        return self._holds(f"run-history|{run_id}", query)

    def _holds(self, subject: str, query: Mapping[str, str]) -> bool:
        at, nonce, sign = (query.get(name, "") for name in ("timestamp", "nonce", "sign"))
        if not (at.isascii() and at.isdigit() and len(at) < 16):
            return False
        expected = self._sign(subject, at, nonce)
        fresh = 0 <= self._now_us() // 1_000_000 - int(at) + 5 <= self._lifetime_s + 5
        return hmac.compare_digest(expected.encode(), sign.encode("utf-8", "replace")) and fresh

    def _sign(self, subject: str, at: str, nonce: str) -> str:
        text = f"{subject}|{at}|{nonce}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def uploaded(file: StoredFile, source_url: str) -> Json:
    """The answer to an upload, in the reference's shape."""
    return {
        "id": file.file_id,
        "reference": None,
        "name": file.name,
        "size": file.size,
        "extension": file.extension,
        "mime_type": file.mime_type,
        "created_by": file.owner,
        "created_at": file.created_at_us // 1_000_000,
        "preview_url": None,
        "source_url": source_url,
        "original_url": None,
        "user_id": None,
        "tenant_id": None,
        "conversation_id": None,
        "file_key": None,
    }


def _shortened(name: str) -> str:
    if len(name) <= MAX_NAME:
        return name
    stem, dot, extension = name.rpartition(".")
    return f"{stem[:MAX_NAME]}.{extension}" if dot and len(extension) <= MAX_NAME else name[:MAX_NAME]
