"""Server-sent events: read, and read on after a broken connection, without gaps or repeats.

A frame's id is the run's sequence (a text chunk's: `sequence.position`). After a break the stream is asked for what
follows the last id; the run itself is not touched by any of this.
"""

import json
import math
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowledger.cli.exits import TIMED_OUT, Problem
from flowledger.cli.target import Server
from flowledger.lines import Lines

if TYPE_CHECKING:
    import httpx

ENDS = frozenset({"workflow_finished", "error"})
_SILENCE_S = 35.0
"""Pings come every 10 s: three missed ones mean that the connection is dead."""

_GIVE_UP_S = 60.0
_RETRY_S = (0.2, 5.0)
_PAST_S = 0.05
"""So much longer is waited than until the deadline, which is over then when it is looked at."""


@dataclass(slots=True, frozen=True)
class Frame:
    id: str
    data: dict[str, Any]

    @property
    def event(self) -> str:
        return str(self.data.get("event", ""))

    @property
    def ends(self) -> bool:
        """Whether nothing follows it. A message that an annotation answers ends without `workflow_finished`."""
        return self.event in ENDS or (self.event == "message_end" and self.id != "")


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """The JSON frames of a stream, pings and comments left out."""
    identity, parts = "", list[str]()
    for line in lines:
        if line.startswith("data:"):
            parts.append(line[5:].removeprefix(" "))
        elif line.startswith("id:"):
            identity = line[3:].strip()
        elif not line:
            if parts:
                yield Frame(identity, json.loads("\n".join(parts)))
            identity, parts = "", []


@dataclass(slots=True)
class Started:
    """A run that was asked for: its ids, known before its first frame."""

    run_id: str
    task_id: str
    response: "httpx.Response"


def deadline_of(timeout_s: float | None) -> float | None:
    """The instant, of the monotonic clock, at which waiting ends; None: never."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def start(server: Server, body: dict[str, Any], deadline: float | None = None) -> Started:
    """Ask for a run; returns as soon as it is accepted, with the open stream.

    Raises Problem, also when nobody has decided at the deadline.
    """
    # The key makes it one run however often it is asked for.
    headers = {"Accept": "text/event-stream", "Idempotency-Key": uuid.uuid4().hex}

    def ask() -> "httpx.Response":
        request = server.http.build_request(
            "POST", "/v1/runs", json=body | {"response_mode": "streaming"}, headers=headers, timeout=_timeout(deadline)
        )
        response = server.http.send(request, stream=True)
        if not response.is_success:
            response.read()
        return response

    try:
        response = server.reached(ask, repeatable=True)
    except Problem as problem:
        if not _over(deadline):
            raise
        hint = f"List runs: {server.command('runs')}"
        raise Problem(f"Not decided in time; the run may begin all the same. {hint}", TIMED_OUT) from problem
    server.check(response)
    return Started(response.headers.get("X-Workflow-Run-Id", ""), response.headers.get("X-Task-Id", ""), response)


def follow(
    server: Server,
    run_id: str,
    first: "httpx.Response | None" = None,
    deadline: float | None = None,
    after: str = "0",
) -> Iterator[Frame]:
    """Every frame of the run behind the id `after`, until one that ends it or a pause that it is in.

    `first`: an open stream to begin with.

    Raises Problem at the deadline (the run goes on), or when the server stays away.
    """
    import httpx

    last_id, wait_s, lost_at = after, _RETRY_S[0], time.monotonic()
    paused = False
    response = first
    while True:
        try:
            sure = first is None or last_id != "0"
            response = response or _attach(server, run_id, last_id, sure=sure, deadline=deadline)
            for frame in _until(deadline, response):
                lost_at, wait_s = time.monotonic(), _RETRY_S[0]
                last_id = frame.id or last_id
                yield frame
                if frame.ends:
                    return
                paused = frame.event == "workflow_paused"
            if paused:  # the stream ends behind a pause only when the run is still in it
                return
        except httpx.TransportError as error:
            _check_deadline(deadline, server, run_id)
            if time.monotonic() - lost_at > _GIVE_UP_S:
                raise server.unreachable(error) from error
            _close(response)
            response = None
            server.find_again()
        finally:
            _close(response)
        response = None
        _check_deadline(deadline, server, run_id)
        time.sleep(min(wait_s, _left_s(deadline)))
        wait_s = min(_RETRY_S[1], wait_s * 2)


def _close(response: "httpx.Response | None") -> None:
    if response is not None:
        response.close()


def return_to(server: Server, run_id: str) -> str:
    """What becomes of a run that is left, and the command that comes back to it."""
    if server.embedded:
        return f"run {run_id} rests until its folder is opened again. Go on: {server.command(f'watch {run_id}')}"
    return f"run {run_id} goes on. Return to it: {server.command(f'watch {run_id}')}"


def _check_deadline(deadline: float | None, server: Server, run_id: str) -> None:
    if _over(deadline):
        raise Problem(f"Not ended in time: {return_to(server, run_id)}", TIMED_OUT)


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _left_s(deadline: float | None) -> float:
    """Seconds until just past the deadline."""
    return math.inf if deadline is None else max(0.0, deadline - time.monotonic()) + _PAST_S


def _frames(response: "httpx.Response") -> Iterator[Frame]:
    found = Lines()
    yield from frames(line for data in response.iter_bytes() for line in found.feed(data))


def _until(deadline: float | None, response: "httpx.Response") -> Iterator[Frame]:
    """The frames of the response, which breaks off at the deadline: the next ping may be long in coming."""
    if deadline is None:
        yield from _frames(response)
        return
    timer = threading.Timer(min(_left_s(deadline), threading.TIMEOUT_MAX), _shut, (response,))
    timer.daemon = True
    timer.start()
    try:
        yield from _frames(response)
    finally:
        timer.cancel()


def _shut(response: "httpx.Response") -> None:
    with suppress(OSError):  # it was closed meanwhile
        # The plain one: what TLS makes of it takes the reader's state away.
        socket.socket.shutdown(response.extensions["network_stream"].get_extra_info("socket"), socket.SHUT_RDWR)


def _attach(server: Server, run_id: str, last_id: str, *, sure: bool, deadline: float | None) -> "httpx.Response":
    """`sure`: the run is known to have begun; otherwise it may not have been decided yet."""
    import httpx

    headers = {"Accept": "text/event-stream", "Last-Event-ID": last_id}
    request = server.http.build_request(
        "GET", f"/v1/workflow/{run_id}/events", params={"user": "cli"}, headers=headers, timeout=_timeout(deadline)
    )
    response = server.http.send(request, stream=True)
    if not response.is_success:
        response.read()
        if response.status_code in (502, 503, 504) or (
            response.status_code == 404 and not sure
        ):  # a replica that starts or stops: try again
            raise httpx.ConnectError(f"{response.status_code} {response.reason_phrase}")
    server.check(response)
    return response


def _timeout(deadline: float | None) -> "httpx.Timeout":
    import httpx

    left_s = _left_s(deadline)
    return httpx.Timeout(min(30.0, left_s), connect=min(5.0, left_s), read=min(_SILENCE_S, left_s))
