"""From the events of one run to the frames of its stream, in the reference's shapes.

Pure: events and texts in, frames out; no log, loop or clock. What a frame says depends on the events before it alone,
so every replica makes the same frames with the same ids.

Ids: an event's last frame has the id `sequence`; a text has `sequence.position`: the event that was shown before it,
and the characters a client shows after it. Both rise. Frames of an event before its last one have no id, nor has a
replacement that is followed by its event's own frame: who breaks off there gets all of them again.

Text comes before the frame of the event that caused it, except the text that opens a run, which follows
`workflow_started`.

A message that an annotation answers has no frame of a workflow: its text, then `message_end`.
"""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from pydantic_core import PydanticSerializationError, to_json

from libs.events.codec import Recorded
from libs.events.commands import Annotation, Caller
from libs.events.ids import execution_id, message_id_of, task_id_of
from libs.events.model import (
    FormExpired,
    FormOpened,
    FormSubmitted,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    RoundFinished,
    RoundStarted,
    RunAccepted,
    RunEnd,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSucceeded,
)
from libs.workflow.state import round_path, rounds_of
from services.api.account import ADMIN_ACCOUNT
from services.api.asked import Asked, AskedForm
from services.api.from_models import TYPE, FromModels, files_of
from services.api.shortening import shortened
from services.api.usage import Usage

Json = dict[str, Any]

PING = b"event: ping\n\n"

CONTAINERS = frozenset({"iteration", "loop"})
MARKERS = frozenset({"iteration-start", "loop-start"})
FULL_DETAIL = frozenset({"service-api", "debugger"})
"""Whose callers see what nodes work on; all others see that nodes run, and what the run says."""
SHOWN_OF_SOURCES = ("segment_id", "position", "document_name", "score", "content")
"""What other callers see of what an answer was found in."""
KEPT_OF_ROUNDS = 1_000
"""Nodes of finished rounds that a snapshot shows."""
_SPEAKERS = frozenset({"llm", "agent", "tool"})
"""Node types whose handlers stream text."""

_ASKED = frozenset(
    {
        "FormOpened", "FormSubmitted", "FormExpired", "PauseRequested", "ResumeRequested", "RunPaused", "RunResumed",
        "NodeStopped", "RunSucceeded", "RunPartiallySucceeded", "RunFailed", "RunStopped",
    }
)  # fmt: skip
"""Events that say something about forms and pauses."""

_ASKERS = frozenset({"question-classifier", "parameter-extractor"})
"""Those that ask a model too."""

END_STATUS: dict[type[Any], str] = {
    RunSucceeded: "succeeded",
    RunPartiallySucceeded: "partial-succeeded",
    RunFailed: "failed",
    RunStopped: "stopped",
}


class Said(Protocol):
    """A piece of response text (`libs.workflow.streaming.Text`)."""

    @property
    def text(self) -> str: ...
    @property
    def selector(self) -> Sequence[str]: ...
    @property
    def replace(self) -> bool: ...


@dataclass(slots=True, frozen=True)
class Cursor:
    """What a client has seen: everything up to event `seq`, and `position` characters of text (None: unknown)."""

    seq: int = 0
    position: int | None = 0

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """A cursor from a `Last-Event-ID`. Raises ValueError."""
        seq, dot, position = text.strip().partition(".")
        if not (seq.isdecimal() and seq.isascii() and (not dot or (position.isdecimal() and position.isascii()))):
            raise ValueError(f"Last-Event-ID {text[:40]!r} is neither a sequence nor sequence.position")
        if int(seq) == 0:
            return cls()
        return cls(int(seq), int(position) if dot else None)


@dataclass(slots=True, frozen=True)
class Frame:
    """One frame, ready for the wire."""

    kind: Literal["event", "text", "replace"]
    seq: int
    """Of the event it belongs to; of a text: the event that was shown before it."""
    wire: bytes
    identified: bool
    """Whether the wire form has an `id:` line."""
    position: int
    """Characters that a client shows after this frame."""
    text: str = ""
    selector: tuple[str, ...] = ()
    unsettled: bool = False
    """A node was streaming meanwhile, so replicas may differ in how much of its text they have shown by now."""
    last: bool = False
    """The stream is over after it."""
    pauses: bool = False
    """It says that the run is paused: streams that do not wait for people end here."""

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.seq, self.position)


