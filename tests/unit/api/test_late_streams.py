"""Streams of runs that go on faster than this process reads."""

import asyncio
from typing import Any

import pytest

from services.api import streams
from services.api.frames import Cursor
from services.api.sse import Outbox
from services.api.streams import RunStreams
from services.api.tail import TailBehind


class _Late:
    """A run whose ring never reaches back far enough, and reads that are behind for a while, then find nothing."""

    filling = False
    run_id = "run"
    seq = 9

    def __init__(self, times: int) -> None:
        self.times = times

    def attach(self, receiver: object, after: object) -> bool:
        return False

    def live(self, run_id: str) -> "_Late":
        return self

    async def span(self, run_id: str) -> None:
        if self.times:
            self.times -= 1
            raise TailBehind("read up to 7")


def test_a_stream_that_is_behind_the_log_waits_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BEHIND_S", 0)
    late: Any = _Late(3)
    made = RunStreams(late, late, late, late, 1_000)
    made.join(late, late)
    written: list[bytes] = []

    async def write(data: bytes) -> None:
        written.append(data)

    asyncio.run(made.follow("run", Cursor(), Outbox(1_000), write))
    assert (late.times, written) == (0, [])
