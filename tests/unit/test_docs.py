"""What the documentation claims can be looked up: tests it names exist, tables agree with the code."""

import re
from pathlib import Path

import pytest

from libs.settings import Settings
from libs.workflow.node_configs import NODE_TYPES, NodeKind
from services.executor.nodes import NodeHandlers

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("architecture.md", "behaviours.md", "compatibility.md", "faults.md")]
_CITED = re.compile(r"`([\w/]*test_\w+|\.\.\.(?=::))(?:\.py)?(?:::(test_\w+))?`")
_FILES = {str(file.relative_to(ROOT / "tests").with_suffix("")): file for file in ROOT.glob("tests/**/test_*.py")}


def cited(page: Path) -> list[tuple[str, str]]:
    """(file, test) as a page names them; `...` stands for the file named before it; an empty test names the file."""
    found, last = [], ""
    for file, test in _CITED.findall(page.read_text("utf-8")):
        last = last if file == "..." else file
        found.append((last, test))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_cited_exists(page: Path) -> None:
    missing = [
        f"{name}::{test}"
        for name, test in cited(page)
        if name not in _FILES or f"def {test}" not in _FILES[name].read_text("utf-8")
    ]
    assert missing == []
    assert len(cited(page)) > 20


def test_every_fault_has_its_row() -> None:
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    numbers = [
        number for found in re.findall(r"^\| (\d[\d, ]*) \|", page, re.MULTILINE) for number in found.split(", ")
    ]
    assert numbers == [str(number) for number in range(1, 77)]


def test_the_table_of_node_types_is_what_the_code_does() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    table = page.partition("| node type |")[2].partition("\n\n")[0]
    said: dict[str, bool] = {}
    for row in table.splitlines()[2:]:
        _, types, what, _ = row.split("|", 3)
        said |= dict.fromkeys(re.findall(r"`([\w-]+)`", types), what.strip().startswith("runs"))
    # A type of an outside system has a handler that only says what is missing.
    handlers = NodeHandlers.build(Settings()).by_type
    runs = {name for name, handler in handlers.items() if type(handler).__name__ != "OutsideHandler"}
    by_machine = (NodeKind.CONTAINER, NodeKind.MARKER)
    assert said == {name: name in runs or kind.kind in by_machine for name, kind in NODE_TYPES.items()}


def _behaviours() -> list[tuple[str, str, str]]:
    """(number, what it is here, tests) of every row."""
    page = (ROOT / "docs" / "behaviours.md").read_text("utf-8")
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if re.match(r"\| \d", line)]
    assert all(len(row) == 4 for row in rows)
    return [(number.strip(), here.strip(), tests.strip()) for number, _, here, tests in rows]


def test_every_behaviour_of_the_reference_has_its_row() -> None:
    further = {28: "a", 55: "abcde", 84: "ab", 87: "a", 91: "ab", 97: "abcdefg", 110: "ab"}
    numbers = [f"{number}{letter}" for number in range(1, 118) for letter in ("", *further.get(number, ""))]
    assert len(numbers) == 137
    assert [number for number, _, _ in _behaviours()] == numbers


def test_every_behaviour_is_shown_by_a_test_and_every_difference_has_its_reason() -> None:
    for number, here, tests in _behaviours():
        word, _, reason = here.partition(": ")
        assert re.match("same|differs|none", word), f"{number}: {here}"
        assert reason or word.startswith("same"), f"{number}: no reason"
        assert "::" in tests, f"{number}: no test"
