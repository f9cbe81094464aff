"""How fast is the journal on one Kafka broker, and how near is it to its limit?

The limit: a bare idempotent producer on one thread, that many records under way, each replaced when it is
acknowledged. The journal: writers on a uvloop loop, each appends one event-sized entry and waits for its
acknowledgement, which crosses back from the poller thread. `tail`: from append to seen by a reader's callback.

    python -m benchmarks.journal_kafka [--seconds 3]      FLOWLEDGER_TEST_KAFKA, or a broker of its own
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop
from confluent_kafka import Producer

from benchmarks.journal_sqlite import HEADERS, KEY, VALUE
from libs.events.kafka import KafkaLog
from libs.events.log import Ack, Entry, Record, Topic
from tests import servers

PARTITIONS = 16
WRITERS = (1, 8, 32, 256)


def bare(bootstrap: str, prefix: str, writers: int, seconds: float) -> list[float]:
    """Seconds from produce to acknowledgement, `writers` under way."""
    producer: Any = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0})
    took: list[float] = []
    end = 0.0

    def start(writer: int) -> None:
        begun = time.perf_counter()

        def acknowledged(error: object, _: object) -> None:
            now = time.perf_counter()
            took.append(now - begun)
            if now < end:
                start(writer)

        partition = writer % PARTITIONS
        producer.produce(f"{prefix}.events", VALUE, KEY, partition=partition, headers=HEADERS, on_delivery=acknowledged)

    start(0)
    producer.flush()  # the producer needs half a second to be let in; not what is measured
    took.clear()
    end = time.perf_counter() + seconds
    for writer in range(writers):
        start(writer)
    producer.flush()
    return took


async def journal(log: KafkaLog, writers: int, seconds: float) -> list[float]:
    """Seconds from append to acknowledgement, `writers` at a time."""
    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Future[None]] = {}

    def settle(acks: list[Ack]) -> None:
        for ack in acks:
            waiting.pop(ack.n).set_result(None)

    def on_acks(acks: list[Ack]) -> None:
        loop.call_soon_threadsafe(settle, acks)

    appender = log.open_appender(on_acks)
    took: list[float] = []
    n = 0

    async def one(partition: int) -> None:
        nonlocal n
        n += 1
        waiting[n] = future = loop.create_future()
        appender.append(partition, [Entry(KEY, VALUE, HEADERS, 1, n)])
        await future

    async def writer(partition: int) -> None:
        while (begun := time.perf_counter()) < end:
            await one(partition)
            took.append(time.perf_counter() - begun)

    await one(0)  # as in `bare`
    end = time.perf_counter() + seconds
    await asyncio.gather(*(writer(number % PARTITIONS) for number in range(writers)))
    appender.close(5)
    return took


def on_loop(log: KafkaLog, writers: int, seconds: float) -> list[float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(journal(log, writers, seconds))


def tail(log: KafkaLog, seconds: float) -> list[float]:
    """Seconds from append to the reader's callback, one record at a time."""
    seen = threading.Event()

    def deliver(_: list[Record]) -> None:
        seen.set()

    def fail(error: Exception) -> None:
        raise error

    appender = log.open_appender(lambda _: None)
    reader = log.tail(Topic.EVENTS, {3: log.bounds(Topic.EVENTS, 3)[1]}, deliver, fail)
    took: list[float] = []
    end = time.perf_counter() + seconds + 1
    n = 0
    while (begun := time.perf_counter()) < end:
        n += 1
        seen.clear()
        appender.append(3, [Entry(KEY, VALUE, HEADERS, 1, n)])
        seen.wait()
        took.append(time.perf_counter() - begun)
    reader.close()
    appender.close(5)
    return took[1:]


def measure(name: str, work: Callable[[], list[float]], seconds: float) -> None:
    cpu = time.process_time()
    took = sorted(work())
    cpu_s = time.process_time() - cpu
    line = {
        "name": name,
        "n": len(took),
        "p50_us": round(took[len(took) // 2] * 1e6),
        "p99_us": round(took[len(took) * 99 // 100] * 1e6),
        "rate": round(len(took) / seconds),
        "cpu_us": round(cpu_s / len(took) * 1e6, 1),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} x {platform.machine()}, broker on the same machine",
    }
    print(json.dumps(line), flush=True)  # noqa: T201


def _commit() -> str:
    got = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return got.stdout.strip()


def main(seconds: float) -> None:
    broker = servers.open_kafka()
    with servers.fresh_topics(broker.bootstrap, PARTITIONS) as prefix:
        log = KafkaLog(broker.bootstrap, {}, prefix, PARTITIONS)
        on_loop(log, 32, 3.0)  # the broker's code must be warm, or the first line pays for it
        for writers in WRITERS:
            measure(
                f"bare kafka, {writers} under way",
                partial(bare, broker.bootstrap, prefix, writers, seconds),
                seconds,
            )
        for writers in WRITERS:
            measure(f"journal on kafka, {writers} writers", partial(on_loop, log, writers, seconds), seconds)
        measure("tail on kafka, append to seen", partial(tail, log, seconds), seconds + 1)
        log.close()
    broker.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=3.0)
    main(arguments.parse_args().seconds)
