"""The warm interpreter: forks a contained child for each execution, watches it, and clears up after it.

One per executor, started as a program of its own (never forked from the executor, which has threads). It holds no
secrets and never sees requests or answers: those go over a line of each execution's own, whose end it hands to the
child. Talk with the executor is one JSON object a line over a socket on file descriptor 3:

    executor:  the configuration, once; {"spawn": id} with a descriptor; {"kill": id}
    zygote:    {"ready": true} or {"missing": why}, once; {"exit": id, "status": wait status, "why": null | "folder"}

Ends, with all its children, when the executor's end of the socket closes.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, NoReturn

from . import folders, frames, imports, runner, walls

CONTROL = 3
_WATCH_S = 0.025


@dataclass
class _Child:
    id: int
    pid: int
    slot: walls.Slot
    why: str | None = None


@dataclass(frozen=True)
class _Waiting:
    id: int
    line: int


class Zygote:
    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self._control = control
        self._strict: bool = config["strict"]
        self._base: str = config["base"]
        self._kept_fds = imports.STDLIB
        self._readable = imports.move_imports(config) if self._strict else None
        hidden = imports.import_packages(config, strict=self._strict)
        self._hidden_modules = [name for name in sys.modules if name.partition(".")[0] in hidden]
        os.environ.clear()
        if self._readable is None:
            runner.hide(os.path.dirname(os.__file__), "<python>")
        else:
            self._kept_fds = imports.STDLIB + 1 + len(self._readable.packages)
        self._walls = walls.Walls(strict=self._strict)
        self._free = [walls.slot(number, self._base, self._readable) for number in range(config["slots"])]
        self._waiting: deque[_Waiting] = deque()
        self._slots_made = len(self._free)
        self._children: dict[int, _Child] = {}
        self._cleaners: dict[int, walls.Slot] = {}
        self._pids: dict[int, int] = {}
        self._received = bytearray()
        self._lines: deque[int] = deque()
        self._watch_at_s = 0.0
        self._woken, wake = socket.socketpair()
        self._wake = wake
        for end in (self._woken, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.collect()
        gc.freeze()  # the children shall not copy the pages of what never changes

    def loop(self) -> None:
        """Serve until the executor is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            for fd, _ in poll.poll(_WATCH_S * 1000 if self._children else None):
                if fd == self._woken.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                elif not self._receive():
                    return
            self._reap()
            self._spawn_waiting()
            self._watch()

    def end(self) -> None:
        """Kill what still runs, and leave nothing behind."""
        for pid in (*self._children, *self._cleaners):
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        folders.remove(self._base)

    def trial(self) -> str | None:
        """None, or what kept a child from being contained. Runs one to see."""
        here, there = socket.socketpair()
        with here, there:
            pid = self._fork(_Waiting(0, there.fileno()), self._free[0], parent=os.getpid())
            there.close()
            here.settimeout(10)
            try:
                here.sendall(_trial_request(strict=self._strict))
                answer = b"".join(iter(lambda: here.recv(65536), b""))
            except OSError as error:
                answer = frames.frame(frames.BROKEN, f"the first contained process gave no answer ({error})".encode())
            finally:
                _kill(pid)
                _, status = os.waitpid(pid, 0)
        folders.empty(self._free[0].folder)
        size = frames.HEADER.size
        if len(answer) < size:
            return f"the first contained process ended without an answer (wait status {status})"
        _, kind, output, _ = frames.HEADER.unpack(answer[:size])
        return None if kind == frames.RESULT else answer[size + output :].decode("utf-8", "replace")

    # messages

    def _receive(self) -> bool:
        """Take what the executor has sent; False when it is gone."""
        room = socket.CMSG_LEN(64 * array.array("i").itemsize)
        try:
            data, extra, _, _ = self._control.recvmsg(1 << 16, room)
        except ConnectionError:
            return False
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._lines.extend(fds)
        if not data:
            return False
        self._received += data
        *messages, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for message in messages:
            self._obey(json.loads(message))
        return True

    def _obey(self, message: dict[str, Any]) -> None:
        if "spawn" in message:
            self._waiting.append(_Waiting(message["spawn"], self._lines.popleft()))
            return
        pid = self._pids.get(message["kill"])
        if pid is not None:
            _kill(pid)
        for waiting in [each for each in self._waiting if each.id == message["kill"]]:
            self._waiting.remove(waiting)
            os.close(waiting.line)
            self._tell({"exit": waiting.id, "status": signal.SIGKILL, "why": None})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the executor is gone: the next receive says so
            self._control.sendall(json.dumps(message).encode() + b"\n")

    # children

    def _spawn_waiting(self) -> None:
        while self._waiting and self._free:
            waiting, slot = self._waiting.popleft(), self._free.pop()
            self._walls.refresh(time.monotonic())
            try:
                pid = self._fork(waiting, slot, parent=os.getpid())
            except OSError as error:
                with socket.socket(fileno=os.dup(waiting.line)) as line, contextlib.suppress(OSError):
                    line.sendall(frames.frame(frames.BROKEN, f"no process could be started: {error}".encode()))
                self._free.append(slot)
                self._tell({"exit": waiting.id, "status": 0, "why": None})
            else:
                self._children[pid] = _Child(waiting.id, pid, slot)
                self._pids[waiting.id] = pid
            finally:
                os.close(waiting.line)

    def _fork(self, waiting: _Waiting, slot: walls.Slot, parent: int) -> int:
        pid = os.fork()
        if pid == 0:
            self._be_child(waiting, slot, parent)
        return pid

    def _be_child(self, waiting: _Waiting, slot: walls.Slot, parent: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(waiting.line, CONTROL, inheritable=False)
            os.dup2(0, 1)
            os.dup2(0, 2)
            self._walls.close(slot, parent)
            os.closerange(self._kept_fds, 4096)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                os.write(CONTROL, frames.frame(frames.BROKEN, f"{type(error).__name__}: {error}".encode()))
            os._exit(1)
        try:
            sys.modules["tempfile"].tempdir = slot.folder  # type: ignore[attr-defined]  # so that no other is tried
            runner.hide(slot.folder, "<temporary directory>")
            runner.serve(CONTROL, self._hidden_modules)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while self._children or self._cleaners:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._cleaners:
                self._cleaned(self._cleaners.pop(pid), status)
                continue
            child = self._children.pop(pid, None)
            if child is None:
                continue
            del self._pids[child.id]
            if not self._strict:
                _kill(pid)  # its group: it may have started others
            self._tell({"exit": child.id, "status": status, "why": child.why})
            self._clear(child.slot)

    def _clear(self, slot: walls.Slot) -> None:
        """Give the slot back, emptied. A folder with something in it may take long: another process does that."""
        try:
            if os.listdir(slot.folder):
                self._cleaners[self._fork_cleaner(slot.folder)] = slot
                return
        except OSError:
            pass  # no process to be had: the place is lost until it can be replaced
        else:
            self._free.append(slot)
            return
        self._cleaned(slot, status=1)

    def _fork_cleaner(self, folder: str) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid != 0:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            self._walls.die_with(parent)
            folders.empty(folder)
        except BaseException:
            os._exit(1)
        os._exit(0)

    def _cleaned(self, slot: walls.Slot, status: int) -> None:
        if status != 0:
            slot = walls.slot(self._slots_made, self._base, self._readable)
            self._slots_made += 1
        self._free.append(slot)

    def _watch(self) -> None:
        """Kill who fills the disk. Looks seldom enough to cost nothing."""
        now_s = time.monotonic()
        if now_s < self._watch_at_s:
            return
        self._watch_at_s = now_s + _WATCH_S
        for child in self._children.values():
            if child.why is None and folders.overfull(
                child.slot.folder, child.pid, walls.FOLDER_BYTES, walls.FOLDER_ENTRIES
            ):
                child.why = "folder"
                _kill(child.pid)


_TRIAL_CODE = """
def main():
    return {}
"""
_STRICT_TRIAL_CODE = """
import os, socket
def main():
    for forbidden in (socket.socket, os.fork, lambda: os.listdir("/"), lambda: os.kill(os.getppid(), 0)):
        try:
            forbidden()
        except PermissionError:
            continue
        raise AssertionError("the containment of the sandbox has a hole on this machine")
    with open("trial", "w") as file:
        file.write("x")
    return {}
"""


def _trial_request(*, strict: bool) -> bytes:
    code = _STRICT_TRIAL_CODE if strict else _TRIAL_CODE
    request = {"language": "python3", "code": code, "inputs": {}, "memory_bytes": 1 << 30, "cpu_s": 10}
    return frames.frame(frames.REQUEST, json.dumps(request).encode())


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def main() -> None:
    """Serve the executor, whose socket comes as standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(0, CONTROL, inheritable=False)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    control = socket.socket(fileno=CONTROL)
    control.set_inheritable(False)
    received = bytearray()
    while not received.endswith(b"\n"):
        piece = control.recv(1 << 16)
        if not piece:
            return
        received += piece
    config = json.loads(received)
    problem = walls.missing() if config["strict"] else None
    if problem is None:
        try:
            zygote = Zygote(control, config)
        except OSError as error:
            problem = f"the sandbox could not be prepared: {error}"
        else:
            problem = zygote.trial()
            if problem is None:
                control.sendall(b'{"ready": true}\n')
                try:
                    with contextlib.suppress(BrokenPipeError):  # whom it works for was killed
                        zygote.loop()
                finally:
                    zygote.end()
                return
    control.sendall(json.dumps({"missing": problem}).encode() + b"\n")
    folders.remove(config["base"])
