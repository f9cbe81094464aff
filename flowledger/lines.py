"""Lines of a stream of bytes, ended as server-sent events end them: by CRLF, LF or CR.

Not by the other ends of lines that Unicode has, as `str.splitlines` does: those may stand in a value.
"""

from collections.abc import Mapping
from typing import Any


class Lines:
    """Bytes in, whole lines out. A last line without an end is never given."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._returned = False
        """The bytes so far end with a CR, so an LF that follows is no line of its own."""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete with `data`."""
        if self._returned and data:
            self._returned = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        self._returned = data.endswith(b"\r")
        first, *more = (data + b".").splitlines()  # with the full stop a rest is always there
        if not more:
            self._begun.append(first[:-1])
            return []
        whole = [b"".join([*self._begun, first]), *more[:-1]]
        self._begun = [more[-1][:-1]]
        return [line.decode("utf-8", "replace") for line in whole]


def broken_off(line: Mapping[str, Any]) -> str | None:
    """Why a history goes no further than this line of it; None where the line is an event."""
    return str(line["error"].get("message")) if "error" in line and "seq" not in line else None
