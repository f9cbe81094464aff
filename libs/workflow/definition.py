"""A workflow definition: what a document says, checked and ready to run. Immutable; equal text, equal definition.

`compile_document` reads Dify documents of all versions, tolerates what their editors and generators leave behind
(reported as warnings), and refuses what could not run right, all mistakes at once, each with its path. Pure: no I/O.
It costs well under a millisecond a node, most of it YAML; keep the result by digest.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import JsonValue

from libs.workflow.configs.flow import StartConfig, StartVariable
from libs.workflow.document import parse
from libs.workflow.drafts import Draft, Drafts, Retry, begin_bodies, read_nodes
from libs.workflow.graph import Edge, Layout, bodies, lay_out, on_cycles, read_edges, stuck
from libs.workflow.node_configs import NODE_TYPES, ROOT_TYPES, WITHOUT_HANDLER, NodeKind
from libs.workflow.problems import DefinitionInvalid, Findings, Problem, WorkflowError, kind_of
from libs.workflow.references import check_handles, check_references
from libs.workflow.variables import Variable, read_variables

__all__ = [
    "NODE_TYPES",
    "Definition",
    "DefinitionInvalid",
    "Edge",
    "Node",
    "NodeKind",
    "Problem",
    "Retry",
    "StartVariable",
    "Variable",
    "WorkflowError",
    "check_document",
    "compile_document",
    "digest_of",
    "summary",
]

Mode = Literal["workflow", "advanced-chat"]

# The newest version of the document format that this reader was written for.
_NEWEST: Final = (0, 7, 0)
_WITHOUT_GRAPH: Final = frozenset({"chat", "agent-chat", "completion", "agent"})
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_]{1,50}")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    id: str
    type: str
    title: str
    version: str
    kind: NodeKind
    """BRANCH also for executable types whose strategy is `fail-branch`; other kinds stay what they are."""
    config: Any
    """The frozen config model of the type, from `libs.workflow.node_configs`; unknown keys are kept."""
    data: Mapping[str, Any]
    """As the document has it."""
    retry: Retry | None
    """Only when enabled, above 0 and honoured by the type."""
    strategy: Literal["fail-branch", "default-value"] | None
    defaults: Mapping[str, JsonValue]
    """Default values, converted to their declared types."""
    container: str | None
    """Innermost container around it; None in the main graph."""
    incoming: tuple[Edge, ...]
    outgoing: tuple[Edge, ...]

    @property
    def branches(self) -> bool:
        """Whether only the edges of one handle are taken; True for every node whose strategy is `fail-branch`."""
        return self.kind is NodeKind.BRANCH or self.strategy == "fail-branch"


@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    digest: str
    """`sha256:<hex>` of the text that was compiled."""
    name: str
    mode: Mode
    dsl_version: str
    nodes: Mapping[str, Node]
    """In document order, canvas notes left out. Start markers that older documents lack come last."""
    edges: tuple[Edge, ...]
    root: str
    inactive_roots: tuple[str, ...]
    bodies: Mapping[str, tuple[str, ...]]
    """Container -> all nodes inside it, all levels below, start marker included."""
    environment: tuple[Variable, ...]
    conversation: tuple[Variable, ...]
    features: Mapping[str, Any]
    start_variables: tuple[StartVariable, ...]
    """The input form of the active root; empty when that is not a `start` node."""
    warnings: tuple[Problem, ...]
    document: Mapping[str, Any]
    """As parsed, unknown keys kept."""


def digest_of(text: str | bytes) -> str:
    """The digest under which a document's text is stored."""
    return f"sha256:{hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()}"


def compile_document(text: str | bytes) -> Definition:
    """The definition of a document (YAML or JSON). Raises DefinitionInvalid with all of its mistakes."""
    findings = Findings()
    definition = _compile(text, findings)
    if definition is None:
        raise DefinitionInvalid(findings.errors())
    return definition


def check_document(text: str | bytes) -> tuple[Definition | None, tuple[Problem, ...]]:
    """(definition, or None when there are mistakes; all mistakes and oddities). Never raises."""
    findings = Findings()
    definition = _compile(text, findings)
    return definition, tuple(findings.problems)


def summary(definition: Definition) -> dict[str, JsonValue]:
    """`mode`, `nodes` and `edges` as people count them: nodes that can run, and the edges between them."""
    markers = {node.id for node in definition.nodes.values() if node.kind is NodeKind.MARKER}
    between = sum(edge.source not in markers and edge.target not in markers for edge in definition.edges)
    return {"mode": definition.mode, "nodes": len(definition.nodes) - len(markers), "edges": between}


