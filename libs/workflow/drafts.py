"""The nodes of a document one by one: id, type, config, error handling. What is between nodes is not looked at here.

A `Draft` becomes a node of the definition once the graph around it is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import JsonValue

from libs.workflow.configs.fields import Config
from libs.workflow.configs.flow import MarkerConfig
from libs.workflow.graph import Edge
from libs.workflow.node_configs import NODE_TYPES, NodeKind, NodeType, read_config
from libs.workflow.problems import Findings, kind_of
from libs.workflow.variables import read_defaults

_NOTE: Final = "custom-note"
_NOTE_KEYS: Final = frozenset({"showAuthor", "theme", "author"})
_PLACEHOLDERS: Final = frozenset({"datasource-empty", "start-placeholder"})


@dataclass(frozen=True, slots=True)
class Retry:
    max_retries: int
    interval_ms: int


@dataclass(slots=True)
class Draft:
    """A node while its graph is not known."""

    at: str
    """Path of the node in the document."""
    id: str
    type: str
    title: str
    version: str
    kind: NodeKind
    config: Config
    data: Mapping[str, Any]
    parent: str
    """Id of the container that the canvas draws around it, or empty."""
    retry: Retry | None = None
    strategy: Literal["fail-branch", "default-value"] | None = None
    defaults: Mapping[str, JsonValue] | None = None


@dataclass(slots=True)
class Drafts:
    nodes: dict[str, Draft]
    """In document order."""
    places: dict[str, int]
    """Every id that the document gives to a node, also to one with mistakes; notes are missing."""
    notes: frozenset[str]


def read_nodes(raw: object, at: str, findings: Findings) -> Drafts:
    """All nodes of the list. A node with mistakes is left out and its mistakes are reported."""
    nodes: dict[str, Draft] = {}
    places: dict[str, int] = {}
    notes: set[str] = set()
    if raw is not None and not isinstance(raw, list):
        findings.error(at, f"expected a list of nodes, got {kind_of(raw)}")
        return Drafts(nodes, places, frozenset())
    for number, entry in enumerate(raw or ()):
        place = f"{at}[{number}]"
        node_id = _id(entry, place, findings)
        if node_id is None:
            continue
        if _is_note(entry):
            notes.add(node_id)
            continue
        if node_id in places:
            findings.error(f"{place}.id", f'a second node "{node_id[:100]}"', "Give every node an id of its own")
            continue
        places[node_id] = number
        draft = _draft(entry, node_id, place, findings)
        if draft is not None:
            nodes[node_id] = draft
    if notes:
        findings.warn(at, f"{len(notes)} canvas note{'s' if len(notes) > 1 else ''} left out")
    return Drafts(nodes, places, frozenset(notes - places.keys()))


def _id(entry: object, at: str, findings: Findings) -> str | None:
    if not isinstance(entry, dict):
        findings.error(at, f"expected a mapping with id and data, got {kind_of(entry)}")
        return None
    node_id = entry.get("id")
    if isinstance(node_id, int) and not isinstance(node_id, bool):
        return str(node_id)
    if isinstance(node_id, str) and node_id:
        return node_id
    if _is_note(entry):
        return ""
    findings.error(f"{at}.id", f"expected text, got {kind_of(node_id)}", "Give every node an id of its own")
    return None


def _is_note(entry: Mapping[str, Any]) -> bool:
    data = entry.get("data")
    if entry.get("type") == _NOTE:
        return True
    if not isinstance(data, dict):
        return False
    node_type = data.get("type")
    return isinstance(node_type, str) and (
        node_type in _PLACEHOLDERS or (node_type == "" and not _NOTE_KEYS.isdisjoint(data))
    )


def _draft(entry: Mapping[str, Any], node_id: str, at: str, findings: Findings) -> Draft | None:
    data = entry.get("data")
    if not isinstance(data, dict):
        findings.error(
            f"{at}.data", f"expected a mapping, got {kind_of(data)}", "A node's configuration stands in data"
        )
        return None
    node_type = data.get("type")
    known = NODE_TYPES.get(node_type) if isinstance(node_type, str) else None
    if known is None:
        _unknown_type(node_type, at, findings)
        return None
    assert isinstance(node_type, str)
    version = _version(data, known, at, findings)
    config = read_config(known, version, data, f"{at}.data", findings)
    parent = entry.get("parentId") or data.get("iteration_id") or data.get("loop_id")
    title = data.get("title")
    draft = Draft(
        at=at,
        id=node_id,
        type=node_type,
        title="" if title is None else str(title),
        version=version,
        kind=known.kind,
        config=config if config is not None else MarkerConfig(),
        data=data,
        parent=str(parent) if isinstance(parent, str | int) else "",
    )
    _error_handling(draft, known, findings)
    return draft if config is not None else None


def _unknown_type(node_type: object, at: str, findings: Findings) -> None:
    if isinstance(node_type, str) and node_type:
        hint = findings.suggest(node_type, NODE_TYPES, f"Known types: {', '.join(NODE_TYPES)}")
        findings.error(f"{at}.data.type", f'unknown node type "{node_type[:100]}"', hint)
    else:
        findings.error(f"{at}.data.type", f"expected a node type, got {kind_of(node_type)}", "Set the node's type")


def _version(data: Mapping[str, Any], known: NodeType, at: str, findings: Findings) -> str:
    """The version as text; for a type with several, one that exists: an unknown one means the latest."""
    given = data.get("version")
    version = str(given) if isinstance(given, str | int | float) and given != "" else "1"
    if not known.older or (version in known.older and "items" not in data):
        return version
    if version in known.older:
        findings.warn(f"{at}.data.version", 'read as version "2", because it has items', 'Set version to "2"')
    return "2"


# --- error handling of a node ----------------------------------------------------------------------------------------


def _error_handling(draft: Draft, known: NodeType, findings: Findings) -> None:
    data, at = draft.data, f"{draft.at}.data"
    if "retry_config" in data:
        draft.retry = _retry(data["retry_config"], known, f"{at}.retry_config", findings)
    strategy = data.get("error_strategy")
    if strategy in (None, "", "none"):
        return
    if strategy not in ("fail-branch", "default-value"):
        shown = f'"{strategy[:40]}"' if isinstance(strategy, str) else kind_of(strategy)
        hint = findings.suggest(strategy, ("fail-branch", "default-value")) if isinstance(strategy, str) else ""
        findings.error(f"{at}.error_strategy", f"expected fail-branch or default-value, got {shown}", hint)
        return
    draft.strategy = strategy
    if strategy == "default-value":
        draft.defaults = read_defaults(data.get("default_value"), f"{at}.default_value", findings)
        if draft.kind is NodeKind.BRANCH:
            findings.warn(
                f"{at}.error_strategy",
                "a default value cannot choose a branch; a failure of this node fails the run",
                "Use fail-branch",
            )
    else:
        draft.kind = NodeKind.BRANCH if draft.kind is NodeKind.EXECUTABLE else draft.kind


def _retry(raw: object, known: NodeType, at: str, findings: Findings) -> Retry | None:
    if raw is None or raw == "" or raw == {}:
        return None
    if not isinstance(raw, dict):
        findings.error(at, f"expected a mapping, got {kind_of(raw)}")
        return None
    enabled = raw.get("retry_enabled")
    if isinstance(enabled, str):  # quoted in YAML
        enabled = {"true": True, "false": False, "": None}.get(enabled.lower(), enabled)
    if enabled is None or enabled is False or not known.honours_retry:
        return None
    if enabled is not True:
        findings.error(f"{at}.retry_enabled", f"expected true or false, got {kind_of(enabled)}")
    numbers = {}
    for name in ("max_retries", "retry_interval"):
        given = raw.get(name)
        number = _whole(0 if given is None or given == "" else given)
        if number is None or number < 0:
            findings.error(f"{at}.{name}", "expected a whole number of at least 0", "Correct the retry settings")
            number = 0
        numbers[name] = number
    return Retry(numbers["max_retries"], numbers["retry_interval"]) if numbers["max_retries"] > 0 else None


def _whole(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(float(value)) if not isinstance(value, int) else value
    except (ValueError, OverflowError):
        return None


# --- where bodies of containers begin --------------------------------------------------------------------------------


def begin_bodies(drafts: Drafts, edges: list[Edge], findings: Findings) -> dict[str, str]:
    """Container -> marker with which its body begins.

    Older documents begin a body with an ordinary node, or only draw nodes inside the container. These get a marker of
    ours and edges from it, so that a round begins the same way everywhere.
    """
    children: dict[str, list[str]] = {}
    for node in drafts.nodes.values():
        if node.parent:
            children.setdefault(node.parent, []).append(node.id)
    starts: dict[str, str] = {}
    for container in [node for node in drafts.nodes.values() if node.type in ("iteration", "loop")]:
        begins = _begins(container, children.get(container.id, []), drafts, edges, findings)
        if len(begins) == 1 and drafts.nodes[begins[0]].kind is NodeKind.MARKER:
            starts[container.id] = begins[0]
            if getattr(container.config, "start_node_id", "") != begins[0]:
                container.config = container.config.model_copy(update={"start_node_id": begins[0]})
        elif begins:
            starts[container.id] = _add_marker(container, begins, drafts, edges)
    return starts


def _begins(
    container: Draft, children: Sequence[str], drafts: Drafts, edges: Sequence[Edge], findings: Findings
) -> list[str]:
    at = f"{container.at}.data.start_node_id"
    start = str(getattr(container.config, "start_node_id", ""))
    if start in drafts.nodes:
        if drafts.nodes[start].kind is not NodeKind.MARKER:
            findings.warn(at, f'the body begins with the ordinary node "{start}", without a start marker')
        return [start]
    if start:
        if start not in drafts.places:  # a node with mistakes is known; its own mistakes are reported
            hint = findings.suggest(start, children or drafts.places, "Name the start marker of its body")
            findings.error(at, f'unknown node "{start[:100]}"', hint)
        return []
    markers = [child for child in children if drafts.nodes[child].kind is NodeKind.MARKER]
    flagged = [child for child in children if drafts.nodes[child].data.get("isIterationStart") is True]
    entered = {edge.target for edge in edges}
    begins = markers[:1] or flagged or [child for child in children if child not in entered]
    if begins:
        findings.warn(at, "is missing; the body begins with " + ", ".join(f'"{child}"' for child in begins))
    else:
        findings.error(
            at, f'the {container.type} "{container.id}" has no start node', "Name the first node of its body"
        )
    return begins


def _add_marker(container: Draft, begins: Sequence[str], drafts: Drafts, edges: list[Edge]) -> str:
    marker = f"{container.id}start"
    while marker in drafts.places:
        marker += "_"
    data = {"type": f"{container.type}-start", "title": ""}
    drafts.places[marker] = -1
    drafts.nodes[marker] = Draft(
        at=container.at,
        id=marker,
        type=data["type"],
        title="",
        version="1",
        kind=NodeKind.MARKER,
        config=MarkerConfig(),
        data=data,
        parent=container.id,
    )
    for begin in begins:
        edges.append(Edge(len(edges), marker, "source", begin))
    container.config = container.config.model_copy(update={"start_node_id": marker})
    return marker
