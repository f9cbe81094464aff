"""Server-sent events on the wire: one bounded buffer per client, pings, and the answer that writes them.

A client costs one coroutine and one small buffer: no thread, no timer of its own, no task per frame. A frame is made
once and shared by all who watch. A client that reads too slowly loses its buffer, never its place: its stream goes on
from what it took last.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Any

from services.api.detached import Detached
from services.api.frames import PING, Cursor, Frame

Write = Callable[[bytes], Awaitable[None]]


class Outbox:
    """Frames on their way to one client. `push` never waits; one coroutine takes."""

    __slots__ = (
        "_ending", "_frames", "_limit", "_ping", "_size", "_waiter", "at_pause", "closed", "cursor", "failure",
        "finished", "overflowed", "through_pauses",
    )  # fmt: skip

    def __init__(self, limit_bytes: int, *, through_pauses: bool = False) -> None:
        """`through_pauses`: the stream does not end when the run is paused."""
        self.through_pauses = through_pauses
        self.at_pause = False
        """The frame that was written last says that the run is paused."""
        self._frames: list[Frame] = []
        self._limit = limit_bytes
        self._size = 0
        self._ping = False
        self._ending = False
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False
        """The client is gone, or is to be sent away."""
        self.overflowed = False
        """Frames were dropped: go on from `cursor`."""
        self.finished = False
        """The last frame was taken."""
        self.failure: tuple[str, str] | None = None
        self.cursor: Cursor | None = None
        """Behind the last frame that was taken and has an id."""

    def push(self, frames: Iterable[Frame]) -> None:
        if self.overflowed or self.closed:
            return
        for frame in frames:
            self._size += len(frame.wire)
            self._frames.append(frame)
        if self._size > self._limit:
            self._frames, self._size, self.overflowed = [], 0, True
        self._wake()

    def finish(self) -> None:
        """Nothing more comes."""
        self._ending = True
        self._wake()

    def fail(self, code: str, message: str) -> None:
        """Nothing more can come; the client is told."""
        self.failure = (code, message)
        self._wake()

    def ping(self) -> None:
        self._ping = True
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    @property
    def waiting_bytes(self) -> int:
        return self._size

    @property
    def ends_here(self) -> bool:
        """Whether the stream is over because the run is paused."""
        return self.at_pause and not self.through_pauses and not self._frames

    def recover(self) -> None:
        """Take frames again, after an overflow."""
        self.overflowed = False

    async def take(self) -> bytes:
        """What is to be written next; empty when the stream is over, or `overflowed`, or failed, or closed."""
        while not (self._frames or self._ping or self._ending or self.closed or self.overflowed or self.failure):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self._frames:
            self.finished = self.finished or self._ending
        if self.closed or self.finished or (self.failure and not self._frames):
            return b""
        frames, self._frames, self._size = self._frames, [], 0
        pinged, self._ping = self._ping, False
        for frame in reversed(frames):
            if frame.identified:
                self.cursor = frame.cursor
                break
        if frames:
            self.at_pause = frames[-1].pauses
            self.finished = self._ending = self._ending or frames[-1].last or self.ends_here
            return frames[0].wire if len(frames) == 1 else b"".join([frame.wire for frame in frames])
        return PING if pinged else b""

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Pinger:
    """Keeps silent streams alive, and ends those whose client takes nothing any more: one timer for all of them."""

    def __init__(self, every_s: float, stuck_s: float) -> None:
        self.every_s = every_s
        self._stuck_s = stuck_s
        self._due: list[tuple[float, int, EventStream]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: "EventStream") -> None:
        loop = asyncio.get_running_loop()
        stream.last_write_s = loop.time()
        heapq.heappush(self._due, (stream.last_write_s + self.every_s, next(self._numbers), stream))
        if self._timer is None:
            self._timer = loop.call_at(self._due[0][0], self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._due and self._due[0][0] <= now_s:
            _, _, stream = heapq.heappop(self._due)
            if stream.over:
                continue
            if stream.writing and now_s - stream.last_write_s > self._stuck_s:
                stream.abort()
                continue
            if not stream.writing and now_s - stream.last_write_s >= self.every_s - 0.001:
                stream.outbox.ping()
            due_s = max(stream.last_write_s + self.every_s, now_s + self.every_s / 10)
            heapq.heappush(self._due, (due_s, next(self._numbers), stream))
        self._timer = loop.call_at(self._due[0][0], self._tick) if self._due else None


class EventStream(Detached):
    """An answer that is a stream of frames. `source(write)` writes them and returns when the stream is over."""

    def __init__(
        self,
        outbox: Outbox,
        source: Callable[[Write], Awaitable[None]],
        pinger: Pinger,
        headers: dict[str, str],
        *,
        ping_first: bool = True,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                # Proxies that buffer would hold frames back until their buffer is full.
                "x-accel-buffering": "no",
            }
            | headers
        )
        self.outbox = outbox
        self.over = False
        self.writing = False
        self.last_write_s = 0.0
        self._source = source
        self._pinger = pinger
        self._ping_first = ping_first
        self._on_close = on_close
        self._send: Any = None
        self._task: asyncio.Task[Any] | None = None
        self._aborted = False

    async def run(self, gone: "asyncio.Future[None]", send: Any) -> None:
        self._send = send
        self._task = asyncio.current_task()
        gone.add_done_callback(self._client_left)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self.raw_headers = []
            self._pinger.add(self)
            if self._ping_first:
                await self._write(PING)
            await self._source(self._write)
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # the client is gone; the run goes on
        except asyncio.CancelledError:
            if not self._aborted:
                raise
        finally:
            self.abandon()

    def abandon(self) -> None:
        self.over = True
        self._on_close()

    def _client_left(self, _: object) -> None:
        self.outbox.close()

    async def _write(self, data: bytes) -> None:
        self.last_write_s = asyncio.get_running_loop().time()
        self.writing = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.writing = False

    def abort(self) -> None:
        """The client has taken nothing for too long: free everything."""
        self._aborted = True
        self.outbox.close()
        if self._task is not None:
            self._task.cancel()
