"""The text a client sees while a run goes on: the templates of `answer` and `end` nodes, worked through in order.

A pure state machine over the events of one run. It must be given every event, in order, each with the view of the run
*after* it, and may be given chunks. Text caused by an event belongs before that event's own frame, except for
`RunStarted`, whose text belongs after it.

The concatenated text depends on the events alone; chunks only make parts of it appear earlier. So a replica that has
seen no chunk, or other chunks, shows the same text. (One exception: what a stopped attempt had shown stays, although
no event may hold it; taking text away from a person who pressed stop helps nobody. Where the stop says what was shown,
and the run ends with that as its answer, whoever has seen less sees the rest.)

Rules:
- Each response node has one session; it begins when the node becomes active (`libs.workflow.activation`).
- One session speaks at a time, the others queue in the order in which they became active (ties: node id).
- A literal is said at once. A placeholder waits until its source node is done, then says its value as markdown. While
  it is the current one, chunks of exactly this variable are said as they come.
- A value that an assigner may still change waits for the assigner too, unless that comes behind the response node.
- A placeholder without a value (source skipped, failed into another branch, unknown, or stuck) is left out.
- A message that an annotation answers says that answer, and no node has a session.
- When a response node is done, what its template says is fixed: later changes of variables do not show.
- Text of an attempt that no longer holds is taken back: one `Text` with `replace` and everything that holds.

Not here: frames, sequence numbers, execution ids, reasoning text. A template literal that equals a selector with a
value says that value, like the answer node itself does.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from pydantic import JsonValue

from libs.events.chunks import Chunk
from libs.events.commands import Annotation
from libs.events.model import (
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    RoundFinished,
    RoundStarted,
    RunAccepted,
    RunEvent,
    RunFailed,
    RunPartiallySucceeded,
    RunStarted,
    RunStopped,
    RunSucceeded,
    StopRequested,
)
from libs.workflow.activation import Activation, Variable, Watched, stuck, watches, writers_of
from libs.workflow.definition import Definition, Node, NodeKind
from libs.workflow.pool import Pool, as_markdown
from libs.workflow.state import round_path
from libs.workflow.templates import Selector, as_selector, segments

__all__ = ["ResponseStream", "RunView", "Text"]


@dataclass(frozen=True, slots=True)
class Text:
    """Something to show: more text, or (`replace`) all text that holds, in place of what was shown."""

    text: str
    selector: Selector
    """`from_variable_selector` of the frame: of the variable, or `[response node, "answer"]` for literal text."""
    node_id: str
    """Where it comes from: the source node of a variable, the response node of a literal."""
    replace: bool = False
    path: str = ""
    """The round of the response node, if it is inside a container."""


class RunView(Protocol):
    """What the stream needs to know of the run, as of the event that is being handled."""

    @property
    def pool(self) -> Pool: ...
    def pool_at(self, path: str) -> Pool:
        """The values that nodes at `path` see; `pool` for the main graph."""
        ...

    def edge_taken(self, path: str, edge_index: int) -> bool | None: ...
    def node_skipped(self, path: str, node_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """One part of a response template."""

    node_id: str
    selector: Selector
    text: str = ""
    """What it says when `lookup` finds nothing."""
    lookup: Selector = ()
    anchor: str | None = None
    """The node that must be done before the value is read; None: nothing to wait for."""
    early: bool = False
    """The value may be there before the anchor is done, and holds then: an input of the run."""
    depth: int = 0
    """How many rounds are around the anchor."""
    live: bool = False
    """Whether chunks of the anchor may be shown for it."""
    writers: tuple[tuple[str, int], ...] = ()
    """What may change the value before the response node is done: assigners, or the containers next to the response
    node that hold them, each with the number of rounds around it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What follows from the definition alone."""

    pieces: dict[str, tuple[_Piece, ...]]
    """By response node."""
    graphs: dict[str | None, tuple[Watched, ...]]
    """The searches by container (None: main graph); only graphs that hold response nodes, at any depth."""
    streamed: frozenset[Selector]
    """Outputs whose chunks can be shown somewhere."""


@dataclass(slots=True, eq=False)
class _Session:
    node_id: str
    paths: tuple[str, ...]
    """The path of the main graph, then of each round around the response node; its own path is the last."""
    pieces: Sequence[_Piece]
    at: int = 0
    fixed: bool = False
    """The response node is done."""

    @property
    def current(self) -> _Piece | None:
        return self.pieces[self.at] if self.at < len(self.pieces) else None


@dataclass(slots=True, eq=False)
class _Live:
    """What the running attempt has streamed of one output, without holes."""

    parts: list[str] = field(default_factory=list)
    length: int = 0


@dataclass(slots=True, eq=False)
class _Graph:
    """The main graph, or one round, as far as the stream cares."""

    searches: tuple[Activation, ...]
    sessions: dict[str, _Session] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    attempts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Running attempt of a node: its number, and the sequence at which it began."""
    live: dict[str, dict[str, _Live]] = field(default_factory=dict)
    """By node and output."""


