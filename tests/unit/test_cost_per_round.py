"""What the machine does per round does not grow with the rounds, nor does what it keeps: both are counted."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.containers import SHAPES, begun, document, run_once, steps
from libs.workflow.definition import compile_document
from libs.workflow.state import Key
from tests.calls import calls_of

pytestmark = pytest.mark.alone

GROWTH = 1.2
"""A round among many may cost this much of a round among 100."""

WIDTH = 10
"""Rounds of a parallel iteration that run at once, unless it says otherwise."""


@pytest.mark.parametrize("shape", SHAPES)
def test_a_round_among_many_takes_no_more_calls_than_one_among_a_hundred(shape: str) -> None:
    small, large = calls_per_round(shape, 100), calls_per_round(shape, 2_000)
    assert large <= small * GROWTH, f"{large:.0f} calls per round among 2,000, {small:.0f} among 100"


class Counted(dict[Any, Any]):
    """Counts how often somebody goes through all of it, which a count of calls does not see."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return super().__iter__()

    def keys(self) -> Any:
        self.passes += 1
        return super().keys()

    def items(self) -> Any:
        self.passes += 1
        return super().items()

    def values(self) -> Any:
        self.passes += 1
        return super().values()


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_thousand_rounds_leave_their_results_and_nobody_goes_through_them_before_the_end(shape: str) -> None:
    rounds = 10_000
    state = begun(compile_document(document(shape, rounds)), rounds)
    kept = {name: Counted() for name in ("results", "durations", "variable_map")}
    frames = executions = 0
    for number, _ in enumerate(steps(state)):
        container = state.containers.get(Key("", "box"))
        if container is not None and container.durations is not kept["durations"] and not container.started:
            container.results, container.durations, container.variable_map = kept.values()
        if number % 7 == 0:
            frames, executions = max(frames, len(state.frames)), max(executions, len(state.executions))
    assert state.status == "succeeded"
    assert len(kept["durations"]) == rounds
    assert sum(each.passes for each in kept.values()) <= 10
    # The main graph and the rounds that run; its three nodes, and one of each round.
    assert (frames, executions) <= (1 + WIDTH, 3 + WIDTH)


def calls_per_round(shape: str, rounds: int) -> float:
    definition = compile_document(document(shape, rounds))
    return calls_of(lambda: run_once(shape, rounds, definition)) / rounds
