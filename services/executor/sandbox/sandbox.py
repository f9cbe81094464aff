"""Runs code and templates of workflow authors in contained processes of their own.

Promises: the caller's loop never blocks, every call ends by its time limit, cancelling a call kills its process at
once, and whatever the code does, the next call is served. In the mode `strict` code that cannot be contained on this
machine is not run at all; `process` only sets limits and is for development.

Deliberately not here: what a code node's outputs must look like (nodes/code.py).
"""

import asyncio
import json
import logging
import math
import os
import re
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import JsonValue

from services.executor.sandbox.inside import frames, walls
from services.executor.sandbox.packages import PackageMissing, for_code, for_runner
from services.executor.sandbox.zygote_process import Child, Exit, ZygoteFailed, ZygoteProcess

_log = logging.getLogger(__name__)

MEMORY_BYTES: Final = 512 << 20
MAX_REQUEST_BYTES: Final = 64 << 20
_MAX_SLOTS: Final = 40
_SPARES: Final = 2
"""Processes made ready before they are needed: making one takes longer than most code runs."""
_STATUS_S: Final = 2.0
_PROCESSORS: Final = os.cpu_count() or 1
"""An author's limit is time by the clock. Processor time is bounded by what all processors together can give in it: it
ends code whose clock nobody looks at (an executor that hangs), and never code that still has time."""
_INLINE_BYTES: Final = 256 << 10
"""Larger results are parsed in a thread: a loop that stands still for 100 ms is felt by every run."""

_SCIENTIFIC = re.compile(r"-?\d+\.?\d*[eE][+-]\d+", re.ASCII)
_SCIENTIFIC_JSON = re.compile(rb'"-?\d+\.?\d*[eE][+-]\d+"')
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Language = Literal["python3", "javascript"]


class SandboxError(Exception):
    """The code or the template failed. The text is for its author."""


class OutputTooLong(SandboxError):
    """A template's text grew beyond its limit."""


class SandboxUnavailable(Exception):
    """Nothing was run, because nothing can be contained here. The text says what is missing and what to do."""


@dataclass(slots=True, frozen=True)
class SandboxResult:
    """How one execution of code ended: `error` is None exactly if `result` holds what main() returned."""

    result: dict[str, JsonValue]
    error: str | None
    stdout: str
    """The beginning of what the code printed."""
    elapsed_s: float


