"""What the embedded log promises beyond the log port: one writer, readers beside it, kill -9, a full disk."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest

from libs.events.local_tail import PACE_S
from libs.events.log import Ack, AppendRefused, Entry, Log, LogError, Record, Topic
from libs.events.sqlite import SqliteLog, SqliteStore, pack_headers, unpack_headers
from tests.contract.test_log import PATIENCE_S, Inbox, append, entry, everything, fail, numbers

Open = Callable[..., SqliteLog]


@pytest.fixture
def open_it(tmp_path: Path) -> Iterator[Open]:
    opened: list[SqliteLog] = []

    def open_and_note(partitions: int = 1, *, read_only: bool = False) -> SqliteLog:
        opened.append(SqliteLog(tmp_path, partitions, read_only))
        return opened[-1]

    yield open_and_note
    for log in opened:
        log.close()


def is_a_log(log: SqliteLog) -> Log:
    """Checked by mypy: the adapter has the port's signatures."""
    return log


# --- sizes ---


def test_the_files_beside_the_log_stay_small_however_much_is_written(open_it: Open, tmp_path: Path) -> None:
    """SQLite moves its write-ahead log into the file as it grows; only a reader that stays could keep it from that."""
    log = open_it()
    reader = open_it(read_only=True)
    largest = 0
    acks = Inbox[Ack]()
    appender = log.open_appender(acks.put)
    for first in range(0, 6_000, 100):
        appender.append(0, [entry(n, "x" * 5_000) for n in range(first, first + 100)])
        acks.wait_for(first + 100)
        largest = max(largest, (tmp_path / "log.db-wal").stat().st_size)
        assert sum(len(batch) for batch in reader.read(Topic.EVENTS, 0, first)) == 100
    appender.close(PATIENCE_S)
    assert (tmp_path / "log.db").stat().st_size > 20_000_000
    assert largest < 10_000_000


# --- who writes ------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_writes(open_it: Open, tmp_path: Path) -> None:
    first = open_it()
    with pytest.raises(LogError) as refusal:
        open_it()
    assert str(tmp_path) in str(refusal.value)
    assert f"pid {os.getpid()}" in str(refusal.value)
    append(first, 0, 1)


def test_after_the_writer_closed_another_may_write(open_it: Open) -> None:
    open_it().close()
    append(open_it(), 0, 1)


def test_another_partition_count_is_refused_and_the_right_one_named(open_it: Open) -> None:
    open_it(2).close()
    with pytest.raises(LogError, match="partitions=2"):
        open_it(3)
    assert open_it(2).partitions == 2
    assert open_it(read_only=True).partitions == 2


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="file"):
        SqliteLog(tmp_path / "file" / "log")


def test_a_file_that_is_no_database_is_an_error_and_does_not_keep_the_lock(open_it: Open, tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"not a database, but long enough to be looked at by SQLite" * 100)
    for _ in range(2):
        with pytest.raises(LogError, match=r"log\.db"):
            open_it()


def test_a_damaged_page_is_an_error_that_names_the_file(open_it: Open, tmp_path: Path) -> None:
    log = open_it()
    for number in range(200):
        log.send(Topic.EVENTS, 0, entry(number)).result(10)
    log.close()
    file = tmp_path / "log.db"
    whole = file.read_bytes()
    pages = range(4096 * 2, len(whole), 4096)
    assert len(pages) > 3
    refused = 0
    for at in pages:
        file.write_bytes(whole[:at] + b"\xff" * 4096 + whole[at + 4096 :])
        try:
            with closing(SqliteLog(tmp_path, read_only=True)) as damaged:
                found = sum(len(batch) for batch in damaged.read(Topic.EVENTS, 0, 0))
            assert found == 200
        except LogError as error:
            assert "log.db" in str(error)  # noqa: PT017  # a page of a table that is not read may be damaged unseen
            refused += 1
    assert refused


