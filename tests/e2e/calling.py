"""Workflows that call an outside service: each call leaves a trace at a `Witness`."""

from tests.documents import document, edges, end, node, start
from tests.e2e.witness import Witness


def chain(witness: Witness, count: int, delay_s: float) -> str:
    """start > call1 > call2 > ... > end: HTTP calls that take `delay_s` each; the run executes count + 2 nodes."""
    names = [f"call{number}" for number in range(1, count + 1)]
    nodes = [start("q")]
    for name in names:
        nodes.append(call(name, f"{witness.url}/{name}?delay={delay_s}"))
    nodes.append(end(**{name: f"{name}.body" for name in names}))
    return document(nodes, edges(" > ".join(["start", *names, "end"])))


def call(name: str, url: str) -> dict[str, object]:
    return node(
        name,
        "http-request",
        method="post",
        url=url,
        headers="",
        params="",
        body={"type": "none", "data": []},
        authorization={"type": "no-auth", "config": None},
        timeout={},
    )
