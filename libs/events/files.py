"""Files that clients uploaded or nodes made: bytes in the blobs, what is known of them in one record beside them.

A file's id is made like a run's: a UUID in which its partition and its time stand. So a file is found in the blobs
topic without a list of files, and no process gets larger by the number of them. The record is written when the bytes
are durable and never changes; whoever knows the id of a file that was answered finds it, on every replica.

Files that came from another log have records that are younger than their ids. They stand together, once for each time
that some were brought, and a record of the index topic (key: `files-<partition>`) says where.

Any thread may call; everything but `put_blob` blocks.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import from_json

from libs.events.blobs import BlobRef, Blobs
from libs.events.ids import created_at_us, new_run_id, partition_of
from libs.events.log import Entry, Log, LogError, Record, Topic

_EARLIER_MS = 2_000
_LATER_MS = 60_000
"""How far the time in an id and the time of its record may differ; both are of the process that wrote them."""

_BATCH = 50
_KEPT = 10_000
_HEADER = "file"
_MOVED = b"files-"
_MOVE_S = 60.0


EVERY_APP = ""
"""App of files that belong to whoever edits apps."""


class StoredFile(BaseModel):
    """What is known of a file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file_id: str
    app_id: str
    owner: str = ""
    """Id of the end user or account that uploaded it; empty when a node made it."""
    name: str
    extension: str = ""
    """Lower case, without dot."""
    mime_type: str
    size: int
    created_at_us: int
    blob: dict[str, JsonValue]


class MovedFiles(NamedTuple):
    """What is known of the files of a partition that came from another log."""

    ranges: tuple[tuple[int, int], ...] = ()
    """[first offset, end) of their records."""
    source: str = ""
    """Topic id of the blobs that they came from."""
    copied_to: int = 0
    """Offset there up to which all files have come."""
    brought: int = 0
    """How many have come."""


NONE_MOVED = MovedFiles()


class Files:
    """`random_bits(n)`: a random number of n bits; ids must not be guessable. `now_us`: the wall clock."""

    def __init__(self, log: Log, blobs: Blobs, *, now_us: Callable[[], int], random_bits: Callable[[int], int]) -> None:
        self._log = log
        self._blobs = blobs
        self._now_us = now_us
        self._random_bits = random_bits
        self._known: OrderedDict[str, StoredFile] = OrderedDict()
        self._moved: tuple[int, dict[int, MovedFiles]] = (0, {})
        self._lock = threading.Lock()

    def store(
        self, content: bytes, *, app_id: str, owner: str, name: str, mime_type: str, run_id: str = ""
    ) -> StoredFile:
        """Keep a file; it is durable when this returns. `run_id`: the run that made it. Raises LogError."""
        partition = partition_of(run_id) if run_id else self._random_bits(32) % self._log.partitions
        place = run_id or new_run_id(partition, self._now_us(), self._random_bits(62))
        blob: BlobRef = self._blobs.put(place, content).result()
        # Made behind the bytes: a look-up begins to read at the time in the id.
        at_us = self._now_us()
        file = StoredFile(
            file_id=new_run_id(partition, at_us, self._random_bits(62)),
            app_id=app_id,
            owner=owner,
            name=name,
            extension=extension_of(name),
            mime_type=mime_type,
            size=len(content),
            created_at_us=at_us,
            blob=blob,
        )
        self._log.send(Topic.BLOBS, partition, _entry(file)).result()
        self._keep(file)
        return file

    def find(self, file_id: str) -> StoredFile | None:
        """What is known of the file; None: there is no such file. Raises LogError."""
        with self._lock:
            known = self._known.get(file_id)
        if known is not None:
            return known
        try:
            partition, at_ms = partition_of(file_id), created_at_us(file_id) // 1000
        except ValueError:
            return None
        if partition >= self._log.partitions:
            return None
        found = self._look_up(file_id, partition, at_ms) or self._look_up_moved(file_id, partition)
        if found is not None:
            self._keep(found)
        return found

    def content(self, file: StoredFile) -> bytes:
        """Raises LogError."""
        return self._blobs.get(file.blob)

    def pieces(self, file: StoredFile, start: int = 0) -> Iterator[bytes]:
        """The content from `start` on, as `Blobs.pieces`. Raises LogError."""
        return self._blobs.pieces(file.blob, start)

    def _look_up(self, file_id: str, partition: int, at_ms: int) -> StoredFile | None:
        wanted = file_id.encode()
        first = self._log.offset_at(Topic.BLOBS, partition, max(at_ms - _EARLIER_MS, 0))
        for batch in self._log.read(Topic.BLOBS, partition, first, batch=_BATCH):
            for record in batch:
                if record.headers.get(_HEADER) == wanted:
                    return _decoded(record)
                if record.timestamp_ms > at_ms + _LATER_MS:
                    return None
        return None

    def _look_up_moved(self, file_id: str, partition: int) -> StoredFile | None:
        wanted = file_id.encode()
        for first, end in self._moved_now().get(partition, NONE_MOVED).ranges:
            for record in _records(self._log, partition, first, end):
                if record.headers.get(_HEADER) == wanted:
                    return _decoded(record)
        return None

    def _moved_now(self) -> dict[int, MovedFiles]:
        """An import may go on while this process lives, so what is new in the index topic is read each time."""
        read_to, moved = self._moved
        first, end = self._log.bounds(Topic.INDEX, 0)
        if not first <= read_to <= end:
            read_to, moved = first, {}
        if read_to < end:
            moved = moved | _moved_between(self._log, read_to, end)
            self._moved = end, moved  # both at once: a thread that is late only makes the next one read again
        return moved

    def _keep(self, file: StoredFile) -> None:
        with self._lock:
            self._known[file.file_id] = file
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)


