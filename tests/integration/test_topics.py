"""Topics on a real broker: created, checked and corrected as specified."""

import time
from contextlib import closing

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from libs.events.kafka import KafkaLog
from libs.events.log import Entry, LogError, Topic
from libs.events.registry import (
    AppCreated,
    AppDeleted,
    DocumentStored,
    Fact,
    VersionPublished,
    encode_fact,
    read_registry,
)
from libs.events.sealing import Vault
from libs.events.topics import check_topics, create_topics, warn_of_deletion
from tests import servers

pytestmark = pytest.mark.kafka


def _entry(setting: str, value: str) -> ConfigEntry:
    return ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)


def _set(bootstrap: str, topic: str, setting: str, value: str) -> None:
    _change(bootstrap, ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[_entry(setting, value)]))


def _change(bootstrap: str, resource: ConfigResource) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    (future,) = admin.incremental_alter_configs([resource]).values()
    future.result(30)


def test_created_topics_pass_the_check_and_creating_again_changes_nothing(
    kafka_server: servers.Kafka, kafka_prefix: str
) -> None:
    assert check_topics(kafka_server.bootstrap, {}, kafka_prefix, 4) == []
    assert create_topics(kafka_server.bootstrap, {}, kafka_prefix, 4) == []


def test_a_changed_setting_is_named_and_creating_again_corrects_it(
    kafka_server: servers.Kafka, kafka_prefix: str
) -> None:
    topic = f"{kafka_prefix}.events"
    _set(kafka_server.bootstrap, topic, "retention.ms", "604800000")
    deadline = time.monotonic() + 10
    while not (problems := check_topics(kafka_server.bootstrap, {}, kafka_prefix, 4)):  # the broker learns it late
        assert time.monotonic() < deadline
    (problem,) = problems
    assert str(problem) == f"{topic}: retention.ms: expected -1, seen 604800000. Run `flowledger topics create`"
    assert create_topics(kafka_server.bootstrap, {}, kafka_prefix, 4) == [f"{topic}: set retention.ms"]
    assert check_topics(kafka_server.bootstrap, {}, kafka_prefix, 4) == []


