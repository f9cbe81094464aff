"""A log in memory, for tests: the embedded log's writer and tails over lists, or without threads, step by step.

With `threads=False` nothing happens until the test says so, so that a simulation is a function of its seed:

    storage = MemoryStore(partitions=1)
    log = MemoryLog(storage, threads=False, now_ms=clock)
    log.land(3)              # three entries of what was appended become durable, acknowledgements do not leave yet
    log.deliver()            # acknowledgements and tails, on this thread
    log = MemoryLog(storage, threads=False, now_ms=clock)    # a crash: nothing survives but what has landed

Not for production: what it holds ends with the process.
"""

import threading
import uuid
from collections.abc import Callable

from libs.events.local import LocalLog, wall_ms
from libs.events.local_store import Batch
from libs.events.log import LogError, Record, Topic


class MemoryStore:
    """Records in lists. Outlives the logs that are opened over it."""

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions
        self.log_id = uuid.uuid4().hex
        self.broken: str | None = None
        """While set, every append fails with this text and nothing is stored (a full disk)."""
        self._lock = threading.Lock()
        self._records: dict[tuple[Topic, int], list[Record]] = {}
        self._firsts: dict[tuple[Topic, int], int] = {}
        self._last_ms = 0

    def ends(self) -> dict[tuple[Topic, int], int]:
        with self._lock:
            return {place: records[-1].offset + 1 for place, records in self._records.items() if records}

    def last_ms(self) -> int:
        return self._last_ms

    def first(self, topic: Topic, partition: int) -> int:
        return self._firsts.get((topic, partition), 0)

    def end(self, topic: Topic, partition: int) -> int:
        return self.ends().get((topic, partition), self.first(topic, partition))

    def read(self, topic: Topic, partition: int, start: int, stop: int, limit: int) -> list[Record]:
        base = self.first(topic, partition)
        with self._lock:
            records = self._records.get((topic, partition), [])
            return records[max(start - base, 0) : min(stop - base, start - base + limit)]

    def check_room(self) -> None:
        if self.broken is not None:
            raise LogError(self.broken)

    def append(self, batches: list[Batch], timestamp_ms: int) -> None:
        if self.broken is not None:
            raise LogError(self.broken)
        with self._lock:
            for batch in batches:
                batch.timestamp_ms = timestamp_ms
                self._records.setdefault((batch.topic, batch.partition), []).extend(batch.records())
        self._last_ms = timestamp_ms

    def truncate(self, topic: Topic, partition: int, first: int) -> None:
        """Delete the records before `first`, as retention does; the newest stays."""
        with self._lock:
            records = self._records[topic, partition]
            del records[: first - self._firsts.get((topic, partition), 0)]
            self._firsts[topic, partition] = first

    def close(self) -> None:
        """Nothing to give back."""


class MemoryLog(LocalLog):
    """See the module docstring. `land`, `lose` and `deliver` are for `threads=False`."""

    def __init__(
        self, store: MemoryStore | None = None, *, threads: bool = True, now_ms: Callable[[], int] = wall_ms
    ) -> None:
        super().__init__(store or MemoryStore(), now_ms=now_ms, threads=threads)
        self._held: list[Batch] = []
        self._settled: list[tuple[Batch, str | None]] = []
        self._landed: list[Batch] = []

    def waiting(self) -> int:
        """Entries that were handed over and are not in the log yet."""
        self._fetch()
        return sum(len(batch.entries) for batch in self._held)

    def land(self, limit: int | None = None, *, error: str | None = None) -> int:
        """Make at most `limit` waiting entries durable, in order; returns how many.

        With `error` they are in the log, but `deliver` will report them as failed: the outcome nobody can know.
        """
        batches = self._take(limit)
        if batches:
            failed = self.commit(batches)
            self._settled += [(batch, failed or error) for batch in batches]
            if error is not None and failed is None:
                self._landed += batches
        return sum(len(batch.entries) for batch in batches)

    def lose(self, limit: int | None = None, *, error: str = "timed out") -> int:
        """Drop at most `limit` waiting entries, in order; `deliver` will report them as failed."""
        batches = self._take(limit)
        self._settled += [(batch, error) for batch in batches]
        return sum(len(batch.entries) for batch in batches)

    def deliver(self) -> None:
        """Call back who waits for what has landed or was lost, then run the tails until they have nothing new."""
        settled, self._settled = self._settled, []
        for batch, error in settled:
            self.acknowledge([batch], error)
        landed, self._landed = self._landed, []
        self._offer(landed)
        while any(tail.turn() for tail in self.tails):
            pass

    def step(self) -> bool:
        """Land and deliver all that waits; returns whether there was anything."""
        landed = self.land()
        self.deliver()
        return landed > 0

    def _fetch(self) -> None:
        while not self._queue.empty():
            self._held.append(self._queue.get())

    def _take(self, limit: int | None) -> list[Batch]:
        self._fetch()
        left = self.waiting() if limit is None else limit
        taken = []
        while left > 0 and self._held:
            batch = self._held.pop(0)
            if len(batch.entries) > left:
                head, rest = batch.split(left)
                self._held.insert(0, rest)
                batch = head
            left -= len(batch.entries)
            taken.append(batch)
        return taken
