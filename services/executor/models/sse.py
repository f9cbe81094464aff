"""Server-sent events, read from pieces of bytes that may be cut anywhere."""

import codecs
import re
from collections.abc import Iterator
from typing import Final

# A line of a stream that is no stream (an endless body without a line break) must not fill the memory.
MAX_EVENT_CHARACTERS: Final = 8 * 1024 * 1024

_LINE_END: Final = re.compile(r"\r\n|\n|\r")


class StreamTooLong(ValueError):
    """An event is larger than any event of a model."""


class EventReader:
    """`feed` bytes, get the data of every event that is complete. Comments, ids and event names are left out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._line = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[str]:
        text = self._line + self._decode(piece)
        start = 0
        for match in _LINE_END.finditer(text):
            if match[0] == "\r" and match.end() == len(text):
                break  # perhaps the first half of a CRLF
            yield from self._take(text[start : match.start()])
            start = match.end()
        self._line = text[start:]
        if self._size + len(self._line) > MAX_EVENT_CHARACTERS:
            raise StreamTooLong(f"an event of the stream is longer than {MAX_EVENT_CHARACTERS} characters")

    def finish(self) -> Iterator[str]:
        """The data of an event that the end of the stream left without its blank line."""
        yield from self._take(self._line.rstrip("\r"))
        yield from self._take("")
        self._line = ""

    def _take(self, line: str) -> Iterator[str]:
        if line.startswith("data:"):
            value = line[5:].removeprefix(" ")
            self._data.append(value)
            self._size += len(value)
        elif not line and self._data:
            data, self._data, self._size = "\n".join(self._data), [], 0
            yield data
