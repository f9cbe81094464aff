"""How many events a second the projector puts into SQL tables, beside the raw limit of the database.

    python benchmarks/projector.py [--events N] [--database sqlite|postgres|both]

Whole path: a log in memory, tail, validity rule, decoding, folding, writing, saved position. The limit: as many rows
as the projector ends up with, inserted in bulk into the same tables and nothing else (one row per several events).
One JSON line for each.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy.engine import Engine

from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.tables import create_tables, open_engine, sqlite_url, writing
from services.projector.batch import TableSet
from services.projector.projection import project
from services.projector.projector import BATCH_RECORDS, Projector
from services.projector.writer import TableWriter
from tests import servers
from tests.projections import Owner, append, entry, interleaved, run_id, story

_NODES = 10
_CONCURRENT = 50


def history(events: int) -> Iterator[list[object]]:
    """Runs of ten nodes, 50 of them at a time."""
    owner, made, number = Owner(), 0, 0
    while made < events:
        ids = [run_id(number + i) for i in range(_CONCURRENT)]
        number += _CONCURRENT
        part: list[object] = list(interleaved(owner, {run: story(run, _NODES) for run in ids}))
        made += len(part)
        yield part


def whole(engine: Engine, log: MemoryLog) -> float:
    end = sum(log.bounds(Topic.EVENTS, p)[1] for p in range(log.partitions))
    projector = Projector(log, engine)
    started = time.perf_counter()
    projector.start()
    while not projector.running or any(projector.state().lag_records.values()):
        time.sleep(0.002)
        if projector.failure:
            raise SystemExit(projector.failure)
    spent = time.perf_counter() - started
    projector.stop()
    return end / spent


def limit(engine: Engine, rows: list[dict[str, object]], nodes: list[dict[str, object]]) -> float:
    tables = TableSet.live()
    started = time.perf_counter()
    for table, some in ((tables.runs, rows), (tables.nodes, nodes)):
        writer = TableWriter(table)
        for start in range(0, len(some), BATCH_RECORDS):
            with writing(engine) as connection:
                writer.write(connection, some[start : start + BATCH_RECORDS])
    return (len(rows) + len(nodes)) / (time.perf_counter() - started)


@contextmanager
def database(kind: str) -> Iterator[Engine]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            engine = open_engine(sqlite_url(Path(folder) / "tables.db"))
            yield engine
            engine.dispose()
        return
    server = servers.open_postgres()
    with servers.fresh_database(server.url) as url:
        engine = open_engine(url)
        yield engine
        engine.dispose()


def line(name: str, n: int, rate: float, unit: str) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    facts = {"name": name, "n": n, "rate": round(rate), "unit": unit}
    print(json.dumps(facts | {"commit": commit.stdout.strip(), "machine": machine}))  # noqa: T201  # its output


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=100_000)
    arguments.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    given = arguments.parse_args()
    log = MemoryLog(MemoryStore())
    changes_runs: dict[str, dict[str, object]] = {}
    changes_nodes: dict[str, dict[str, object]] = {}
    made = 0
    for part in history(given.events):
        append(log, [entry(one) for one in part])  # type: ignore[arg-type]  # Recorded
        changes = project(part, {})  # type: ignore[arg-type]  # Recorded
        changes_runs |= changes.runs
        changes_nodes |= changes.nodes
        made += len(part)
    for kind in ("sqlite", "postgres") if given.database == "both" else (given.database,):
        with database(kind) as engine:
            line(f"projector_{kind}", made, whole(engine, log), "events/s")
        with database(kind) as engine:
            create_tables(engine)
            rows, nodes = list(changes_runs.values()), list(changes_nodes.values())
            line(f"projector_{kind}_limit", len(rows) + len(nodes), limit(engine, rows, nodes), "rows/s")
    log.close()


if __name__ == "__main__":
    main()
