"""Requests and when they are made again. No I/O: steps yield a `Call` (to be answered) or a `Rest` (to be slept).

A request that changes nothing, or carries an idempotency key, is made again after a broken connection or a 502, 503
or 504, at the next server of the list; any other one only when no connection was made, so nothing was asked.
"""

import json
import os
import random
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flowledger.client.answers import FlowledgerError, Json, Refused, Unreachable

PATIENCE_S = 60.0
"""How long servers may stay away before a caller is told."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
LOCAL = "http://127.0.0.1:5001"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `repeatable`: asking twice does what asking once does."""

    method: str
    path: str
    params: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True
    headers_only: bool = False
    """The answer is its headers; its body, a stream, is not read."""


@dataclass(frozen=True, slots=True)
class Rest:
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Lost:
    """There was no answer. `asked`: the request may have arrived."""

    error: Exception
    asked: bool


Steps = Generator[Call | Rest, Answer | Lost | None, _T]


class Servers:
    """The replicas that may be asked, and the one that is asked now."""

    def __init__(self, urls: Sequence[str], patience_s: float = PATIENCE_S) -> None:
        if not urls:
            raise FlowledgerError("a client needs at least one URL")
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._patience_s = patience_s
        self._index = 0

    @property
    def url(self) -> str:
        return self.urls[self._index]

    def next(self) -> None:
        self._index = (self._index + 1) % len(self.urls)

    def check_patience(self, since: float, error: Exception | None) -> None:
        """Raises Unreachable when `since` (monotonic) is too long ago."""
        if time.monotonic() - since > self._patience_s:
            names = ", ".join(self.urls)
            raise Unreachable(f"{names}: no answer for {self._patience_s:g} s ({error}). Is it running?") from error


def ask(call: Call, servers: Servers) -> Steps[Answer]:
    """The answer to `call`. Raises Refused, Unreachable."""
    since, failures = time.monotonic(), 0
    while True:
        answer = yield call
        assert answer is not None
        if isinstance(answer, Answer):
            if answer.status < 400:
                return answer
            problem: Exception = refusal(answer)
            again = call.repeatable and answer.status in (502, 503, 504)
        else:
            problem = Unreachable(f"{servers.url}: {answer.error}. Is it running?")
            again = call.repeatable or not answer.asked
        if not again:
            raise problem
        servers.next()
        servers.check_patience(since, problem)
        yield Rest(0.0 if failures + 1 < len(servers.urls) else again_later(failures))
        failures += 1


def again_later(failures: int) -> float:
    """Seconds to wait after so many failures in a row; spread, so that many clients do not come back at once."""
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)


def refusal(answer: Answer) -> Refused:
    """The error that the server's answer stands for."""
    try:
        body = answer.json()
        code, message = str(body.get("code", "")), str(body.get("message", ""))
        problems = tuple(body.get("problems") or ())
    except (ValueError, AttributeError):
        code, message, problems = "", answer.body[:200].decode("utf-8", "replace"), ()
    return Refused(answer.status, code, message, problems)


def json_call(method: str, path: str, body: Json, *, headers: Mapping[str, str] | None = None, **more: Any) -> Call:
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Call(
        method, path, headers={"Content-Type": "application/json"} | dict(headers or {}), content=content, **more
    )


def found_servers(url: str | Sequence[str] | None, data: Path) -> list[str]:
    """The URLs to ask: `url`, else FLOWLEDGER_URL, else who has the data folder open, else this machine's port 5001."""
    given = url or os.environ.get("FLOWLEDGER_URL")
    if given:
        return [one.strip() for one in given.split(",") if one.strip()] if isinstance(given, str) else list(given)
    try:
        return [str(json.loads((data / "server.json").read_text("utf-8"))["url"])]
    except (OSError, ValueError, KeyError, TypeError):
        return [LOCAL]


def found_token(token: str | None, data: Path) -> str | None:
    """`token`, else FLOWLEDGER_ADMIN_TOKEN, else the one that the data folder keeps."""
    given = token or os.environ.get("FLOWLEDGER_ADMIN_TOKEN")
    if given:
        return given
    try:
        return (data / "admin-token").read_text("utf-8").strip() or None
    except OSError:
        return None
