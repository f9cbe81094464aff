"""What the machine does per node does not grow with the graph: calls are counted, and time is compared in one process.

Counting is exact, but blind to a call that does much; timing sees that, and is noisy: hence both.
"""

import gc
import time
from collections.abc import Callable

import pytest

from benchmarks.engine import document, run_once
from libs.workflow.definition import Definition, compile_document
from tests.calls import calls_of

pytestmark = pytest.mark.alone

GROWTH = 1.2
"""A node in a large graph may cost this much of a node in a graph of ten."""

ROUNDS = 15

LARGE = [("chain", 1_000), ("fan-out", 500)]


@pytest.mark.parametrize(("shape", "nodes"), LARGE)
def test_a_node_of_a_large_graph_takes_no_more_calls_than_one_of_ten(shape: str, nodes: int) -> None:
    small, large = (calls_per_node(compile_document(document(count, shape))) for count in (10, nodes))
    assert large <= small * GROWTH, f"{large:.0f} calls per node among {nodes}, {small:.0f} among 10"


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "nodes"), LARGE)
def test_a_node_of_a_large_graph_takes_no_more_time_than_one_of_ten(shape: str, nodes: int) -> None:
    small, large = compile_document(document(10, shape)), compile_document(document(nodes, shape))
    # A graph of ten takes no longer than the machine's noise: run it as often as it has to be to be comparable.
    once, often = best_of(lambda: run_once(large)), best_of(lambda: [run_once(small) for _ in range(nodes // 10)])
    per_large, per_small = once / len(large.nodes), often / (nodes // 10) / len(small.nodes)
    assert per_large <= per_small * GROWTH, (
        f"{per_large * 1e6:.1f} us per node among {nodes}, {per_small * 1e6:.1f} among 10"
    )


def calls_per_node(definition: Definition) -> float:
    """Calls for one run."""
    return calls_of(lambda: run_once(definition)) / len(definition.nodes)


def best_of(work: Callable[[], object]) -> float:
    """Seconds of processor time of the fastest of several rounds: what disturbs only ever adds."""
    seconds = []
    gc.disable()
    try:
        for _ in range(ROUNDS):
            begin = time.process_time()
            work()
            seconds.append(time.process_time() - begin)
            gc.collect()
    finally:
        gc.enable()
    return min(seconds)
