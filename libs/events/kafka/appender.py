"""Appends to the events topic: pipelined, in order, each acknowledged once, never sent twice by us.

`append` hands records to the client's own buffer on the calling thread. Delivery reports are polled by one thread at a
time and passed on once per poll: by the caller in `collect`, while little is under way and the broker is quick, else by
a thread that sleeps as long as there is nothing to wait for. Capacity is reserved before the first record of a call is
handed over, so a full buffer refuses the whole call.

A delivery error says nothing about the records behind it: they may land all the same (m). So after an error every
further record of that epoch and partition is acknowledged with an error and not handed over; a claim (n = 0) opens the
partition again. This saves useless records; safety is the readers' rule.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from libs.events.kafka.clients import events_timeout_s, failure, producer_settings
from libs.events.log import Ack, AppendRefused, Entry, LogError

_logger = logging.getLogger(__name__)

# Below the client's own limits (see producer_settings), so that it never refuses in the middle of a call.
MAX_OUTSTANDING = 100_000
MAX_OUTSTANDING_BYTES = 128 << 20
_POLL_S = 0.05
_IDLE_POLL_S = 0.25
"""The client reports its own errors when it is polled, also while nothing is under way."""

COLLECTED = 64
"""Records under way above which nobody waits for them in `collect`."""

_MOST_SKIPPED = 256


class _Pending:
    """An entry under way; `result` is set when its report came before those of entries ahead of it."""

    __slots__ = ("epoch", "n", "result", "size")

    def __init__(self, epoch: int, n: int, size: int) -> None:
        self.epoch, self.n, self.size = epoch, n, size
        self.result: tuple[int, str | None] | None = None


class KafkaAppender:
    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, str],
        topic: str,
        on_acks: Callable[[list[Ack]], None],
        message_timeout_s: float | None = None,
        *,
        collects: bool = False,
    ) -> None:
        """`message_timeout_s` None: as the options say."""
        self._bootstrap, self._topic, self._on_acks = bootstrap, topic, on_acks
        timeout_s = events_timeout_s(options) if message_timeout_s is None else message_timeout_s
        self._settings = producer_settings(bootstrap, options, timeout_s=timeout_s)
        self._log_error = self._settings["error_cb"]
        self._settings["error_cb"] = self._client_error
        self._lock = threading.Lock()  # append order = order in _pending = order in the client's buffer
        self._pending: dict[int, deque[_Pending]] = {}
        self._ended: dict[int, int] = {}  # partition -> epoch in which a record failed
        self._refused: deque[tuple[int, _Pending, str]] = deque()  # never handed over; reported by the poller
        self._acks: list[Ack] = []
        self._collects = collects
        self._polling = threading.Lock()
        self._work = threading.Event()  # wakes the poller
        self._skip = self._skips = 0  # collects that are left out because the broker was slow
        # Each counter is written under one lock (append; `_polling`), so their difference needs none.
        self._taken = self._taken_bytes = 0
        self._settled = self._settled_bytes = 0
        self._fatal: str | None = None
        self._closed = threading.Event()
        self._deadline = 0.0
        self._producer: Any = Producer(self._settings)
        self._thread = threading.Thread(target=self._poll_until_closed, name=f"append {topic}", daemon=True)
        self._thread.start()

    def append(self, partition: int, entries: Sequence[Entry]) -> None:
        with self._lock:
            if self._closed.is_set():
                raise LogError(f"{self._topic}[{partition}]: the appender is closed")
            self._reserve(partition, entries)
            pending = self._pending.setdefault(partition, deque())
            broken: str | None = None
            for entry in entries:
                mine = _Pending(entry.epoch, entry.n, _size(entry))
                pending.append(mine)
                broken = broken or self._ended_epoch(partition, entry)
                if broken is None:
                    broken = self._hand_over(partition, entry, mine)
                if broken is not None:
                    self._refused.append((partition, mine, broken))
        if not self._collects:
            self._work.set()

    def collect(self, timeout_s: float) -> None:
        under_way = self._taken - self._settled
        if not under_way:
            return
        if under_way <= COLLECTED and self._skip == 0 and self._polling.acquire(blocking=False):
            try:
                self._poll_until(time.monotonic() + timeout_s)
            finally:
                self._polling.release()
            if self._taken == self._settled:
                self._skips = 0
                return
            self._skip = self._skips = min(2 * self._skips + 1, _MOST_SKIPPED)
        elif self._skip:
            self._skip -= 1
        self._work.set()

    def _poll_until(self, deadline: float) -> None:
        while self._taken > self._settled and (left := deadline - time.monotonic()) > 0:
            self._serve(left)

    def _reserve(self, partition: int, entries: Sequence[Entry]) -> None:
        size = sum(map(_size, entries))
        waiting, waiting_bytes = self._taken - self._settled, self._taken_bytes - self._settled_bytes
        full = waiting + len(entries) > MAX_OUTSTANDING or waiting_bytes + size > MAX_OUTSTANDING_BYTES
        if full and waiting:  # one call larger than everything is let through when nothing else is under way
            raise AppendRefused(
                f"{self._topic}[{partition}]: {waiting} records ({waiting_bytes} bytes) wait for acknowledgement, "
                f"no room for {len(entries)} more. Wait for acknowledgements"
            )
        self._taken += len(entries)
        self._taken_bytes += size

    def _ended_epoch(self, partition: int, entry: Entry) -> str | None:
        ended = self._ended.get(partition)
        if ended is None:
            return None
        if entry.n == 0:
            del self._ended[partition]
            return None
        if entry.epoch > ended:
            return None
        return f"{self._topic}[{partition}]: an earlier record of epoch {ended} failed. Claim the partition anew"

    def _hand_over(self, partition: int, entry: Entry, mine: _Pending) -> str | None:
        """Why the client did not take it, or None. Once one is refused, the rest of its epoch must be too."""
        try:
            self._producer.produce(
                self._topic,
                value=entry.value,
                key=entry.key,
                headers=list(entry.headers),
                partition=partition,
                on_delivery=partial(self._report, partition, mine),
            )
        except (KafkaException, BufferError) as error:
            self._ended[partition] = entry.epoch
            if isinstance(error, BufferError):
                return f"{self._topic}[{partition}]: the client's buffer is full although capacity was reserved"
            return str(failure(error, f"{self._topic}[{partition}]", self._bootstrap))
        return None

    # --- poller thread ------------------------------------------------------------------------------------------

    def _poll_until_closed(self) -> None:
        while not self._closed.is_set():
            with self._polling:
                self._serve(0)
                while self._taken > self._settled and self._fatal is None and not self._closed.is_set():
                    self._serve(_POLL_S)
                if self._fatal is not None:
                    self._replace_producer()
            self._sleep()
        with self._polling:
            self._poll_until(self._deadline)
            self._abandon("the appender was closed before the acknowledgement came")

    def _sleep(self) -> None:
        """Until there is something to wait for."""
        self._work.wait(_IDLE_POLL_S)
        self._work.clear()

    def _serve(self, timeout_s: float) -> None:
        self._producer.poll(timeout_s)
        while self._refused:
            partition, pending, error = self._refused.popleft()
            self._settle(partition, pending, -1, error)
        self._flush()

    def _flush(self) -> None:
        if self._acks:
            acks, self._acks = self._acks, []
            try:
                self._on_acks(acks)
            except Exception:  # the owner's bug must not stop acknowledgements; it is its own to see
                _logger.exception("acknowledgements_not_taken")

    def _report(self, partition: int, pending: _Pending, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self._settle(partition, pending, max(-1, message.offset()), None)
        else:
            text = str(failure(error, f"{self._topic}[{partition}]", self._bootstrap))
            self._settle(partition, pending, -1, text)

    def _settle(self, partition: int, pending: _Pending, offset: int, error: str | None) -> None:
        """Record a result; pass on the results that have nothing outstanding ahead of them."""
        if error is not None:
            self._ended[partition] = max(pending.epoch, self._ended.get(partition, 0))
        pending.result = (offset, error)
        queue = self._pending[partition]
        while queue and queue[0].result is not None:
            first = queue.popleft()
            assert first.result is not None
            self._acks.append(Ack(partition, first.epoch, first.n, *first.result))
            self._settled += 1
            self._settled_bytes += first.size

    def _client_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 (the client's own name)
            self._fatal = error.str()
        self._log_error(error)

    def _replace_producer(self) -> None:
        """A fatal error ends this producer: everything under way is reported as failed, later epochs get a new one."""
        with self._lock:
            text = f"{self._topic}: fatal producer error: {self._fatal}. Claim the partition anew"
            self._abandon(text)
            self._producer = Producer(self._settings)
            self._fatal = None

    def _abandon(self, text: str) -> None:
        self._producer.purge()
        self._serve(0)
        for partition, queue in self._pending.items():
            for pending in [waiting for waiting in queue if waiting.result is None]:
                self._settle(partition, pending, -1, text)
        self._flush()

    def close(self, timeout_s: float) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._deadline = time.monotonic() + timeout_s
                self._closed.set()
                self._work.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _size(entry: Entry) -> int:
    return len(entry.value or b"") + len(entry.key or b"") + 200  # about what headers and book-keeping take
