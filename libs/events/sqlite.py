"""The embedded log: one folder, one SQLite file, one process that writes. For `flowledger dev` and single machines.

An acknowledged record survives kill -9 and power loss: WAL with `synchronous=FULL`, one commit for all that waits. A
file lock decides who writes; anybody may read at the same time. Nothing is ever deleted: no retention, no compaction.

| table | content |
|---|---|
| `meta` | `log_id`, `partitions`, `format` |
| one per topic | `place` (partition * 2^48 + offset), `timestamp_ms`, `key`, `headers`, `value` |
| `records` (view) | all of it with topic, partition, offset apart and values as text: for people |

`place` as the row id keeps a partition's records together and makes an append at its end the cheapest insert there is.
Headers are one blob: header names joined by line feeds, a zero byte, the values' lengths (one byte each, or 255 and
four bytes, big endian), the values.
"""

import fcntl
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from libs.events.local import LocalLog, wall_ms
from libs.events.local_store import EPHEMERAL, Batch
from libs.events.log import LogError, LogInUse, Record, Topic

FORMAT = 1
_BITS = 48
_ROWS = 64
"""Rows per INSERT: beyond it a longer statement gains nothing."""
_BUSY_S = 5.0
_TRIAL_BYTES = 256 * 1024
_STORED = tuple(topic for topic in Topic if topic not in EPHEMERAL)


class LogDamaged(LogError):
    """The file is that of a log, and a part of it cannot be read any more."""


class OtherPartitions(LogError):
    """The log that is there has another number of partitions than was asked for."""


class SqliteLog(LocalLog):
    """The log in `folder`, made when it is not there (unless `read_only`).

    `partitions` counts when the log is made; a log that is there must have as many. Read-only takes what it finds.
    Raises LogError: another process writes here, the partition count differs, there is nothing to read.
    """

    def __init__(self, folder: Path, partitions: int = 1, read_only: bool = False) -> None:
        self._lock_file = None if read_only else _lock(folder)
        try:
            store = SqliteStore(folder / "log.db", partitions, read_only=read_only)
        except LogError:
            _unlock(self._lock_file)
            raise
        super().__init__(store, now_ms=wall_ms, writable=not read_only)

    def close(self) -> None:
        super().close()
        _unlock(self._lock_file)
        self._lock_file = None


