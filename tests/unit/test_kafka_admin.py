"""Creating topics on a cluster that is not ready yet, with a client that answers as one did that was frozen for 3 s."""

from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from libs.events.kafka import admin
from libs.events.log import LogError
from libs.events.topics import topic_specs

SPECS = topic_specs(4, 1)
NAMES = [spec.name("p") for spec in SPECS]
NO_CONTROLLER = KafkaError(KafkaError._TIMED_OUT, "Failed while waiting for controller")  # noqa: SLF001
FENCED = KafkaError(KafkaError.INVALID_REPLICATION_FACTOR, "All brokers are currently fenced")
UNKNOWN = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "unknown")
THERE = KafkaError(KafkaError.TOPIC_ALREADY_EXISTS, "there")


class Cluster:
    """Answers each round of requests with the next of `rounds`: an error for some of the names, None for the others."""

    def __init__(self, rounds: list[dict[str, KafkaError]]) -> None:
        self.rounds = rounds
        self.asked: list[list[str]] = []
        self.looked = 0
        self.there: list[str] = []
        self.described = 0

    def create_topics(self, topics: Sequence[Any], *, request_timeout: float) -> dict[str, Future[None]]:
        names = [topic.topic for topic in topics]
        self.asked.append(names)
        answers = {}
        errors = self.rounds[min(len(self.asked), len(self.rounds)) - 1]
        for name in names:
            answers[name] = future = Future[None]()
            if name in errors:
                future.set_exception(KafkaException(errors[name]))
            else:
                future.set_result(None)
        return answers

    def list_topics(self, *, timeout: float) -> Any:
        self.looked += 1
        partition = SimpleNamespace(replicas=[1], leader=1)
        return SimpleNamespace(topics={name: SimpleNamespace(partitions={0: partition}) for name in self.there})

    def describe_configs(self, resources: Sequence[Any], *, request_timeout: float) -> dict[Any, Future[Any]]:
        """Each time one topic more is known to the broker that is asked."""
        self.described += 1
        answers = {}
        for number, resource in enumerate(resources):
            answers[resource] = future = Future[Any]()
            if number < self.described:
                future.set_result({"a": SimpleNamespace(name="a", value=1)})
            else:
                future.set_exception(KafkaException(UNKNOWN))
        return answers


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_AGAIN_S", 0.0)


def create(cluster: Cluster, timeout_s: float = 30) -> list[str]:
    return admin._Cluster(cluster, "broker:1", timeout_s).create("p", SPECS)  # type: ignore[arg-type]  # noqa: SLF001


@pytest.mark.parametrize("error", [NO_CONTROLLER, FENCED])
def test_a_cluster_that_is_not_ready_is_asked_again_after_a_look_who_is_there(error: KafkaError) -> None:
    cluster = Cluster([dict.fromkeys(NAMES, error), {NAMES[1]: error, NAMES[2]: THERE}, {}])
    assert sorted(create(cluster)) == sorted(set(NAMES) - {NAMES[2]})
    assert cluster.asked == [NAMES, NAMES, [NAMES[1]]]
    assert cluster.looked == 2


def test_what_was_created_although_the_request_timed_out_is_there_and_not_called_created() -> None:
    cluster = Cluster([dict.fromkeys(NAMES, NO_CONTROLLER), dict.fromkeys(NAMES, THERE)])
    assert create(cluster) == []


# In the round in which time is over, the topic that is named is the one whose answer was looked at then.


def test_too_few_brokers_are_an_error_when_they_stay_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_SETTLE_S", 0.05)
    with pytest.raises(LogError, match=r"creating p\.[\w-]+: .*fenced"):
        create(Cluster([dict.fromkeys(NAMES, FENCED)]))


def test_no_controller_is_an_error_at_the_end_of_the_time() -> None:
    with pytest.raises(LogError, match=r"creating p\.[\w-]+: .*controller"):
        create(Cluster([dict.fromkeys(NAMES, NO_CONTROLLER)]), timeout_s=0.05)


def test_a_topic_that_a_broker_has_not_heard_of_yet_is_asked_for_again() -> None:
    cluster = Cluster([])
    cluster.there = NAMES[:3]
    seen = admin._Cluster(cluster, "broker:1", 30).seen(NAMES[:4])  # type: ignore[arg-type]  # noqa: SLF001
    assert cluster.described == 3
    assert [topic and topic.config for topic in seen.values()] == [{"a": "1"}, {"a": "1"}, {"a": "1"}, None]


def test_a_topic_that_no_broker_hears_of_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_SPREAD_S", 0.0)
    cluster = Cluster([])
    cluster.there = NAMES[:2]
    seen = admin._Cluster(cluster, "broker:1", 30).seen(NAMES[:2])  # type: ignore[arg-type]  # noqa: SLF001
    assert [topic is None for topic in seen.values()] == [False, True]


def test_another_error_is_raised_at_once() -> None:
    cluster = Cluster([{NAMES[0]: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "no")}])
    with pytest.raises(LogError, match=r"creating p\.commands"):
        create(cluster)
    assert len(cluster.asked) == 1
