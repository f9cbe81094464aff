"""The tables, once they are as new as the request.

A list is asked for behind answers and frames that were given already, so it waits until the projector has stored
everything that was in the log when the request came.
"""

import asyncio
from typing import Final

from libs.events.log import Log
from services.api.records import RecordsUnavailable
from services.api.tables import Tables
from services.api.tail import EventTail

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1


class FreshTables:
    def __init__(self, log: Log, tail: EventTail, tables: Tables | None, fresh_s: float, tables_s: float) -> None:
        self._log = log
        self._tail = tail
        self._tables = tables
        self._fresh_s = fresh_s
        self._tables_s = tables_s

    @property
    def partitions(self) -> int:
        return self._log.partitions

    async def tables(self, partition: int | None = None) -> Tables:
        """The tables with everything in them that is in the log as of now, or in one partition of it.

        Raises RecordsUnavailable, TailBehind.
        """
        tables = self._tables
        if tables is None:
            raise RecordsUnavailable("this server has no tables")
        numbers = range(self._log.partitions) if partition is None else range(partition, partition + 1)
        ends = await asyncio.gather(*(self._tail.fresh(number, self._fresh_s) for number in numbers))
        pause_s = _FIRST_PAUSE_S
        try:
            async with asyncio.timeout(self._tables_s):
                while True:
                    stored = await tables.progress()
                    if all(stored.get(number, 0) >= end for number, end in zip(numbers, ends, strict=True)):
                        return tables
                    # The projector tells nobody when it has committed: it may live anywhere, or not at all.
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except TimeoutError as error:
            raise RecordsUnavailable("the tables are behind the log") from error