class SqliteStore:
    """The file. One connection writes, a few read; each is used by one thread at a time."""

    def __init__(self, path: Path, partitions: int, *, read_only: bool) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        if read_only and not path.is_file():
            raise LogError(f"{path.parent} holds no log. Start `flowledger dev` there once, or name another folder")
        with self._errors("open"):
            self._writer = None if read_only else _open_to_write(path, partitions)
            with self._reader() as reader:
                meta = dict(reader.execute("SELECT name, value FROM meta"))
        self.log_id: str = meta["log_id"]
        self.partitions = int(meta["partitions"])
        if not read_only and self.partitions != partitions:
            self.close()
            raise OtherPartitions(
                f"{path} has {self.partitions} partitions, not {partitions}. Set partitions={self.partitions}"
            )

    def ends(self) -> dict[tuple[Topic, int], int]:
        every = ((topic, partition) for topic in _STORED for partition in range(self.partitions))
        return {place: end for place in every if (end := self.end(*place))}

    def last_ms(self) -> int:
        lasts = [self.read(topic, partition, end - 1, end, 1) for (topic, partition), end in self.ends().items()]
        return max((record.timestamp_ms for last in lasts for record in last), default=0)

    def first(self, topic: Topic, partition: int) -> int:
        low = partition << _BITS
        with self._errors("read"), self._reader() as reader:
            (place,) = reader.execute(_SQL_FIRST[topic], (low, low + (1 << _BITS))).fetchone()
        return self.end(topic, partition) if place is None else place - low

    def end(self, topic: Topic, partition: int) -> int:
        low = partition << _BITS
        with self._errors("read"), self._reader() as reader:
            (place,) = reader.execute(_SQL_LAST[topic], (low, low + (1 << _BITS))).fetchone()
        return 0 if place is None else place - low + 1

    def read(self, topic: Topic, partition: int, start: int, stop: int, limit: int) -> list[Record]:
        low = partition << _BITS
        with self._errors("read"), self._reader() as reader:
            rows = reader.execute(_SQL_READ[topic], (low + start, low + stop, limit)).fetchall()
        return [
            Record(topic, partition, place - low, timestamp_ms, key, value, unpack_headers(headers))
            for place, timestamp_ms, key, headers, value in rows
        ]

    def check_room(self) -> None:
        """Beside the log: what SQLite tries, it has to take back when it fails."""
        import tempfile  # only when something is wrong

        try:
            with tempfile.TemporaryFile(dir=self._path.parent) as trial:
                trial.write(b"\0" * _TRIAL_BYTES)
                trial.flush()
                os.fsync(trial.fileno())
        except OSError as error:
            raise LogError(f"{self._path.parent}: {error.strerror}. Make room there") from error

    def append(self, batches: list[Batch], timestamp_ms: int) -> None:
        by_topic: dict[Topic, list[object]] = {}
        for batch in batches:
            flat = by_topic.setdefault(batch.topic, [])
            place = batch.partition << _BITS | batch.first
            for entry in batch.entries:
                flat += (place, timestamp_ms, entry.key, pack_headers(entry.headers), entry.value)
                place += 1
        writer = self._writer
        if writer is None:
            raise LogError(f"{self._path} was opened read-only")
        with self._errors("append to"):
            try:
                if len(by_topic) == 1 and len(flat) <= 5 * _ROWS:
                    writer.execute(_insert(batches[0].topic, len(flat) // 5), flat)  # a commit of its own
                    return
                writer.execute("BEGIN IMMEDIATE")
                for topic, flat in by_topic.items():
                    for at in range(0, len(flat), 5 * _ROWS):
                        some = flat[at : at + 5 * _ROWS]
                        writer.execute(_insert(topic, len(some) // 5), some)
                writer.execute("COMMIT")
            except sqlite3.Error:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise LogError(f"{self._path} is closed")
            reader = self._readers.pop() if self._readers else None
        if reader is None:
            reader = _open_to_read(self._path)
        try:
            yield reader
        finally:
            with self._lock:
                keep = not self._closed
                if keep:
                    self._readers.append(reader)
            if not keep:
                reader.close()

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # Only what SQLite itself says has a code.
            damaged = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CORRUPT
            kind = LogDamaged if damaged else LogError
            raise kind(f"cannot {verb} {self._path}: {error}. Check the disk's space and the file") from error


def pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """The headers as one blob; see the module docstring."""
    if not headers:
        return b""
    names, values = zip(*headers, strict=True)
    lengths = list(map(len, values))
    if max(lengths) < 255:
        return _names(names) + bytes(lengths) + b"".join(values)
    packed = b"".join(bytes((n,)) if n < 255 else b"\xff" + n.to_bytes(4, "big") for n in lengths)
    return _names(names) + packed + b"".join(values)


def unpack_headers(packed: bytes | None) -> dict[str, bytes]:
    """The inverse of `pack_headers`; of equal names the last one."""
    if not packed:
        return {}
    at = packed.index(0) + 1
    names = _split(packed[:at])
    lengths = []
    for _ in names:
        length = packed[at]
        at += 1
        if length == 255:
            length = int.from_bytes(packed[at : at + 4], "big")
            at += 4
        lengths.append(length)
    headers = {}
    for name, length in zip(names, lengths, strict=True):
        headers[name] = packed[at : at + length]
        at += length
    return headers


@lru_cache(maxsize=1024)
def _names(names: tuple[str, ...]) -> bytes:
    joined = "\n".join(names).encode()
    if joined.count(b"\n") != len(names) - 1 or b"\0" in joined:
        raise LogError(f"header names may not contain line feeds or zero bytes: {names!r}")
    return joined + b"\0"


@lru_cache(maxsize=1024)
def _split(joined: bytes) -> tuple[str, ...]:
    return tuple(joined[:-1].decode().split("\n"))


@lru_cache(maxsize=_ROWS * len(_STORED))
def _insert(topic: Topic, rows: int) -> str:
    return f'INSERT INTO "{topic}" VALUES ' + ",".join(["(?,?,?,?,?)"] * rows)


_RANGE = "place >= ? AND place < ?"
_SQL_FIRST = {topic: f'SELECT min(place) FROM "{topic}" WHERE {_RANGE}' for topic in _STORED}
_SQL_LAST = {topic: f'SELECT max(place) FROM "{topic}" WHERE {_RANGE}' for topic in _STORED}
_SQL_READ = {topic: f'SELECT * FROM "{topic}" WHERE {_RANGE} ORDER BY place LIMIT ?' for topic in _STORED}


def _open_to_write(path: Path, partitions: int) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=2 * _ROWS
    )
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LogError(f"{path}: the file system gives journal mode {mode}, not wal. Use a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0] == 0:
        _make(connection, partitions)
        _sync_folder(path.parent)
    return connection


def _make(connection: sqlite3.Connection, partitions: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
    rows = [("log_id", uuid.uuid4().hex), ("partitions", str(partitions)), ("format", str(FORMAT))]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    columns = "place INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL, key BLOB, headers BLOB, value BLOB"
    selects = []
    for topic in _STORED:
        connection.execute(f'CREATE TABLE "{topic}" ({columns})')
        selects.append(
            f"SELECT '{topic}' AS topic, place >> {_BITS} AS partition, place & {(1 << _BITS) - 1} AS offset, "
            f'timestamp_ms, CAST(key AS TEXT) AS key, CAST(value AS TEXT) AS value FROM "{topic}"'
        )
    connection.execute("CREATE VIEW records AS " + " UNION ALL ".join(selects))
    connection.execute("COMMIT")


def _open_to_read(path: Path) -> sqlite3.Connection:
    # Not mode=ro: a reader of a WAL file must be able to make the shared memory file when no writer runs.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _lock(folder: Path) -> int:
    """Take the right to write in `folder`, held until the descriptor is closed (also by kill -9)."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "log.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogError(f"cannot write in {folder}: {error.strerror}. Name a folder that this user may write") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise LogInUse(f"{folder} is in use by another process ({holder}). Stop it, or name another folder") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()}\n".encode(), 0)
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
