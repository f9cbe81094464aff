"""What people type and scripts rely on, against the real thing: `flowledger dev` as a process, and no server at all.

Names of verbs, flags, keys and headers are promises; everything here is spoken over the command line or HTTP.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents import code, document, edges, end, start, template
from tests.e2e.deployment import ADMIN_TOKEN, Api, Service, deployment, frames, wait_until

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
HELLO, RETRIES = ROOT / "examples" / "hello.yml", ROOT / "examples" / "retries.yml"
RETRIES_PINS = ROOT / "examples" / "pins" / "retries.yml"
PROGRAM = [sys.executable, "-c", "import sys; from flowledger.cli import main; sys.argv[0] = 'flowledger'; main()"]

RUN_KEYS = {
    "workflow_run_id", "task_id", "status", "outputs", "error", "elapsed_time", "total_steps", "total_tokens",
}  # fmt: skip
LIST_KEYS = {
    "id", "app_id", "workflow_id", "version", "status", "error", "created_at", "started_at", "finished_at",
    "elapsed_time", "total_steps", "total_tokens", "seq", "triggered_from",
}  # fmt: skip
TYPES = {
    "RunAccepted", "RunStarted", "RunPaused", "RunResumed", "RunSucceeded", "RunPartiallySucceeded", "RunFailed",
    "RunStopped", "StopRequested", "NodeStarted", "NodeRestarted", "NodeRetryScheduled", "NodeSucceeded", "NodeFailed",
    "NodeExcepted", "NodeSkipped", "NodeStopped", "RoundStarted", "RoundFinished",
}  # fmt: skip
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

# With a pin that delays `nap`, a run that can be held.
SLOW = document(
    [start("seconds"), code("nap"), template("t", "{{ x }}", x="nap.result"), end(out="t.output")],
    edges("start > nap > t > end"),
)


class Answer:
    """What a command printed, and its exit code."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
    return clean | {"PYTHONPATH": str(ROOT)} | settings


