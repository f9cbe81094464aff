"""The log port: topics of partitions of records, appended in order, read from any offset, tailed.

Two adapters: `libs.events.kafka` (confluent-kafka) and `libs.events.sqlite` (embedded: one file, one process writes).
One contract suite runs over both (`tests/contract/test_log.py`). The log knows nothing of runs: who may write is
decided by readers with the validity rule (`libs.events.validity`), not by the log.

Threads: callbacks (`on_acks`, `deliver`, ...) run on a thread of the adapter, must not block, and must hand over to
their own loop in one step per call (the adapter calls once per batch). All other methods may be called from any thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Topic(StrEnum):
    """The named sets of partitions; an adapter adds the configured prefix (`flowledger.events`)."""

    COMMANDS = "commands"
    EVENTS = "events"
    CHUNKS = "chunks"
    """Shown, never part of state: may be lost; only live tails see it (embedded: memory only)."""
    BLOBS = "blobs"
    INDEX = "index"
    """Compacted, key = partition number: where the last complete checkpoint is."""
    DEFINITIONS = "definitions"
    """Compacted, one partition (0), one key per immutable fact."""
    DEAD_LETTERS = "dead-letters"


@dataclass(slots=True, frozen=True)
class Record:
    """What stands in the log at one offset."""

    topic: Topic
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Entry:
    """What is to be appended. `epoch` and `n` only label its acknowledgement (see `Appender`)."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    epoch: int = 0
    n: int = 0


@dataclass(slots=True, frozen=True)
class Ack:
    """What became of an appended entry.

    `offset` is where it stands; -1 when the log only knows that it is there (a retry answered as a duplicate).
    With `error` the outcome is *unknown*: the record may be in the log all the same. Never resend it.
    """

    partition: int
    epoch: int
    n: int
    offset: int
    error: str | None = None


class LogError(Exception):
    """The log could not do what was asked (unreachable, missing topic, settings). The text names the next step."""


class LogInUse(LogError):
    """Another process writes in the folder; it may soon end."""


class LogTruncated(LogError):
    """Records that were asked for are not in the log any more (retention, deletion, unclean election)."""


class LogDenied(LogError):
    """The cluster refuses us: credentials expired, rights were taken back. Asking again later may help.

    A tail goes on where it was as soon as it is let in again.
    """


class AppendRefused(LogError):
    """Nothing was appended: the local buffer is full. Wait for acknowledgements, then try again."""


class Appender(Protocol):
    """Ordered, pipelined appends to the events topic: many may be under way, each is acknowledged once.

    Acknowledgements of one partition come in append order. After an error for a partition, entries appended behind
    it may still land (m): the caller must end its epoch.
    """

    def append(self, partition: int, entries: Sequence[Entry]) -> None:
        """Hand over `entries` in order; returns at once. Raises AppendRefused (nothing was handed over)."""

    def collect(self, timeout_s: float) -> None:
        """Wait at most about `timeout_s` for acknowledgements and pass them on, on the calling thread.

        For appenders that were opened with `collects`: their caller collects soon after each append, because a change
        of threads costs as much as the append itself when only a few records are under way. What does not come by then
        comes on the appender's own thread; so does everything while that is at work already, or too much is under way.
        """

    def close(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for outstanding acknowledgements, then stop. Idempotent."""


class Tail(Protocol):
    """A reader of new records: one batch after the other, in offset order per partition, without gaps.

    Its callbacks run on a thread of its own, unless it is `prompt`.
    """

    def add(self, partition: int, offset: int) -> None:
        """Read `partition` from `offset` on (also when it is being read already: from there again)."""

    def remove(self, partition: int) -> None:
        """Stop reading `partition`. A batch already being delivered may still arrive."""

    def pause(self, partition: int) -> None: ...

    def resume(self, partition: int) -> None: ...

    def close(self) -> None:
        """Stop and join the thread. Idempotent."""


class Placement(Protocol):
    """Which partitions this process should own. Placement only: safety comes from claims in the log."""

    def close(self, timeout_s: float) -> None:
        """Leave the group, so that others take over at once. Idempotent."""


class Log(Protocol):
    @property
    def partitions(self) -> int:
        """Number of partitions of the commands, events, chunks and blobs topics."""

    def topic_id(self, topic: Topic) -> str:
        """Changes when the topic is deleted and made again. Raises LogError when the topic is missing."""

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        """(first offset that is still there, offset of the next record to come). Blocking."""

    def offset_at(self, topic: Topic, partition: int, timestamp_ms: int) -> int:
        """The first offset whose record is not older than `timestamp_ms`; the end offset when none is. Blocking."""

    def read(
        self, topic: Topic, partition: int, start: int, stop: int | None = None, batch: int = 1000
    ) -> Iterator[list[Record]]:
        """The records of [start, stop) in batches of at most `batch`; `stop` None: the end as of the call. Blocking.

        Raises LogTruncated when `start` is below the first offset or above the end.
        """

    def send(self, topic: Topic, partition: int, entry: Entry, timeout_s: float = 4.0) -> "Future[int]":
        """Append one record durably (commands, blobs, definitions, index, dead letters); the future is its offset.

        It fails with LogError after `timeout_s`: the record may be in the log all the same.
        """

    def publish(self, topic: Topic, partition: int, entries: Sequence[Entry]) -> None:
        """Append records that may be lost (chunks); never blocks, never raises for a full buffer."""

    def open_appender(self, on_acks: Callable[[list[Ack]], None], *, collects: bool = False) -> Appender:
        """`on_acks` is called on the appender's thread; or, with `collects`, on that of `Appender.collect`."""

    def tail(
        self,
        topic: Topic,
        starts: Mapping[int, int],
        deliver: Callable[[list[Record]], None],
        on_error: Callable[[LogError], None],
        *,
        prompt: bool = False,
    ) -> Tail:
        """Read on from `starts` (partition -> offset) for ever. `on_error` gets what the adapter cannot heal itself.

        `prompt`: `deliver` only hands over and calls nothing of the log, so that it may be called on any thread.
        """

    def place(
        self,
        group: str,
        on_assigned: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None],
        alive: Callable[[], bool],
        session_timeout_s: float = 1.0,
    ) -> Placement:
        """Join `group` and be told which partitions to own.

        While `alive()` is false the member stops taking part, so that others get its partitions.
        Embedded: the holder of the file lock gets all partitions at once.
        """

    def close(self) -> None:
        """Close every client of this object. Idempotent."""
