"""A whole API for tests: a log in memory, a scripted executor behind it, and a real HTTP server on a port of its own.

The executor decides commands as the real one does and then does what the test's script says, so that tests choose
when an event or a chunk comes. Two servers may share one log: they are two replicas.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from libs.events.blobs import LogBlobs
from libs.events.chunks import Chunk, encode_chunk
from libs.events.claim_check import offload, oversized
from libs.events.codec import decode_command, encode_body, encode_event
from libs.events.ids import partition_of
from libs.events.log import Ack, Entry, Log, LogError, Record, Topic
from libs.events.model import (
    Event,
    NodeStarted,
    NodeSucceeded,
    PartitionClaimed,
    RunAccepted,
    RunStarted,
    RunSucceeded,
)
from libs.events.positions import Position
from libs.events.registry import RegistryTail
from libs.events.sealing import Vault
from libs.workflow.catalog import Catalog
from services.api import ApiDependencies, Limits, create_app
from services.api.records import Records
from services.executor.conversations import Conversations
from services.executor.partition import PartitionFold
from tests.documents import document, edges, end, start
from tests.unit.api.speaking import llm

ADMIN = "admin-token-of-the-tests"
VAULT = Vault(lambda: "secret-key-of-the-tests")
T0_US = 1_767_000_000_000_000

Script = Callable[["ScriptedExecutor", str, RunAccepted], None]

ECHO = document([start("q"), end(answer="start.q")], edges("start > end"))
SPEAKING = document(
    [start("q"), llm(), end(text="llm.text")],
    edges("start > llm > end"),
)


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.002)
    return found


class Clock:
    """Begins at the real time: the executor refuses starts of another day."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.us


@dataclass
class _Owned:
    fold: PartitionFold
    epoch: int = 1
    n: int = 0
    offset: int = 0
    seqs: dict[str, int] = field(default_factory=dict)


