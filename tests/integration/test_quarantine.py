"""A run whose large value is gone: set aside, named, released when the value is back. Through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger import Client
from flowledger.cli import run
from flowledger.dev import Embedded, start_embedded
from libs.settings import Settings
from tests.api_world import until
from tests.documents import code, document, edges, end, start

FLOW = document([start("q"), code("large"), code("slow"), end(a="slow.result")], edges("start > large > slow > end"))
PINS = {
    "nodes": {
        "large": {"outputs": {"result": "x" * 200_000}},
        "slow": {"outputs": {"result": "late"}, "delay_s": 6},
    }
}

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("FLOWLEDGER_URL", "FLOWLEDGER_KAFKA", "FLOWLEDGER_DATA"):
        monkeypatch.delenv(name, raising=False)

    def typed(*arguments: str) -> tuple[int, str, str]:
        exit_code = run([*arguments, "--data", str(tmp_path)])
        found = capsys.readouterr()
        return exit_code, found.out, found.err

    return typed


def _embedded(folder: Path) -> Embedded:
    return start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))


def _refusal(instance: Embedded, run_id: str, verb: str, **body: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {instance.admin_token}"}
    answer = httpx.post(f"{instance.url}/v1/runs/{run_id}/{verb}", json=body, headers=headers, timeout=20)
    return answer.status_code, answer.json()["code"]


def _listed(cli: Cli) -> list[dict[str, Any]]:
    _, out, _ = cli("quarantine", "list", "--json")
    return [json.loads(line) for line in out.splitlines()]


def test_a_run_whose_value_is_gone_waits_for_its_release(tmp_path: Path, cli: Cli) -> None:
    instance = _embedded(tmp_path)
    with Client(instance.url, instance.admin_token) as client:
        app = client.import_document(FLOW)
        held = client.start(app["app_id"], {"q": "1"}, pins=PINS)
        next(event for event in held.events() if event.event == "node_started" and event.data["node_id"] == "slow")
        assert _refusal(instance, held.id, "release") == (409, "not_set_aside")
        assert _refusal(instance, held.id, "resume") == (409, "not_paused")
        assert _refusal(instance, held.id, "resume", action="ok") == (409, "not_paused")
    instance.stop()
    assert _listed(cli) == []
    shutil.move(tmp_path / "blobs", tmp_path / "elsewhere")
    (would_be,) = _listed(cli)
    assert (would_be["run_id"], would_be["recorded"], would_be["foldable"]) == (held.id, False, False)
    instance = _embedded(tmp_path)
    until(lambda: [one["recorded"] for one in _listed(cli)] == [True])
    assert _refusal(instance, held.id, "release") == (409, "unfoldable")
    exit_code, _, err = cli("quarantine", "release", held.id)
    assert exit_code == 2
    assert "stays set aside" in err
    assert "cannot read blob" in err
    for verb in ("show", "history"):
        exit_code, _, err = cli(verb, held.id)
        assert (exit_code, "a large value of the run is not there any more" in err) == (2, True), err
    exit_code, out, _ = cli("why", held.id)
    assert (exit_code, out.startswith("It is set aside: cannot read blob")) == (0, True), out
    assert f"(flowledger quarantine release {held.id})" in out
    holder = {"Authorization": f"Bearer {app['api_key']}"}
    told = httpx.get(f"{instance.url}/v1/runs/{held.id}/why", headers=holder, timeout=20).json()["why"]
    assert told == "It is set aside, since no executor can go on from its history; it can be stopped."
    instance.stop()
    shutil.rmtree(tmp_path / "blobs", ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", tmp_path / "blobs")
    (still,) = _listed(cli)
    assert (still["recorded"], still["foldable"]) == (True, True)
    assert "cannot read blob" in still["reason"]
    exit_code, _, err = cli("quarantine", "release", held.id[:-2])
    assert (exit_code, "goes on" in err) == (0, True)
    exit_code, out, _ = cli("watch", held.id, "--json")
    assert exit_code == 0, out
    assert "set aside" not in cli("why", held.id)[1]
    assert _listed(cli) == []
    exit_code, _, err = cli("quarantine", "release", held.id)
    assert (exit_code, "has ended" in err) == (2, True)
