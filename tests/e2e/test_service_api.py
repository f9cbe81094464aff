"""The reference's service API through the front door: the same promises embedded, and over Kafka and PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents import document, edges, end, node, start
from tests.e2e.deployment import ADMIN_TOKEN, Api, Service, deployment
from tests.e2e.test_front_door import CommandLine

ECHO = document([start("q"), end(answer="start.q")], edges("start > end"))
EXTRACT = document(
    [
        node("start", "start", variables=[{"variable": "report", "label": "R", "type": "file", "required": True}]),
        node("read", "document-extractor", variable_selector=["start", "report"]),
        end(text="read.text", name="start.report"),
    ],
    edges("start > read > end"),
)


@pytest.fixture(
    scope="module",
    params=["dev", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow])],
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "dev":
        settings = {"FLOWLEDGER_DATA": str(tmp_path_factory.mktemp("dev")), "FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN}
        service = Service("dev", settings, "--port", "0", "--offline")
        yield service.url
        assert service.terminate() == 0
        return
    bootstrap, prefix = request.getfixturevalue("module_kafka")
    database = request.getfixturevalue("module_database")
    with deployment(bootstrap, prefix, database, tmp_path_factory.mktemp("data")) as deployed:
        deployed.start("executor")
        deployed.start("projector")
        yield deployed.start("api").url


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[Api]:
    api = Api(url)
    yield api
    api.http.close()


def bearer(app: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {app['api_key']}"}


def run(api: Api, app: dict[str, Any], inputs: dict[str, Any], user: str = "u") -> httpx.Response:
    body = {"inputs": inputs, "user": user, "response_mode": "blocking"}
    return api.http.post("/v1/workflows/run", headers=bearer(app), json=body)


def test_an_uploaded_file_is_read_by_the_nodes_of_a_run(api: Api) -> None:
    app = api.import_document(EXTRACT)
    form = {"file": ("note.md", b"# Hello\n\nfrom a file", "text/markdown")}
    uploaded = api.http.post("/v1/files/upload", headers=bearer(app), files=form, data={"user": "u"})
    assert uploaded.status_code == 201, uploaded.text
    report = {"type": "document", "transfer_method": "local_file", "upload_file_id": uploaded.json()["id"]}
    answer = run(api, app, {"report": report})
    assert answer.json()["data"]["status"] == "succeeded", answer.text
    outputs = answer.json()["data"]["outputs"]
    assert outputs["text"] == "# Hello\n\nfrom a file"
    assert api.http.get(outputs["name"]["url"], headers=bearer(app)).content == form["file"][1]
    assert run(api, app, {"report": report}, user="another").status_code == 400


def test_the_log_shows_a_run_as_soon_as_it_was_answered(api: Api) -> None:
    app = api.import_document(ECHO)
    for number in range(5):
        run_id = run(api, app, {"q": f"run {number}"}, user=f"user-{number}").json()["workflow_run_id"]
        query = {"keyword": f"RUN {number}", "created_by_end_user_session_id": f"user-{number}"}
        page = api.http.get("/v1/workflows/logs", headers=bearer(app), params=query).json()
        assert [entry["workflow_run"]["id"] for entry in page["data"]] == [run_id]
        user = page["data"][0]["created_by_end_user"]
        assert api.http.get(f"/v1/end-users/{user['id']}", headers=bearer(app)).json()["session_id"] == f"user-{number}"


def test_the_command_line_gives_a_file_to_a_run(url: str, tmp_path: Path) -> None:
    cli = CommandLine(tmp_path, FLOWLEDGER_URL=url, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)
    (tmp_path / "flow.json").write_text(EXTRACT)
    (tmp_path / "note.txt").write_text("from the command line")
    done = cli("run", "flow.json", "--file", "report=note.txt", "--json").json
    assert done["outputs"]["text"] == "from the command line"
    assert "neither a file here" in cli("run", "flow.json", "--file", "report=gone.txt", code=2).err
