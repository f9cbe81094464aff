"""Attempts for tests of node handlers: a document of one node, compiled like any other, and a pool."""

from typing import Any

from libs.workflow.definition import compile_document
from libs.workflow.pool import Pool
from services.executor.nodes.port import Attempt
from tests.documents import document, edges, end, node, start


class Emitted:
    """What a handler streamed."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, str]] = []

    def __call__(self, field: str, text: str) -> None:
        self.pieces.append((field, text))

    def text(self, field: str = "text") -> str:
        return "".join(text for name, text in self.pieces if name == field)


def attempt_of(
    kind: str,
    data: dict[str, Any],
    values: dict[str, Any] | None = None,
    *,
    secrets: dict[str, str] | None = None,
    mode: str = "workflow",
    emit: Emitted | None = None,
) -> Attempt:
    """The first attempt of node `n`; `values` by dotted selector, `secrets` by name of the environment variable."""
    pool = Pool()
    for selector, value in (values or {}).items():
        node_id, _, name = selector.partition(".")
        pool.set(node_id, name, value)
    for name, value in (secrets or {}).items():
        pool.set("env", name, value, "secret")
    last = end() if mode == "workflow" else node("end", "answer", answer="done")
    definition = compile_document(
        document([start(), node("n", kind, **data), last], edges("start > n > end"), mode=mode)
    )
    return Attempt(
        run_id="run-1",
        app_id="app-1",
        user="someone",
        definition=definition,
        node=definition.nodes["n"],
        path="",
        number=1,
        key="run-1/n//1",
        pool=pool,
        emit=emit or Emitted(),
    )
