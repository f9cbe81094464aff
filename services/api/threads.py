"""Threads for calls that block (log reads, SQL, parsing documents), so that the event loop never does."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Done:
    """What `following` answers when there is nothing more; StopIteration cannot cross a future."""


DONE: Final = _Done()


class Threads:
    """A bounded pool of its own: who waits here never keeps others of the process waiting."""

    def __init__(self, size: int = 16) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="api")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *args, **kwargs))

    async def following(self, items: Iterator[T]) -> T | _Done:
        """The next item of a blocking iterator, or DONE."""
        return await self.run(_next, items)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _next(items: Iterator[T]) -> T | _Done:
    return next(items, DONE)
