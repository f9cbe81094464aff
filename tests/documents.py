"""Small workflow documents for tests, written the way the editor exports them."""

import json
from itertools import pairwise
from typing import Any


def node(node_id: str, kind: str, **data: Any) -> dict[str, Any]:
    return {"id": node_id, "type": "custom", "data": {"type": kind, "title": node_id.title(), **data}}


def start(*variables: str, node_id: str = "start") -> dict[str, Any]:
    inputs = [
        {"variable": name, "label": name, "type": "paragraph", "required": False, "options": []} for name in variables
    ]
    return node(node_id, "start", variables=inputs)


def end(node_id: str = "end", **outputs: str) -> dict[str, Any]:
    """`end(answer="llm.text")`: output name -> dotted selector."""
    values = [{"variable": name, "value_selector": selector.split(".")} for name, selector in outputs.items()]
    return node(node_id, "end", outputs=values)


def code(node_id: str, **data: Any) -> dict[str, Any]:
    """A code node; its handler is replaced in most tests, so the code hardly matters."""
    return node(
        node_id,
        "code",
        **{
            "code_language": "python3",
            "code": "def main():\n    return {'result': 'x'}\n",
            "variables": [],
            "outputs": {"result": {"type": "string", "children": None}},
            **data,
        },
    )


def human_input(node_id: str, *actions: str, field: str = "note", **data: Any) -> dict[str, Any]:
    """Asks for one text and one of the actions (default: ok, no)."""
    return node(
        node_id,
        "human-input",
        **{
            "form_content": f"Well?\n{{{{#$output.{field}#}}}}",
            "inputs": [{"type": "paragraph", "output_variable_name": field, "default": None}],
            "user_actions": [
                {"id": action, "title": action.title(), "button_style": "default"} for action in actions or ("ok", "no")
            ],
            "timeout": 36,
            "timeout_unit": "hour",
            **data,
        },
    )


def template(node_id: str, text: str, **variables: str) -> dict[str, Any]:
    values = [{"variable": name, "value_selector": selector.split(".")} for name, selector in variables.items()]
    return node(node_id, "template-transform", template=text, variables=values)


def if_else(node_id: str, selector: str, operator: str, value: str) -> dict[str, Any]:
    condition = {
        "id": "c",
        "variable_selector": selector.split("."),
        "comparison_operator": operator,
        "value": value,
        "varType": "string",
    }
    case = {"id": "true", "case_id": "true", "logical_operator": "and", "conditions": [condition]}
    return node(node_id, "if-else", cases=[case])


def edges(*arrows: str) -> list[dict[str, Any]]:
    """`"a > b"` or `"a[handle] > b"`; chains such as `"a > b > c"` too."""
    found = []
    for arrow in arrows:
        names = [part.strip() for part in arrow.split(">")]
        for left, right in pairwise(names):
            source, _, handle = left.partition("[")
            target = right.partition("[")[0]
            handle = handle.rstrip("]") or "source"
            found.append(
                {
                    "id": f"{source}-{handle}-{target}-target",
                    "source": source,
                    "sourceHandle": handle,
                    "target": target,
                    "targetHandle": "target",
                    "type": "custom",
                }
            )
    return found


def document(
    nodes: list[dict[str, Any]], arrows: list[dict[str, Any]], *, mode: str = "workflow", **workflow: Any
) -> str:
    return json.dumps(
        {
            "app": {"name": "test", "mode": mode, "icon": "T"},
            "kind": "app",
            "version": "0.6.0",
            "workflow": {
                "environment_variables": [],
                "conversation_variables": [],
                "features": {},
                "graph": {"nodes": nodes, "edges": arrows},
                **workflow,
            },
        }
    )


def chain(length: int, kind: str = "code") -> str:
    """start > n1 > n2 > ... > end: `length` nodes of one kind between them."""
    names = [f"n{i}" for i in range(1, length + 1)]
    make = code if kind == "code" else (lambda name: template(name, "x"))
    output = "result" if kind == "code" else "output"
    nodes = [start("q"), *(make(name) for name in names), end(out=f"{names[-1]}.{output}")]
    return document(nodes, edges(" > ".join(["start", *names, "end"])))


def fan_out(width: int) -> str:
    """start > n1..n<width> (parallel) > end."""
    names = [f"n{i}" for i in range(1, width + 1)]
    nodes = [start("q"), *(code(name) for name in names), end(out=f"{names[0]}.result")]
    return document(nodes, edges(*(f"start > {name} > end" for name in names)))
