"""Answers that wait: they leave the framework before they begin, so that waiting costs little memory.

A route returns such an answer as any other. Its turn inside the framework only leaves a note; when every layer has
returned and freed its frames, the outermost one (`services.api.edge`) runs it.
"""

import asyncio
from typing import Any

from starlette.responses import Response

_NOTE = "flowledger.answer"
_KEPT = frozenset(
    {
        "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
        "client", "server", "state", "extensions",
    }
)  # fmt: skip


class Detached(Response):
    """Override `run`; set `raw_headers`."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.background = None
        self.status_code = 200
        self.body = b""
        self.raw_headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope[_NOTE] = self

    async def run(self, gone: "asyncio.Future[None]", send: Any) -> None:
        """Answer through `send`; `gone` is done when the client has left."""
        raise NotImplementedError

    def abandon(self) -> None:
        """It will not be run after all: free what it holds."""


async def run_detached(scope: Any, receive: Any, send: Any) -> None:
    """Run the answer that a route has left in `scope`, if any."""
    answer: Detached | None = scope.pop(_NOTE, None)
    if answer is None:
        return
    for name in scope.keys() - _KEPT:  # the server keeps the scope for as long as the answer lasts
        del scope[name]
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await answer.run(gone, send)
    finally:
        gone.cancel()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
