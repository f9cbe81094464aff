"""A log in one file: everything comes along, into a folder or into Kafka, and a broken import says what to do."""

import json
import random
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from flowledger import Client
from flowledger.cli import run
from flowledger.dev import start_embedded
from libs.events import transfer as transfers
from libs.events.archive import make_archive, open_archive
from libs.events.blobs import FolderBlobs, LogBlobs
from libs.events.files import Files
from libs.events.log import Log, LogError
from libs.events.registry import read_registry
from libs.events.sqlite import SqliteLog
from libs.settings import Settings
from libs.tables import FILLED, open_engine, positions, sqlite_url
from services.projector.rebuild import rebuild
from tests import servers
from tests.integration.test_transfer import CHAT, FLOW, LARGE, histories

CONTENT = bytes(range(256)) * 512
PLACES = {"first_offset", "last_offset", "epoch", "offset"}
"""Columns that say where records stand."""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """(data folder, id of a run in mid-work, id of an uploaded file)."""
    folder = tmp_path_factory.mktemp("source")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    with Client(instance.url, instance.admin_token) as client:
        made = client.import_document(FLOW)
        app = made["app_id"]
        client.start(app, {"q": "1"}, pins={"nodes": {"c": {"outputs": {"result": LARGE}}}}).result(timeout_s=60)
        client.start(client.import_document(CHAT)["app_id"], query="hello").result(timeout_s=60)
        uploaded = httpx.post(
            f"{instance.url}/v1/files/upload",
            headers={"Authorization": f"Bearer {made['api_key']}"},
            files={"file": ("a.bin", CONTENT, "application/octet-stream")},
            data={"user": "ann"},
            trust_env=False,
        )
        assert uploaded.status_code == 201, uploaded.text
        held = client.start(app, {"q": "3"}, pins={"nodes": {"c": {"outputs": {"result": "late"}, "delay_s": 6}}})
        next(event for event in held.events() if event.event == "node_started" and event.data["node_id"] == "c")
    instance.stop()
    return folder, held.id, uploaded.json()["id"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("FLOWLEDGER_URL", "FLOWLEDGER_KAFKA", "FLOWLEDGER_DATA", "FLOWLEDGER_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)

    def typed(*arguments: object) -> tuple[int, str, str]:
        exit_code = run([str(each) for each in arguments])
        found = capsys.readouterr()
        return exit_code, found.out, found.err

    return typed


def exported(cli: Cli, folder: Path, into: Path) -> Path:
    file = into / "backup.ledger"
    exit_code, _, err = cli("log", "export", "-o", file, "--data", folder)
    assert (exit_code, "All of it is there: 3 runs in " in err) == (0, True), err
    assert [each.name for each in into.iterdir()] == ["backup.ledger"]
    return file


def found_file(log: Log, blobs: Any, file_id: str) -> bytes:
    files = Files(log, blobs, now_us=lambda: time.time_ns() // 1000, random_bits=random.getrandbits)
    file = files.find(file_id)
    assert file is not None
    return files.content(file)


def rows_of(log: Log, at: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of tables made anew, without places in the log."""
    engine = open_engine(sqlite_url(at))
    rebuild(log, engine)
    with engine.begin() as connection:
        found = {
            table.name: list(connection.execute(select(table).order_by(*table.primary_key)).mappings())
            for table in FILLED
            if table is not positions
        }
    engine.dispose()
    return {name: [{k: v for k, v in row.items() if k not in PLACES} for row in rows] for name, rows in found.items()}


def test_everything_comes_along_into_a_new_folder_and_goes_on_there(
    source: tuple[Path, str, str], cli: Cli, tmp_path: Path
) -> None:
    folder, held, file_id = source
    (tmp_path / "out").mkdir()
    file, there = exported(cli, folder, tmp_path / "out"), tmp_path / "there"
    exit_code, out, err = cli("log", "import", file, "--yes", "--json", "--data", there)
    assert exit_code == 0, err
    assert (json.loads(out)["runs"], json.loads(out)["files"]) == (3, 1)
    assert (json.loads(out)["there"]["runs"], json.loads(out)["there"]["files"]) == (3, 1)
    assert "will need another secret key" in err
    with closing(SqliteLog(folder, read_only=True)) as old, closing(SqliteLog(there, read_only=True)) as new:
        before = histories(old, FolderBlobs(folder / "blobs"))
        assert histories(new, FolderBlobs(there / "blobs")) == before
        assert found_file(new, FolderBlobs(there / "blobs"), file_id) == CONTENT
        assert [app.app_id for app in read_registry(new).apps()] == [app.app_id for app in read_registry(old).apps()]
        rows = rows_of(old, tmp_path / "old.db")
        assert rows_of(new, tmp_path / "new.db") == rows
        assert len(rows["workflow_runs"]) == 3
    (there / "secret-key").write_bytes((folder / "secret-key").read_bytes())
    exit_code, out, err = cli("watch", held, "--json", "--data", there)
    assert exit_code == 0, err
    assert cli("verify", "--data", there)[0] == 0
    exit_code, _, err = cli("log", "import", file, "--yes", "--data", there)
    assert (exit_code, "holds a log already" in err) == (2, True)
    exit_code, _, err = cli("log", "export", "-o", file, "--data", folder)
    assert (exit_code, "is there already" in err) == (2, True)


def test_an_import_that_broke_off_keeps_the_folder_shut_and_goes_on(
    source: tuple[Path, str, str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, file_id = source
    (tmp_path / "out").mkdir()
    file, there = exported(cli, folder, tmp_path / "out"), tmp_path / "there"

    def broken(*_: Any) -> None:
        raise LogError("the disk is gone")

    for step in ("_definitions", "_files"):
        with monkeypatch.context() as patch:
            patch.setattr(transfers, step, broken)
            exit_code, _, err = cli("log", "import", file, "--yes", "--data", there)
        assert (exit_code, "the disk is gone" in err) == (7, True)
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "_BATCH", 3)
        patch.setattr(transfers._Partition, "_release", broken)  # noqa: SLF001  # where it dies
        assert cli("log", "import", file, "--yes", "--data", there)[0] == 7
    exit_code, _, err = cli("runs", "--data", there)
    assert (exit_code, "an import has not ended" in err) == (7, True)
    for partitions in (1, 2):
        other = tmp_path / f"{partitions}.ledger"
        make_archive(other, partitions).close()
        exit_code, _, err = cli("log", "import", other, "--yes", "--data", there)
        assert (exit_code, f"or delete {there / 'importing'} to begin anew" in err) == (7, True), err
        assert "another log" in err
    exit_code, out, _ = cli("log", "import", file, "--yes", "--json", "--data", there)
    assert (exit_code, json.loads(out)["skipped"] > 0) == (0, True)
    assert not (there / "importing").exists()
    with closing(SqliteLog(folder, read_only=True)) as old, closing(SqliteLog(there, read_only=True)) as new:
        assert histories(new, FolderBlobs(there / "blobs")) == histories(old, FolderBlobs(folder / "blobs"))
        assert found_file(new, FolderBlobs(there / "blobs"), file_id) == CONTENT


def _of_something_else(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE notes (text)")


def _without_a_log(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE meta (name, value)")


def _cut(path: Path) -> None:
    make_archive(path, 1).close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("hello"), "is no exported log. Make one: flowledger log export -o FILE"),
        (lambda path: path.write_text(""), "is no exported log."),
        (_of_something_else, "is no exported log."),
        (_without_a_log, "is no exported log."),
        (_cut, "is damaged ("),
    ],
)
def test_what_is_no_log_is_named(cli: Cli, tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "nonsense")
    exit_code, _, err = cli("log", "import", tmp_path / "nonsense", "--yes", "--data", tmp_path / "there")
    assert (exit_code, f"log import: {tmp_path / 'nonsense'} {said}" in err) == (4, True), err
    assert not (tmp_path / "there" / "log.db").exists()


def test_an_export_that_is_damaged_further_in_is_no_document_either(
    source: tuple[Path, str, str], cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "damaged.ledger"
    assert cli("log", "export", "-o", file, "--data", source[0])[0] == 0
    raw = bytearray(file.read_bytes())
    for page in range(4, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    file.write_bytes(raw)
    exit_code, _, err = cli("log", "import", file, "--yes", "--data", tmp_path / "there")
    assert (exit_code, "malformed" in err) == (4, True), err


@pytest.fixture
def prefixed(kafka_server: servers.Kafka, kafka_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLEDGER_KAFKA", kafka_server.bootstrap)
    monkeypatch.setenv("FLOWLEDGER_TOPIC_PREFIX", kafka_prefix)
    monkeypatch.setenv("FLOWLEDGER_PARTITIONS", "4")


@pytest.mark.kafka
def test_from_a_folder_through_kafka_into_another_folder(
    source: tuple[Path, str, str],
    cli: Cli,
    prefixed: None,
    kafka_server: servers.Kafka,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, file_id = source
    assert cli("log", "export", "--yes", "--data", folder)[0] == 0
    file, there = tmp_path / "kafka.ledger", tmp_path / "there"
    assert cli("log", "export", "-o", file)[0] == 0
    monkeypatch.delenv("FLOWLEDGER_KAFKA")
    exit_code, _, err = cli("log", "import", file, "--yes", "--data", there)
    assert exit_code == 0, err
    with closing(SqliteLog(folder, read_only=True)) as old, closing(SqliteLog(there, read_only=True)) as new:
        assert new.partitions == 4
        assert histories(new, FolderBlobs(there / "blobs")) == histories(old, FolderBlobs(folder / "blobs"))
        assert found_file(new, FolderBlobs(there / "blobs"), file_id) == CONTENT
    with closing(open_archive(file)) as archive:
        assert found_file(archive, LogBlobs(archive), file_id) == CONTENT
    (there / "secret-key").write_bytes((folder / "secret-key").read_bytes())
    with servers.fresh_topics(kafka_server.bootstrap) as prefix, monkeypatch.context() as other:
        other.setenv("FLOWLEDGER_KAFKA", kafka_server.bootstrap)
        other.setenv("FLOWLEDGER_TOPIC_PREFIX", prefix)
        for skipped in (False, True):
            exit_code, out, err = cli("log", "import", file, "--yes", "--json", "--data", tmp_path / "none")
            assert (exit_code, json.loads(out)["skipped"] > 0) == (0, skipped), err
    exit_code, _, err = cli("run", "examples/hello.yml", "-i", "name=Ada", "--offline", "--data", there)
    assert exit_code == 0, err


def test_what_nothing_refers_to_stays_behind_and_doctor_says_what_is_there(
    source: tuple[Path, str, str], cli: Cli, tmp_path: Path
) -> None:
    folder, there = source[0], tmp_path / "there"
    with closing(FolderBlobs(folder / "blobs")) as blobs:
        orphan: Any = blobs.put("", b"nobody names me" * 10_000).result(10)
    name = orphan["$blob"]["id"]
    (tmp_path / "out").mkdir()
    file = exported(cli, folder, tmp_path / "out")
    assert cli("log", "import", file, "--yes", "--data", there)[0] == 0
    assert (folder / "blobs" / name[:2] / name).is_file()
    assert not (there / "blobs" / name[:2] / name).exists()
    seen = {}
    for each in (folder, there):
        storage = next(
            one for one in json.loads(cli("doctor", "--json", "--data", each)[1]) if one["check"] == "storage"
        )
        assert storage["ok"]
        found = re.search(r"log [\d.]+ [kM]B, .*large values and files ([\d.]+) kB; .* free", storage["seen"])
        assert found, storage
        seen[each] = float(found[1])
    assert seen[folder] - seen[there] >= 150
