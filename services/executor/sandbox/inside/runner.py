"""Runs one request in a contained process and writes one answer frame.

Promises the author's own lines in every error and no path of the machine. Deliberately does not defend itself against
the code: code and runner share a process, so whatever the code breaks or forges is its own answer only.
"""

import contextlib
import errno
import io
import json
import linecache
import os
import resource
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import frames, javascript, walls

CODE_NAME = "<code>"
_HIDDEN_PATHS: list[tuple[str, str]] = []
_PROCESS_HINT = (
    "Code nodes run without network, without other processes, and with files in their own temporary directory only."
)


def hide(path: str, shown: str) -> None:
    """Have errors show `shown` where they would show this path of the machine."""
    _HIDDEN_PATHS.append((path, shown))


class _Answer(Exception):
    """What the author should read instead of a traceback."""


def serve(line: int, own_modules: Iterable[str] = ()) -> None:
    """Answer the one request that comes over the file descriptor `line`, and end the process.

    `own_modules`: imported for the runner, and not to be found by the code.
    """
    kind, body, output = frames.ERROR, b"", b""
    try:
        captured = _Captured()
        _touch()
        request = json.loads(_read_request(line))
        walls.limit_execution(request["memory_bytes"], request["cpu_s"])
        _forget(own_modules if request["language"] == "python3" else ())
        try:
            kind, body = _LANGUAGES[request["language"]](request)
        except BaseException as error:
            kind, body = frames.ERROR, _explain(error).encode("utf-8", "replace")
        output = captured.text()
        if len(body) > frames.MAX_BODY_BYTES:
            limit = frames.MAX_BODY_BYTES >> 20
            kind, body = frames.ERROR, f"The result is larger than {limit} MB ({len(body):,} bytes)".encode()
        _write_all(line, frames.frame(kind, body, output))
    except BaseException as error:  # mostly memory; the parent sees the status
        with contextlib.suppress(BaseException):
            _write_all(line, frames.frame(frames.ERROR, type(error).__name__.encode()))
    finally:
        os._exit(0)


def _touch() -> None:
    """Do once what every execution does: its pages, shared since the fork, are copied before anybody waits for it."""
    scope: dict[str, Any] = {}
    exec(compile("def main(a):\n    return {'a': [a, 1.5]}\n", CODE_NAME, "exec", dont_inherit=True), scope)
    json.loads(_as_json(scope["main"]("a")))


