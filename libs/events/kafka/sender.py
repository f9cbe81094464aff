"""Single durable appends with a future (commands, blobs, definitions, ...), and lossy ones without (chunks)."""

import heapq
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from libs.events.kafka.clients import failure, producer_settings
from libs.events.log import AppendRefused, Entry, LogError

_POLL_S = 0.05


class Sender:
    """One producer that gives up after `give_up_s`, and its poller thread."""

    def __init__(self, bootstrap: str, options: Mapping[str, str], give_up_s: float) -> None:
        self._bootstrap, self._give_up_s = bootstrap, give_up_s
        self._settings = producer_settings(bootstrap, options, timeout_s=give_up_s)
        self._log_error = self._settings["error_cb"]
        self._settings["error_cb"] = self._client_error
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._deadlines: list[tuple[float, int, Future[int], str]] = []
        self._fatal = False
        self._closed = threading.Event()
        self._producer: Any = Producer(self._settings)
        self._thread = threading.Thread(target=self._poll_until_closed, name="send to Kafka", daemon=True)
        self._thread.start()

    def send(self, topic: str, partition: int, entry: Entry, timeout_s: float) -> "Future[int]":
        future: Future[int] = Future()
        what = f"{topic}[{partition}]"
        with self._lock:
            if self._closed.is_set():
                future.set_exception(LogError(f"{what}: the log is closed"))
                return future
            try:
                self._producer.produce(
                    topic,
                    value=entry.value,
                    key=entry.key,
                    headers=list(entry.headers),
                    partition=partition,
                    on_delivery=partial(self._report, future, what),
                )
            except BufferError:
                future.set_exception(AppendRefused(f"{what}: too many records wait for Kafka. Try again later"))
                return future
            except KafkaException as error:
                future.set_exception(failure(error, what, self._bootstrap))
                return future
            if timeout_s < self._give_up_s:
                deadline = time.monotonic() + timeout_s
                heapq.heappush(self._deadlines, (deadline, next(self._order), future, what))
        return future

    def _report(self, future: "Future[int]", what: str, error: KafkaError | None, message: Any) -> None:
        if error is None:
            _settle(future, max(-1, message.offset()))
        else:
            _settle(future, failure(error, what, self._bootstrap))

    def _poll_until_closed(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(_POLL_S)
            self._expire(time.monotonic())
            if self._fatal:
                self._replace_producer()
        self._producer.flush(self._give_up_s)
        self._producer.purge()
        self._producer.poll(0)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            with self._lock:
                _, _, future, what = heapq.heappop(self._deadlines)
            text = f"{what}: no acknowledgement from Kafka at {self._bootstrap} in time. The record may be in the log"
            _settle(future, LogError(text))

    def _client_error(self, error: KafkaError) -> None:
        self._fatal = self._fatal or error.fatal()
        self._log_error(error)

    def _replace_producer(self) -> None:
        with self._lock:
            self._producer.purge()
            self._producer.poll(0)
            self._producer, self._fatal = Producer(self._settings), False

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        self._thread.join()


def _settle(future: "Future[int]", result: int | LogError) -> None:
    try:
        if isinstance(result, LogError):
            future.set_exception(result)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass  # it was given up before, or cancelled by whoever waited


class Publisher:
    """A producer for records that may be lost: nobody waits for them, and a full buffer drops."""

    def __init__(self, bootstrap: str, options: Mapping[str, str]) -> None:
        settings = producer_settings(bootstrap, options, timeout_s=5, lossy=True)
        settings["delivery.report.only.error"] = True
        self._producer: Any = Producer(settings)
        self._dropped = 0

    def publish(self, topic: str, partition: int, entries: Sequence[Entry]) -> None:
        try:
            for entry in entries:
                headers = list(entry.headers)
                self._producer.produce(topic, value=entry.value, key=entry.key, headers=headers, partition=partition)
        except (BufferError, KafkaException):
            self._dropped += 1
        self._producer.poll(0)  # only errors are reported, so this is a look at an empty queue

    def close(self) -> None:
        self._producer.flush(1.0)
        self._producer.purge()
