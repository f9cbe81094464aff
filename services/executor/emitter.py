"""Streamed text on its way to the chunks topic: joined for a few milliseconds, numbered by characters."""

import asyncio
from collections.abc import Callable

from libs.events.chunks import Chunk

FLUSH_AFTER_S = 0.015
FLUSH_AT_CHARACTERS = 2_000


class Emitter:
    """Collects the text of one attempt. The first piece leaves at once, later ones at most every 15 ms."""

    def __init__(self, pattern: Callable[[], Chunk], publish: Callable[[list[Chunk]], None]) -> None:
        """`pattern` makes what every chunk has in common: run, epoch, node, path, attempt, `after`.

        It is called only when something is emitted: most nodes stream nothing.
        """
        self._pattern = pattern
        self._publish = publish
        self._text: dict[str, list[str]] = {}
        self._positions: dict[str, int] = {}
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def emit(self, field: str, text: str) -> None:
        if not text:
            return
        is_first = field not in self._positions
        self._positions.setdefault(field, 0)
        self._text.setdefault(field, []).append(text)
        self._size += len(text)
        if is_first or self._size >= FLUSH_AT_CHARACTERS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self.flush)

    def flush(self) -> None:
        """Send what is collected; also ends the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        chunks = []
        pattern = self._pattern() if self._text else None
        for field, pieces in self._text.items():
            assert pattern is not None
            text = "".join(pieces)
            position = self._positions[field]
            chunks.append(pattern.model_copy(update={"field": field, "position": position, "text": text}))
            self._positions[field] = position + len(text)
        self._text.clear()
        self._size = 0
        if chunks:
            self._publish(chunks)

    def drop(self) -> None:
        """Forget what is collected: the attempt was cancelled."""
        self._text.clear()
        self.flush()