def test_what_is_appended_after_closing_is_refused(open_it: Open) -> None:
    log = open_it()
    appender = log.open_appender(lambda acks: None)
    appender.close(1)
    with pytest.raises(AppendRefused):
        appender.append(0, [entry(1)])
    other = log.open_appender(lambda acks: None)
    log.close()
    with pytest.raises(AppendRefused):
        other.append(0, [entry(1)])
    with pytest.raises(LogError, match="closed"):
        log.send(Topic.COMMANDS, 0, entry(1))
    log.publish(Topic.CHUNKS, 0, [entry(1)])


def test_a_partition_that_is_not_there_is_an_error(open_it: Open) -> None:
    log = open_it()
    with pytest.raises(LogError, match="no such partition"):
        log.bounds(Topic.EVENTS, 1)
    with pytest.raises(LogError, match="no such partition"):
        log.open_appender(lambda acks: None).append(1, [entry(1)])


# --- readers beside the writer ---------------------------------------------------------------------------------------


def test_a_reader_sees_what_another_process_writes(open_it: Open) -> None:
    writer = open_it()
    append(writer, 0, 3)
    reader = open_it(read_only=True)
    assert numbers(everything(reader, 0)) == [0, 1, 2]
    inbox = Inbox[Record]()
    tail = reader.tail(Topic.EVENTS, {0: 1}, inbox.put, fail)
    append(writer, 0, 3, first=3)
    assert numbers(inbox.wait_for(5)) == [1, 2, 3, 4, 5]
    assert reader.bounds(Topic.EVENTS, 0) == (0, 6)
    assert reader.topic_id(Topic.EVENTS) == writer.topic_id(Topic.EVENTS)
    tail.close()


def test_a_reader_may_read_when_nobody_writes(open_it: Open) -> None:
    writer = open_it()
    append(writer, 0, 3)
    writer.close()
    reader = open_it(read_only=True)
    assert numbers(everything(reader, 0)) == [0, 1, 2]


def test_a_reader_cannot_write(open_it: Open) -> None:
    open_it()
    reader = open_it(read_only=True)
    with pytest.raises(LogError, match="read-only"):
        reader.open_appender(lambda acks: None).append(0, [entry(1)])
    with pytest.raises(LogError, match="read-only"):
        reader.send(Topic.COMMANDS, 0, entry(1)).result(PATIENCE_S)
    with pytest.raises(LogError, match="read-only"):
        reader.place("executors", lambda some: None, lambda some: None, lambda: True)


