"""Documents in tests: run one in memory, on a virtual clock, and assert on its events and outputs.

    from flowledger.testing import run_document

    run = run_document("flow.yml", {"name": "Ada"}, pins={"nodes": {"fetch": {"fail": "503", "times": 2}}})
    assert run.outputs == {"answer": "..."}

The machine, the executor and the handlers are the real ones, over a log in memory: no broker, no server, no file. Waits
cost no real time (retries, delays of pins, time-outs of forms): when nothing else is left to do, the clock jumps. Code
nodes run in the real sandbox, for as long as that takes. Model nodes are answered by the offline stand-in. What would
reach outside fails its node with a text that says to pin it, so that a test never calls anybody.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from libs.events.blobs import BlobRef
from libs.events.claim_check import restore
from libs.events.codec import Recorded, decode_event, encode_command, run_of, stamp_of
from libs.events.commands import Caller, StartRun
from libs.events.ids import execution_id, new_run_id
from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import RunFailed, RunPartiallySucceeded, RunPaused, RunStopped, RunSucceeded
from libs.events.sealing import Vault
from libs.events.validity import Validity
from libs.settings import Settings
from libs.workflow.catalog import Catalog
from libs.workflow.definition import Definition, Node, compile_document
from libs.workflow.inputs import accepted_files, validate_inputs
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.pins import PinsInvalid, check_pins, parse_pins
from libs.workflow.pool import Pool
from libs.workflow.roots import default_root, named_root, rooted
from services.executor.executor import Executor
from services.executor.models import Models
from services.executor.nodes import NodeHandlers
from services.executor.nodes.port import Attempt, Handler

__all__ = ["Answer", "Attempt", "TestEvent", "TestRun", "run_document"]

Answer = Callable[[Attempt], Mapping[str, JsonValue]]
"""What a node gives, made by the test; an exception is the node's failure."""

_EPOCH_S = 1_800_000_000
_REACH_OUTSIDE = ("http-request", "tool", "agent", "knowledge-retrieval", "knowledge-index", "datasource")
_REAL_WAIT_S = 0.05
_ENDS: dict[type[Any], str] = {
    RunSucceeded: "succeeded",
    RunPartiallySucceeded: "partial-succeeded",
    RunFailed: "failed",
    RunStopped: "stopped",
    RunPaused: "paused",
}


@dataclass(frozen=True, slots=True)
class TestEvent:
    """One fact of the run; types and their `data`: docs/events.md."""

    __test__ = False  # pytest collects classes by their name

    seq: int
    type: str
    at_s: float
    """Seconds of virtual time since the run was asked for."""
    node_id: str | None
    path: str
    attempt: int | None
    data: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class TestRun:
    """How the run went."""

    __test__ = False

    status: str
    """`succeeded`, `partial-succeeded`, `failed`, `stopped`, or `paused`: it waits for a person."""
    outputs: dict[str, JsonValue]
    error: str | None
    elapsed_s: float
    """Of virtual time."""
    events: list[TestEvent] = field(repr=False)

    def types(self, node_id: str | None = None) -> list[str]:
        """Types of the events, of one node or of all: `["RunAccepted", "RunStarted", "NodeStarted", ...]`."""
        return [event.type for event in self.events if node_id is None or event.node_id == node_id]

    def output_of(self, node_id: str, path: str = "") -> dict[str, JsonValue] | None:
        """What the node gave the last time; None: it did not run to its end."""
        found: Any = None
        for event in self.events:
            if (event.node_id, event.path) == (node_id, path) and event.type in ("NodeSucceeded", "NodeExcepted"):
                found = event.data.get("outputs") or {}
        return found  # type: ignore[no-any-return]  # an object of JSON


def run_document(
    document: str | bytes | Path,
    inputs: Mapping[str, Any] | None = None,
    *,
    root: str | None = None,
    query: str | None = None,
    files: tuple[Any, ...] = (),
    pins: Mapping[str, Any] | None = None,
    answers: Mapping[str, Answer] | None = None,
    horizon_s: float = 86_400,
    patience_s: float = 60.0,
) -> TestRun:
    """Run a document (its file or its text) to its end, or to where it waits for a person.

    `root`: id of the trigger at which it begins; else it begins at the start node, or the first trigger.
    `pins` as in a pins file (`{"nodes": {...}, "types": {...}}`); `answers`: functions by node id or node type.
    Within a running event loop it works on a thread of its own, and the loop waits.
    `horizon_s`: virtual seconds after which the run is taken to hang; `patience_s`: real ones for code nodes.

    Raises DefinitionInvalid, RootInvalid, InputInvalid, PinsInvalid: what the server would refuse; AssertionError: the
    run hangs.
    """
    text = _text(document)
    whole = compile_document(text)
    definition = rooted(whole, root or default_root(whole))
    accepted = validate_inputs(definition, inputs or {}, files=files)
    if pins is not None:
        problems = tuple(each for each in check_pins(parse_pins(pins), definition) if each.severity == "error")
        if problems:
            raise PinsInvalid(problems)
    if unknown := set(answers or ()) - set(definition.nodes) - {node.type for node in definition.nodes.values()}:
        raise ValueError(f"answers: no node and no type {', '.join(sorted(unknown))} in this document")
    command = _command(definition, accepted, query, files, pins)

    def run() -> TestRun:
        instance = _Instance(text, answers or {}, patience_s)
        try:
            return instance.run(command, horizon_s)
        finally:
            instance.close()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    with ThreadPoolExecutor(1) as apart:  # a thread runs one loop at a time
        return apart.submit(run).result()


