"""The reference's service API through the front door: the same promises embedded, and over Kafka and PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents import code, document, edges, end, node, start
from tests.e2e.deployment import ADMIN_TOKEN, Api, Service, deployment, frames
from tests.e2e.test_front_door import CommandLine
from tests.s3_server import bucket_server

ECHO = document([start("q"), end(answer="start.q")], edges("start > end"))
EXTRACT = document(
    [
        node("start", "start", variables=[{"variable": "report", "label": "R", "type": "file", "required": True}]),
        node("read", "document-extractor", variable_selector=["start", "report"]),
        end(text="read.text", name="start.report"),
    ],
    edges("start > read > end"),
)


CHARS = 400_000
"""The longest text that a code node may answer."""


def large(rounds: int) -> str:
    """An iteration whose rounds answer long texts, all of them together the output."""
    many = f"def main():\n    return {{'items': list(range({rounds}))}}\n"
    long = f"def main():\n    return {{'result': 'x' * {CHARS}}}\n"
    inside = {"isInIteration": True, "iteration_id": "each"}
    nodes = [
        start(),
        code("list", code=many, outputs={"items": {"type": "array[number]", "children": None}}),
        node("each", "iteration", iterator_selector=["list", "items"], output_selector=["text", "result"],
             output_type="array[string]", start_node_id="begin"),
        {**node("begin", "iteration-start", **inside), "parentId": "each"},
        {**code("text", code=long, **inside), "parentId": "each"},
        end(big="each.output"),
    ]  # fmt: skip
    return document(nodes, edges("start > list > each > end", "begin > text"))


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


def test_a_large_output_comes_back_whole_wherever_it_is_read(api: Api) -> None:
    app = api.import_document(large(rounds=13))
    answer = run(api, app, {}).json()
    assert answer["data"]["status"] == "succeeded", answer["data"]["error"]
    outputs = {"big": ["x" * CHARS] * 13}
    assert answer["data"]["outputs"] == outputs  # 5 MB
    run_id = answer["workflow_run_id"]
    assert api.detail(app["api_key"], run_id)["outputs"] == outputs
    with api.run(app["api_key"], {}) as stream:
        *_, last = frames(stream)
    assert last["data"]["outputs"] == outputs
    history = api.history(run_id)
    assert history[-1]["data"]["outputs"] == outputs


def test_large_values_and_files_may_lie_in_a_bucket(tmp_path: Path) -> None:
    with bucket_server() as server:
        bucket = server.bucket
        service = Service(
            "dev",
            {
                "FLOWLEDGER_DATA": str(tmp_path),
                "FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN,
                "FLOWLEDGER_S3_BUCKET": f"{bucket.name}/{bucket.prefix}",
                "FLOWLEDGER_S3_ENDPOINT": bucket.endpoint,
                "FLOWLEDGER_S3_REGION": bucket.region,
                "FLOWLEDGER_S3_ACCESS_KEY": bucket.access_key,
                "FLOWLEDGER_S3_SECRET_KEY": bucket.secret_key,
            },
            *("--port", "0", "--offline"),
        )
        try:
            api = Api(service.url)
            app = api.import_document(EXTRACT)
            text = "a long text, " * 5000
            form = {"file": ("note.txt", text.encode(), "text/plain")}
            file_id = api.http.post("/v1/files/upload", headers=bearer(app), files=form, data={"user": "u"}).json()[
                "id"
            ]
            report = {"type": "document", "transfer_method": "local_file", "upload_file_id": file_id}
            answer = run(api, app, {"report": report}).json()
            assert answer["data"]["outputs"]["text"] == text
            assert text.encode() in server.objects.values()
            assert len(server.objects) >= 2  # the file, and the text in outputs
            assert not (tmp_path / "blobs").exists()
            api.http.close()
            assert service.terminate() == 0
        finally:
            service.kill()


def test_the_command_line_gives_a_file_to_a_run(url: str, tmp_path: Path) -> None:
    cli = CommandLine(tmp_path, FLOWLEDGER_URL=url, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)
    (tmp_path / "flow.json").write_text(EXTRACT)
    (tmp_path / "note.txt").write_text("from the command line")
    done = cli("run", "flow.json", "--file", "report=note.txt", "--json").json
    assert done["outputs"]["text"] == "from the command line"
    assert "neither a file here" in cli("run", "flow.json", "--file", "report=gone.txt", code=2).err
