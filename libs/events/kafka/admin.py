"""Topics of a cluster: create, correct, describe. The specification is `libs.events.topics`."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from libs.events.kafka.clients import admin_settings, failure
from libs.events.log import LogError
from libs.events.topics import SeenTopic, TopicSpec, compare

T = TypeVar("T")

_TOO_FEW = KafkaError.INVALID_REPLICATION_FACTOR
"""Too few brokers for the replicas: also while those that start, or were away, are not let in again."""

_PASSING = (_TOO_FEW, KafkaError._TIMED_OUT, KafkaError.NOT_CONTROLLER)  # noqa: SLF001 (the client's own name)
_SETTLE_S = 10.0
"""How long too few brokers may become enough."""

_SPREAD_S = 5.0
"""How long brokers may take to hear of a topic that another one of them knows already."""

_REQUEST_S = 3.0
_AGAIN_S = 0.1


def open_admin(bootstrap: str, options: Mapping[str, str]) -> AdminClient:
    """A client for questions about topics; connects when asked. Raises LogError when an option is none of the client's.

    The first client of every process: what it refuses, all others would.
    """
    try:
        return AdminClient(admin_settings(bootstrap, options))
    except KafkaException as error:
        seen = error.args[0]
        why = seen.str() if isinstance(seen, KafkaError) else str(error)
        raise LogError(f"FLOWLEDGER_KAFKA_OPTIONS, for Kafka at {bootstrap}: {why}") from error


def seen_topics(
    bootstrap: str, options: Mapping[str, str], names: Sequence[str], timeout_s: float
) -> dict[str, SeenTopic | None]:
    """What the cluster has under each name. Raises LogError."""
    admin = open_admin(bootstrap, options)
    return _Cluster(admin, bootstrap, timeout_s).seen(names)


def apply_specs(
    bootstrap: str, options: Mapping[str, str], prefix: str, specs: Sequence[TopicSpec], timeout_s: float
) -> list[str]:
    """Create missing topics and set differing settings; one line per change. Raises LogError."""
    cluster = _Cluster(open_admin(bootstrap, options), bootstrap, timeout_s)
    done = [f"{name}: created" for name in cluster.create(prefix, specs)]
    cluster.wait_for_leaders([spec.name(prefix) for spec in specs])
    seen = cluster.seen([spec.name(prefix) for spec in specs])
    for spec in specs:
        differing = {p.setting for p in compare(spec, seen[spec.name(prefix)], prefix)} & set(spec.config)
        if differing:
            cluster.set_config(spec.name(prefix), {name: spec.config[name] for name in differing})
            done.append(f"{spec.name(prefix)}: set {', '.join(sorted(differing))}")
    return done


def describe_topic(admin: AdminClient, name: str, bootstrap: str, timeout_s: float) -> Any:
    """The client's description (id, partitions) of one topic. Raises LogError when it is missing."""
    answer = admin.describe_topics(TopicCollection([name]), request_timeout=timeout_s)
    try:
        return answer[name].result(timeout_s + 1)
    except (KafkaException, TimeoutError) as error:
        raise _translated(error, f"topic {name}", bootstrap) from error


class _Cluster:
    """One round of questions and changes that share one deadline."""

    def __init__(self, admin: AdminClient, bootstrap: str, timeout_s: float) -> None:
        self._admin, self._bootstrap = admin, bootstrap
        self._deadline = time.monotonic() + timeout_s

    def _left(self) -> float:
        return max(0.1, self._deadline - time.monotonic())

    def _result(self, future: "Future[T]", what: str) -> T:
        try:
            return future.result(self._left() + 1)
        except (KafkaException, TimeoutError) as error:
            raise _translated(error, what, self._bootstrap) from error

    def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except KafkaException as error:
            raise _translated(error, what, self._bootstrap) from error

    def seen(self, names: Sequence[str]) -> dict[str, SeenTopic | None]:
        settled = min(self._deadline, time.monotonic() + _SPREAD_S)
        while True:
            metadata = self._call("list of topics", lambda: self._admin.list_topics(timeout=self._left()))
            there = {name: metadata.topics[name].partitions for name in names if name in metadata.topics}
            configs = self._configs(list(there))
            if len(configs) == len(there) or time.monotonic() > settled:
                break
            time.sleep(_AGAIN_S)
        return {
            name: SeenTopic(
                partitions=len(there[name]),
                replication=min((len(part.replicas) for part in there[name].values()), default=0),
                config=configs[name],
            )
            if name in configs
            else None
            for name in names
        }

    def _configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Settings by topic, without topics that the broker which was asked does not know."""
        if not names:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        answers = self._admin.describe_configs(resources, request_timeout=self._left())
        found: dict[str, dict[str, str]] = {}
        for resource, future in answers.items():
            try:
                entries = future.result(self._left() + 1)
            except (KafkaException, TimeoutError) as error:
                if _code(error) == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise _translated(error, f"settings of {resource.name}", self._bootstrap) from error
            found[resource.name] = {entry.name: str(entry.value) for entry in entries.values()}
        return found

    def create(self, prefix: str, specs: Sequence[TopicSpec]) -> list[str]:
        """Names of the topics that were missing."""
        wanted = {
            spec.name(prefix): NewTopic(spec.name(prefix), spec.partitions, spec.replication, config=dict(spec.config))
            for spec in specs
        }
        created: list[str] = []
        settled = min(self._deadline, time.monotonic() + _SETTLE_S)
        while wanted:
            # A request that waits for a controller does not look again who it is: a short one, and the next asks anew.
            patience_s = min(_REQUEST_S, self._left())
            answers = self._admin.create_topics(list(wanted.values()), request_timeout=patience_s)
            for name, future in answers.items():
                try:
                    future.result(patience_s + 1)
                    created.append(name)
                except (KafkaException, TimeoutError) as error:
                    code = _code(error)
                    if code in _PASSING and time.monotonic() < (settled if code == _TOO_FEW else self._deadline):
                        continue
                    if code != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise _translated(error, f"creating {name}", self._bootstrap) from error
                del wanted[name]
            if wanted:
                self._call("list of topics", lambda: self._admin.list_topics(timeout=self._left()))
                time.sleep(_AGAIN_S)
        return created

    def set_config(self, name: str, config: Mapping[str, str]) -> None:
        entries = [
            ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
            for setting, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        (future,) = self._admin.incremental_alter_configs([resource], request_timeout=self._left()).values()
        self._result(future, f"settings of {name}")

    def wait_for_leaders(self, names: Sequence[str]) -> None:
        """A topic that was just created is not writable before its partitions have leaders."""
        while True:
            metadata = self._call("list of topics", lambda: self._admin.list_topics(timeout=self._left()))
            missing = [
                name
                for name in names
                if name not in metadata.topics
                or not metadata.topics[name].partitions
                or any(part.leader < 0 for part in metadata.topics[name].partitions.values())
            ]
            if not missing:
                return
            if time.monotonic() > self._deadline:
                raise LogError(f"no leader for {', '.join(missing)} (Kafka at {self._bootstrap}). Are all brokers up?")
            time.sleep(0.02)  # the cluster offers no way to wait for it


def _code(error: BaseException) -> int | None:
    seen = error.args[0] if error.args else None
    return seen.code() if isinstance(seen, KafkaError) else None


def _translated(error: KafkaException | TimeoutError, what: str, bootstrap: str) -> LogError:
    if isinstance(error, KafkaException):
        return failure(error, what, bootstrap)
    return LogError(f"{what}: no answer from Kafka at {bootstrap}. Start the broker or correct FLOWLEDGER_KAFKA")
