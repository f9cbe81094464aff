"""A tail of a `LocalLog`: reads on from an offset for ever, first from the store, then from memory.

The writer offers what it has just made durable. A partition whose position matches takes it from there; one that is
behind reads the store until it matches. So a record is delivered once and nothing is left out, however the two
interleave: the position alone decides.

A prompt tail that is idle and not behind is turned by the writer itself: a change of threads takes longer than that.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from libs.events.local_store import EPHEMERAL, Batch, truncated
from libs.events.log import LogError, Record, Topic

WINDOW_BYTES = 8 << 20
"""What a tail keeps in memory for a consumer that lags; the rest it reads from the store."""

BATCH = 1000

PACE_S = 0.001
"""Least time between two deliveries. The first record after a pause is delivered at once; of a steady stream several go
together, because each delivery takes the interpreter from the threads that write."""


class Source(Protocol):
    """The log, as its tails see it."""

    poll_s: float | None

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]: ...

    def end(self, topic: Topic, partition: int) -> int: ...

    def read_some(self, topic: Topic, partition: int, start: int, stop: int, limit: int) -> list[Record]: ...

    def forget(self, tail: "LocalTail") -> None: ...


class _Reading:
    """One partition of a tail. A new `add` makes a new one: what was on its way for the old one is dropped."""

    __slots__ = ("checked", "end", "paused", "position", "size_bytes", "window")

    def __init__(self, position: int, end: int, *, checked: bool) -> None:
        self.position = position
        self.end = end
        self.paused = False
        self.checked = checked
        self.size_bytes = 0
        self.window: deque[Batch] = deque()


class LocalTail:
    """See the module docstring. `deliver` and `on_error` run on the tail's thread."""

    def __init__(
        self,
        source: Source,
        topic: Topic,
        deliver: Callable[[list[Record]], None],
        on_error: Callable[[LogError], None],
        *,
        prompt: bool = False,
    ) -> None:
        self.topic = topic
        self._prompt = prompt
        self._turning = threading.Lock()
        self._turned_at = 0.0
        self._source = source
        self._deliver = deliver
        self._on_error = on_error
        self._changed = threading.Condition(threading.Lock())
        self._readings: dict[int, _Reading] = {}
        self._idle = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"log-tail-{self.topic}", daemon=True)
        self._thread.start()

    def add(self, partition: int, offset: int) -> None:
        with self._changed:
            # The end is read under the lock: an offer that it does not contain comes later and finds this reading.
            end = self._source.end(self.topic, partition)
            ephemeral = self.topic in EPHEMERAL  # what was published before is gone: only what comes
            self._readings[partition] = _Reading(end if ephemeral else offset, end, checked=ephemeral)
            self._changed.notify()

    def remove(self, partition: int) -> None:
        with self._changed:
            self._readings.pop(partition, None)

    def pause(self, partition: int) -> None:
        self._set_paused(partition, paused=True)

    def resume(self, partition: int) -> None:
        self._set_paused(partition, paused=False)

    def _set_paused(self, partition: int, *, paused: bool) -> None:
        with self._changed:
            if reading := self._readings.get(partition):
                reading.paused = paused
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._source.forget(self)
        if self._prompt:
            with self._turning:
                pass  # a turn under way, which may be the writer's, has ended
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def offer(self, batches: list[Batch]) -> None:
        """Take note of what is durable (called by the writer; never waits for the consumer)."""
        with self._changed:
            wanted = False
            for batch in batches:
                reading = self._readings.get(batch.partition)
                if reading is None:
                    continue
                reading.end = max(reading.end, batch.end)
                wanted = wanted or not reading.paused
                size = batch.size_bytes
                if reading.size_bytes + size <= WINDOW_BYTES or not reading.window:
                    reading.window.append(batch)
                    reading.size_bytes += size
            if wanted and self._idle and not self._prompt:
                self._changed.notify()

    def hurry(self) -> None:
        """Called behind offers, by who may be kept for as long as `deliver` of a prompt tail takes."""
        if not self._prompt:
            return
        with self._changed:
            if self._closed or not self._idle or not self._ready():
                return
            if self._pause_s() > 0 or not self._up_to_date() or not self._turning.acquire(blocking=False):
                self._changed.notify()
                return
        try:
            self._turn()
        finally:
            self._turning.release()

    def _up_to_date(self) -> bool:
        """Whether a turn will find everything in memory."""
        return all(
            reading.paused or (reading.checked and (reading.position == reading.end or _in_window(reading)))
            for reading in self._readings.values()
        )

    def _pause_s(self) -> float:
        """How long until the next delivery may come."""
        return self._turned_at + PACE_S - time.monotonic()

    # --- the tail's thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._ready():
                    self._idle = True
                    told = self._changed.wait(self._source.poll_s)
                    self._idle = False
                    if not told:
                        break
                if self._closed:
                    return
            # Not on the condition: what comes meanwhile needs no wake-up, and close() waits a millisecond at most.
            if (pause_s := self._pause_s()) > 0:  # the writer was here meanwhile
                time.sleep(pause_s)
            self.turn()
            time.sleep(PACE_S)

    def _ready(self) -> bool:
        return any(
            not reading.paused and (reading.position < reading.end or not reading.checked)
            for reading in self._readings.values()
        )

    def turn(self) -> bool:
        """Deliver what there is, at most one batch of the store per partition. Returns whether there was anything."""
        with self._turning:
            return self._turn()

    def _turn(self) -> bool:
        self._turned_at = time.monotonic()
        if self._source.poll_s is not None:
            self._look()
        with self._changed:
            work = [(partition, reading) for partition, reading in self._readings.items() if not reading.paused]
            taken = [item for _, reading in work for item in self._from_window(reading)]
            behind = [item for item in work if item[1].position < item[1].end or not item[1].checked]
        if taken:
            self._deliver([record for batch, skip in taken for record in batch.records()[skip:]])
        for partition, reading in behind:
            self._catch_up(partition, reading)
        return bool(taken or behind)

    def _look(self) -> None:
        with self._changed:
            readings = list(self._readings.items())
        for partition, reading in readings:
            try:
                reading.end = max(reading.end, self._source.end(self.topic, partition))
            except LogError as error:
                self._on_error(error)

    def _from_window(self, reading: _Reading) -> list[tuple[Batch, int]]:
        """The batches that follow the position, each with how many of its records were delivered already."""
        if not reading.checked:
            return []
        taken = []
        window = reading.window
        ephemeral = self.topic in EPHEMERAL
        while window and (window[0].first <= reading.position or ephemeral):
            batch = window.popleft()
            reading.size_bytes -= batch.size_bytes
            if batch.end > reading.position:
                taken.append((batch, max(reading.position - batch.first, 0)))
                reading.position = batch.end
        if ephemeral:
            reading.position = reading.end  # what did not fit into the window is lost
        return taken

    def _catch_up(self, partition: int, reading: _Reading) -> None:
        try:
            self._check(partition, reading)
            records = self._read(partition, reading)
        except LogError as error:
            with self._changed:
                current = self._readings.get(partition) is reading
                if current:
                    del self._readings[partition]
            if current:
                self._on_error(error)
            return
        if not records:
            return
        with self._changed:
            if self._closed or self._readings.get(partition) is not reading or reading.paused:
                return
            reading.position = records[-1].offset + 1
        self._deliver(records)

    def _check(self, partition: int, reading: _Reading) -> None:
        """Whether the position is in the log at all; once per reading."""
        if reading.checked:
            return
        first, end = self._source.bounds(self.topic, partition)
        if not first <= reading.position <= end:
            raise truncated(self.topic, partition, reading.position, first, end)
        reading.checked = True

    def _read(self, partition: int, reading: _Reading) -> list[Record]:
        with self._changed:
            start = reading.position
            stop = reading.window[0].first if reading.window else reading.end
        if start >= stop:
            return []
        records = self._source.read_some(self.topic, partition, start, stop, BATCH)
        if not records:
            raise truncated(self.topic, partition, start, stop, reading.end)
        return records


def _in_window(reading: _Reading) -> bool:
    """Whether what follows the position is in memory."""
    return bool(reading.window) and reading.window[0].first <= reading.position