def _compile(text: str | bytes, findings: Findings) -> Definition | None:
    document = parse(text, findings)
    if document is None:
        return None
    workflow = _workflow(document, findings)
    if workflow is None:
        return None
    graph = workflow.get("graph")
    if not isinstance(graph, dict):
        findings.error("workflow.graph", f"expected a mapping with nodes and edges, got {kind_of(graph)}")
        return None
    drafts = read_nodes(graph.get("nodes"), "workflow.graph.nodes", findings)
    if not drafts.places and not findings.failed:
        findings.error("workflow.graph.nodes", "there is no node", "A workflow needs a start node and an end")
    edges, places = read_edges(graph.get("edges"), drafts.places, drafts.notes, "workflow.graph.edges", findings)
    # Edges of nodes with mistakes of their own are fine in the document; here they would dangle.
    if len(drafts.nodes) < len(drafts.places):
        kept = [number for number, edge in enumerate(edges) if {edge.source, edge.target} <= drafts.nodes.keys()]
        places = [places[number] for number in kept]
        edges = [
            Edge(index, edges[number].source, edges[number].handle, edges[number].target)
            for index, number in enumerate(kept)
        ]
    starts = begin_bodies(drafts, edges, findings)
    mode = _mode(document, drafts, findings)
    environment = read_variables(
        workflow.get("environment_variables"), "env", "workflow.environment_variables", findings
    )
    conversation = read_variables(
        workflow.get("conversation_variables"), "conversation", "workflow.conversation_variables", findings
    )
    roots = _roots(drafts, findings)
    incoming, outgoing = _by_node(drafts, edges)
    layout = lay_out(roots, starts, outgoing)
    _check_bodies(drafts, starts, roots, layout, findings)
    _check_graph(drafts, edges, places, starts, roots, layout, findings)
    scopes = {"env": frozenset(each.name for each in environment)}
    if mode == "advanced-chat":
        scopes["conversation"] = frozenset(each.name for each in conversation)
    check_references(drafts.nodes, scopes, findings)
    _check_oddities(document, workflow, drafts, mode, findings)
    if findings.failed or mode is None:
        return None
    inside = bodies(layout, starts, drafts.nodes)
    nodes = {node.id: _node(node, layout, incoming, outgoing) for node in drafts.nodes.values()}
    root_config = nodes[roots[0]].config
    app = document.get("app")
    features = workflow.get("features")
    return Definition(
        digest=digest_of(text),
        name=str((app.get("name") if isinstance(app, dict) else None) or "workflow"),
        mode=mode,
        dsl_version=str(document.get("version") or "0.1.0"),
        nodes=nodes,
        edges=tuple(edges),
        root=roots[0],
        inactive_roots=tuple(roots[1:]),
        bodies=inside,
        environment=environment,
        conversation=conversation if mode == "advanced-chat" else (),
        features=features if isinstance(features, dict) else {},
        start_variables=root_config.variables if isinstance(root_config, StartConfig) else (),
        warnings=findings.warnings(),
        document=document,
    )


def _node(draft: Draft, layout: Layout, incoming: Mapping[str, list[Edge]], outgoing: Mapping[str, list[Edge]]) -> Node:
    return Node(
        id=draft.id,
        type=draft.type,
        title=draft.title,
        version=draft.version,
        kind=draft.kind,
        config=draft.config,
        data=draft.data,
        retry=draft.retry,
        strategy=draft.strategy,
        defaults=draft.defaults or {},
        container=layout.container.get(draft.id),
        incoming=tuple(incoming[draft.id]),
        outgoing=tuple(outgoing[draft.id]),
    )


# --- the head of the document ----------------------------------------------------------------------------------------


def _workflow(document: Mapping[str, Any], findings: Findings) -> Mapping[str, Any] | None:
    workflow = document.get("workflow")
    if isinstance(workflow, dict):
        return workflow
    if workflow is None and isinstance(document.get("graph"), dict):
        findings.warn("workflow", "is missing; the graph at the top of the document was read", "Export the whole app")
        return document
    if workflow is None and isinstance(document.get("nodes"), list):
        findings.warn("workflow", "is missing; the nodes at the top of the document were read", "Export the whole app")
        return {"graph": document}
    app = document.get("app")
    mode = app.get("mode") if isinstance(app, dict) else None
    if isinstance(mode, str) and mode in _WITHOUT_GRAPH:
        findings.error("app.mode", f'apps of mode "{mode}" have no graph to run', _MODES_HERE)
        return None
    findings.error("workflow", f"expected a mapping with a graph, got {kind_of(workflow)}", "Export the whole app")
    return None