def test_a_folder_without_a_log_cannot_be_read(open_it: Open, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="holds no log"):
        open_it(read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_people_can_look_at_the_records(open_it: Open, tmp_path: Path) -> None:
    log = open_it(2)
    append(log, 1, 2)
    log.close()
    connection = sqlite3.connect(tmp_path / "log.db")
    rows = connection.execute("SELECT topic, partition, offset, key, value FROM records").fetchall()
    connection.close()
    assert rows == [("events", 1, 0, "run", "0"), ("events", 1, 1, "run", "1")]


def test_chunks_are_not_kept(open_it: Open) -> None:
    log = open_it()
    inbox = Inbox[Record]()
    log.tail(Topic.CHUNKS, {0: 0}, inbox.put, fail)
    log.publish(Topic.CHUNKS, 0, [entry(1), entry(2)])
    inbox.wait_for(2)
    assert log.bounds(Topic.CHUNKS, 0) == (2, 2)
    late = Inbox[Record]()
    log.tail(Topic.CHUNKS, {0: 0}, late.put, fail)
    log.publish(Topic.CHUNKS, 0, [entry(3)])
    assert numbers(late.wait_for(1)) == [3]


def test_time_stamps_do_not_fall_when_the_clock_does(open_it: Open, tmp_path: Path) -> None:
    log = open_it()
    append(log, 0, 1)
    log.close()
    connection = sqlite3.connect(tmp_path / "log.db")
    connection.execute("UPDATE events SET timestamp_ms = timestamp_ms + 3600000")
    connection.commit()
    connection.close()
    log = open_it()
    append(log, 0, 1)
    first, second = everything(log, 0)
    assert second.timestamp_ms >= first.timestamp_ms


# --- crashes ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from libs.events.log import Entry
from libs.events.sqlite import SqliteLog

log = SqliteLog(Path(sys.argv[1]))
def show(acks):
    sys.stdout.write("".join(f"{ack.n} {ack.offset}\\n" for ack in acks))
    sys.stdout.flush()
appender = log.open_appender(show)
n = 0
while True:
    if n < 3000:
        appender.append(0, [Entry(b"run", b"%d" % i + b"x" * 300, [], 1, i) for i in range(n, n + 3)])
        n += 3
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(open_it: Open, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(500)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    acknowledged = [tuple(map(int, line.split())) for line in lines if line.endswith("\n") and " " in line]
    log = open_it()
    records = everything(log, 0)
    assert [record.offset for record in records] == list(range(len(records)))
    values = {record.offset: int((record.value or b"").rstrip(b"x")) for record in records}
    assert all(values[offset] == n for n, offset in acknowledged)
    log.close()
    connection = sqlite3.connect(tmp_path / "log.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


FULL = """
import json, resource, sys, threading
from pathlib import Path
from libs.events.log import Entry, Topic
from libs.events.sqlite import SqliteLog

def append(count, size):
    got, done = [], threading.Event()
    def on_acks(acks):
        got.extend(acks)
        if len(got) == count:
            done.set()
    appender = log.open_appender(on_acks)
    appender.append(0, [Entry(b"run", bytes(size), [], 1, n) for n in range(count)])
    assert done.wait(20)
    appender.close(20)
    return [[ack.offset, ack.error] for ack in got]

log = SqliteLog(Path(sys.argv[1]))
seen = []
log.tail(Topic.EVENTS, {0: 0}, lambda some: seen.extend(r.offset for r in some), lambda error: None)
before = append(2, 100)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
full = append(3, 500_000)
failed = log.send(Topic.COMMANDS, 0, Entry(None, bytes(500_000))).exception(20)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
after = append(2, 500_000)
sent = log.send(Topic.COMMANDS, 0, Entry(None, bytes(500_000))).result(20)
log.close()
print(json.dumps({"before": before, "full": full, "failed": repr(failed), "after": after, "sent": sent, "seen": seen}))
"""


@pytest.mark.slow
def test_a_full_disk_fails_appends_and_later_ones_work_again(open_it: Open, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=60,
    )
    got = json.loads(ran.stdout)
    assert got["before"] == [[0, None], [1, None]]
    assert [offset for offset, _ in got["full"]] == [-1, -1, -1]
    assert all("log.db" in error for _, error in got["full"])
    assert "LogError" in got["failed"]
    assert got["after"] == [[2, None], [3, None]]
    assert got["sent"] == 0
    assert got["seen"][:2] == [0, 1]
    assert [record.offset for record in everything(open_it(), 0)] == [0, 1, 2, 3]


def test_a_commit_that_fails_is_acknowledged_as_unknown_and_the_next_one_works(open_it: Open, tmp_path: Path) -> None:
    log = open_it()
    append(log, 0, 2)
    connection = sqlite3.connect(tmp_path / "log.db")
    connection.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    acks = append(log, 0, 3, first=2)
    assert [(ack.n, ack.offset) for ack in acks] == [(2, -1), (3, -1), (4, -1)]
    assert all("disk is full" in (ack.error or "") for ack in acks)
    connection.execute("DROP TRIGGER full")
    connection.close()
    assert [ack.offset for ack in append(log, 0, 1, first=5)] == [2]
    assert numbers(everything(log, 0)) == [0, 1, 5]


def test_a_send_that_is_not_durable_in_time_fails(open_it: Open, tmp_path: Path) -> None:
    log = open_it()
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")  # the writer waits behind it, as behind a disk that hangs
    future = log.send(Topic.COMMANDS, 0, entry(1), timeout_s=0.05)
    with pytest.raises(LogError, match="not durable after"):
        future.result(PATIENCE_S)
    connection.execute("ROLLBACK")
    connection.close()
    assert log.send(Topic.COMMANDS, 0, entry(2)).result(PATIENCE_S) == 1
    assert numbers(everything(log, 0, Topic.COMMANDS)) == [1, 2]


def test_all_that_waits_while_the_disk_is_busy_goes_into_one_commit(open_it: Open, tmp_path: Path) -> None:
    log = open_it()
    batches: list[int] = []
    done = threading.Event()

    def on_acks(acks: list[Ack]) -> None:
        batches.append(len(acks))
        if sum(batches) == 100:
            done.set()

    appender = log.open_appender(on_acks)
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    for n in range(100):
        appender.append(0, [entry(n)])
    connection.execute("ROLLBACK")
    connection.close()
    assert done.wait(PATIENCE_S)
    assert len(batches) <= 3
    assert numbers(everything(log, 0)) == list(range(100))


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("a", b"")],
        [("", b"x")],
        [("", b""), ("b", b"\0" * 254)],
        [("a", b"x" * 255), ("b", b"y" * 256), ("c", b"")],
        [("größe", bytes(range(256)) * 300), ("z", b"\n\0")],
    ],
)
def test_headers_come_back(headers: list[tuple[str, bytes]]) -> None:
    assert unpack_headers(pack_headers(headers)) == dict(headers)


