"""How many durable steps a second does an executor do? One step: an effect's node finished and the next one started.

Each run is a chain of nodes that touch the outside world and answer at once, so every node waits until its own
`NodeStarted` is confirmed in the log: nothing can run ahead. Beside it, the raw limit of the same log in the same
process: the same records, each writer waiting for its acknowledgement, no engine.

    python -m benchmarks.steps [--kafka BOOTSTRAP | --memory] [--runs 1 32 256] [--seconds 4]

`--memory`: a log that is on no disk, which shows what the engine and its loop cost by themselves.
"""

import argparse
import asyncio
import json
import logging
import tempfile
import threading
import time
import uuid
from pathlib import Path

import uvloop

from benchmarks.engine import document
from benchmarks.machine import machine
from libs.events.blobs import FolderBlobs
from libs.events.codec import encode_command, encode_event, type_of
from libs.events.commands import Caller, StartRun
from libs.events.ids import new_run_id
from libs.events.log import Ack, Log, Record, Topic
from libs.events.memory import MemoryLog
from libs.events.model import RUN_END_TYPES, NodeSucceeded
from libs.events.sealing import Vault
from libs.events.sqlite import SqliteLog
from libs.workflow.catalog import Catalog
from libs.workflow.outcome import Outcome, Succeeded
from services.executor.executor import PATIENCE_S, Executor
from services.executor.nodes.end import EndHandler
from services.executor.nodes.port import Attempt, Handler
from services.executor.nodes.start import StartHandler

CHAIN = 50


class AtOnce(Handler):
    """Touches nothing, but is treated as an effect."""

    async def run(self, attempt: Attempt) -> Outcome:
        return Succeeded(outputs={"output": "x" * 200}, inputs={"q": "y"})


async def owning(log: Log, folder: Path, text: str, body: Handler) -> Executor:
    """An executor that owns all partitions; the document `text` is called `d`, `body` runs its template nodes."""
    executor = Executor(
        log=log,
        catalog=Catalog({"d": text}.get),
        refresh_definitions=lambda: None,
        handlers={"start": StartHandler(), "end": EndHandler(), "template-transform": body},
        blobs=FolderBlobs(folder / "blobs"),
        vault=Vault(lambda: None),
        owner_id=f"benchmark-{uuid.uuid4().hex}",
        slots={"wait": 4000, "process": 2},
        max_steps=1_000_000,
        max_time_s=0,
        now_us=lambda: time.time_ns() // 1000,
        group=f"benchmark-{uuid.uuid4().hex}",
    )
    await executor.start()
    while sum(phase == "active" for phase in executor.owned.values()) < log.partitions:  # noqa: ASYNC110  # not timed
        await asyncio.sleep(0.05)
    return executor


async def steps(log: Log, folder: Path, runs: int, seconds: float) -> dict[str, object]:
    """Keep `runs` runs going for `seconds`; count finished nodes by what is in the log."""
    executor = await owning(log, folder, document(CHAIN, "chain"), AtOnce())
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    counts = {"ended": 0, "nodes": 0}

    def seen(records: list[Record]) -> None:
        for record in records:
            kind = type_of(record)
            if kind == "NodeSucceeded":
                counts["nodes"] += 1
            if kind in RUN_END_TYPES:
                counts["ended"] += 1
                loop.call_soon_threadsafe(again)

    def submit() -> None:
        sequence[0] += 1
        partition = sequence[0] % log.partitions
        command = StartRun(
            run_id=new_run_id(partition, time.time_ns() // 1000, uuid.uuid4().int),
            app_id="a",
            workflow_id="w",
            version="1",
            digest="d",
            caller=Caller(id="c", user="u"),
            not_after_us=time.time_ns() // 1000 + 60_000_000,
        )
        log.send(Topic.COMMANDS, partition, encode_command(command))

    def again() -> None:
        if time.perf_counter() < until:
            submit()
        elif counts["ended"] >= sequence[0]:
            finished.set()

    sequence = [0]
    until = time.perf_counter() + 3600
    tail = log.tail(
        Topic.EVENTS,
        {p: log.bounds(Topic.EVENTS, p)[1] for p in range(log.partitions)},
        seen,
        lambda error: None,
        prompt=True,  # as the API's
    )
    begin = time.perf_counter()
    cpu = time.process_time()
    until = begin + seconds
    for _ in range(runs):
        submit()
    await finished.wait()
    spent, cpu = time.perf_counter() - begin, time.process_time() - cpu
    nodes = counts["nodes"]
    tail.close()
    await executor.stop(1.0)
    return {
        "name": "steps",
        "log": type(log).__name__,
        "runs": runs,
        "steps_per_s": round(nodes / spent),
        "cpu_us_per_step": round(cpu / nodes * 1e6),
    }


async def raw(log: Log, writers: int, seconds: float) -> dict[str, object]:
    """The same log, appended to by waiting writers without an engine: two records a step, as the engine writes."""
    loop = asyncio.get_running_loop()
    waiting: dict[tuple[int, int], asyncio.Future[None]] = {}

    def acked(acks: list[Ack]) -> None:
        for ack in acks:
            future = waiting.pop((ack.partition, ack.n), None)
            if future is not None:
                future.set_result(None)

    here = threading.get_ident()

    def hand_over(acks: list[Ack]) -> None:
        if threading.get_ident() == here:
            acked(acks)
        else:
            loop.call_soon_threadsafe(acked, acks)

    appender = log.open_appender(hand_over, collects=True)
    collecting = False

    def collect() -> None:
        nonlocal collecting
        collecting = False
        appender.collect(PATIENCE_S)

    event = NodeSucceeded(node_id="n1", outputs={"output": "x" * 200}, inputs={"q": "y"})
    run_id = new_run_id(0, 1, 1)
    numbers = [0] * log.partitions
    done = 0
    until = time.perf_counter() + seconds

    async def writer(index: int) -> None:
        nonlocal done, collecting
        partition = index % log.partitions
        while time.perf_counter() < until:
            entries = []
            for _ in range(2):
                numbers[partition] += 1
                entries.append(
                    encode_event(
                        event,
                        partition=partition,
                        run_id=run_id,
                        seq=1,
                        epoch=0,
                        n=numbers[partition],
                        at_us=1,
                        cause="x",
                    )
                )
            waiting[partition, numbers[partition]] = future = loop.create_future()
            appender.append(partition, entries)
            if not collecting:
                collecting = True
                loop.call_soon(collect)
            await future
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(writer(index) for index in range(writers)))
    spent = time.perf_counter() - begin
    appender.close(2.0)
    return {"name": "steps, raw", "log": type(log).__name__, "writers": writers, "steps_per_s": round(done / spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        for runs in options.runs:
            folder = Path(name) / str(runs)
            log = MemoryLog() if options.memory else open_log(options.kafka, folder)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for answer in (
                    runner.run(steps(log, folder, runs, options.seconds)),
                    runner.run(raw(log, runs, options.seconds / 2)),
                ):
                    print(json.dumps({**answer, **machine()}), flush=True)  # noqa: T201  # one JSON line per question
            log.close()


def open_log(kafka: str | None, folder: Path) -> Log:
    folder.mkdir(parents=True)
    if kafka is None:
        return SqliteLog(folder)
    from libs.events.kafka import KafkaLog
    from libs.events.topics import create_topics

    prefix = f"benchmark-{uuid.uuid4().hex[:8]}"
    create_topics(kafka, {}, prefix, partitions=4, replication=1)
    return KafkaLog(kafka, {}, prefix, 4)


if __name__ == "__main__":
    main()
