"""An editor at two API processes on Kafka and PostgreSQL: what one saves the other runs and publishes, also when the
first one is killed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import servers
from tests.documents import document, edges, end, start, template
from tests.e2e.deployment import ADMIN_TOKEN, Deployment, deployment, frames
from tests.integration.test_console_runs import COUNTED, ROUNDS, check_loop
from tests.integration.test_triggers import HOOK

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(180)]

FLOW = json.loads(
    document([start("q"), template("shout", "{{ q }}!", q="start.q"), end(answer="shout.output")],
             edges("start > shout > end"))
)["workflow"]["graph"]  # fmt: skip


@pytest.fixture
def deployed(kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as made:
        yield made


class Editor:
    """A browser that has logged in; its session opens every API process."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False, verify=False)
        assert self.http.post("/console/api/login", json={"password": ADMIN_TOKEN}).json() == {"result": "success"}
        self.http.headers["X-CSRF-Token"] = self.http.cookies["csrf_token"]

    def move(self, url: str) -> None:
        self.http.base_url = httpx.URL(url)

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.http.post(f"/console/api/apps{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.http.get(f"/console/api/apps{path}")
        assert answer.is_success, answer.text
        return answer.json()

    def run(self, app: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """The last frame of a run of the draft."""
        path = f"/console/api/apps/{app}/workflows/draft/run"
        with self.http.stream("POST", path, json={"inputs": inputs}) as answer:
            return list(frames(answer))[-1]


def test_an_editor_goes_on_at_another_api_when_its_own_is_killed(deployed: Deployment) -> None:
    deployed.start("executor")
    deployed.start("projector")
    first, second = deployed.start("api"), deployed.start("api")
    editor = Editor(first.url)
    try:
        app = editor.post("", {"name": "Edited", "mode": "workflow"})["id"]
        hashed = editor.post(f"/{app}/workflows/draft", {"graph": FLOW})["hash"]
        seen = editor.run(app, {"q": "one"})
        assert seen["data"]["outputs"] == {"answer": "one!"}
        first.kill()
        editor.move(second.url)
        assert editor.get(f"/{app}/workflows/draft")["hash"] == hashed
        node = editor.post(f"/{app}/workflows/draft/nodes/shout/run", {"inputs": {}})
        assert node["outputs"] == {"output": "one!"}
        again = editor.run(app, {"q": "two"})
        editor.post(f"/{app}/workflows/publish")
        listed = editor.get(f"/{app}/workflow-runs")["data"]
        assert [run["id"] for run in listed] == [again["workflow_run_id"], seen["workflow_run_id"]]
        assert editor.get(f"/{app}/workflows/draft/nodes/shout/last-run")["outputs"] == {"output": "two!"}
        key = editor.post(f"/{app}/api-keys")["token"]
        body = {"inputs": {"q": "live"}, "user": "u", "response_mode": "blocking"}
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{second.url}/v1/workflows/run", json=body, headers=headers, timeout=60, trust_env=False)
        assert answer.json()["data"]["outputs"] == {"answer": "live!"}
        days = editor.get(f"/{app}/workflow/statistics/daily-conversations")["data"]
        assert sum(day["runs"] for day in days) == 1
    finally:
        editor.http.close()


def test_parts_of_a_draft_run_at_any_api_with_what_the_other_ones_runs_have_left(deployed: Deployment) -> None:
    executor = deployed.start("executor")
    deployed.start("projector")
    first, second = deployed.start("api"), deployed.start("api")
    editor = Editor(first.url)
    try:
        app = editor.post("/imports", {"mode": "yaml-content", "yaml_content": COUNTED})["app_id"]
        whole = editor.run(app, {"q": "left"})
        assert whole["data"]["status"] == "succeeded", whole
        editor.move(second.url)
        loop = f"/console/api/apps/{app}/workflows/draft/loop/nodes/round/run"
        with editor.http.stream("POST", loop, json={"inputs": {}}) as answer:
            seen = []
            for frame in frames(answer):
                seen.append(frame)
                if frame["event"] == "loop_next" and executor.alive:
                    executor.kill()
                    deployed.start("executor")
        check_loop(seen, "left!")
        one = editor.post(f"/{app}/workflows/draft/nodes/shout/run", {"inputs": {"#start.q#": "alone"}})
        assert (one["status"], one["outputs"]) == ("succeeded", {"output": "alone!"})
        editor.move(first.url)
        assert editor.get(f"/{app}/workflows/draft/nodes/shout/last-run")["id"] == one["id"]
        with editor.http.stream("POST", loop, json={"inputs": {}}) as answer:
            check_loop(list(frames(answer)), "alone!")
        rounds = editor.post("/imports", {"mode": "yaml-content", "yaml_content": ROUNDS})["app_id"]
        iteration = f"/console/api/apps/{rounds}/workflows/draft/iteration/nodes/each/run"
        body = {"inputs": {"each.input_selector": ["a", "b"]}}
        with editor.http.stream("POST", iteration, json=body) as answer:
            told = list(frames(answer))
        done = next(frame["data"] for frame in told if frame["event"] == "iteration_completed")
        assert done["outputs"] == {"output": ["<a>", "<b>"]}
    finally:
        editor.http.close()


def test_a_call_at_one_api_runs_the_draft_that_waits_at_the_other(deployed: Deployment) -> None:
    deployed.start("executor")
    deployed.start("projector")
    first, second = deployed.start("api"), deployed.start("api")
    editor = Editor(first.url)
    try:
        app = editor.post("/imports", {"mode": "yaml-content", "yaml_content": HOOK})["app_id"]
        address = editor.get(f"/{app}/workflows/triggers/webhook?node_id=hook")["webhook_debug_url"]
        waiting = {"status": "waiting", "retry_in": 2000}
        asks = f"/{app}/workflows/draft/trigger/run"
        assert editor.post(asks, {"node_id": "hook"}) == waiting

        def call(url: str) -> httpx.Response:
            path = httpx.URL(address).path
            return httpx.post(f"{url}{path}", json={"who": "Ada"}, headers={"X-Kind": "x"}, timeout=60, trust_env=False)

        called = call(second.url)
        assert called.status_code == 202, called.text
        assert call(first.url).json()["code"] == "trigger_not_awaited"
        second.kill()
        with editor.http.stream("POST", f"/console/api/apps{asks}", json={"node_id": "hook"}) as answer:
            shown = list(frames(answer))
        assert shown[-1]["data"]["outputs"] == {"who": "Ada", "kind": "x", "page": None}
        assert shown[-1]["workflow_run_id"] == called.headers["x-workflow-run-id"]
        assert editor.post(asks, {"node_id": "hook"}) == waiting
        assert [run["id"] for run in editor.get(f"/{app}/workflow-runs")["data"]] == [shown[-1]["workflow_run_id"]]
    finally:
        editor.http.close()


def test_an_end_user_who_uploaded_at_one_api_is_known_at_the_other(deployed: Deployment) -> None:
    deployed.start("executor")
    deployed.start("projector")
    first, second = deployed.start("api"), deployed.start("api")
    key = {"Authorization": f"Bearer {deployed.client(first).import_document(HOOK)['api_key']}"}
    file = {"file": ("a.txt", b"x", "text/plain")}
    with httpx.Client(headers=key, timeout=60, trust_env=False) as http:
        made = http.post(f"{first.url}/v1/files/upload", files=file, data={"user": "ann"}).json()
        first.kill()
        found = http.get(f"{second.url}/v1/end-users/{made['created_by']}")
    assert (found.status_code, found.json()["session_id"]) == (200, "ann")
