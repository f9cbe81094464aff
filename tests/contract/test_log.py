"""What `libs.events.log` promises, for every log: the fixtures `log` (fresh, 4 partitions) and `reopen` (the same data
again; a test closes `log` first) come from `conftest.py`, once per adapter."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Generic, TypeVar

import pytest

from libs.events.log import Ack, Entry, Log, LogError, LogTruncated, Record, Topic

PATIENCE_S = 20.0
either = pytest.mark.parametrize("prompt", [False, True], ids=["threaded", "prompt"])
Reopen = Callable[[], Log]
T = TypeVar("T")


class Inbox(Generic[T]):
    """Collects what a callback is given and lets the test wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[T] = []

    def put(self, items: Sequence[T]) -> None:
        with self._changed:
            self._items += items
            self._changed.notify_all()

    def put_one(self, item: T) -> None:
        self.put([item])

    def wait_for(self, count: int) -> list[T]:
        """All items, when there are at least `count`."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self._items) >= count, PATIENCE_S)
            assert arrived, f"{len(self._items)} of {count} arrived within {PATIENCE_S:g} s"
            return list(self._items)

    def items(self) -> list[T]:
        with self._changed:
            return list(self._items)


def entry(n: int, text: str = "") -> Entry:
    return Entry(key=b"run", value=f"{n}{text}".encode(), headers=[("ce_n", b"%d" % n)], epoch=1, n=n)


def append(log: Log, partition: int, count: int, first: int = 0) -> list[Ack]:
    """Append entries numbered from `first` and wait for their acknowledgements."""
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    appender.append(partition, [entry(n) for n in range(first, first + count)])
    appender.close(PATIENCE_S)
    return acks.wait_for(count)


def everything(log: Log, partition: int, topic: Topic = Topic.EVENTS) -> list[Record]:
    first, _ = log.bounds(topic, partition)
    return [record for batch in log.read(topic, partition, first) for record in batch]


def numbers(records: list[Record]) -> list[int]:
    return [int(record.value or b"-1") for record in records]


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


def fail(error: LogError) -> None:
    raise AssertionError(f"the tail reported {error}")


# --- appending -------------------------------------------------------------------------------------------------------


def test_acknowledgements_come_once_in_append_order_with_contiguous_offsets(log: Log) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    for n in range(200):
        appender.append(1, [entry(2 * n), entry(2 * n + 1)])
    appender.close(PATIENCE_S)
    got = acks.wait_for(400)
    assert [ack.n for ack in got] == list(range(400))
    assert {(ack.partition, ack.epoch, ack.error) for ack in got} == {(1, 1, None)}
    assert [ack.offset for ack in got] == list(range(400))


def test_what_was_acknowledged_is_read_at_its_offset(log: Log) -> None:
    acks = append(log, 2, 50)
    records = {record.offset: record for record in everything(log, 2)}
    assert [int(records[ack.offset].value or b"") for ack in acks] == [ack.n for ack in acks]


def test_an_append_of_nothing_is_acknowledged_by_nothing(log: Log) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    appender.append(0, [])
    appender.append(0, [entry(1)])
    appender.close(PATIENCE_S)
    assert [ack.n for ack in acks.wait_for(1)] == [1]


def test_ten_thousand_entries_in_one_append_stay_together_in_order(log: Log) -> None:
    acks = append(log, 0, 10_000)
    assert [ack.n for ack in acks] == list(range(10_000))
    assert numbers(everything(log, 0)) == list(range(10_000))


def test_appenders_on_several_threads_keep_their_order_in_every_partition(log: Log) -> None:
    inboxes = [Inbox[Ack]() for _ in range(4)]

    def work(partition: int) -> None:
        appender = log.open_appender(inboxes[partition].put)
        for n in range(100):
            appender.append(partition, [entry(n)])
        appender.close(PATIENCE_S)

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for partition, inbox in enumerate(inboxes):
        acks = inbox.wait_for(100)
        assert [(ack.partition, ack.n, ack.offset) for ack in acks] == [(partition, n, n) for n in range(100)]
        assert numbers(everything(log, partition)) == list(range(100))


def test_one_appender_writes_to_several_partitions(log: Log) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    for n in range(60):
        appender.append(n % 4, [entry(n)])
    appender.close(PATIENCE_S)
    got = acks.wait_for(60)
    for partition in range(4):
        assert [ack.n for ack in got if ack.partition == partition] == list(range(partition, 60, 4))
        assert numbers(everything(log, partition)) == list(range(partition, 60, 4))


class Threads(Inbox[Ack]):
    """An inbox that knows on which thread it was filled."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def put(self, items: Sequence[Ack]) -> None:
        self.seen.add(threading.get_ident())
        super().put(items)


