"""What `libs.events.blobs` promises, for the folder and for the blobs topic of every log."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from libs.events.blobs import PIECE_BYTES, BlobError, BlobRef, Blobs, FolderBlobs, LogBlobs, is_ref, make_ref
from libs.events.ids import new_run_id
from libs.events.log import Entry, Log, LogError, Topic
from libs.events.s3 import Bucket, S3Blobs, signed
from tests.s3_server import BucketServer, bucket_server

PATIENCE_S = 30.0
RUN = new_run_id(2, 1_762_000_000_000_000, 7)
LARGE = bytes(range(256)) * (5 * PIECE_BYTES // 512) + b"tail"


class Suite:
    """The promises; a sub-class gives the `blobs` of one adapter."""

    @pytest.mark.parametrize("data", [b"", b"x", b"\x00\xff" * 1000, LARGE[:PIECE_BYTES], LARGE], ids=len)
    def test_what_was_put_comes_back(self, blobs: Blobs, data: bytes) -> None:
        ref = stored(blobs, data)
        assert is_ref(ref)
        assert ref["$blob"] == {"id": sha(data), "size": len(data), "place": place_of(ref)}
        assert blobs.get(ref) == data

    @pytest.mark.parametrize("start", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 7, len(LARGE) - 1])
    def test_it_comes_in_pieces_from_any_place_on(self, blobs: Blobs, start: int) -> None:
        pieces = list(blobs.pieces(stored(blobs, LARGE), start))
        assert b"".join(pieces) == LARGE[start:]
        assert max(map(len, pieces)) <= PIECE_BYTES

    def test_nothing_is_in_the_pieces_of_an_empty_blob(self, blobs: Blobs) -> None:
        assert b"".join(blobs.pieces(stored(blobs, b""))) == b""

    def test_pieces_that_are_not_those_of_the_reference_end_with_an_error(self, blobs: Blobs) -> None:
        place = place_of(stored(blobs, b"four"))
        for start in (0, 2):
            with pytest.raises(BlobError, match="damaged"):
                list(blobs.pieces(make_ref(sha(b"four"), 5, place), start))
        with pytest.raises(LogError, match=sha(b"else")):
            list(blobs.pieces(make_ref(sha(b"else"), 4, place)))

    def test_the_same_data_twice_has_two_good_references(self, blobs: Blobs) -> None:
        first, second = stored(blobs, b"same"), stored(blobs, b"same")
        assert blobs.get(first) == blobs.get(second) == b"same"

    def test_blobs_put_by_many_threads_at_once_do_not_mix(self, blobs: Blobs) -> None:
        values = [bytes([n]) * (PIECE_BYTES + n) for n in range(6)]
        refs: dict[int, BlobRef] = {}

        def put(n: int) -> None:
            refs[n] = stored(blobs, values[n])

        threads = [threading.Thread(target=put, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [blobs.get(refs[n]) == values[n] for n in range(6)] == [True] * 6

    def test_a_reference_to_nothing_is_an_error_that_names_the_blob(self, blobs: Blobs) -> None:
        place = place_of(stored(blobs, b"something"))
        with pytest.raises(LogError, match=sha(b"else")):
            blobs.get(make_ref(sha(b"else"), 4, place))

    def test_a_blob_of_another_size_is_an_error(self, blobs: Blobs) -> None:
        ref = stored(blobs, b"four")
        with pytest.raises(BlobError, match="damaged"):
            blobs.get(make_ref(sha(b"four"), 5, place_of(ref)))

    @pytest.mark.parametrize(
        "value",
        [
            None,
            {},
            {"$blob": "x"},
            {"$blob": {"id": "../../etc/passwd", "size": 1, "place": "0:0:1"}},
            {"$blob": {"id": "A" * 64, "size": 1, "place": "0:0:1"}},
            {"$blob": {"id": "0" * 64, "size": "1", "place": "0:0:1"}},
        ],
    )
    def test_what_is_no_reference_is_refused(self, blobs: Blobs, value: BlobRef | None) -> None:
        with pytest.raises(BlobError, match="not a blob reference"):
            blobs.get(value)


class TestFolder(Suite):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[FolderBlobs]:
        blobs = FolderBlobs(tmp_path / "blobs")
        yield blobs
        blobs.close()

    def test_blobs_are_files_named_by_their_hash_and_survive_reopening(
        self, blobs: FolderBlobs, tmp_path: Path
    ) -> None:
        ref = stored(blobs, b"data")
        blobs.close()
        blobs.close()
        with closing(FolderBlobs(tmp_path / "blobs")) as again:
            assert again.get(ref) == b"data"
        files = [path.relative_to(tmp_path / "blobs").as_posix() for path in tmp_path.rglob("*") if path.is_file()]
        assert files == [f"{sha(b'data')[:2]}/{sha(b'data')}"]

    def test_a_file_cut_short_is_noticed_and_repaired_by_the_next_put(self, blobs: FolderBlobs, tmp_path: Path) -> None:
        ref = stored(blobs, b"data")
        path = tmp_path / "blobs" / sha(b"data")[:2] / sha(b"data")
        path.write_bytes(b"dat")
        with pytest.raises(BlobError, match="damaged"):
            blobs.get(ref)
        assert blobs.get(stored(blobs, b"data")) == b"data"

    def test_a_folder_that_cannot_be_written_fails_the_put(self, tmp_path: Path) -> None:
        (tmp_path / "blobs").write_text("a file is in the way")
        with closing(FolderBlobs(tmp_path / "blobs")) as blobs, pytest.raises(LogError, match="cannot store blob"):
            stored(blobs, b"data")


class TestTopic(Suite):
    @pytest.fixture
    def blobs(self, log: Log) -> LogBlobs:
        return LogBlobs(log)

    def test_a_blob_lies_in_pieces_in_the_partition_of_its_run(self, log: Log) -> None:
        ref = stored(LogBlobs(log), LARGE)
        records = [record for batch in log.read(Topic.BLOBS, 2, 0) for record in batch]
        assert place_of(ref) == f"2:0:{len(records)}"
        assert [len(record.value or b"") for record in records[:-1]] == [PIECE_BYTES] * (len(records) - 1)
        assert {record.key for record in records} == {RUN.encode()}

    def test_records_of_others_between_the_pieces_do_no_harm(self, log: Log) -> None:
        ref = stored(LogBlobs(log), b"data")
        log.send(Topic.BLOBS, 2, Entry(b"k", b"v")).result(PATIENCE_S)
        assert LogBlobs(log).get(ref) == b"data"

    def test_a_run_id_that_is_none_of_ours_fails_the_put(self, log: Log) -> None:
        with pytest.raises(BlobError, match="run nonsense"):
            LogBlobs(log).put("nonsense", b"x").result(PATIENCE_S)

    @pytest.mark.parametrize("place", ["", "1:2", "a:b:c", "2:999:1", "77:0:1"])
    def test_a_place_that_is_none_is_an_error(self, log: Log, place: str) -> None:
        with pytest.raises(LogError):
            LogBlobs(log).get(make_ref(sha(b"x"), 1, place))


class TestBucket(Suite):
    @pytest.fixture
    def server(self) -> Iterator[BucketServer]:
        with bucket_server() as made:
            yield made

    @pytest.fixture
    def blobs(self, server: BucketServer, tmp_path: Path) -> Iterator[S3Blobs]:
        blobs = S3Blobs(server.bucket, FolderBlobs(tmp_path / "blobs"))
        yield blobs
        blobs.close()

    def test_blobs_are_objects_named_by_their_hash(self, blobs: S3Blobs, server: BucketServer) -> None:
        ref = stored(blobs, b"data")
        assert place_of(ref) == "s3"
        assert server.objects == {f"/flow/blobs/{sha(b'data')[:2]}/{sha(b'data')}": b"data"}

    def test_what_was_stored_elsewhere_before_stays_readable(self, blobs: S3Blobs, tmp_path: Path) -> None:
        with closing(FolderBlobs(tmp_path / "blobs")) as before:
            ref = stored(before, b"older")
        assert blobs.get(ref) == b"older"

    def test_trouble_of_the_store_is_waited_for_and_then_said(self, blobs: S3Blobs, server: BucketServer) -> None:
        server.failing = 2
        ref = stored(blobs, b"data")
        server.failing = 3
        with pytest.raises(BlobError, match="status 503"):
            blobs.get(ref)
        assert blobs.get(ref) == b"data"

    def test_a_refused_signature_and_a_missing_object_are_errors(self, server: BucketServer, tmp_path: Path) -> None:
        wrong = replace(server.bucket, secret_key="another")
        with closing(S3Blobs(wrong, FolderBlobs(tmp_path))) as blobs, pytest.raises(BlobError, match="status 403"):
            stored(blobs, b"data")
        with closing(S3Blobs(server.bucket, FolderBlobs(tmp_path))) as blobs, pytest.raises(BlobError, match="404"):
            blobs.get(make_ref(sha(b"x"), 1, "s3"))

    def test_a_changed_object_is_noticed(self, blobs: S3Blobs, server: BucketServer) -> None:
        ref = stored(blobs, b"data")
        server.objects = dict.fromkeys(server.objects, b"dada")
        with pytest.raises(BlobError, match="damaged"):
            blobs.get(ref)


@pytest.mark.parametrize(
    ("method", "path", "payload", "more", "signature"),
    [
        ("GET", "test.txt", b"", {"Range": "bytes=0-9"},
         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        ("PUT", "test%24file.text", b"Welcome to Amazon S3.",
         {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
         "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"),
    ],
)  # fmt: skip
def test_signatures_are_those_of_the_published_examples(
    method: str, path: str, payload: bytes, more: dict[str, str], signature: str
) -> None:
    keys = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    bucket = Bucket("https://s3.amazonaws.com", "examplebucket", "", "us-east-1", *keys)
    url = f"https://examplebucket.s3.amazonaws.com/{path}"
    headers = signed(bucket, method, url, sha(payload), more, 1_369_353_600)
    assert headers["authorization"].endswith(f"Signature={signature}")


def stored(blobs: Blobs, data: bytes) -> BlobRef:
    return blobs.put(RUN, data).result(PATIENCE_S)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def place_of(ref: BlobRef) -> str:
    inner = ref["$blob"]
    assert isinstance(inner, dict)
    return str(inner["place"])
