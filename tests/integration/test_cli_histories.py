"""Verbs that read the log or a file of it: export, replay, log tail, log grep. On a data folder, without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowledger.cli import run as command_line
from flowledger.cli.exits import INVALID, NOT_FOUND, UNREACHABLE, USAGE
from tests.documents import code, document, edges, end, node, start, template

SECRET = "sk-live-0123456789-abcdefghij"
FLOW = document(
    [start("q"), template("t", "{{ q }} {{ k }}", q="start.q", k="env.key"), end(out="t.output")],
    edges("start > t > end"),
    environment_variables=[{"name": "key", "value_type": "secret", "value": SECRET}],
)


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Type = Callable[..., Said]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Type:
    for name in ("FLOWLEDGER_URL", "FLOWLEDGER_KAFKA", "FLOWLEDGER_DATA"):
        monkeypatch.delenv(name, raising=False)

    def type_(*words: object) -> Said:
        capsys.readouterr()
        code = command_line([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return type_


@pytest.fixture
def ran(typed: Type, tmp_path: Path) -> tuple[Path, str]:
    """A data folder with one run, and the run's id."""
    flow = tmp_path / "flow.yml"
    flow.write_text(FLOW)
    said = typed("run", flow, "-i", "q=hello", "--data", tmp_path / "data", "--json")
    assert said.code == 0, said.err
    return tmp_path / "data", said.lines[0]["workflow_run_id"]


def shown(said: Said) -> Any:
    found = dict(said.lines[0])
    found.pop("queue_time")  # the file has milliseconds
    found["variables"].pop("env", None)  # and no secrets, so there is nothing to mask in it
    return found


def test_an_exported_history_folds_to_what_the_server_shows_at_every_event(
    typed: Type, ran: tuple[Path, str], tmp_path: Path
) -> None:
    data, run_id = ran
    file = tmp_path / "run.jsonl"
    assert typed("export", run_id[:20], "-o", file, "--data", data).code == 0
    assert SECRET not in file.read_text()
    count = len(file.read_text().splitlines()) - 1
    assert shown(typed("replay", file, "--json")) == shown(typed("show", run_id, "--data", data, "--json"))
    for at in range(1, count + 1):
        here = shown(typed("replay", file, "--at", at, "--json"))
        there = shown(typed("show", run_id, "--at", at, "--data", data, "--json"))
        assert here == there
    assert "succeeded" in typed("replay", file).out
    assert typed("export", run_id, "-o", "-", "--data", data).out == file.read_text()


def test_any_line_end_of_unicode_may_stand_in_a_history(typed: Type, ran: tuple[Path, str], tmp_path: Path) -> None:
    data, file, text = ran[0], tmp_path / "run.jsonl", "a\u2028b\u2029c\x85d"
    run_id = typed("run", tmp_path / "flow.yml", "-i", f"q={text}", "--data", data, "--json").lines[0][
        "workflow_run_id"
    ]
    assert typed("history", run_id, "--data", data).code == 0
    assert typed("export", run_id, "-o", file, "--data", data).code == 0
    assert text in json.loads(typed("replay", file, "--json").out)["outputs"]["out"]


def test_a_run_from_a_trigger_is_replayed_from_there(typed: Type, tmp_path: Path) -> None:
    flow, data, file = tmp_path / "flow.yml", tmp_path / "data", tmp_path / "run.jsonl"
    nodes = [node("order", "trigger-plugin"), node("refund", "trigger-plugin"), end(o="order.who", r="refund.who")]
    flow.write_text(document(nodes, edges("order > end", "refund > end")))
    said = typed("run", flow, "--root", "Refund", "-i", "who=Ada", "--data", data, "--json")
    assert (said.code, said.lines[0]["outputs"]) == (0, {"o": None, "r": "Ada"})
    run_id = said.lines[0]["workflow_run_id"]
    assert typed("export", run_id, "-o", file, "--data", data).code == 0
    made = typed("rebuild", "--yes", "--data", data)
    assert (made.code, made.err.startswith("tables made anew from")) == (0, True), made.err
    here = shown(typed("replay", file, "--json"))
    assert here == shown(typed("show", run_id, "--data", data, "--json"))
    assert (here["root"], here["nodes"]["order"]["status"]) == ("refund", "skipped")
    assert typed("run", flow, "-i", "who=Ada", "--data", data, "--json").lines[0]["outputs"] == {"o": "Ada", "r": None}
    wrong = typed("run", flow, "--root", "end", "--data", data)
    assert (wrong.code, "Roots of this workflow: order, refund" in wrong.err) == (USAGE, True)
    assert typed("run", flow, "--root", "order", "--only", "end", "--data", data).code == USAGE


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: lines[1:], "not the head"),
        (lambda lines: [lines[0], *lines[2:]], "expected event 1"),
        (lambda lines: [*lines[:3], *lines[4:]], "expected event 3"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "not JSON"),
        (lambda lines: [line.replace("RunStarted", "RunDreamt") for line in lines], "unknown event type"),
        (lambda lines: [*lines, "[]"], "expected an object"),
        (lambda lines: lines[:1], "no events"),
        (lambda lines: [], "not the head"),
    ],
)
def test_a_file_that_is_no_whole_history_is_refused_with_the_line(
    typed: Type, ran: tuple[Path, str], tmp_path: Path, change: Callable[[list[str]], list[str]], problem: str
) -> None:
    file = tmp_path / "run.jsonl"
    typed("export", ran[1], "-o", file, "--data", ran[0])
    file.write_text("\n".join(change(file.read_text().splitlines())))
    said = typed("replay", file)
    assert (said.code, said.out) == (INVALID, "")
    assert problem in said.err
    assert "run.jsonl" in said.err


