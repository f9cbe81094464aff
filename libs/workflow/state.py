"""The state of one run: what the fold of its events keeps, and no more than deciding needs.

Changed in place by `libs.workflow.machine.evolve` only (copying per event is quadratic in the size of the graph).
`dump_state` and `load_state` make and read run snapshots; a snapshot is a disposable cached fold.

Shape: a run is a tree of *frames*. The frame `""` is the main graph; every round of a container is a frame of its
own, whose path names the containers and rounds around it. Edges are decided per frame; a node execution is
identified by `(path, node id)`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote

from pydantic import JsonValue

from libs.events.model import RunAccepted
from libs.workflow.definition import Definition
from libs.workflow.modes import graph_of
from libs.workflow.pool import Pool

ROOT = ""

NEW, PENDING, RUNNING, PAUSED = "new", "pending", "running", "paused"
SUCCEEDED, PARTIAL, FAILED, STOPPED = "succeeded", "partial-succeeded", "failed", "stopped"
ENDED = frozenset({SUCCEEDED, PARTIAL, FAILED, STOPPED})


class Key(NamedTuple):
    """Identity of a node execution within its run."""

    path: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Round:
    """One step of a path: round `index` of the container `node_id`."""

    kind: str
    """`iteration` or `loop`."""
    node_id: str
    index: int


def round_path(path: str, kind: str, node_id: str, index: int) -> str:
    """The path of a round of the container that runs at `path`."""
    step = f"{kind}:{quote(node_id, safe='')}:{index}"
    return f"{path}/{step}" if path else step


def rounds_of(path: str) -> tuple[Round, ...]:
    """The rounds around a node, outermost first; empty in the main graph."""
    if not path:
        return ()
    steps = (step.split(":") for step in path.split("/"))
    return tuple(Round(kind, unquote(node_id), int(index)) for kind, node_id, index in steps)


@dataclass(slots=True)
class Execution:
    """One visit of one node: its attempts share this record."""

    node_id: str
    path: str
    index: int
    """Order of first starts in the run, 1-based."""
    predecessor_id: str | None
    started_us: int
    status: str = "running"
    """`running`, `retry` (waits for its next attempt), `paused` (waits for a person), `succeeded`, `exception`,
    `failed`, `stopped`."""
    attempt: int = 1
    epoch: int = 0
    """Epoch in which the current attempt began: an attempt of an earlier epoch lost its owner."""
    attempt_started_us: int = 0
    finished_us: int = 0
    due_us: int = 0
    """While `retry`: the next attempt may begin then."""
    handle: str | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        return Key(self.path, self.node_id)


@dataclass(slots=True)
class Frame:
    """The main graph, or one round of a container: which edges are decided, and how much is still open."""

    path: str
    pool: Pool
    edges: dict[int, bool] = field(default_factory=dict)
    """Edge index -> taken (True) or skipped (False); undecided edges are absent."""
    undecided: dict[str, int] = field(default_factory=dict)
    """Node id -> incoming edges that are not decided; absent: none of them is."""
    reached: dict[str, str] = field(default_factory=dict)
    """Node id -> source of the last taken edge to it."""
    skipped: set[str] = field(default_factory=set)
    open: int = 0
    """Nodes that are ready, running, waiting for a retry or about to be skipped."""
    error: str | None = None
    """First failure in the frame that no strategy handled."""
    container: Key | None = None
    """Whose round it is; None: the main graph."""
    started_us: int = 0
    tokens: int = 0
    outputs: dict[str, JsonValue] = field(default_factory=dict)
    """Of its response nodes."""
    executions: list[Key] = field(default_factory=list)
    """What has run in this round; forgotten with it."""


@dataclass(slots=True)
class Container:
    """An iteration or loop that is open, or was."""

    node_id: str
    path: str
    kind: str
    inputs: dict[str, JsonValue] | None
    length: int = 0
    """Items of the iteration; most rounds of the loop."""
    problem: str | None = None
    """Why it could not begin."""
    started: int = 0
    """Rounds begun; the next one has this index."""
    running: dict[int, None] = field(default_factory=dict)
    results: dict[int, JsonValue] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    durations: dict[str, JsonValue] = field(default_factory=dict)
    variables: list[str] = field(default_factory=list)
    """Labels of the loop variables."""
    variable_map: dict[str, JsonValue] = field(default_factory=dict)
    """Round -> loop variables after it."""
    broken: bool = False
    """A `loop-end` was reached."""
    tokens: int = 0


@dataclass(slots=True)
class Form:
    """A form that a node has opened, until the node is done."""

    node_id: str
    path: str
    form_id: str
    form: dict[str, JsonValue]
    """As in `FormOpened`."""
    due_us: int
    action: str | None = None
    """The chosen action, or `__timeout`; None: it is open."""
    values: dict[str, JsonValue] = field(default_factory=dict)
    """What was submitted."""


@dataclass(slots=True)
class RunState:
    """The fold of one run."""

    definition: Definition
    """Of a run of a part: the part's, once the run was accepted."""
    run_id: str
    status: str = NEW
    seq: int = 0
    at_us: int = 0
    """Time of the last event."""
    accepted: RunAccepted | None = None
    accepted_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    max_steps: int = 0
    max_time_s: float = 0.0

    frames: dict[str, Frame] = field(default_factory=dict)
    executions: dict[Key, Execution] = field(default_factory=dict)
    ready: dict[Key, str | None] = field(default_factory=dict)
    """Nodes that may start, in order of becoming ready -> predecessor."""
    active: dict[Key, None] = field(default_factory=dict)
    """Executions that run, or wait for a retry or a person, in order of start."""
    prefix: deque[dict[str, Any]] = field(default_factory=deque)
    """Of a fork: events of the first run that are still to be recorded here."""
    to_skip: deque[tuple[Key, str | None, str | None]] = field(default_factory=deque)
    """Nodes whose last way in was ruled out, with the deciding node and handle."""
    containers: dict[Key, Container] = field(default_factory=dict)
    """Containers that are open."""
    touched: dict[Key, None] = field(default_factory=dict)
    """Containers that may have something to say (`libs.workflow.containers.following`)."""
    epochs: dict[int, int] = field(default_factory=dict)
    """Epoch -> number of attempts that run since then."""
    forms: dict[Key, Form] = field(default_factory=dict)
    """Forms of nodes that are not done, in order of opening."""
    answered: dict[Key, None] = field(default_factory=dict)
    """Those among them that are not open any more: their nodes are about to succeed."""
    pause_reason: str | None = None
    """Somebody asked for a pause: nothing new starts."""
    paused_since_us: int = 0
    """While paused: since when."""
    paused_us: int = 0
    """Microseconds spent paused, without the present pause."""

    steps: int = 0
    """Node executions begun, in all frames (the limit counts these)."""
    total_steps: int = 0
    """Attempts begun in the main graph (what records show)."""
    total_tokens: int = 0
    exceptions_count: int = 0
    outputs: dict[str, JsonValue] = field(default_factory=dict)
    history: JsonValue = None
    """Earlier messages of the conversation with their answers, as `RunStarted` carries them."""
    written: dict[str, str] = field(default_factory=dict)
    """Conversation variables that the run has written -> type."""
    stop_reason: str | None = None
    said: str | None = None
    """Chatflows: what clients saw of the answer where the stop was asked for."""
    limit: str | None = None
    failed_node: str | None = None
    error: str | None = None

    @property
    def pool(self) -> Pool:
        """Values of the main graph."""
        return self.frames[ROOT].pool

    def pool_at(self, path: str) -> Pool:
        """Values that nodes at `path` see; of the frame around when that round is over."""
        frame = self.frames.get(path)
        while frame is None:
            path = parent_path(path) or ROOT
            frame = self.frames.get(path)
        return frame.pool

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def ending(self) -> bool:
        """Something decided that the run ends early: running nodes are being cancelled, nothing new starts."""
        return self.stop_reason is not None or self.error is not None

    def edge_taken(self, path: str, edge_index: int) -> bool | None:
        """Whether the edge was taken (True), skipped (False) or is undecided (None) in this frame."""
        frame = self.frames.get(path)
        return frame.edges.get(edge_index) if frame else None

    def node_skipped(self, path: str, node_id: str) -> bool:
        frame = self.frames.get(path)
        return frame is not None and node_id in frame.skipped

    def spent_us(self, now_us: int) -> int:
        """Microseconds since the run was admitted, without those it was paused."""
        until_us = self.paused_since_us or now_us
        return max(until_us - self.started_us - self.paused_us, 0) if self.started_us else 0

    def running(self) -> Iterator[Execution]:
        """Executions that have not ended, in order of start."""
        return (self.executions[key] for key in self.active)


