"""Files are found by their id alone, over every log; their bytes lie where the blobs are."""

import json
import random
from contextlib import closing
from pathlib import Path

import pytest

from libs.events.blobs import Blobs, FolderBlobs, LogBlobs
from libs.events.files import Files, extension_of, move_in, moved_files
from libs.events.ids import created_at_us, new_run_id, partition_of
from libs.events.log import Entry, Log, Topic
from tests.contract.conftest import PARTITIONS

PATIENCE_S = 10
CONTENT = bytes(range(256)) * 4096


def files_of(log: Log, blobs: Blobs | None = None) -> Files:
    import time

    return Files(
        log,
        blobs or LogBlobs(log),
        now_us=lambda: time.time_ns() // 1000,
        random_bits=random.SystemRandom().getrandbits,
    )


def test_what_one_process_stores_another_finds_by_its_id(log: Log) -> None:
    made = files_of(log).store(CONTENT, app_id="a", owner="u", name="Q3 Report.PDF", mime_type="application/pdf")
    others = files_of(log)
    found = others.find(made.file_id)
    assert found == made
    assert (made.extension, made.size) == ("pdf", len(CONTENT))
    assert others.content(made) == CONTENT


def test_a_file_lies_behind_and_before_records_of_others(log: Log) -> None:
    files = files_of(log)
    made = [
        files.store(b"%d" % number, app_id="a", owner="u", name=f"{number}.txt", mime_type="text/plain")
        for number in range(20)
    ]
    for partition in range(PARTITIONS):
        log.send(Topic.BLOBS, partition, Entry(b"k", b"v")).result(PATIENCE_S)
    others = files_of(log)
    assert [others.content(others.find(one.file_id) or one) for one in reversed(made)] == [
        b"%d" % number for number in reversed(range(20))
    ]


def test_a_file_that_a_run_made_lies_in_the_partition_of_the_run(log: Log) -> None:
    run_id = new_run_id(3, 1_767_000_000_000_000, 7)
    made = files_of(log).store(b"x", app_id="a", owner="", name="a.png", mime_type="image/png", run_id=run_id)
    assert partition_of(made.file_id) == 3
    assert files_of(log).find(made.file_id) == made


def test_an_id_that_names_no_file_is_not_found(log: Log) -> None:
    files = files_of(log)
    made = files.store(b"x", app_id="a", owner="u", name="a", mime_type="text/plain")
    partition, at_us = partition_of(made.file_id), created_at_us(made.file_id)
    for unknown in (
        "nonsense",
        "00000000-0000-4000-8000-000000000009",
        new_run_id(partition, at_us, 1),
        new_run_id(partition, at_us + 3600 * 10**6, 1),
        new_run_id(partition, 0, 1),
        new_run_id(PARTITIONS, at_us, 1),
    ):
        assert files_of(log).find(unknown) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"files-2", b"\xff"),
        (b"files-2", b""),
        (b"files-2", b"[" * 100_000),
        (b"files-2", b"[]"),
        (b"files-2", b'"topic_id"'),
        (b"files-2", b'{"topic_id": "@"}'),
        (b"files-2", b'{"topic_id": "@", "first": null, "end": 1}'),
        (b"files-2", b'{"topic_id": "@", "ranges": [[1]]}'),
        (b"files-2", b'{"topic_id": "@", "ranges": 1}'),
        (b"files-2", b'{"topic_id": "@", "ranges": [], "copied_to": "?"}'),
        (b"files-\xd9", b'{"topic_id": "@", "first": 0, "end": 1}'),
    ],
)
def test_a_foreign_record_of_moved_files_hides_none_of_ours(log: Log, key: bytes, value: bytes) -> None:
    made = files_of(log).store(b"x", app_id="a", owner="u", name="a.txt", mime_type="text/plain")
    moved = made.model_copy(update={"file_id": new_run_id(2, 1_000_000, 7)})
    move_in(log, 2, [moved])
    named = value.replace(b"@", log.topic_id(Topic.BLOBS).encode())
    log.send(Topic.INDEX, 0, Entry(key, named)).result(PATIENCE_S)
    found = files_of(log).find(moved.file_id)
    assert found == moved


def test_a_process_that_looked_before_finds_files_that_were_moved_in_since(log: Log) -> None:
    made = files_of(log).store(b"x", app_id="a", owner="u", name="a.txt", mime_type="text/plain")
    first, second = (made.model_copy(update={"file_id": new_run_id(2, 1_000_000, n)}) for n in (7, 8))
    looked = files_of(log)
    assert looked.find(first.file_id) is None
    move_in(log, 2, [first])
    assert (looked.find(first.file_id), looked.find(second.file_id)) == (first, None)
    move_in(log, 2, [second], moved_files(log)[2])
    assert (looked.find(second.file_id), files_of(log).find(first.file_id)) == (second, first)


def test_a_moved_file_that_cannot_be_read_hides_no_other(log: Log) -> None:
    made = files_of(log).store(b"x", app_id="a", owner="u", name="a.txt", mime_type="text/plain")
    moved = made.model_copy(update={"file_id": new_run_id(2, 1_000_000, 7)})
    first = log.send(Topic.BLOBS, 2, Entry(b"other", b"?", [("file", b"other")])).result(PATIENCE_S)
    move_in(log, 2, [moved])
    place = {"first": first, "end": log.bounds(Topic.BLOBS, 2)[1], "topic_id": log.topic_id(Topic.BLOBS)}
    log.send(Topic.INDEX, 0, Entry(b"files-2", json.dumps(place).encode())).result(PATIENCE_S)
    assert files_of(log).find(moved.file_id) == moved


def test_bytes_in_a_folder_and_what_is_known_of_them_in_the_log(log: Log, tmp_path: Path) -> None:
    with closing(FolderBlobs(tmp_path / "blobs")) as blobs:
        made = files_of(log, blobs).store(b"data", app_id="a", owner="u", name="a.txt", mime_type="text/plain")
        assert files_of(log, blobs).content(made) == b"data"


@pytest.mark.parametrize(
    ("name", "extension"), [("a.TXT", "txt"), ("a.tar.gz", "gz"), ("a", ""), (".hidden", ""), ("a.", "")]
)
def test_the_extension_of_a_name(name: str, extension: str) -> None:
    assert extension_of(name) == extension
