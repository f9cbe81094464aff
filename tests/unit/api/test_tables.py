"""Asking a database that may say nothing."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from services.api.records import Found, Records, RecordsUnavailable
from services.api.tables import Tables


class Silent:
    """Answers when it is let; counts who asks."""

    def __init__(self) -> None:
        self.asked = 0
        self.let = threading.Event()

    def run(self, run_id: str, partition: int) -> Found:
        self.asked += 1
        if run_id == "broken":
            raise RecordsUnavailable("refused")
        assert run_id == "quick" or self.let.wait(10)
        return Found({"id": run_id}, partition)


PATIENCE_S = 0.2
"""Long enough for a thread to be served on a busy machine."""


def asking(scenario: Callable[[Tables, Silent], Awaitable[None]], places: int = 2) -> None:
    async def main() -> None:
        records = Silent()
        try:
            await scenario(Tables(cast(Records, records), PATIENCE_S, places), records)
        finally:
            records.let.set()

    asyncio.run(main())


def test_answers_and_refusals_reach_who_asked() -> None:
    async def scenario(tables: Tables, _: Silent) -> None:
        assert await tables.run("quick", 3) == Found({"id": "quick"}, 3)
        with pytest.raises(RecordsUnavailable, match="refused"):
            await tables.run("broken", 0)

    asking(scenario)


def test_a_question_without_an_answer_is_given_up_in_time() -> None:
    async def scenario(tables: Tables, _: Silent) -> None:
        with pytest.raises(RecordsUnavailable, match=r"within 0\.2 s"):
            await tables.run("slow", 0)

    asking(scenario)


def test_when_all_places_wait_for_a_silent_database_questions_are_refused_at_once_until_it_speaks() -> None:
    async def scenario(tables: Tables, records: Silent) -> None:
        for _ in range(2):
            with pytest.raises(RecordsUnavailable):
                await tables.run("slow", 0)
        begin = time.monotonic()
        for _ in range(100):
            with pytest.raises(RecordsUnavailable, match="does not answer"):
                await tables.run("quick", 0)
        assert time.monotonic() - begin < 100 * PATIENCE_S / 2, "refusals waited"
        assert records.asked == 2
        records.let.set()
        async with asyncio.timeout(5):
            while True:
                try:
                    assert (await tables.run("quick", 7)).next_offset == 7
                    return
                except RecordsUnavailable:
                    await asyncio.sleep(0)

    asking(scenario)
