"""The machine against the reference engine, graphon: the same documents and answers lead to the same ends.

Skipped without the reference's environment (compared.ABSENT says how to make it). FLOWLEDGER_TEST_GRAPHS is the number
of documents, FLOWLEDGER_TEST_SEED the first seed; a seed that is reported makes the same document again.
"""

import os

import pytest

from tests.differential.compared import ABSENT, PYTHON, differences, ours, reference
from tests.differential.made import Made, make
from tests.documents import code, document, edges, end, node, start

COUNT = int(os.environ.get("FLOWLEDGER_TEST_GRAPHS", "40"))
FIRST = int(os.environ.get("FLOWLEDGER_TEST_SEED", "0"))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.is_file(), reason=ABSENT)]

# Starting the reference and running a document in it takes up to a tenth of a second each.
SECONDS = 60 + COUNT


@pytest.mark.timeout(SECONDS)
def test_documents_end_as_in_the_reference_whatever_is_drawn() -> None:
    cases = [make(seed) for seed in range(FIRST, FIRST + COUNT)]
    apart = {}
    for case, theirs in zip(cases, reference(cases), strict=True):
        for drawn in range(3):
            if found := differences(case, theirs, ours(case, drawn)):
                apart[case.seed] = found
    assert not apart, "\n".join(f"seed {seed}: {line}" for seed, lines in apart.items() for line in lines)


def _by_hand(text: str, pins: dict[str, dict[str, list[int] | int]]) -> Made:
    whole = {name: {"calls": [], "items": [], "length": 1, **pin} for name, pin in pins.items()}
    return Made(-1, text, {"q": "yes"}, whole, {})


def test_a_retry_that_succeeds_is_a_partial_success_in_the_reference_only() -> None:
    retry = {"retry_enabled": True, "max_retries": 1, "retry_interval": 100}
    nodes = [start("q"), code("a", retry_config=retry), end(out="a.result")]
    case = _by_hand(document(nodes, edges("start > a > end")), {"a": {"calls": [1]}})
    theirs, mine = next(reference([case])), ours(case)
    assert (theirs["status"], mine["status"]) == ("partial-succeeded", "succeeded")
    assert theirs["outputs"] == mine["outputs"] == {"out": "a@#2"}
    assert differences(case, theirs, mine) == []


def test_values_of_a_loop_body_outlive_the_loop_in_ours_only() -> None:
    loop = node(
        "loop",
        "loop",
        start_node_id="loopstart",
        loop_count=2,
        break_conditions=[],
        logical_operator="and",
        loop_variables=[],
    )
    nodes = [
        start("q"),
        loop,
        {**node("loopstart", "loop-start", loop_id="loop"), "parentId": "loop"},
        {**code("work", loop_id="loop"), "parentId": "loop"},
        end(out="work.result", rounds="loop.loop_round"),
    ]
    case = _by_hand(document(nodes, edges("start > loop > end", "loopstart > work")), {"work": {}})
    theirs, mine = next(reference([case])), ours(case)
    assert theirs["outputs"] == {"out": None, "rounds": 2}
    assert mine["outputs"] == {"out": "work@#2", "rounds": 2}
