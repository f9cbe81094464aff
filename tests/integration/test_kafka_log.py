"""What happens to the log when its broker is frozen, killed, stopped, or fed by others: on a real broker.

Each test has topics of its own on a broker of the module's own, because it is stopped and frozen here.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

import libs.events.kafka as kafka_module
from libs.events.codec import encode_event, stamp_of
from libs.events.kafka import KafkaLog
from libs.events.kafka.appender import KafkaAppender
from libs.events.log import Ack, Entry, LogError, Record, Topic
from libs.events.model import OwnerConfirmed, PartitionClaimed
from libs.events.topics import create_topics
from libs.events.validity import Validity
from tests import servers

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PATIENCE_S = 30.0
Headers = list[tuple[str, str | bytes | None]]


class Seen:
    """Acknowledgements or records as they came, and a way to wait until they satisfy a test."""

    def __init__(self) -> None:
        self.acks: list[Ack] = []
        self.records: list[Record] = []
        self.errors: list[LogError] = []
        self._changed = threading.Condition()

    def take_acks(self, acks: list[Ack]) -> None:
        with self._changed:
            self.acks += acks
            self._changed.notify_all()

    def take_records(self, records: list[Record]) -> None:
        with self._changed:
            self.records += records
            self._changed.notify_all()

    def take_error(self, error: LogError) -> None:
        with self._changed:
            self.errors.append(error)
            self._changed.notify_all()

    def wait(self, until: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(until, patience_s), what


@pytest.fixture
def log(private_kafka: servers.Kafka, private_prefix: str) -> Iterator[KafkaLog]:
    log = KafkaLog(private_kafka.bootstrap, {}, private_prefix, 4)
    # A broker that has just started lets idempotent producers in only after a second or more; a test that counts
    # time-outs must not begin before.
    log.send(Topic.COMMANDS, 0, Entry(None, b"warm"), timeout_s=PATIENCE_S).result(PATIENCE_S)
    yield log
    log.close()


def burst(first: int, count: int, epoch: int = 1) -> list[Entry]:
    return [fact(epoch, n) for n in range(first, first + count)]


def fact(epoch: int, n: int) -> Entry:
    event = PartitionClaimed(owner="test", commands_topic_id="x") if n == 0 else OwnerConfirmed()
    return encode_event(event, partition=0, run_id="", seq=0, epoch=epoch, n=n, at_us=1, cause="owner")


def everything(log: KafkaLog, partition: int = 0, topic: Topic = Topic.EVENTS) -> list[Record]:
    return [record for batch in log.read(topic, partition, 0) for record in batch]


def stamps(records: list[Record]) -> list[tuple[int, int]]:
    found = [stamp_of(record) for record in records]
    return [(stamp.epoch, stamp.n) for stamp in found if stamp is not None]


def impatient(kafka: servers.Kafka, prefix: str, seen: Seen, timeout_s: float = 3) -> KafkaAppender:
    """An appender whose records time out soon, so that a test need not wait five minutes."""
    return KafkaAppender(kafka.bootstrap, {}, f"{prefix}.events", seen.take_acks, message_timeout_s=timeout_s)


@pytest.mark.timeout(120)
def test_a_record_that_timed_out_while_the_broker_was_frozen_may_be_in_the_log(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    """It waits in the broker's socket, beside the client's request for a new epoch of its own: either may be first.

    What must hold of the others holds in every try; that timed out does not mean absent, in one of them.
    """
    tries = [_frozen_once(private_kafka, private_prefix, log, partition) for partition in range(log.partitions)]
    assert any((1, 2) in records for records in tries)


def _frozen_once(kafka: servers.Kafka, prefix: str, log: KafkaLog, partition: int) -> list[tuple[int, int]]:
    """The log after the records of a frozen broker timed out and the next epoch was claimed."""
    seen = Seen()
    appender = impatient(kafka, prefix, seen)
    appender.append(partition, [fact(1, 0), fact(1, 1)])
    seen.wait(lambda: len(seen.acks) == 2, "the records before the freeze")
    kafka.suspend()
    appender.append(partition, burst(2, 3))
    seen.wait(lambda: len(seen.acks) == 5, "an answer for each record while the broker is frozen")
    assert [ack.error is None for ack in seen.acks] == [True, True, False, False, False]
    kafka.resume()
    appender.append(partition, [fact(2, 0)])  # the claim of the next epoch goes through the same appender
    seen.wait(lambda: len(seen.acks) == 6, "the claim after the freeze")
    appender.close(5)
    assert seen.acks[-1].error is None
    records = stamps(everything(log, partition))
    assert records[:2] == [(1, 0), (1, 1)]
    assert records[-1] == (2, 0)
    assert len(records) == len(set(records)), "nothing was sent twice"
    return records


def test_after_an_error_the_rest_of_the_epoch_is_refused_until_a_claim(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    seen = Seen()
    appender = impatient(private_kafka, private_prefix, seen)
    appender.append(0, [fact(1, 0)])
    seen.wait(lambda: len(seen.acks) == 1, "the claim")
    private_kafka.suspend()
    appender.append(0, burst(1, 1))
    seen.wait(lambda: len(seen.acks) == 2, "the time-out")
    assert seen.acks[1].error is not None
    private_kafka.resume()
    appender.append(0, burst(2, 2))
    appender.append(1, [fact(1, 0)])
    seen.wait(lambda: len(seen.acks) == 5, "the refusals, and the other partition's claim")
    refused = [ack for ack in seen.acks if ack.n in (2, 3)]
    assert all(ack.error and "Claim the partition anew" in ack.error for ack in refused)
    assert [ack.error for ack in seen.acks if ack.partition == 1] == [None]
    appender.close(5)
    assert not {(1, 2), (1, 3)} & set(stamps(everything(log)))


def test_a_broker_killed_in_a_burst_costs_nothing_that_was_acknowledged(
    private_kafka: servers.Kafka, log: KafkaLog
) -> None:
    seen = Seen()
    appender = log.open_appender(seen.take_acks)
    appender.append(0, [fact(1, 0)])
    seen.wait(lambda: bool(seen.acks), "the claim")
    for first in range(1, 20_001, 100):
        appender.append(0, burst(first, 100))
        if first == 5001:
            private_kafka.kill()
    private_kafka.start()
    seen.wait(lambda: len(seen.acks) == 20_001, "an answer for every record")
    assert [ack.n for ack in seen.acks] == list(range(20_001)), "acknowledged in order, once each"
    records = everything(log)
    at = {record.offset: stamp_of(record) for record in records}
    for ack in seen.acks:
        if ack.error is None and ack.offset >= 0:
            stamp = at[ack.offset]
            assert stamp is not None
            assert (stamp.epoch, stamp.n) == (ack.epoch, ack.n)
    rule = Validity()
    admitted = [record for record in records if rule.admit(stamp_of(record))]
    assert len(admitted) == rule.n + 1, "readers see one gapless prefix, whatever the outage left behind"


@pytest.mark.timeout(240)
def test_a_hole_in_a_burst_ends_what_readers_see_of_the_epoch(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    """Records behind a timed-out one land (m); readers admit only what stands before the hole.

    Whether a freeze leaves a hole depends on how far the sockets had drained, so it is tried per partition; what
    readers must make of the outcome holds in every try.
    """
    for partition in range(log.partitions):
        there = _frozen_in_a_burst(private_kafka, private_prefix, log, partition)
        if there[-1] == 20_010 and len(there) < 20_011:
            return
    pytest.fail("no freeze left a hole: the second burst landed and the first one did not all")


def _frozen_in_a_burst(private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog, partition: int) -> list[int]:
    """The numbers of the first epoch's records that are in the log."""
    seen = Seen()
    appender = impatient(private_kafka, private_prefix, seen, timeout_s=5)
    appender.append(partition, [fact(1, 0)])
    seen.wait(lambda: len(seen.acks) == 1, "the claim")
    private_kafka.suspend()
    # More than a frozen broker's connection takes: the first part is on its way, the rest waits here.
    bulk = [Entry(e.key, b"x" * 900, e.headers, e.epoch, e.n) for e in burst(1, 20_000)]
    appender.append(partition, bulk)
    threading.Event().wait(4)  # the second burst must be younger than the first one's time-out
    appender.append(partition, burst(20_001, 10))
    seen.wait(lambda: bool(seen.acks[1:]), "the first time-out")
    private_kafka.resume()
    appender.append(partition, [fact(2, 0)])
    seen.wait(lambda: len(seen.acks) == 20_012, "an answer for every record")
    appender.close(5)
    assert {ack.n for ack in seen.acks if ack.error}
    found = [stamp for stamp in map(stamp_of, everything(log, partition)) if stamp is not None]
    there = [stamp.n for stamp in found if stamp.epoch == 1]
    assert there == sorted(set(there)), "in order, nothing twice"
    rule = Validity()
    admitted = [stamp.n for stamp in found if rule.admit(stamp) and stamp.epoch == 1]
    assert admitted == list(range(len(admitted)))
    assert rule.epoch == 2
    assert rule.ignored == len(there) - len(admitted)
    return there


