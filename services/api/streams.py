"""Clients that follow runs: attach, resume, catch up, and fall back to the log when a client is too slow.

A stream subscribes first and reads history second; events are joined by their sequence. So it has no gap and no
duplicate, on any replica, for runs that go on and for runs that ended long ago.
"""

import asyncio
import logging
from collections.abc import Iterator

from libs.events.blobs import Blobs
from libs.events.codec import CodecError, Recorded
from libs.events.log import Log, LogError
from libs.events.model import RunAccepted
from libs.events.sealing import SealError
from libs.workflow.catalog import Catalog, DefinitionMissing
from libs.workflow.definition import Definition, DefinitionInvalid
from services.api.frames import Cursor, FrameMaker, error_frame
from services.api.history import Span, read_events, restored
from services.api.live import Fold, LiveRun, Receiver, Ring
from services.api.reads import Reads, RunSummary
from services.api.replay import Step, replay
from services.api.sse import Outbox, Write
from services.api.tail import EventTail, TailBehind
from services.api.threads import DONE, Threads

logger = logging.getLogger(__name__)

BEHIND_S = 0.2
"""How long a stream waits when the log is read later than its run happens."""


class RunStreams:
    def __init__(self, log: Log, blobs: Blobs, catalog: Catalog, threads: Threads, buffer_bytes: int) -> None:
        self._log = log
        self._blobs = blobs
        self._catalog = catalog
        self._threads = threads
        self._buffer_bytes = buffer_bytes
        self._tail: EventTail | None = None
        self._reads: Reads | None = None
        self._fills: dict[str, asyncio.Task[bool]] = {}
        self._restores: set[asyncio.Task[None]] = set()
        self._open: set[Outbox] = set()

    def join(self, tail: EventTail, reads: Reads) -> None:
        """The other two parts of the circle: the tail feeds live runs, reads find where a run's events stand."""
        self._tail, self._reads = tail, reads

    @property
    def tail(self) -> EventTail:
        assert self._tail is not None
        return self._tail

    @property
    def reads(self) -> Reads:
        assert self._reads is not None
        return self._reads

    # --- clients ---

    def new_outbox(self, *, through_pauses: bool = False) -> Outbox:
        outbox = Outbox(self._buffer_bytes, through_pauses=through_pauses)
        self._open.add(outbox)
        return outbox

    def discard(self, receiver: Receiver, run_id: str) -> None:
        """The client is gone: free what it held."""
        if isinstance(receiver, Outbox):
            self._open.discard(receiver)
        live = self.tail.live(run_id)
        if live is not None:
            live.detach(receiver)

    def close(self) -> None:
        """Send all clients away; they may resume elsewhere."""
        for outbox in tuple(self._open):
            outbox.close()

    @property
    def clients(self) -> int:
        return len(self._open)

    @property
    def waiting_bytes(self) -> int:
        """Made for clients and not taken yet; the largest is bounded by the limit per client."""
        return max((outbox.waiting_bytes for outbox in self._open), default=0)

    # --- live folds ---

    def make_live(self, run_id: str) -> LiveRun:
        return LiveRun(run_id, self._definition_or_none, self._restore)

    def begin(self, run_id: str, receiver: Receiver) -> None:
        """Follow a run that is about to be started: nothing of it is in the log yet."""
        self.tail.watch(run_id).attach(receiver, Cursor())

    async def live(self, run_id: str) -> LiveRun | None:
        """The complete live fold of a run, filled from the log if need be; None: there is no such run.

        Raises TailBehind, LogError, CodecError.
        """
        found = self.tail.live(run_id)
        if found is None:
            found = self.tail.watch(run_id)
            found.hold()  # from here on nothing is missed; what is read from the log besides is dropped by sequence
            fill = self._fills[run_id] = asyncio.ensure_future(self._fill(found))
            fill.add_done_callback(lambda done: self._filled(run_id, done))
        if found.filling:
            return found if await asyncio.shield(self._fills[run_id]) else None
        return found

    def _filled(self, run_id: str, done: "asyncio.Task[bool]") -> None:
        self._fills.pop(run_id, None)
        if done.cancelled() or done.exception() is not None or not done.result():
            self.tail.forget(run_id)

    async def _fill(self, live: LiveRun) -> bool:
        span = await self.reads.span(live.run_id)
        if span is None:
            return False
        filled = await self._threads.run(self._fold, span)
        if filled is None:
            return False
        live.fill(*filled)
        return True

    def _fold(self, span: Span) -> tuple[Fold, Ring] | None:
        """Blocking."""
        fold: Fold | None = None
        ring = Ring()
        for _, frames, made in self._frames(span):
            fold = made
            for frame in frames:
                ring.keep(frame)
        return None if fold is None else (fold, ring)

    def _frames(self, span: Span) -> Iterator[Step]:
        """The run's history, event by event. Blocking."""
        fold: Fold | None = None
        for events in read_events(self._log, self._blobs, span):
            for recorded in events:
                if fold is None:
                    assert isinstance(recorded.event, RunAccepted)  # sequence 1 is nothing else
                    fold = Fold(span.run_id, self._definition_or_none(recorded.event.digest))
                yield recorded, fold.on_event(recorded), fold

    def _definition_or_none(self, digest: str) -> Definition | None:
        # Starts and fills have compiled it before, so this is a look-up; at worst it parses once more.
        try:
            return self._catalog.get(digest)
        except (DefinitionMissing, DefinitionInvalid, SealError) as error:
            logger.warning("definition_unusable", extra={"digest": digest, "problem": str(error)[:200]})
            return None

    def _restore(self, live: LiveRun, recorded: Recorded) -> None:
        task = asyncio.ensure_future(self._restored(live, recorded))
        self._restores.add(task)
        task.add_done_callback(self._restores.discard)

    async def _restored(self, live: LiveRun, recorded: Recorded) -> None:
        try:
            whole = await self._threads.run(restored, recorded, self._blobs)
        except LogError as error:
            live.break_off(str(error))
            return
        live.restored(whole)

    # --- following ---

    async def follow(self, run_id: str, after: Cursor | None, outbox: Outbox, write: Write) -> None:
        """Write what follows `after` (None: what is still to come) until the run ends or the client is gone."""
        try:
            live = self.tail.live(run_id)
            if live is None and after is not None and await self._catch_up_ended(run_id, after, write):
                return
            live = await self.live(run_id)
            if live is None:
                await write(error_frame(run_id, "not_found", 404, "there is no such run"))
                return
            await self._follow(live, after, outbox, write)
        except (TailBehind, LogError, CodecError) as error:
            logger.warning("stream_broken", extra={"run_id": run_id, "problem": str(error)})
            message = "the log cannot be read now. Attach again with the last id"
            await write(error_frame(run_id, "service_unavailable", 503, message))

    async def _follow(self, live: LiveRun, after: Cursor | None, outbox: Outbox, write: Write) -> None:
        if after is None:
            after = live.place
        while not outbox.closed:
            attached = live.attach(outbox, after)
            if attached and outbox.overflowed:
                # More than a client may have waiting (one frame may be): from the log, as fast as it reads.
                live.detach(outbox)
                outbox.recover()
                attached = False
            if attached:
                if outbox.ends_here or await self.pump(live.run_id, outbox, write):
                    return
                live.detach(outbox)
                outbox.recover()
                after = outbox.cursor or after
            else:
                try:
                    span = await self.reads.span(live.run_id)
                except TailBehind:
                    # A stream may be late, it only must not lie; its client could do nothing but attach again.
                    await asyncio.sleep(BEHIND_S)
                    continue
                if span is None:
                    return
                reached = await self._catch_up(span, after, live.seq, outbox, write)
                if reached is None:
                    return
                after = outbox.cursor = reached  # the outbox did not see these frames

    async def resume(self, run_id: str, outbox: Outbox, write: Write) -> None:
        """Go on with an outbox that is attached already."""
        if not await self.pump(run_id, outbox, write):
            after = outbox.cursor or Cursor()
            live = self.tail.live(run_id)
            if live is not None:
                live.detach(outbox)
            outbox.recover()
            await self.follow(run_id, after, outbox, write)

    async def pump(self, run_id: str, outbox: Outbox, write: Write) -> bool:
        """Write what comes. True: the stream is over; False: the client was too slow and has lost frames."""
        while True:
            data = await outbox.take()
            if data:
                await write(data)
            if outbox.closed or outbox.finished:
                return True
            if outbox.overflowed:
                return False
            if not data and outbox.failure is not None:
                code, message = outbox.failure
                await write(error_frame(run_id, code, 500, message))
                return True

    async def _catch_up_ended(self, run_id: str, after: Cursor, write: Write) -> bool:
        """Whether the run has ended and everything behind `after` was written, from the log alone."""
        summary = await self.reads.summary(run_id)
        if summary is None or not summary.ended:
            return False
        span = await self.reads.span(run_id)
        return span is not None and await self._catch_up(span, after, summary.seq, None, write) is None

    async def _catch_up(
        self, span: Span, after: Cursor, to_seq: int, outbox: Outbox | None, write: Write
    ) -> Cursor | None:
        """Write frames from the log behind `after`, up to event `to_seq`; where that ends (None: the run is over)."""
        pages = replay(self._frames(span), after, to_seq)
        reached = after
        while (page := await self._threads.following(pages)) is not DONE:
            frames, reached = page  # type: ignore[misc]  # not DONE
            if frames:
                await write(b"".join([frame.wire for frame in frames]))
                if outbox is not None:
                    outbox.at_pause = frames[-1].pauses
            if (frames and frames[-1].last) or (outbox is not None and outbox.closed):
                return None
        return reached

    async def finished_frame(self, summary: RunSummary) -> bytes:
        """The one frame for who attaches to a run that has ended, without an id to resume from.

        As in the reference it is made from the record, and carries the run's id as `task_id`.
        """
        span = await self.reads.span(summary.id)
        maker = FrameMaker(summary.id)
        maker.task_id = summary.id
        if span is not None:
            async for events in self.reads.events(span):
                for recorded in events:
                    maker.on_event(recorded)
        return maker.finished_frame() if maker.ended else b""
