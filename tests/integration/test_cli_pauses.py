"""The command line with runs that wait for a person, without any server: each command opens the folder itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowledger.cli import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "approval.yml"


class Cli:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._data = ["--data", str(folder)]
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, *self._data])
        found = self._capsys.readouterr()
        return code, found.out, found.err

    def json(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        code, out, err = self(*arguments, "--json")
        assert out, err
        return code, json.loads(out.splitlines()[-1])


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("FLOWLEDGER_URL", "FLOWLEDGER_KAFKA", "FLOWLEDGER_DATA"):
        monkeypatch.delenv(name, raising=False)
    return Cli(tmp_path, capsys)


def test_a_run_that_waits_shows_its_form_and_the_commands_that_answer_it(cli: Cli) -> None:
    code, out, err = cli("run", str(EXAMPLE), "-i", "topic=tea")
    assert (code, out) == (8, "")
    assert "Approve waits for a person until" in err
    assert "> tea is good for you." in err
    assert "--action publish -i note=..." in err
    run_id = err.split("resume ")[1].split()[0]
    assert cli("resume", run_id)[0] == 8
    code, _, err = cli("resume", run_id, "--action", "publish", "-i", "note=3", "-i", "unasked=x")
    assert (code, "unasked" in err) == (0, True)
    _, state = cli.json("show", run_id)
    assert (state["status"], state["outputs"]) == ("succeeded", {"text": "tea is good for you.", "note": "3"})
    code, _, err = cli("resume", run_id, "--action", "publish")
    assert code == 2
    assert "has ended" in err


def test_the_json_of_a_paused_run_says_what_it_waits_for(cli: Cli) -> None:
    code, result = cli.json("run", str(EXAMPLE))
    assert (code, result["status"]) == (8, "paused")
    (reason,) = result["reasons"]
    assert reason["node_id"] == "approve"
    run_id = result["workflow_run_id"]
    code, state = cli.json("show", run_id)
    assert (code, state["status"]) == (0, "paused")
    (waits,) = state["waiting_for"]
    assert (waits["kind"], waits["form_token"]) == ("form", reason["form_token"])
    code, _, err = cli("resume", run_id, "--action", "burn")
    assert (code, "Actions: publish, reject" in err) == (2, True)
    code, result = cli.json("resume", run_id, "--action", "reject")
    assert (code, result["status"], result["outputs"]) == (0, "succeeded", {"reason": ""})


def test_a_run_that_was_paused_on_request_goes_on_when_it_is_resumed(cli: Cli) -> None:
    _, result = cli.json("run", str(EXAMPLE))
    run_id = result["workflow_run_id"]
    code, answer = cli.json("pause", run_id, "--reason", "lunch")
    assert (code, answer["pause_requested"]) == (0, True)
    assert "to be resumed: lunch" in cli("show", run_id)[1]
    assert cli("resume", run_id, "--action", "publish", "--detach")[0] == 0
    assert cli.json("show", run_id)[1]["status"] == "paused"
    code, result = cli.json("resume", run_id)
    assert (code, result["status"]) == (0, "succeeded")


def test_watching_a_run_through_an_old_pause_leads_to_its_end(cli: Cli) -> None:
    _, result = cli.json("run", str(EXAMPLE))
    run_id = result["workflow_run_id"]
    assert cli("watch", run_id)[0] == 8
    cli("resume", run_id, "--action", "publish")
    assert cli("watch", run_id)[0] == 0