@pytest.mark.parametrize("name", ["a\nb", "a\0"])
def test_header_names_that_cannot_be_kept_are_refused(name: str) -> None:
    with pytest.raises(LogError, match="header names"):
        pack_headers([(name, b"")])


def test_an_entry_that_cannot_be_kept_fails_its_commit_and_not_the_writer(open_it: Open) -> None:
    log = open_it()
    with pytest.raises(LogError, match="header names"):
        log.send(Topic.COMMANDS, 0, Entry(b"k", b"v", [("a\nb", b"")])).result(PATIENCE_S)
    assert log.send(Topic.COMMANDS, 0, entry(1)).result(PATIENCE_S) == 0


def test_the_writer_itself_turns_a_prompt_tail_that_has_nothing_else_to_do(open_it: Open) -> None:
    log = open_it()
    threads: list[str] = []
    arrived: SimpleQueue[list[Record]] = SimpleQueue()

    def deliver(records: list[Record]) -> None:
        threads.append(threading.current_thread().name)
        arrived.put(records)

    tail = log.tail(Topic.COMMANDS, {0: 0}, deliver, lambda error: None, prompt=True)
    for n in range(50):
        log.send(Topic.COMMANDS, 0, Entry(None, b"%d" % n))
        assert [record.value for record in arrived.get(timeout=20)] == [b"%d" % n]
        time.sleep(2 * PACE_S)  # deliveries that follow closer are gathered by the tail's thread
    tail.close()
    assert "log-writer" in threads


def test_a_slow_reader_of_another_tail_does_not_keep_a_prompt_one(open_it: Open) -> None:
    log = open_it()
    release, arrived = threading.Event(), SimpleQueue[list[Record]]()
    slow = log.tail(Topic.COMMANDS, {0: 0}, lambda _: release.wait(20) and None, lambda error: None)
    tail = log.tail(Topic.COMMANDS, {0: 0}, arrived.put, lambda error: None, prompt=True)
    for n in range(5):
        log.send(Topic.COMMANDS, 0, Entry(None, b"%d" % n)).result(20)
        arrived.get(timeout=20)
    release.set()
    slow.close()
    tail.close()


def test_what_keeps_it_from_writing_is_said_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteLog(tmp_path)) as log:
        assert log.problem() is None
        with monkeypatch.context() as full:
            full.setattr(SqliteStore, "append", _refuse)
            full.setattr(os, "fsync", _no_space)
            with pytest.raises(LogError):
                log.send(Topic.COMMANDS, 0, Entry(b"k", b"v")).result(10)
            assert log.problem() == f"nothing can be written: {tmp_path}: No space left on device. Make room there"
        assert log.problem() is None, "room was made, and nobody has written since"
        log.send(Topic.COMMANDS, 0, Entry(b"k", b"v")).result(10)
        assert log.problem() is None


def _refuse(*_: object) -> None:
    raise LogError("database or disk is full")


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
