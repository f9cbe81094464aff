"""What a node refers to: selectors, placeholders and handles that lead nowhere. Only warnings come from here.

A missing variable has a defined meaning at run time, so a document with one still runs; but hardly ever as meant.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from libs.workflow.configs.flow import HumanInputConfig, IfElseConfig
from libs.workflow.configs.models import QuestionClassifierConfig
from libs.workflow.drafts import Draft, Drafts
from libs.workflow.graph import Edge
from libs.workflow.node_configs import NodeKind
from libs.workflow.problems import Findings
from libs.workflow.templates import placeholders

_SCOPES: Final = frozenset({"sys", "env", "conversation", "rag"})

# Canvas copies of other people's schemas, and texts that are programs, not templates of ours.
_SKIPPED: Final = frozenset({"paramSchemas", "output_schema", "structured_output", "code", "template", "params"})
_LISTS: Final = frozenset({"query", "variable", "value", "file"})

_Trail = tuple[Any, str | int] | None


def selectors(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Callable[[], str]]]:
    """Every (selector, its path in `data`) of a node's configuration, also from templates. Without recursion."""
    work: list[tuple[Any, _Trail, str]] = [(data, None, "")]
    while work:
        value, trail, key = work.pop()
        if type(value) is str:
            if "{{#" in value:
                for selector in placeholders(value):
                    yield selector, lambda trail=trail: _path(trail)  # type: ignore[misc]  # bound at once
        elif type(value) is dict:
            constant = value.get("type") == "constant"  # its `value` is what it says, such as options of a select
            work.extend(
                (inner, (trail, name), "" if constant and name == "value" else name)
                for name, inner in value.items()
                if type(inner) in _NESTED and name not in _SKIPPED
            )
        elif type(value) is list:
            if _is_selector(value, key):
                yield tuple(map(str, value)), lambda trail=trail: _path(trail)  # type: ignore[misc]  # bound at once
            else:
                work.extend((inner, (trail, number), key) for number, inner in enumerate(value))


_NESTED: Final = (str, dict, list)


def _is_selector(value: list[Any], key: str) -> bool:
    named = key.endswith("selector") or key in _LISTS or key == "variables"
    return named and len(value) > 1 and all(type(part) is str or type(part) is int for part in value)


def _path(trail: _Trail) -> str:
    parts: list[str] = []
    while trail is not None:
        trail, part = trail
        parts.append(f".{part}" if isinstance(part, str) else f"[{part}]")
    return "".join(reversed(parts))


def check_references(drafts: Drafts, scopes: Mapping[str, frozenset[str]], findings: Findings) -> None:
    """Warn about selectors whose node, environment variable or conversation variable does not exist.

    `scopes`: names known in `env` and `conversation`.
    """
    for node in drafts.nodes.values():
        for selector, place in selectors(node.data):
            first = selector[0]
            if first in drafts.places:  # a node with mistakes exists; its own mistakes are reported
                continue
            if first not in _SCOPES:
                if node.type in ("tool", "agent") and not _is_likely(first):
                    continue
                hint = findings.suggest(first, drafts.places, "It reads as missing when the node runs")
                findings.warn(f"{node.at}.data{place()}", f'refers to node "{first[:100]}", which does not exist', hint)
            elif first in scopes and len(selector) > 1 and selector[1] not in scopes[first]:
                hint = findings.suggest(selector[1], scopes[first], "It reads as missing when the node runs")
                findings.warn(
                    f"{node.at}.data{place()}", f'refers to "{first}.{selector[1][:100]}", which is not declared', hint
                )


def _is_likely(first: str) -> bool:
    """Tools and agents carry lists of texts that only look like selectors; ids of editors are numbers."""
    return "#" in first or first.isdigit()


def check_handles(
    node: Draft, outgoing: Sequence[Edge], places: Sequence[int], findings: Findings, *, complete: bool
) -> None:
    """Warn about edges whose handle a branch node never selects, and about cases without an edge.

    Not `complete`: edges to nodes with mistakes are missing, and what seems to have none may have one.
    """
    if node.kind is not NodeKind.BRANCH and node.strategy != "fail-branch":
        return
    known = handles(node)
    if not known:
        return
    used = set()
    for edge in outgoing:
        used.add(edge.handle)
        if edge.handle not in known:
            at = f"workflow.graph.edges[{places[edge.index]}].sourceHandle" if edge.index < len(places) else node.at
            hint = findings.suggest(edge.handle, known, f"Handles of this node: {', '.join(sorted(known))}")
            findings.warn(at, f'node "{node.id}" has no handle "{edge.handle[:100]}"; nothing ever passes here', hint)
    for handle, place in _cases(node):
        if complete and handle not in used:
            findings.warn(f"{node.at}.data{place}", f'the branch "{handle}" leads nowhere; the run ends there')


def handles(node: Draft) -> frozenset[str]:
    """The handles that a branch node can select; empty when they are not known."""
    known: set[str] = {handle for handle, _ in _cases(node)}
    match node.config:
        case IfElseConfig(cases=None):
            known |= {"true", "false"}
        case IfElseConfig():
            known.add("false")
        case HumanInputConfig():
            known |= {"__timeout"}
        case QuestionClassifierConfig():
            pass
        case _:
            known.add("source")
    return frozenset(known | ({"fail-branch"} if node.strategy == "fail-branch" else set()))


def _cases(node: Draft) -> list[tuple[str, str]]:
    """(handle, path in `data`) of the branches that the document lists."""
    match node.config:
        case IfElseConfig(cases=cases) if cases is not None:
            return [(case.case_id, f".cases[{number}]") for number, case in enumerate(cases)]
        case QuestionClassifierConfig(classes=classes):
            return [(each.id, f".classes[{number}]") for number, each in enumerate(classes)]
        case HumanInputConfig(user_actions=actions):
            return [(action.id, f".user_actions[{number}]") for number, action in enumerate(actions)]
        case _:
            return []
