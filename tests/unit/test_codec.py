import typing

import pytest
from pydantic import BaseModel, JsonValue

from libs.events import codec
from libs.events.codec import (
    CodecError,
    decode_command,
    decode_event,
    encode_body,
    encode_command,
    encode_event,
    from_rfc3339,
    public_record,
    rfc3339,
    run_of,
    type_of,
)
from libs.events.log import Entry, Record, Topic
from libs.events.model import EVENT_TYPES, RUN_EVENT_TYPES, Event, NodeSucceeded, OwnerConfirmed, RunStarted
from tests.examples_of_records import COMMANDS, EVENTS, RUN

AT_US = 1_762_000_000_123_456


def stored(entry: Entry, **changes: bytes | None) -> Record:
    headers = dict(entry.headers) | {name: value for name, value in changes.items() if value is not None}
    for name, value in changes.items():
        if value is None:
            headers.pop(name, None)
    return Record(Topic.EVENTS, 3, 55, 1_762_000_000_123, entry.key, entry.value, headers)


def encode(event: Event, seq: int = 12) -> Entry:
    run_id = RUN if seq else ""
    return encode_event(event, partition=3, run_id=run_id, seq=seq, epoch=2, n=345, at_us=AT_US, cause="node:/llm#1")


def is_run_event(event: Event) -> bool:
    return type(event).__name__ in RUN_EVENT_TYPES


def test_the_examples_cover_every_event() -> None:
    assert {type(event).__name__ for event in EVENTS} == set(EVENT_TYPES)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_comes_back_with_its_place(event: Event) -> None:
    seq = 12 if is_run_event(event) else 0
    recorded = decode_event(stored(encode(event, seq)))
    assert recorded.event == event
    assert (recorded.run_id, recorded.seq) == ((RUN, 12) if seq else ("", 0))
    assert (recorded.epoch, recorded.n, recorded.at_us, recorded.cause) == (2, 345, AT_US, "node:/llm#1")
    assert (recorded.partition, recorded.offset) == (3, 55)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.type)
def test_a_command_comes_back(command: typing.Any) -> None:
    assert decode_command(stored(encode_command(command))) == command


def test_none_inside_values_survives() -> None:
    event = NodeSucceeded(node_id="a", outputs={"a": None, "b": {"c": None}, "d": [None]}, inputs={})
    assert NodeSucceeded.model_validate_json(encode_body(event)) == event
    assert b"process_data" not in encode_body(event)


@pytest.mark.parametrize("model", [*EVENT_TYPES.values(), *(type(command) for command in COMMANDS)])
def test_a_field_that_may_be_none_has_none_as_its_default(model: type[BaseModel]) -> None:
    """`encode_body` leaves None out: what is absent must come back as None."""
    for inner in reachable(model):
        for name, field in inner.model_fields.items():
            if may_be_none(field.annotation):
                assert field.get_default() is None, f"{inner.__name__}.{name}"


