"""The tables, asked without waiting for ever: a database that says nothing must not hold up what the log can answer.

Whoever asks gives up after `timeout_s`. The question's thread cannot: it waits until the connection breaks, and keeps
its place. When all places are taken by such questions, new ones are refused at once, until one of them is answered.
Threads are daemons, so that a process ends although its database is silent.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from services.api.records import EndUser, Filter, Found, LogFilter, Records, RecordsUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Tables:
    """`Records` for the event loop. All methods raise RecordsUnavailable."""

    def __init__(self, records: Records, timeout_s: float, places: int = 8) -> None:
        self._records = records
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(places)
        self._silent = False
        """A question went unanswered, and none was answered since."""
        self._told = False

    async def run(self, run_id: str, partition: int) -> Found:
        return await self._ask(lambda: self._records.run(run_id, partition))

    async def runs(self, wanted: Filter, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._ask(lambda: self._records.runs(wanted, limit))

    async def ask(self, question: Callable[[Connection], T]) -> T:
        """What `question` reads, on one connection."""
        return await self._ask(lambda: self._records.ask(question))

    async def progress(self) -> dict[int, int]:
        return await self._ask(self._records.progress)

    async def logs(self, wanted: LogFilter, page: int, limit: int) -> tuple[Sequence[Mapping[str, Any]], int]:
        return await self._ask(lambda: self._records.logs(wanted, page, limit))

    async def end_user(self, app_id: str, user_id: str) -> EndUser | None:
        return await self._ask(lambda: self._records.end_user(app_id, user_id))

    async def _ask(self, question: Callable[[], T]) -> T:
        try:
            answer = await self._asked(question)
        except RecordsUnavailable as error:
            if not self._told:  # once an outage: every list asks
                logger.warning("database_unavailable", extra={"problem": str(error)})
            self._told = True
            raise
        self._told = False
        return answer

    async def _asked(self, question: Callable[[], T]) -> T:
        if self._silent and self._places.locked():
            raise RecordsUnavailable("the database does not answer")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
                return await self._answer(question)
        except TimeoutError as error:
            self._silent = True
            raise RecordsUnavailable(f"the database did not answer within {self._timeout_s:g} s") from error

    def _answer(self, question: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                value = question()
            except Exception as error:  # it belongs to whoever asked
                tell(answer.set_exception, error)
            else:
                tell(answer.set_result, value)

        def tell(settle: Callable[[Any], None], value: object) -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(answered, settle, value)

        def answered(settle: Callable[[Any], None], value: object) -> None:
            self._places.release()
            self._silent = False
            if not answer.done():
                settle(value)

        threading.Thread(target=work, name="tables", daemon=True).start()
        return answer