class Sandbox:
    """One per executor and event loop. Starts nothing before its first call."""

    def __init__(
        self,
        mode: Literal["strict", "process"] = "strict",
        packages: Sequence[str] = (),
        slots: int | None = None,
    ) -> None:
        """`packages`: what code may import beyond the standard library. `slots`: most executions at once."""
        self._strict = mode == "strict"
        self._packages = tuple(packages)
        self._slots = min(slots or max(4, 2 * (os.cpu_count() or 1)), _MAX_SLOTS)
        self._free = asyncio.Semaphore(self._slots)
        self._starting = asyncio.Lock()
        self._zygote: ZygoteProcess | None = None
        self._unavailable: str | None = None
        self._ready: deque[Child] = deque()

    @property
    def pid(self) -> int | None:
        """The warm interpreter's process, when one runs."""
        return self._zygote.pid if self._zygote is not None and self._zygote.alive else None

    async def run(
        self,
        language: str,
        code: str,
        inputs: Mapping[str, JsonValue],
        *,
        timeout_s: float,
        memory_bytes: int = MEMORY_BYTES,
    ) -> SandboxResult:
        """Run `main(inputs)` of the code. The time limit counts from when a slot is free.

        Raises SandboxUnavailable. What the code does wrong is in the result.
        """
        began_s = time.monotonic()
        request = {"language": language, "code": code, "inputs": inputs, "memory_bytes": memory_bytes}
        output = b""
        result: dict[str, JsonValue] = {}
        try:
            kind, body, output = await self._execute(request, timeout_s)
            if kind != frames.RESULT:
                raise SandboxError(body.decode("utf-8", "replace"))
            result = _parse(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(_parse, body)
            error = None
        except SandboxError as failure:
            error = str(failure)
        return SandboxResult(result, error, output.decode("utf-8", "replace"), time.monotonic() - began_s)

    async def render(
        self, template: str, variables: Mapping[str, JsonValue], *, limit_chars: int, timeout_s: float
    ) -> str:
        """The text of a Jinja template. Raises OutputTooLong, SandboxError, SandboxUnavailable."""
        request = {"language": "jinja2", "code": template, "inputs": variables, "memory_bytes": MEMORY_BYTES}
        request["limit_chars"] = limit_chars
        kind, body, _ = await self._execute(request, timeout_s, subject="The template")
        text = body.decode("utf-8", "replace")
        if kind == frames.TOO_LONG:
            raise OutputTooLong(text)
        if kind != frames.RESULT:
            raise SandboxError(text)
        return text

    async def check(self) -> None:
        """Start, and try containment once. Raises SandboxUnavailable."""
        await self._warm()

    def close(self) -> None:
        """Kill everything that runs. Waits for the end of the warm interpreter; idempotent."""
        while self._ready:
            self._ready.pop().end()
        if self._zygote is not None:
            self._zygote.stop()
            self._zygote = None

    async def _execute(
        self, request: Mapping[str, Any], timeout_s: float, subject: str = "The code"
    ) -> tuple[bytes, bytes, bytes]:
        """One request, one answer: its kind, body and captured output."""
        data = json.dumps({**request, "cpu_s": math.ceil(timeout_s * _PROCESSORS) + 1}).encode()
        if len(data) > MAX_REQUEST_BYTES:
            raise SandboxError(f"The inputs are larger than {MAX_REQUEST_BYTES >> 20} MB ({len(data):,} bytes)")
        data = frames.frame(frames.REQUEST, data)
        async with self._free:
            answer: tuple[bytes, bytes, bytes] | Exit = Exit(None)
            for _ in range(2):  # nothing outside has seen the first try, so it may be repeated
                answer = await _exchange(self._take(await self._warm()), data, timeout_s, subject)
                if not isinstance(answer, Exit) or answer.status is not None:
                    break
        if isinstance(answer, Exit):
            raise SandboxError(_end_in_words(answer, subject, timeout_s))
        if answer[0] == frames.BROKEN:
            raise SandboxUnavailable(_unavailable(answer[1].decode("utf-8", "replace")))
        return answer

    def _take(self, zygote: ZygoteProcess) -> Child:
        """A process that is ready, or will be first; and have further ones made ready meanwhile."""
        lost = [child for child in self._ready if child.zygote is not zygote or child.exited.done()]
        for child in lost:
            self._ready.remove(child)
            child.end()
        while len(self._ready) <= _SPARES:
            self._ready.append(zygote.spawn())
        return self._ready.popleft()

    async def _warm(self) -> ZygoteProcess:
        async with self._starting:
            if self._zygote is not None and self._zygote.alive:
                return self._zygote
            if self._unavailable is not None:
                raise SandboxUnavailable(self._unavailable)
            if self._zygote is not None:
                _log.warning("sandbox_restarted", extra={"lost_pid": self._zygote.pid})
                self.close()
            try:
                self._zygote = await self._start()
            except (ZygoteFailed, PackageMissing) as error:
                self._unavailable = _unavailable(str(error))
                raise SandboxUnavailable(self._unavailable) from error
            return self._zygote

    async def _start(self) -> ZygoteProcess:
        if self._strict and sys.platform != "linux":
            raise ZygoteFailed(f"containment (Landlock, seccomp) is a part of Linux, and this is {sys.platform}")
        packages = await asyncio.to_thread(for_code, self._packages)  # reads the metadata of everything installed
        config = {"slots": self._slots + _SPARES + 1, "own": for_runner(), "packages": packages, "warm": self._packages}
        zygote = await ZygoteProcess.start(config, strict=self._strict)
        if not self._strict:
            facts = {"setting": "FLOWLEDGER_SANDBOX=process", "use": "for development only: code can reach all we can"}
            _log.warning("sandbox_without_containment", extra=facts)
        return zygote


async def _exchange(child: Child, data: bytes, timeout_s: float, subject: str) -> tuple[bytes, bytes, bytes] | Exit:
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _talk(child.line, data)
        if answer is not None:
            return answer
        # The line is closed: the process has ended, or has closed the line and goes on in vain.
        return child.exited.result() if await _ended(child.exited) else Exit(0)
    except TimeoutError:
        child.end()
        if not await _ended(child.exited):
            child.zygote.stop()  # it obeys no more: the next call starts another
        raise SandboxError(_late(subject, timeout_s)) from None
    finally:
        child.end()


async def _ended(exited: "asyncio.Future[Exit]") -> bool:
    return bool((await asyncio.wait([exited], timeout=_STATUS_S))[0])


async def _talk(line: socket.socket, data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Send the request, take the answer; None when the line closed before a whole answer. Raises SandboxError."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(line, data)
    except ConnectionError:
        pass  # it may have answered all the same
    received = bytearray()
    needed = frames.HEADER.size
    while len(received) < needed:
        try:
            piece = await loop.sock_recv(line, 1 << 18)
        except ConnectionError:
            piece = b""
        if not piece:
            return None
        received += piece
        if needed == frames.HEADER.size and len(received) >= needed:
            needed += sum(_lengths(received))
    output_size, body_size = _lengths(received)
    kind = bytes(received[4:5])
    output_end = frames.HEADER.size + output_size
    return kind, bytes(received[output_end : output_end + body_size]), bytes(received[frames.HEADER.size : output_end])


def _lengths(received: bytearray) -> tuple[int, int]:
    try:
        mark, _, output_size, body_size = frames.HEADER.unpack_from(received)
    except struct.error:
        mark = b""
    if mark != frames.MARK or output_size > frames.MAX_OUTPUT_BYTES or body_size > frames.MAX_BODY_BYTES:
        raise SandboxError("The code wrote to the line that carries its result")
    return output_size, body_size


def _late(subject: str, timeout_s: float) -> str:
    return f"{subject} did not finish within {timeout_s:g} s and was stopped"


def _end_in_words(end: Exit, subject: str, timeout_s: float) -> str:
    if end.why == "folder":
        return (
            f"{subject} was stopped: it wrote more than {walls.FOLDER_BYTES >> 20} MB or {walls.FOLDER_ENTRIES:,} "
            f"files to its temporary directory"
        )
    if end.status is None:
        return f"{subject} was interrupted twice by the end of the sandbox's own process"
    if not os.WIFSIGNALED(end.status):
        return f"{subject} ended its process (exit code {os.waitstatus_to_exitcode(end.status)}) without a result"
    number = os.WTERMSIG(end.status)
    if number == signal.SIGXCPU:
        return _late(subject, timeout_s)  # so much processor time takes longer than the limit on any clock
    if number == signal.SIGKILL:
        return f"{subject} was killed: it used up memory or processor time, or ended itself"
    name = signal.Signals(number).name
    hint = " (endless recursion, or wrong use of ctypes?)" if number in (signal.SIGSEGV, signal.SIGBUS) else ""
    return f"{subject} crashed its process with {name}{hint}"


def _unavailable(missing: str) -> str:
    return (
        f"Code and templates cannot be run: {missing}. Where containment is impossible, "
        f"FLOWLEDGER_SANDBOX=process runs them without it (for development only)"
    )


def _parse(body: bytes) -> dict[str, JsonValue]:
    """What main() returned. The code may have written it itself, so nothing is believed. Raises SandboxError."""
    try:
        result = json.loads(body, parse_constant=_no_constant)
        if _HALF_SURROGATE.search(body):
            json.dumps(result, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SandboxError(f"main() must return what JSON can express: {error}") from None
    if not isinstance(result, dict):
        raise SandboxError(f"main() must return a dict, got {type(result).__name__}")
    if _SCIENTIFIC_JSON.search(body):
        try:
            return {key: _with_floats(value) for key, value in result.items()}
        except RecursionError:
            raise SandboxError("main() must return what JSON can express: nested too deeply") from None
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _with_floats(value: JsonValue) -> JsonValue:
    """Text in scientific notation becomes a number (spec graph-semantics 6.7); one beyond all numbers stays text."""
    match value:
        case str() if _SCIENTIFIC.fullmatch(value):
            number = float(value)
            return number if math.isfinite(number) else value
        case list():
            return [_with_floats(each) for each in value]
        case dict():
            return {key: _with_floats(each) for key, each in value.items()}
    return value
