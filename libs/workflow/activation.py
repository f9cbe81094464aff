"""When a response node may begin to stream, before it runs.

The rule: on some path from the root to the response node, every *blocking* edge was taken. Blocking are edges that
leave a branch, a container, another response node, or an assigner that writes a variable the response node refers to.

Enumerating paths would be exponential. The rule is the same as reachability over edges that are taken or not blocking
(a walk has a simple path among its edges, and no more blocking ones), and that grows edge by edge: each edge is walked
once, so a whole run costs nodes plus edges. Response nodes that wait for the same assigners share one such search.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.workflow.definition import Definition, Edge, Node, NodeKind

Variable = tuple[str, ...]

_BLOCKING_KINDS = (NodeKind.BRANCH, NodeKind.CONTAINER, NodeKind.RESPONSE)


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """Response nodes of one graph that wait for the same assigners."""

    root: str
    nodes: frozenset[str]
    blockers: frozenset[str]
    """Nodes whose outgoing edges count only once they are taken."""


class Activation:
    """The growing search of one graph: the main one, or one round of a container."""

    __slots__ = ("_definition", "_open", "_taken", "_watched")

    def __init__(self, definition: Definition, watched: Watched) -> None:
        self._definition = definition
        self._watched = watched
        self._open: set[str] = set()
        self._taken: dict[str, list[str]] = {}
        """Targets of the taken edges of each blocker."""

    def start(self) -> list[str]:
        """The response nodes that may stream from the beginning."""
        return self._reach(self._watched.root)

    def take(self, edge: Edge) -> list[str]:
        """The response nodes that may stream because `edge` was taken."""
        if edge.source in self._watched.blockers:
            self._taken.setdefault(edge.source, []).append(edge.target)
            if edge.source in self._open and edge.target not in self._open:
                return self._reach(edge.target)
        return []

    def _reach(self, node_id: str) -> list[str]:
        found: list[str] = []
        self._open.add(node_id)
        waiting = [node_id]
        while waiting:
            here = waiting.pop()
            if here in self._watched.nodes:
                found.append(here)
            for target in self._ways(here):
                if target not in self._open:
                    self._open.add(target)
                    waiting.append(target)
        return found

    def _ways(self, node_id: str) -> list[str]:
        if node_id in self._watched.blockers:
            return self._taken.get(node_id, [])
        return [edge.target for edge in self._definition.nodes[node_id].outgoing]


def watches(definition: Definition, root: str, references: Mapping[str, frozenset[Variable]]) -> tuple[Watched, ...]:
    """The searches that the response nodes of one graph need. `references`: the variables each of them refers to."""
    blocking = {node.id for node in definition.nodes.values() if node.kind in _BLOCKING_KINDS}
    writers = writers_of(definition)
    groups: dict[frozenset[str], set[str]] = {}
    for response, variables in references.items():
        assigners = frozenset().union(*(writers.get(variable, ()) for variable in variables))
        groups.setdefault(assigners, set()).add(response)
    return tuple(
        Watched(root, frozenset(nodes), frozenset(blocking | assigners)) for assigners, nodes in groups.items()
    )


def writers_of(definition: Definition) -> dict[Variable, set[str]]:
    """The assigners that write a variable, by variable."""
    writers: dict[Variable, set[str]] = {}
    for node in definition.nodes.values():
        for variable in written(node):
            writers.setdefault(variable, set()).add(node.id)
    return writers


def written(node: Node) -> Iterable[Variable]:
    """The variables that an assigner writes; nothing for other nodes."""
    if node.type != "assigner":
        return []
    if node.version == "2":
        return [tuple(item.variable_selector[:2]) for item in node.config.items]
    return [tuple(node.config.assigned_variable_selector[:2])]


def stuck(definition: Definition) -> frozenset[str]:
    """Nodes that can neither run nor be skipped: not connected to a root, on a cycle, or behind such a node."""
    starts = {definition.root, *definition.inactive_roots}
    starts |= {node.config.start_node_id for node in definition.nodes.values() if node.kind is NodeKind.CONTAINER}
    undecided = {node.id: len(node.incoming) for node in definition.nodes.values()}
    decided: set[str] = set()
    waiting = [node_id for node_id in starts if node_id in definition.nodes]
    while waiting:
        here = waiting.pop()
        if here in decided:
            continue
        decided.add(here)
        for edge in definition.nodes[here].outgoing:
            undecided[edge.target] -= 1
            if undecided[edge.target] == 0:
                waiting.append(edge.target)
    return frozenset(definition.nodes.keys() - decided)
