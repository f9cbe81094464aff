"""What does a round cost? Iterations, sequential and parallel, and loops, through the run machine: no log, no loop.

Every node has an outcome at once, so what is measured is the machine and nothing else. A round is one node and what
brackets it. One JSON line per question; `growth` is the cost of a round among 10,000 over that among 100.
"""

import json
import time
import tracemalloc
from collections.abc import Iterator

from benchmarks.machine import machine
from libs.events.commands import Caller
from libs.events.model import RunAccepted
from libs.workflow.definition import Definition, compile_document
from libs.workflow.machine import Begin, CompleteAttempt, StartAttempt, apply, decide, derived, due, new_state
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.state import Key, RunState

RUN_ID = "01900000-0000-7000-8000-000000000001"
SHAPES = ("sequential", "parallel", "loop")


def document(shape: str, rounds: int) -> str:
    """start > container > end; the body is one node. The loop counts, as loops do."""
    body_of = {"loop_id": "box"} if shape == "loop" else {"iteration_id": "box"}
    if shape == "loop":
        count = {"label": "n", "var_type": "number", "value_type": "constant", "value": 0}
        settings = {"type": "loop", "loop_count": rounds, "break_conditions": [], "loop_variables": [count]}
        output = ["box", "n"]
    else:
        settings = {
            "type": "iteration",
            "iterator_selector": ["start", "items"],
            "output_selector": ["work", "output"],
            "is_parallel": shape == "parallel",
        }
        output = ["box", "output"]
    rows = [
        {"id": "start", "data": {"type": "start", "variables": []}},
        {"id": "box", "data": {**settings, "start_node_id": "in"}},
        {"id": "in", "data": {"type": f"{settings['type']}-start", **body_of}},
        {"id": "work", "data": {"type": "template-transform", "template": "x", "variables": [], **body_of}},
        {"id": "end", "data": {"type": "end", "outputs": [{"variable": "out", "value_selector": output}]}},
    ]
    edges = [
        {"id": f"{a}-{b}", "source": a, "sourceHandle": "source", "target": b, "targetHandle": "target"}
        for a, b in (("start", "box"), ("box", "end"), ("in", "work"))
    ]
    graph = {"nodes": [{"type": "custom", **row} for row in rows], "edges": edges}
    app = {"name": "benchmark", "mode": "workflow"}
    return json.dumps({"kind": "app", "version": "0.6.0", "app": app, "workflow": {"graph": graph, "features": {}}})


def begun(definition: Definition, rounds: int) -> RunState:
    """A run that has what its container works on and has not begun."""
    state = new_state(definition, RUN_ID)
    accepted = RunAccepted(
        command_offset=0,
        task_id="t",
        app_id="a",
        workflow_id="w",
        version="1",
        digest=definition.digest,
        inputs={"items": list(range(rounds))},
        caller=Caller(id="c", user="u"),
    )
    apply(state, accepted, 1, 1)
    apply(state, decide(state, Begin(1_000_000_000)), 1, 1)  # type: ignore[arg-type]  # it applies
    return state


def steps(state: RunState) -> Iterator[None]:
    """Run to the end, one turn after the other, so that a caller can look between them."""
    done: Outcome = Succeeded(outputs={"output": "x"})
    while not state.ended:
        event = derived(state)
        if event is not None:
            apply(state, event, 1, 1)
            yield
            continue
        for item in list(due(state, 1, 1)):
            apply(state, decide(state, StartAttempt(item.key, 1, 1)), 1, 1)  # type: ignore[arg-type]  # it applies
            if Key(item.key.path, item.key.node_id) not in state.containers:
                apply(state, decide(state, CompleteAttempt(item.key, 1, 1, done, 1)), 1, 1)  # type: ignore[arg-type]
            yield


def run_once(shape: str, rounds: int, definition: Definition | None = None) -> RunState:
    state = begun(definition or compile_document(document(shape, rounds)), rounds)
    for _ in steps(state):
        pass
    return state


def us_per_round(shape: str, rounds: int) -> float:
    """Of the fastest of several runs: what disturbs only ever adds."""
    definition, fastest = compile_document(document(shape, rounds)), float("inf")
    for _ in range(max(3, 1_000 // rounds)):
        begin = time.process_time()
        assert run_once(shape, rounds, definition).status == "succeeded"
        fastest = min(fastest, time.process_time() - begin)
    return fastest / rounds * 1e6


def kept_bytes_per_round(shape: str, rounds: int) -> float:
    """What a round leaves in memory: the most that is held in the second half, over that in the first."""
    state = begun(compile_document(document(shape, rounds)), rounds)
    held = [0, 0]
    tracemalloc.start()
    try:
        for number, _ in enumerate(steps(state)):
            if number % 500 == 0:
                half = int(state.seq > 2 * rounds)
                held[half] = max(held[half], tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return (held[1] - held[0]) / (rounds / 2)


def questions() -> Iterator[dict[str, object]]:
    for shape in SHAPES:
        cost = {rounds: us_per_round(shape, rounds) for rounds in (100, 1_000, 10_000)}
        yield {
            "name": "containers",
            "shape": shape,
            **{f"us_per_round_of_{rounds}": round(us, 1) for rounds, us in cost.items()},
            "rounds_per_s": round(1e6 / cost[1_000]),
            "growth": round(cost[10_000] / cost[100], 2),
            "kept_bytes_per_round": round(kept_bytes_per_round(shape, 10_000)),
        }


if __name__ == "__main__":
    for answer in questions():
        print(json.dumps({**answer, **machine()}))  # noqa: T201  # one JSON line per question
