"""A small world to crash executors in: a virtual clock, a log that lands step by step, scripted handlers.

Nothing here waits for real time: the loop jumps to the next timer when nothing else is left to do, so a simulation is
a function of its script.
"""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from libs.events.codec import Recorded, decode_event, encode_command, run_of, stamp_of, type_of
from libs.events.commands import AnyCommand, Caller, PauseRun, ResumeRun, StartRun, StopRun, SubmitForm
from libs.events.ids import new_run_id
from libs.events.log import Record, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import RUN_END_TYPES, FormExpired, FormOpened, FormSubmitted
from libs.events.sealing import Vault
from libs.events.validity import Validity
from libs.workflow.catalog import Catalog
from libs.workflow.definition import compile_document
from libs.workflow.machine import evolve, new_state
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import RunState
from services.executor.executor import Executor
from services.executor.nodes.port import Attempt, Handler
from tests.simulation.inline import inline_handlers

EPOCH_S = 1_800_000_000
VAULT = Vault(lambda: "secret-key-of-the-tests")


class _NoWait(selectors.SelectSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only through `advance`."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_NoWait())

    def time(self) -> float:
        return self._virtual

    def settle(self) -> None:
        """Run until nothing is ready any more; time stands still."""
        for _ in range(100_000):
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:  # type: ignore[attr-defined]  # the loop's own queue: no public way
                return
        raise AssertionError("the loop never came to rest")

    def next_timer(self) -> float | None:
        timers = [t for t in self._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        return min((timer.when() for timer in timers), default=None)

    def advance(self, to: float) -> None:
        self._virtual = max(self._virtual, to) + 1e-6


class Effects:
    """The outside world: counts what handlers did to it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        """Idempotency key -> calls."""
        self.started: list[str] = []
        self.finished: Counter[tuple[str, str, str]] = Counter()


class ScriptedHandler(Handler):
    """Waits `delay_s`, then answers what the script says: a text, or an exception text to fail with."""

    def __init__(
        self, effects: Effects, script: Callable[[Attempt], Outcome] | None = None, delay_s: float = 1.0
    ) -> None:
        self._effects = effects
        self._script = script
        self._delay_s = delay_s

    async def run(self, attempt: Attempt) -> Outcome:
        self._effects.calls[attempt.key] += 1
        self._effects.started.append(attempt.node.id)
        attempt.emit("result", f"{attempt.node.id} ")
        await asyncio.sleep(self._delay_s)
        self._effects.finished[attempt.run_id, attempt.path, attempt.node.id] += 1
        if self._script is not None:
            return self._script(attempt)
        return Succeeded(outputs={"result": f"{attempt.node.id} done"})


def fails(times: int) -> Callable[[Attempt], Outcome]:
    """A script that fails the first `times` attempts of every node."""

    def script(attempt: Attempt) -> Outcome:
        if attempt.number <= times:
            return Failed(f"attempt {attempt.number} failed", "ScriptedError")
        return Succeeded(outputs={"result": f"{attempt.node.id} at last"})

    return script


class _NoBlobs:
    """Blobs in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def put(self, run_id: str, data: bytes) -> "Future[dict[str, Any]]":
        import hashlib

        name = hashlib.sha256(data).hexdigest()
        self.kept[name] = data
        future: Future[dict[str, Any]] = Future()
        future.set_result({"$blob": {"id": name, "size": len(data), "place": "memory"}})
        return future

    def get(self, ref: dict[str, Any]) -> bytes:
        return self.kept[ref["$blob"]["id"]]


@dataclass
class World:
    """One log, any number of executors after (or beside) each other."""

    documents: dict[str, str] = field(default_factory=dict)
    max_steps: int = 100_000
    max_time_s: float = 0
    slots: dict[str, int] = field(default_factory=lambda: {"wait": 1000, "process": 4})
    script: Callable[[Attempt], Outcome] | None = None
    delay_s: float = 1.0
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    """Put over the inline handlers and the scripted code nodes."""
    checkpoint_bytes: int = 16 * 1024 * 1024
    snapshot_events: int = 1_000
    blocking_s: float = 0.0
    """How long blocking functions (recovery, hydration, read-backs) take."""

    def __post_init__(self) -> None:
        self.loop = VirtualLoop()
        self.escaped: list[BaseException] = []
        """Exceptions that nobody caught: a callback of the executor broke."""
        self.loop.set_exception_handler(self._on_escaped)
        self.store = MemoryStore(partitions=1)
        self.log = self._open()
        self.effects = Effects()
        self.blobs = _NoBlobs()
        self.catalog = Catalog(self.documents.get)
        self.landed = 0
        self.finished = 0
        """Starts that were refused: no run of theirs will end."""
        self._runs = 0
        self._owners = 0

    def _on_escaped(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(error := context.get("exception"), BaseException):
            self.escaped.append(error)

    # --- time and log ---

    def now_us(self) -> int:
        return int((EPOCH_S + self.loop.time()) * 1e6)

    def _open(self) -> MemoryLog:
        return MemoryLog(self.store, threads=False, now_ms=lambda: self.now_us() // 1000)

    # --- executors ---

    def start_executor(self, *, refresh: Callable[[], None] = lambda: None) -> Executor:
        self._owners += 1

        async def blocking(function: Callable[..., Any], *arguments: Any) -> Any:
            if getattr(function, "__name__", "") == "close":
                self.log.land()  # closing waits for what is outstanding
                self.log.deliver()
            result = function(*arguments)
            if self.blocking_s:
                await asyncio.sleep(self.blocking_s)
            return result

        self.executor = Executor(
            log=self.log,
            catalog=self.catalog,
            refresh_definitions=refresh,
            handlers={
                **inline_handlers(),
                "code": ScriptedHandler(self.effects, self.script, self.delay_s),
                **self.handlers,
            },
            blobs=self.blobs,
            vault=VAULT,
            owner_id=f"executor-{self._owners}",
            slots=self.slots,
            max_steps=self.max_steps,
            max_time_s=self.max_time_s,
            checkpoint_bytes=self.checkpoint_bytes,
            snapshot_events=self.snapshot_events,
            now_us=self.now_us,
            random_bits=random.Random(self._owners).getrandbits,
            monotonic=self.loop.time,
            blocking=blocking,
        )
        self._main = self.loop.create_task(self.executor.start())
        self.loop.settle()
        return self.executor

    def crash(self) -> None:
        """The executor's process dies: what it had not landed is gone, its handlers with it."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.settle()
        self.log = self._open()

    def run(
        self, *, landings: int | None = None, until: Callable[[], bool] | None = None, horizon_s: float = 1000
    ) -> bool:
        """Let the world go on: land entries one by one, jump in time when nothing else is left.

        Stops after `landings` more entries of the log, when `until` holds, or when nothing is left to do. Returns
        whether the landings were reached.
        """
        left = landings
        limit = self.loop.time() + horizon_s
        for _ in range(200_000):
            self.loop.settle()
            if until is not None and until():
                return False
            if self.log.waiting():
                if left == 0:
                    return True
                self.log.land(1)
                self.landed += 1
                left = None if left is None else left - 1
                self.log.deliver()
                continue
            self.log.deliver()
            self.loop.settle()
            if self.log.waiting():
                continue
            timer = self.loop.next_timer()
            if timer is None or timer > limit or self._idle():
                return False
            self.loop.advance(timer)
        raise AssertionError("the world never came to rest")

    def _idle(self) -> bool:
        """Only the executor's own heartbeat is left."""
        return not self._unfinished() and not self.log.waiting()

    def _unfinished(self) -> bool:
        records = self._valid_records()
        return (
            len({run_of(record) for record in records if type_of(record) in RUN_END_TYPES}) + self.finished < self._runs
        )

    # --- commands and what became of them ---

    def submit(self, digest: str, *, key: str | None = None, body: str = "", **inputs: str) -> str:
        return self.request(digest, inputs=dict(inputs), idempotency_key=key, body_digest=body)

    def request(self, digest: str, *, app_id: str = "app", **fields: Any) -> str:
        """Start a run; `fields`: those of the command that matter to the test."""
        self._runs += 1
        run_id = new_run_id(0, self.now_us(), self._runs)
        command = StartRun(
            run_id=run_id,
            app_id=app_id,
            workflow_id="workflow",
            version="1",
            digest=digest,
            not_after_us=self.now_us() + 60_000_000,
            **{"caller": Caller(id="caller", user="somebody")} | fields,
        )
        self.command(command)
        return run_id

    def stop(self, run_id: str) -> None:
        self.command(StopRun(run_id=run_id))

    def pause(self, run_id: str) -> None:
        self.command(PauseRun(run_id=run_id))

    def resume(self, run_id: str) -> None:
        self.command(ResumeRun(run_id=run_id))

    def open_forms(self, run_id: str) -> list[FormOpened]:
        """Forms of the run that the log says are open."""
        forms: dict[str, FormOpened] = {}
        for recorded in self.events(run_id):
            if isinstance(recorded.event, FormOpened):
                forms[recorded.event.form_id] = recorded.event
            elif isinstance(recorded.event, FormSubmitted | FormExpired):
                forms.pop(recorded.event.form_id)
        return list(forms.values())

    def submit_form(self, run_id: str, form_id: str, action: str = "ok", **inputs: str) -> None:
        self.command(SubmitForm(run_id=run_id, form_id=form_id, action=action, inputs=dict(inputs)))

    def command(self, command: AnyCommand) -> None:
        """Append a command; its sender has the acknowledgement, so no crash of an executor loses it."""
        assert not self.log.waiting()
        self.log.send(Topic.COMMANDS, 0, encode_command(command))
        self.log.land()
        self.log.deliver()

    def add(self, name: str, text: str) -> str:
        self.documents[name] = text
        compile_document(text)
        return name

    def events(self, run_id: str | None = None) -> list[Recorded]:
        """The valid events of the log, of one run or of all."""
        return [decode_event(each) for each in self._valid_records() if run_id is None or run_of(each) == run_id]

    def records(self, run_id: str) -> list[Record]:
        """The valid records of one run, as they stand in the log."""
        return [each for each in self._valid_records() if run_of(each) == run_id]

    def _valid_records(self) -> list[Record]:
        validity = Validity()
        _, end = self.log.bounds(Topic.EVENTS, 0)
        records = (record for batch in self.log.read(Topic.EVENTS, 0, 0, end) for record in batch)
        return [record for record in records if validity.admit(stamp_of(record))]

    def fold(self, run_id: str) -> RunState:
        events = self.events(run_id)
        accepted = events[0].event
        state = new_state(self.catalog.get(accepted.digest), run_id)  # type: ignore[union-attr]
        for expected, recorded in enumerate(events, 1):
            assert recorded.seq == expected, f"sequence {recorded.seq} where {expected} was due"
            evolve(state, recorded)
        return state

    def close(self) -> None:
        self.crash()
        self.loop.settle()
        self.loop.close()
        assert not self.escaped, self.escaped