@dataclass(slots=True)
class _Node:
    """What later frames of a node execution repeat."""

    id: str
    started: NodeStarted
    created_us: int
    attempt_seq: int
    waiting: tuple[NodeRetryScheduled, int] | None = None
    finished: Json | None = None


class FrameMaker:
    """The frames of one run. Give it every event, in order, with the texts that it caused."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.task_id: str = task_id_of(run_id)
        self.seq = 0
        self.accepted: RunAccepted | None = None
        self.accepted_us = 0
        self.started_us = 0
        self.end: RunEnd | None = None
        self.ended_us = 0
        self.asked = Asked()
        self._closing: list[AskedForm] = []
        """Forms that were closed while the run was paused."""
        self._nodes: dict[tuple[str, str], _Node] = {}
        self._rounds: dict[str, list[tuple[str, str]]] = {}
        """Nodes of rounds that run, by the path of the round."""
        self._past: deque[tuple[str, str]] = deque()
        """Nodes of rounds that are over, oldest first."""
        self._speaking: dict[tuple[str, str], _Node] = {}
        self._said: list[str] = []
        self._usage = Usage()
        self._from_models = FromModels()
        self.position = 0

    @property
    def ended(self) -> bool:
        return self.end is not None

    @property
    def text(self) -> str:
        """What a client shows by now."""
        if len(self._said) > 1:
            self._said = ["".join(self._said)]
        return self._said[0] if self._said else ""

    @property
    def answer(self) -> str | None:
        """What a client shows of a message's answer by now; None: nothing, or the run answers no message."""
        return (self.text or None) if self._chat else None

    @property
    def unsettled(self) -> bool:
        """Whether an attempt that began before the newest event may be streaming."""
        return any(node.attempt_seq < self.seq for node in self._speaking.values())

    def on_event(self, recorded: Recorded, texts: Iterable[Said] = ()) -> list[Frame]:
        if recorded.event.type in _ASKED:
            self._ask(recorded)
        bodies = self._bodies(recorded)
        before = self.seq
        self.seq = recorded.seq
        if isinstance(recorded.event, RunStarted):
            return self._event_frames(bodies) + self.on_texts(texts)
        if isinstance(recorded.event, RunPaused):
            return self._texts(texts, before, identify_replacements=False) + self._event_frames(bodies, pauses=True)
        if not bodies:
            return self.on_texts(texts)
        return self._texts(texts, before, identify_replacements=False) + self._event_frames(bodies)

    def on_texts(self, texts: Iterable[Said]) -> list[Frame]:
        """Frames of text that follows the newest event: chunks, or what an event without a frame caused."""
        return self._texts(texts, self.seq, identify_replacements=True)

    def text_frame(self, text: str, selector: Sequence[str], seq: int, position: int) -> Frame:
        """More text; `position` is where it ends."""
        body = self._body("message" if self._chat else "text_chunk")
        if self._chat:
            body |= {"id": body["message_id"], "answer": text, "from_variable_selector": list(selector)}
        else:
            body["data"] = {"text": text, "from_variable_selector": list(selector)}
        wire = _wire(body, f"{seq}.{position}")
        return Frame("text", seq, wire, True, position, text, tuple(selector), self.unsettled)

    def replacement(self, text: str, seq: int, *, identify: bool = True) -> Frame:
        """All text that holds, in place of what was shown."""
        body = self._body("message_replace" if self._chat else "text_replace")
        if self._chat:
            body |= {"answer": text, "reason": ""}
        else:
            body["data"] = {"text": text}
        wire = _wire(body, f"{seq}.{len(text)}" if identify else None)
        return Frame("replace", seq, wire, identify, len(text), text, (), self.unsettled)

    @property
    def paused(self) -> bool:
        return self.asked.paused is not None

    def paused_answer(self, event: RunPaused) -> Json:
        """`data` of `workflow_paused`, and of the answer of a blocking start."""
        return {
            "workflow_run_id": self.run_id,
            "outputs": {},
            "status": "paused",
            "created_at": self.accepted_us // 1_000_000,
            "elapsed_time": event.elapsed_s,
            "total_tokens": event.total_tokens,
            "total_steps": event.total_steps,
        } | self.asked.pause(event)

    def snapshot(self) -> list[bytes]:
        """The run so far, for a client that attaches late: reduced forms, without ids."""
        if not self.started_us:
            return []
        bodies = [] if self._annotation is not None else [self._workflow_started()]
        if self._chat and self.text:
            bodies.append(self._body("message_replace") | {"answer": self.text, "reason": ""})
        for (path, _), node in self._nodes.items():
            if node.started.node_type in MARKERS:
                continue
            bodies.append(self._framed("node_started", _reduced(self._node_started(path, node), extras=True)))
            if node.finished is not None:
                bodies.append(self._framed("node_finished", node.finished))
        if self.asked.paused is not None and self.asked.parked:
            bodies += [self._framed("human_input_required", form.required()) for form in self.asked.open_forms()]
            bodies.append(self._framed("workflow_paused", self.paused_answer(self.asked.paused)))
        return [_wire(body, None) for body in bodies]

    # --- bodies ---

    @property
    def _chat(self) -> bool:
        return self.accepted is not None and self.accepted.mode == "advanced-chat"

    @property
    def _in_full(self) -> bool:
        """Whether the run's caller sees what nodes work on."""
        return self.accepted is None or self.accepted.invoke_from in FULL_DETAIL

    @property
    def _annotation(self) -> Annotation | None:
        """What answers the message in place of the workflow."""
        return self.accepted.annotation if self.accepted is not None else None

    def _texts(self, texts: Iterable[Said], seq: int, *, identify_replacements: bool) -> list[Frame]:
        made = []
        for said in texts:
            if said.replace:
                # It belongs to the newest event: an older id would not rise.
                frame = self.replacement(said.text, self.seq, identify=identify_replacements)
                self._said = [said.text]
            else:
                frame = self.text_frame(said.text, said.selector, seq, self.position + len(said.text))
                self._said.append(said.text)
            self.position = frame.position
            made.append(frame)
        return made

    def _event_frames(self, bodies: list[Json], *, pauses: bool = False) -> list[Frame]:
        last = len(bodies) - 1
        unsettled = self.unsettled
        return [
            Frame(
                "event",
                self.seq,
                _wire(body, str(self.seq) if number == last else None),
                number == last,
                self.position,
                unsettled=unsettled,
                last=self.ended and number == last,
                pauses=pauses and number == last,
            )
            for number, body in enumerate(bodies)
        ]

    def _bodies(self, recorded: Recorded) -> list[Json]:
        event, at_us = recorded.event, recorded.at_us
        match event:
            case RunAccepted():
                # Frames need no copied events a second time: they come as the run's own.
                self.accepted, self.accepted_us = event.model_copy(update={"prefix": None}), at_us
                return []
            case RunStarted():
                self.started_us = at_us
                return [] if self._annotation is not None else [self._workflow_started()]
            case RunSucceeded() | RunPartiallySucceeded() | RunFailed() | RunStopped():
                self.end, self.ended_us = event, at_us
                self._speaking.clear()
                return self._ended(event, at_us)
            case NodeStarted():
                return self._on_node_started(event, recorded.seq, at_us)
            case NodeRestarted():
                self._speak((event.path, event.node_id), recorded.seq)
                return []
            case NodeRetryScheduled():
                node = self._finish((event.path, event.node_id))
                if node is not None:
                    node.waiting = (event, at_us)
                return []
            case NodeSucceeded() | NodeFailed() | NodeExcepted():
                return self._on_node_finished(event, at_us)
            case NodeStopped():
                self._finish((event.path, event.node_id))
                return []
            case RoundStarted():
                return self._on_round_started(event, at_us)
            case RoundFinished():
                self._on_round_finished(event)
                return []
            case FormOpened():
                return [self._framed("human_input_required", self.asked.forms[event.form_id].required())]
            case FormSubmitted() | FormExpired():
                form = self.asked.forms.get(event.form_id)
                self._closing += [form] if form is not None else []
                return [] if self.asked.paused is not None else self._closed()
            case RunPaused():
                return [self._framed("workflow_paused", self.paused_answer(event))]
            case RunResumed():
                return [self._workflow_started("resumption"), *self._closed()]
            case _:
                return []

    def _ask(self, recorded: Recorded) -> None:
        event = recorded.event
        node = self._nodes.get((event.path, event.node_id)) if isinstance(event, FormOpened) else None
        self.asked.take(event, node.started.title if node is not None else "")  # type: ignore[arg-type]  # a run event

    def _on_node_started(self, event: NodeStarted, seq: int, at_us: int) -> list[Json]:
        key = (event.path, event.node_id)
        node = self._nodes.get(key)
        if node is None:
            identity = execution_id(self.run_id, event.path, event.node_id)
            node = self._nodes[key] = _Node(identity, event, at_us, seq)
            if event.path:
                self._rounds.setdefault(event.path, []).append(key)
            bodies = self._first_started(event.path, node)
        else:
            bodies = self._retried(event.path, node)
        self._speak(key, seq)
        return bodies

    def _first_started(self, path: str, node: _Node) -> list[Json]:
        kind = node.started.node_type
        if kind in MARKERS:
            return []
        if kind not in CONTAINERS:
            return [self._framed("node_started", self._shown(self._node_started(path, node), extras=True))]
        data = self._container(node, node.created_us) | {
            "metadata": _length_of(node.started),
            "inputs": node.started.inputs or {},
            "inputs_truncated": False,
        }
        return [self._framed(f"{kind}_started", self._cut(data))]

    def _retried(self, path: str, node: _Node) -> list[Json]:
        if node.waiting is None or node.started.node_type in CONTAINERS | MARKERS:
            return []
        failed, at_us = node.waiting
        node.waiting = None
        data = self._result(path, node, failed, at_us) | {
            "status": "retry",
            "error": failed.error,
        }
        return [self._framed("node_retry", self._shown(data) | {"retry_index": failed.attempt})]

    def _on_node_finished(self, event: NodeSucceeded | NodeFailed | NodeExcepted, at_us: int) -> list[Json]:
        node = self._finish((event.path, event.node_id))
        if node is None or node.started.node_type in MARKERS:
            return []
        if self._chat and node.started.node_type in _SPEAKERS | _ASKERS and (usage := _usage_in(event)):
            self._usage.add(usage)
        if self._chat and node.started.node_type == TYPE:
            self._from_models.take(event.outputs, event.process_data)
        status, error = "succeeded", None
        if not isinstance(event, NodeSucceeded):
            status, error = "failed" if isinstance(event, NodeFailed) else "exception", event.error
        result = self._result(event.path, node, event, at_us) | {"status": status, "error": error}
        node.finished = _reduced(result, extras=False)
        if node.started.node_type in CONTAINERS:
            return [self._container_completed(node, event, error, at_us)]
        return [self._framed("node_finished", self._shown(result))]

    def _closed(self) -> list[Json]:
        """What became of the forms that were closed; before the nodes that waited for them go on."""
        closed, self._closing = self._closing, []
        return [self._framed(*form.closed()) for form in closed]

    def _on_round_started(self, event: RoundStarted, at_us: int) -> list[Json]:
        node = self._nodes.get((event.path, event.node_id))
        if node is None:
            return []
        kind = node.started.node_type
        if kind == "loop" and event.index == 0:
            return []  # the first round of a loop is announced by `loop_started`
        data = self._container(node, at_us) | {"index": event.index}
        if kind == "loop":
            data["pre_loop_output"] = {}
        return [self._framed(f"{kind}_next", data)]

    def _on_round_finished(self, event: RoundFinished) -> None:
        """Nothing repeats its nodes but a snapshot, and that has the newest: a loop may have ten thousand rounds."""
        container = self._nodes.get((event.path, event.node_id))
        if container is None:
            return
        path = round_path(event.path, container.started.node_type, event.node_id, event.index)
        self._past.extend(self._rounds.pop(path, ()))
        while len(self._past) > KEPT_OF_ROUNDS:
            self._nodes.pop(self._past.popleft(), None)

    def _speak(self, key: tuple[str, str], seq: int) -> None:
        node = self._nodes.get(key)
        if node is not None and node.started.node_type in _SPEAKERS:
            node.attempt_seq = seq
            self._speaking[key] = node

    def _finish(self, key: tuple[str, str]) -> _Node | None:
        self._speaking.pop(key, None)
        return self._nodes.get(key)

    def _body(self, event: str) -> Json:
        body: Json = {"event": event}
        if self._chat and self.accepted is not None:
            body["conversation_id"] = self.accepted.conversation_id
            body["message_id"] = message_id_of(self.run_id)
            body["created_at"] = self.accepted_us // 1_000_000
            return body | {"task_id": self.task_id}
        return body | {"workflow_run_id": self.run_id, "task_id": self.task_id}

    def _framed(self, event: str, data: Json) -> Json:
        return self._body(event) | {"workflow_run_id": self.run_id, "data": data}

    def _workflow_started(self, reason: str = "initial") -> Json:
        data = {
            "id": self.run_id,
            "workflow_id": self.accepted.workflow_id if self.accepted else None,
            "inputs": started_inputs(self.run_id, self.accepted) if self.accepted else {},
            "created_at": self.accepted_us // 1_000_000,
            "reason": reason,
        }
        return self._framed("workflow_started", data)

    def finished_frame(self) -> bytes:
        """`workflow_finished` of a run that has ended, whatever else its end has to say; its last frame without one."""
        assert self.end is not None
        if self._annotation is not None:
            return _wire(self._ended(self.end, self.ended_us)[-1], str(self.seq))
        return _wire(self._framed("workflow_finished", self._finished(self.end, self.ended_us)), str(self.seq))

    def _ended(self, event: RunEnd, at_us: int) -> list[Json]:
        bodies = [] if self.started_us else [self._workflow_started()]
        after = [self._framed("workflow_finished", self._finished(event, at_us))]
        if not self._chat:
            return [*bodies, *after]
        if self._annotation is not None:
            bodies, after = [], []
        if isinstance(event, RunFailed):
            error = {"code": "invalid_param", "status": 400, "message": event.error or "the run has failed"}
            return [*bodies, *after, self._body("error") | {"workflow_run_id": self.run_id} | error]
        end = self._body("message_end")
        end |= {
            "id": end["message_id"],
            "metadata": self.metadata(),
            "files": self._from_models.files_with(files_of(event.outputs)),
        }
        return [*bodies, end, *after]

    def metadata(self) -> Json:
        """Of the message that an ended run answers."""
        total = self.end.total_tokens if self.end is not None else 0
        resources = self._from_models.resources
        if not self._in_full:
            return {"retriever_resources": [{name: one.get(name) for name in SHOWN_OF_SOURCES} for one in resources]}
        found: Json = {"retriever_resources": resources, "usage": self._usage.of(total)}
        by = self._annotation
        if by is not None:
            found["annotation_reply"] = {"id": by.id, "account": {"id": by.account_id, "name": by.account_name}}
        return found

    def _finished(self, event: RunEnd, at_us: int) -> Json:
        caller = self.accepted.caller if self.accepted else None
        return {
            "id": self.run_id,
            "workflow_id": self.accepted.workflow_id if self.accepted else None,
            "status": END_STATUS[type(event)],
            "outputs": event.outputs,
            "error": event.error,
            "elapsed_time": event.elapsed_s,
            "total_tokens": event.total_tokens,
            "total_steps": event.total_steps,
            "created_by": _created_by(caller) if caller else {},
            "created_at": self.accepted_us // 1_000_000,
            "finished_at": at_us // 1_000_000,
            "exceptions_count": event.exceptions_count,
            "files": files_of(event.outputs),
        }

    def _node_common(self, path: str, node: _Node) -> Json:
        around = {f"{each.kind}_id": each.node_id for each in rounds_of(path)}
        started = node.started
        return {
            "id": node.id,
            "node_id": started.node_id,
            "node_type": started.node_type,
            "title": started.title,
            "index": started.index,
            "predecessor_node_id": started.predecessor_id,
            "created_at": node.created_us // 1_000_000,
            "iteration_id": around.get("iteration_id"),
            "loop_id": around.get("loop_id"),
        }

    def _node_started(self, path: str, node: _Node) -> Json:
        return self._node_common(path, node) | {
            "inputs": None,
            "inputs_truncated": False,
            "extras": {},
            "agent_strategy": None,
        }

    def _result(
        self, path: str, node: _Node, event: NodeSucceeded | NodeFailed | NodeExcepted | NodeRetryScheduled, at_us: int
    ) -> Json:
        metadata: Json = dict(event.metadata or {})
        for each in rounds_of(path):
            metadata |= {f"{each.kind}_id": each.node_id, f"{each.kind}_index": each.index}
        return self._node_common(path, node) | {
            "inputs": event.inputs or {},
            "inputs_truncated": False,
            "process_data": event.process_data or {},
            "process_data_truncated": False,
            "outputs": event.outputs or {},
            "outputs_truncated": False,
            "elapsed_time": event.elapsed_s,
            "execution_metadata": metadata or None,
            "finished_at": at_us // 1_000_000,
            "files": files_of(event.outputs or {}),
        }

    def _container(self, node: _Node, at_us: int) -> Json:
        started = node.started
        return {
            "id": started.node_id,
            "node_id": started.node_id,
            "node_type": started.node_type,
            "title": started.title,
            "created_at": at_us // 1_000_000,
            "extras": {},
        }

    def _container_completed(
        self, node: _Node, event: NodeSucceeded | NodeFailed | NodeExcepted, error: str | None, at_us: int
    ) -> Json:
        metadata = {"total_tokens": 0, "total_price": "0", "currency": "USD"} | dict(event.metadata or {})
        without_round = error is None and metadata.get("loop_duration_map") == {}
        data = self._container(node, at_us) | {
            "inputs": event.inputs or node.started.inputs or {},
            "inputs_truncated": False,
            "outputs": event.outputs or {},
            "outputs_truncated": False,
            "status": "succeeded" if error is None else "failed",
            "error": error,
            "elapsed_time": event.elapsed_s,
            "total_tokens": metadata["total_tokens"],
            "execution_metadata": metadata,
            "finished_at": at_us // 1_000_000,
            "steps": 0 if without_round else next(iter(_length_of(node.started).values()), 0),
        }
        return self._framed(f"{node.started.node_type}_completed", self._cut(data))

    def _shown(self, data: Json, *, extras: bool = False) -> Json:
        """What the run's caller sees of a node: all of it, or that it runs and how it ended."""
        if self._in_full:
            return self._cut(data)
        return _reduced(data, extras=extras)

    def _cut(self, data: Json) -> Json:
        """Values as long as the run's caller gets them; a server that asked gets all of them."""
        if self.accepted is None or self.accepted.invoke_from == "service-api":
            return data
        for name in ("inputs", "process_data", "outputs"):
            if data.get(name):
                values, cut = shortened(data[name])
                data = data | {name: values, f"{name}_truncated": cut}
        return data


