"""Files that clients uploaded or nodes made: bytes in the blobs, what is known of them in one record beside them.

A file's id is made like a run's: a UUID in which its partition and its time stand. So a file is found in the blobs
topic without a list of files, and no process gets larger by the number of them. The record is written when the bytes
are durable and never changes; whoever knows the id of a file that was answered finds it, on every replica.

Any thread may call; everything but `put_blob` blocks.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from libs.events.blobs import BlobRef, Blobs
from libs.events.ids import created_at_us, new_run_id, partition_of
from libs.events.log import Entry, Log, LogError, Record, Topic

_EARLIER_MS = 2_000
_LATER_MS = 60_000
"""How far the time in an id and the time of its record may differ; both are of the process that wrote them."""

_BATCH = 50
_KEPT = 10_000
_HEADER = "file"


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


class Files:
    """`random_bits(n)`: a random number of n bits; ids must not be guessable. `now_us`: the wall clock."""

    def __init__(self, log: Log, blobs: Blobs, *, now_us: Callable[[], int], random_bits: Callable[[int], int]) -> None:
        self._log = log
        self._blobs = blobs
        self._now_us = now_us
        self._random_bits = random_bits
        self._known: OrderedDict[str, StoredFile] = OrderedDict()
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
        entry = Entry(
            key=file.file_id.encode(),
            value=file.model_dump_json().encode(),
            headers=[(_HEADER, file.file_id.encode()), ("content-type", b"application/json")],
        )
        self._log.send(Topic.BLOBS, partition, entry).result()
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
        found = self._look_up(file_id, partition, at_ms)
        if found is not None:
            self._keep(found)
        return found

    def content(self, file: StoredFile) -> bytes:
        """Raises LogError."""
        return self._blobs.get(file.blob)

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

    def _keep(self, file: StoredFile) -> None:
        with self._lock:
            self._known[file.file_id] = file
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)


def extension_of(name: str) -> str:
    """Lower case, without dot; empty when the name has none."""
    return name.rpartition(".")[2].lower() if "." in name.strip(".") else ""


def _decoded(record: Record) -> StoredFile:
    try:
        return StoredFile.model_validate_json(record.value or b"")
    except ValidationError as error:
        raise LogError(f"{record.topic}[{record.partition}]@{record.offset}: not a file's record: {error}") from error
