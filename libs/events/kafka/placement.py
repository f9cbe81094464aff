"""Which partitions this process should own: a member of a consumer group that reads nothing.

The group only places; safety comes from claims in the log. The classic protocol, because its session time-out is the
member's to choose (the newer one's is a broker setting of at least 45 s). Partitions stay paused.
"""

import logging
import threading
from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from libs.events.kafka.clients import consumer_settings

_logger = logging.getLogger(__name__)

_POLL_S = 0.05
_MAX_POLL_INTERVAL_MS = 6000
_WAKE_MS = 50

_KEEP_S = 0.85
"""How long partitions that go to another member are kept before they are given up.

An incremental rebalance takes two rounds: one gives up, the next one places. The client joins at most once a second, so
what is given up at once stands still until that second is over (0.93 s measured); kept for most of it, it works on.
"""


class KafkaPlacement:
    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, str],
        topic: str,
        group: str,
        on_assigned: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None],
        alive: Callable[[], bool],
        session_timeout_s: float,
    ) -> None:
        self._topic, self._alive = topic, alive
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        session_ms = int(session_timeout_s * 1000)
        self._settings = consumer_settings(
            bootstrap,
            options,
            group_id=group,
            group_protocol="classic",
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=session_ms,
            # A rebalance is learned of by a heartbeat's answer: the interval is the tail of a fail-over.
            heartbeat_interval_ms=max(50, session_ms // 10),
            # The client looks at whether a heartbeat is due only when its main loop wakes, and a paused consumer gives
            # it no reason to: gaps of 350 to 650 ms were measured with an interval of 200. Statistics, which nobody
            # reads, make it wake (1 % of a core).
            statistics_interval_ms=_WAKE_MS,
            # Heartbeats go on while Python hangs; this is what takes the partitions away then.
            max_poll_interval_ms=max(_MAX_POLL_INTERVAL_MS, session_ms),
        )
        self._member = False
        self._closed = threading.Event()
        self._consumer = Consumer(self._settings)
        self._thread = threading.Thread(target=self._run, name=f"place {group}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._join_or_leave()
                message = self._consumer.poll(_POLL_S)
                error = message.error() if message is not None else None
                if error is not None:
                    _logger.warning("placement_error", extra={"topic": self._topic, "error": error.str()})
        except Exception:  # last stop of this thread; without a member the group gives the partitions to others
            _logger.exception("placement_ended", extra={"topic": self._topic})
        finally:
            self._consumer.close()  # leaves the group; the revocation is told from within

    def _join_or_leave(self) -> None:
        """Leaving at once beats waiting for the poll interval: others own the partitions seconds earlier."""
        alive = self._alive()
        if alive and not self._member:
            self._consumer.subscribe([self._topic], on_assign=self._assign, on_revoke=self._move, on_lost=self._revoke)
        elif not alive and self._member:
            _logger.warning("placement_left", extra={"topic": self._topic})
            self._consumer.unsubscribe()
        self._member = alive

    def _assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # An explicit offset saves looking for a committed one; nothing is ever fetched from it.
        mine = [TopicPartition(place.topic, place.partition, 0) for place in places]
        consumer.incremental_assign(mine)
        consumer.pause(mine)
        if mine:
            self._on_assigned({place.partition for place in mine})

    def _move(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if places and self._member:
            self._closed.wait(_KEEP_S)
        self._revoke(consumer, places)

    def _revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        try:
            consumer.incremental_unassign(places)
        except KafkaException as error:  # a lost assignment is gone already
            _logger.info("placement_unassign", extra={"topic": self._topic, "error": str(error)})
        if places:
            self._on_revoked({place.partition for place in places})

    def close(self, timeout_s: float) -> None:
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