def error_frame(run_id: str, code: str, status: int, message: str) -> bytes:
    """The frame after which a stream closes because it cannot go on."""
    body = {
        "event": "error",
        "code": code,
        "status": status,
        "message": message,
        "task_id": task_id_of(run_id),
        "workflow_run_id": run_id,
    }
    return _wire(body, None)


def started_inputs(run_id: str, accepted: RunAccepted) -> Json:
    """`inputs` of `workflow_started`: declared variables and system values."""
    inputs: Json = accepted.inputs | {
        "sys.files": list(accepted.files),
        "sys.user_id": accepted.caller.user,
        "sys.app_id": accepted.app_id,
        "sys.workflow_id": accepted.workflow_id,
        "sys.workflow_run_id": run_id,
    }
    if accepted.mode == "advanced-chat":
        inputs |= {"sys.query": accepted.query or "", "sys.dialogue_count": accepted.dialogue_count or 1}
    return inputs


_LINE_ENDS: Final = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in ("\x85", "\u2028", "\u2029"))


def encode(value: Any) -> bytes:
    """JSON on one line, also for clients that take any of Unicode's line ends for one; other text stays UTF-8."""
    try:
        data = to_json(value, inf_nan_mode="null")
        for end, escaped in _LINE_ENDS:
            data = data.replace(end, escaped)
        return data
    except PydanticSerializationError:  # half a surrogate pair, which UTF-8 cannot hold
        return json.dumps(value, separators=(",", ":")).encode()