def test_who_collects_is_acknowledged_on_the_own_thread(log: Log) -> None:
    acks = Threads()
    appender = log.open_appender(acks.put, collects=True)
    deadline = time.monotonic() + PATIENCE_S
    for n in count():
        appender.append(n % 2, [entry(n)])
        appender.collect(PATIENCE_S)
        assert [ack.n for ack in acks.wait_for(n + 1)] == list(range(n + 1))
        if n >= 19 and threading.get_ident() in acks.seen:
            break
        assert time.monotonic() < deadline, "the appender's own thread is always at work, with one record at a time"
        time.sleep(0.01 if n >= 19 else 0)
    appender.close(PATIENCE_S)
    assert numbers(everything(log, 0)) == list(range(0, n + 1, 2))


def test_what_was_not_waited_for_is_acknowledged_all_the_same(log: Log) -> None:
    acks = Threads()
    appender = log.open_appender(acks.put, collects=True)
    for n in range(100):
        appender.append(0, [entry(n)])
        if n % 3 == 0:
            appender.collect(0)
    appender.collect(0)
    assert [ack.offset for ack in acks.wait_for(100)] == list(range(100))
    assert threading.get_ident() not in acks.seen
    appender.close(PATIENCE_S)


def test_closing_an_appender_collects_what_nobody_has_collected(log: Log) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put, collects=True)
    appender.append(0, [entry(n) for n in range(2000)])
    appender.close(PATIENCE_S)
    assert [ack.n for ack in acks.items()] == list(range(2000))


def test_who_does_not_take_its_acknowledgements_keeps_nothing_from_others(log: Log) -> None:
    inbox, refused = Inbox[Record](), threading.Event()

    def refuse(acks: Sequence[Ack]) -> None:
        refused.set()
        raise ValueError("the owner's own mistake")

    tail = log.tail(Topic.EVENTS, {0: 0}, inbox.put, fail)
    appender = log.open_appender(refuse, collects=True)
    appender.append(0, [entry(1)])
    appender.collect(PATIENCE_S)
    assert refused.wait(PATIENCE_S)
    append(log, 0, 1, first=2)
    assert numbers(inbox.wait_for(2)) == [1, 2]
    appender.close(PATIENCE_S)
    tail.close()


def test_collecting_without_anything_under_way_returns_at_once(log: Log) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put, collects=True)
    appender.collect(3600)
    appender.close(PATIENCE_S)
    assert acks.items() == []


