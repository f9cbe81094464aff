"""One node of a compiled document, for tests of its handler."""

from typing import Any

from libs.workflow.definition import Node, compile_document
from libs.workflow.outcome import Failed, Outcome, Succeeded
from tests.documents import document, edges, node, start


def compiled(kind: str, **data: Any) -> Node:
    """The node `it` of this type, behind a start node."""
    text = document([start("q"), node("it", kind, **data)], edges("start > it"))
    return compile_document(text).nodes["it"]


def succeeded(outcome: Outcome | None) -> Succeeded:
    assert isinstance(outcome, Succeeded), outcome
    return outcome


def failed(outcome: Outcome | None) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome
