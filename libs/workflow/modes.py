"""Runs of a part of a workflow: one node, or one container with its rounds. Which graph they have, which values.

`part_of` is the definition of such a run, derived from the whole one: the run machine executes it like any other.
`graph_of` is that of any run, by its record: of a part, or of the whole from the root where it begins. `prepare` finds
the values that the part reads from nodes that do not run: given with the request, or left by an earlier run. Pure.

Not here: environment variables are never taken over and never overridden. They come from the document that runs, so
that no secret travels through a request or a command.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import JsonValue

from libs.events.model import RunAccepted
from libs.events.slots import is_sealed
from libs.workflow.definition import Definition, Node, NodeKind
from libs.workflow.inputs import InputInvalid, file_value, validate_inputs
from libs.workflow.node_configs import ROOT_TYPES
from libs.workflow.problems import WorkflowError, did_you_mean
from libs.workflow.references import selectors
from libs.workflow.roots import rooted

__all__ = ["PartInvalid", "Prepared", "find_node", "graph_of", "part_of", "prepare", "reads"]

Selector = tuple[str, ...]
Variables = dict[str, JsonValue]
"""Node id -> name -> `[value]` or `[value, declared type]`, as a pool's dump has them."""

_OF_THE_RUN: Final = frozenset(
    {"workflow_run_id", "workflow_execution_id", "workflow_id", "app_id", "user_id", "timestamp"}
)
"""`sys.*` values that say which run it is, and by whom: never an earlier run's."""

_HASHED = re.compile(r"#([^#]+)#")


