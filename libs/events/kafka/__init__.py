"""The log port over Apache Kafka, by the plain confluent-kafka clients, one thread each.

What is promised is in `libs.events.log`. Not done here: deciding which records count, creating topics
(`libs.events.topics`), transactions (one hung transaction would freeze readers, and a record would cost ten times as
much).
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from confluent_kafka.admin import AdminClient

from libs.events.kafka.admin import describe_topic, open_admin
from libs.events.kafka.appender import KafkaAppender
from libs.events.kafka.clients import SEND_TIMEOUT_S
from libs.events.kafka.placement import KafkaPlacement
from libs.events.kafka.reader import Readers
from libs.events.kafka.sender import Publisher, Sender
from libs.events.kafka.tail import KafkaTail
from libs.events.log import Ack, Entry, LogError, Record, Topic
from libs.events.topics import topic_name

__all__ = ["KafkaLog"]

_PATIENT_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
_ADMIN_TIMEOUT_S = 5.0


class _Closable(Protocol):
    def close(self) -> None: ...


class KafkaLog:
    """`options` are extra librdkafka properties (SASL, TLS); `partitions` is the configured number."""

    def __init__(self, bootstrap: str, options: Mapping[str, str], prefix: str, partitions: int) -> None:
        self._bootstrap, self._options, self._prefix, self._partitions = bootstrap, dict(options), prefix, partitions
        self._lock = threading.Lock()
        self._closed = False
        self._readers = Readers(bootstrap, self._options, prefix)
        # Clients are made when first used: a command line that only reads should not connect a producer.
        self._senders: dict[float, Sender] = {}
        self._publisher: Publisher | None = None
        self._admin: AdminClient | None = None
        self._opened: list[Callable[[], None]] = []

    @property
    def partitions(self) -> int:
        return self._partitions

    def topic_id(self, topic: Topic) -> str:
        return str(self._describe(topic).topic_id)

    def _describe(self, topic: Topic) -> Any:
        with self._lock:
            if self._admin is None:
                self._admin = open_admin(self._bootstrap, self._options)
            admin = self._admin
        try:
            return describe_topic(admin, topic_name(self._prefix, topic), self._bootstrap, _ADMIN_TIMEOUT_S)
        except LogError:
            # A client that met a cluster without a controller may wait for one for ever: the next call makes another.
            with self._lock:
                if self._admin is admin:
                    self._admin = None
            raise

    def check_partitions(self) -> None:
        """That the topics have the partitions of the settings. Raises LogError.

        Too many are none of our business as long as nothing of us is in them: somebody prepares a wider layout. But who
        believes in fewer partitions than hold runs would miss runs, and make tables without them.
        """
        for topic in (Topic.COMMANDS, Topic.EVENTS):
            there = len(self._describe(topic).partitions)
            if there != self._partitions and (there < self._partitions or self._runs_beyond(there)):
                raise LogError(
                    f"{topic_name(self._prefix, topic)} has {there} partitions, and FLOWLEDGER_PARTITIONS says "
                    f"{self._partitions}. Set FLOWLEDGER_PARTITIONS={there}, for every service and command"
                )

    def _runs_beyond(self, partitions: int) -> bool:
        """Whether a partition above those of the settings holds commands."""
        return any(self.bounds(Topic.COMMANDS, number)[1] for number in range(self._partitions, partitions))

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        return self._readers.bounds(topic, partition)

    def offset_at(self, topic: Topic, partition: int, timestamp_ms: int) -> int:
        return self._readers.offset_at(topic, partition, timestamp_ms)

    def read(
        self, topic: Topic, partition: int, start: int, stop: int | None = None, batch: int = 1000
    ) -> Iterator[list[Record]]:
        return self._readers.read(topic, partition, start, stop, batch)

    def send(self, topic: Topic, partition: int, entry: Entry, timeout_s: float = SEND_TIMEOUT_S) -> "Future[int]":
        give_up_s = SEND_TIMEOUT_S if timeout_s <= SEND_TIMEOUT_S else _PATIENT_TIMEOUT_S
        sender = self._senders.get(give_up_s) or self._new_sender(give_up_s)
        return sender.send(topic_name(self._prefix, topic), partition, entry, timeout_s)

    def _new_sender(self, give_up_s: float) -> Sender:
        with self._lock:
            self._check_open()
            if give_up_s not in self._senders:
                self._senders[give_up_s] = Sender(self._bootstrap, self._options, give_up_s)
            return self._senders[give_up_s]

    def publish(self, topic: Topic, partition: int, entries: Sequence[Entry]) -> None:
        if self._publisher is None:
            with self._lock:
                self._check_open()
                self._publisher = self._publisher or Publisher(self._bootstrap, self._options)
        self._publisher.publish(topic_name(self._prefix, topic), partition, entries)

    def open_appender(self, on_acks: Callable[[list[Ack]], None], *, collects: bool = False) -> KafkaAppender:
        name = topic_name(self._prefix, Topic.EVENTS)
        with self._lock:
            self._check_open()
            appender = KafkaAppender(self._bootstrap, self._options, name, on_acks, collects=collects)
            self._opened.append(lambda: appender.close(_CLOSE_TIMEOUT_S))
        return appender

    def tail(
        self,
        topic: Topic,
        starts: Mapping[int, int],
        deliver: Callable[[list[Record]], None],
        on_error: Callable[[LogError], None],
        *,
        prompt: bool = False,
    ) -> KafkaTail:
        # Who tails is a service and will send; a new idempotent producer needs half a second until it may.
        self._new_sender(SEND_TIMEOUT_S)
        with self._lock:
            self._check_open()
            tail = KafkaTail(self._bootstrap, self._options, self._prefix, topic, starts, deliver, on_error)
            self._opened.append(tail.close)
        return tail

    def place(
        self,
        group: str,
        on_assigned: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None],
        alive: Callable[[], bool],
        session_timeout_s: float = 1.0,
    ) -> KafkaPlacement:
        name = topic_name(self._prefix, Topic.COMMANDS)
        with self._lock:
            self._check_open()
            placement = KafkaPlacement(
                self._bootstrap, self._options, name, group, on_assigned, on_revoked, alive, session_timeout_s
            )
            self._opened.append(lambda: placement.close(_CLOSE_TIMEOUT_S))
        return placement

    def _check_open(self) -> None:
        if self._closed:
            raise LogError(f"the log (Kafka at {self._bootstrap}) is closed")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, []
            clients: list[_Closable] = list(self._senders.values())
            if self._publisher is not None:
                clients.append(self._publisher)
        for close in reversed(opened):
            close()
        for client in clients:
            client.close()
        self._readers.close()
