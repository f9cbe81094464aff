"""Random small documents for property tests: branches, joins, failures, retries, strategies, containers, forms."""

from typing import Any

from hypothesis import strategies as st

from tests.documents import code, document, edges, end, human_input, if_else, node, start

RETRY = {"retry_enabled": True, "max_retries": 1, "retry_interval": 100}


_HANDLES = {
    "fail-branch": ["source", "fail-branch"],
    "if": ["true", "false"],
    "person": ["ok", "no", "__timeout"],
}


@st.composite
def graphs(draw: st.DrawFn, *, containers: bool = True, people: bool = False) -> str:
    """A document whose nodes `n1`, `n2`, ... form a DAG below `start`; the `end` reads some of them.

    `people`: with nodes that wait for a person, also in rounds.
    """
    count = draw(st.integers(1, 7))
    nodes: list[dict[str, Any]] = [start("q")]
    arrows: list[str] = []
    handles: dict[str, list[str]] = {"start": ["source"]}
    above: dict[str, set[str]] = {"start": set()}
    for number in range(1, count + 1):
        name = f"n{number}"
        kinds = ["code", "code", "retry", "fail-branch", "default-value", "if"]
        kinds += ["iteration", "loop"] if containers else []
        kinds += ["person", "person"] if people else []
        kind = draw(st.sampled_from(kinds))
        nodes += _node(draw, name, kind, people=people)
        if kind in ("iteration", "loop"):
            arrows += _body_arrows(nodes, name)
        sources = draw(st.lists(st.sampled_from(sorted(handles)), min_size=1, max_size=3, unique=True))
        for source in sources:
            handle = draw(st.sampled_from(handles[source]))
            arrows.append(f"{source}[{handle}] > {name}")
        above[name] = set(sources).union(*(above[source] for source in sources))
        handles[name] = _HANDLES.get(kind, ["source"])
    read: set[str] = set()
    for name in handles:
        if name != "start" and draw(st.booleans()):
            arrows.append(f"{name}[{draw(st.sampled_from(handles[name]))}] > end")
            read |= {name} | above[name]
    # Only what comes before the end: anything else is a race that the document's author would have made.
    outputs = {f"out_{name}": f"{name}.result" for name in sorted(read - {"start"})}
    nodes.append(end("end", **outputs))
    return document(nodes, edges(*arrows))


def _node(draw: st.DrawFn, name: str, kind: str, *, people: bool) -> list[dict[str, Any]]:
    if kind == "person":
        return [human_input(name, field="result")]
    if kind == "if":
        return [if_else(name, "start.q", "is", draw(st.sampled_from(["yes", "no"])))]
    if kind == "iteration":
        return _iteration(draw, name, people=people)
    if kind == "loop":
        return _loop(draw, name, people=people)
    more: dict[str, Any] = {}
    if kind == "retry":
        more["retry_config"] = RETRY
    if kind == "fail-branch":
        more["error_strategy"] = "fail-branch"
    if kind == "default-value":
        more |= {
            "error_strategy": "default-value",
            "default_value": [{"key": "result", "type": "string", "value": "default"}],
        }
    return [code(name, **more)]


def _inner(draw: st.DrawFn, node_id: str, *, people: bool, **data: Any) -> dict[str, Any]:
    if people and draw(st.booleans()):
        return human_input(node_id, field="result", **data)
    return code(node_id, **data)


def _iteration(draw: st.DrawFn, name: str, *, people: bool) -> list[dict[str, Any]]:
    letters = draw(st.sampled_from(["a", "ab"]))
    inner = [_inner(draw, f"{name}_{letter}", people=people, iteration_id=name) for letter in letters]
    return [
        code(f"{name}_list"),
        node(
            name,
            "iteration",
            start_node_id=f"{name}start",
            iterator_selector=["start", "items"],
            output_selector=[f"{name}_a", "result"],
            is_parallel=draw(st.booleans()),
            parallel_nums=draw(st.integers(1, 3)),
            error_handle_mode=draw(st.sampled_from(["terminated", "continue-on-error", "remove-abnormal-output"])),
            flatten_output=True,
        ),
        node(f"{name}start", "iteration-start", iteration_id=name),
        *inner,
    ]


def _loop(draw: st.DrawFn, name: str, *, people: bool) -> list[dict[str, Any]]:
    return [
        node(
            name,
            "loop",
            start_node_id=f"{name}start",
            loop_count=draw(st.integers(1, 3)),
            break_conditions=[],
            logical_operator="and",
            loop_variables=[{"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": 1}],
        ),
        node(f"{name}start", "loop-start", loop_id=name),
        _inner(draw, f"{name}_a", people=people, loop_id=name),
    ]


def _body_arrows(nodes: list[dict[str, Any]], name: str) -> list[str]:
    inner = [each["id"] for each in nodes if each["id"] in (f"{name}_a", f"{name}_b")]
    return [f"{name}start > {each}" for each in inner]