@pytest.mark.timeout(180)
@pytest.mark.alone
def test_a_tail_goes_on_without_gap_or_duplicate_when_the_broker_was_down_for_20_seconds(
    private_kafka: servers.Kafka, log: KafkaLog
) -> None:
    seen = Seen()
    appender = log.open_appender(seen.take_acks)
    tail = log.tail(Topic.EVENTS, {0: 0}, seen.take_records, seen.take_error)
    appender.append(0, [fact(1, 0), *burst(1, 500)])
    seen.wait(lambda: len(seen.records) == 501, "the records before the outage")
    private_kafka.stop()
    appender.append(0, burst(501, 500))
    stopped = threading.Event()
    stopped.wait(20)  # the length of the outage is the point: clients back off, connections age
    private_kafka.start()
    began = time.monotonic()
    appender.append(0, burst(1001, 500))
    seen.wait(lambda: len(seen.records) >= 1501, "the records after the outage")
    assert time.monotonic() - began < 5, "a broker that is back is found within about a second"
    tail.close()
    assert stamps(seen.records) == [(1, n) for n in range(1501)]
    assert [record.offset for record in seen.records] == list(range(1501))
    assert [ack.error for ack in seen.acks if ack.error] == []
    assert seen.errors == []


def test_foreign_claims_and_garbage_between_are_delivered_in_place_and_ignored_by_the_rule(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    seen = Seen()
    appender = log.open_appender(seen.take_acks)
    tail = log.tail(Topic.EVENTS, {0: 0}, seen.take_records, seen.take_error)
    appender.append(0, [fact(1, 0), *burst(1, 2)])
    seen.wait(lambda: len(seen.acks) == 3, "the first owner")
    foreign = Producer({"bootstrap.servers": private_kafka.bootstrap})
    late_claim: Headers = [*fact(1, 0).headers]  # of the same epoch
    valid_claim: Headers = [*fact(2, 0).headers]
    foreign_records: list[tuple[bytes | None, bytes | None, Headers]] = [
        (None, b"\xff\xfe garbage", []),
        (b"run", None, [("ce_epoch", b"one"), ("ce_n", b"2")]),
        (b"run", b"{}", [("ce_epoch", None), ("ce_n", b"3"), ("ce_type", b"flowledger.NodeStarted.1")]),
        (None, b"{}", late_claim),
        (None, b"{}", valid_claim),
    ]
    for key, value, headers in foreign_records:
        foreign.produce(f"{private_prefix}.events", value=value, key=key, headers=headers, partition=0)
    foreign.flush(10)
    appender.append(0, burst(3, 1))  # the old owner, acknowledged although it lost the partition
    seen.wait(lambda: len(seen.acks) == 4 and len(seen.records) == 9, "all nine records")
    tail.close()
    assert [record.offset for record in seen.records] == list(range(9))
    assert [ack.offset for ack in seen.acks] == [0, 1, 2, 8], "the gap tells the old owner to look"
    rule = Validity()
    assert [record.offset for record in seen.records if rule.admit(stamp_of(record))] == [0, 1, 2, 7]
    assert rule.ignored == 5
    assert [record.offset for record in everything(log)] == list(range(9))


def test_a_topic_that_is_deleted_and_made_again_has_another_id_and_its_tail_says_so(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    seen = Seen()
    before = log.topic_id(Topic.EVENTS)
    assert log.topic_id(Topic.EVENTS) == before
    log.send(Topic.EVENTS, 0, fact(1, 0)).result(30)
    tail = log.tail(Topic.EVENTS, {0: 0}, seen.take_records, seen.take_error)
    seen.wait(lambda: len(seen.records) == 1, "the first record")
    admin = AdminClient({"bootstrap.servers": private_kafka.bootstrap})
    for future in admin.delete_topics([f"{private_prefix}.events"], operation_timeout=10).values():
        future.result(10)
    seen.wait(lambda: bool(seen.errors), "the tail reports the missing topic")
    assert "flowledger topics create" in str(seen.errors[0])
    with pytest.raises(LogError, match="flowledger topics create"):
        log.topic_id(Topic.EVENTS)
    with pytest.raises(LogError, match="flowledger topics create"):
        log.bounds(Topic.EVENTS, 0)
    tail.close()
    create_topics(private_kafka.bootstrap, {}, private_prefix, 4)
    assert log.topic_id(Topic.EVENTS) != before


def test_damaged_records_are_an_error_that_names_the_place_and_nothing_behind_them_is_read(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    if not isinstance(private_kafka, servers.LocalKafka):
        pytest.skip("writes into the broker's files, which a container keeps to itself")
    for partition in (1, 2):
        for number in range(30):
            log.send(Topic.COMMANDS, partition, Entry(None, b"value %d" % number)).result(10)
    private_kafka.damage(f"{private_prefix}.commands", 1, b"value 10")
    with pytest.raises(LogError, match=r"commands\[1\]: .*at offset 10 .*CRC"):
        everything(log, 1, Topic.COMMANDS)
    seen = Seen()
    tail = log.tail(Topic.COMMANDS, {1: 0, 2: 0}, seen.take_records, seen.take_error)
    seen.wait(lambda: bool(seen.errors), "the error")
    for partition in (1, 2):
        log.send(Topic.COMMANDS, partition, Entry(None, b"last")).result(10)
    seen.wait(lambda: any(record.value == b"last" for record in seen.records), "the other partition's records")
    time.sleep(0.5)  # what must not come
    tail.close()
    assert [record.offset for record in seen.records if record.partition == 1] == list(range(10))
    assert [record.offset for record in seen.records if record.partition == 2] == list(range(31))
    assert "commands[1]: " in str(seen.errors[0])
    assert "at offset 10 " in str(seen.errors[0])


@pytest.mark.alone
def test_a_stopped_broker_fails_sends_within_their_time(private_kafka: servers.Kafka, log: KafkaLog) -> None:
    log.send(Topic.COMMANDS, 0, Entry(b"k", b"v")).result(30)
    private_kafka.stop()
    began = time.monotonic()
    quick = log.send(Topic.COMMANDS, 0, Entry(b"k", b"v"), timeout_s=0.5)
    usual = log.send(Topic.COMMANDS, 0, Entry(b"k", b"v"))
    with pytest.raises(LogError, match="may be in the log"):
        quick.result(3)
    assert time.monotonic() - began < 1.5
    with pytest.raises(LogError, match="FLOWLEDGER_KAFKA"):
        usual.result(8)
    assert time.monotonic() - began < 6
    log.publish(Topic.CHUNKS, 0, [Entry(None, b"lost")] * 100)
    with pytest.raises(LogError):
        log.bounds(Topic.COMMANDS, 0)
    private_kafka.start()
    assert log.send(Topic.COMMANDS, 0, Entry(b"k", b"w"), timeout_s=PATIENCE_S).result(PATIENCE_S) >= 1


@pytest.mark.alone
def test_closing_with_a_broker_that_is_gone_does_not_hang(private_kafka: servers.Kafka, private_prefix: str) -> None:
    log = KafkaLog(private_kafka.bootstrap, {}, private_prefix, 4)
    seen = Seen()
    appender = log.open_appender(seen.take_acks)
    log.tail(Topic.EVENTS, {0: 0}, seen.take_records, seen.take_error)
    log.place("g", lambda _: None, lambda _: None, lambda: True)
    appender.append(0, [fact(1, 0)])
    seen.wait(lambda: len(seen.records) == 1, "the record")
    private_kafka.kill()
    appender.append(0, burst(1, 10))
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 15
    assert len(seen.acks) == 11
    assert all(ack.error for ack in seen.acks[1:])


# --- placement -------------------------------------------------------------------------------------------------------


def _member(bootstrap: str, prefix: str, told: Connection) -> None:
    """A group member in a process of its own, until it is killed."""
    log = KafkaLog(bootstrap, {}, prefix, 4)
    log.place("executors", lambda parts: told.send(parts), lambda parts: None, lambda: True)
    threading.Event().wait()


class Owned:
    def __init__(self) -> None:
        self.partitions: set[int] = set()
        self.changed = threading.Condition()

    def add(self, partitions: set[int]) -> None:
        with self.changed:
            assert not self.partitions & partitions
            self.partitions |= partitions
            self.changed.notify_all()

    def drop(self, partitions: set[int]) -> None:
        with self.changed:
            self.partitions -= partitions
            self.changed.notify_all()

    def wait_for(self, count: int, patience_s: float = PATIENCE_S) -> float:
        """Seconds until exactly `count` partitions are owned."""
        began = time.monotonic()
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.partitions) == count, patience_s), self.partitions
        return time.monotonic() - began


@pytest.mark.alone
def test_a_killed_members_partitions_are_placed_elsewhere_within_two_seconds(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    mine = Owned()
    log.place("executors", mine.add, mine.drop, lambda: True)
    mine.wait_for(4)
    context = multiprocessing.get_context("spawn")  # a client must not be taken across a fork
    heard, told = context.Pipe(duplex=False)
    other = context.Process(target=_member, args=(private_kafka.bootstrap, private_prefix, told), daemon=True)
    other.start()
    try:
        assert heard.poll(PATIENCE_S)
        assert len(heard.recv()) == 2
        mine.wait_for(2)
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        assert mine.wait_for(4) < 2
    finally:
        other.kill()
        other.join()
        heard.close()
        told.close()


def test_a_member_that_is_not_alive_leaves_and_comes_back(private_kafka: servers.Kafka, log: KafkaLog) -> None:
    mine, alive = Owned(), threading.Event()
    alive.set()
    log.place("executors", mine.add, mine.drop, alive.is_set)
    mine.wait_for(4)
    alive.clear()
    mine.wait_for(0)
    alive.set()
    mine.wait_for(4)


@pytest.mark.alone
def test_a_member_that_leaves_hands_over_at_once(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    mine, others = Owned(), Owned()
    log.place("executors", mine.add, mine.drop, lambda: True)
    mine.wait_for(4)
    second = KafkaLog(private_kafka.bootstrap, {}, private_prefix, 4)
    placement = second.place("executors", others.add, others.drop, lambda: True)
    others.wait_for(2)
    mine.wait_for(2)
    placement.close(5)
    assert mine.wait_for(4) < 2
    assert others.partitions == set()
    second.close()


@pytest.mark.alone
def test_partitions_that_go_to_a_new_member_are_kept_until_it_can_take_them(
    private_kafka: servers.Kafka, private_prefix: str, log: KafkaLog
) -> None:
    """Given up at the first word of the rebalance, they would belong to nobody for most of a second."""
    given_up: list[float] = []
    taken: list[float] = []
    mine = Owned()
    log.place("executors", mine.add, lambda _: given_up.append(time.monotonic()), lambda: True)
    mine.wait_for(4)
    second = KafkaLog(private_kafka.bootstrap, {}, private_prefix, 4)
    others = Owned()

    def take(partitions: set[int]) -> None:
        taken.append(time.monotonic())
        others.add(partitions)

    second.place("executors", take, others.drop, lambda: True)
    others.wait_for(2)
    assert given_up[0] < taken[0] < given_up[0] + 0.6  # 0.93 s otherwise, 0.07 on a quiet machine
    second.close()


def test_a_client_that_failed_to_describe_a_topic_is_not_asked_again(
    log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for a controller that it will never see."""
    asked: list[object] = []
    real = kafka_module.describe_topic

    def stuck(admin: AdminClient, name: str, bootstrap: str, timeout_s: float) -> object:
        asked.append(admin)
        if admin is asked[0]:
            raise LogError("Failed while waiting for controller")
        return real(admin, name, bootstrap, timeout_s)

    monkeypatch.setattr(kafka_module, "describe_topic", stuck)
    with pytest.raises(LogError, match="controller"):
        log.topic_id(Topic.EVENTS)
    assert log.topic_id(Topic.EVENTS) == log.topic_id(Topic.EVENTS)
    assert len(set(map(id, asked))) == 2
