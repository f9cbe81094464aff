"""The graph of a document: edges, bodies of containers, and what can never run. Linear, and without recursion."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.workflow.problems import Findings, kind_of


@dataclass(frozen=True, slots=True)
class Edge:
    """`index`: position among the kept edges, in document order; an edge's handle defaults to `source`."""

    index: int
    source: str
    handle: str
    target: str


def read_edges(
    raw: object, ids: Mapping[str, int], notes: frozenset[str], at: str, findings: Findings
) -> tuple[list[Edge], list[int]]:
    """(edges, place of each in the document's list). An edge that touches an unknown node is an error."""
    edges: list[Edge] = []
    places: list[int] = []
    if raw is None or raw == "":
        return edges, places
    if not isinstance(raw, list):
        findings.error(at, f"expected a list of edges, got {kind_of(raw)}")
        return edges, places
    for number, entry in enumerate(raw):
        edge = _edge(entry, len(edges), ids, notes, f"{at}[{number}]", findings)
        if edge is not None:
            edges.append(edge)
            places.append(number)
    return edges, places


def _edge(
    entry: object, index: int, ids: Mapping[str, int], notes: frozenset[str], at: str, findings: Findings
) -> Edge | None:
    if not isinstance(entry, dict):
        findings.error(at, f"expected a mapping with source and target, got {kind_of(entry)}")
        return None
    ends = [_end(entry.get(name)) for name in ("source", "target")]
    known = True
    for name, end in zip(("source", "target"), ends, strict=True):
        if end is None:
            findings.error(f"{at}.{name}", f"expected the id of a node, got {kind_of(entry.get(name))}", "Give the id")
            known = False
        elif end in notes:
            findings.warn(f"{at}.{name}", f'node "{end}" is a canvas note; the edge is dropped')
            known = False
        elif end not in ids:
            hint = findings.suggest(end, ids, "Add the node or remove the edge")
            findings.error(f"{at}.{name}", f'unknown node "{end[:100]}"', hint)
            known = False
    handle = entry.get("sourceHandle", "source")
    if isinstance(handle, bool):
        handle = "true" if handle else "false"  # unquoted in YAML
    if handle is None:
        handle = "source"
    if isinstance(handle, int):
        handle = str(handle)
    if not isinstance(handle, str):
        findings.warn(f"{at}.sourceHandle", f"expected text, got {kind_of(handle)}; the edge is dropped")
        known = False
    source, target = ends
    return Edge(index, source, handle, target) if known and source is not None and target is not None else None


def _end(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def by_node(ids: Iterable[str], edges: Iterable[Edge]) -> tuple[dict[str, list[Edge]], dict[str, list[Edge]]]:
    """(incoming, outgoing) edges of every node, in document order."""
    incoming: dict[str, list[Edge]] = {node_id: [] for node_id in ids}
    outgoing: dict[str, list[Edge]] = {node_id: [] for node_id in incoming}
    for edge in edges:
        outgoing[edge.source].append(edge)
        incoming[edge.target].append(edge)
    return incoming, outgoing


@dataclass(slots=True)
class Layout:
    """Who is inside whom, and who can be reached."""

    container: dict[str, str] = field(default_factory=dict)
    """Node -> innermost container around it; nodes of the main graph are missing."""
    reached: set[str] = field(default_factory=set)
    """Nodes reachable from a root or from the start of a container."""
    selfish: list[str] = field(default_factory=list)
    """Containers that would contain themselves."""

    def around(self, node_id: str) -> Iterator[str]:
        """The containers around a node, innermost first. Endless for a selfish container."""
        here = self.container.get(node_id)
        while here is not None:
            yield here
            here = self.container.get(here)


def lay_out(roots: Iterable[str], starts: Mapping[str, str], outgoing: Mapping[str, Sequence[Edge]]) -> Layout:
    """`starts`: container -> first node of its body. A body is what its start reaches; the first container wins."""
    layout = Layout()
    for container, start in starts.items():
        for node_id in _reach([start], outgoing, layout.reached):
            layout.container[node_id] = container
    layout.reached.update(_reach(roots, outgoing, layout.reached))
    settled: set[str] = set()
    for container in starts:
        path: dict[str, None] = {}
        here: str | None = container
        while here is not None and here not in settled and here not in path:
            path[here] = None
            here = layout.container.get(here)
        if here is not None and here in path:
            layout.selfish.append(here)
        settled.update(path)
    return layout


def _reach(starts: Iterable[str], outgoing: Mapping[str, Sequence[Edge]], seen: set[str]) -> list[str]:
    """Everything reachable that was not `seen` before, starts included; adds it to `seen`."""
    found = [start for start in dict.fromkeys(starts) if start not in seen]
    seen.update(found)
    for node_id in found:  # grows while it is walked
        for edge in outgoing[node_id]:
            if edge.target not in seen:
                seen.add(edge.target)
                found.append(edge.target)
    return found


def bodies(layout: Layout, starts: Iterable[str], order: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """All nodes inside each container, all levels below, in document order."""
    inside: dict[str, list[str]] = {container: [] for container in starts}
    for node_id in order:
        for container in layout.around(node_id):
            inside[container].append(node_id)
    return {container: tuple(nodes) for container, nodes in inside.items()}


def stuck(
    begun: Iterable[str],
    reached: set[str],
    incoming: Mapping[str, Sequence[Edge]],
    outgoing: Mapping[str, Sequence[Edge]],
) -> list[str]:
    """Reached nodes that can never run, because an edge into them is never decided.

    `begun`: nodes that run whatever leads to them (roots and starts of bodies).
    """
    left = {node_id: len(incoming[node_id]) for node_id in reached}
    queue = deque(dict.fromkeys(begun))
    decided = set(queue)
    while queue:
        for edge in outgoing[queue.popleft()]:
            if edge.target in left:
                left[edge.target] -= 1
                if left[edge.target] <= 0 and edge.target not in decided:
                    decided.add(edge.target)
                    queue.append(edge.target)
    return [node_id for node_id in reached if node_id not in decided]


def on_cycles(nodes: Sequence[str], outgoing: Mapping[str, Sequence[Edge]]) -> set[str]:
    """Which of `nodes` lie on a cycle among them (Tarjan's strongly connected components, with an explicit stack)."""
    inside = set(nodes)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_nodes: list[str] = []
    is_open: set[str] = set()
    cyclic: set[str] = set()
    for first in nodes:
        if first in number:
            continue
        work: list[tuple[str, Iterator[Any]]] = [(first, iter(outgoing[first]))]
        number[first] = lowest[first] = len(number)
        open_nodes.append(first)
        is_open.add(first)
        while work:
            here, edges = work[-1]
            target = next((edge.target for edge in edges if edge.target in inside), None)
            if target is None:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[here])
                if lowest[here] == number[here]:
                    component = _component(here, open_nodes)
                    is_open.difference_update(component)
                    if len(component) > 1 or any(edge.target == here for edge in outgoing[here]):
                        cyclic.update(component)
            elif target not in number:
                number[target] = lowest[target] = len(number)
                open_nodes.append(target)
                is_open.add(target)
                work.append((target, iter(outgoing[target])))
            elif target in is_open:
                lowest[here] = min(lowest[here], number[target])
    return cyclic


def _component(root: str, open_nodes: list[str]) -> list[str]:
    component = []
    while True:
        component.append(open_nodes.pop())
        if component[-1] == root:
            return component
