"""Runs cases in the reference engine. A script for an environment of its own: it imports nothing of this project.

Reads one case per line (tests/differential/made.py) from standard input and writes one result per line. Only code
nodes are replaced, by their pinned answers, and the wait before a retry is left out.
"""

import json
import logging
import sys
import threading
from collections import Counter
from typing import Any

from graphon.dsl.importer import loads
from graphon.engine.event import node_failure
from graphon.engine_events import (
    GraphEdgeSkippedEvent,
    GraphEdgeTakenEvent,
    GraphRunFailedEvent,
    GraphRunPartialSucceededEvent,
    GraphRunSucceededEvent,
    NodeRunExceptionEvent,
    NodeRunFailedEvent,
    NodeRunRetryEvent,
    NodeRunStartedEvent,
)
from graphon.enums import WorkflowNodeExecutionStatus
from graphon.node_events.base import NodeRunResult
from graphon.nodes.code.code_node import CodeNode


class NoWait:
    @staticmethod
    def sleep(seconds: float) -> None:
        """A retry's wait."""


class Answers:
    """What the code nodes of one run answer."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.calls: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.lock = threading.Lock()

    def answer(self, node: Any) -> NodeRunResult:
        pool = node.runtime_state.variable_pool
        items = [int(pool.get([each, "index"]).value) for each in self.case["around"].get(node.id, ())]
        with self.lock:
            self.calls[node.id, tuple(items)] += 1
            call = self.calls[node.id, tuple(items)]
        pin = self.case["pins"][node.id]
        if call in pin["calls"] or (items and items[-1] in pin["items"]):
            return NodeRunResult(
                status=WorkflowNodeExecutionStatus.FAILED, error=self.case["error"], error_type="PinnedError"
            )
        place = ".".join(map(str, items))
        outputs = {
            "result": f"{node.id}@{place}#{call}",
            "items": [f"{node.id}.{number}" for number in range(pin["length"])],
        }
        return NodeRunResult(status=WorkflowNodeExecutionStatus.SUCCEEDED, outputs=outputs)


def run(case: dict[str, Any]) -> dict[str, Any]:
    answers = Answers(case)
    CodeNode._run = lambda node: answers.answer(node)  # noqa: SLF001 - what a node does is nowhere else to be replaced
    engine = loads(case["document"], start_inputs=case["inputs"], workers=case.get("workers", 3))
    result: dict[str, Any] = {"seed": case["seed"], "status": "none", "outputs": None, "error": None}
    started: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    handled = failed = 0
    try:
        for event in engine.run():
            match event:
                case NodeRunRetryEvent():
                    pass  # a kind of NodeRunStartedEvent
                case NodeRunStartedEvent(node_id=node_id):
                    started[node_id] += 1
                case GraphEdgeTakenEvent():
                    taken[arrow(event)] += 1
                case GraphEdgeSkippedEvent():
                    skipped[arrow(event)] += 1
                case NodeRunExceptionEvent():
                    handled += 1
                case NodeRunFailedEvent():
                    failed += 1
                case GraphRunSucceededEvent():
                    result |= {"status": "succeeded", "outputs": event.outputs}
                case GraphRunPartialSucceededEvent():
                    result |= {"status": "partial-succeeded", "outputs": event.outputs}
                case GraphRunFailedEvent():
                    result |= {"status": "failed", "error": event.error}
    except Exception as error:  # the engine raises what has failed a run, after its event
        result["raised"] = str(error)
    return result | {"started": started, "taken": taken, "skipped": skipped, "handled": handled, "failed": failed}


def arrow(event: Any) -> str:
    return f"{event.source_node_id}[{event.source_handle}] > {event.target_node_id}"


def main() -> None:
    logging.disable(logging.CRITICAL)
    node_failure.time = NoWait  # type: ignore[assignment]
    for line in sys.stdin:
        case = json.loads(line)
        try:
            result = run(case)
        except Exception as error:
            result = {"seed": case["seed"], "status": "refused", "error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(result, default=str) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