_PLAIN = (
    "status", "seq", "at_us", "accepted_us", "started_us", "ended_us", "max_steps", "max_time_s", "steps",
    "total_steps", "total_tokens", "exceptions_count", "outputs", "history", "written", "stop_reason", "limit",
    "failed_node", "error", "pause_reason", "paused_since_us", "paused_us",
)  # fmt: skip


def dump_state(state: RunState) -> JsonValue:
    """The state as JSON, without the definition. `load_state` gives back an equal state."""
    return {
        "plain": {name: getattr(state, name) for name in _PLAIN},
        "accepted": state.accepted.model_dump(mode="json") if state.accepted else None,
        "frames": [_dump_frame(state, frame) for frame in state.frames.values()],
        "containers": [_dump_container(each) for each in state.containers.values()],
        "executions": [
            [getattr(execution, name) for name in Execution.__slots__] for execution in state.executions.values()
        ],
        "ready": [[*key, predecessor] for key, predecessor in state.ready.items()],
        "active": [list(key) for key in state.active],
        "to_skip": [[*key, by, handle] for key, by, handle in state.to_skip],
        "forms": [{name: getattr(form, name) for name in Form.__slots__} for form in state.forms.values()],
        "prefix": list(state.prefix),
        # Only where there is one: releases that do not know it read all other snapshots.
        **({} if state.said is None else {"said": state.said}),
    }