def test_closing_an_appender_waits_for_its_acknowledgements(log: Log) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    appender.append(0, [entry(n) for n in range(2000)])
    appender.close(PATIENCE_S)
    assert len(acks.items()) == 2000
    appender.close(PATIENCE_S)


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (None, None, ()),
        (b"", b"", ()),
        (b"key", None, [("a", b"")]),
        (b"\x00\xff", b"\xff\x00\n", [("bin", bytes(range(256))), ("long", b"x" * 70_000), ("", b"unnamed")]),
        ("schlüssel".encode(), b"{}", [("größe", "groß".encode())]),
    ],
)
def test_key_value_and_headers_come_back_as_they_went_in(
    log: Log, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> None:
    log.send(Topic.COMMANDS, 3, Entry(key, value, headers)).result(PATIENCE_S)
    (record,) = everything(log, 3, Topic.COMMANDS)
    assert (record.key, record.value, record.headers) == (key, value, dict(headers))
    assert (record.topic, record.partition, record.offset) == (Topic.COMMANDS, 3, 0)
    assert record.timestamp_ms > 1_700_000_000_000


def test_a_sent_record_is_readable_at_the_offset_of_its_future(log: Log) -> None:
    futures = [log.send(Topic.DEFINITIONS, 0, entry(n)) for n in range(20)]
    places = [future.result(PATIENCE_S) for future in futures]
    assert places == list(range(20))
    assert numbers(everything(log, 0, Topic.DEFINITIONS)) == list(range(20))


def test_topics_do_not_share_offsets(log: Log) -> None:
    for topic in (Topic.COMMANDS, Topic.BLOBS, Topic.INDEX, Topic.DEFINITIONS, Topic.DEAD_LETTERS):
        assert log.send(topic, 0, entry(7)).result(PATIENCE_S) == 0
    assert log.bounds(Topic.EVENTS, 0) == (0, 0)
    assert log.bounds(Topic.COMMANDS, 0) == (0, 1)


def test_a_record_of_half_a_megabyte_passes(log: Log) -> None:
    value = bytes(range(256)) * 2048
    log.send(Topic.BLOBS, 1, Entry(b"run", value)).result(PATIENCE_S)
    assert everything(log, 1, Topic.BLOBS)[0].value == value


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_fresh_log_is_empty(log: Log) -> None:
    assert log.partitions == 4
    for partition in range(4):
        assert log.bounds(Topic.EVENTS, partition) == (0, 0)
        assert list(log.read(Topic.EVENTS, partition, 0)) == []


def test_read_gives_batches_of_the_window_and_nothing_else(log: Log) -> None:
    append(log, 0, 25)
    batches = list(log.read(Topic.EVENTS, 0, 3, 17, batch=5))
    assert [offset for batch in batches for offset in offsets(batch)] == list(range(3, 17))
    assert all(0 < len(batch) <= 5 for batch in batches)


def test_read_without_stop_ends_at_the_end_as_of_the_call(log: Log) -> None:
    append(log, 0, 10)
    reading = log.read(Topic.EVENTS, 0, 0)
    append(log, 0, 10, first=10)
    assert numbers([record for batch in reading for record in batch]) == list(range(10))


def test_reading_from_the_end_gives_nothing(log: Log) -> None:
    append(log, 0, 4)
    assert list(log.read(Topic.EVENTS, 0, 4)) == []
    assert list(log.read(Topic.EVENTS, 0, 2, 2)) == []


@pytest.mark.parametrize("start", [5, 1000])
def test_reading_from_behind_the_end_says_that_the_log_lost_records(log: Log, start: int) -> None:
    append(log, 0, 4)
    with pytest.raises(LogTruncated):
        list(log.read(Topic.EVENTS, 0, start))


def test_offset_at_finds_the_first_record_that_is_not_older(log: Log) -> None:
    for n in range(3):
        append(log, 0, 2, first=n)
        threading.Event().wait(0.005)  # time stamps count milliseconds
    stamps = [record.timestamp_ms for record in everything(log, 0)]
    assert stamps == sorted(stamps)
    for stamp in stamps:
        assert log.offset_at(Topic.EVENTS, 0, stamp) == stamps.index(stamp)
    assert log.offset_at(Topic.EVENTS, 0, 0) == 0
    assert log.offset_at(Topic.EVENTS, 0, stamps[-1] + 1) == 6
    assert log.offset_at(Topic.EVENTS, 1, 0) == 0


def test_topic_ids_are_stable(log: Log, reopen: Reopen) -> None:
    before = {topic: log.topic_id(topic) for topic in Topic}
    assert all(before.values())
    log.close()
    again = reopen()
    assert {topic: again.topic_id(topic) for topic in Topic} == before


def test_records_are_there_after_reopening(log: Log, reopen: Reopen) -> None:
    append(log, 2, 30)
    before = everything(log, 2)
    log.close()
    again = reopen()
    assert again.bounds(Topic.EVENTS, 2) == (0, 30)
    assert everything(again, 2) == before
    assert [ack.offset for ack in append(again, 2, 3, first=30)] == [30, 31, 32]


# --- tails -----------------------------------------------------------------------------------------------------------


@either
def test_a_tail_gives_what_was_there_and_what_comes(log: Log, prompt: bool) -> None:
    append(log, 0, 20)
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {0: 5}, inbox.put, fail, prompt=prompt)
    inbox.wait_for(15)
    append(log, 0, 20, first=20)
    assert numbers(inbox.wait_for(35)) == list(range(5, 40))
    tail.close()


