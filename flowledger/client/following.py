"""Following a run: frames in, events out, and the place to go on from. No I/O: whoever reads the stream feeds it.

A frame's id is the run's sequence, and only an event's last frame has one. What came without its last frame is
dropped when the connection breaks, because the server sends the whole event again: so nothing is given twice, and
nothing is left out, whichever replica answers next.
"""

import json
import time
from collections import Counter
from typing import Any

from flowledger.client.answers import Event, Refused, Result, RunFailed, RunStopped, StillRunning
from flowledger.client.asking import Answer, Call, Servers, again_later, refusal

SILENCE_S = 35.0
"""Pings come every 10 s: three missed ones mean that the connection is dead."""

_END = "workflow_finished"
_FINISHED = frozenset({"node_finished", "iteration_completed", "loop_completed"})


class Following:
    """One reader of one run. `after`: the id of the last event that the reader has seen; "0": from the start."""

    def __init__(
        self, servers: Servers, run_id: str, user: str, after: str = "0", timeout_s: float | None = None
    ) -> None:
        self.run_id = run_id
        self.over = False
        self.last_id = after
        self._servers = servers
        self._user = user
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._held: list[Event] = []
        self._identity = ""
        self._parts: list[str] = []
        self._failures = 0
        self._heard_at = time.monotonic()

    def call(self) -> Call:
        """The request for what follows the last event."""
        self._identity, self._parts, self._held = "", [], []
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
        name, data = str(raw.get("event", "")), raw.get("data")
        if name == "error":
            status = int(raw.get("status") or 500)
            if status == 503:  # this replica cannot go on; another may
                return []
            raise Refused(status, str(raw.get("code")), str(raw.get("message")))
        self._held.append(Event(identity, name, data if isinstance(data, dict) else {}, raw))
        if not identity:
            return []
        events, self._held = self._held, []
        self.last_id, self._failures = identity, 0
        self.over = any(event.event == _END for event in events)
        return events

    def refused(self, answer: Answer) -> None:
        """The server answered with an error: raises Refused, unless another time or another replica may do better."""
        self._check_deadline()
        if answer.status not in (502, 503, 504):
            raise refusal(answer)
        self._servers.next()

    def lost(self, error: Exception) -> None:
        """The connection is gone. Raises StillRunning, or Unreachable when no server has answered for too long."""
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


class Outcome:
    """How a run ends, gathered from its events."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._retries: Counter[str] = Counter()
        self._failed: tuple[str, int] | None = None

    def take(self, event: Event) -> Result | None:
        """The result, with the event that ends the run. Raises RunFailed, RunStopped."""
        data = event.data
        if event.event == "node_retry":
            self._retries[str(data.get("id"))] += 1
        elif event.event in _FINISHED and data.get("status") == "failed":
            self._failed = str(data.get("node_id")), self._retries[str(data.get("id"))] + 1
        elif event.event == _END:
            return self._ended(data)
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