def load_state(definition: Definition, run_id: str, data: JsonValue) -> RunState:
    """The state that `dump_state` wrote. Raises KeyError, TypeError or ValueError when `data` is something else."""
    raw = cast(dict[str, Any], data)
    state = RunState(definition, run_id, **raw["plain"])
    state.accepted = RunAccepted.model_validate(raw["accepted"]) if raw["accepted"] else None
    if state.accepted is not None:
        state.definition = graph_of(definition, state.accepted)
    for frame in raw["frames"]:
        parent = parent_path(frame["path"])
        around = None if parent is None else state.frames[parent].pool
        pool = around if frame["pool"] is None and around is not None else Pool.load(frame["pool"], parent=around)
        state.frames[frame["path"]] = _load_frame(frame, pool)
    for values in raw["containers"]:
        container = Container(**{name: values[name] for name in _PLAIN_CONTAINER})
        container.running = dict.fromkeys(values["running"])
        container.results = {int(index): value for index, value in values["results"].items()}
        container.failures = {int(index): value for index, value in values["failures"].items()}
        key = Key(container.path, container.node_id)
        state.containers[key] = container
        state.touched[key] = None
    for values in raw["executions"]:
        execution = Execution(**dict(zip(Execution.__slots__, values, strict=True)))
        state.executions[execution.key] = execution
    state.ready = {Key(path, node_id): predecessor for path, node_id, predecessor in raw["ready"]}
    state.active = {Key(path, node_id): None for path, node_id in raw["active"]}
    state.to_skip = deque((Key(path, node_id), by, handle) for path, node_id, by, handle in raw["to_skip"])
    for values in raw.get("forms", ()):
        form = Form(**values)
        key = Key(form.path, form.node_id)
        state.forms[key] = form
        if form.action is not None:
            state.answered[key] = None
    state.prefix = deque(raw.get("prefix", ()))
    state.said = raw.get("said")
    for execution in state.running():
        if execution.status == "running" and execution.key not in state.containers:
            state.epochs[execution.epoch] = state.epochs.get(execution.epoch, 0) + 1
    return state


def parent_path(path: str) -> str | None:
    """The path of the frame around the frame at `path`; None for the main graph."""
    if not path:
        return None
    return path.rpartition("/")[0]


_PLAIN_CONTAINER = (
    "node_id", "path", "kind", "inputs", "length", "problem", "started", "durations", "variables", "variable_map",
    "broken", "tokens",
)  # fmt: skip


def _dump_container(container: Container) -> dict[str, Any]:
    plain = {name: getattr(container, name) for name in _PLAIN_CONTAINER}
    results = {str(index): value for index, value in container.results.items()}
    failures = {str(index): value for index, value in container.failures.items()}
    return {**plain, "running": list(container.running), "results": results, "failures": failures}


def _dump_frame(state: RunState, frame: Frame) -> dict[str, Any]:
    parent = parent_path(frame.path)
    shared = parent is not None and frame.pool is state.frames[parent].pool
    return {
        "path": frame.path,
        "pool": None if shared else frame.pool.dump(),
        "edges": [[index, taken] for index, taken in frame.edges.items()],
        "undecided": frame.undecided,
        "reached": frame.reached,
        "skipped": sorted(frame.skipped),
        "open": frame.open,
        "error": frame.error,
        "container": list(frame.container) if frame.container else None,
        "started_us": frame.started_us,
        "tokens": frame.tokens,
        "outputs": frame.outputs,
        "executions": [list(key) for key in frame.executions],
    }


def _load_frame(raw: dict[str, Any], pool: Pool) -> Frame:
    return Frame(
        path=raw["path"],
        pool=pool,
        edges=dict(raw["edges"]),
        undecided=dict(raw["undecided"]),
        reached=dict(raw["reached"]),
        skipped=set(raw["skipped"]),
        open=raw["open"],
        error=raw["error"],
        container=Key(*raw["container"]) if raw["container"] else None,
        started_us=raw["started_us"],
        tokens=raw["tokens"],
        outputs=dict(raw["outputs"]),
        executions=[Key(*key) for key in raw["executions"]],
    )