class ResponseStream:
    """The response text of one run."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._plan = _plan(definition)
        self._graphs: dict[str, _Graph] = {"": self._new_graph(None)}
        self._queue: deque[_Session] = deque()
        self._held: list[str] = []
        self._held_length = 0
        self._partial: _Live | None = None
        """What the current piece has shown from chunks, beyond what is held."""
        self._seq = 0
        self._epoch = 0
        self._annotation: Annotation | None = None
        self._said: JsonValue = None
        """What a stop says was shown."""

    @property
    def position(self) -> int:
        """Characters that a client shows by now."""
        return self._held_length + (self._partial.length if self._partial else 0)

    def on_event(self, event: RunEvent, view: RunView) -> list[Text]:
        """The text that `event` causes; `view` already includes it."""
        self._seq += 1
        match event:
            case NodeSucceeded() | NodeExcepted():
                return self._on_done(event, view)
            case NodeStarted() | NodeRestarted():
                lost = self._lose(event.path, event.node_id)
                graph = self._graphs.get(event.path)
                if graph is not None:
                    graph.attempts[event.node_id] = (event.attempt, self._seq)
                return lost
            case NodeRetryScheduled() | NodeFailed():
                return self._lose(event.path, event.node_id)
            case NodeStopped() if event.path in self._graphs:
                self._graphs[event.path].attempts.pop(event.node_id, None)
            case NodeSkipped() if event.path in self._graphs:
                return self._advance(view)
            case RunAccepted():
                self._annotation = event.annotation
            case RunStarted():
                return self._begin("", view) if self._annotation is None else self._annotated(self._annotation)
            case RoundStarted():
                return self._on_round(event, view)
            case RoundFinished():
                return self._on_round_over(self._round(event), view)
            case RunSucceeded() | RunPartiallySucceeded():
                return self._on_round_over("", view)
            case StopRequested():
                self._said = event.said
            case RunStopped():
                return self._on_stopped(event)
            case RunFailed():
                self._close()
        return []

    def on_chunk(self, chunk: Chunk) -> list[Text]:
        """What of `chunk` can be shown now. Chunks may be late, early, repeated, cut anywhere, or missing."""
        graph = self._graphs.get(chunk.path)
        attempt = graph.attempts.get(chunk.node_id) if graph else None
        if graph is None or attempt is None or (chunk.node_id, chunk.field) not in self._plan.streamed:
            return []
        # An owner that was replaced may still send: its chunks have a lower epoch, or follow an event from before the
        # attempt began anew.
        if chunk.attempt != attempt[0] or chunk.after < attempt[1] or chunk.epoch < self._epoch:
            return []
        self._epoch = chunk.epoch
        live = graph.live.setdefault(chunk.node_id, {}).setdefault(chunk.field, _Live())
        known = live.length - chunk.position
        fresh = chunk.text[known:] if known >= 0 else ""  # behind a hole: wait for the durable output
        if not fresh:
            return []
        live.parts.append(fresh)
        live.length += len(fresh)
        session = self._queue[0] if self._queue else None
        if session is None or self._live_of(session) is not live:
            return []
        self._partial = live
        return [_text(session, session.pieces[session.at], fresh)]

    # --- events ------------------------------------------------------------------------------------------------------

    def _annotated(self, annotation: Annotation) -> list[Text]:
        self._held.append(annotation.answer)
        self._held_length += len(annotation.answer)
        return [Text(annotation.answer, (), "")]

    def _on_done(self, event: NodeSucceeded | NodeExcepted, view: RunView) -> list[Text]:
        graph = self._graphs.get(event.path)
        if graph is None:
            return []
        node = self._definition.nodes[event.node_id]
        graph.done.add(node.id)
        graph.attempts.pop(node.id, None)
        for edge in node.outgoing:
            if view.edge_taken(event.path, edge.index):
                active = [each for search in graph.searches for each in search.take(edge)]
                self._activate(graph, event.path, active)
        if node.id in self._plan.pieces:
            self._activate(graph, event.path, [node.id])  # at the latest now
            self._fix(graph.sessions[node.id], view)
        said = self._advance(view)
        graph.live.pop(node.id, None)
        return said

    def _on_round(self, event: RoundStarted, view: RunView) -> list[Text]:
        if event.node_id not in self._plan.graphs:
            return []
        path = self._round(event)
        self._graphs[path] = self._new_graph(event.node_id)
        return self._begin(path, view)

    def _on_round_over(self, path: str, view: RunView) -> list[Text]:
        """Nothing more comes at `path`: sessions keep what their finished response nodes said, without open ends."""
        graph = self._graphs.pop(path, None)
        if graph is None:
            return []
        said: list[Text] = []
        for session in graph.sessions.values():
            piece = session.current
            if piece is not None and self._queue[0] is session and self._partial is not None:
                self._partial = None
                said = [self._replacement(session, piece)]
            rest = [piece for piece in session.pieces[session.at :] if piece.anchor is None]
            session.pieces, session.at = rest if session.fixed else (), 0
        return said + self._advance(view)

    def _on_stopped(self, event: RunStopped) -> list[Text]:
        """What was shown where the stop was asked for and not here: its chunks came there alone."""
        self._close()
        answer = event.outputs.get("answer")
        if not isinstance(answer, str) or answer != self._said or len(answer) <= self.position:
            return []
        shown = "".join([*self._held, *(self._partial.parts if self._partial else ())])
        if not answer.startswith(shown):
            return []
        self._held, self._held_length, self._partial = [answer], len(answer), None
        return [Text(answer[len(shown) :], (), "")]

    def _close(self) -> None:
        self._queue.clear()
        self._graphs.clear()

    def _begin(self, path: str, view: RunView) -> list[Text]:
        graph = self._graphs[path]
        self._activate(graph, path, [each for search in graph.searches for each in search.start()])
        return self._advance(view)

    def _round(self, event: RoundStarted | RoundFinished) -> str:
        return round_path(event.path, self._definition.nodes[event.node_id].type, event.node_id, event.index)

    def _new_graph(self, container: str | None) -> _Graph:
        return _Graph(tuple(Activation(self._definition, each) for each in self._plan.graphs.get(container, ())))

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _activate(self, graph: _Graph, path: str, node_ids: Iterable[str]) -> None:
        for node_id in sorted(node_ids):
            if node_id not in graph.sessions:
                steps = path.split("/") if path else []
                paths = tuple("/".join(steps[:depth]) for depth in range(len(steps) + 1))
                session = graph.sessions[node_id] = _Session(node_id, paths, self._plan.pieces[node_id])
                self._queue.append(session)

    def _advance(self, view: RunView) -> list[Text]:
        """Say what can be said, up to the first placeholder that has to wait."""
        said: list[Text] = []
        while self._queue:
            session = self._queue[0]
            while (piece := session.current) is not None:
                if self._waits(piece, session, view):
                    said.extend(self._join_in(session, piece))
                    return said
                said.extend(self._say(session, piece, self._value(piece, session, view)))
                session.at += 1
            self._queue.popleft()
        return said

    def _join_in(self, session: _Session, piece: _Piece) -> list[Text]:
        """Show what was streamed for the current piece before its turn came."""
        live = self._live_of(session)
        if live is None or live is self._partial:
            return []
        self._partial = live
        return [_text(session, piece, "".join(live.parts))]

    def _say(self, session: _Session, piece: _Piece, full: str) -> list[Text]:
        shown, self._partial = "".join(self._partial.parts) if self._partial else "", None
        if full:
            self._held.append(full)
            self._held_length += len(full)
        if not full.startswith(shown):
            return [self._replacement(session, piece)]
        tail = full[len(shown) :]
        return [_text(session, piece, tail)] if tail else []

    def _lose(self, path: str, node_id: str) -> list[Text]:
        """What the attempt had streamed no longer holds."""
        graph = self._graphs.get(path)
        if graph is None:
            return []
        graph.attempts.pop(node_id, None)
        lost = graph.live.pop(node_id, {})
        session = self._queue[0] if self._queue else None
        if session is None or self._partial is None or self._partial not in lost.values():
            return []
        self._partial = None
        return [self._replacement(session, session.pieces[session.at])]

    def _fix(self, session: _Session, view: RunView) -> None:
        """The response node is done: read every value that is there, before anything changes or clears it."""
        session.fixed = True
        read = [replace(piece, writers=()) for piece in session.pieces[session.at :]]
        session.pieces = [
            piece
            if self._waits(piece, session, view)
            else replace(piece, text=self._value(piece, session, view), lookup=(), anchor=None)
            for piece in read
        ]
        session.at = 0

    def _waits(self, piece: _Piece, session: _Session, view: RunView) -> bool:
        if not all(self._settled(writer, depth, session, view) for writer, depth in piece.writers):
            return True
        if piece.anchor is None or self._settled(piece.anchor, piece.depth, session, view):
            return False
        return not piece.early or view.pool.get(piece.lookup) is None

    def _settled(self, node_id: str, depth: int, session: _Session, view: RunView) -> bool:
        path = session.paths[depth]
        graph = self._graphs.get(path)
        return graph is None or node_id in graph.done or view.node_skipped(path, node_id)

    def _value(self, piece: _Piece, session: _Session, view: RunView) -> str:
        if not piece.lookup:
            return piece.text
        if piece.anchor is not None and view.node_skipped(session.paths[piece.depth], piece.anchor):
            return piece.text  # a round before this one may have left a value
        path = session.paths[-1]
        segment = (view.pool_at(path) if path else view.pool).get(piece.lookup)
        return piece.text if segment is None else as_markdown(segment)

    def _live_of(self, session: _Session) -> _Live | None:
        """What is being streamed for the session's current piece."""
        piece = session.current
        if piece is None or not piece.live or piece.anchor is None:
            return None
        graph = self._graphs.get(session.paths[piece.depth])
        return graph.live.get(piece.anchor, {}).get(piece.lookup[1]) if graph else None

    def _replacement(self, session: _Session, piece: _Piece) -> Text:
        return replace(_text(session, piece, "".join(self._held)), replace=True)


