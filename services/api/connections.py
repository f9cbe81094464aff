"""Connections whose request does not come: closed after a while, so that nobody holds one for ever without a key."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADERS_S: Final = 30.0
"""For the first request of a connection, and for the rest of the headers of one that has begun. Between requests
uvicorn's own time for connections that are kept alive applies, and for a body that of `requests.BODY_S`."""


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # which class it is, is known at run time
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether no request is there that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._waits:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._waits and not self.transport.is_closing():
            self.transport.close()
