"""The executor's side of the warm interpreter: starts it, asks it for processes, hears when they end.

Started by exec, never by forking the executor, which has threads. One event loop.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.executor.sandbox.inside import folders

_START_S = 30.0
_STOP_S = 5.0
_INSIDE = Path(__file__).resolve().parent

# The child libraries' own thread pools would not survive a fork, and cost address space.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import inside.zygote as z; del sys.path[0]; z.main()"


class ZygoteFailed(Exception):
    """The warm interpreter did not start, or cannot contain what it starts. The text says why."""


@dataclass(slots=True, frozen=True)
class Exit:
    """How a process ended. `status`: a wait status, None when nobody saw it."""

    status: int | None
    why: str | None = None


@dataclass(slots=True, frozen=True)
class Child:
    """A contained process, for one request. Whoever takes it ends it."""

    zygote: "ZygoteProcess"
    number: int
    line: socket.socket
    exited: "asyncio.Future[Exit]"

    def end(self) -> None:
        """Kill it, if it still runs, and let go of its line. Idempotent."""
        self.zygote.kill(self.number)
        self.line.close()


class ZygoteProcess:
    """One started warm interpreter. `alive` turns False when it ends, by itself or by `stop`."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket, base: str) -> None:
        self.alive = True
        self._process = process
        self._control = control
        self._base = base
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[str | None] = self._loop.create_future()
        self._exits: dict[int, asyncio.Future[Exit]] = {}
        self._received = b""
        self._last_id = 0
        self._loop.add_reader(control.fileno(), self._receive)

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, config: Mapping[str, Any], *, strict: bool) -> "ZygoteProcess":
        """Start one and wait until it is warm. Raises ZygoteFailed."""
        zygote = _launch(config, strict=strict)
        try:
            async with asyncio.timeout(_START_S):
                missing = await zygote.ready
        except TimeoutError:
            missing = f"its warm interpreter did not start within {_START_S:g} s"
        except BaseException:
            zygote.stop()
            raise
        if missing is not None:
            zygote.stop()
            raise ZygoteFailed(missing)
        return zygote

    def spawn(self) -> "Child":
        """Start a contained process that waits for one request."""
        self._last_id += 1
        here, there = socket.socketpair()
        here.setblocking(False)
        exited = self._exits[self._last_id] = self._loop.create_future()
        with there:
            self._send({"spawn": self._last_id}, [there.fileno()])
        return Child(self, self._last_id, here, exited)

    def kill(self, number: int) -> None:
        """Kill the process, if it still runs."""
        if number in self._exits:
            self._send({"kill": number})

    def stop(self) -> None:
        """Kill the interpreter and, through it, all its processes. Waits for its end; idempotent."""
        self._lost()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(_STOP_S)
        folders.remove(self._base)

    def _send(self, message: Mapping[str, Any], fds: list[int] | None = None) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            # Far below the socket's buffer, so it is taken whole or not at all.
            socket.send_fds(self._control, [data], fds) if fds else self._control.send(data)
        except OSError:  # gone, or stuck beyond hope: everybody who waits is told
            self._lost()

    def _receive(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        if "exit" in message:
            exited = self._exits.pop(message["exit"], None)
            if exited is not None and not exited.done():
                exited.set_result(Exit(message["status"], message["why"]))
        elif not self.ready.done():
            self.ready.set_result(message.get("missing"))

    def _lost(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        if not self.ready.done():
            self.ready.set_result("its warm interpreter ended while it started (see the log)")
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(Exit(None))
        self._exits.clear()


def _launch(config: Mapping[str, Any], *, strict: bool) -> ZygoteProcess:
    here, there = socket.socketpair()
    base = tempfile.mkdtemp(prefix="flowledger-sandbox-")
    try:
        os.chmod(base, 0o711)  # the children may have other users
        # The socket travels as standard input, because `pass_fds` would keep the number that it has here.
        process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", "-c", _PROGRAM, str(_INSIDE)],
            stdin=there.fileno(),
            stdout=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        here.close()
        shutil.rmtree(base, ignore_errors=True)
        raise ZygoteFailed(f"its interpreter could not be started: {error}") from error
    finally:
        there.close()
    here.sendall(json.dumps({**config, "strict": strict, "base": base}).encode() + b"\n")
    here.setblocking(False)
    return ZygoteProcess(process, here, base)
