"""The form of what crosses the line between the executor and the process that runs foreign code.

A request is one frame and so is the answer. The code can write to the line whatever it likes, so the reader believes
nothing but the lengths it has bounded.
"""

import struct
from typing import Final

HEADER: Final = struct.Struct(">4scII")  # mark, kind, length of the captured output, length of the body
MARK: Final = b"FLSB"

REQUEST: Final = b"Q"
RESULT: Final = b"R"
"""Body: the result as JSON, or the rendered text."""
ERROR: Final = b"E"
"""Body: what the author of the code should read."""
TOO_LONG: Final = b"L"
"""Body: the rendered text grew beyond its limit."""
BROKEN: Final = b"B"
"""Body: why the process could not be contained; no foreign code has run."""

MAX_BODY_BYTES: Final = 16 << 20
MAX_OUTPUT_BYTES: Final = 64 << 10
MAX_ERROR_CHARS: Final = 8_000


def frame(kind: bytes, body: bytes, output: bytes = b"") -> bytes:
    return HEADER.pack(MARK, kind, len(output), len(body)) + output + body