def reachable(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for argument in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                found |= reachable(argument)
    return found


def may_be_none(annotation: typing.Any) -> bool:
    return annotation is JsonValue or type(None) in typing.get_args(annotation)


def test_half_a_surrogate_pair_is_written_as_a_question_mark() -> None:
    body = encode_body(NodeSucceeded(node_id="a", outputs={"text": "ab\ud83d", "none": None}))
    assert NodeSucceeded.model_validate_json(body).outputs == {"text": "ab?", "none": None}


def test_a_body_can_be_replaced() -> None:
    event = NodeSucceeded(node_id="a", outputs={"text": "long"})
    entry = encode_event(
        event, partition=0, run_id=RUN, seq=1, epoch=1, n=1, at_us=AT_US, cause="timer", body=b'{"node_id":"a"}'
    )
    assert decode_event(stored(entry)).event == NodeSucceeded(node_id="a")


def test_the_envelope_is_cloudevents() -> None:
    assert dict(encode(RunStarted(max_steps=5)).headers) == {
        "ce_specversion": b"1.0",
        "content-type": b"application/json",
        "ce_type": b"flowledger.RunStarted.1",
        "ce_id": b"3-2-345",
        "ce_source": b"flowledger/3",
        "ce_subject": RUN.encode(),
        "ce_time": b"2025-11-01T12:26:40.123456Z",
        "ce_epoch": b"2",
        "ce_n": b"345",
        "ce_sequence": b"12",
        "ce_cause": b"node:/llm#1",
    }


def test_type_and_run_are_read_without_the_body() -> None:
    record = stored(encode(RunStarted(max_steps=5)))
    assert (type_of(record), run_of(record)) == ("RunStarted", RUN)
    bare = Record(Topic.EVENTS, 0, 0, 0, None, None, {})
    assert (type_of(bare), run_of(bare)) == ("", "")
    assert type_of(Record(Topic.EVENTS, 0, 0, 0, None, None, {"ce_type": b"\xff\xfe"})) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"ce_type": b"flowledger.Unknown.1"},
        {"ce_type": b"garbage"},
        {"ce_type": b"\xff"},
        {"ce_type": None},
        {"ce_type": b"flowledger.RunStarted.2"},
        {"ce_type": b"flowledger.RunStarted.x"},
        {"ce_time": b"yesterday"},
        {"ce_time": None},
        {"ce_sequence": b"x"},
        {"ce_subject": None},
        {"ce_epoch": None},
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_its_place(changes: dict[str, bytes | None]) -> None:
    with pytest.raises(CodecError, match=r"events\[3\]@55"):
        decode_event(stored(encode(RunStarted(max_steps=5)), **changes))


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_body_that_does_not_fit_is_an_error(value: bytes | None) -> None:
    entry = encode(RunStarted(max_steps=5))
    with pytest.raises(CodecError, match="RunStarted cannot be read"):
        decode_event(stored(Entry(entry.key, value, entry.headers)))


@pytest.mark.parametrize("value", [None, b"{", b'{"type":"Unknown"}'])
def test_a_command_that_does_not_fit_is_an_error(value: bytes | None) -> None:
    with pytest.raises(CodecError, match="command cannot be read"):
        decode_command(stored(Entry(None, value)))


def test_fields_of_a_newer_release_are_ignored() -> None:
    entry = encode(OwnerConfirmed(), seq=0)
    recorded = decode_event(stored(Entry(entry.key, b'{"new":1}', entry.headers)))
    assert recorded.event == OwnerConfirmed()


def test_an_old_version_is_lifted_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.VERSIONS, "RunStarted", 3)
    monkeypatch.setitem(codec.UPCASTERS, ("RunStarted", 1), lambda body: {"steps": body["limit"]})
    monkeypatch.setitem(codec.UPCASTERS, ("RunStarted", 2), lambda body: {"max_steps": body["steps"] + 1})
    entry = encode(OwnerConfirmed())
    old = stored(Entry(entry.key, b'{"limit":4}', entry.headers), ce_type=b"flowledger.RunStarted.1")
    assert decode_event(old).event == RunStarted(max_steps=5)


@pytest.mark.parametrize("at_us", [0, 1, 999_999, 1_000_000, AT_US, 253_402_300_799_999_999])
def test_times_come_back_to_the_microsecond(at_us: int) -> None:
    assert from_rfc3339(rfc3339(at_us, 6)) == at_us
    assert from_rfc3339(rfc3339(at_us)) == at_us // 1000 * 1000


def test_times_are_cut_not_rounded_and_take_any_zone() -> None:
    assert rfc3339(1_777_713_224_120_999) == "2026-05-02T09:13:44.120Z"
    assert from_rfc3339("2026-05-02T11:13:44.120+02:00") == 1_777_713_224_120_000
    with pytest.raises(ValueError, match="no time zone"):
        from_rfc3339("2026-05-02T09:13:44")


def test_a_line_of_a_history_has_what_applies_and_nothing_else() -> None:
    event = NodeSucceeded(node_id="llm", outputs={"text": None})
    line = public_record(decode_event(stored(encode(event))), "exec-1")
    assert line["data"] == {
        "outputs": {"text": None},
        "elapsed_s": 0.0,
        "output_types": {},
        "updates": [],
        "pinned": False,
    }
    assert [line[key] for key in ("seq", "type", "node_id", "path", "attempt", "node_execution_id")] == [
        12,
        "NodeSucceeded",
        "llm",
        "",
        1,
        "exec-1",
    ]
    run_line = public_record(decode_event(stored(encode(RunStarted(max_steps=5)))), None)
    assert "node_id" not in run_line
    assert "node_execution_id" not in run_line
