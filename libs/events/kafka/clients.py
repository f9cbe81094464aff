"""Settings of the Kafka clients, each with its reason, and the texts of their errors.

What a person passes (`FLOWLEDGER_KAFKA_OPTIONS`: SASL, TLS, ...) comes first; what correctness rests on comes last and
cannot be overridden.
"""

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from libs.events.log import LogDenied, LogError, LogTruncated

_log = logging.getLogger(__name__)

_WARN_AGAIN_S = 10.0
CREATE_TOPICS = "Run `flowledger topics create`"

_SHARED = {
    "client.id": "flowledger",
    # What the client writes to stderr by itself comes to `error_cb` as well, many times a second while a broker is
    # away; `ErrorLog` passes on what a person needs.
    "log_level": "2",
    "socket.keepalive.enable": "true",
    "socket.nagle.disable": "true",
    # A broker that comes back is found within a second; the default waits up to 10 s. Half the first value is the
    # pace at which an assigned consumer really tries (measured): 50 gave 40 attempts a second for ever.
    "reconnect.backoff.ms": "250",
    "reconnect.backoff.max.ms": "1000",
    "allow.auto.create.topics": "false",
    "log.connection.close": "false",
    # A missing topic is named before a send gives up, yet a topic just created may take a moment to be known.
    "topic.metadata.propagation.max.ms": "2500",
    "topic.metadata.refresh.interval.ms": "30000",
}

_DURABLE = {
    "enable.idempotence": "true",
    "acks": "all",
    # Group commit comes from our own batching; lingering would only add to every acknowledgement.
    "linger.ms": "0",
    # Drain time of a leader that no longer answers: see faults row 3.
    "socket.timeout.ms": "10000",
}

_READER = {
    "check.crcs": "true",
    "auto.offset.reset": "error",  # `latest`, the default, silently skips truncated data
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    # There are no transactions here; read_committed (the default) could be frozen by anybody's hung one.
    "isolation.level": "read_uncommitted",
    "fetch.wait.max.ms": "500",
    "fetch.min.bytes": "1",
    # Prefetch is 64 MiB per consumer by default; a full queue is looked at again after 10 ms instead of a second.
    "queued.max.messages.kbytes": "8192",
    "queued.min.messages": "10000",
    "fetch.queue.backoff.ms": "10",
    "fetch.error.backoff.ms": "50",
    "fetch.message.max.bytes": "1048576",
    "enable.partition.eof": "false",
    # Placement is by our own group member; assigned readers need a group id only because the client insists.
    "group.id": "flowledger.unused",
}

EVENTS_TIMEOUT_S = 300.0
"""How long an event may wait for its acknowledgement: long, because a time-out ends the epoch.

The option `message.timeout.ms` replaces it, for events only: senders must answer in time whatever it says.
"""
SEND_TIMEOUT_S = 4.0
"""Longest wait of `send`; its producer gives up then, so that an answer can say "unknown" in time."""

MAX_REQUEST_BYTES = 17 << 20
"""Above the largest topic limit (definitions), so that the broker's limit per topic is the one that counts."""


def producer_settings(bootstrap: str, options: Mapping[str, str], *, timeout_s: float, lossy: bool = False) -> Any:
    own: dict[str, object] = {
        **_DURABLE,
        "message.timeout.ms": int(timeout_s * 1000),
        "message.max.bytes": MAX_REQUEST_BYTES,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
    }
    if lossy:
        own |= {"enable.idempotence": "false", "acks": "1", "linger.ms": "5"}
        own |= {"queue.buffering.max.kbytes": 16 * 1024, "message.max.bytes": 1 << 20}
    return _settings(bootstrap, options, own)


def events_timeout_s(options: Mapping[str, str]) -> float:
    """How long an event may wait for its acknowledgement. Raises LogError."""
    given = options.get("message.timeout.ms", f"{EVENTS_TIMEOUT_S * 1000:.0f}")
    if not given.isdecimal() or int(given) == 0:
        raise LogError(f"FLOWLEDGER_KAFKA_OPTIONS: message.timeout.ms is a number of milliseconds, not {given!r}")
    return int(given) / 1000


def consumer_settings(bootstrap: str, options: Mapping[str, str], **own: object) -> Any:
    named = {name.replace("_", "."): value for name, value in own.items()}
    return _settings(bootstrap, options, _READER | named)


def admin_settings(bootstrap: str, options: Mapping[str, str]) -> Any:
    return _settings(bootstrap, options, {})


def _settings(bootstrap: str, options: Mapping[str, str], own: Mapping[str, object]) -> dict[str, object]:
    errors = ErrorLog(bootstrap)
    return {**_SHARED, "error_cb": errors, **options, **own, "bootstrap.servers": bootstrap}


class ErrorLog:
    """Warns of what the client reports, each kind at most every 10 s: it repeats itself until it is healed."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._warned: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._warned.get(error.code(), -math.inf) >= _WARN_AGAIN_S:
            self._warned[error.code()] = now
            _log.warning("kafka_client_error", extra={"kafka": self._bootstrap, "error": error.str()})


def failure(error: KafkaError | KafkaException, what: str, bootstrap: str) -> LogError:
    """The LogError of a client's error: `what` (names the topic), what was seen, and the next step."""
    seen = error.args[0] if isinstance(error, KafkaException) else error
    if not isinstance(seen, KafkaError):
        return LogError(f"{what}: {error} (Kafka at {bootstrap})")
    if seen.code() in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):  # noqa: SLF001
        return LogTruncated(f"{what}: records that were asked for are gone: {seen.str()}. Rebuild from a checkpoint")
    kind = LogDenied if seen.code() in _DENIED else LogError
    return kind(f"{what}: {seen.str()} (Kafka at {bootstrap}). {_next_step(seen)}")


def _next_step(seen: KafkaError) -> str:
    if seen.code() in _MISSING:
        return CREATE_TOPICS
    if seen.code() in _UNREACHABLE:
        return "Start the broker or correct FLOWLEDGER_KAFKA; after a broker outage this heals by itself"
    if seen.code() in _DENIED:
        return "Give this user its rights again, or restart with the credentials of now in FLOWLEDGER_KAFKA_OPTIONS"
    if seen.code() in _TOO_LARGE:
        return "Make the record smaller; `flowledger topics check` shows the topics' limits"
    return "See `flowledger topics check`"


_MISSING = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 (the client's own way to name its local errors)
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
}
_UNREACHABLE = {
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._MSG_TIMED_OUT,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError.REQUEST_TIMED_OUT,
}
_DENIED = {
    KafkaError._AUTHENTICATION,  # noqa: SLF001
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
