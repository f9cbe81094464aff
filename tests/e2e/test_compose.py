"""The compose file for real: built from a clean copy, healthy without a further step, and it survives a lost executor.

Builds images and starts six containers, so only when asked: `FLOWLEDGER_TEST_COMPOSE=1 make test`.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import docx
import pytest

from tests.documents import code, document, edges, end, node, start
from tests.e2e.deployment import Api, Frame, frames, wait_until
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

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

    def environment(self) -> dict[str, str]:
        """With it, a bare `docker compose` in the folder means this project."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
        # Engines without BuildKit must be able to build the image too.
        return clean | {"COMPOSE_PROJECT_NAME": self._name, "PORT": str(self.port), "DOCKER_BUILDKIT": "0"}

    def __call__(self, *words: str, timeout_s: float = 60) -> str:
        command = ["docker", "compose", *words]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
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


def test_the_commands_of_the_readme_reach_it_from_inside_and_from_this_machine(compose: Compose) -> None:
    section = README.split("\n## On Kafka and PostgreSQL\n")[1].split("\n## ")[0]
    (commands,) = [
        block for block in re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE) if "docker" in block
    ]
    up, *rest = commands.splitlines()
    assert up == "make up"
    script = "\n".join(rest).replace("5001", str(compose.port))
    folder = str(Path(sys.executable).parent)  # where `flowledger` is
    environment = compose.environment() | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", script], cwd=compose.folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert '"greeting": "Hello' in done.stdout
    assert "succeeded" in done.stdout.splitlines()[-1]


JAVASCRIPT = "function main({q}) { return {result: q + [1, 2, 3].map(x => x * 2).join()} }"
PYTHON = """
import os
def main(q):
    try:
        open("/data/admin-token").read()
    except OSError as error:
        return {"result": f"{q} {os.getuid()} {type(error).__name__}"}
"""


def test_code_in_both_languages_and_office_documents_work_as_the_user_of_the_image(api: Api) -> None:
    given = {"variables": [{"variable": "q", "value_selector": ["start", "q"]}]}
    report = {
        "variable": "report",
        "label": "report",
        "type": "file",
        "required": True,
        "options": [],
        "allowed_file_types": ["document"],
        "allowed_file_upload_methods": ["local_file"],
    }
    first = start("q")
    first["data"]["variables"].append(report)
    nodes = [
        first,
        code("py", code=PYTHON, **given),
        code("js", code=JAVASCRIPT, code_language="javascript", **given),
        node("doc", "document-extractor", variable_selector=["start", "report"], is_array_file=False),
        end(py="py.result", js="js.result", doc="doc.text"),
    ]
    app = api.import_document(document(nodes, edges("start > py > js > doc > end")))
    written = io.BytesIO()
    paper = docx.Document()
    paper.add_paragraph("A line of the report")
    paper.save(written)
    key = {"Authorization": f"Bearer {app['api_key']}"}
    sent = {"file": ("report.docx", written.getvalue(), DOCX)}
    kept = api.http.post("/v1/files/upload", headers=key, data={"user": "tester"}, files=sent)
    assert kept.status_code == 201, kept.text
    file = {"transfer_method": "local_file", "upload_file_id": kept.json()["id"], "type": "document"}
    with api.run(app["api_key"], {"q": "x", "report": file}) as answer:
        last = list(frames(answer))[-1]
    assert last["data"]["status"] == "succeeded", last
    assert last["data"]["outputs"] == {"py": "x 10001 PermissionError", "js": "x2,4,6", "doc": "A line of the report"}


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


def test_it_stops_in_order_and_goes_on_with_all_it_had(compose: Compose, api: Api) -> None:
    app = api.import_document((ROOT / "examples/hello.yml").read_text("utf-8"))
    with api.run(app["api_key"], {"name": "Ada"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        assert list(frames(answer))[-1]["data"]["status"] == "succeeded"
    compose("stop", timeout_s=120)
    left = [json.loads(line) for line in compose("ps", "--all", "--format", "json").splitlines()]
    # 143: ended by SIGTERM, as a JVM says it. 137, a kill after the grace period, is nobody's but the lost executor's.
    assert {container["ExitCode"] for container in left if container["Service"] != "executor"} <= {0, 143}
    compose("up", "--detach", "--wait", timeout_s=300)
    assert api.detail(app["api_key"], run_id)["status"] == "succeeded"
    with api.run(app["api_key"], {"name": "Ada"}) as answer:
        assert list(frames(answer))[-1]["data"]["status"] == "succeeded"
