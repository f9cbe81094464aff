"""Following a run: frames in, events out, and the place to go on from. No I/O: whoever reads the stream feeds it.

A frame's id is the run's sequence, and only an event's last frame has one. What came without its last frame is
dropped when the connection breaks, because the server sends the whole event again: so nothing is given twice, and
nothing is left out, whichever replica answers next.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flowledger.client.answers import Event, Json, Refused, Result, RunFailed, RunStopped, StillRunning
from flowledger.client.asking import Answer, Call, Servers, again_later, refusal

SILENCE_S = 35.0
"""Pings come every 10 s: three missed ones mean that the connection is dead."""

_END = "workflow_finished"
_MESSAGE_END = "message_end"
"""Of a message that an annotation answers the last frame: nothing of a workflow comes."""
_FINISHED = frozenset({"node_finished", "iteration_completed", "loop_completed"})


class Following:
    """One reader of one run. `after`: the id of the last event that the reader has seen, or its sequence; 0: all."""

    def __init__(
        self, servers: Servers, run_id: str, user: str, after: str | int = "0", timeout_s: float | None = None
    ) -> None:
        self.run_id = run_id
        self.over = False
        self.last_id = str(after)
        self._servers = servers
        self._user = user
        self._open = {run_id}
        self._told = False
        self._ends_at_once = 0
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._held: list[tuple[str, Json]] = []
        self._identity = ""
        self._parts: list[str] = []
        self._failures = 0
        self._heard_at = time.monotonic()

    def call(self) -> Call:
        """The request for what follows the last event."""
        self._identity, self._parts, self._held, self._told = "", [], [], False
        return self._call()

    def _call(self) -> Call:
        return Call(
            "GET",
            f"/v1/workflow/{self.run_id}/events",
            params={"user": self._user, "continue_on_pause": "true"},
            headers={"Accept": "text/event-stream", "Last-Event-ID": self.last_id},
        )

    @property
    def silence_s(self) -> float:
        """How long a connection may say nothing before it is given up."""
        if self._deadline is None:
            return SILENCE_S
        return min(SILENCE_S, max(self._deadline - time.monotonic(), 0.05))

    def feed(self, line: str) -> list[Event]:
        """The events that are complete with this line. Raises StillRunning, Refused."""
        self._check_deadline()
        self._heard_at = time.monotonic()
        if line.startswith("data:"):
            self._parts.append(line[5:].removeprefix(" "))
        elif line.startswith("id:"):
            self._identity = line[3:].strip()
        elif not line and self._parts:
            return self._frame(json.loads("\n".join(self._parts)))
        return []

    def _frame(self, raw: dict[str, Any]) -> list[Event]:
        identity, self._identity, self._parts = self._identity, "", []
        name = str(raw.get("event", ""))
        if name == "error":
            status = int(raw.get("status") or 500)
            if status == 503:  # this replica cannot go on; another may
                self._told = True
                return []
            raise Refused(status, str(raw.get("code")), str(raw.get("message")))
        self._held.append((name, raw))
        if not identity:
            return []
        run_id, place = self._whose(identity)
        held, self._held = self._held, []
        *before, (last, frame) = held
        events = [Event("", name, _data(raw), raw, run_id) for name, raw in before]
        events.append(Event(identity, last, _data(frame), frame, run_id, int(place.partition(".")[0])))
        self.last_id, self._failures, self._told = identity, 0, True
        if last == _MESSAGE_END or any(event.event == _END for event in events):
            self._open.discard(run_id)
        self.over = not self._open
        return events

    def _whose(self, identity: str) -> tuple[str, str]:
        """(the run that an event is of, its place in that run)."""
        return self.run_id, identity

    def closed(self) -> None:
        """The server has ended the stream. One that says nothing twice has nothing more to say: the end was before."""
        self._ends_at_once = 0 if self._told else self._ends_at_once + 1
        self.over = self.over or self._ends_at_once > 1

    def refused(self, answer: Answer) -> None:
        """The server answered with an error: raises Refused, unless another time or another replica may do better."""
        self._check_deadline()
        if answer.status not in (502, 503, 504):
            raise refusal(answer)
        self._servers.next()

    def lost(self, error: Exception) -> None:
        """The connection is gone. Raises StillRunning, or Unreachable when no server has answered for too long."""
        self._ends_at_once = 0
        self._check_deadline()
        self._servers.next()
        self._servers.check_patience(self._heard_at, error)

    def wait_s(self) -> float:
        """How long to wait before the next connection."""
        self._check_deadline()
        wait_s = again_later(self._failures)
        self._failures += 1
        return wait_s

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise StillRunning(self.run_id, self._timeout_s or 0)


class FollowingMany(Following):
    """One reader of several runs. An id of theirs has a place for each run, in the order of `run_ids`."""

    def __init__(
        self, servers: Servers, run_ids: Sequence[str], after: str = "0", timeout_s: float | None = None
    ) -> None:
        self._runs = tuple(dict.fromkeys(run_ids))
        super().__init__(servers, ", ".join(self._runs), "", after, timeout_s)
        self._open = set(self._runs)

    def _call(self) -> Call:
        headers = {"Accept": "text/event-stream"}
        if self.last_id != "0":
            headers["Last-Event-ID"] = self.last_id
        return Call("GET", "/v1/runs/events", params={"run": self._runs}, headers=headers)

    def _whose(self, identity: str) -> tuple[str, str]:
        places = identity.split(",")
        before = self.last_id.split(",") if self.last_id != "0" else ["0"] * len(places)
        moved = next(index for index, (now, then) in enumerate(zip(places, before, strict=True)) if now != then)
        return self._runs[moved], places[moved]


def _data(raw: Json) -> Json:
    data = raw.get("data")
    return data if isinstance(data, dict) else {}


class Outcome:
    """How a run ends, gathered from its events."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._retries: Counter[str] = Counter()
        self._failed: tuple[str, int] | None = None
        self._said = ""

    def take(self, event: Event) -> Result | None:
        """The result, with the event that ends the run. Raises RunFailed, RunStopped."""
        data = event.data
        if event.event == "node_retry":
            self._retries[str(data.get("id"))] += 1
        elif event.event in _FINISHED and data.get("status") == "failed":
            self._failed = str(data.get("node_id")), self._retries[str(data.get("id"))] + 1
        elif event.event == "message":
            self._said += str(event.raw.get("answer") or "")
        elif event.event == _END:
            return self._ended(data)
        elif event.event == _MESSAGE_END and event.id:
            return self._ended({"status": "succeeded", "outputs": {"answer": self._said}})
        return None

    def _ended(self, data: dict[str, Any]) -> Result:
        status, error = str(data.get("status")), str(data.get("error") or "")
        if status == "stopped":
            raise RunStopped(self.run_id, error)
        if status == "failed":
            node_id, attempt = self._failed or (None, None)
            raise RunFailed(self.run_id, error, node_id, attempt)
        return Result(
            self.run_id,
            status,
            data.get("outputs") or {},
            float(data.get("elapsed_time") or 0),
            int(data.get("total_steps") or 0),
            int(data.get("total_tokens") or 0),
        )