def test_a_setting_that_would_delete_the_truth_is_said(
    kafka_server: servers.Kafka, kafka_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_deletion(kafka_server.bootstrap, {}, kafka_prefix, 4)
    assert caplog.records == []
    _set(kafka_server.bootstrap, f"{kafka_prefix}.events", "retention.ms", "604800000")
    _set(kafka_server.bootstrap, f"{kafka_prefix}.definitions", "cleanup.policy", "delete")
    deadline = time.monotonic() + 10
    while len(caplog.records) != 2:  # the broker learns it late
        assert time.monotonic() < deadline
        caplog.clear()
        warn_of_deletion(kafka_server.bootstrap, {}, kafka_prefix, 4)
    said = sorted(vars(record)["problem"] for record in caplog.records)
    assert "definitions: cleanup.policy" in said[0]
    assert "events: retention.ms" in said[1]
    caplog.clear()
    warn_of_deletion("127.0.0.1:1", {}, kafka_prefix, 4)
    assert caplog.records == []


def test_another_number_of_partitions_is_a_problem_that_creating_cannot_heal(
    kafka_server: servers.Kafka, kafka_prefix: str
) -> None:
    problems = check_topics(kafka_server.bootstrap, {}, kafka_prefix, 8)
    assert {(p.setting, p.expected, p.seen) for p in problems} == {("partitions", "8", "4")}
    with pytest.raises(LogError, match="FLOWLEDGER_PARTITIONS=4"):
        create_topics(kafka_server.bootstrap, {}, kafka_prefix, 8)


def test_missing_topics_are_all_named_with_the_next_step(kafka_server: servers.Kafka) -> None:
    problems = check_topics(kafka_server.bootstrap, {}, "nowhere", 4)
    assert len(problems) == 7
    assert all("flowledger topics create" in str(problem) for problem in problems)


def test_an_unreachable_broker_is_named() -> None:
    with pytest.raises(LogError, match=r"127\.0\.0\.1:1"):
        check_topics("127.0.0.1:1", {}, "any", 4, timeout_s=0.5)


def test_who_believes_in_fewer_or_more_partitions_than_hold_runs_is_refused(
    kafka_server: servers.Kafka, kafka_prefix: str
) -> None:
    def checked(partitions: int) -> None:
        with closing(KafkaLog(kafka_server.bootstrap, {}, kafka_prefix, partitions)) as log:
            log.check_partitions()

    checked(4)
    checked(3)  # nothing is in the fourth: somebody prepares a wider layout
    with pytest.raises(LogError, match="has 4 partitions, and FLOWLEDGER_PARTITIONS says 16"):
        checked(16)
    with closing(KafkaLog(kafka_server.bootstrap, {}, kafka_prefix, 4)) as log:
        log.send(Topic.COMMANDS, 3, Entry(None, b"a run's start"), timeout_s=10).result(10)
    checked(4)
    with pytest.raises(LogError, match="Set FLOWLEDGER_PARTITIONS=4"):
        checked(3)


def test_an_option_that_the_client_does_not_know_is_named(kafka_server: servers.Kafka, kafka_prefix: str) -> None:
    options = {"no.such.option": "1"}
    with (
        closing(KafkaLog(kafka_server.bootstrap, options, kafka_prefix, 4)) as log,
        pytest.raises(LogError, match=r"FLOWLEDGER_KAFKA_OPTIONS.*no\.such\.option"),
    ):
        log.check_partitions()
    with pytest.raises(LogError, match="FLOWLEDGER_KAFKA_OPTIONS"):
        check_topics(kafka_server.bootstrap, options, kafka_prefix, 4)


def test_compaction_takes_no_document_that_a_version_ever_had(
    private_kafka: servers.Kafka, private_prefix: str
) -> None:
    """Two versions of an app that is deleted then: their runs are still read, so their documents must be there."""
    bootstrap, topic = private_kafka.bootstrap, f"{private_prefix}.definitions"
    (broker,) = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=30).brokers
    cleaner = [_entry("log.cleaner.backoff.ms", "50")]
    _change(bootstrap, ConfigResource(ResourceType.BROKER, str(broker), incremental_configs=cleaner))
    for setting in ("segment.ms=100", "min.cleanable.dirty.ratio=0.0", "delete.retention.ms=0"):
        _set(bootstrap, topic, *setting.split("="))
    facts: list[Fact] = [AppCreated(app_id="a", name="A", created_at_us=1)]
    for number in ("1", "2"):
        facts.append(DocumentStored(digest=f"d{number}", document=f"document {number}"))
        facts.append(
            VersionPublished(
                app_id="a", workflow_id=f"w{number}", version=number, digest=f"d{number}", published_at_us=2
            )
        )
    facts.append(AppDeleted(app_id="a", deleted_at_us=3))
    with closing(KafkaLog(bootstrap, {}, private_prefix, 4)) as log:
        for fact in facts:
            log.send(Topic.DEFINITIONS, 0, encode_fact(fact)).result(30)
        for _ in range(2):  # what is written twice is there once when compaction was here
            log.send(Topic.DEFINITIONS, 0, Entry(b"filler", b"x")).result(30)
        deadline = time.monotonic() + 60
        while _keys(log).count(b"filler") > 1:
            assert time.monotonic() < deadline, "the topic was not compacted"
            time.sleep(0.3)
            log.send(Topic.DEFINITIONS, 0, Entry(b"next", b"x")).result(30)  # ends a segment that has become old
        registry = read_registry(log, Vault(lambda: None))
    assert [registry.document(digest) for digest in ("d1", "d2")] == ["document 1", "document 2"]


def _keys(log: KafkaLog) -> list[bytes | None]:
    return [record.key for batch in log.read(Topic.DEFINITIONS, 0, 0) for record in batch]
