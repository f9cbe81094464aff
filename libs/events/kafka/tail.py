"""A reader of new records: one thread that owns one consumer, fed with partitions by a queue of commands."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from libs.events.kafka.clients import consumer_settings, failure
from libs.events.kafka.reader import heals, poll_batch, to_record
from libs.events.log import LogDenied, LogError, Record, Topic
from libs.events.topics import topic_name

_logger = logging.getLogger(__name__)

# The consumer cannot be woken, so this bounds how long a command (add, pause, ...) waits; a record never waits for it.
_POLL_S = 0.01
_BATCH = 1000


class KafkaTail:
    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, str],
        prefix: str,
        topic: Topic,
        starts: Mapping[int, int],
        deliver: Callable[[list[Record]], None],
        on_error: Callable[[LogError], None],
    ) -> None:
        self._bootstrap, self._topic, self._name = bootstrap, topic, topic_name(prefix, topic)
        self._deliver, self._on_error = deliver, on_error
        # A partition that is added waits for the fetch under way; 20 ms of long poll bound that. It costs 50 empty
        # fetches a second, which is the price of a hand-over that is not felt.
        self._settings = consumer_settings(bootstrap, options, fetch_wait_max_ms=20)
        self._log_error = self._settings["error_cb"]
        self._settings["error_cb"] = self._client_error
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._reading: set[int] = set()
        self._reported: set[int] = set()  # partitions whose error was passed on, until they deliver again
        self._closed = threading.Event()
        self._consumer = Consumer(self._settings)
        if starts:
            self._commands.put(lambda: self._start(dict(starts)))
        self._thread = threading.Thread(target=self._run, name=f"tail {self._name}", daemon=True)
        self._thread.start()

    def add(self, partition: int, offset: int) -> None:
        self._commands.put(lambda: self._start({partition: offset}))

    def remove(self, partition: int) -> None:
        self._commands.put(lambda: self._stop(partition))

    def pause(self, partition: int) -> None:
        self._commands.put(lambda: self._if_read(partition, self._consumer.pause))

    def resume(self, partition: int) -> None:
        self._commands.put(lambda: self._if_read(partition, self._consumer.resume))

    def close(self) -> None:
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._obey()
                messages = poll_batch(self._consumer, _BATCH, _POLL_S)
                if messages:
                    self._hand_over(messages)
        except Exception as error:  # last stop of this thread: whoever reads must learn that nothing more will come
            _logger.exception("tail_ended", extra={"topic": self._name})
            self._on_error(LogError(f"{self._name}: reading ended: {error!r}. Restart the process"))
        finally:
            self._consumer.close()

    def _obey(self) -> None:
        while not self._commands.empty():
            try:
                self._commands.get()()
            except KafkaException as error:
                self._on_error(failure(error, self._name, self._bootstrap))

    def _start(self, starts: Mapping[int, int]) -> None:
        for partition in starts.keys() & self._reading:
            self._stop(partition)
        self._consumer.incremental_assign([TopicPartition(self._name, p, offset) for p, offset in starts.items()])
        # The client remembers a pause across assignments.
        self._consumer.resume([TopicPartition(self._name, p) for p in starts])
        self._reading |= starts.keys()
        self._reported -= starts.keys()

    def _stop(self, partition: int) -> None:
        if partition in self._reading:
            self._reading.discard(partition)
            self._consumer.incremental_unassign([TopicPartition(self._name, partition)])

    def _if_read(self, partition: int, call: Callable[[list[TopicPartition]], None]) -> None:
        if partition in self._reading:
            call([TopicPartition(self._name, partition)])

    def _hand_over(self, messages: list[Message]) -> None:
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(to_record(self._topic, message))
            else:
                self._report(error, message.partition())
        if records:
            if self._reported:
                self._reported -= {record.partition for record in records}
            self._deliver(records)

    def _report(self, error: KafkaError, partition: int | None) -> None:
        """Pass on what does not heal, once per partition; a refusal whenever the client tells of it."""
        if heals(error):
            return
        numbers = {partition} if partition is not None and partition >= 0 else set(self._reading)
        if numbers <= self._reported:
            return
        place = f"{self._name}[{partition}]" if partition is not None and partition >= 0 else self._name
        told = failure(error, place, self._bootstrap)
        if not isinstance(told, LogDenied):
            self._reported |= numbers
        self._on_error(told)

    def _client_error(self, error: KafkaError) -> None:
        """A missing topic or a refused login comes here, not with the messages; so does what heals."""
        self._log_error(error)
        self._report(error, None)
