"""The one reader of new records in an API process: events and chunks of all partitions.

Batches cross from the adapter's threads to the event loop once each. Headers alone decide where a record goes; bodies
are decoded only for runs that somebody watches and for answers to our own commands. The validity rule stands before
everything: what it does not admit nobody sees.

Also kept, from headers alone: an outline of the runs seen lately (where their first and last records stand), answers
to commands that are under way, and how far each partition was read, so that a read can wait until it is not older
than the request.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from libs.events.chunks import decode_chunk
from libs.events.codec import CodecError, decode_event, from_rfc3339, run_of, stamp_of, type_of
from libs.events.log import Log, LogDenied, LogError, Record, Tail, Topic
from libs.events.model import CHANGE_EVENT_TYPES, RUN_END_TYPES, CommandRejected, RunSetAside
from libs.events.positions import Position, Waymarks, start_positions
from libs.events.validity import Validity
from services.api.live import LiveRun
from services.api.threads import Threads

logger = logging.getLogger(__name__)

T = TypeVar("T")

Answer = CommandRejected | RunSetAside | str
"""What became of a command: its rejection; why a released run is set aside again; the id of the run it acted on."""

SLICE_S = 0.000_25
"""How long events are taken before something else has its turn."""

ASK_AGAIN_S = 1.0
"""Between two looks whether a log that refused us lets us in again."""

MAX_OUTLINES = 50_000
MAX_IDLE_RUNS = 500
MAX_IDLE_BYTES = 64 * 1024 * 1024

_STATUS = {
    "RunSucceeded": "succeeded",
    "RunPartiallySucceeded": "partial-succeeded",
    "RunFailed": "failed",
    "RunStopped": "stopped",
    "RunPaused": "paused",
    "RunResumed": "running",
}
_ANSWERS = frozenset({"RunAccepted", "StopRequested", "PauseRequested", "ResumeRequested", "FormSubmitted"})
_OF_A_RELEASE = frozenset({"RunSetAside", "RunSnapshotted"})
"""How the release of a run went; with the cause of the release."""
_RESTS = RUN_END_TYPES | {"RunPaused"}
"""Events behind which a run does nothing by itself."""


@dataclass(slots=True)
class Outline:
    """What the headers of a run's records tell; complete, because it begins with the run's first event."""

    first_offset: int
    last_offset: int
    accepted_us: int
    seq: int = 1
    status: str = "pending"
    started_us: int = 0
    pause_offset: int | None = None
    """Of its last pause."""

    @property
    def ended(self) -> bool:
        return self.status not in ("pending", "running", "paused")


class TailBehind(Exception):
    """This replica has not read far enough in time. Ask again, or another replica."""


@dataclass(slots=True)
class _Partition:
    validity: Validity
    next_offset: int
    marks: Waymarks
    expecting: int = 0
    """Commands under way whose answers are of interest."""
    answers: dict[int, Answer] = field(default_factory=dict)
    asked: dict[int, "asyncio.Future[Answer]"] = field(default_factory=dict)
    waiting: list[tuple[int, "asyncio.Future[None]"]] = field(default_factory=list)
    lookup: "asyncio.Task[int] | None" = None
    next_lookup: "asyncio.Task[int] | None" = None


class EventTail:
    """See the module docstring. Everything but `start` runs on the event loop."""

    def __init__(
        self, log: Log, threads: Threads, make_live: Callable[[str], LiveRun], on_failed: Callable[[], None]
    ) -> None:
        """`on_failed`: called when nothing new can arrive any more; who waits here should go elsewhere."""
        self._log = log
        self._threads = threads
        self._make_live = make_live
        self._on_failed = on_failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._partitions: dict[int, _Partition] = {}
        self._tails: list[Tail] = []
        self._outlines: OrderedDict[str, Outline] = OrderedDict()
        self._live: OrderedDict[str, LiveRun] = OrderedDict()
        self._ends: dict[str, list[asyncio.Future[Record]]] = {}
        self._until_drop = 0
        self._open: set[str] = set()
        self._arrived: deque[Record] = deque()
        self._taking = False
        self._asking: asyncio.Task[None] | None = None
        self.problem: str | None = "the tail has not started"
        """Why nothing new arrives; None while all is well."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    @property
    def open_runs(self) -> int:
        """Runs under way, paused ones aside, as far as records that were read here tell."""
        return len(self._open)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        starts = await self._threads.run(start_positions, self._log)
        for number, position in starts.items():
            state = _Partition(Validity(position.epoch, position.n), position.offset, Waymarks())
            state.marks.pass_by(position)
            self._partitions[number] = state
        chunk_ends = await self._threads.run(self._chunk_ends)
        self.problem = None
        offsets = {number: position.offset for number, position in starts.items()}
        for topic, begins, take in (
            (Topic.CHUNKS, chunk_ends, self._on_chunks),
            (Topic.EVENTS, offsets, self._on_events),
        ):
            opened = await self._threads.run(
                self._log.tail,
                topic,
                begins,
                partial(self._hand_over, take),
                partial(self._hand_over, self._failed),
                prompt=True,
            )
            self._tails.append(opened)

    def _hand_over(self, take: Callable[[T], None], what: T) -> None:
        """From the adapter's thread to the loop: one step a batch."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(take, what)

    def _chunk_ends(self) -> dict[int, int]:
        return {number: self._log.bounds(Topic.CHUNKS, number)[1] for number in range(self._log.partitions)}

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        tails, self._tails = self._tails, []
        for tail in tails:
            await self._threads.run(tail.close)
        self.problem = self.problem or "the tail was stopped"
        self._give_up()

    # --- what comes ---

    def _failed(self, error: LogError) -> None:
        passing = isinstance(error, LogDenied)
        if passing and self.problem is not None:
            return  # it is looked after already, or nothing helps any more
        logger.error("tail_failed", extra={"problem": str(error)})
        self.problem = str(error)
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if passing:
            self._asking = self.loop.create_task(self._until_let_in())
        self._give_up()

    async def _until_let_in(self) -> None:
        """The tails themselves go on where they were, but nobody tells when: see whether a record can be read."""
        while True:
            await asyncio.sleep(ASK_AGAIN_S)
            try:
                await self._threads.run(self._read_last_records)
            except LogError as error:
                if isinstance(error, LogDenied):
                    self.problem = str(error)
            else:
                logger.warning("tail_goes_on")
                self.problem = self._asking = None
                return

    def _read_last_records(self) -> None:
        for topic in (Topic.EVENTS, Topic.CHUNKS):
            for number in self._partitions:
                first, end = self._log.bounds(topic, number)
                for _ in self._log.read(topic, number, max(first, end - 1), end):
                    pass

    def _give_up(self) -> None:
        """Who waits for something to come waits in vain."""
        self._on_failed()
        for partition in self._partitions.values():
            for _, waiter in partition.waiting:
                if not waiter.done():
                    waiter.set_exception(TailBehind(self.problem))
            partition.waiting.clear()
        for ends in list(self._ends.values()):
            for end in list(ends):
                end.cancel()

    def _on_events(self, records: list[Record]) -> None:
        """Take them slice by slice: what the first ones cause leaves while the last ones still wait."""
        self._arrived.extend(records)
        if not self._taking:
            self._take_slice()

    def _take_slice(self) -> None:
        until = time.perf_counter() + SLICE_S
        touched = set()
        try:
            while self._arrived:
                record = self._arrived.popleft()
                touched.add(record.partition)
                self._take(record)
                if time.perf_counter() > until:
                    break
        finally:
            for number in touched:
                self._passed(self._partitions[number])
            self._taking = bool(self._arrived)
            if self._taking:
                self.loop.call_soon(self._take_slice)

    def _take(self, record: Record) -> None:
        partition = self._partitions[record.partition]
        partition.next_offset = record.offset + 1
        if not partition.validity.admit(stamp_of(record)):
            return
        name = type_of(record)
        run_id = run_of(record)
        if run_id:
            self._on_run_event(partition, record, name, run_id)
        elif name == "CommandRejected" and partition.expecting:
            self._on_rejected(partition, record)
        elif name in _OF_A_RELEASE and partition.expecting:
            self._on_release(partition, record)
        elif name in CHANGE_EVENT_TYPES and partition.expecting:
            offset = _command_offset(record)
            if offset is not None:
                self._answer(partition, offset, "")

    def _on_run_event(self, partition: _Partition, record: Record, name: str, run_id: str) -> None:
        self._outline(record, name, run_id)
        if name in RUN_END_TYPES or name == "RunPaused":
            self._open.discard(run_id)
        elif name != "PauseRequested":  # a paused run that is to pause stays as it is
            self._open.add(run_id)
        if partition.expecting and name in _ANSWERS:
            offset = _command_offset(record)
            if offset is not None:
                self._answer(partition, offset, run_id)
        live = self._live.get(run_id)
        if live is not None:
            live.on_record(record)
        if name in _RESTS and run_id in self._ends:
            for waiter in self._ends.pop(run_id):
                if not waiter.done():
                    waiter.set_result(record)

    def _outline(self, record: Record, name: str, run_id: str) -> None:
        if name == "RunAccepted":
            self._outlines[run_id] = Outline(record.offset, record.offset, _time_of(record))
            if len(self._outlines) > MAX_OUTLINES:
                self._outlines.popitem(last=False)
            return
        outline = self._outlines.get(run_id)
        if outline is None:
            return
        outline.seq += 1
        outline.last_offset = record.offset
        if name == "RunStarted":
            outline.status, outline.started_us = "running", _time_of(record)
        elif name in _STATUS:
            outline.status = _STATUS[name]
            if name == "RunPaused":
                outline.pause_offset = record.offset

    def _on_rejected(self, partition: _Partition, record: Record) -> None:
        try:
            event = decode_event(record).event
        except CodecError as error:
            logger.error("event_unreadable", extra={"problem": str(error)})
            return
        if isinstance(event, CommandRejected):
            self._answer(partition, event.command_offset, event)

    def _on_release(self, partition: _Partition, record: Record) -> None:
        offset = _command_offset(record)
        if offset is None:  # an owner's own doing
            return
        event = decode_event(record).event if type_of(record) == "RunSetAside" else None
        self._answer(partition, offset, event if isinstance(event, RunSetAside) else "")

    def _answer(self, partition: _Partition, offset: int, answer: Answer) -> None:
        asked = partition.asked.get(offset)
        if asked is None:
            partition.answers[offset] = answer  # our own append may not have been acknowledged yet
        elif not asked.done():
            asked.set_result(answer)

    def _passed(self, partition: _Partition) -> None:
        validity = partition.validity
        partition.marks.pass_by(Position(partition.next_offset, validity.epoch, validity.n))
        if partition.waiting:
            for offset, waiter in partition.waiting:
                if offset <= partition.next_offset and not waiter.done():
                    waiter.set_result(None)
            partition.waiting = [item for item in partition.waiting if not item[1].done()]

    def _on_chunks(self, records: list[Record]) -> None:
        for record in records:
            live = self._live.get((record.key or b"").decode("ascii", "replace"))
            if live is not None:
                chunk = decode_chunk(record)
                if chunk is not None:
                    live.on_chunk(chunk)

    # --- answers to commands ---

    @contextmanager
    def expecting(self, partition: int) -> Iterator[None]:
        """Keep answers of the partition: from before the command is sent until its answer was taken."""
        state = self._partitions[partition]
        state.expecting += 1
        try:
            yield
        finally:
            state.expecting -= 1
            if not state.expecting:
                state.answers.clear()

    async def answer(self, partition: int, command_offset: int, timeout_s: float) -> Answer:
        """Raises TimeoutError."""
        state = self._partitions[partition]
        if command_offset in state.answers:
            return state.answers.pop(command_offset)
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        state.asked[command_offset] = waiter
        try:
            return await asyncio.wait_for(waiter, timeout_s)
        finally:
            del state.asked[command_offset]

    # --- reads that are not older than their request ---

    async def fresh(self, partition: int, timeout_s: float) -> int:
        """Wait until everything that is in the partition as of now was read; the end offset as of now.

        Raises TailBehind when that takes longer than `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                end = await self._end_now(partition)
                await self._reach(partition, end)
                return end
        except TimeoutError as error:
            behind = self.problem or f"read up to {self._partitions[partition].next_offset}"
            raise TailBehind(f"events[{partition}]: {behind}") from error
        except LogError as error:
            raise TailBehind(f"events[{partition}]: {error}") from error

    async def _end_now(self, partition: int) -> int:
        """The end offset, from a look-up that begins after this call; whoever waits for the same one shares it."""
        state = self._partitions[partition]
        if state.lookup is None or state.lookup.done():
            state.lookup = _quiet(self._look_up(partition, None))
            return await asyncio.shield(state.lookup)
        # One is under way: its answer may be from before this request. The next one serves all who come meanwhile.
        if state.next_lookup is None or state.next_lookup.done():
            state.next_lookup = _quiet(self._look_up(partition, state.lookup))
        return await asyncio.shield(state.next_lookup)

    async def _look_up(self, partition: int, after: "asyncio.Task[int] | None") -> int:
        state = self._partitions[partition]
        if after is not None:
            await asyncio.wait([after])
            state.lookup, state.next_lookup = state.next_lookup, None
        _, end = await self._threads.run(self._log.bounds, Topic.EVENTS, partition)
        return end

    async def _reach(self, partition: int, offset: int) -> None:
        state = self._partitions[partition]
        if state.next_offset < offset:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            state.waiting.append((offset, waiter))
            await waiter

    def lag(self, ends: dict[int, int]) -> int:
        """Records between what was read and `ends` (partition -> end offset), in the partition that is worst."""
        return max((end - self._partitions[number].next_offset for number, end in ends.items()), default=0)

    @property
    def ignored(self) -> int:
        """Records that the validity rule did not admit."""
        return sum(state.validity.ignored for state in self._partitions.values())

    @property
    def partitions(self) -> tuple[int, ...]:
        return tuple(self._partitions)

    def waymark(self, partition: int, offset: int) -> Position:
        """The last position not behind `offset` whose validity state is known."""
        return self._partitions[partition].marks.before(offset)

    # --- runs ---

    def outline(self, run_id: str) -> Outline | None:
        """What is known of a run from headers; None for runs that began before this process looked."""
        return self._outlines.get(run_id)

    def end_of(self, run_id: str) -> "asyncio.Future[Record]":
        """The record that ends or pauses the run, when it comes. Ask before it can have come."""
        waiter: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._ends.setdefault(run_id, []).append(waiter)
        waiter.add_done_callback(lambda _: self._forget_end(run_id, waiter))
        return waiter

    def _forget_end(self, run_id: str, waiter: "asyncio.Future[Record]") -> None:
        waiters = self._ends.get(run_id)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._ends[run_id]

    def live(self, run_id: str) -> LiveRun | None:
        found = self._live.get(run_id)
        if found is not None:
            self._live.move_to_end(run_id)
        return found

    def watch(self, run_id: str) -> LiveRun:
        """The run's live fold; a new one must be filled from the log unless the run has no event yet."""
        found = self.live(run_id)
        if found is None:
            found = self._live[run_id] = self._make_live(run_id)
            self._drop_idle()
        return found

    def forget(self, run_id: str) -> None:
        self._live.pop(run_id, None)

    def _drop_idle(self) -> None:
        """Runs that nobody watches stay for a while, so that a client that comes back finds their frames."""
        self._until_drop -= 1
        if self._until_drop > 0:
            return
        self._until_drop = max(50, len(self._live) // 8)  # looking at all of them costs: not for every new one
        idle = [run for run in self._live.values() if not run.watched and not run.filling]
        spare = sum(run.size_bytes for run in idle) - MAX_IDLE_BYTES
        count = len(idle) - MAX_IDLE_RUNS
        for run in idle:
            if spare <= 0 and count <= 0:
                return
            del self._live[run.run_id]
            spare, count = spare - run.size_bytes, count - 1

    @property
    def live_runs(self) -> int:
        return len(self._live)


def _quiet(call: Coroutine[Any, Any, int]) -> "asyncio.Task[int]":
    """A task whose failure may find nobody waiting any more."""
    task = asyncio.ensure_future(call)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _command_offset(record: Record) -> int | None:
    cause = record.headers.get("ce_cause", b"")
    prefix, _, offset = cause.partition(b":")
    return int(offset) if prefix == b"command" and offset.isdigit() else None


def _time_of(record: Record) -> int:
    try:
        return from_rfc3339(record.headers["ce_time"].decode())
    except (KeyError, ValueError):
        return record.timestamp_ms * 1000