def test_a_tail_gives_records_as_read_does(log: Log) -> None:
    inbox = Inbox[Record]()
    tail = log.tail(Topic.COMMANDS, {1: 0}, inbox.put, fail)
    log.send(Topic.COMMANDS, 1, Entry(None, b"", [("a", b"\x00")])).result(PATIENCE_S)
    log.send(Topic.COMMANDS, 1, Entry(b"", None, ())).result(PATIENCE_S)
    assert inbox.wait_for(2) == everything(log, 1, Topic.COMMANDS)
    tail.close()


@either
def test_a_tail_has_no_gap_and_no_duplicate_while_others_write(log: Log, prompt: bool) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    inbox = Inbox[Record]()
    tail = None
    for n in range(1500):
        appender.append(n % 4, [entry(n)])
        if n == 300:
            tail = log.tail(Topic.EVENTS, dict.fromkeys(range(4), 0), inbox.put, fail, prompt=prompt)
    appender.close(PATIENCE_S)
    got = inbox.wait_for(1500)
    for partition in range(4):
        its = [record for record in got if record.partition == partition]
        assert offsets(its) == list(range(375))
        assert numbers(its) == list(range(partition, 1500, 4))
    assert tail is not None
    tail.close()


def test_a_tail_gives_only_what_is_durable(log: Log) -> None:
    early: list[int] = []
    inbox = Inbox[Record]()

    def check(records: list[Record]) -> None:
        end = log.bounds(Topic.EVENTS, 0)[1]
        early.extend(record.offset for record in records if record.offset >= end)
        inbox.put(records)

    tail = log.tail(Topic.EVENTS, {0: 0}, check, fail)
    append(log, 0, 300)
    inbox.wait_for(300)
    assert early == []
    tail.close()


def test_two_tails_read_independently(log: Log) -> None:
    append(log, 0, 10)
    first, second = Inbox[Record](), Inbox[Record]()
    one = log.tail(Topic.EVENTS, {0: 0}, first.put, fail)
    two = log.tail(Topic.EVENTS, {0: 8}, second.put, fail)
    append(log, 0, 10, first=10)
    assert numbers(first.wait_for(20)) == list(range(20))
    assert numbers(second.wait_for(12)) == list(range(8, 20))
    one.close()
    two.close()


def test_a_partition_added_later_is_read_from_its_offset(log: Log) -> None:
    append(log, 0, 5)
    append(log, 3, 5, first=100)
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {}, inbox.put, fail)
    tail.add(3, 2)
    assert numbers(inbox.wait_for(3)) == [102, 103, 104]
    tail.add(0, 4)
    assert numbers(inbox.wait_for(4))[3:] == [4]
    tail.close()


def test_a_partition_added_again_is_read_from_there_again(log: Log) -> None:
    append(log, 0, 6)
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {0: 0}, inbox.put, fail)
    inbox.wait_for(6)
    tail.add(0, 4)
    assert numbers(inbox.wait_for(8)) == [0, 1, 2, 3, 4, 5, 4, 5]
    append(log, 0, 1, first=6)
    assert numbers(inbox.wait_for(9))[-1] == 6
    tail.close()


def test_a_removed_partition_is_silent_until_it_is_added_again(log: Log) -> None:
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {0: 0, 1: 0}, inbox.put, fail)
    append(log, 0, 3)
    inbox.wait_for(3)
    tail.remove(0)
    append(log, 0, 3, first=3)
    append(log, 1, 1, first=50)
    assert numbers(inbox.wait_for(4)) == [0, 1, 2, 50]
    tail.add(0, 3)
    assert numbers(inbox.wait_for(7)) == [0, 1, 2, 50, 3, 4, 5]
    tail.close()