def test_a_file_that_cannot_be_written_or_read_says_what_to_do(
    typed: Type, ran: tuple[Path, str], tmp_path: Path
) -> None:
    file = tmp_path / "nowhere" / "run.jsonl"
    said = typed("export", ran[1], "-o", file, "--data", ran[0])
    assert (said.code, f"{file}: No such file or directory. Make its folder" in said.err) == (USAGE, True)
    (tmp_path / "run.jsonl").write_bytes(b"\xff\xfe{}")
    said = typed("replay", tmp_path / "run.jsonl")
    assert (said.code, "not UTF-8 at byte 0" in said.err) == (INVALID, True)


def test_a_sequence_that_is_not_there_is_refused(typed: Type, ran: tuple[Path, str], tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    typed("export", ran[1], "-o", file, "--data", ran[0])
    said = typed("replay", file, "--at", 999)
    assert (said.code, "--at 999: the history has events 1 to " in said.err) == (USAGE, True)
    assert typed("export", "ffff", "-o", file, "--data", ran[0]).code == NOT_FOUND


def test_records_are_shown_as_they_stand(typed: Type, ran: tuple[Path, str]) -> None:
    data, run_id = ran
    told = typed("log", "tail", "-n", 1_000, "--json", "--data", data)
    assert [line["offset"] for line in told.lines] == list(range(len(told.lines)))
    assert told.lines[0]["headers"]["ce_type"] == "flowledger.PartitionClaimed.1"
    assert typed("log", "tail", "-n", 2, "--json", "--data", data).lines == told.lines[-2:]
    found = typed("log", "grep", run_id, "--json", "--data", data).lines
    assert len(found) >= 9
    assert found == [line for line in told.lines if run_id in json.dumps(line)]
    plain = typed("log", "grep", "NodeSucceeded", "--data", data)
    assert len(plain.out.splitlines()) == 3
    assert run_id in plain.out
    assert SECRET not in told.out + typed("log", "tail", "--topic", "definitions", "-n", 99, "--data", data).out


def test_what_cannot_be_read_or_found_has_its_exit_code(typed: Type, ran: tuple[Path, str], tmp_path: Path) -> None:
    data, _ = ran
    assert typed("log", "grep", "no such thing", "--data", data).code == NOT_FOUND
    assert typed("log", "grep", "(", "--data", data).code == USAGE
    assert typed("log", "tail", "--partition", 7, "--data", data).code == USAGE
    assert typed("log", "tail", "--topic", "nonsense", "--data", data).code == USAGE
    assert typed("log", "tail", "--data", tmp_path / "nowhere").code == UNREACHABLE


def test_tables_and_log_are_compared_without_a_server(typed: Type, ran: tuple[Path, str]) -> None:
    data, run_id = ran
    assert typed("rebuild", "--yes", "--data", data).code == 0
    assert typed("verify", "--data", data, "--json").lines[0]["equal"] is True
    assert typed("verify", run_id[:20], "--data", data).code == 0
    assert typed("verify", "ffff", "--data", data).code == NOT_FOUND


def test_a_bulk_says_how_many_and_asks_before_it_does_anything(typed: Type, tmp_path: Path) -> None:
    data, flow, pins = tmp_path / "data", tmp_path / "flow.yml", tmp_path / "pins.yml"
    flow.write_text(document([start("q"), code("c"), end(out="c.result")], edges("start > c > end")))
    pins.write_text("nodes: {c: {fail: 'no'}}")
    for _ in range(2):
        assert typed("run", flow, "-i", "q=x", "--pin", pins, "--data", data, "--json").code == 1
    assert typed("rebuild", "--yes", "--data", data).code == 0
    nobody = typed("bulk", "retry", "--data", data)
    assert (nobody.code, "--yes" in nobody.err) == (USAGE, True)
    assert len(typed("runs", "--data", data, "--json").lines[0]) == 2
    done = typed("bulk", "retry", "--since", "1h", "--data", data, "--yes", "--json").lines[0]
    assert (done["count"], done["done"], len(done["changed"]), done["already"]) == (2, True, 2, [])
    again = typed("bulk", "retry", "--since", "1h", "--data", data, "--yes")
    assert again.code == 0
    for one in done["changed"]:
        assert f"run {one['id']}: an earlier bulk retry made {one['retried_as']} of it" in again.err
        assert one["id"] not in again.out
    assert typed("bulk", "stop", "--since", "2020-01-01T00:00:00Z", "--status", "paused", "--data", data).code == 0
    assert typed("bulk", "retry", "--status", "paused", "--data", data).code == USAGE


def test_another_secret_key_is_told_at_once_and_named_by_doctor(
    typed: Type, ran: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run_id = ran
    assert typed("doctor", "--data", data).code == 0
    monkeypatch.setenv("FLOWLEDGER_SECRET_KEY", "another")
    refused = typed("run", tmp_path / "flow.yml", "--data", data)
    assert refused.code == UNREACHABLE
    assert "FLOWLEDGER_SECRET_KEY" in refused.err
    assert refused.err.count("cannot open") == 1
    checks = {one["check"]: one for one in typed("doctor", "--data", data, "--json").lines[0]}
    assert checks["secrets"]["ok"] is False
    assert typed("show", run_id, "--data", data).code == 0
