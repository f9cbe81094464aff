"""What a `LocalLog` needs of the place where its records are kept, and what it hands to it."""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from libs.events.log import Entry, LogTruncated, Record, Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libs.events.local import LocalAppender

EPHEMERAL = frozenset({Topic.CHUNKS})
"""Topics that are never stored."""


class Batch:
    """Entries of one partition on their way into the log. `first` and `timestamp_ms` are set by the writer."""

    __slots__ = ("_records", "appender", "entries", "first", "future", "partition", "timestamp_ms", "topic")

    def __init__(
        self,
        topic: Topic,
        partition: int,
        entries: "Sequence[Entry]",
        *,
        appender: "LocalAppender | None" = None,
        future: "Future[int] | None" = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.entries = entries
        self.appender = appender
        self.future = future
        self.first = 0
        self.timestamp_ms = 0
        self._records: list[Record] | None = None

    @property
    def end(self) -> int:
        return self.first + len(self.entries)

    def split(self, at: int) -> "tuple[Batch, Batch]":
        """The first `at` entries, and the rest; only for appends (a send has one entry)."""
        first = Batch(self.topic, self.partition, self.entries[:at], appender=self.appender)
        return first, Batch(self.topic, self.partition, self.entries[at:], appender=self.appender)

    @property
    def size_bytes(self) -> int:
        """About what it costs to keep in memory."""
        return sum(len(entry.value or b"") + 500 for entry in self.entries)

    def records(self) -> list[Record]:
        """The entries as readers see them; made once, whoever asks."""
        records = self._records
        if records is None:
            topic, partition, at = self.topic, self.partition, self.timestamp_ms
            records = [
                Record(topic, partition, offset, at, entry.key, entry.value, dict(entry.headers))
                for offset, entry in enumerate(self.entries, self.first)
            ]
            self._records = records
        return records


class Store(Protocol):
    """Keeps records by (topic, partition, offset). Every method raises LogError when it cannot do its work.

    `append` is called by one thread at a time; everything else by any thread at any time.
    """

    @property
    def partitions(self) -> int: ...

    @property
    def log_id(self) -> str:
        """Random, made when the store was made."""

    def ends(self) -> dict[tuple[Topic, int], int]:
        """The next offset of every partition that has records."""

    def last_ms(self) -> int:
        """A time stamp that no stored record exceeds; 0 when there is none."""

    def first(self, topic: Topic, partition: int) -> int:
        """The first stored offset; at least the end when nothing is stored."""

    def end(self, topic: Topic, partition: int) -> int: ...

    def read(self, topic: Topic, partition: int, start: int, stop: int, limit: int) -> list[Record]:
        """The first at most `limit` records of [start, stop), in order."""

    def append(self, batches: list[Batch], timestamp_ms: int) -> None:
        """Make all entries durable, each batch from its `first` on: all of them, or LogError."""

    def check_room(self) -> None:
        """Raises LogError while nothing more can be stored."""

    def close(self) -> None: ...


def truncated(topic: Topic, partition: int, start: int, first: int, end: int) -> LogTruncated:
    return LogTruncated(
        f"{topic}[{partition}]@{start} is not in the log, which has {first} to {end}: records were deleted, or the log "
        "was replaced. Rebuild what was derived from it"
    )