def test_a_paused_partition_goes_on_where_it_stopped(log: Log) -> None:
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {0: 0, 1: 0}, inbox.put, fail)
    append(log, 0, 3)
    inbox.wait_for(3)
    tail.pause(0)
    append(log, 0, 2500, first=3)
    append(log, 1, 1, first=9000)
    assert numbers(inbox.wait_for(4)) == [0, 1, 2, 9000]
    tail.resume(0)
    got = inbox.wait_for(2504)
    assert numbers([record for record in got if record.partition == 0]) == list(range(2503))
    tail.close()


def test_a_slow_consumer_gets_everything_and_does_not_hold_up_the_writer(log: Log) -> None:
    may_go_on = threading.Event()
    inbox = Inbox[Record]()

    def slow(records: list[Record]) -> None:
        may_go_on.wait(PATIENCE_S)
        inbox.put(records)

    tail = log.tail(Topic.EVENTS, {0: 0}, slow, fail)
    acks = append(log, 0, 5000)
    assert len(acks) == 5000
    may_go_on.set()
    assert numbers(inbox.wait_for(5000)) == list(range(5000))
    tail.close()


@either
def test_a_closed_tail_is_silent_and_closes_again(log: Log, prompt: bool) -> None:
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {0: 0}, inbox.put, fail, prompt=prompt)
    append(log, 0, 3)
    inbox.wait_for(3)
    tail.close()
    append(log, 0, 3)
    tail.close()
    assert len(inbox.items()) == 3


def test_a_tail_from_behind_the_end_reports_that_the_log_lost_records(log: Log) -> None:
    append(log, 0, 3)
    errors = Inbox[LogError]()
    inbox = Inbox[Record]()
    tail = log.tail(Topic.EVENTS, {0: 10}, inbox.put, errors.put_one)
    (error,) = errors.wait_for(1)
    assert isinstance(error, LogTruncated)
    tail.close()
    assert inbox.items() == []


@either
def test_published_chunks_reach_a_live_tail_in_order(log: Log, prompt: bool) -> None:
    inbox = Inbox[Record]()
    _, end = log.bounds(Topic.CHUNKS, 2)
    tail = log.tail(Topic.CHUNKS, {2: end}, inbox.put, fail, prompt=prompt)
    log.publish(Topic.CHUNKS, 2, [])
    for n in range(50):
        log.publish(Topic.CHUNKS, 2, [entry(2 * n), entry(2 * n + 1)])
    assert numbers(inbox.wait_for(100)) == list(range(100))
    assert offsets(inbox.items()) == list(range(end, end + 100))
    tail.close()


# --- placement and closing -------------------------------------------------------------------------------------------


def test_the_only_member_of_a_group_gets_every_partition(log: Log) -> None:
    assigned = Inbox[int]()
    revoked = Inbox[int]()
    placement = log.place(
        "executors", lambda some: assigned.put(sorted(some)), lambda some: revoked.put(sorted(some)), lambda: True
    )
    assert sorted(assigned.wait_for(4)) == [0, 1, 2, 3]
    placement.close(PATIENCE_S)
    placement.close(PATIENCE_S)


def test_a_log_closes_twice_and_with_a_tail_and_an_appender_open(log: Log) -> None:
    inbox = Inbox[Record]()
    log.tail(Topic.EVENTS, {0: 0}, inbox.put, fail)
    append(log, 0, 1)
    inbox.wait_for(1)
    log.open_appender(lambda acks: None).append(0, [entry(1)])
    log.close()
    log.close()


def test_what_was_appended_before_closing_is_acknowledged_or_unknown_but_never_both(log: Log, reopen: Reopen) -> None:
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    appender.append(0, [entry(n) for n in range(500)])
    log.close()
    got = acks.items()
    assert len(got) == len({ack.n for ack in got})
    there = set(numbers(everything(reopen(), 0)))
    assert {ack.n for ack in got if ack.error is None} <= there
