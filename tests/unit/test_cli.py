"""The command line without a server: parsing, help, exit codes, what it loads."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import httpx
import pytest

from flowledger.cli import VERBS, cli, run
from flowledger.cli.exits import BY_STATUS, EXIT_CODES, NOT_FOUND, TIMED_OUT, UNREACHABLE, USAGE, Problem
from flowledger.cli.follow import Frame, deadline_of, follow, frames, return_to
from flowledger.cli.output import data, problem_line, seconds, table
from flowledger.cli.reading import since_instant
from flowledger.cli.running import declared_types, parse_value, read_inputs
from flowledger.cli.target import ConnectionLost, Server
from flowledger.lines import Lines
from libs.events.log import LogError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEAVY = ("fastapi", "uvicorn", "sqlalchemy", "confluent_kafka", "httpx", "pydantic", "yaml", "rich", "jinja2")


@pytest.mark.parametrize(
    ("text", "declared", "value"),
    [
        ("Ada", None, "Ada"),
        ("3", None, 3),
        ("3", "number", 3),
        ("3", "text-input", "3"),
        ("3", "paragraph", "3"),
        ("true", "select", "true"),
        ('{"a": [1]}', None, {"a": [1]}),
        ("{broken", None, "{broken"),
        ("", None, ""),
    ],
)
def test_values_are_json_unless_the_input_is_declared_text(text: str, declared: str | None, value: object) -> None:
    assert parse_value(text, declared) == value


def test_an_input_can_come_from_a_file_and_wins_over_the_inputs_file(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("12\n")
    (tmp_path / "inputs.yml").write_text("report: old\nlimit: 5\n")
    read = read_inputs([f"report=@{tmp_path}/report.txt"], tmp_path / "inputs.yml", {"report": "paragraph"})
    assert read == {"report": "12\n", "limit": 5}


def test_files_are_given_by_url_and_a_list_input_gets_a_list() -> None:
    urls = ["scan=https://x.org/a.PDF?v=1", "pictures=https://x.org/b.png", "pictures=http://x.org/c"]
    read = read_inputs([], None, {"scan": "file", "pictures": "file-list"}, urls)
    by_url = {"transfer_method": "remote_url"}
    assert read == {
        "scan": by_url | {"type": "document", "url": "https://x.org/a.PDF?v=1"},
        "pictures": [
            by_url | {"type": "image", "url": "https://x.org/b.png"},
            by_url | {"type": "custom", "url": "http://x.org/c"},
        ],
    }


@pytest.mark.parametrize("pair", ["scan", "scan=./local.pdf", "=https://x.org/a.pdf"])
def test_a_file_that_is_neither_here_nor_a_url_is_wrong_usage(pair: str) -> None:
    with pytest.raises(Problem, match="K=URL") as raised:
        read_inputs([], None, {"scan": "file"}, [pair])
    assert raised.value.exit_code == USAGE


@pytest.mark.parametrize("pair", ["name", "=x", "name=@/nowhere/at/all"])
def test_an_input_that_cannot_be_read_is_wrong_usage(pair: str) -> None:
    with pytest.raises(Problem) as raised:
        read_inputs([pair], None, {})
    assert raised.value.exit_code == USAGE


def test_for_a_node_alone_inputs_keep_their_types_and_values_of_other_nodes_are_not_complained_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    types = {"q": "paragraph", "scan": "file"}
    files = ["scan=https://files.example/a.png", "start.scan=https://files.example/b.png"]
    read = read_inputs(["q=9", "count.n=9"], None, types, files, of_a_node=True)
    assert (read["q"], read["count.n"]) == ("9", 9)
    assert read["scan"]["type"] == read["start.scan"]["type"] == "image"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("at", "line"), [("version", "warning at version: is odd. Mend it"), ("", "warning: is odd. Mend it")]
)
def test_a_problem_of_a_whole_document_names_no_place(at: str, line: str) -> None:
    assert problem_line({"at": at, "problem": "is odd", "hint": "Mend it", "severity": "warning"}) == line


def test_a_binary_value_is_wrong_usage_and_says_how_to_give_a_file(tmp_path: Path) -> None:
    scan = tmp_path / "scan.pdf"
    scan.write_bytes(b"%PDF-1.4\n\xad\xff")
    with pytest.raises(Problem, match=f"not text in UTF-8. Give it as a file: --file scan={scan}") as raised:
        read_inputs([f"scan=@{scan}"], None, {"scan": "file"})
    assert raised.value.exit_code == USAGE


def test_declared_types_come_from_the_start_node() -> None:
    assert declared_types((EXAMPLES / "hello.yml").read_text()) == {"name": "text-input", "tone": "select"}
    assert declared_types("just text") == {}
    assert declared_types("a: [") == {}


def test_frames_are_read_with_their_ids_and_pings_are_left_out() -> None:
    lines = [
        "event: ping", "", ": comment", "id: 3", 'data: {"event": "node_started"}', "",
        "id: 4.10", 'data: {"event":', 'data:  "text_chunk"}', "", "data: {\"event\": \"cut",
    ]  # fmt: skip
    assert list(frames(lines)) == [Frame("3", {"event": "node_started"}), Frame("4.10", {"event": "text_chunk"})]


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("10m", "2026-05-02T08:50:00.000Z"),
        ("2h", "2026-05-02T07:00:00.000Z"),
        ("3d", "2026-04-29T09:00:00.000Z"),
        ("2026-05-01T00:00:00+02:00", "2026-04-30T22:00:00.000Z"),
    ],
)
def test_since_takes_spans_and_instants(text: str, instant: str) -> None:
    assert since_instant(text, datetime(2026, 5, 2, 9, tzinfo=UTC)) == instant


def test_since_that_is_neither_is_wrong_usage() -> None:
    with pytest.raises(Problem, match="expected 10m"):
        since_instant("yesterday", datetime(2026, 5, 2, tzinfo=UTC))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_end_as_those_of_server_sent_events_wherever_they_are_cut(size: int) -> None:
    wire = "data: é\u2028\u2029\x85\x0b\n\nid: 1\r\n\r\n: c\rx\r\ry\nrest".encode()
    lines = Lines()
    read = [line for at in range(0, len(wire), size) for line in lines.feed(wire[at : at + size])]
    assert read == ["data: é\u2028\u2029\x85\x0b", "", "id: 1", "", ": c", "x", "", "y"]


@pytest.mark.parametrize("since", ["99999999999d", "0001-01-01T00:00:00+14:00"])
def test_since_beyond_the_calendar_is_wrong_usage(since: str) -> None:
    with pytest.raises(Problem, match="expected 10m") as raised:
        since_instant(since, datetime(2026, 5, 2, tzinfo=UTC))
    assert raised.value.exit_code == USAGE


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "soon"])
@pytest.mark.parametrize("verb", ["run", "watch", "resume"])
def test_a_timeout_is_a_positive_number_of_seconds(verb: str, timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "0193", "--timeout", timeout]) == USAGE
    assert "--timeout" in capsys.readouterr().err


def test_a_history_from_behind_its_end_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", "0193", "--from", "9", "--to", "3"]) == USAGE
    assert "--from 9 --to 3" in capsys.readouterr().err


def test_durations_are_short() -> None:
    assert [seconds(value) for value in (None, 0.123, 75.0, 7322.0)] == ["", "0.12 s", "1 min 15 s", "2 h 2 min"]


def test_a_table_without_rows_says_what_would_fill_it(capsys: pytest.CaptureFixture[str]) -> None:
    table(["a"], [], "Nothing yet. Do this.")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "Nothing yet. Do this.\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_and_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert EXIT_CODES in text
    assert "Examples:" in text


def test_verbs_and_modules_agree() -> None:
    with click.Context(cli) as context:
        for verb in VERBS:
            found = cli.get_command(context, verb)
            assert found is not None
            assert found.name == verb


def test_an_unknown_verb_is_wrong_usage_and_names_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validat"]) == USAGE
    assert "validate" in capsys.readouterr().err


def test_statuses_have_their_exit_codes() -> None:
    assert BY_STATUS == {"succeeded": 0, "partial-succeeded": 0, "failed": 1, "stopped": 5, "paused": 8}
    assert (NOT_FOUND, UNREACHABLE) == (3, 7)


def test_kafka_without_a_server_asks_for_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWLEDGER_KAFKA", "127.0.0.1:1")
    monkeypatch.delenv("FLOWLEDGER_URL", raising=False)
    assert run(["runs"]) == UNREACHABLE
    captured = capsys.readouterr()
    assert "FLOWLEDGER_URL" in captured.err
    assert captured.out == ""


def test_rebuild_asks_nobody_when_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLOWLEDGER_KAFKA", raising=False)
    assert run(["rebuild", "--data", str(tmp_path)]) == USAGE
    assert "--yes" in capsys.readouterr().err


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import json, sys; from flowledger.cli import run; run(['--help']); run(['run', '--help']);"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == []


def _answers(*script: httpx.Response | Exception) -> Callable[[], httpx.Response]:
    """Each call takes the next of `script`."""
    left = list(script)

    def ask() -> httpx.Response:
        taken = left.pop(0)
        if isinstance(taken, Exception):
            raise taken
        return taken

    return ask


def test_a_request_that_may_be_repeated_goes_to_the_next_server_of_the_folder() -> None:
    found: list[Server] = []
    there = Server("http://127.0.0.1:9", "t", again=found.append)
    reset = httpx.ReadError("Connection reset by peer")
    answer = there.reached(_answers(reset, httpx.ConnectError("refused"), httpx.Response(200)), repeatable=True)
    assert (answer.status_code, len(found)) == (200, 2)


def test_a_request_that_may_have_been_done_is_not_repeated() -> None:
    found: list[Server] = []
    there = Server("http://127.0.0.1:9", "t", again=found.append)
    with pytest.raises(ConnectionLost, match="reset by peer"):
        there.reached(_answers(httpx.ReadError("Connection reset by peer"), httpx.Response(200)), repeatable=False)
    assert not found
    assert there.reached(_answers(httpx.ConnectError("refused"), httpx.Response(200)), repeatable=False).is_success


def test_a_server_at_a_fixed_address_is_asked_once() -> None:
    there = Server("http://127.0.0.1:9", "t")
    with pytest.raises(Problem, match="Is the server running"):
        there.reached(_answers(httpx.ReadError("reset"), httpx.Response(200)), repeatable=True)


@pytest.mark.parametrize("error", [httpx.ConnectTimeout("slow"), httpx.PoolTimeout("busy")])
def test_a_request_that_never_left_is_asked_again_whatever_it_does(error: httpx.TransportError) -> None:
    found: list[Server] = []
    there = Server("http://127.0.0.1:9", "t", again=found.append)
    assert there.reached(_answers(error, httpx.Response(200)), repeatable=False).is_success
    assert len(found) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "nonsense",
        "ftp://example.org",
        "http://",
        "127.0.0.1:5001",
        "http://.svc",
        "http://a..b",
        "http://xn--",
        "http://h:99999",
    ],
)
def test_an_address_that_is_none_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apps", "--url", url]) == USAGE
    assert capsys.readouterr().err.startswith(f"{url}: no address of a server. Give one as http://")


def test_a_server_that_ends_again_and_again_is_waited_for_between_two_tries() -> None:
    found: list[Server] = []

    def again(server: Server) -> None:
        found.append(server)
        server.point_at(server.url, "t", embedded=False)

    there = Server("http://127.0.0.1:9", "t", again=again)
    with pytest.raises(Problem, match="flowledger watch") as raised:
        list(follow(there, "r", deadline=deadline_of(0.7)))
    assert raised.value.exit_code == TIMED_OUT
    assert 1 <= len(found) <= 3


@pytest.mark.parametrize(("embedded", "said"), [(False, "goes on"), (True, "rests until its folder is opened again")])
def test_the_way_back_to_a_run_names_where_it_is(embedded: bool, said: str) -> None:
    there = Server("http://127.0.0.1:9", "t", embedded=embedded, options=" --data other")
    assert said in return_to(there, "r")
    assert return_to(there, "r").endswith("flowledger watch r --data other")


@pytest.mark.parametrize("words", [["rebuild", "--yes"], ["verify"]])
def test_the_log_is_closed_when_the_tables_fail(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed: list[bool] = []

    class Log:
        def close(self) -> None:
            closed.append(True)

    def fail(*_: object) -> None:
        raise LogError("the disk is gone")

    monkeypatch.setattr("flowledger.cli.upkeep.open_log", lambda _: Log())
    monkeypatch.setattr(f"services.projector.{words[0]}.{words[0]}", fail)
    assert run([*words, "--data", str(tmp_path)]) == UNREACHABLE
    assert closed == [True]


@pytest.mark.parametrize("value", ["é 🎉", "a\u2028b\u2029c\x85d", "half \ud800 a pair", {"k\udfff": ["x"]}])
def test_json_on_stdout_is_what_was_meant_whatever_is_in_it(
    value: object, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    data(value)
    (line,) = capsysbinary.readouterr().out.decode("utf-8").splitlines()
    assert json.loads(line) == value
