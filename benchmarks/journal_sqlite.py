"""How fast is the embedded journal, and how near is it to its limit?

The limit: a bare SQLite file, one commit with fsync after the other, on one thread. The journal: writers on an asyncio
loop, each appends one entry and waits for its acknowledgement, which crosses back from the writer thread.

    python -m benchmarks.journal_sqlite [--seconds 3] [--folder DIR]
"""

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvloop

from libs.events.log import Ack, Entry
from libs.events.sqlite import SqliteLog

VALUE = b'{"type":"NodeSucceeded","node_id":"llm","outputs":{"text":"' + b"x" * 230 + b'"}}'
KEY = b"0190a3c5-9f3e-7000-8123-456789abcdef"
HEADERS = [
    ("ce_specversion", b"1.0"),
    ("content-type", b"application/json"),
    ("ce_type", b"flowledger.NodeSucceeded.1"),
    ("ce_id", b"0-1-123456"),
    ("ce_source", b"flowledger/0"),
    ("ce_time", b"2026-05-02T09:13:44.120000Z"),
    ("ce_epoch", b"1"),
    ("ce_n", b"123456"),
    ("ce_cause", b"node:/llm#1"),
    ("ce_subject", KEY),
    ("ce_sequence", b"12"),
]


def bare(folder: Path, rows: int, seconds: float) -> list[float]:
    """Seconds per commit of `rows` rows."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE e (id INTEGER PRIMARY KEY, at INT, key BLOB, headers BLOB, value BLOB)")
    headers = b"h" * 250
    took = []
    place = 0
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        connection.execute("BEGIN IMMEDIATE")
        some = [(place + i, 1, KEY, headers, VALUE) for i in range(rows)]
        connection.executemany("INSERT INTO e VALUES (?, ?, ?, ?, ?)", some)
        connection.execute("COMMIT")
        place += rows
        took.append(time.perf_counter() - begun)
    connection.close()
    return took


async def journal(folder: Path, writers: int, seconds: float) -> list[float]:
    """Seconds from append to acknowledgement, `writers` at a time."""
    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Future[None]] = {}

    def settle(acks: list[Ack]) -> None:
        for ack in acks:
            waiting.pop(ack.n).set_result(None)

    log = SqliteLog(folder)

    def on_acks(acks: list[Ack]) -> None:
        loop.call_soon_threadsafe(settle, acks)

    appender = log.open_appender(on_acks)
    took = []
    n = 0
    end = time.perf_counter() + seconds

    async def writer() -> None:
        nonlocal n
        while (begun := time.perf_counter()) < end:
            n += 1
            waiting[n] = future = loop.create_future()
            appender.append(0, [Entry(KEY, VALUE, HEADERS, 1, n)])
            await future
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*(writer() for _ in range(writers)))
    appender.close(5)
    log.close()
    return took


def on_loop(folder: Path, writers: int, seconds: float) -> list[float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(journal(folder, writers, seconds))


def report(name: str, n: int, took: list[float], seconds: float, cpu_s: float) -> None:
    took.sort()
    line = {
        "name": name,
        "n": n,
        "p50_us": round(took[len(took) // 2] * 1e6),
        "p99_us": round(took[len(took) * 99 // 100] * 1e6),
        "rate": round(n / seconds),
        "cpu_us": round(cpu_s / n * 1e6, 1),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} x {platform.machine()}, SQLite {sqlite3.sqlite_version}",
    }
    print(json.dumps(line), flush=True)  # noqa: T201


def _commit() -> str:
    got = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return got.stdout.strip()


def measure(name: str, work: Callable[[Path], list[float]], per: int = 1) -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        begun, cpu = time.perf_counter(), time.process_time()
        took = work(Path(folder))
        report(name, len(took) * per, took, time.perf_counter() - begun, time.process_time() - cpu)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=3.0)
    arguments.add_argument("--folder", help="where to write; must be a real disk")
    given = arguments.parse_args()
    FOLDER = given.folder
    seconds = given.seconds
    for rows in (1, 32, 256):
        measure(f"bare sqlite, {rows} rows a commit", partial(bare, rows=rows, seconds=seconds), rows)
    for writers in (1, 8, 32, 256):
        measure(f"journal, {writers} writers", partial(on_loop, writers=writers, seconds=seconds))