_MODES_HERE: Final = "Modes that run here: workflow, advanced-chat"


def _mode(document: Mapping[str, Any], drafts: Drafts, findings: Findings) -> Mode | None:
    app = document.get("app")
    mode = app.get("mode") if isinstance(app, dict) else None
    if mode == "workflow":
        return "workflow"
    if mode == "advanced-chat":
        return "advanced-chat"
    if mode is None or mode == "":
        types = {node.type for node in drafts.nodes.values()}
        guessed: Mode = "advanced-chat" if "answer" in types and "end" not in types else "workflow"
        findings.warn("app.mode", f"is missing; read as {guessed}", "Add app: {mode: ...}")
        return guessed
    if isinstance(mode, str) and mode in _WITHOUT_GRAPH:
        findings.error("app.mode", f'apps of mode "{mode}" have no graph to run', _MODES_HERE)
    else:
        shown = f'"{mode[:40]}"' if isinstance(mode, str) else kind_of(mode)
        hint = findings.suggest(mode, ("workflow", "advanced-chat")) if isinstance(mode, str) else ""
        findings.error("app.mode", f"expected workflow or advanced-chat, got {shown}", hint or _MODES_HERE)
    return None


def _roots(drafts: Drafts, findings: Findings) -> list[str]:
    """All roots, the active one first: the first in document order."""
    roots = [node.id for node in drafts.nodes.values() if node.type in ROOT_TYPES]
    if not roots and drafts.places and len(drafts.nodes) == len(drafts.places):
        findings.error(
            "workflow.graph.nodes", "no start node", f"Add a node of one of the types {', '.join(sorted(ROOT_TYPES))}"
        )
    if len(roots) > 1:
        others = ", ".join(f'"{root}"' for root in roots[1:])
        findings.warn("workflow.graph.nodes", f'{len(roots)} roots; "{roots[0]}" is the active one, not {others}')
    return roots


# --- what is between nodes -------------------------------------------------------------------------------------------


def _by_node(drafts: Drafts, edges: list[Edge]) -> tuple[dict[str, list[Edge]], dict[str, list[Edge]]]:
    incoming: dict[str, list[Edge]] = {node_id: [] for node_id in drafts.nodes}
    outgoing: dict[str, list[Edge]] = {node_id: [] for node_id in drafts.nodes}
    for edge in edges:
        outgoing[edge.source].append(edge)
        incoming[edge.target].append(edge)
    return incoming, outgoing


def _check_bodies(
    drafts: Drafts, starts: Mapping[str, str], roots: list[str], layout: Layout, findings: Findings
) -> None:
    """Refuse bodies that a round could not keep apart from the rest of the run."""
    for container in layout.selfish:
        findings.error(
            f"{drafts.nodes[container].at}.data.start_node_id",
            f'the body of "{container}" contains the {drafts.nodes[container].type} itself',
            "Remove the edge that leads from the body back to it",
        )
    for container, start in starts.items():
        owner = layout.container.get(start)
        if owner != container:
            findings.error(
                f"{drafts.nodes[container].at}.data.start_node_id",
                f'the start "{start}" of "{container}" is in {_where(owner)}',
                "Give every container a start node of its own",
            )
    for root in roots:
        if root in layout.container:
            findings.error(
                drafts.nodes[root].at,
                f'the root "{root}" is in the body of "{layout.container[root]}"',
                "Remove the edge that leads from the body to it",
            )


def _check_graph(
    drafts: Drafts,
    edges: list[Edge],
    places: list[int],
    starts: Mapping[str, str],
    roots: list[str],
    layout: Layout,
    findings: Findings,
) -> None:
    """Warn about what is legal and hardly ever meant: what no run reaches, what waits for ever, what leaves a body."""
    incoming, outgoing = _by_node(drafts, edges)
    for edge in edges:
        source, target = layout.container.get(edge.source), layout.container.get(edge.target)
        if source != target and edge.source in layout.reached and edge.index < len(places):
            findings.warn(
                f"workflow.graph.edges[{places[edge.index]}]",
                f'leads from {_where(source)} into {_where(target)} ("{edge.source}" to "{edge.target}")',
                "A body begins at its start node and ends by itself",
            )
    if len(drafts.nodes) == len(drafts.places):  # else a node with mistakes may be the missing link
        waiting = stuck([*roots, *starts.values()], layout.reached, incoming, outgoing)
        waiting.sort(key=lambda node_id: drafts.places[node_id])
        cyclic = on_cycles(waiting, outgoing)
        for node_id in waiting:
            reason = "it is on a cycle" if node_id in cyclic else "it waits for a node that never runs"
            findings.warn(drafts.nodes[node_id].at, f'node "{node_id}" can never run: {reason}', "Check its edges")
        for node in drafts.nodes.values():
            if node.id not in layout.reached:
                findings.warn(node.at, f'node "{node.id}" is not reachable from the start', "Connect or remove it")
    for node in drafts.nodes.values():
        check_handles(node, outgoing[node.id], places, findings)
        _check_membership(node, drafts, layout, findings)