def _created_by(caller: Caller) -> Json:
    if caller.role == "end_user":
        return {"id": caller.id, "user": caller.user}
    return ADMIN_ACCOUNT | {"id": caller.id}


def _wire(body: Json, identity: str | None) -> bytes:
    data = b"data: " + encode(body) + b"\n\n"
    return data if identity is None else b"id: " + identity.encode() + b"\n" + data


def _length_of(started: NodeStarted) -> dict[str, int]:
    """`metadata` of `iteration_started` and `loop_started`."""
    inputs = started.inputs or {}
    if started.node_type == "loop":
        count = inputs.get("loop_count")
        return {"loop_length": count if isinstance(count, int) else 0}
    items = inputs.get("iterator_selector")
    return {"iteration_length": len(items) if isinstance(items, list) else 0}


def _usage_in(event: NodeSucceeded | NodeFailed | NodeExcepted) -> Json | None:
    """What the node's model has used, where the node says it."""
    for place in (event.outputs, event.process_data):
        usage = (place or {}).get("usage")
        if isinstance(usage, dict):
            return usage
    return None


def _reduced(data: Json, *, extras: bool) -> Json:
    """What callers without full detail see of a node."""
    hidden = {"inputs_truncated", "outputs_truncated", "process_data_truncated", "agent_strategy", "extras"}
    kept = {name: value for name, value in data.items() if name not in hidden}
    kept |= dict.fromkeys(("inputs", "process_data", "outputs", "error", "execution_metadata"))
    return kept | ({"extras": {}, "files": []} if extras else {"files": []})
