"""Starts that cannot succeed say why in a sentence and end with the exit code of it; `doctor` names the same."""

import json
import os
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowledger.cli import run as command_line
from flowledger.cli.exits import INVALID, RUN_FAILED, UNREACHABLE, USAGE
from flowledger.dev import start_embedded
from libs.events.kafka import KafkaLog
from libs.events.log import LogInUse
from libs.events.registry import RegistryTail
from libs.events.sqlite import SqliteLog
from libs.serving import HealthServer, PortTaken, in_url, listen
from libs.settings import Settings
from libs.tables import TablesError, open_engine

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hello.yml"


@dataclass
class Said:
    code: int
    out: str
    err: str


Type = Callable[..., Said]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Type:
    for name in ("FLOWLEDGER_URL", "FLOWLEDGER_KAFKA", "FLOWLEDGER_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLOWLEDGER_DATA", str(tmp_path / "data"))

    def type_(*words: object, **settings: str) -> Said:
        for name, value in settings.items():
            monkeypatch.setenv(f"FLOWLEDGER_{name}", value)
        capsys.readouterr()
        return Said(command_line([str(word) for word in words]), *capsys.readouterr())

    return type_


def checked(typed: Type, name: str, **settings: str) -> dict[str, Any]:
    """What `doctor` says of one thing."""
    (found,) = [each for each in json.loads(typed("doctor", "--json", **settings).out) if each["check"] == name]
    return dict(found)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as somebody:
        yield somebody.getsockname()[1]


@pytest.mark.parametrize(
    "url",
    [
        "flowledger",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:pw@h/d",
        "postgresql://u:pw@h:port/d",
        "postgresql+psycopg://h/d",
    ],
)
def test_a_database_url_that_cannot_be_used_is_named_without_its_password(typed: Type, url: str) -> None:
    with pytest.raises(TablesError):
        open_engine(url)
    for verb in (["rebuild", "--yes"], ["verify"]):
        said = typed(*verb, DATABASE_URL=url)
        assert (said.code, said.out) == (USAGE, "")
        assert said.err.startswith("FLOWLEDGER_DATABASE_URL: ")
        assert "pw" not in said.err


@pytest.mark.parametrize("url", ["flowledger", "mysql://u:pw@h/d"])
def test_the_embedded_mode_refuses_such_a_url_too(typed: Type, url: str) -> None:
    for verb in (["dev", "--port", "0"], ["runs"]):
        said = typed(*verb, DATABASE_URL=url)
        assert (said.code, said.out) == (USAGE, "")
        assert said.err.splitlines()[-1].startswith("FLOWLEDGER_DATABASE_URL: ")
        assert "pw" not in said.err


def test_every_verb_uses_the_database_of_the_settings(typed: Type, tmp_path: Path) -> None:
    file, url = tmp_path / "tables.db", f"sqlite:///{tmp_path}/tables.db"
    assert typed("run", EXAMPLE, "--offline", "--json", DATABASE_URL=url).code == 0
    assert file.exists()
    assert not (tmp_path / "data" / "tables.db").exists()
    assert len(json.loads(typed("runs", "--json").out)) == 1
    assert json.loads(typed("verify", "--json").out)["rows"] > 1
    for lost in ("projection_schema", "workflow_runs", None):
        if lost is None:
            file.unlink()
        else:
            with closing(sqlite3.connect(file, isolation_level=None)) as tables:
                tables.execute(f"DROP TABLE {lost}")
        assert typed("rebuild", "--yes").code == 0
        assert json.loads(typed("verify", "--json").out)["equal"]