def _text(document: str | bytes | Path) -> str:
    if isinstance(document, bytes):
        return document.decode()
    if isinstance(document, str) and ("\n" in document or document.lstrip().startswith("{")):
        return document
    return Path(document).read_text("utf-8")


def _command(
    definition: Definition,
    inputs: dict[str, JsonValue],
    query: str | None,
    files: tuple[Any, ...],
    pins: Mapping[str, Any] | None,
) -> StartRun:
    now_us = _EPOCH_S * 1_000_000
    run_id = new_run_id(0, now_us, 1)
    return StartRun(
        run_id=run_id,
        app_id="00000000-0000-4000-8000-000000000001",
        workflow_id="00000000-0000-4000-8000-000000000002",
        version="test",
        digest=definition.digest,
        mode=definition.mode,
        inputs=inputs,
        files=tuple(accepted_files(definition, files)),
        query=query,
        conversation_id=execution_id(run_id, "", "conversation") if definition.mode == "advanced-chat" else None,
        caller=Caller(id="00000000-0000-4000-8000-000000000003", user="test"),
        not_after_us=now_us + 60_000_000,
        pins=None if pins is None else dict(pins),
        root=named_root(definition),
    )


class _Instance:
    """An executor over a log in memory. Appends land and time passes only when `run` says so."""

    def __init__(self, document: str, answers: Mapping[str, Answer], patience_s: float) -> None:
        self._loop = VirtualLoop()
        self._escaped: list[BaseException] = []
        self._loop.set_exception_handler(self._on_escaped)
        self._patience_s = patience_s
        self._log = MemoryLog(MemoryStore(partitions=1), threads=False, now_ms=lambda: self._now_us() // 1000)
        self._blobs = _Blobs()
        self._handlers = NodeHandlers.build(Settings(), models=Models({}, offline=True, offline_delay_s=0))
        self._busy = _Busy()
        by_type = {name: self._handler(name, each, answers) for name, each in self._handlers.by_type.items()}
        self._executor = Executor(
            log=self._log,
            catalog=Catalog(lambda digest: document),
            refresh_definitions=lambda: None,
            handlers=by_type,
            blobs=self._blobs,
            vault=Vault(lambda: "of a test"),
            owner_id="test",
            slots={"wait": 1_000, "process": 4},
            max_steps=100_000,
            max_time_s=0,
            now_us=self._now_us,
            monotonic=self._loop.time,
            blocking=self._blocking,
        )

    def _on_escaped(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(error := context.get("exception"), BaseException):
            self._escaped.append(error)

    def _now_us(self) -> int:
        return int((_EPOCH_S + self._loop.time()) * 1e6)

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if getattr(function, "__name__", "") == "close":
            self._log.step()  # closing waits for what is outstanding
        return function(*arguments)

    def _handler(self, kind: str, real: Handler, answers: Mapping[str, Answer]) -> Handler:
        inner = _Unpinned(kind) if kind in _REACH_OUTSIDE else real
        return _Answering(inner, answers, self._busy)

    # --- running ---

    def run(self, command: StartRun, horizon_s: float) -> TestRun:
        started = self._loop.create_task(self._executor.start())
        self._loop.settle()
        self._log.send(Topic.COMMANDS, 0, encode_command(command))
        deadline, waited_from = self._loop.time() + horizon_s, time.monotonic()
        while not self._over(command.run_id):
            self._loop.settle()
            if self._escaped or (started.done() and started.exception() is not None):
                raise AssertionError("the executor broke") from (*self._escaped, started.exception())[0]
            if self._log.step() or self._loop.ready:
                waited_from = time.monotonic()
                continue
            if self._busy.count:
                self._loop.wait_for_others(_REAL_WAIT_S)
                if time.monotonic() - waited_from > self._patience_s:
                    raise AssertionError(f"a code node has not answered within {self._patience_s:g} s")
                continue
            timer = self._loop.next_timer()
            if timer is None or timer > deadline:
                raise AssertionError(f"the run has not ended within {horizon_s:g} s of virtual time")
            self._loop.advance(timer)
        return self._told(command)

    def _over(self, run_id: str) -> bool:
        events = self._events(run_id)
        return bool(events) and type(events[-1].event) in _ENDS

    def _events(self, run_id: str) -> list[Recorded]:
        """The run's events that are valid and readable, as outside readers get them."""
        validity, found = Validity(), []
        for batch in self._log.read(Topic.EVENTS, 0, 0):
            for record in batch:
                if validity.admit(stamp_of(record)) and run_of(record) == run_id:
                    found.append(decode_event(record))
        return found

    def _told(self, command: StartRun) -> TestRun:
        recorded = self._events(command.run_id)
        events = [self._event(each) for each in recorded]
        last: Any = restore(recorded[-1].event, self._blobs)
        return TestRun(
            status=_ENDS[type(last)],
            outputs=dict(getattr(last, "outputs", {})),
            error=getattr(last, "error", None),
            elapsed_s=events[-1].at_s,
            events=events,
        )

    def _event(self, recorded: Recorded) -> TestEvent:
        event = restore(recorded.event, self._blobs)
        left_out = {"type", "node_id", "path", "attempt"}
        return TestEvent(
            seq=recorded.seq,
            type=type(event).__name__,
            at_s=round(recorded.at_us / 1e6 - _EPOCH_S, 3),
            node_id=getattr(event, "node_id", None),
            path=getattr(event, "path", ""),
            attempt=getattr(event, "attempt", None),
            data=event.model_dump(mode="json", exclude_none=True, exclude=left_out),
        )

    def close(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.settle()
        self._log.close()
        closing = self._loop.create_task(self._handlers.close())
        while not closing.done():
            self._loop.settle()
            if not closing.done():
                self._loop.wait_for_others(_REAL_WAIT_S)
        self._loop.close()


# --- handlers ---


@dataclass(slots=True)
class _Busy:
    """How many attempts are under way somewhere else (a sandbox process): real time must pass for them."""

    count: int = 0


class _Answering(Handler):
    """A handler, unless the test answers for the node."""

    def __init__(self, inner: Handler, answers: Mapping[str, Answer], busy: _Busy) -> None:
        self._inner = inner
        self._answers = answers
        self._busy = busy
        self.effect = inner.effect
        self.slot = inner.slot

    def evaluate(self, node: Node, pool: Pool) -> Outcome | None:
        return None if self._answer(node) else self._inner.evaluate(node, pool)

    async def run(self, attempt: Attempt) -> Outcome:
        answer = self._answer(attempt.node)
        if answer is not None:
            return Succeeded(outputs=dict(answer(attempt)))
        self._busy.count += 1
        try:
            return await self._inner.run(attempt)
        finally:
            self._busy.count -= 1

    def _answer(self, node: Node) -> Answer | None:
        return self._answers.get(node.id) or self._answers.get(node.type)


class _Unpinned(Handler):
    """Stands where a test would reach outside."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        text = f'node "{node.id}" ({self._kind}) would reach outside: pin it or answer for it in the test'
        return Failed(text, "NotPinned")


class _Blobs:
    """Large values, in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def put(self, run_id: str, data: bytes) -> "Future[BlobRef]":
        name = str(len(self._kept))
        self._kept[name] = data
        done: Future[BlobRef] = Future()
        done.set_result({"$blob": {"id": name, "size": len(data), "place": "memory"}})
        return done

    def get(self, ref: JsonValue) -> bytes:
        stored: Any = ref
        return self._kept[stored["$blob"]["id"]]

    def pieces(self, ref: JsonValue, start: int = 0) -> Iterator[bytes]:
        yield self.get(ref)[start:]

    def close(self) -> None:
        """Nothing to give back."""


# --- time ---


class _NoWait(selectors.DefaultSelector):
    """Never waits by itself: the loop's owner decides who waits for what."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return found

    def wait(self, timeout_s: float) -> None:
        """Until something is ready to be read; the next `select` finds it."""
        super().select(timeout_s)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only through `advance`, and while it waits for other processes."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._waiter = _NoWait()
        super().__init__(self._waiter)

    def time(self) -> float:
        return self._virtual

    @property
    def ready(self) -> bool:
        """Whether something can run now."""
        return bool(self._ready)  # type: ignore[attr-defined]  # the loop's own queue: no public way

    def settle(self) -> None:
        """Run until nothing is ready any more; time stands still."""
        for _ in range(100_000):
            self.call_soon(self.stop)
            self.run_forever()
            if not self.ready:
                return
        raise AssertionError("the loop never came to rest")

    def next_timer(self) -> float | None:
        """When the next timer is due; None: there is none."""
        timers = [t for t in self._scheduled if not t.cancelled()]  # type: ignore[attr-defined]  # as above
        return min((timer.when() for timer in timers), default=None)

    def advance(self, to: float) -> None:
        """Let it be `to`."""
        self._virtual = max(self._virtual, to) + 1e-6

    def wait_for_others(self, timeout_s: float) -> None:
        """Wait in real time, which passes here, too."""
        began = time.monotonic()
        self._waiter.wait(timeout_s)
        self._virtual += time.monotonic() - began
