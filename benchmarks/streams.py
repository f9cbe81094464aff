"""What does a client that watches a run cost an API process, and how late do many of them see its events?

Idle: clients attached to runs in which nothing happens; the growth of the server's memory for each. Active: clients
attached to runs that make ten frames a second each; from the time of an event in the log to its arrival at a client.
Everything in one embedded process, the clients in this one. The limit beside it is the same number of bytes a second
written to as many connections by a server that does nothing else.

    python -m benchmarks.streams [--idle 10000] [--active 1000] [--runs 20] [--seconds 10]
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvloop

from benchmarks.engine import document
from benchmarks.first_event import TOKEN, process
from benchmarks.machine import machine

ADMIN = {"Authorization": f"Bearer {TOKEN}"}
AT_ONCE = 100
"""Connections that are opened together."""
PAUSE_S = 0.2
"""Between two nodes of an active run; each makes two frames."""


class Watcher(asyncio.Protocol):
    """One client: keeps what it has got, or only when."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.got: list[tuple[bytes, float]] = []
        """Id of a frame and when it came; wall clock."""
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it was let in; else it is to come again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]  # a stream transport

    def data_received(self, data: bytes) -> None:
        now = time.time()
        if not self.opened.done():
            self.opened.set_result(data.startswith(b"HTTP/1.1 200"))
        for piece in data.split(b"id: ")[1:]:
            self.got.append((piece.partition(b"\n")[0], now))

    def close(self) -> None:
        self._transport.close()


async def watch(url: str, run_ids: list[str], count: int) -> list[Watcher]:
    """`count` clients, spread over the runs; each has seen its answer begin."""
    host, _, port = urlsplit(url).netloc.partition(":")
    loop = asyncio.get_running_loop()

    async def one(number: int) -> Watcher:
        path = f"/v1/workflow/{run_ids[number % len(run_ids)]}/events?user=benchmark"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        while True:
            _, watcher = await loop.create_connection(partial(Watcher, request), host, int(port))
            if await watcher.opened:
                return watcher
            watcher.close()
            await asyncio.sleep(0.5)

    watchers: list[Watcher] = []
    for begin in range(0, count, AT_ONCE):
        watchers += await asyncio.gather(*map(one, range(begin, min(begin + AT_ONCE, count))))
    return watchers


def start_runs(client: httpx.Client, app_id: str, count: int, pause_s: float) -> list[str]:
    """Runs whose every node takes `pause_s`."""
    run_ids = []
    for _ in range(count):
        body = {"app_id": app_id, "inputs": {}, "user": "benchmark", "response_mode": "streaming"}
        body["pins"] = {"types": {"template-transform": {"outputs": {"output": "x"}, "delay_s": pause_s}}}
        with client.stream("POST", "/v1/runs", json=body, headers=ADMIN) as stream:
            run_ids.append(stream.headers["X-Workflow-Run-Id"])
    return run_ids


def memory_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))


def idle(url: str, pid: int, client: httpx.Client, app_id: str, count: int) -> dict[str, object]:
    run_ids = start_runs(client, app_id, 100, 3000.0)

    async def main() -> int:
        for watcher in await watch(url, run_ids, 200):  # what the first clients bring about is not counted
            watcher.close()
        await asyncio.sleep(0.5)
        before = memory_kb(pid)
        watchers = await watch(url, run_ids, count)
        await asyncio.sleep(12)  # beyond a ping
        grown = memory_kb(pid) - before
        for watcher in watchers:
            watcher.close()
        return grown

    grown = _run(main())
    for run_id in run_ids:
        client.post(f"/v1/runs/{run_id}/stop", headers=ADMIN)
    return {"name": "idle clients", "clients": count, "kb_per_client": round(grown / count, 1)}


def active(url: str, client: httpx.Client, app_id: str, count: int, runs: int, seconds: float) -> dict[str, object]:
    async def main() -> tuple[list[str], list[Watcher]]:
        run_ids = await asyncio.to_thread(start_runs, client, app_id, runs, PAUSE_S)
        watchers = await watch(url, run_ids, count)
        for watcher in watchers:
            watcher.got.clear()
        await asyncio.sleep(seconds)
        for watcher in watchers:
            watcher.close()
        return run_ids, watchers

    run_ids, watchers = _run(main())
    delays = []
    for number, run_id in enumerate(run_ids):
        at = _times(client, run_id)
        for watcher in watchers[number :: len(run_ids)]:
            delays += [came - at[name] for name, came in watcher.got]
        client.post(f"/v1/runs/{run_id}/stop", headers=ADMIN)
    delays.sort()
    return {
        "name": "active clients",
        "clients": count,
        "runs": runs,
        "frames_per_s": round(len(delays) / seconds),
        "p50_ms": round(delays[len(delays) // 2] * 1e3, 1),
        "p99_ms": round(delays[int(len(delays) * 0.99)] * 1e3, 1),
    }


def _times(client: httpx.Client, run_id: str) -> dict[bytes, float]:
    """Sequence -> wall clock of the event."""
    lines = client.get(f"/v1/runs/{run_id}/history", headers=ADMIN).text.splitlines()
    events: Iterator[Any] = map(json.loads, lines)
    return {str(event["seq"]).encode(): datetime.fromisoformat(event["at"]).timestamp() for event in events}


def _run(main: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--active", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name, process("dev", {"FLOWLEDGER_DATA": name}) as url:
        pid = json.loads((Path(name) / "server.json").read_text())["pid"]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            made = client.post("/v1/apps/import", content=document(200, "chain"), headers=ADMIN).raise_for_status()
            app_id = made.json()["app_id"]
            for answer in (
                idle(url, pid, client, app_id, options.idle),
                active(url, client, app_id, options.active, options.runs, options.seconds),
            ):
                print(json.dumps({**answer, **machine()}), flush=True)  # noqa: T201  # one JSON line per question


if __name__ == "__main__":
    main()