def test_tables_of_another_log_are_left_alone(typed: Type, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tables.db"
    assert typed("run", EXAMPLE, "--offline", DATABASE_URL=url).code == 0
    assert len(json.loads(typed("runs", "--json").out)) == 1  # it waits for the tables
    refused = typed("apps", DATA=str(tmp_path / "other"))
    assert (refused.code, refused.out) == (USAGE, "")
    assert "tables are of events topic" in refused.err
    assert "Without this setting the tables are in the data folder" in refused.err
    database = checked(typed, "database")
    assert (database["ok"], "tables are of events topic" in database["seen"]) == (False, True)
    assert typed("verify", DATA=str(tmp_path / "data")).code == 0
    assert checked(typed, "database")["ok"]


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("no database at all, in more than 16 bytes"), Path.mkdir]
)
def test_a_file_that_can_be_no_database_is_named(typed: Type, tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "tables.db")
    for verb in (["dev", "--port", "0"], ["runs"]):
        said = typed(*verb, DATABASE_URL=f"sqlite:///{tmp_path}/tables.db")
        assert (said.code, said.out) == (USAGE, "")
        assert said.err.splitlines()[-1].startswith("FLOWLEDGER_DATABASE_URL: ")


def test_tables_of_something_else_are_neither_used_nor_dropped(typed: Type, tmp_path: Path) -> None:
    file = tmp_path / "tables.db"
    with closing(sqlite3.connect(file)) as theirs, theirs:
        theirs.execute("CREATE TABLE messages (id)")
        theirs.execute("INSERT INTO messages VALUES ('theirs')")
    for verb in (["runs"], ["dev", "--port", "0"], ["rebuild", "--yes"]):
        said = typed(*verb, DATABASE_URL=f"sqlite:///{file}")
        assert said.code in (USAGE, UNREACHABLE)
        assert "holds tables of something else (messages)" in said.err
        assert "flowledger rebuild" not in said.err
    database = checked(typed, "database")
    assert (database["ok"], "tables of something else" in database["seen"]) == (False, True)
    with closing(sqlite3.connect(file)) as theirs:
        assert theirs.execute("SELECT * FROM messages").fetchall() == [("theirs",)]


def test_with_kafka_set_dev_says_that_its_log_is_its_own_and_leaves_the_database_alone(
    typed: Type, tmp_path: Path
) -> None:
    (tmp_path / "bad.yml").write_text("kind: app\n")
    url = f"sqlite:///{tmp_path}/tables.db"
    said = typed("dev", tmp_path / "bad.yml", "--port", "0", KAFKA="127.0.0.1:1", DATABASE_URL=url)
    assert (said.code, said.out) == (INVALID, ""), "no ready line before its documents are there"
    assert f"FLOWLEDGER_KAFKA is set, but dev keeps its own log in {tmp_path}/data" in said.err
    assert not (tmp_path / "tables.db").exists()
    assert (tmp_path / "data" / "tables.db").exists()


def test_services_refuse_a_database_url_before_they_look_for_a_broker(typed: Type) -> None:
    for verb in ("api", "projector"):
        said = typed(verb, "--port", "0", KAFKA="127.0.0.1:1", DATABASE_URL="flowledger")
        assert said.code == USAGE
        assert "FLOWLEDGER_DATABASE_URL: not a database URL" in said.err


