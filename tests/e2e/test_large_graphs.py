"""Graphs far larger than people draw: a chain of 1,000 nodes and 500 nodes side by side, over HTTP.

Template nodes are rendered in the executor itself, so nothing here waits for a sandbox. That a node costs the same in
a graph of any size is measured without services: tests/unit/test_cost_per_node.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.documents import document, edges, end, start, template
from tests.e2e.deployment import ADMIN_TOKEN, Api, Deployment, Frame, Service, deployment, frames
from tests.e2e.public_apps import replay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CHAIN, WIDTH = 1_000, 500
PASSED_ON = "grün 🙂"


def chain() -> str:
    """start > n1 > ... > n1000 > end: every node passes on what the one before it says."""
    names = [f"n{number}" for number in range(1, CHAIN + 1)]
    sources = ["start.q", *(f"{name}.output" for name in names)]
    nodes = [template(name, "{{ said }}", said=source) for name, source in zip(names, sources, strict=False)]
    arrows = edges(" > ".join(["start", *names, "end"]))
    return document([start("q"), *nodes, end(said=f"{names[-1]}.output")], arrows)


def fan_out() -> str:
    """start > n1..n500 > end: all side by side, all of them in the outputs."""
    names = [f"n{number}" for number in range(1, WIDTH + 1)]
    nodes = [template(name, f"{name} {{{{ said }}}}", said="start.q") for name in names]
    arrows = edges(*(f"start > {name} > end" for name in names))
    return document([start("q"), *nodes, end(**{name: f"{name}.output" for name in names})], arrows)


GRAPHS = {
    "chain": (chain(), CHAIN, {"said": PASSED_ON}),
    "fan-out": (fan_out(), WIDTH, {f"n{number}": f"n{number} {PASSED_ON}" for number in range(1, WIDTH + 1)}),
}


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Service]:
    service = Service("dev", {"FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN}, "--data", str(tmp_path), "--port", "0")
    yield service
    service.kill()


@pytest.fixture
def deployed(kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as it:
        yield it


@pytest.mark.parametrize("shape", GRAPHS)
def test_a_large_graph_runs_embedded(embedded: Service, shape: str) -> None:
    api = Api(embedded.url)
    try:
        check(api, *GRAPHS[shape])
    finally:
        api.http.close()


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.parametrize("shape", GRAPHS)
def test_a_large_graph_runs_on_kafka(deployed: Deployment, shape: str) -> None:
    api = deployed.client(deployed.start("api"))
    deployed.start("projector")
    deployed.start("executor")
    check(api, *GRAPHS[shape])


def check(api: Api, text: str, width: int, outputs: dict[str, Any]) -> None:
    app = api.import_document(text)
    with api.run(app["api_key"], {"q": PASSED_ON}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        got = list(frames(answer))
    check_stream(got, width + 2, outputs)
    assert api.detail(app["api_key"], run_id)["status"] == "succeeded"
    history = api.history(run_id)
    assert [line["seq"] for line in history] == list(range(1, len(history) + 1))
    assert len(history) == 3 + 2 * (width + 2), "accepted, started, ended, and two events per node"
    assert replay(text, history).outputs == outputs


def check_stream(got: list[Frame], nodes: int, outputs: dict[str, Any]) -> None:
    end = got[-1]["data"]
    assert (end["status"], end["total_steps"], end["outputs"]) == ("succeeded", nodes, outputs)
    for event in ("node_started", "node_finished"):
        assert len({frame["data"]["node_id"] for frame in got if frame["event"] == event}) == nodes
    started = [frame["data"]["index"] for frame in got if frame["event"] == "node_started"]
    assert started == list(range(1, nodes + 1))
    ids = [tuple(int(part) for part in frame.id.split(".")) for frame in got if frame.id]
    assert ids == sorted(set(ids)), "ids rise"
    text = "".join(frame["data"]["text"] for frame in got if frame["event"] == "text_chunk")
    assert text == "\n".join(outputs.values())