def _text(session: _Session, piece: _Piece, text: str) -> Text:
    return Text(text, piece.selector, piece.node_id, path=session.paths[-1])


# --- what follows from the definition --------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # a definition is equal only to itself; many runs share one
def _plan(definition: Definition) -> _Plan:
    dead = stuck(definition)
    responses = [node for node in definition.nodes.values() if node.kind is NodeKind.RESPONSE]
    writers = writers_of(definition)
    pieces = {node.id: tuple(_pieces(definition, node, dead, writers)) for node in responses}
    graphs: dict[str | None, tuple[Watched, ...]] = {}
    for container in dict.fromkeys(each for node in responses for each in _around(definition, node.id)):
        root = definition.root if container is None else definition.nodes[container].config.start_node_id
        here = [node.id for node in responses if node.container == container]
        references = {each: frozenset(piece.lookup[:2] for piece in pieces[each] if piece.lookup) for each in here}
        graphs[container] = watches(definition, root, references)
    streamed = frozenset(piece.lookup for each in pieces.values() for piece in each if piece.live)
    return _Plan(pieces, graphs, streamed)


def _around(definition: Definition, node_id: str) -> list[str | None]:
    """None for the main graph, then the containers around the node, outermost first."""
    containers: list[str | None] = []
    container = definition.nodes[node_id].container
    while container is not None:
        containers.append(container)
        container = definition.nodes[container].container
    return [None, *reversed(containers)]


