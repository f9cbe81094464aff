"""Bounded reads and questions about offsets, by consumers that are kept for the next call.

A consumer takes several milliseconds to connect, a read of one run less than one: so idle consumers are kept, each
used by one caller at a time.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from libs.events.kafka.clients import consumer_settings, failure
from libs.events.log import LogError, LogTruncated, Record, Topic
from libs.events.topics import topic_name

_KEPT = 4
_REQUEST_TIMEOUT_S = 5.0
_NO_PROGRESS_S = 30.0
_ASK_AGAIN_S = 0.02

T = TypeVar("T")


def to_record(topic: Topic, message: Message) -> Record:
    headers = message.headers()
    named: Any = dict(headers) if headers else {}
    if None in named.values():  # Kafka knows a header without value; a foreign producer may write one
        named = {name: value or b"" for name, value in named.items()}
    return Record(
        topic,
        message.partition(),  # type: ignore[arg-type]  # set: the message has no error
        message.offset(),  # type: ignore[arg-type]  # as above
        message.timestamp()[1],
        message.key(),
        message.value(),
        named,
    )


class Readers:
    def __init__(self, bootstrap: str, options: Mapping[str, str], prefix: str) -> None:
        self._bootstrap, self._prefix = bootstrap, prefix
        # Hardly any wait for new data: a kept consumer must not find its connection busy with the last call's fetch.
        # The end of a partition is reported, because the last offsets may hold no record (compaction, markers).
        self._settings = consumer_settings(bootstrap, options, fetch_wait_max_ms=1, enable_partition_eof="true")
        self._lock = threading.Lock()
        self._idle: list[Consumer] = []
        self._closed = False

    def bounds(self, topic: Topic, partition: int, timeout_s: float = _REQUEST_TIMEOUT_S) -> tuple[int, int]:
        what = self._what(topic, partition)
        with self._consumer() as consumer:
            return self._bounds(consumer, what, topic, partition, timeout_s)

    def _bounds(
        self, consumer: Consumer, what: str, topic: Topic, partition: int, timeout_s: float = _REQUEST_TIMEOUT_S
    ) -> tuple[int, int]:
        place = TopicPartition(topic_name(self._prefix, topic), partition)

        def question(left: float) -> tuple[int, int] | None:
            return consumer.get_watermark_offsets(place, left, cached=False)

        answer = self._ask(what, consumer, place.topic, timeout_s, question)
        if answer is None:
            raise LogError(f"{what}: no answer from Kafka at {self._bootstrap}. Start the broker or try again")
        low, high = answer
        return low, high

    def _ask(self, what: str, consumer: Consumer, name: str, timeout_s: float, question: Callable[[float], T]) -> T:
        """The answer; a cluster that is electing leaders is asked again until the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return question(max(0.1, deadline - time.monotonic()))
            except KafkaException as error:
                unknown = error.args[0].code() == KafkaError._UNKNOWN_PARTITION  # noqa: SLF001 (the client's own name)
                if not (unknown or heals(error.args[0])) or time.monotonic() + _ASK_AGAIN_S > deadline:
                    raise failure(error, what, self._bootstrap) from error
                if unknown:
                    # A broker that comes back may answer for a moment as if it had no such partition, and the client
                    # would believe that for minutes.
                    with suppress(KafkaException):
                        consumer.list_topics(name, max(0.1, deadline - time.monotonic()))
            time.sleep(_ASK_AGAIN_S)  # there is nothing to be told by; leaders change within milliseconds

    def offset_at(self, topic: Topic, partition: int, timestamp_ms: int) -> int:
        what = self._what(topic, partition)
        place = TopicPartition(topic_name(self._prefix, topic), partition, timestamp_ms)

        def question(left: float) -> int:
            (found,) = consumer.offsets_for_times([place], timeout=left)
            if found.error is not None:
                raise KafkaException(found.error)
            return found.offset

        with self._consumer() as consumer:
            offset = self._ask(what, consumer, place.topic, _REQUEST_TIMEOUT_S, question)
            return offset if offset >= 0 else self._bounds(consumer, what, topic, partition)[1]

    def read(self, topic: Topic, partition: int, start: int, stop: int | None, batch: int) -> Iterator[list[Record]]:
        what = self._what(topic, partition)
        low, high = self.bounds(topic, partition)
        if not low <= start <= high:
            raise LogTruncated(
                f"{what}: asked for offset {start}, the log holds {low} to {high}. Start from a newer checkpoint"
            )
        return self._batches(topic, partition, start, high if stop is None else min(stop, high), batch)

    def _batches(self, topic: Topic, partition: int, start: int, stop: int, batch: int) -> Iterator[list[Record]]:
        if start >= stop:
            return
        what = self._what(topic, partition)
        with self._consumer() as consumer:
            consumer.assign([TopicPartition(topic_name(self._prefix, topic), partition, start)])
            deadline = time.monotonic() + _NO_PROGRESS_S
            while True:
                messages = poll_batch(consumer, batch, timeout_s=0.5)
                records, ended = self._until(stop, topic, messages, what)
                if records:
                    yield records
                if ended:
                    return
                if messages:
                    deadline = time.monotonic() + _NO_PROGRESS_S
                elif time.monotonic() > deadline:
                    raise LogError(f"{what}: no answer from Kafka at {self._bootstrap}. Start the broker or try again")

    def _until(self, stop: int, topic: Topic, messages: list[Message], what: str) -> tuple[list[Record], bool]:
        """The records before `stop`, and whether nothing more is to come."""
        records: list[Record] = []
        for message in messages:
            error = message.error()
            offset = message.offset()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (the client's own name)
                    return records, True
                if heals(error):
                    continue
                raise failure(error, what, self._bootstrap)
            if offset is not None and offset >= stop:
                return records, True
            records.append(to_record(topic, message))
        return records, bool(records) and records[-1].offset >= stop - 1

    def _what(self, topic: Topic, partition: int) -> str:
        return f"{topic_name(self._prefix, topic)}[{partition}]"

    @contextmanager
    def _consumer(self) -> Iterator[Consumer]:
        """A consumer for this caller alone, without assignment. Not kept after an error: its state is unknown."""
        with self._lock:
            if self._closed:
                raise LogError("the log is closed")
            consumer = self._idle.pop() if self._idle else None
        consumer = consumer or Consumer(self._settings)
        clean = False
        try:
            yield consumer
            consumer.unassign()
            clean = True
        except GeneratorExit:  # a caller that read enough; the consumer is fine
            consumer.unassign()
            clean = True
            raise
        finally:
            with self._lock:
                keep = clean and not self._closed and len(self._idle) < _KEPT
                if keep:
                    self._idle.append(consumer)
            if not keep:
                with suppress(RuntimeError, KafkaException):
                    consumer.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for consumer in idle:
            consumer.close()


def poll_batch(consumer: Consumer, size: int, timeout_s: float) -> list[Message]:
    """Up to `size` messages, as soon as there is one; `consume` alone would wait for all or the whole time-out."""
    first = consumer.poll(timeout_s)
    if first is None:
        return []
    return [first, *consumer.consume(size - 1, 0)] if size > 1 else [first]


_HEALS = {
    KafkaError._TRANSPORT,  # noqa: SLF001 (the client's own names)
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._STATE,  # noqa: SLF001
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
}


def heals(error: KafkaError) -> bool:
    """Whether the client goes on by itself when the cluster is back."""
    return error.code() in _HEALS