def test_an_api_whose_broker_leaves_at_its_start_says_that_it_could_not_start(
    typed: Type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(KafkaLog, "check_partitions", lambda _: None)
    monkeypatch.setattr(RegistryTail, "__init__", lambda *_: None)
    monkeypatch.setattr(RegistryTail, "close", lambda _: None)
    monkeypatch.setattr(RegistryTail, "document", None, raising=False)
    monkeypatch.setattr(RegistryTail, "annotations", None, raising=False)
    monkeypatch.setattr(KafkaLog, "topic_id", lambda *_: "t")
    said = typed("api", "--port", "0", KAFKA="127.0.0.1:1", DATABASE_URL=f"sqlite:///{tmp_path}/tables.db")
    assert (said.code, said.out) == (UNREACHABLE, "")
    assert "could not start" in said.err


def test_a_data_folder_that_cannot_be_one_is_named_at_once(typed: Type, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for verb in (["runs"], ["dev", "--port", "0"], ["apps", "--json"]):
        said = typed(*verb, DATA=str(tmp_path / "file"))
        assert (said.code, said.out) == (UNREACHABLE, "")
        assert said.err.startswith(f"cannot open {tmp_path}/file: cannot write in")


def test_a_folder_that_is_in_use_is_left_as_it_is(typed: Type, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with closing(SqliteLog(folder)):
        before = sorted(folder.iterdir())
        with pytest.raises(LogInUse):
            SqliteLog(folder)
        said = typed("dev", "--port", "0")
        assert said.code == UNREACHABLE
        assert "is in use by another process" in said.err
        assert sorted(folder.iterdir()) == before, "a token of its own would lock people out of the one that serves"


def test_a_port_that_is_taken_is_named(typed: Type, taken: int) -> None:
    with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{taken}"):
        HealthServer("127.0.0.1", taken, lambda: None, lambda: b"", "executor")
    said = typed("dev", "--port", taken)
    assert said.code == USAGE
    assert f"port {taken} is in use by" in said.err


def test_an_address_of_version_6_is_listened_on_and_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    with closing(listen("::1", 0, 1)) as listening:
        assert listening.getsockname()[0] == "::1"
    health = HealthServer("::1", 0, lambda: None, lambda: b"", "executor")
    try:
        answer = httpx.get(f"http://{in_url('::1')}:{health.port}/healthz", trust_env=False)
        assert answer.json() == {"status": "ok", "service": "executor"}
    finally:
        health.close()


def test_health_answers_head_as_get_without_the_body() -> None:
    health = HealthServer("127.0.0.1", 0, lambda: "it waits", lambda: b"", "executor")
    try:
        url = f"http://127.0.0.1:{health.port}/readyz"
        got, head = httpx.get(url, trust_env=False), httpx.head(url, trust_env=False)
        assert (got.status_code, got.json()["problem"]) == (503, "it waits")
        assert (head.status_code, head.content) == (503, b"")
        assert head.headers["Content-Length"] == got.headers["Content-Length"]
    finally:
        health.close()


def _checks(said: Said) -> dict[str, dict[str, Any]]:
    return {one["check"]: one for one in json.loads(said.out)}


def test_doctor_finds_nothing_on_a_machine_that_has_all_and_gives_no_hints(typed: Type) -> None:
    said = typed("doctor", "--json")
    checks = _checks(said)
    assert said.code == (0 if checks["sandbox"]["ok"] else RUN_FAILED)
    assert {"python", "data", "storage", "server", "kafka", "database", "models", "sandbox", "secrets"} == set(checks)
    assert all(one["hint"] == "" for one in checks.values() if one["ok"])
    assert "verbs open the data folder themselves" in checks["server"]["seen"]


def test_doctor_names_what_is_broken(typed: Type, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = typed("doctor", "--json", DATABASE_URL="flowledger", DATA=str(tmp_path / "file" / "data"))
    assert said.code == RUN_FAILED
    checks = _checks(said)
    assert {name for name in ("data", "database") if not checks[name]["ok"]} == {"data", "database"}
    assert "not a database URL" in checks["database"]["seen"]


def test_doctor_says_when_an_address_is_of_a_server_that_has_ended(typed: Type, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    address = {"url": "http://127.0.0.1:1", "instance_id": "x", "pid": 1}
    (tmp_path / "data" / "server.json").write_text(json.dumps(address))
    assert "has ended" in _checks(typed("doctor", "--json"))["server"]["seen"]


def test_doctor_with_kafka_asks_for_the_apis_address(typed: Type) -> None:
    said = typed("doctor", "--json", KAFKA="127.0.0.1:1", KAFKA_OPTIONS="no.such.option=1")
    checks = _checks(said)
    assert "FLOWLEDGER_URL" in checks["server"]["seen"]
    assert not checks["kafka"]["ok"]
    assert "FLOWLEDGER_KAFKA_OPTIONS" in checks["kafka"]["seen"]
    assert not checks["database"]["ok"]


def test_dev_answers_for_all_its_services(tmp_path: Path) -> None:
    instance = start_embedded(tmp_path / "data", "127.0.0.1", 0, Settings(admin_token="t", models="offline"))
    try:
        assert httpx.get(f"{instance.url}/readyz", trust_env=False).status_code == 200
        scraped = httpx.get(f"{instance.url}/metrics", trust_env=False).text
        names = {family.name for family in text_string_to_metric_families(scraped)}
        assert {
            "flowledger_api_requests",
            "flowledger_partitions_owned",
            "flowledger_runs_unfinished",
            "flowledger_projector_lag_records",
        } <= names
    finally:
        instance.stop()


FLOWLEDGER = [sys.executable, "-c", "from flowledger.cli import main; main()"]


@pytest.mark.parametrize(
    "spoil", ["UPDATE projection_schema SET version = 1", "DROP TABLE workflow_runs"], ids=["older", "dropped"]
)
def test_tables_of_another_release_are_filled_anew_by_themselves(typed: Type, tmp_path: Path, spoil: str) -> None:
    """Embedded, nobody else uses them."""
    hello = str(Path(__file__).parents[2] / "examples" / "hello.yml")
    assert typed("run", hello, "--offline", "--data", str(tmp_path)).code == 0
    with closing(sqlite3.connect(tmp_path / "tables.db", isolation_level=None)) as tables:
        tables.execute(spoil)
    again = typed("run", hello, "--offline", "--data", str(tmp_path))
    assert again.code == 0
    assert "flowledger rebuild" not in again.err
    listed = typed("runs", "--json", "--data", str(tmp_path))
    assert [run["status"] for run in json.loads(listed.out)] == ["succeeded"] * 2
    assert typed("verify", "--data", str(tmp_path)).code == 0


def test_doctor_names_a_secret_key_that_can_be_guessed(typed: Type) -> None:
    assert "can be guessed: it has 1 characters" in checked(typed, "secrets", SECRET_KEY="x")["seen"]
    assert "guessed" not in checked(typed, "secrets", SECRET_KEY="k" * 32)["seen"]


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        said = subprocess.run(
            [*FLOWLEDGER, "run", "--help"], stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(writing)
    assert (said.returncode, said.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_finds_no_room_is_said_without_a_traceback(tmp_path: Path, buffered: bool) -> None:
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    doctor = [*FLOWLEDGER, "doctor", "--json", "--data", str(tmp_path)]
    with open("/dev/full", "w") as full:
        run = partial(subprocess.run, env=environment, timeout=60, check=False, text=True)
        said = run(doctor, stdout=full, stderr=subprocess.PIPE)
        nothing = run([*FLOWLEDGER, "doctor", "--no-such-option"], stdout=full, stderr=full)
    assert (said.returncode, said.stderr) == (
        USAGE,
        "cannot write: No space left on device. Make room, or write elsewhere\n",
    )
    assert nothing.returncode == USAGE


def test_words_that_are_no_text_are_wrong_usage(typed: Type) -> None:
    said = typed("run", EXAMPLE, "-i", "name=\udcff")
    assert (said.code, said.out) == (USAGE, "")
    assert said.err.startswith("argument 4: not UTF-8.")


def test_a_damaged_file_of_tables_is_made_anew_by_whatever_opens_the_folder(typed: Type, tmp_path: Path) -> None:
    assert typed("run", EXAMPLE, "--offline").code == 0
    for verb in (["runs"], ["rebuild", "--yes"]):
        (tmp_path / "data" / "tables.db").write_text("no database at all, and more than a header of one")
        for suffix in ("-wal", "-shm"):
            (tmp_path / "data" / f"tables.db{suffix}").unlink(missing_ok=True)
        assert typed(*verb).code == 0
        assert json.loads(typed("verify", "--json").out)["equal"]
    assert len(json.loads(typed("runs", "--json").out)) == 1


def test_a_data_folder_is_for_its_owner_alone(typed: Type, tmp_path: Path) -> None:
    assert typed("apps").code == 0
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_verb_works_without_standard_streams(tmp_path: Path) -> None:
    verb = shlex.join([*FLOWLEDGER, "run", str(EXAMPLE), "--offline", "--data", str(tmp_path / "data")])
    assert subprocess.run(["sh", "-c", f"{verb} <&- >&- 2>&-"], timeout=60, check=False).returncode == 0