class PartInvalid(WorkflowError):
    """The part cannot run so. `problems`: one text per mistake."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class PartInputInvalid(PartInvalid):
    """What it was given does not fit, or is not enough."""


@dataclass(frozen=True, slots=True)
class Prepared:
    inputs: Variables
    """Of a node that begins workflows: its own variables."""
    variables: Variables
    unused: tuple[str, ...]
    """Given keys that the part does not read."""


def part_of(definition: Definition, node_id: str) -> Definition:
    """The definition of a run of `node_id` alone; a container comes with its body. Raises KeyError.

    A single node has one attempt: whoever tries a node wants to see its first answer.
    """
    inside = {node_id, *definition.bodies.get(node_id, ())}
    nodes = {each.id: _alone(each, inside) for each in definition.nodes.values() if each.id in inside}
    alone = nodes[node_id]
    nodes[node_id] = replace(
        alone, container=None, incoming=(), outgoing=(), retry=None if len(inside) == 1 else alone.retry
    )
    return replace(
        definition,
        nodes=nodes,
        edges=tuple(edge for edge in definition.edges if edge.source in inside and edge.target in inside),
        root=node_id,
        inactive_roots=(),
        bodies={container: body for container, body in definition.bodies.items() if container in inside},
    )


def graph_of(definition: Definition, accepted: RunAccepted) -> Definition:
    """The definition of the run, from that of its document. Raises KeyError, RootInvalid."""
    if accepted.only is not None:
        return part_of(definition, accepted.only)
    return definition if accepted.root is None else rooted(definition, accepted.root)


def _alone(node: Node, inside: set[str]) -> Node:
    return replace(
        node,
        incoming=tuple(edge for edge in node.incoming if edge.source in inside),
        outgoing=tuple(edge for edge in node.outgoing if edge.target in inside),
    )


def find_node(definition: Definition, text: str) -> str:
    """The id of the node with this id, or with this title if only one has it. Raises PartInvalid."""
    if text in definition.nodes:
        return text
    titled = [node.id for node in definition.nodes.values() if node.title == text]
    if len(titled) == 1:
        return titled[0]
    if titled:
        raise PartInvalid(f'several nodes have the title "{text[:100]}". Give the id: {", ".join(titled)}')
    known = {name: None for node in definition.nodes.values() for name in (node.id, node.title)}
    hint = did_you_mean(text, known) or f"Its nodes: {', '.join(definition.nodes)}"
    raise PartInvalid(f'the workflow has no node "{text[:100]}". {hint}')


# --- what a part reads -----------------------------------------------------------------------------------------------


def reads(definition: Definition, node_id: str) -> dict[str, Selector]:
    """What the part reads from nodes outside it: `#node.name#` -> selector, in document order."""
    inside = {node_id, *definition.bodies.get(node_id, ())}
    found: dict[str, Selector] = {}
    for each in sorted(inside, key=list(definition.nodes).index):
        for selector, _ in _selectors_of(definition.nodes[each]):
            known = selector[0] in definition.nodes or selector[0] in ("sys", "conversation")
            if known and selector[0] not in inside and len(selector) > 1:
                found[f"#{'.'.join(selector)}#"] = selector
    return found


def _selectors_of(node: Node) -> Iterator[tuple[Selector, Callable[[], str]]]:
    yield from selectors(node.data)
    # Text of a request, where other nodes keep schemas of theirs under this name.
    if node.type == "http-request" and isinstance(node.data.get("params"), str):
        yield from selectors({"text": node.data["params"]})


_NAMES: Final = {
    "query_variable_selector": "query",
    "iterator_selector": "input_selector",
    "iteration_input_selector": "input_selector",
}
_SETTING = re.compile(r"\.(\w+)")


def _by_name(node: Node) -> dict[str, Selector]:
    """The selectors that have a name of their own in the node: its variables, and settings that are one selector."""
    found: dict[str, Selector] = {}
    for selector, place in _selectors_of(node):
        setting = _SETTING.fullmatch(place())
        if setting is not None:
            found[_NAMES.get(setting[1], setting[1])] = selector
    for name, label, value in (
        ("variables", "variable", "value_selector"),
        ("outputs", "variable", "value_selector"),
        ("loop_variables", "label", "value"),
    ):
        for each in node.data.get(name) or ():
            if isinstance(each, dict) and isinstance(each.get(value), list) and len(each[value]) > 1:
                found[str(each.get(label))] = tuple(map(str, each[value]))
    return found


# --- its values ------------------------------------------------------------------------------------------------------


def prepare(
    definition: Definition,
    node_id: str,
    given: Mapping[str, JsonValue],
    earlier: Mapping[str, JsonValue] | None = None,
    skipped: Container[str] = (),
) -> Prepared:
    """The values a run of the part begins with. Raises PartInvalid, with all that is missing or wrong.

    `given`: by `#node.name#`, by `node.name`, by the name that the value has in the node (also behind `<node id>.`);
    for a node that begins workflows: its inputs. `earlier`: the dump of an earlier run's pool; what is given wins.
    `skipped`: nodes that the earlier run skipped; the part need not have their values, as that run had none.
    """
    node = definition.nodes[node_id]
    if node.kind is NodeKind.MARKER:
        raise PartInvalid(f'node "{node_id}" only marks where a body begins. Run its container: {node.container}')
    variables = _taken_over(definition, node_id, earlier or {})
    if node.type in ROOT_TYPES:
        return Prepared(_own_inputs(definition, node, given, variables), variables, ())
    wanted = reads(definition, node_id)
    names = _by_name(node)
    unused: list[str] = []
    problems: list[str] = []
    for key, value in given.items():
        # A name may hold dots (`sys.query` of a start node): what the part reads says where they are.
        selector = wanted.get(key) or _selector(definition, node, key, names)
        if selector is None:
            unused.append(key)
        elif value is not None and selector[0] != "env":
            try:
                _put(variables, selector, _with_files(value))
            except ValueError as error:
                problems.append(f"{key} {error}")
    if node.type != "variable-aggregator":  # it passes on the first that exists: none of them has to
        problems += [
            f"Variable key {key} not found in user inputs.{_why_not_lent(earlier or {}, selector)}"
            for key, selector in wanted.items()
            if not _is_there(definition, variables, selector) and selector[0] not in skipped
        ]
    if problems:
        raise PartInputInvalid(*problems)
    return Prepared({}, variables, tuple(unused))


def _taken_over(definition: Definition, node_id: str, earlier: Mapping[str, JsonValue]) -> Variables:
    """The values of an earlier run: without what the part makes itself, what is secret, and which run it was.

    A sealed value is opened for the run it belongs to only; what the part reads of those must be given.
    """
    own = {node_id, *definition.bodies.get(node_id, ())}
    taken: Variables = {}
    for source, names in earlier.items():
        assert isinstance(names, dict)
        made_here = source in own and definition.nodes[node_id].type not in ROOT_TYPES
        if source == "env" or "$sealed" in names or made_here:
            continue
        kept: dict[str, JsonValue] = {
            name: entry
            for name, entry in names.items()
            if isinstance(entry, list)
            and entry
            and not is_sealed(entry[0])
            and entry[1:] != ["secret"]
            and not (source == "sys" and name in _OF_THE_RUN)
        }
        if kept:
            taken[source] = kept
    return taken


def _why_not_lent(earlier: Mapping[str, JsonValue], selector: Selector) -> str:
    names = earlier.get(selector[0])
    held = isinstance(names, dict) and ("$sealed" in names or selector[1] in names)
    return " The earlier run has a value that holds a secret, and lends none of these." if held else ""


def _own_inputs(definition: Definition, node: Node, given: Mapping[str, JsonValue], earlier: Variables) -> Variables:
    left = earlier.pop(node.id, {})
    values = {name: entry[0] for name, entry in left.items() if isinstance(entry, list)}  # type: ignore[union-attr]
    prefix = f"{node.id}."
    for key, value in given.items():
        hashed = _HASHED.fullmatch(key)
        values[(hashed[1] if hashed else key).removeprefix(prefix)] = value
    try:
        return validate_inputs(part_of(definition, node.id), values)
    except InputInvalid as error:
        raise PartInputInvalid(*error.problems) from error


def _selector(definition: Definition, node: Node, key: str, names: Mapping[str, Selector]) -> Selector | None:
    """What `key` addresses; None when the node reads nothing of that name."""
    short = key.removeprefix(f"{node.id}.")
    for each in (short, key):
        if each in names:
            return names[each]
        hashed = _HASHED.fullmatch(each)
        parts = tuple((hashed[1] if hashed else each).split("."))
        if len(parts) > 1 and (parts[0] in definition.nodes or parts[0] in ("sys", "conversation", "env")):
            return parts
    return None


def _put(variables: Variables, selector: Selector, value: JsonValue) -> None:
    """Write a value; below a name (`[llm, structured_output, city]`) it becomes a part of that name's object."""
    names = variables.setdefault(selector[0], {})
    assert isinstance(names, dict)
    if len(selector) == 2:
        names[selector[1]] = [value]
        return
    entry = names.get(selector[1])
    whole: Any = entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], dict) else {}
    whole = here = dict(whole)
    for part in selector[2:-1]:
        below = here.get(part)
        here[part] = dict(below) if isinstance(below, dict) else {}
        here = here[part]
    here[selector[-1]] = value
    names[selector[1]] = [whole]


def _with_files(value: JsonValue) -> JsonValue:
    """What looks like files becomes file values. Raises ValueError."""
    if isinstance(value, dict) and value.get("type") and value.get("transfer_method"):
        return file_value(value)
    if isinstance(value, list) and all(isinstance(each, dict) and "transfer_method" in each for each in value):
        return [_with_files(each) for each in value]
    return value


def _is_there(definition: Definition, variables: Variables, selector: Selector) -> bool:
    scope, name = selector[0], selector[1]
    names = variables.get(scope)
    if isinstance(names, dict) and name in names:
        return True
    if scope == "conversation":
        return any(variable.name == name for variable in definition.conversation)
    return scope == "sys"
