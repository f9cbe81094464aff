"""What a client gives back: events, results, states, and the errors a caller can act on.

Unknown keys of a server's answer are kept in `data` or `raw`, so that a client reads a newer server.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class FlowledgerError(Exception):
    """Everything that this package raises."""


class Unreachable(FlowledgerError):
    """No server answered in time. Whether it did what was asked is unknown; asking again with the same key is safe."""


class Refused(FlowledgerError):
    """The server said no. `code` is stable; `problems` are those of a document that cannot run."""

    def __init__(self, status: int, code: str, message: str, problems: tuple[Json, ...] = ()) -> None:
        lines = [f"{message} ({status} {code})", *map(_problem_line, problems)]
        super().__init__("\n".join(lines))
        self.status = status
        self.code = code
        self.message = message
        self.problems = problems


class RunFailed(FlowledgerError):
    """The run ended as failed. `node_id` and `attempt`: the node that failed it (None: the run itself, a limit)."""

    def __init__(self, run_id: str, error: str, node_id: str | None, attempt: int | None) -> None:
        where = f" at node {node_id!r}, attempt {attempt}" if node_id else ""
        super().__init__(f"run {run_id} failed{where}: {error}")
        self.run_id = run_id
        self.error = error
        self.node_id = node_id
        self.attempt = attempt


class RunStopped(FlowledgerError):
    """Somebody stopped the run."""

    def __init__(self, run_id: str, error: str) -> None:
        super().__init__(f"run {run_id} was stopped: {error}")
        self.run_id = run_id
        self.error = error


class StillRunning(FlowledgerError, TimeoutError):
    """The run has not ended within `timeout_s`; it goes on."""

    def __init__(self, run_id: str, timeout_s: float) -> None:
        super().__init__(f"run {run_id} has not ended within {timeout_s:g} s; it goes on")
        self.run_id = run_id


@dataclass(frozen=True, slots=True)
class Event:
    """One frame of a run's stream, in Dify's shapes."""

    id: str
    """Where to go on behind it: `sequence`, of a text `sequence.position`; of several runs one of these for each, with
    commas between. Empty within an event of several frames."""
    event: str
    """`workflow_started`, `node_finished`, `text_chunk`, ..."""
    data: Json = field(default_factory=dict)
    """The frame's `data`."""
    raw: Json = field(default_factory=dict, repr=False)
    """The whole frame."""
    run_id: str = ""
    seq: int | None = None
    """The sequence of the run's event that it belongs to; None where `id` is empty."""


@dataclass(frozen=True, slots=True)
class BulkChange:
    """A run that was stopped or tried again."""

    run_id: str
    retried_as: str | None
    """The new run, when it was tried again."""


@dataclass(frozen=True, slots=True)
class BulkFailure:
    """A run to which it could not be done, and why."""

    run_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Bulk:
    """What was done to many runs; before it is done, how many they are."""

    action: str
    count: int
    """Runs that match."""
    done: bool
    changed: tuple[BulkChange, ...]
    failed: tuple[BulkFailure, ...]
    already: tuple[BulkChange, ...] = ()
    """Runs that an earlier `bulk` tried again, with what that made: nothing was done to them."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended well: `succeeded` or `partial-succeeded`."""

    run_id: str
    status: str
    outputs: Json
    elapsed_time: float
    total_steps: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One fact of a run, from the log. Types: docs/events.md."""

    seq: int
    type: str
    at: str
    node_id: str | None
    path: str
    attempt: int | None
    data: Json
    raw: Json = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as lists show it: no payloads."""

    id: str
    app_id: str
    workflow_id: str
    version: str
    status: str
    error: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    elapsed_time: float | None
    total_steps: int
    total_tokens: int
    seq: int
    raw: Json = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunState:
    """A run now, or as of one of its events."""

    id: str
    status: str
    seq: int
    error: str | None
    inputs: Json
    outputs: Json | None
    nodes: Mapping[str, Json]
    """By node id: `status`, `executions` with `path`, `attempt`, `status`, `error`, `inputs`, `outputs`."""
    variables: Json
    waiting_for: Any
    raw: Json = field(repr=False)


def history_event(line: Json) -> HistoryEvent:
    return HistoryEvent(
        line["seq"], line["type"], line["at"], line.get("node_id"), line.get("path") or "", line.get("attempt"),
        line.get("data") or {}, line,
    )  # fmt: skip


def run_info(item: Json) -> RunInfo:
    return RunInfo(
        item["id"], item["app_id"], item["workflow_id"], item["version"], item["status"], item.get("error"),
        item["created_at"], item.get("started_at"), item.get("finished_at"), item.get("elapsed_time"),
        item.get("total_steps") or 0, item.get("total_tokens") or 0, item.get("seq") or 0, item,
    )  # fmt: skip


def run_state(found: Json) -> RunState:
    return RunState(
        found["id"], found["status"], found.get("seq") or 0, found.get("error"), found.get("inputs") or {},
        found.get("outputs"), found.get("nodes") or {}, found.get("variables") or {}, found.get("waiting_for"), found,
    )  # fmt: skip


def bulk(found: Json) -> Bulk:
    changed, already = (
        tuple(BulkChange(each["id"], each.get("retried_as")) for each in found.get(name, ()))
        for name in ("changed", "already")
    )
    failed = tuple(BulkFailure(each["id"], each["code"], each["message"]) for each in found["failed"])
    return Bulk(found["action"], found["count"], found["done"], changed, failed, already)


def _problem_line(problem: Json) -> str:
    place = f"at {problem['at']}: " if problem.get("at") else ""
    hint = f" {problem['hint']}" if problem.get("hint") else ""
    return f"  {place}{problem.get('problem')}.{hint}"