class ScriptedExecutor:
    """Owns all partitions. Thread-safe: the script and the test may both emit."""

    def __init__(self, log: Log, script: Script | None = None, *, deciding: bool = True) -> None:
        self._log = log
        self.script = script or echo
        self.accepted: dict[str, RunAccepted] = {}
        self.stops: list[str] = []
        self._blobs = LogBlobs(log)
        self._lock = threading.RLock()
        self._owned = {number: _Owned(PartitionFold(number)) for number in range(log.partitions)}
        self._appender = log.open_appender(self._on_acks)
        for number in self._owned:
            self.claim(number, epoch=1)
        self._tail = log.tail(Topic.COMMANDS, dict.fromkeys(self._owned, 0) if deciding else {}, self._decide, _raise)

    def claim(self, partition: int, epoch: int) -> None:
        owned = self._owned[partition]
        owned.epoch, owned.n = epoch, -1
        self._append(owned, "", PartitionClaimed(owner="test", commands_topic_id="t"), "owner")

    def emit(self, run_id: str, *events: Event) -> None:
        with self._lock:
            owned = self._owned[partition_of(run_id)]
            for event in events:
                self._append(owned, run_id, event, "derived")

    def emit_invalid(self, run_id: str, event: Event) -> None:
        """A record of an owner that was replaced: acknowledged, and nobody may see it."""
        with self._lock:
            owned = self._owned[partition_of(run_id)]
            entry = encode_event(
                event, partition=owned.fold.partition, run_id=run_id, seq=owned.seqs[run_id] + 1, epoch=0, n=99,
                at_us=T0_US, cause="derived",
            )  # fmt: skip
            self._appender.append(owned.fold.partition, [entry])
            owned.offset += 1

    def speak(self, run_id: str, text: str, position: int, *, after: int | None = None, node_id: str = "llm") -> None:
        owned = self._owned[partition_of(run_id)]
        chunk = Chunk(
            run_id=run_id, epoch=owned.epoch, node_id=node_id, field="text", position=position, text=text,
            after=self.seq(run_id) if after is None else after,
        )  # fmt: skip
        self._log.publish(Topic.CHUNKS, partition_of(run_id), [encode_chunk(chunk)])

    def run(self, index: int = -1) -> str:
        """The id of the run that was accepted last, when there is one."""
        return str(until(lambda: list(self.accepted)[index:] and list(self.accepted)[index]))

    def seq(self, run_id: str) -> int:
        """Of the run's last event; 0 before it is accepted."""
        with self._lock:
            return self._owned[partition_of(run_id)].seqs.get(run_id, 0)

    def commands(self) -> int:
        """How many commands the log has, decided or not."""
        return sum(self._log.bounds(Topic.COMMANDS, partition)[1] for partition in self._owned)

    def forget_conversations(self) -> None:
        """As an owner does with conversations in which nothing has happened for a day."""
        with self._lock:
            for owned in self._owned.values():
                owned.fold.conversations = Conversations()

    def begin_deciding(self) -> None:
        for partition in self._owned:
            self._tail.add(partition, 0)

    def close(self) -> None:
        self._tail.close()
        self._appender.close(2.0)

    def _decide(self, records: list[Record]) -> None:
        for record in records:
            command = decode_command(record)
            with self._lock:
                owned = self._owned[record.partition]
                run_id, event = owned.fold.decide(command, record.offset, time.time_ns() // 1000)
                # Noted first: whoever has seen the event in the log may ask for it here.
                if isinstance(event, RunAccepted):
                    self.accepted[run_id] = event
                elif run_id:
                    self.stops.append(run_id)
                self._append(owned, run_id, event, f"command:{record.offset}")
            if isinstance(event, RunAccepted):
                self.script(self, run_id, event)

    def _append(self, owned: _Owned, run_id: str, event: Event, cause: str) -> None:
        owned.n += 1
        if run_id:
            owned.seqs[run_id] = owned.seqs.get(run_id, 0) + 1
        whole, at_us = event, time.time_ns() // 1000
        if oversized(encode_body(event)) and not isinstance(event, RunAccepted):
            event = offload(event, self._blobs, run_id).result(30)
        entry = encode_event(
            event, partition=owned.fold.partition, run_id=run_id, seq=owned.seqs.get(run_id, 0) if run_id else 0,
            epoch=owned.epoch, n=owned.n, at_us=at_us, cause=cause,
        )  # fmt: skip
        owned.fold.apply(whole, run_id, at_us, Position(owned.offset, owned.epoch, owned.n - 1))
        owned.offset += 1
        self._appender.append(owned.fold.partition, [entry])

    def _on_acks(self, acks: list[Ack]) -> None:
        assert all(ack.error is None for ack in acks)


def echo(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    """start > end, at once."""
    inputs = dict(accepted.inputs)
    outputs = {"answer": inputs.get("q")}
    executor.emit(
        run_id,
        RunStarted(max_steps=100),
        NodeStarted(node_id="start", node_type="start", title="Start", index=1),
        NodeSucceeded(node_id="start", inputs=inputs, outputs=inputs),
        NodeStarted(node_id="end", node_type="end", title="End", index=2, predecessor_id="start"),
        NodeSucceeded(node_id="end", inputs=outputs, outputs=outputs),
        RunSucceeded(outputs=outputs, total_steps=2),
    )


def nothing(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    """The test goes on by itself."""


def to_llm(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    """Up to a model node that has begun: sequence 5."""
    executor.emit(
        run_id,
        RunStarted(max_steps=100),
        NodeStarted(node_id="start", node_type="start", title="Start", index=1),
        NodeSucceeded(node_id="start", outputs=dict(accepted.inputs)),
        NodeStarted(node_id="llm", node_type="llm", title="Llm", index=2, predecessor_id="start"),
    )


def finish_llm(executor: ScriptedExecutor, run_id: str, text: str) -> None:
    executor.emit(
        run_id,
        NodeSucceeded(node_id="llm", outputs={"text": text}),
        NodeStarted(node_id="end", node_type="end", title="End", index=3, predecessor_id="llm"),
        NodeSucceeded(node_id="end", outputs={"text": text}),
        RunSucceeded(outputs={"text": text}),
    )


def _raise(error: Exception) -> None:
    raise error


class _Prompt(uvicorn.Server):
    """Ends as its base class does, without the 0.1 s steps in which that one looks whether it is time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._leaving = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)

    def leave(self) -> None:
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._leaving.set)

    async def main_loop(self) -> None:
        await self._leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        while (state.connections or state.tasks) and time.monotonic() < deadline:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.002)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


class Server:
    """One API process: an app behind uvicorn, on a thread."""

    def __init__(self, log: Log, records: Records | None = None, limits: Limits | None = None, **more: Any) -> None:
        self.registry = RegistryTail(log, VAULT)
        deps = ApiDependencies(
            log=log,
            registry=self.registry,
            catalog=Catalog(self.registry.document),
            blobs=LogBlobs(log),
            vault=VAULT,
            records=records,
            admin_token=ADMIN,
            instance_id="instance-1",
            limits=limits or Limits(),
            **more,
        )
        self.app = create_app(deps)
        # Named, because asyncio switches the wait for fuller packets off only where the protocol is: 40 ms a request.
        listener = socket.socket(proto=socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        self._server = _Prompt(uvicorn.Config(self.app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        until(lambda: self._server.started)
        # No TLS on loopback: reading the authorities' certificates would take longer than most tests' requests.
        self.http = httpx.Client(base_url=self.url, timeout=10, trust_env=False, verify=False)

    @property
    def parts(self) -> Any:
        return self.app.state.parts

    def _serve(self, listener: socket.socket) -> None:
        asyncio.run(self._server.serve([listener]))

    def stop(self) -> None:
        """As SIGTERM does: streams end first, then the server."""
        loop = self.parts.tail.loop
        loop.call_soon_threadsafe(self.parts.streams.close)
        self._server.leave()
        self._thread.join()

    def close(self) -> None:
        self.http.close()
        self._server.leave()
        self._thread.join()
        self.registry.close()

    # --- what tests ask for ---

    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ADMIN}"}

    def import_app(self, text: str = ECHO) -> dict[str, Any]:
        answer = self.http.post("/v1/apps/import", content=text, headers=self.admin())
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def start(self, key: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        given = {"inputs": {"q": "hi"}, "user": "u1", "response_mode": "blocking"} | (body or {})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post("/v1/workflows/run", json=given, headers={"Authorization": f"Bearer {key}"} | named)

    @contextmanager
    def stream(self, method: str, path: str, key: str, body: Any = None, **headers: str) -> Iterator["Sse"]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.http.stream(method, path, json=body, headers={"Authorization": f"Bearer {key}"} | named) as response:
            yield Sse(response)

    @contextmanager
    def running(self, key: str, **headers: str) -> Iterator["Sse"]:
        body = {"inputs": {"q": "hi"}, "user": "u1", "response_mode": "streaming"}
        with self.stream("POST", "/v1/workflows/run", key, body, **headers) as stream:
            yield stream

    @contextmanager
    def attached(self, run_id: str, key: str, last: str | None = None, **query: str) -> Iterator["Sse"]:
        params = httpx.QueryParams({"user": "u1"} | query)
        headers = {} if last is None else {"Last_Event_ID": last}
        with self.stream("GET", f"/v1/workflow/{run_id}/events?{params}", key, **headers) as stream:
            yield stream


Serve = Callable[..., AbstractContextManager[Server]]


@contextmanager
def serving(log: Log, **more: Any) -> Iterator[Server]:
    made = Server(log, **more)
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Event_:
    id: str | None
    data: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.data["event"])


class Sse:
    """Reads a stream frame by frame."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.headers = response.headers
        self.pings = 0
        self._lines = response.iter_lines() if response.status_code == 200 else iter(())

    @property
    def run_id(self) -> str:
        return str(self.headers["x-workflow-run-id"])

    def next(self) -> Event_ | None:
        """The next JSON frame; None at the end."""
        identity = None
        for line in self._lines:
            if line.startswith("id: "):
                identity = line[4:]
            elif line == "event: ping":
                self.pings += 1
            elif line.startswith("data: "):
                frame = Event_(identity, json.loads(line[6:]))
                assert next(self._lines) == ""
                return frame
        return None

    def take(self, count: int) -> list[Event_]:
        found = [self.next() for _ in range(count)]
        assert None not in found, "the stream ended early"
        return [frame for frame in found if frame is not None]

    def rest(self) -> list[Event_]:
        return list(iter(self.next, None))


def names(frames: Sequence[Event_]) -> list[str]:
    return [frame.name for frame in frames]


def text_of(frames: Sequence[Event_]) -> str:
    """What a client shows that has seen these frames."""
    shown = ""
    for frame in frames:
        if frame.name == "text_chunk":
            shown += frame.data["data"]["text"]
        elif frame.name == "text_replace":
            shown = frame.data["data"]["text"]
    return shown


class StuckLog:
    """A log whose commands are never confirmed."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.failing = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def send(self, topic: Topic, partition: int, entry: Entry, timeout_s: float = 4.0) -> "Future[int]":
        if self.failing and topic is Topic.COMMANDS:
            failed: Future[int] = Future()
            failed.set_exception(LogError("timed out"))
            return failed
        return self._log.send(topic, partition, entry, timeout_s)
