"""A workflow definition: what a document says, checked and ready to run. Immutable; equal text, equal definition.

`compile_document` reads Dify documents of all versions, tolerates what their editors and generators leave behind
(reported as warnings), and refuses what could not run right, all mistakes at once, each with its path. Pure: no I/O.
It costs well under a millisecond a node, most of it YAML; keep the result by digest.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pydantic import JsonValue

from libs.workflow.configs.flow import StartConfig, StartVariable
from libs.workflow.document import parse
from libs.workflow.drafts import Draft, Drafts, Retry, begin_bodies, read_nodes
from libs.workflow.graph import Edge, Layout, bodies, by_node, lay_out, read_edges
from libs.workflow.node_configs import NODE_TYPES, ROOT_TYPES, NodeKind
from libs.workflow.oddities import check_bodies, check_graph, check_oddities
from libs.workflow.problems import DefinitionInvalid, Findings, Problem, WorkflowError, kind_of
from libs.workflow.references import check_references
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
    "examine",
]

Mode = Literal["workflow", "advanced-chat"]

_WITHOUT_GRAPH: Final = frozenset({"chat", "agent-chat", "completion", "agent"})


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
    """Where its runs begin. As compiled: the first root of the document; see `libs.workflow.roots`."""
    inactive_roots: tuple[str, ...]
    bodies: Mapping[str, tuple[str, ...]]
    """Container -> all nodes inside it, all levels below, start marker included."""
    environment: tuple[Variable, ...]
    conversation: tuple[Variable, ...]
    features: Mapping[str, Any]
    warnings: tuple[Problem, ...]
    document: Mapping[str, Any]
    """As parsed, unknown keys kept."""

    @property
    def start_variables(self) -> tuple[StartVariable, ...]:
        """The input form of the root; empty when that is not a `start` node."""
        config = self.nodes[self.root].config
        return config.variables if isinstance(config, StartConfig) else ()


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


def examine(text: str | bytes) -> tuple[Definition | None, tuple[Problem, ...], dict[str, JsonValue]]:
    """As `check_document`, and `mode`, `nodes` and `edges` as people count them: nodes that run, edges between them.

    Of a document with mistakes, what can be told: `mode` None where it has none, edges that lead nowhere left out.
    """
    findings = Findings()
    head = _head(text, findings)
    if head is None:
        return None, tuple(findings.problems), {"mode": None, "nodes": 0, "edges": 0}
    counts = _outline(head)  # before nodes are made that the document has not
    definition = _compile_head(text, head, findings)
    return definition, tuple(findings.problems), counts


@dataclass(slots=True, frozen=True)
class _Head:
    document: Mapping[str, Any]
    workflow: Mapping[str, Any]
    edges: object
    """As the document has them."""
    drafts: Drafts


def _outline(head: _Head) -> dict[str, JsonValue]:
    drafts, told = head.drafts, Findings()  # what is wrong was said already
    edges, _ = read_edges(head.edges, drafts.places, drafts.notes, "", told)
    counted = drafts.places.keys() - {draft.id for draft in drafts.nodes.values() if draft.kind is NodeKind.MARKER}
    between = sum(edge.source in counted and edge.target in counted for edge in edges)
    return {"mode": _mode(head.document, drafts, told), "nodes": len(counted), "edges": between}


def _head(text: str | bytes, findings: Findings) -> _Head | None:
    document = parse(text, findings)
    workflow = None if document is None else _workflow(document, findings)
    if document is None or workflow is None:
        return None
    graph = workflow.get("graph")
    if not isinstance(graph, dict):
        findings.error("workflow.graph", f"expected a mapping with nodes and edges, got {kind_of(graph)}")
        return None
    drafts = read_nodes(graph.get("nodes"), "workflow.graph.nodes", findings)
    return _Head(document, workflow, graph.get("edges"), drafts)


def _compile(text: str | bytes, findings: Findings) -> Definition | None:
    head = _head(text, findings)
    return None if head is None else _compile_head(text, head, findings)


def _compile_head(text: str | bytes, head: _Head, findings: Findings) -> Definition | None:
    document, workflow, drafts = head.document, head.workflow, head.drafts
    if not drafts.places and not findings.failed:
        findings.error("workflow.graph.nodes", "there is no node", "A workflow needs a start node and an end")
    edges, places = _edges(head.edges, drafts, findings)
    starts = begin_bodies(drafts, edges, findings)
    mode = _mode(document, drafts, findings)
    environment, conversation = _variables(workflow, mode, findings)
    roots = _roots(drafts, findings)
    incoming, outgoing = by_node(drafts.nodes, edges)
    layout = lay_out(roots, starts, outgoing)
    check_bodies(drafts, starts, roots, layout, findings)
    check_graph(drafts, edges, places, starts, roots, layout, findings)
    scopes = {"env": frozenset(each.name for each in environment)}
    if mode == "advanced-chat":
        scopes["conversation"] = frozenset(each.name for each in conversation)
    check_references(drafts, scopes, findings)
    check_oddities(document, workflow, drafts, mode, findings)
    if findings.failed or mode is None:
        return None
    features = workflow.get("features")
    return Definition(
        digest=digest_of(text),
        name=_name(document),
        mode=mode,
        dsl_version=str(document.get("version") or "0.1.0"),
        nodes={node.id: _node(node, layout, incoming, outgoing) for node in drafts.nodes.values()},
        edges=tuple(edges),
        root=roots[0],
        inactive_roots=tuple(roots[1:]),
        bodies=bodies(layout, starts, drafts.nodes),
        environment=environment,
        conversation=conversation,
        features=features if isinstance(features, dict) else {},
        warnings=findings.warnings(),
        document=document,
    )


def _edges(raw: object, drafts: Drafts, findings: Findings) -> tuple[list[Edge], list[int]]:
    """(edges between the drafts, place of each in the document's list)."""
    edges, places = read_edges(raw, drafts.places, drafts.notes, "workflow.graph.edges", findings)
    if len(drafts.nodes) == len(drafts.places):
        return edges, places
    # Edges of nodes with mistakes of their own are fine in the document; here they would dangle.
    kept = [number for number, edge in enumerate(edges) if {edge.source, edge.target} <= drafts.nodes.keys()]
    return (
        [replace(edges[number], index=index) for index, number in enumerate(kept)],
        [places[number] for number in kept],
    )


def _variables(
    workflow: Mapping[str, Any], mode: Mode | None, findings: Findings
) -> tuple[tuple[Variable, ...], tuple[Variable, ...]]:
    """(environment, conversation) variables; a workflow has no conversation at run time, whatever the document says."""
    environment = read_variables(
        workflow.get("environment_variables"), "env", "workflow.environment_variables", findings
    )
    conversation = read_variables(
        workflow.get("conversation_variables"), "conversation", "workflow.conversation_variables", findings
    )
    return environment, conversation if mode == "advanced-chat" else ()


def _name(document: Mapping[str, Any]) -> str:
    app = document.get("app")
    return str((app.get("name") if isinstance(app, dict) else None) or "workflow")


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
    """All roots, in document order."""
    roots = [node.id for node in drafts.nodes.values() if node.type in ROOT_TYPES]
    if not roots and drafts.places and len(drafts.nodes) == len(drafts.places):
        findings.error(
            "workflow.graph.nodes", "no start node", f"Add a node of one of the types {', '.join(sorted(ROOT_TYPES))}"
        )
    start = next((root for root in roots if drafts.nodes[root].type == "start"), None)
    if start is not None and len(roots) > 1:
        others = ", ".join(f'"{root}"' for root in roots if root != start)
        findings.warn(
            "workflow.graph.nodes",
            f'a start node beside other roots; runs begin at "{start}", at {others} when triggered or told to',
            "Dify saves no workflow with a start node and triggers",
        )
    return roots
