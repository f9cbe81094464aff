"""Bodies of `multipart/form-data`: their parts, taken from bytes that are in memory already (RFC 7578, RFC 2046).

Does not: decode content-transfer-encodings, which the RFC forbids here, nor nested multiparts.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

_MAX_PARTS: Final = 100
_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PARAMETER: Final = re.compile(r";\s*([\w*-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\s]*))")


class MultipartInvalid(ValueError):
    """The body is not what its Content-Type says; the text says what is wrong."""


@dataclass(slots=True, frozen=True)
class Part:
    name: str
    filename: str | None
    """None: a plain field."""
    mime_type: str
    """Empty when the part does not say."""
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


def parse_multipart(content_type: str, body: bytes) -> list[Part]:
    """The parts in their order. Raises MultipartInvalid."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MultipartInvalid("Content-Type names no boundary")
    delimiter = b"--" + (found[1] or found[2]).encode()
    # With a line break in front, the first delimiter looks like all others.
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if at < 2 and not body.startswith(delimiter):
        raise MultipartInvalid("the body does not begin with the boundary")
    parts: list[Part] = []
    while True:
        at += len(delimiter)
        if body.startswith(b"--", at):
            return parts
        begin = body.find(b"\r\n", at) + 2
        end = body.find(b"\r\n" + delimiter, begin - 2)
        if begin < 2 or end < 0:
            raise MultipartInvalid("the body ends before its last boundary")
        if len(parts) >= _MAX_PARTS:
            raise MultipartInvalid(f"the body has more than {_MAX_PARTS} parts")
        parts.append(_part(body, begin, end))
        at = end + 2


def _part(body: bytes, begin: int, end: int) -> Part:
    head_end = body.find(b"\r\n\r\n", begin - 2, end)
    if head_end < 0:
        raise MultipartInvalid("a part has no blank line behind its headers")
    headers: dict[str, str] = {}
    for line in body[begin : max(head_end, begin)].decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    disposition = headers.get("content-disposition", "")
    given = {name.lower(): _value(quoted or plain) for name, quoted, plain in _PARAMETER.findall(disposition)}
    filename = given.get("filename")
    if "filename*" in given:
        filename = unquote(given["filename*"].split("'", 2)[-1])
    return Part(
        name=given.get("name", ""),
        filename=filename,
        mime_type=headers.get("content-type", "").partition(";")[0].strip(),
        content=body[head_end + 4 : end],
    )


def _value(text: str) -> str:
    """What browsers and libraries write for a quote or a line break inside a quoted value, taken back."""
    return text.replace('\\"', '"').replace("\\\\", "\\").replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
