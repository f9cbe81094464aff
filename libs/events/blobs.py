"""Blobs: values too large for an event, kept elsewhere and referred to by their hash.

A reference stands in the place of the value: `{"$blob": {"id": "<sha256>", "size": n, "place": "..."}}`. A blob is
durable before the event that refers to it is written, never changes, and is checked against its hash when it is read.
The port does not delete: blobs live as long as the events that name them.

Adapters: a folder (embedded), the blobs topic of a log (Kafka), and an S3-compatible bucket (`libs.events.s3`).
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeGuard

from pydantic import JsonValue

from libs.events.ids import partition_of
from libs.events.log import Entry, Log, LogError, Topic

PIECE_BYTES = 512 * 1024
"""Size of a blob's pieces in the topic: under every broker's default limit of 1 MB a record."""

_BATCH: Final = 8
"""Pieces that are read at once: 4 MB."""

BlobRef = dict[str, JsonValue]


class BlobError(LogError):
    """A blob cannot be stored or read, at least not at the moment."""


class BlobLost(BlobError):
    """A blob is not there, or is not what its reference says: asking again will not help."""


class Blobs(Protocol):
    """Stores bytes under their hash. Any thread may call."""

    def put(self, run_id: str, data: bytes) -> "Future[BlobRef]":
        """Store `data` for a run; the future is the reference, when the data is durable. Fails with LogError."""

    def get(self, ref: JsonValue) -> bytes:
        """The bytes of a reference. Blocking. Raises BlobLost, BlobError, LogError."""

    def pieces(self, ref: JsonValue, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start` on, piece by piece, so that a large blob is never in memory whole. Blocking.

        Raises as `get`; that the bytes are not those of the reference is known at their end, and from a later start
        only by their number.
        """

    def close(self) -> None:
        """Idempotent."""


def make_ref(digest: str, size: int, place: str) -> BlobRef:
    return {"$blob": {"id": digest, "size": size, "place": place}}


def is_ref(value: object) -> TypeGuard[BlobRef]:
    """Whether a JSON value is a blob reference."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    inner = value.get("$blob")
    return isinstance(inner, dict) and inner.keys() == {"id", "size", "place"}


_MEMBER: Final = "member "
"""No JSON begins like this, so no value of anybody's can pass for one."""


def member_text(ref: BlobRef, name: str) -> str:
    """For a table's column of JSON: the member `name` of the object that lies in the blob."""
    return _MEMBER + json.dumps([ref, name])


def read_member(text: str) -> tuple[BlobRef, str] | None:
    """(reference, name) of a `member_text`; None: the text is JSON."""
    if not text.startswith(_MEMBER):
        return None
    ref, name = json.loads(text.removeprefix(_MEMBER))
    return ref, name


