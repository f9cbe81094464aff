"""A log that lives in one process: one writer, group commit, live tails. What it writes to is a `Store`.

Promises what `libs.events.log` promises. All appends that wait when the writer is free go into one commit; those that
arrive during a commit go into the next. Acknowledgements leave after the commit, on the writer's thread. The writer is
whoever holds the lock `_writing`: a thread of its own, or the caller of `LocalAppender.collect`, who spares two changes
of threads as long as the disk is quick. A tail has its own thread and a bounded window of what was just written, so a
slow consumer blocks nobody: what does not fit into its window it reads from the store later.

Chunks are never stored: they get offsets for as long as the process lives and reach only live tails.

`libs.events.sqlite` (embedded) and `libs.events.memory` (tests) are this log over their stores.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue

from libs.events.local_store import EPHEMERAL, Batch, Store, truncated
from libs.events.local_tail import LocalTail
from libs.events.log import Ack, AppendRefused, Entry, LogError, Placement, Record, Topic

_logger = logging.getLogger(__name__)

WAITING_LIMIT = 200_000
"""Entries that may wait for the writer before `append` refuses: seconds of work, not minutes."""

POLL_S = 0.05
"""How often a read-only log looks for records that another process wrote."""


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class LocalLog:
    """See the module docstring. `now_ms` is the clock of record time stamps; they never fall."""

    poll_s: float | None
    """How often tails must look at the store by themselves; None when they are told."""

    def __init__(self, store: Store, *, now_ms: Callable[[], int], threads: bool = True, writable: bool = True) -> None:
        self._store = store
        self._now_ms = now_ms
        self._writable = writable
        self._threads = threads
        self.poll_s = None if writable else POLL_S
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Batch] = SimpleQueue()
        self._writing = threading.Lock()
        self._work = threading.Event()  # wakes the writer's thread
        self._commit_s = 0.0
        self._waiting = 0
        self._closed = False
        self._ended = False
        self._ends: dict[tuple[Topic, int], int] = store.ends()
        self._last_ms = store.last_ms()
        self._tails: tuple[LocalTail, ...] = ()
        self._placements: list[LocalPlacement] = []
        self._deadlines = _Deadlines()
        self._refused = False
        """The store took nothing the last time."""
        self._writer: threading.Thread | None = None
        if writable and threads:
            self._writer = threading.Thread(target=self._write, name="log-writer", daemon=True)
            self._writer.start()

    # --- what there is ---

    @property
    def partitions(self) -> int:
        return self._store.partitions

    def topic_id(self, topic: Topic) -> str:
        return self._store.log_id

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        self._check(topic, partition)
        end = self.end(topic, partition)
        return (end if topic in EPHEMERAL else min(self._store.first(topic, partition), end)), end

    def offset_at(self, topic: Topic, partition: int, timestamp_ms: int) -> int:
        first, end = self.bounds(topic, partition)
        # Time stamps never fall within a partition, so halving finds it; records may be missing (deleted by hand).
        while first < end:
            middle = (first + end) // 2
            record = next(iter(self._store.read(topic, partition, middle, end, 1)), None)
            if record is None or record.timestamp_ms >= timestamp_ms:
                end = middle
            else:
                first = record.offset + 1
        return first

    def read(
        self, topic: Topic, partition: int, start: int, stop: int | None = None, batch: int = 1000
    ) -> Iterator[list[Record]]:
        first, end = self.bounds(topic, partition)
        if not first <= start <= end:
            raise truncated(topic, partition, start, first, end)
        return self._read(topic, partition, start, end if stop is None else min(stop, end), batch)

    def read_some(self, topic: Topic, partition: int, start: int, stop: int, limit: int) -> list[Record]:
        """At most `limit` records of [start, stop) from the store, in order. For tails."""
        return self._store.read(topic, partition, start, stop, limit)

    def _read(self, topic: Topic, partition: int, start: int, stop: int, batch: int) -> Iterator[list[Record]]:
        while start < stop:
            records = self._store.read(topic, partition, start, stop, batch)
            if not records:
                return
            yield records
            start = records[-1].offset + 1

    def end(self, topic: Topic, partition: int) -> int:
        if self._writable or topic in EPHEMERAL:
            return self._ends.get((topic, partition), 0)
        return self._store.end(topic, partition)

    def _check(self, topic: Topic, partition: int) -> None:
        count = self._store.partitions
        if not 0 <= partition < count:
            raise LogError(f"{topic}[{partition}]: no such partition, this log has {count}. Check the partition count")
        if self._closed:
            raise LogError(f"{topic}[{partition}]: the log is closed")

    # --- appending ---

    def send(self, topic: Topic, partition: int, entry: Entry, timeout_s: float = 4.0) -> "Future[int]":
        self._check(topic, partition)
        future: Future[int] = Future()
        try:
            self.enqueue(Batch(topic, partition, (entry,), future=future))
        except LogError as error:
            future.set_exception(error)
            return future
        if self._threads:
            self._deadlines.watch(future, timeout_s, f"{topic}[{partition}]")
        return future

    def publish(self, topic: Topic, partition: int, entries: Sequence[Entry]) -> None:
        if not entries or self._closed:
            return
        if topic not in EPHEMERAL:
            with suppress(AppendRefused):
                self.enqueue(Batch(topic, partition, entries))
            return
        batch = Batch(topic, partition, entries)
        with self._lock:
            batch.first = self._ends.get((topic, partition), 0)
            self._ends[topic, partition] = batch.first + len(entries)
            batch.timestamp_ms = self._now_ms()
            self._offer([batch])
        self._hurry()

    def open_appender(self, on_acks: Callable[[list[Ack]], None], *, collects: bool = False) -> "LocalAppender":
        return LocalAppender(self, on_acks, collects=collects)

    def enqueue(self, batch: Batch, *, wake: bool = True) -> None:
        """Hand `batch` to the writer. Raises LogError (nothing was handed over). `wake` False: the caller collects."""
        count = len(batch.entries)
        with self._lock:
            if self._closed or self._ended or not self._writable:
                raise AppendRefused(self._refusal())
            if self._waiting and self._waiting + count > WAITING_LIMIT:
                raise AppendRefused(f"{self._waiting} entries wait for the log already. Wait for acknowledgements")
            self._waiting += count
            self._queue.put(batch)
        if wake:
            self._work.set()

    def _refusal(self) -> str:
        if not self._writable:
            return "this log was opened read-only"
        return "the log's writer has ended, see its error. Restart the process" if self._ended else "the log is closed"

    # --- the writer ---

    def _write(self) -> None:
        try:
            while not self._closed:
                self._work.wait()
                self._work.clear()
                with self._writing:
                    self._write_waiting()
            # Nothing is taken any more; what was taken last may have come between the two looks.
            with self._writing:
                self._write_waiting()
        finally:
            self._ended = True

    def collect(self, timeout_s: float) -> None:
        """Write what waits on the calling thread, when nobody writes and a commit takes less than `timeout_s`."""
        if not self._threads:
            return
        if self._commit_s < timeout_s and self._writing.acquire(blocking=False):
            try:
                self._write_waiting()
            finally:
                self._writing.release()
            if self._queue.empty():
                return
        self._work.set()

    def _write_waiting(self) -> None:
        queue = self._queue
        while not queue.empty():
            batches = []
            while not queue.empty():
                batches.append(queue.get())
            begin = time.monotonic()
            error = self.commit(batches)
            self._commit_s = time.monotonic() - begin
            self.acknowledge(batches, error)

    def commit(self, batches: list[Batch]) -> str | None:
        """Make `batches` durable in one commit. Returns what went wrong, None if nothing did."""
        ends = self._ends
        changed: dict[tuple[Topic, int], int] = {}
        for batch in batches:
            place = (batch.topic, batch.partition)
            batch.first = changed.get(place) or ends.get(place, 0)
            changed[place] = batch.first + len(batch.entries)
        now = max(self._now_ms(), self._last_ms)
        try:
            self._store.append(batches, now)
        except LogError as error:
            self._refused = True
            # What stands in the store after a failed commit only the store can say.
            for place in changed:
                ends[place] = self._store.end(*place)
            return str(error)
        self._refused = False
        self._last_ms = now
        ends.update(changed)
        for batch in batches:
            batch.timestamp_ms = now
        return None

    def problem(self) -> str | None:
        """Why nothing can be written now; None: all is well, as far as is known. Blocking."""
        if not self._refused:
            return None
        try:
            self._store.check_room()
        except LogError as error:
            return f"nothing can be written: {error}"
        return None

    def acknowledge(self, batches: list[Batch], error: str | None) -> None:
        """Tell who waits, then the tails. One call of `on_acks` per appender."""
        count = 0
        acks: dict[LocalAppender, list[Ack]] = {}
        for batch in batches:
            count += len(batch.entries)
            if batch.appender is not None:
                acks.setdefault(batch.appender, []).extend(_acks(batch, error))
            elif batch.future is not None:
                _settle(batch, error)
        for appender, its in acks.items():
            appender.acknowledge(its)
        with self._lock:
            self._waiting -= count
        if error is None and self._tails:
            self._offer(batches)
            self._hurry()

    def _offer(self, batches: list[Batch]) -> None:
        for tail in self._tails:
            its = [batch for batch in batches if batch.topic is tail.topic]
            if its:
                tail.offer(its)

    def _hurry(self) -> None:
        for tail in self._tails:
            tail.hurry()

    # --- tails and placement ---

    def tail(
        self,
        topic: Topic,
        starts: Mapping[int, int],
        deliver: Callable[[list[Record]], None],
        on_error: Callable[[LogError], None],
        *,
        prompt: bool = False,
    ) -> LocalTail:
        for partition in starts:
            self._check(topic, partition)
        tail = LocalTail(self, topic, deliver, on_error, prompt=prompt)
        with self._lock:
            self._tails = (*self._tails, tail)
        for partition, start in starts.items():
            tail.add(partition, start)
        if self._threads:
            tail.start()
        return tail

    def forget(self, tail: LocalTail) -> None:
        """Offer nothing more to `tail`."""
        with self._lock:
            self._tails = tuple(other for other in self._tails if other is not tail)

    @property
    def tails(self) -> tuple[LocalTail, ...]:
        return self._tails

    def place(
        self,
        group: str,
        on_assigned: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None],
        alive: Callable[[], bool],
        session_timeout_s: float = 1.0,
    ) -> Placement:
        if not self._writable:
            raise LogError(f"cannot join group {group!r}: this log was opened read-only")
        placement = LocalPlacement(set(range(self.partitions)), on_assigned, thread=self._threads)
        self._placements.append(placement)
        return placement

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._work.set()
        for placement in self._placements:
            placement.close(1.0)
        if self._writer is not None and self._writer is not threading.current_thread():
            self._writer.join()
        for tail in self._tails:
            tail.close()
        self._deadlines.close()
        self._store.close()


class LocalAppender:
    """Ordered appends to the events topic."""

    def __init__(self, log: LocalLog, on_acks: Callable[[list[Ack]], None], *, collects: bool = False) -> None:
        self._log = log
        self._collects = collects
        self._on_acks = on_acks
        self._counted = threading.Condition()
        self._outstanding = 0
        self._closed = False

    def append(self, partition: int, entries: Sequence[Entry]) -> None:
        if not 0 <= partition < self._log.partitions:
            raise LogError(f"{Topic.EVENTS}[{partition}]: no such partition, this log has {self._log.partitions}")
        if not entries:
            return
        with self._counted:
            if self._closed:
                raise AppendRefused("this appender is closed")
            self._outstanding += len(entries)
            try:
                self._log.enqueue(Batch(Topic.EVENTS, partition, entries, appender=self), wake=not self._collects)
            except LogError:
                self._outstanding -= len(entries)
                raise

    def collect(self, timeout_s: float) -> None:
        if self._outstanding:
            self._log.collect(timeout_s)

    def acknowledge(self, acks: list[Ack]) -> None:
        try:
            self._on_acks(acks)
        except Exception:  # the owner's bug must not keep what was written from others; it is its own to see
            _logger.exception("acknowledgements_not_taken")
        with self._counted:
            self._outstanding -= len(acks)
            if self._closed:
                self._counted.notify_all()

    def close(self, timeout_s: float) -> None:
        self.collect(0)
        with self._counted:
            self._closed = True
            self._counted.wait_for(lambda: self._outstanding <= 0, timeout_s)


class LocalPlacement:
    """All partitions at once and for ever: nobody else could take over while this process holds the store."""

    def __init__(self, partitions: set[int], on_assigned: Callable[[set[int]], None], *, thread: bool) -> None:
        self._thread: threading.Thread | None = None
        if not thread:
            on_assigned(partitions)
            return
        # On its own thread: the caller may not have stored the placement yet when it is told.
        self._thread = threading.Thread(target=on_assigned, args=(partitions,), name="log-placement", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)


class _Deadlines:
    """Fails futures that the writer has not settled in time (a disk that hangs)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Future[int], str]] = []
        self._count = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def watch(self, future: "Future[int]", timeout_s: float, place: str) -> None:
        with self._changed:
            self._count += 1
            deadline = time.monotonic() + timeout_s
            heapq.heappush(self._heap, (deadline, self._count, future, f"{place}: not durable after {timeout_s:g} s"))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-deadlines", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is future:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                due = []
                while self._heap and (self._heap[0][2].done() or self._heap[0][0] <= now):
                    due.append(heapq.heappop(self._heap))
                if not due:
                    self._changed.wait(self._heap[0][0] - now if self._heap else None)
            for _, _, future, text in due:
                _fail(future, f"{text}. It may be in the log all the same")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()


def _acks(batch: Batch, error: str | None) -> list[Ack]:
    partition, offset = batch.partition, batch.first
    if error is not None:
        return [Ack(partition, entry.epoch, entry.n, -1, error) for entry in batch.entries]
    return [Ack(partition, entry.epoch, entry.n, at) for at, entry in enumerate(batch.entries, offset)]


def _settle(batch: Batch, error: str | None) -> None:
    future = batch.future
    assert future is not None
    if error is not None:
        _fail(future, f"{batch.topic}[{batch.partition}]: {error}")
        return
    with suppress(InvalidStateError):  # too late, or cancelled by who waited
        future.set_result(batch.first)


def _fail(future: "Future[int]", text: str) -> None:
    with suppress(InvalidStateError):
        future.set_exception(LogError(text))
