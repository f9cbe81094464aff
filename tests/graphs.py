"""Random small workflow documents for property tests: branches, joins, failures, retries, strategies, containers."""

from typing import Any

from hypothesis import strategies as st

from tests.documents import code, document, edges, end, if_else, node, start

RETRY = {"retry_enabled": True, "max_retries": 1, "retry_interval": 100}


@st.composite
def graphs(draw: st.DrawFn, *, containers: bool = True) -> str:
    """A document whose nodes `n1`, `n2`, ... form a DAG below `start`; the `end` reads some of them."""
    count = draw(st.integers(1, 7))
    nodes: list[dict[str, Any]] = [start("q")]
    arrows: list[str] = []
    handles: dict[str, list[str]] = {"start": ["source"]}
    above: dict[str, set[str]] = {"start": set()}
    for number in range(1, count + 1):
        name = f"n{number}"
        kinds = ["code", "code", "retry", "fail-branch", "default-value", "if"]
        kind = draw(st.sampled_from([*kinds, "iteration", "loop"] if containers else kinds))
        nodes += _node(draw, name, kind)
        if kind in ("iteration", "loop"):
            arrows += _body_arrows(nodes, name)
        sources = draw(st.lists(st.sampled_from(sorted(handles)), min_size=1, max_size=3, unique=True))
        for source in sources:
            handle = draw(st.sampled_from(handles[source]))
            arrows.append(f"{source}[{handle}] > {name}")
        above[name] = set(sources).union(*(above[source] for source in sources))
        handles[name] = {"fail-branch": ["source", "fail-branch"], "if": ["true", "false"]}.get(kind, ["source"])
    read: set[str] = set()
    for name in handles:
        if name != "start" and draw(st.booleans()):
            arrows.append(f"{name}[{draw(st.sampled_from(handles[name]))}] > end")
            read |= {name} | above[name]
    # Only what comes before the end: anything else is a race that the document's author would have made.
    outputs = {f"out_{name}": f"{name}.result" for name in sorted(read - {"start"})}
    nodes.append(end("end", **outputs))
    return document(nodes, edges(*arrows))


def _node(draw: st.DrawFn, name: str, kind: str) -> list[dict[str, Any]]:
    if kind == "if":
        return [if_else(name, "start.q", "is", draw(st.sampled_from(["yes", "no"])))]
    if kind == "iteration":
        return _iteration(draw, name)
    if kind == "loop":
        return _loop(draw, name)
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


def _iteration(draw: st.DrawFn, name: str) -> list[dict[str, Any]]:
    inner = [code(f"{name}_{letter}", iteration_id=name) for letter in draw(st.sampled_from(["a", "ab"]))]
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


def _loop(draw: st.DrawFn, name: str) -> list[dict[str, Any]]:
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
        code(f"{name}_a", loop_id=name),
    ]


def _body_arrows(nodes: list[dict[str, Any]], name: str) -> list[str]:
    inner = [each["id"] for each in nodes if each["id"] in (f"{name}_a", f"{name}_b")]
    return [f"{name}start > {each}" for each in inner]
