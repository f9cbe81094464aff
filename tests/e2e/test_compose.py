"""The compose file for real: built from a clean copy, healthy without a further step, and it survives a lost executor.

Builds images and starts six containers, so only when asked: `FLOWLEDGER_TEST_COMPOSE=1 make test`.
"""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import code, document, edges, end, start
from tests.e2e.deployment import Api, Frame, frames, wait_until
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.environ.get("FLOWLEDGER_TEST_COMPOSE") != "1",
        reason="builds and starts the containers of docker-compose.yml: set FLOWLEDGER_TEST_COMPOSE=1 (needs Docker)",
    ),
]

SERVICES = {"kafka": 1, "postgres": 1, "executor": 2, "projector": 1, "api": 1}


class Compose:
    """The project in a folder of its own, under a name of its own, on a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._name = f"flowledger-test-{uuid.uuid4().hex[:8]}"

    def __call__(self, *words: str, timeout_s: float = 60) -> str:
        # Engines without BuildKit must be able to build the image too.
        environment = {**os.environ, "PORT": str(self.port), "DOCKER_BUILDKIT": "0"}
        command = ["docker", "compose", "-p", self._name, *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-4000:]}"
        return done.stdout

    def containers(self) -> list[dict[str, str]]:
        """Running ones, as `docker compose ps` describes them."""
        return [json.loads(line) for line in self("ps", "--format", "json").splitlines()]

    def owner(self, partition: int) -> str:
        """Name of the executor's container that said last that it owns the partition."""
        said: list[tuple[str, str]] = []
        for container in self.containers():
            if container["Service"] != "executor":
                continue
            log = subprocess.run(["docker", "logs", container["Name"]], capture_output=True, text=True, check=True)
            for line in log.stderr.splitlines() + log.stdout.splitlines():
                if '"partition_owned"' in line and (facts := json.loads(line))["partition"] == partition:
                    said.append((facts["at"], container["Name"]))
        return max(said)[1]


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Up from a copy that holds what git holds, and nothing else."""
    clean = tmp_path_factory.mktemp("clean") / "flowledger"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (clean / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clean / name)
    it = Compose(clean)
    try:
        it("up", "--build", "--detach", "--wait", timeout_s=900)
        yield it
    finally:
        it("down", "--volumes", timeout_s=120)


@pytest.fixture
def api(compose: Compose) -> Iterator[Api]:
    api = Api(f"http://127.0.0.1:{compose.port}")
    token = compose("exec", "-T", "api", "cat", "/data/admin-token").strip()
    api.admin = {"Authorization": f"Bearer {token}"}
    yield api
    api.http.close()


def test_everything_is_healthy_without_a_further_step(compose: Compose, api: Api) -> None:
    found = compose.containers()
    assert {name: sum(c["Service"] == name for c in found) for name in SERVICES} == SERVICES
    assert {container["Health"] for container in found} == {"healthy"}
    assert api.http.get("/readyz").status_code == 200


def test_the_example_is_imported_over_http_and_runs(compose: Compose, api: Api) -> None:
    app = api.import_document((ROOT / "examples/hello.yml").read_text("utf-8"))
    with api.run(app["api_key"], {"name": "Ada"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        seen = list(frames(answer))
    assert [seen[0]["event"], seen[-1]["event"]] == ["workflow_started", "workflow_finished"]
    assert seen[-1]["data"]["status"] == "succeeded"
    assert api.detail(app["api_key"], run_id)["status"] == "succeeded"


SLOW = """
import time
def main():
    time.sleep(0.7)
    return {"result": "done"}
"""


def test_a_run_goes_on_when_the_container_of_its_executor_is_killed(compose: Compose, api: Api) -> None:
    # Code nodes: they run in the strict sandbox, as the user of the image.
    names = [f"step{number}" for number in range(1, 9)]
    nodes = [start("q"), *(code(name, code=SLOW) for name in names), end(last=f"{names[-1]}.result")]
    app = api.import_document(document(nodes, edges(" > ".join(["start", *names, "end"]))))
    seen: list[Frame] = []
    with api.run(app["api_key"], {"q": "x"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        stream = frames(answer)
        while sum(frame["event"] == "node_finished" for frame in seen) < 3:
            seen.append(next(stream))
        owner = compose.owner(api.history(run_id)[0]["partition"])
        subprocess.run(["docker", "kill", owner], check=True, capture_output=True)
        seen.extend(stream)
    assert seen[-1]["data"]["status"] == "succeeded", seen[-1]
    assert seen[-1]["data"]["outputs"] == {"last": "done"}
    assert sum(frame["event"] == "node_finished" for frame in seen) == len(names) + 2
    history = api.history(run_id)
    assert len({line["epoch"] for line in history}) == 2
    assert sum(line["type"] == "NodeRestarted" for line in history) <= 1
    wait_until(lambda: api.detail(app["api_key"], run_id)["status"] == "succeeded", "the projection")
