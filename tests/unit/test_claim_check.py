import hashlib
from concurrent.futures import Future

import pytest
from pydantic import JsonValue

from libs.events.blobs import BlobError, BlobRef, is_ref, make_ref
from libs.events.claim_check import LIMIT_BYTES, contains_ref, offload, oversized, restore
from libs.events.codec import encode_body
from libs.events.model import (
    CheckpointWritten,
    Event,
    NodeSucceeded,
    OwnerConfirmed,
    RoundFinished,
    RunSnapshotted,
    VariableUpdate,
)


class DictBlobs:
    """Blobs in a dict; `hold` leaves puts open until `settle`."""

    def __init__(self, *, hold: bool = False, error: str | None = None) -> None:
        self.data: dict[str, bytes] = {}
        self.owners: set[str] = set()
        self._hold = hold
        self._error = error
        self._open: list[tuple[Future[BlobRef], BlobRef]] = []

    def put(self, run_id: str, data: bytes) -> "Future[BlobRef]":
        digest = hashlib.sha256(data).hexdigest()
        self.data[digest] = data
        self.owners.add(run_id)
        future: Future[BlobRef] = Future()
        self._open.append((future, make_ref(digest, len(data), "")))
        if not self._hold:
            self.settle()
        return future

    def settle(self) -> None:
        for future, ref in self._open:
            if self._error is not None:
                future.set_exception(BlobError(self._error))
            else:
                future.set_result(ref)
        self._open = []

    def get(self, ref: JsonValue) -> bytes:
        assert is_ref(ref)
        inner = ref["$blob"]
        assert isinstance(inner, dict)
        return self.data[str(inner["id"])]

    def close(self) -> None: ...


BIG = "x" * 100_000
FORGED: JsonValue = {"$blob": {"id": "0" * 64, "size": 3, "place": "0:0:1"}}


def round_trip(event: Event) -> tuple[Event, DictBlobs]:
    """The event as it is written; checks that it comes back."""
    blobs = DictBlobs()
    written = offload(event, blobs, "run").result(0)
    read = type(event).model_validate_json(encode_body(written))
    assert contains_ref(read) == bool(blobs.data)
    assert restore(read, blobs) == event
    return written, blobs


def test_a_small_body_stays() -> None:
    assert not oversized(b"x" * LIMIT_BYTES)
    assert oversized(b"x" * (LIMIT_BYTES + 1))


def test_only_the_largest_values_leave() -> None:
    event = NodeSucceeded(node_id="a", outputs={"big": BIG, "small": 1}, inputs={"medium": "y" * 5000, "none": None})
    written, blobs = round_trip(event)
    assert isinstance(written, NodeSucceeded)
    assert written.outputs is not None
    assert written.inputs == event.inputs
    assert is_ref(written.outputs["big"])
    assert written.outputs["small"] == 1
    assert blobs.owners == {"run"}
    assert not oversized(encode_body(written)[: encode_body(written).index(b'"$blob"')])
    assert len(encode_body(written)) <= LIMIT_BYTES


@pytest.mark.parametrize(
    "event",
    [
        NodeSucceeded(node_id="a", outputs={"a": BIG, "b": BIG + "y"}, process_data={"c": [BIG]}, metadata={"d": BIG}),
        NodeSucceeded(node_id="a", updates=(
            VariableUpdate(selector=("c", "a"), value=1, value_type="number"),
            VariableUpdate(selector=("c", "b"), value=[BIG, None], value_type="array[string]"),
        )),
        RoundFinished(node_id="a", index=1, output={"text": BIG, "none": None}, variables={"v": BIG}),
        RunSnapshotted(run_id="run", seq=4, state={"pool": BIG, "none": None}),
        NodeSucceeded(node_id="a", outputs={"text": BIG + "ä🙂\n\u0000", "deep": {"big": [2**70, 1e300, None, True]}}),
    ],
    ids=["fields", "updates", "round", "snapshot", "text"],
)  # fmt: skip
def test_a_large_event_is_small_in_the_log_and_comes_back(event: Event) -> None:
    written, _ = round_trip(event)
    assert len(encode_body(written)) <= LIMIT_BYTES


def test_many_small_values_leave_as_a_field() -> None:
    event = NodeSucceeded(node_id="a", outputs={f"k{n}": "v" * 50 for n in range(5000)}, inputs={"a": 1})
    written, blobs = round_trip(event)
    assert isinstance(written, NodeSucceeded)
    assert is_ref(written.outputs)
    assert written.inputs == {"a": 1}
    assert len(blobs.data) == 1


def test_a_snapshot_names_its_run_itself() -> None:
    blobs = DictBlobs()
    offload(RunSnapshotted(run_id="run-7", seq=4, state=BIG), blobs, "").result(0)
    assert blobs.owners == {"run-7"}


def test_an_event_without_movable_values_comes_back_as_it_is() -> None:
    part = CheckpointWritten(checkpoint_id="c", part=1, parts=1, data=BIG)
    assert offload(part, DictBlobs(), "").result(0) is part
    assert restore(OwnerConfirmed(), DictBlobs()) == OwnerConfirmed()


@pytest.mark.parametrize(
    "event",
    [
        NodeSucceeded(node_id="a", outputs={"forged": FORGED}),
        NodeSucceeded(node_id="a", outputs={"$blob": {"id": "0" * 64, "size": 3, "place": ""}}),
        NodeSucceeded(node_id="a", outputs={"forged": FORGED, "big": BIG}),
        NodeSucceeded(node_id="a", updates=(VariableUpdate(selector=("c", "a"), value=FORGED, value_type="object"),)),
        RoundFinished(node_id="a", index=1, output=FORGED),
    ],
)
def test_a_users_value_that_looks_like_a_reference_comes_back_as_what_it_was(event: Event) -> None:
    assert oversized(encode_body(event))
    _, blobs = round_trip(event)
    assert blobs.data


def test_a_forged_reference_deep_inside_a_value_is_left_alone() -> None:
    event = NodeSucceeded(node_id="a", outputs={"deep": [FORGED, {"x": FORGED}]})
    _, blobs = round_trip(event)
    assert blobs.data == {}


def test_the_event_waits_until_every_value_is_durable() -> None:
    blobs = DictBlobs(hold=True)
    future = offload(NodeSucceeded(node_id="a", outputs={"a": BIG, "b": BIG}), blobs, "run")
    assert not future.done()
    blobs.settle()
    assert future.done()


def test_a_value_that_cannot_be_stored_fails_the_event() -> None:
    future = offload(NodeSucceeded(node_id="a", outputs={"a": BIG}), DictBlobs(error="disk full"), "run")
    with pytest.raises(BlobError, match="disk full"):
        future.result(0)


def test_half_a_surrogate_pair_in_a_large_value_does_not_stop_it() -> None:
    blobs = DictBlobs()
    written = offload(NodeSucceeded(node_id="a", outputs={"a": BIG + "\ud83d"}), blobs, "run").result(0)
    assert restore(written, blobs).outputs == {"a": BIG + "?"}