def _where(container: str | None) -> str:
    return "the main graph" if container is None else f'the body of "{container}"'


def _check_membership(node: Draft, drafts: Drafts, layout: Layout, findings: Findings) -> None:
    """Flags that say a node is inside a container although no body reaches it. Edges decide, not flags."""
    if node.id not in layout.reached or layout.selfish:
        return
    around = list(layout.around(node.id))
    for key in ("iteration_id", "loop_id"):
        claimed = node.data.get(key)
        if claimed and str(claimed) not in around:
            findings.warn(f"{node.at}.data.{key}", f'the node is not in the body of "{str(claimed)[:100]}"')
    if not around and (node.data.get("isInIteration") is True or node.data.get("isInLoop") is True):
        findings.warn(f"{node.at}.data", "is marked as inside a container, but it is in the main graph")


# --- oddities of real documents --------------------------------------------------------------------------------------


def _check_oddities(
    document: Mapping[str, Any], workflow: Mapping[str, Any], drafts: Drafts, mode: Mode | None, findings: Findings
) -> None:
    _check_version(document.get("version"), findings)
    kind = document.get("kind")
    if kind != "app":
        findings.warn("kind", "is missing; read as app" if kind is None else f"read as app, not {str(kind)[:40]!r}")
    if "dependencies" not in document:
        findings.warn("dependencies", "is missing; plugins that nodes need are not named")
    features = workflow.get("features")
    if features is not None and not isinstance(features, dict):
        findings.warn("workflow.features", f"expected a mapping, got {kind_of(features)}; none are used")
    unwritable = [node for node in drafts.nodes.values() if not _PLAIN_ID.fullmatch(node.id)]
    for node in unwritable:
        findings.warn(
            f"{node.at}.id",
            f'templates cannot refer to the id "{node.id[:100]}"',
            "Use up to 50 of A-Z, a-z, 0-9 and _",
        )
    without: dict[str, list[str]] = {}
    for node in drafts.nodes.values():
        if node.type in WITHOUT_HANDLER:
            without.setdefault(node.type, []).append(node.id)
        _check_older_forms(node, findings)
    for node_type, ids in without.items():
        findings.warn(
            drafts.nodes[ids[0]].at,
            f"{len(ids)} node{'s' if len(ids) > 1 else ''} of type {node_type} cannot run without an outside system",
            "Pin them, or they fail when they are reached",
        )
    types = {node.type for node in drafts.nodes.values()}
    if mode == "workflow" and "end" not in types and len(drafts.nodes) == len(drafts.places):
        findings.warn("workflow.graph.nodes", "no end node: the run has no outputs of its own", "Add an end node")
    if mode == "workflow" and "answer" in types:
        findings.warn("workflow.graph.nodes", "an answer node in an app of mode workflow", "Use an end node")


def _check_version(version: object, findings: Findings) -> None:
    if version is None:
        findings.warn("version", "is missing; read as 0.1.0")
        return
    try:
        parts = tuple(int(part) for part in str(version).split("-")[0].split("+")[0].split("."))
    except ValueError:
        findings.warn("version", f"{str(version)[:40]!r} is not a version; the document is read as it stands")
        return
    if parts > _NEWEST:
        newest = ".".join(map(str, _NEWEST))
        findings.warn("version", f"{str(version)[:40]} is newer than {newest}, the newest version known here")


def _check_older_forms(node: Draft, findings: Findings) -> None:
    data = node.data
    if node.type == "if-else" and data.get("cases") is None and data.get("conditions"):
        findings.warn(f"{node.at}.data.conditions", "the older form of an if-else, without cases")
    elif node.type == "http-request":
        body = data.get("body")
        if isinstance(body, dict) and isinstance(body.get("data"), str) and body["data"]:
            findings.warn(f"{node.at}.data.body.data", "the older form of a body, one text")
    elif node.type in ("tool", "agent") and "output_schema" in data and data["output_schema"] is None:
        findings.warn(f"{node.at}.data.output_schema", "is null; read as empty")
    elif node.type == "iteration":
        for name in ("iterator_selector", "output_selector"):
            if not getattr(node.config, name):
                findings.warn(f"{node.at}.data.{name}", "is empty", "Choose a variable")
