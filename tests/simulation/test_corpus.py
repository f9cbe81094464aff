"""The public's real files run to the ends that are known of them, also when the executor dies on the way.

Code nodes run for real, but in this process instead of the sandbox; see tests/corpus.py.
"""

import pytest

from tests.corpus import ABSENT, EXPECTED, Case, case, ending

pytestmark = pytest.mark.skipif(not EXPECTED, reason=ABSENT)
files = pytest.mark.parametrize("file", sorted(EXPECTED))


def _runnable(file: str) -> Case:
    wanted = case(file)
    if missing := wanted.missing():
        pytest.skip(f"no handler yet for {', '.join(missing)}")
    return wanted


@files
def test_a_corpus_file_runs_to_the_end_that_is_known_of_it(file: str) -> None:
    wanted = _runnable(file)
    reached = ending(wanted)
    assert reached.status == wanted.ends, reached.error


@files
def test_a_corpus_file_ends_alike_wherever_its_executor_dies(file: str) -> None:
    wanted = _runnable(file)
    whole = ending(wanted)
    # Between two appends lies both "after the first landed" and "before the second lands".
    for crash_at in range(whole.appends + 1):
        again = ending(wanted, crash_at=crash_at)
        assert (again.status, again.outputs, again.error) == (whole.status, whole.outputs, whole.error), crash_at
        assert again.handles == whole.handles


@files
def test_every_branch_of_a_corpus_file_can_be_driven(file: str) -> None:
    wanted = _runnable(file)
    assert len(wanted.branch_handles()) == EXPECTED[file]["branch_handles"]
    if wanted.ends == "failed":
        return  # it fails before its branches
    left = {(node.id, handle) for node, handle in wanted.branch_handles()}
    branches = {node_id for node_id, _ in left}
    tried: set[tuple[tuple[str, str], ...]] = set()
    ways: list[dict[str, str]] = [{}]
    while left and ways:
        way = ways.pop(0)
        reached = ending(wanted.pinned(way))
        assert reached.status == wanted.ends, (way, reached.error)
        left -= reached.handles
        # From here every reached branch node can be turned, and shows what lies behind it.
        for node_id, handle in sorted(left):
            seen = {name: taken for name, taken in reached.handles if name in branches and name != node_id}
            turned = {**way, **seen, node_id: handle}
            if node_id in {name for name, _ in reached.handles} and tuple(turned.items()) not in tried:
                tried.add(tuple(turned.items()))
                ways.append(turned)
    assert not left