def _python(request: dict[str, Any]) -> tuple[bytes, bytes]:
    code: str = request["code"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    linecache.cache[CODE_NAME] = (len(code), None, code.splitlines(keepends=True), CODE_NAME)
    exec(compile(code, CODE_NAME, "exec", dont_inherit=True), module.__dict__)  # the purpose of this process
    main = module.__dict__.get("main")
    if not callable(main):
        raise _Answer("The code must define a function main")
    return frames.RESULT, _as_json(main(**request["inputs"]))


def _javascript(request: dict[str, Any]) -> tuple[bytes, bytes]:
    quickjs = sys.modules.get("_quickjs")
    if quickjs is None:
        raise _Answer(
            "JavaScript needs the package quickjs beside the executor. Install it, or write the node in Python"
        )
    try:
        text = javascript.run(quickjs, request["code"], json.dumps(request["inputs"]))
    except javascript.JavaScriptError as error:
        raise _Answer(str(error)) from None
    except javascript.OutOfMemory:
        raise _Answer(f"The code needs more memory than it may use ({_memory_limit()})") from None
    return frames.RESULT, text.encode()


def _template(request: dict[str, Any]) -> tuple[bytes, bytes]:
    from . import templates  # needs Jinja, which the bare interpreter finds only once the zygote has told it where

    try:
        template = templates.ENVIRONMENT.from_string(request["code"])
        text = templates.render_bounded(template, request["inputs"], request["limit_chars"])
        return frames.RESULT, text.encode()
    except templates.OutputTooLong as error:
        return frames.TOO_LONG, str(error).encode()
    except MemoryError:
        raise _Answer(f"The template needs more memory than it may use ({_memory_limit()})") from None
    except Exception as error:
        return frames.ERROR, templates.describe(error).encode("utf-8", "replace")


_LANGUAGES: Mapping[str, Callable[[dict[str, Any]], tuple[bytes, bytes]]] = {
    "python3": _python,
    "javascript": _javascript,
    "jinja2": _template,
}


def _forget(modules: Iterable[str]) -> None:
    for name in modules:
        sys.modules.pop(name, None)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:  # the standard library reseeds itself after a fork
        numpy_random.seed()


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _as_json(result: object) -> bytes:
    if not isinstance(result, dict):
        raise _Answer(f"main() must return a dict, got {type(result).__name__}")
    for key in result:
        if not isinstance(key, str):
            raise _Answer(f"main() must return a dict with string keys, got a key of type {type(key).__name__}")
    try:
        return _encode(result).encode()
    except UnicodeEncodeError:
        raise _Answer("main() returned text with half of a surrogate pair, which no text file can hold") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _Answer(f"main() must return what JSON can express: {error}") from None


class _Captured:
    """Replaces the standard streams: keeps the beginning of what the code prints, and drops the rest."""

    def __init__(self) -> None:
        self._sink = _Sink()
        stream = io.TextIOWrapper(
            io.BufferedWriter(self._sink), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        self._streams = [stream]
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = stream  # type: ignore[misc]
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # type: ignore[misc]

    def text(self) -> bytes:
        for stream in self._streams:
            with contextlib.suppress(BaseException):  # the code may have closed it
                stream.flush()
        return bytes(self._sink.kept)


class _Sink(io.RawIOBase):
    def __init__(self) -> None:
        self.kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        room = frames.MAX_OUTPUT_BYTES - len(self.kept)
        if room > 0:
            self.kept += bytes(data[:room])
        return size


def _explain(error: BaseException) -> str:
    """The error as its author should see it: own lines only, no path of the machine."""
    match error:
        case _Answer():
            return str(error)
        case SystemExit():
            return f"The code ended itself with exit({error.code!r}) before main() returned"
        case MemoryError():
            text = f"The code needs more memory than it may use ({_memory_limit()})\n{_traceback(error)}"
        case _:
            text = _traceback(error)
    if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES):
        text += f"\n{_PROCESS_HINT}"
    for path, shown in _HIDDEN_PATHS:
        text = text.replace(path, shown)
    if len(text) > frames.MAX_ERROR_CHARS:
        half = frames.MAX_ERROR_CHARS // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return text


def _traceback(error: BaseException) -> str:
    seen = traceback.TracebackException.from_exception(error, limit=-200)
    _keep_own_lines(seen, depth=0)
    return "".join(seen.format()).rstrip()


def _keep_own_lines(seen: traceback.TracebackException, depth: int) -> None:
    seen.stack = traceback.StackSummary.from_list([each for each in seen.stack if each.filename == CODE_NAME])
    for other in (seen.__cause__, seen.__context__):
        if other is not None and depth < 20:
            _keep_own_lines(other, depth + 1)


def _memory_limit() -> str:
    return f"{resource.getrlimit(resource.RLIMIT_AS)[0] >> 20} MB"


def _read_request(line: int) -> bytes:
    header = _read_exactly(line, frames.HEADER.size)
    mark, kind, _, size = frames.HEADER.unpack(header)
    if mark != frames.MARK or kind != frames.REQUEST:
        raise ValueError("the request does not begin with its mark")
    return _read_exactly(line, size)


def _read_exactly(line: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(line, min(size - len(data), 1 << 20))
        if not piece:
            os._exit(0)  # nobody waits for an answer any more
        data += piece
    return bytes(data)


def _write_all(line: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(line, view) :]