class CommandLine:
    """`flowledger` as a script calls it: no terminal, an environment of its own, another working directory."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.environment = environment(**settings)

    def __call__(self, *arguments: str | Path, code: int = 0) -> Answer:
        done = subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        answer = Answer(done)
        assert answer.code == code, f"{arguments}: exit {answer.code}\n{answer.out}\n{answer.err}"
        assert "Traceback" not in answer.err
        return answer


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One `flowledger dev` for the module; it answers models by the stand-in."""
    data = tmp_path_factory.mktemp("dev")
    settings = {"FLOWLEDGER_DATA": str(data), "FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN}
    service = Service("dev", settings, "--port", "0", "--offline")
    service.data = data  # type: ignore[attr-defined]  # for the tests below
    yield service
    assert service.terminate() == 0


@pytest.fixture(
    scope="module",
    params=["dev", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow])],
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same promises hold for the embedded server and for services over Kafka and PostgreSQL."""
    if request.param == "dev":
        yield request.getfixturevalue("dev").url
        return
    bootstrap, prefix = request.getfixturevalue("module_kafka")
    database = request.getfixturevalue("module_database")
    with deployment(bootstrap, prefix, database, tmp_path_factory.mktemp("data")) as deployed:
        deployed.start("executor")
        deployed.start("projector")
        yield deployed.start("api").url


@pytest.fixture(scope="module")
def cli(url: str, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("cwd"), FLOWLEDGER_URL=url, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[Api]:
    api = Api(url)
    yield api
    api.http.close()


@pytest.fixture(scope="module")
def hello(cli: CommandLine) -> dict[str, Any]:
    """A finished run of the first example, as `run --json` tells it."""
    return dict(cli("run", HELLO, "-i", "name=Ada", "--json").json)


@pytest.fixture
def hello_again(tmp_path: Path) -> Path:
    """The first example under another name: other tests go by the name `Hello`."""
    path = tmp_path / "again.yml"
    path.write_text(HELLO.read_text("utf-8").replace("name: Hello\n", "name: Again\n"), "utf-8")
    return path


def slow_pins(tmp_path: Path, seconds: float) -> Path:
    pins = tmp_path / "slow.yml"
    pins.write_text(json.dumps({"nodes": {"nap": {"outputs": {"result": "slept"}, "delay_s": seconds}}}))
    return pins


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    (tmp_path / "slow.json").write_text(SLOW)
    return tmp_path / "slow.json"


# --- keys and exit codes --------------------------------------------------------------------------------------------


def test_run_prints_its_result_with_the_promised_keys(hello: dict[str, Any]) -> None:
    assert hello.keys() >= RUN_KEYS
    assert (hello["status"], hello["error"]) == ("succeeded", None)
    assert "Ada" in hello["outputs"]["greeting"]


def test_run_without_json_prints_outputs_on_stdout_and_nothing_else(cli: CommandLine) -> None:
    answer = cli("run", HELLO, "-i", "name=Grace")
    assert "Grace" in answer.json["greeting"]
    assert answer.err == ""


def test_the_same_document_is_one_app_however_often_it_runs(cli: CommandLine, hello: dict[str, Any]) -> None:
    before = cli("apps", "--json").json
    assert "Hello" in [app["name"] for app in before]
    cli("run", HELLO)
    assert cli("apps", "--json").json == before


def test_run_with_watch_prints_every_frame_and_then_the_result(cli: CommandLine) -> None:
    lines = cli("run", HELLO, "--watch", "--json").lines
    assert lines[0]["event"] == "workflow_started"
    assert lines[-2]["event"] == "workflow_finished"
    assert lines[-1].keys() >= RUN_KEYS


def listed_ids(cli: CommandLine) -> list[str]:
    return [run["id"] for run in cli("runs", "--json", "--limit", "100").json]


def test_runs_lists_newest_first_without_payloads(cli: CommandLine, hello: dict[str, Any]) -> None:
    run_id = hello["workflow_run_id"]
    wait_until(lambda: run_id in listed_ids(cli), "the run is listed")
    listed = cli("runs", "--json", "--limit", "100").json
    assert all(item.keys() >= LIST_KEYS and not item.keys() & {"inputs", "outputs"} for item in listed)
    assert [item["created_at"] for item in listed] == sorted((item["created_at"] for item in listed), reverse=True)
    assert cli("runs", "--status", "paused", "--json").json == []
    app_id = next(item["app_id"] for item in listed if item["id"] == run_id)
    (newest,) = cli("runs", "--app", "Hello", "--status", "succeeded", "--since", "1h", "--limit", "1", "--json").json
    assert (newest["app_id"], newest["status"]) == (app_id, "succeeded")


def test_show_has_list_keys_nodes_and_values(cli: CommandLine, hello: dict[str, Any]) -> None:
    found = cli("show", hello["workflow_run_id"], "--json").json
    assert found.keys() >= LIST_KEYS | {"inputs", "outputs", "nodes", "variables", "waiting_for"}
    assert found["outputs"] == hello["outputs"]
    assert found["nodes"]["letter"]["status"] == "skipped"
    execution = found["nodes"]["greet"]["executions"][0]
    assert execution.keys() >= {"id", "path", "attempt", "status", "error", "inputs", "outputs", "elapsed_time"}
    assert all(INSTANT.fullmatch(found[name]) for name in ("created_at", "started_at", "finished_at"))


def test_show_at_a_sequence_is_the_state_as_of_then(cli: CommandLine, hello: dict[str, Any]) -> None:
    before = cli("show", hello["workflow_run_id"], "--at", "3", "--json").json
    assert (before["status"], before["seq"], before["finished_at"]) == ("running", 3, None)
    assert "greet" not in before["nodes"]
    cli("show", hello["workflow_run_id"], "--at", "9999", code=2)


def test_history_is_one_object_a_line_gapless_with_public_types(cli: CommandLine, hello: dict[str, Any]) -> None:
    lines = cli("history", hello["workflow_run_id"], "--json").lines
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["type"] for line in lines} <= TYPES
    assert all(line.keys() >= {"seq", "type", "at", "run_id", "data", "partition", "offset", "epoch"} for line in lines)
    node = next(line for line in lines if line["type"] == "NodeStarted")
    assert node.keys() >= {"node_id", "node_execution_id", "path", "attempt"}
    assert all(INSTANT.fullmatch(line["at"]) for line in lines)
    part = cli("history", hello["workflow_run_id"], "--from", "2", "--to", "4", "--json").lines
    assert [line["seq"] for line in part] == [2, 3, 4]


def test_any_unique_prefix_of_a_run_id_works(cli: CommandLine, hello: dict[str, Any]) -> None:
    run_id = hello["workflow_run_id"]
    wait_until(lambda: listed_ids(cli).count(run_id) == 1, "the run is listed")
    assert cli("show", run_id[:32], "--json").json["id"] == run_id
    some = cli("show", run_id[:2], code=2)  # every id begins like this
    assert "match" in some.err


def test_import_prints_ids_a_key_and_warnings(cli: CommandLine, slow: Path) -> None:
    made = cli("import", slow, "--json").json
    assert made.keys() >= {"app_id", "name", "mode", "workflow_id", "version", "api_key", "warnings"}
    assert re.fullmatch(r"app-[A-Za-z0-9]{24}", made["api_key"])
    again = cli("import", slow, "--app", made["app_id"][:13], "--json").json
    assert (again["app_id"], again["api_key"]) == (made["app_id"], None)
    assert cli("import", slow, "--app", made["app_id"], "--key", "--json").json["api_key"].startswith("app-")
    assert len(cli("versions", made["app_id"], "--json").json) == 3


def test_keys_are_made_brought_listed_and_revoked(cli: CommandLine, slow: Path, api: Api) -> None:
    app_id = cli("import", slow, "--json").json["app_id"]
    made = cli("keys", app_id, "create", "--json").json
    brought = "app-0123456789abcdefghijklmn"
    cli("keys", app_id, "add", brought)
    listed = cli("keys", app_id, "--json").json
    assert len(listed) == 3
    assert all(key.keys() >= {"id", "prefix", "created_at"} and "key" not in key for key in listed)
    assert made["key"] not in json.dumps(listed)
    answer = api.http.get("/v1/apps", headers={"Authorization": f"Bearer {brought}"})
    assert [app["app_id"] for app in answer.json()["data"]] == [app_id]
    cli("keys", app_id, "revoke", made["id"])
    assert len(cli("keys", app_id, "--json").json) == 2
    refused = api.http.get("/v1/apps", headers={"Authorization": f"Bearer {made['key']}"})
    assert refused.status_code == 401


def test_validate_counts_executable_nodes_and_lists_problems(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("just text")
    answer = cli("validate", HELLO, tmp_path / "bad.yml", "--json", code=4)
    good, bad = answer.json
    assert good == {"file": str(HELLO), "valid": True, "mode": "workflow", "nodes": 7, "edges": 7, "problems": []}
    assert not bad["valid"]
    assert bad["problems"][0].keys() == {"at", "problem", "hint", "severity"}
    assert cli("validate", HELLO).code == 0


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}: put it beside the project (../shared/corpus)")
def test_validate_counts_the_executable_nodes_of_every_corpus_file(cli: CommandLine) -> None:
    expected = json.loads((CORPUS / "expected.json").read_text("utf-8"))
    found = cli("validate", *(CORPUS / name for name in expected), "--json").json
    counts = {name: result["nodes"] for name, result in zip(expected, found, strict=True)}
    assert counts == {name: one["executable_nodes"] for name, one in expected.items()}


def test_a_failed_run_exits_1_and_names_the_next_command(cli: CommandLine, slow: Path, tmp_path: Path) -> None:
    pins = tmp_path / "fail.yml"
    pins.write_text('{"nodes": {"nap": {"fail": "no bed"}}}')
    answer = cli("run", slow, "--pin", pins, "--json", code=1)
    assert (answer.json["status"], "no bed" in answer.json["error"]) == ("failed", True)
    plain = cli("run", slow, "--pin", pins, code=1)
    assert "no bed" in plain.err
    assert "history" in plain.err


def test_a_document_that_cannot_run_exits_4(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text(HELLO.read_text().replace("target: greet,", "target: nowhere,"))
    for verb in ("run", "import"):
        assert "nowhere" in cli(verb, tmp_path / "bad.yml", code=4).err


def test_what_is_not_there_exits_3_and_wrong_usage_2(cli: CommandLine) -> None:
    for verb in ("show", "history", "watch", "stop"):
        unknown = cli(verb, "01999999-9999-7999-8999-999999999999", code=3)
        assert unknown.out == ""
        cli(verb, "nonsense", code=3)
    assert "apps" in cli("run", "No such app", code=3).err
    for wrong in (["bogus"], ["run"], ["run", str(HELLO), "-i", "name"], ["runs", "--since", "yesterday"]):
        cli(*wrong, code=2)


def test_no_server_at_the_given_address_exits_7(cli: CommandLine) -> None:
    answer = cli("runs", "--url", "http://127.0.0.1:9", code=7)
    assert "http://127.0.0.1:9" in answer.err


# --- inputs and pins ------------------------------------------------------------------------------------------------


def test_inputs_come_from_pairs_files_and_an_inputs_file(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "name.txt").write_text("Ada of the file")
    (tmp_path / "inputs.yml").write_text("name: overruled\ntone: formal\n")
    answer = cli("run", HELLO, "--inputs", tmp_path / "inputs.yml", "-i", f"name=@{tmp_path}/name.txt", "--json")
    assert answer.json["outputs"]["greeting"].startswith("Dear Ada of the file")
    number = cli("run", HELLO, "-i", "name=42", "--json").json  # declared text stays text
    assert "Hello 42!" in number["outputs"]["greeting"]


def test_an_input_that_is_not_declared_is_named(cli: CommandLine) -> None:
    answer = cli("run", HELLO, "-i", "nam=Ada")
    assert '"nam"' in answer.err
    assert "name, tone" in answer.err


def test_pins_answer_for_nodes_and_say_so_in_the_history(cli: CommandLine) -> None:
    ran = cli("run", RETRIES, "--pin", RETRIES_PINS, "--json").json
    assert ran["outputs"] == {"length": 10}
    lines = cli("history", ran["workflow_run_id"], "--json").lines
    fetched = [line for line in lines if line["type"] == "NodeSucceeded" and line["node_id"] == "fetch"]
    assert fetched[0]["data"]["pinned"] is True
    assert sum(line["type"] == "NodeRetryScheduled" for line in lines) == 2


def test_a_pin_for_a_node_that_is_not_there_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "pins.yml").write_text("nodes: {nobody: {outputs: {}}}")
    assert "nobody" in cli("run", HELLO, "--pin", tmp_path / "pins.yml", code=2).err


# --- detach, stop, watch, Ctrl-C ------------------------------------------------------------------------------------


def test_one_node_runs_with_the_values_of_an_earlier_run(cli: CommandLine, hello: dict[str, Any]) -> None:
    again = cli("run", str(HELLO), "--only", "As a card", "--from-run", hello["workflow_run_id"], "--json")
    assert again.json["outputs"] == {"output": hello["outputs"]["greeting"]}
    given = cli("run", str(HELLO), "--only", "card", "-i", "start.name=Bo", "-i", "greet.text=hi", "--json")
    assert given.json["outputs"] == {"output": "Hello Bo! hi"}
    missing = cli("run", str(HELLO), "--only", "card", "-i", "start.name=Bo", code=2)
    assert "#greet.text#" in missing.err
    assert "--from-run" in missing.err


def test_a_fork_is_followed_with_the_value_that_was_set(cli: CommandLine, hello: dict[str, Any]) -> None:
    origin = hello["workflow_run_id"]
    at = next(line["seq"] for line in cli("history", origin, "--json").lines if line.get("node_id") == "choose")
    made = cli("fork", origin, "--at", str(at - 1), "--set", "greet.text=42", "--watch", "--json")
    forked, result = made.lines
    assert (forked["forked_from"], forked["first"]) == (origin, ["choose"])
    assert result["outputs"]["greeting"].endswith(" 42")
    plain = cli("fork", origin, "--at", str(at - 1))
    assert re.fullmatch(r"[0-9a-f-]{36}\n", plain.out)
    assert "Runs again, unless a branch decides otherwise: choose" in plain.err
    assert cli("watch", plain.out.strip(), "--json").lines[-1]["outputs"] == hello["outputs"]
    cli("fork", origin, "--at", "99", code=2)
    cli("fork", origin, "--at", "3", "--set", "greet.text", code=2)


def test_a_reason_is_one_sentence_and_a_difference_a_line_each(cli: CommandLine, hello: dict[str, Any]) -> None:
    origin = hello["workflow_run_id"]
    said = cli("why", origin, "As a letter").out
    assert 'because node "Formal?" (choose) took the branch "false"' in said
    assert said.count("\n") == 1
    assert cli("why", origin, "--json").json["status"] == "succeeded"
    cli("why", origin, "nobody", code=3)
    changed = cli("diff", origin, "--from", "4", "--to", "6").out
    assert "+ node greet: succeeded" in changed
    assert "+ greet.text: " in changed
    cli("diff", origin, "--from", "6", "--to", "4", code=2)


def test_a_retry_prints_the_id_of_the_new_run(cli: CommandLine, hello: dict[str, Any], tmp_path: Path) -> None:
    pins = tmp_path / "pins.yml"
    pins.write_text('nodes: {greet: {fail: "503 from upstream", times: 9}}')
    failed = cli("run", HELLO, "--pin", pins, "--json", code=1)
    again = cli("retry", failed.json["workflow_run_id"]).out
    assert re.fullmatch(r"[0-9a-f-]{36}\n", again)
    cli("watch", again.strip(), code=1)
    assert "run_not_failed" in cli("retry", hello["workflow_run_id"], code=2).err


def test_a_detached_run_is_watched_stopped_and_exits_5(cli: CommandLine, slow: Path, tmp_path: Path) -> None:
    started = cli("run", slow, "--pin", slow_pins(tmp_path, 60), "--detach", "--json").json
    run_id = started["workflow_run_id"]
    assert started["task_id"]
    waiting = cli("show", run_id, "--json").json
    assert waiting["status"] in ("pending", "running")
    assert cli("watch", run_id, "--timeout", "0.5", code=6).err.count(run_id)
    cli("stop", run_id)
    lines = cli("watch", run_id, "--json", code=5).lines
    assert lines[-1]["status"] == "stopped"
    assert lines[0]["event"] == "workflow_started"
    assert "has ended already" in cli("stop", run_id).err


def test_detach_prints_only_the_id_on_stdout(cli: CommandLine, slow: Path, tmp_path: Path) -> None:
    answer = cli("run", slow, "--pin", slow_pins(tmp_path, 0), "--detach")
    assert re.fullmatch(r"[0-9a-f-]{36}\n", answer.out)
    assert cli("watch", answer.out.strip(), "--json").lines[-1]["outputs"] == {"out": "slept"}


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """The process, which does not outlive the block."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_detaches_and_the_run_goes_on(cli: CommandLine, slow: Path, tmp_path: Path) -> None:
    with ended(
        subprocess.Popen(
            [*PROGRAM, "run", str(slow), "--pin", str(slow_pins(tmp_path, 2)), "--watch", "--json"],
            env=cli.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ) as process:
        assert process.stdout is not None
        run_id = json.loads(process.stdout.readline())["workflow_run_id"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"watch {run_id}" in err
    assert cli("watch", run_id, "--json").lines[-1]["status"] == "succeeded"


# --- no server at all -----------------------------------------------------------------------------------------------


def test_without_a_server_every_command_opens_the_data_folder(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path)
    ran = cli("run", HELLO, "--offline", "-i", "name=Ada", "--json").json
    data = tmp_path / ".flowledger"
    assert data.is_dir()
    assert (data / "admin-token").stat().st_mode & 0o077 == 0
    assert not (data / "server.json").exists()
    history = cli("history", ran["workflow_run_id"], "--json").lines
    assert history[-1]["type"] == "RunSucceeded"
    assert cli("show", ran["workflow_run_id"], "--json").json["outputs"] == ran["outputs"]
    assert [run["id"] for run in cli("runs", "--json").json] == [ran["workflow_run_id"]]
    assert cli("apps", "--json").json[0]["name"] == "Hello"
    assert ".flowledger" in cli("show", "01999999-9999-7999-8999-999999999999", code=3).err


def test_the_server_of_a_data_folder_is_found_by_it(dev: Service, tmp_path: Path) -> None:
    data = str(dev.data)  # type: ignore[attr-defined]  # set by the fixture
    cli = CommandLine(tmp_path, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)
    run_id = cli("run", HELLO, "--data", data, "--json").json["workflow_run_id"]
    assert cli("show", run_id, "--url", dev.url, "--json").json["status"] == "succeeded"


def test_a_url_wins_over_the_data_folder(cli: CommandLine, tmp_path: Path) -> None:
    apps = cli("apps", "--data", tmp_path / "other", "--json").json
    assert apps
    assert not (tmp_path / "other").exists()


def test_commands_at_once_on_one_folder_all_finish(tmp_path: Path) -> None:
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                ended(
                    subprocess.Popen(
                        [*PROGRAM, "run", str(HELLO), "--offline", "-i", f"name=N{i}", "--json"],
                        cwd=tmp_path,
                        env=environment(),
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            )
            for i in range(3)
        ]
        for i, process in enumerate(started):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert f"N{i}" in json.loads(out)["outputs"]["greeting"]


def test_a_run_whose_process_was_killed_goes_on_when_its_folder_is_opened_again(slow: Path, tmp_path: Path) -> None:
    with ended(
        subprocess.Popen(
            [*PROGRAM, "run", str(slow), "--pin", str(slow_pins(tmp_path, 3)), "--watch", "--json"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    ) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(4)]  # the nap has begun
    run_id = lines[0]["workflow_run_id"]
    cli = CommandLine(tmp_path)
    assert cli("watch", run_id, "--json").lines[-1]["status"] == "succeeded"
    types = [line["type"] for line in cli("history", run_id, "--json").lines]
    assert types.count("NodeRestarted") == 1
    assert types.count("RunSucceeded") == 1


# --- HTTP -----------------------------------------------------------------------------------------------------------


def test_operation_paths_answer(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
        assert api.http.get(path).status_code == 200, path
    paths = api.http.get("/openapi.json").json()["paths"]
    assert paths.keys() >= {
        "/v1/apps/import", "/v1/apps", "/v1/apps/{app_id}", "/v1/apps/{app_id}/keys", "/v1/runs", "/v1/runs/{run_id}",
        "/v1/runs/{run_id}/history", "/v1/runs/{run_id}/state", "/v1/runs/{run_id}/stop",
    }  # fmt: skip


def test_a_stream_names_its_run_at_once_and_its_ids_rise(api: Api, cli: CommandLine, hello_again: Path) -> None:
    key = cli("import", hello_again, "--json").json["api_key"]
    with api.run(key, {"name": "Ada"}) as answer:
        run_id, task_id = answer.headers["X-Workflow-Run-Id"], answer.headers["X-Task-Id"]
        seen = list(frames(answer))
    assert {frame["workflow_run_id"] for frame in seen} == {run_id}
    assert {frame["task_id"] for frame in seen} == {task_id}
    ids = [_place(frame.id) for frame in seen if frame.id]
    assert ids == sorted(set(ids))
    middle = seen[len(seen) // 2]
    with api.attach(key, run_id, middle.id) as answer:
        rest = list(frames(answer))
    assert [(frame.id, frame) for frame in rest] == [(frame.id, frame) for frame in seen[seen.index(middle) + 1 :]]
    with api.attach(key, run_id, "0") as answer:
        assert next(frame["event"] for frame in frames(answer)) == "workflow_started"
    with api.attach(key, run_id, None) as answer:
        assert [frame["event"] for frame in frames(answer)] == ["workflow_finished"]


def _place(identity: str | None) -> tuple[int, int]:
    sequence, _, position = (identity or "").partition(".")
    return int(sequence), int(position or -1)


def test_a_repeat_with_the_same_key_attaches_and_another_body_is_refused(
    api: Api, cli: CommandLine, hello_again: Path
) -> None:
    key = cli("import", hello_again, "--json").json["api_key"]
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "signup-42"}
    body = {"inputs": {"name": "Ada"}, "response_mode": "blocking", "user": "u"}
    first = api.http.post("/v1/workflows/run", json=body, headers=headers)
    second = api.http.post("/v1/workflows/run", json=body, headers=headers)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert first.headers["X-Workflow-Run-Id"] == second.headers["X-Workflow-Run-Id"]
    other = api.http.post("/v1/workflows/run", json=body | {"inputs": {"name": "Bob"}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_an_app_key_sees_only_its_own_runs(api: Api, cli: CommandLine, hello: dict[str, Any], slow: Path) -> None:
    key = cli("import", slow, "--json").json["api_key"]
    own = {"Authorization": f"Bearer {key}"}
    assert api.http.get(f"/v1/runs/{hello['workflow_run_id']}", headers=own).status_code == 404
    assert api.http.get("/v1/runs", headers=own).json()["data"] == []
    assert api.http.post("/v1/apps/import", content=SLOW, headers=own).status_code == 403


def test_history_comes_as_lines_or_as_a_stream(api: Api, hello: dict[str, Any]) -> None:
    path = f"/v1/runs/{hello['workflow_run_id']}/history"
    lines = api.http.get(path, headers=api.admin, params={"from": 2, "to": 3})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["seq"] for line in lines.text.splitlines()] == [2, 3]
    stream = api.http.get(path, headers={**api.admin, "Accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert "id: 1\n" in stream.text


def test_runs_are_paged_by_cursor(api: Api, cli: CommandLine) -> None:
    for _ in range(2):
        cli("run", HELLO)
    seen, cursor = [], None
    while True:
        page = api.http.get("/v1/runs", headers=api.admin, params={"limit": 1} | ({"cursor": cursor} if cursor else {}))
        seen += [run["id"] for run in page.json()["data"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) >= 2


# --- start and stop -------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_dev_prints_its_ready_line_and_the_token_once_and_ends_with_0(tmp_path: Path) -> None:
    for is_first in (True, False):
        service = Service("dev", {"FLOWLEDGER_DATA": str(tmp_path / "d")}, str(HELLO), "--port", "0", "--offline")
        try:
            assert any("admin token" in line for line in service.log) is is_first
            wait_until(lambda log=service.log: any("is app" in line for line in log), "the file is imported")  # type: ignore[misc]
            token = (tmp_path / "d" / "admin-token").read_text().strip()
            answer = httpx.get(f"{service.url}/v1/apps", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
            assert len(answer.json()["data"]) == 1, "a document that is there already is not imported again"
        finally:
            began = time.monotonic()
            assert service.terminate() == 0
        assert time.monotonic() - began < 5.0
        assert not (tmp_path / "d" / "server.json").exists()


def test_a_busy_port_is_named_with_its_holder(dev: Service, tmp_path: Path) -> None:
    port = dev.url.rpartition(":")[2]
    answer = CommandLine(tmp_path)("dev", "--port", port, code=2)
    assert port in answer.err
    assert "--port" in answer.err


def test_kafka_without_a_database_is_refused_by_api_and_projector(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path, FLOWLEDGER_KAFKA="127.0.0.1:9")
    for verb in ("api", "projector"):
        assert "FLOWLEDGER_DATABASE_URL" in cli(verb, code=2).err
    for verb in (["run", str(HELLO)], ["runs"], ["history", "0193"]):
        assert "FLOWLEDGER_URL" in cli(*verb, code=7).err


# --- speed: processor time, because wall time depends on who else is here ------------------------------------------


@pytest.mark.alone
def test_help_costs_little(tmp_path: Path) -> None:
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    costs = [
        float(subprocess.check_output([sys.executable, "-c", script, *PROGRAM, "--help"], env=environment(), text=True))
        for _ in range(3)
    ]
    assert min(costs) < 0.15  # 0.05 on the machine that this was written on
