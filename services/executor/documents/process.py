"""Reads a document in a process of its own: bounded in time and memory, ended when the run stops.

Parsers of office formats have bugs, and files of strangers find them: what goes wrong there ends one process.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

from services.executor.documents import plain
from services.executor.documents.kinds import kind_of

MEMORY_BYTES: Final = 1024 * 1024 * 1024
CPU_S: Final = 60
WALL_S: Final = 120.0
_MAX_ANSWER_BYTES: Final = 40 * 1024 * 1024
"""The child bounds its text; this bounds a child that somebody else has taken over."""
_INLINE_BYTES: Final = 64 * 1024

_ROOT: Final = Path(__file__).resolve().parents[3]
_SANDBOX: Final = _ROOT / "services/executor/sandbox"
_PROGRAM: Final = (
    "import sys, json; path, *rest = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from services.executor.documents.child import main; main(*rest)"
)


class Unreadable(Exception):
    """The document cannot be read. The text is a reason that follows the file's name."""


async def read_document(content: bytes, extension: str, media_type: str) -> str:
    """The text of a document. Raises Unreadable and UnsupportedKind."""
    kind = kind_of(extension, media_type)
    if kind == "text":  # nothing in plain text can go wrong
        return (
            plain.decoded(content) if len(content) <= _INLINE_BYTES else await asyncio.to_thread(plain.decoded, content)
        )
    try:
        async with asyncio.timeout(WALL_S):
            answer, code = await _parsed(kind, content)
    except TimeoutError:
        raise Unreadable(f"reading it took longer than {WALL_S:g} s") from None
    word, _, said = answer.partition(b"\n")
    match word:
        case b"text" if code == 0:
            return said.decode("utf-8", "replace")
        case b"error":
            raise Unreadable(said.decode("utf-8", "replace"))
    raise Unreadable(_ended(code))


def _ended(code: int) -> str:
    """Why there is no answer."""
    if -code in (signal.SIGXCPU, signal.SIGKILL):
        return f"reading it took more than the {CPU_S} s of processor time, or the memory, that a document may use"
    return f"its reader ended without an answer (code {code}); the file may be broken"


async def _parsed(kind: str, content: bytes) -> tuple[bytes, int]:
    """What the child wrote, and its exit code. The child never outlives the call."""
    path = [str(_ROOT), *(each for each in sys.path if each and each != str(_ROOT))]
    argument = json.dumps([path, kind, MEMORY_BYTES, CPU_S, str(_SANDBOX)])
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-B", "-X", "utf8", "-c", _PROGRAM, argument),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a Ctrl-C at the terminal is the executor's to handle
        cwd=os.sep,
    )
    writing = asyncio.create_task(_write(child, content))
    try:
        return await _answer(child), await child.wait()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.shield(child.wait())
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _write(child: asyncio.subprocess.Process, content: bytes) -> None:
    assert child.stdin is not None
    with contextlib.suppress(ConnectionError):  # the child has ended; its exit code tells why
        child.stdin.write(content)
        await child.stdin.drain()
        child.stdin.close()
        await child.stdin.wait_closed()


async def _answer(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdout is not None
    answer = bytearray()
    while piece := await child.stdout.read(256 * 1024):
        answer += piece
        if len(answer) > _MAX_ANSWER_BYTES:
            raise Unreadable("its reader does not stop writing")
    return bytes(answer)
