"""Server-sent events, read from pieces of bytes that may be cut anywhere."""

import codecs
import re
from collections.abc import Iterator
from typing import Final

# A line of a stream that is no stream (an endless body without a line break) must not fill the memory. An event may
# hold a picture.
MAX_EVENT_CHARACTERS: Final = 64 * 1024 * 1024

_LINE_END: Final = re.compile(r"\r\n|\n|\r")


class StreamTooLong(ValueError):
    """An event is larger than any event of a model."""


class EventReader:
    """`feed` bytes, get the data of every event that is complete. Comments, ids and event names are left out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._line: list[str] = []
        """The beginning of a line, in pieces: joined once, however long it gets."""
        self._length = 0
        """Of that beginning."""
        self._held = ""
        """A CR that is perhaps the first half of a CRLF."""
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[str]:
        text = self._held + self._decode(piece)
        self._held = "\r" if text.endswith("\r") else ""
        text = text[: len(text) - len(self._held)]
        start = 0
        for match in _LINE_END.finditer(text):
            yield from self._take(self._ended(text[start : match.start()]))
            start = match.end()
        self._line.append(text[start:])
        self._length += len(text) - start
        if self._size + self._length > MAX_EVENT_CHARACTERS:
            raise StreamTooLong(f"an event of the stream is longer than {MAX_EVENT_CHARACTERS} characters")

    def finish(self) -> Iterator[str]:
        """The data of an event that the end of the stream left without its blank line."""
        yield from self._take(self._ended(""))
        yield from self._take("")
        self._held = ""

    def _ended(self, rest: str) -> str:
        """The line that ends with `rest`."""
        line = "".join((*self._line, rest))
        self._line.clear()
        self._length = 0
        return line

    def _take(self, line: str) -> Iterator[str]:
        if line.startswith("data:"):
            value = line[5:].removeprefix(" ")
            self._data.append(value)
            self._size += len(value)
        elif not line and self._data:
            data, self._data, self._size = "\n".join(self._data), [], 0
            yield data
