"""How fast is the engine alone? Nodes and runs a second through the run machine: decide, fold, derive; no log, no loop.

Every node has an outcome at once, so what is measured is the machine and nothing else. One JSON line per question.
"""

import json
import time
from collections.abc import Iterator
from itertools import pairwise

from benchmarks.machine import machine
from libs.events.commands import Caller
from libs.events.model import RunAccepted
from libs.workflow.definition import Definition, compile_document
from libs.workflow.machine import Begin, CompleteAttempt, StartAttempt, apply, decide, derived, due, new_state
from libs.workflow.outcome import Succeeded
from libs.workflow.state import RunState

RUN_ID = "01900000-0000-7000-8000-000000000001"


def document(nodes: int, shape: str) -> str:
    """`chain`: one after the other; `fan-out`: all side by side between start and end."""
    names = [f"n{number}" for number in range(nodes)]
    body = [{"id": name, "data": {"type": "template-transform", "template": "x", "variables": []}} for name in names]
    ends = {"type": "end", "outputs": [{"variable": "out", "value_selector": [names[-1], "output"]}]}
    rows = [{"id": "start", "data": {"type": "start", "variables": []}}, *body, {"id": "end", "data": ends}]
    path = ["start", *names, "end"]
    if shape == "chain":
        pairs = list(pairwise(path))
    else:
        pairs = [("start", name) for name in names] + [(name, "end") for name in names]
    edges = [
        {"id": f"{a}-{b}", "source": a, "sourceHandle": "source", "target": b, "targetHandle": "target"}
        for a, b in pairs
    ]
    graph = {"nodes": [{"type": "custom", **row} for row in rows], "edges": edges}
    app = {"name": "benchmark", "mode": "workflow"}
    return json.dumps({"kind": "app", "version": "0.6.0", "app": app, "workflow": {"graph": graph, "features": {}}})


def run_once(definition: Definition) -> RunState:
    state = new_state(definition, RUN_ID)
    accepted = RunAccepted(
        command_offset=0,
        task_id="t",
        app_id="a",
        workflow_id="w",
        version="1",
        digest=definition.digest,
        caller=Caller(id="c", user="u"),
    )
    apply(state, accepted, 1, 1)
    apply(state, decide(state, Begin(1_000_000)), 1, 1)  # type: ignore[arg-type]  # it applies
    done = Succeeded(outputs={"output": "x"})
    while not state.ended:
        event = derived(state)
        if event is not None:
            apply(state, event, 1, 1)
            continue
        for item in list(due(state, 1, 1)):
            apply(state, decide(state, StartAttempt(item.key, 1, 1)), 1, 1)  # type: ignore[arg-type]  # it applies
            apply(state, decide(state, CompleteAttempt(item.key, 1, 1, done, 1)), 1, 1)  # type: ignore[arg-type]
    return state


def measure(nodes: int, shape: str, seconds: float = 2.0) -> dict[str, object]:
    definition = compile_document(document(nodes, shape))
    assert run_once(definition).status == "succeeded"
    runs, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        run_once(definition)
        runs += 1
    count = nodes + 2
    return {
        "name": "engine",
        "shape": shape,
        "nodes": count,
        "nodes_per_s": round(runs * count / spent),
        "runs_per_s": round(runs / spent, 1),
        "us_per_node": round(spent / runs / count * 1e6, 1),
    }


def questions() -> Iterator[dict[str, object]]:
    yield measure(10, "chain")
    yield measure(1000, "chain")
    yield measure(500, "fan-out")


if __name__ == "__main__":
    for answer in questions():
        print(json.dumps({**answer, **machine()}))  # noqa: T201  # one JSON line per question
