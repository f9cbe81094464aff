"""Every file of the open corpus loads, and holds what its list of expectations says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from libs.workflow.definition import NodeKind, check_document, compile_document, examine
from libs.workflow.outcome import Failed
from libs.workflow.pins import answer, check_pins, parse_pins

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
EXPECTED: dict[str, Any] = (
    json.loads((CORPUS / "expected.json").read_text("utf-8")) if (CORPUS / "expected.json").is_file() else {}
)

pytestmark = pytest.mark.skipif(
    not EXPECTED,
    reason=f"no corpus at {CORPUS}: put the corpus beside the project (../shared/corpus) to run these tests",
)
files = pytest.mark.parametrize("file", sorted(EXPECTED))


@files
def test_a_corpus_file_loads_with_the_expected_nodes_and_edges(file: str) -> None:
    expected = EXPECTED[file]
    text = (CORPUS / file).read_bytes()
    definition, problems = check_document(text)
    assert definition is not None, problems
    nodes = [node for node in definition.nodes.values() if node.kind is not NodeKind.MARKER]
    types = {name: count for name, count in expected["node_types"].items() if not name.endswith("-start")}
    given = [edge for edge in definition.edges if edge.source in _ids(definition.document)]
    assert examine(text)[2]["mode"] == definition.mode == expected["mode"]
    assert examine(text)[2]["nodes"] == len(nodes) == expected["executable_nodes"]
    assert Counter(node.type for node in nodes) == types
    assert sum(node.container is not None for node in nodes) == expected["inside_containers"]
    assert len(given) == expected["edges"]
    assert not any("not reachable" in problem.problem or "never run" in problem.problem for problem in problems)


def _ids(document: Any) -> set[str]:
    return {str(node["id"]) for node in document["workflow"]["graph"]["nodes"]}


@files
def test_pins_of_a_corpus_file_parse_and_fit(file: str) -> None:
    definition = compile_document((CORPUS / file).read_bytes())
    pins = parse_pins((CORPUS / "pins" / file).read_bytes())
    assert check_pins(pins, definition) == ()
    for node in definition.nodes.values():
        pin = pins.for_node(node)
        assert pin is None or not isinstance(answer(pin, node, None, {}, 1), Failed)


def test_bytes_and_text_are_read_alike() -> None:
    for file in EXPECTED:
        data = (CORPUS / file).read_bytes()
        assert check_document(data)[1] == check_document(data.decode())[1]
