"""What is wrong or odd between nodes, and what real documents leave behind: bodies, cycles, older forms, versions.

Errors only where a run could not be right; all else runs, perhaps not as meant, and is a warning.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from libs.workflow.configs.flow import LoopConfig
from libs.workflow.configs.models import LlmConfig
from libs.workflow.drafts import Draft, Drafts
from libs.workflow.graph import Edge, Layout, by_node, on_cycles, stuck
from libs.workflow.node_configs import WITHOUT_HANDLER
from libs.workflow.problems import Findings, kind_of
from libs.workflow.references import check_handles
from libs.workflow.schedules import ScheduleInvalid, schedule_of

# The newest version of the document format that this reader was written for.
_NEWEST: Final = (0, 7, 0)
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_]{1,50}")


def check_bodies(
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


def check_graph(
    drafts: Drafts,
    edges: list[Edge],
    places: list[int],
    starts: Mapping[str, str],
    roots: list[str],
    layout: Layout,
    findings: Findings,
) -> None:
    """Warn about what is legal and hardly ever meant: what no run reaches, what waits for ever, what leaves a body.

    `places`: index of each edge of the document in its list; edges of our own have none.
    """
    incoming, outgoing = by_node(drafts.nodes, edges)
    for edge in edges:
        source, target = layout.container.get(edge.source), layout.container.get(edge.target)
        if source != target and edge.source in layout.reached and edge.index < len(places):
            findings.warn(
                f"workflow.graph.edges[{places[edge.index]}]",
                f'leads from {_where(source)} into {_where(target)} ("{edge.source}" to "{edge.target}")',
                "A body begins at its start node and ends by itself",
            )
    complete = len(drafts.nodes) == len(drafts.places)  # else a node with mistakes may be the missing link
    if complete:
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
        check_handles(node, outgoing[node.id], places, findings, complete=complete)
        if complete:
            _check_membership(node, layout, findings)


def _where(container: str | None) -> str:
    return "the main graph" if container is None else f'the body of "{container}"'


def _check_membership(node: Draft, layout: Layout, findings: Findings) -> None:
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


def check_oddities(
    document: Mapping[str, Any], workflow: Mapping[str, Any], drafts: Drafts, mode: str | None, findings: Findings
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
    elif isinstance(node.config, LlmConfig):
        if node.config.structured_output_switch_on and node.config.output_schema is None:
            at = f"{node.at}.data.structured_output"
            findings.warn(at, "is switched on and has no schema; the node answers in text only", "Give it a schema")
    elif isinstance(node.config, LoopConfig):
        for number, variable in enumerate(node.config.loop_variables):
            if variable.is_json_text and isinstance(variable.value, list) and variable.value:
                findings.warn(
                    f"{node.at}.data.loop_variables[{number}].value",
                    "a list as a constant is read as an empty one, as the reference does",
                    "Write it as JSON text",
                )
    elif node.type == "trigger-schedule":
        _check_schedule(node, findings)
    elif node.type == "iteration":
        for name in ("iterator_selector", "output_selector"):
            if not getattr(node.config, name):
                findings.warn(f"{node.at}.data.{name}", "is empty", "Choose a variable")


def _check_schedule(node: Draft, findings: Findings) -> None:
    """A warning: the workflow runs when somebody starts it. No clock does."""
    try:
        kept = schedule_of(node.data)
        if kept.next_us(0) is None:
            raise ScheduleInvalid("cron_expression: no day of any year matches it")
    except ScheduleInvalid as error:
        field, _, problem = str(error).partition(": ")
        findings.warn(f"{node.at}.data.{field}", problem, "Until it is corrected no clock starts this workflow")