class FolderBlobs:
    """A folder of files named by their content's hash, in sub-folders by its first two digits. Embedded mode."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Each put waits for the disk twice; a few side by side are enough to keep it busy.
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="blobs")

    def put(self, run_id: str, data: bytes) -> "Future[BlobRef]":
        return self._pool.submit(self._store, data)

    def _store(self, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        try:
            if not (path.is_file() and path.stat().st_size == len(data)):
                self._write(path, data)
            # Also for a file that is there: who wrote it may not have made its name durable yet.
            _sync(path.parent)
        except OSError as error:
            raise BlobError(
                f"cannot store blob {digest} in {self._folder}: {error.strerror}. Check the disk"
            ) from error
        return make_ref(digest, len(data), "")

    def _write(self, path: Path, data: bytes) -> None:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync(self._folder)
            _sync(self._folder.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise

    def get(self, ref: JsonValue) -> bytes:
        digest, size, _ = parse_ref(ref)
        with self._reading(digest) as path:
            return checked(path.read_bytes(), digest, size)

    def pieces(self, ref: JsonValue, start: int = 0) -> Iterator[bytes]:
        digest, size, _ = parse_ref(ref)
        with self._reading(digest) as path, path.open("rb") as file:
            file.seek(start)
            yield from measured(iter(lambda: file.read(PIECE_BYTES), b""), digest, size, start)

    @contextmanager
    def _reading(self, digest: str) -> Iterator[Path]:
        try:
            yield self._path(digest)
        except FileNotFoundError as error:
            raise BlobLost(f"cannot read blob {digest} in {self._folder}: it is not there") from error
        except OSError as error:
            raise BlobError(f"cannot read blob {digest} in {self._folder}: {error.strerror}") from error

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def close(self) -> None:
        self._pool.shutdown()


class LogBlobs:
    """Pieces in the blobs topic, in the run's partition. A reference's place is `partition:first offset:pieces`.

    The pieces of a blob need not be neighbours: others may write between them. They are told apart by their headers.
    """

    def __init__(self, log: Log, *, timeout_s: float = 30.0) -> None:
        self._log = log
        self._timeout_s = timeout_s

    def put(self, run_id: str, data: bytes) -> "Future[BlobRef]":
        digest = hashlib.sha256(data).hexdigest()
        pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)] or [b""]
        result: Future[BlobRef] = Future()
        try:
            partition = partition_of(run_id)
            sent = [
                self._log.send(
                    Topic.BLOBS,
                    partition,
                    Entry(
                        key=run_id.encode(),
                        value=piece,
                        headers=[("blob", digest.encode()), ("piece", b"%d" % number), ("pieces", b"%d" % len(pieces))],
                    ),
                    self._timeout_s,
                )
                for number, piece in enumerate(pieces)
            ]
        except (LogError, ValueError) as error:
            result.set_exception(BlobError(f"cannot store blob {digest} of run {run_id}: {error}"))
            return result
        _Joined(sent, result, partition, digest, len(data))
        return result

    def get(self, ref: JsonValue) -> bytes:
        digest, size, place = parse_ref(ref)
        return checked(b"".join(self._pieces(digest, place, 0)), digest, size)

    def pieces(self, ref: JsonValue, start: int = 0) -> Iterator[bytes]:
        digest, size, place = parse_ref(ref)
        found = self._pieces(digest, place, start // PIECE_BYTES)
        yield from measured(without_first(found, start % PIECE_BYTES), digest, size, start)

    def _pieces(self, digest: str, place: str, number: int) -> Iterator[bytes]:
        """Those from `number` on, in order."""
        try:
            partition, first, count = (int(part) for part in place.split(":"))
        except ValueError as error:
            raise BlobLost(f"blob {digest}: its place {place!r} is not partition:offset:pieces") from error
        early: dict[int, bytes] = {}
        # Batches are small: the pieces follow each other unless several large values are written at once.
        for batch in self._log.read(Topic.BLOBS, partition, first, batch=max(min(count, _BATCH), 2)):
            for record in batch:
                if record.headers.get("blob") == digest.encode() and int(record.headers["piece"]) >= number:
                    early[int(record.headers["piece"])] = record.value or b""
            while number in early:
                yield early.pop(number)
                number += 1
            if number >= count:
                return
        raise BlobLost(f"blob {digest}: {number} of {count} pieces are in {Topic.BLOBS}[{partition}] from {first} on")

    def close(self) -> None:
        """The log belongs to who opened it."""


class _Joined:
    """Settles a blob's future when all of its pieces are settled."""

    def __init__(
        self, sent: Sequence["Future[int]"], result: "Future[BlobRef]", partition: int, digest: str, size: int
    ) -> None:
        self._lock = threading.Lock()
        self._left = len(sent)
        self._sent = sent
        self._result = result
        self._what: tuple[int, str, int] = (partition, digest, size)
        for future in sent:
            future.add_done_callback(self._one_done)

    def _one_done(self, _: Any) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        partition, digest, size = self._what
        failed = next((error for future in self._sent if (error := future.exception()) is not None), None)
        with suppress(InvalidStateError):  # who waited has cancelled it
            if failed is not None:
                self._result.set_exception(BlobError(f"cannot store blob {digest}: {failed}"))
                return
            offsets = [future.result() for future in self._sent]
            self._result.set_result(make_ref(digest, size, f"{partition}:{min(offsets)}:{len(offsets)}"))


def parse_ref(ref: JsonValue) -> tuple[str, int, str]:
    """(sha256, size, place) of a reference. Raises BlobLost."""
    if is_ref(ref):
        inner = ref["$blob"]
        if isinstance(inner, dict):
            digest, size, place = inner["id"], inner["size"], inner["place"]
            if isinstance(digest, str) and _is_digest(digest) and isinstance(size, int) and isinstance(place, str):
                return digest, size, place
    raise BlobLost(f"not a blob reference: {str(ref)[:200]}")


def _is_digest(text: str) -> bool:
    # It becomes a file name: nothing but what hashlib gives may pass.
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def measured(pieces: Iterable[bytes], digest: str, size: int, start: int) -> Iterator[bytes]:
    """The pieces of a blob from `start` on. Raises BlobLost behind the last one when they are not what they should."""
    seen, found = hashlib.sha256(), start
    for piece in pieces:
        seen.update(piece)
        found += len(piece)
        yield piece
    if found != max(size, start) or (start == 0 and seen.hexdigest() != digest):
        raise _damaged(digest, size, found)


def without_first(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The pieces without their first `count` bytes."""
    for piece in pieces:
        if count < len(piece):
            yield piece[count:] if count else piece
        count = max(0, count - len(piece))


def checked(data: bytes, digest: str, size: int) -> bytes:
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(digest, size, len(data))
    return data


def _damaged(digest: str, size: int, found: int) -> BlobLost:
    return BlobLost(f"blob {digest} of {size} bytes is damaged: it has {found} bytes or another hash")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
