"""What does a round cost an executor, log included? The same number of rounds as many small containers and as one.

An executor over a real log (SQLite, fsync; or Kafka with `--kafka`), no API and no tables. Each question runs 10,000
rounds: 100 runs of 100 rounds one after the other, ten of 1,000, one of 10,000. `growth` is the processor time of a
round among 10,000 over that of one among 100. `effect`: the body reaches outside, so that each round waits for the log.

    python -m benchmarks.rounds [--kafka BOOTSTRAP] [--rounds 10000] [--effect]
"""

import argparse
import asyncio
import json
import tempfile
import time
import uuid
from pathlib import Path

import uvloop

from benchmarks.containers import SHAPES, document
from benchmarks.machine import machine
from benchmarks.steps import AtOnce, open_log, owning
from libs.events.codec import encode_command, type_of
from libs.events.commands import Caller, StartRun
from libs.events.ids import new_run_id
from libs.events.log import Log, Record, Topic
from libs.events.model import RUN_END_TYPES
from libs.workflow.definition import Node
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.pool import Pool
from services.executor.nodes.port import Handler


class Computed(Handler):
    """Answers without waiting, as nodes do that only compute."""

    def evaluate(self, node: Node, pool: Pool) -> Outcome | None:
        return Succeeded(outputs={"output": "x"})


async def measure(log: Log, folder: Path, shape: str, rounds: int, runs: int, body: Handler) -> tuple[float, float]:
    """Seconds (wall, processor) for `runs` runs of `rounds` rounds, one after the other."""
    executor = await owning(log, folder, document(shape, rounds), body)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def seen(records: list[Record]) -> None:
        for record in records:
            if type_of(record) in RUN_END_TYPES:
                loop.call_soon_threadsafe(ended.set)

    tail = log.tail(Topic.EVENTS, {0: log.bounds(Topic.EVENTS, 0)[1]}, seen, lambda error: None)
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(runs):
        ended.clear()
        log.send(Topic.COMMANDS, 0, encode_command(_start(rounds)))
        await ended.wait()
    spent = time.perf_counter() - begin, time.process_time() - cpu
    tail.close()
    await executor.stop(1.0)
    return spent


def _start(rounds: int) -> StartRun:
    now_us = time.time_ns() // 1000
    return StartRun(
        run_id=new_run_id(0, now_us, uuid.uuid4().int),
        app_id="a",
        workflow_id="w",
        version="1",
        digest="d",
        inputs={"items": list(range(rounds))},
        caller=Caller(id="c", user="u"),
        not_after_us=now_us + 60_000_000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--effect", action="store_true")
    options = parser.parse_args()
    sizes = [size for size in (100, 1_000, 10_000) if size <= options.rounds]
    for shape in SHAPES:
        answer: dict[str, object] = {"name": "rounds", "shape": shape, "log": "kafka" if options.kafka else "embedded"}
        cpu_us = []
        for size in sizes:
            with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                folder = Path(name) / "log"
                log = open_log(options.kafka, folder)
                body = AtOnce() if options.effect else Computed()
                wall, cpu = runner.run(measure(log, folder, shape, size, options.rounds // size, body))
                log.close()
            cpu_us.append(cpu / options.rounds * 1e6)
            answer[f"us_per_round_of_{size}"] = round(wall / options.rounds * 1e6)
            answer[f"cpu_us_per_round_of_{size}"] = round(cpu_us[-1])
        answer["growth"] = round(cpu_us[-1] / cpu_us[0], 2)
        print(json.dumps({**answer, "effect": options.effect, **machine()}), flush=True)  # noqa: T201  # one JSON line per question


if __name__ == "__main__":
    main()
