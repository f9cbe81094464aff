"""How long from POST /v1/workflows/run to the first SSE event of the run? One client, one request after the other.

Embedded (one process), or with `--kafka` an API and an executor process on a broker. The limit beside it is
`GET /healthz` of the same server: a request that touches neither log nor run.

    python -m benchmarks.first_event [--kafka BOOTSTRAP --database URL] [--count 300]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.engine import document
from benchmarks.machine import machine

TOKEN = "benchmark-admin-token"


@contextmanager
def embedded(folder: Path) -> Iterator[str]:
    with process("dev", {"FLOWLEDGER_DATA": str(folder)}) as url:
        yield url


@contextmanager
def on_kafka(bootstrap: str, database: str, folder: Path) -> Iterator[str]:
    settings = {
        "FLOWLEDGER_KAFKA": bootstrap,
        "FLOWLEDGER_TOPIC_PREFIX": f"benchmark-{uuid.uuid4().hex[:8]}",
        "FLOWLEDGER_PARTITIONS": "4",
        "FLOWLEDGER_DATABASE_URL": database,
        "FLOWLEDGER_DATA": str(folder),
    }
    subprocess.run([*_flowledger(), "topics", "create"], env=_env(settings), check=True, capture_output=True)
    with process("executor", settings), process("api", settings) as url:
        yield url


@contextmanager
def process(verb: str, settings: dict[str, str]) -> Iterator[str]:
    started = subprocess.Popen(
        [*_flowledger(), verb, "--port", "0"],
        env=_env(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert "ready" in line, f"flowledger {verb} did not start"
        yield line.split()[-1]
    finally:
        started.terminate()
        started.wait()


def _flowledger() -> list[str]:
    return [sys.executable, "-c", "import sys; from flowledger.cli import main; sys.exit(main())"]


def _env(settings: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **settings, "FLOWLEDGER_ADMIN_TOKEN": TOKEN, "FLOWLEDGER_MODELS": "offline"}


def measure(url: str, count: int) -> Iterator[dict[str, object]]:
    client = httpx.Client(base_url=url, timeout=30, trust_env=False)
    answer = client.post(
        "/v1/apps/import?key=true", content=document(3, "chain"), headers={"Authorization": f"Bearer {TOKEN}"}
    )
    key = answer.raise_for_status().json()["api_key"]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"inputs": {}, "response_mode": "streaming", "user": "benchmark"}
    first, whole, bare = [], [], []
    for number in range(count + 20):
        begin = time.perf_counter()
        with client.stream("POST", "/v1/workflows/run", json=body, headers=headers) as stream:
            seen = None
            for line in stream.iter_lines():
                if seen is None and line.startswith("data:"):
                    seen = time.perf_counter()
        end = time.perf_counter()
        client.get("/healthz")
        after = time.perf_counter()
        if number >= 20:
            assert seen is not None
            first.append((seen - begin) * 1e3)
            whole.append((end - begin) * 1e3)
            bare.append((after - end) * 1e3)
    for name, values in (
        ("POST to first event", first),
        ("POST to end of a 5-node run", whole),
        ("GET /healthz", bare),
    ):
        values.sort()
        yield {
            "name": name,
            "n": len(values),
            "p50_ms": round(statistics.median(values), 2),
            "p99_ms": round(values[int(len(values) * 0.99)], 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka")
    parser.add_argument("--database")
    parser.add_argument("--count", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = on_kafka(options.kafka, options.database, folder) if options.kafka else embedded(folder)
        with server as url:
            for answer in measure(url, options.count):
                where = "kafka" if options.kafka else "embedded"
                print(json.dumps({**answer, "on": where, **machine()}))  # noqa: T201  # one JSON line per question


if __name__ == "__main__":
    main()