def files_in(log: Log, partition: int, first: int, end: int) -> Iterator[StoredFile]:
    """All files of a partition between two offsets, oldest first. Blocking: reads its blobs. Raises LogError."""
    for record in _records(log, partition, first, end):
        if _HEADER in record.headers:
            yield _decoded(record)


def _records(log: Log, partition: int, first: int, end: int) -> Iterator[Record]:
    for batch in log.read(Topic.BLOBS, partition, first, end, batch=_BATCH) if first < end else ():
        yield from batch


def move_in(
    log: Log,
    partition: int,
    files: Sequence[StoredFile],
    before: MovedFiles = NONE_MOVED,
    source: str = "",
    copied_to: int = 0,
) -> None:
    """Write the records of files of another log, whose contents are here. Nobody else may write meanwhile.

    `before`: those that came earlier. Blocking. Raises LogError; what was written then is not found, and can be written
    again.
    """
    offsets = [log.send(Topic.BLOBS, partition, _entry(file), _MOVE_S).result() for file in files]
    ranges = [*before.ranges, *([(offsets[0], offsets[-1] + 1)] if offsets else [])]
    value = {"ranges": ranges, "brought": before.brought + len(files), "source": source, "copied_to": copied_to}
    value["topic_id"] = log.topic_id(Topic.BLOBS)
    log.send(Topic.INDEX, 0, Entry(b"%s%d" % (_MOVED, partition), json.dumps(value).encode()), _MOVE_S).result()


def moved_files(log: Log) -> dict[int, MovedFiles]:
    """Partition -> what `move_in` wrote. Blocking. Raises LogError."""
    return _moved_between(log, *log.bounds(Topic.INDEX, 0))


def _moved_between(log: Log, first: int, end: int) -> dict[int, MovedFiles]:
    records = [
        record
        for batch in log.read(Topic.INDEX, 0, first, end)
        for record in batch
        if record.key is not None and record.key.startswith(_MOVED)
    ]
    found: dict[int, MovedFiles] = {}
    topic_id = log.topic_id(Topic.BLOBS) if records else ""
    for record in records:
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # no record of ours
            value = from_json(record.value or b"", allow_inf_nan=False)
            if value["topic_id"] == topic_id:
                # Earlier releases: one range, and nothing of the source.
                pairs = value["ranges"] if "ranges" in value else [(value["first"], value["end"])]
                ranges = tuple((int(first), int(end)) for first, end in pairs)
                copied_to, brought = int(value.get("copied_to", 0)), int(value.get("brought", 0))
                moved = MovedFiles(ranges, str(value.get("source", "")), copied_to, brought)
                found[int((record.key or b"").removeprefix(_MOVED))] = moved
    return found


def _entry(file: StoredFile) -> Entry:
    return Entry(
        key=file.file_id.encode(),
        value=file.model_dump_json().encode(),
        headers=[(_HEADER, file.file_id.encode()), ("content-type", b"application/json")],
    )


def extension_of(name: str) -> str:
    """Lower case, without dot; empty when the name has none."""
    return name.rpartition(".")[2].lower() if "." in name.strip(".") else ""


def _decoded(record: Record) -> StoredFile:
    try:
        return StoredFile.model_validate_json(record.value or b"")
    except ValidationError as error:
        raise LogError(f"{record.topic}[{record.partition}]@{record.offset}: not a file's record: {error}") from error
