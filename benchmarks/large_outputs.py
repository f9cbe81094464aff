"""How long does a large output take through the front door: made, answered, streamed, read again?

An iteration whose rounds answer 400,000 characters each, all of them together the run's output. The output is in the
histories of three nodes and the run, so a stream carries it several times.

    python -m benchmarks.large_outputs [--kafka BOOTSTRAP --database URL] [--megabytes 50]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.first_event import TOKEN, embedded, on_kafka
from benchmarks.machine import machine

CHARS = 400_000


def document(rounds: int) -> str:
    inside = {"isInIteration": True, "iteration_id": "each"}
    nodes = [
        _node("start", type="start", variables=[]),
        _code("list", f"list(range({rounds}))", "items", "array[number]"),
        _node(
            "each",
            type="iteration",
            iterator_selector=["list", "items"],
            output_selector=["text", "result"],
            output_type="array[string]",
            start_node_id="begin",
        ),
        {**_node("begin", type="iteration-start", **inside), "parentId": "each"},
        {**_code("text", f"'x' * {CHARS}", "result", "string", **inside), "parentId": "each"},
        _node("end", type="end", outputs=[{"variable": "big", "value_selector": ["each", "output"]}]),
    ]
    arrows = [("start", "list"), ("list", "each"), ("each", "end"), ("begin", "text")]
    edges = [{"id": f"{a}-{b}", "source": a, "target": b, "sourceHandle": "source"} for a, b in arrows]
    app = {"name": "Large", "mode": "workflow"}
    graph = {"nodes": nodes, "edges": edges}
    return json.dumps({"kind": "app", "version": "0.6.0", "app": app, "workflow": {"graph": graph}})


def _node(node_id: str, **data: Any) -> dict[str, Any]:
    return {"id": node_id, "type": "custom", "data": {"title": node_id, **data}}


def _code(node_id: str, expression: str, name: str, kind: str, **data: Any) -> dict[str, Any]:
    text = f"def main():\n    return {{'{name}': {expression}}}\n"
    outputs = {name: {"type": kind, "children": None}}
    return _node(node_id, type="code", code_language="python3", code=text, variables=[], outputs=outputs, **data)


def measure(url: str, megabytes: int) -> Iterator[dict[str, object]]:
    rounds = -(-megabytes * 1_000_000 // CHARS)
    client = httpx.Client(base_url=url, timeout=600, trust_env=False)
    admin = {"Authorization": f"Bearer {TOKEN}"}
    made = client.post("/v1/apps/import?key=true", content=document(rounds), headers=admin).raise_for_status().json()
    headers = {"Authorization": f"Bearer {made['api_key']}"}
    body = {"inputs": {}, "user": "benchmark"}
    begin = time.perf_counter()
    answer = client.post("/v1/workflows/run", json=body | {"response_mode": "blocking"}, headers=headers)
    yield _line("a run, blocking", begin, len(answer.content))
    outputs = answer.json()["data"]["outputs"]
    assert outputs == {"big": ["x" * CHARS] * rounds}, answer.text[:300]
    begin = time.perf_counter()
    detail = client.get(f"/v1/workflows/run/{answer.json()['workflow_run_id']}", headers=headers)
    yield _line("its detail", begin, len(detail.content))
    assert detail.json()["outputs"] == outputs
    begin = time.perf_counter()
    last: dict[str, Any] = {}
    size = 0
    with client.stream("POST", "/v1/workflows/run", json=body | {"response_mode": "streaming"}, headers=headers) as s:
        for text in s.iter_lines():
            size += len(text)
            last = json.loads(text[6:])["data"] if '"workflow_finished"' in text[:200] else last
    yield _line("a run, streaming", begin, size)
    assert last["outputs"] == outputs


def _line(name: str, begin: float, size: int) -> dict[str, object]:
    return {"name": name, "seconds": round(time.perf_counter() - begin, 2), "megabytes": round(size / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka")
    parser.add_argument("--database")
    parser.add_argument("--megabytes", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = on_kafka(options.kafka, options.database, folder) if options.kafka else embedded(folder)
        with server as url:
            for answer in measure(url, options.megabytes):
                where = "kafka" if options.kafka else "embedded"
                print(json.dumps({**answer, "on": where, **machine()}))  # noqa: T201  # one JSON line per question


if __name__ == "__main__":
    main()