def _pieces(
    definition: Definition, node: Node, dead: frozenset[str], writers: Mapping[Variable, Set[str]]
) -> Iterable[_Piece]:
    around = _around(definition, node.id)
    for part in _parts(node):
        if isinstance(part, str):
            piece = _Piece(node.id, (node.id, "answer"), text=part, lookup=as_selector(part))
        elif part[0] not in definition.nodes:
            piece = _Piece(node.id, part, lookup=part)
        else:
            piece = _waiting_piece(definition, part, around, dead)
        assigners = writers.get(piece.lookup[:2], ())
        yield replace(piece, writers=_before(definition, node, assigners, around, dead)) if assigners else piece


def _before(
    definition: Definition, node: Node, assigners: Iterable[str], around: list[str | None], dead: frozenset[str]
) -> tuple[tuple[str, int], ...]:
    """The assigners that may run before the response node is done, as it sees them."""
    behind: set[str] = set()
    waiting = [node.id, *(container for container in around if container is not None)]
    while waiting:
        targets = {edge.target for edge in definition.nodes[waiting.pop()].outgoing} - behind
        behind |= targets
        waiting += targets
    seen = sorted({_next_to(definition, assigner, around) for assigner in assigners})
    return tuple((each, depth) for each, depth in seen if each not in behind and each not in dead)


def _next_to(definition: Definition, node_id: str, around: list[str | None]) -> tuple[str, int]:
    """The node, or the container that holds it in a graph around the response node; and the depth of that graph."""
    while (container := definition.nodes[node_id].container) not in around:
        assert container is not None  # the main graph is around everything
        node_id = container
    return node_id, around.index(container)


def _waiting_piece(
    definition: Definition, selector: Selector, around: list[str | None], dead: frozenset[str]
) -> _Piece:
    """A placeholder for a node's value. It waits for the node, or for the container next to it that holds the node.

    Not waited for: values of a container around (there from the beginning), and nodes that never become anything.
    """
    source = selector[0]
    anchor, depth = _next_to(definition, source, around)
    if source in around or anchor in dead:
        return _Piece(source, selector, lookup=selector)
    return _Piece(
        source,
        selector,
        lookup=selector,
        anchor=anchor,
        early=source == definition.root,
        depth=depth,
        live=anchor == source and len(selector) == 2,
    )


def _parts(node: Node) -> Iterable[str | Selector]:
    if node.type != "end":
        yield from segments(node.config.answer)
        return
    selectors = [tuple(output.value_selector) for output in node.config.outputs if output.value_selector]
    for number, selector in enumerate(selectors):
        if number:
            yield "\n"
        yield selector
