"""Events and commands to and from log records: CloudEvents binary mode.

What every reader needs without reading the body is in headers: type, run, sequence, `(epoch, n)`, time, cause. The
body is the event as JSON. Upcasters lift old bodies before validation, so the rest of the code knows one version.

| header | content |
|---|---|
| `ce_specversion`, `content-type` | `1.0`, `application/json` |
| `ce_type` | event type with its schema version: `flowledger.NodeSucceeded.1` |
| `ce_id` | `<partition>-<epoch>-<n>`: unique in the log |
| `ce_source` | `flowledger/<partition>` |
| `ce_subject` | run id (run events) |
| `ce_time` | RFC 3339, microseconds, UTC |
| `ce_epoch`, `ce_n` | the owner's stamp (validity rule) |
| `ce_sequence` | place in the run, from 1 (run events) |
| `ce_cause` | what led to it: `command:<offset>`, `node:<path>/<id>#<attempt>`, `derived`, `timer`, `owner` |
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from libs.events.commands import COMMAND, AnyCommand
from libs.events.log import Entry, Record
from libs.events.model import EVENT_TYPES, RUN_END_TYPES, RUN_EVENT_TYPES, Event
from libs.events.sealed_values import MARK, read_sealed
from libs.events.sealing import Vault

_TYPE_PREFIX = "flowledger."
_SPEC = ("ce_specversion", b"1.0")
_CONTENT = ("content-type", b"application/json")
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_MARKED = {"RunAccepted": "accepted", "RunStarted": "started", "ConversationVariableSet": "edited"} | dict.fromkeys(
    RUN_END_TYPES, "ended"
)

VERSIONS: dict[str, int] = dict.fromkeys(EVENT_TYPES, 1)
"""Schema version that is written, by event type."""

UPCASTERS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""(type, version) -> function that lifts a body of that version to the next one."""


class CodecError(Exception):
    """A record cannot be read: unknown type, newer version, or a body that does not fit. The text names its place."""


@dataclass(slots=True, frozen=True)
class Stamp:
    """What the validity rule needs of a record."""

    epoch: int
    n: int
    claim: bool


@dataclass(slots=True, frozen=True)
class Recorded:
    """An event with its place: what a reader of the log works with."""

    event: Event
    run_id: str
    """Empty for partition events."""
    seq: int
    """Sequence in the run, from 1; 0 for partition events."""
    epoch: int
    n: int
    at_us: int
    """Microseconds since the epoch, UTC; never falls within a partition."""
    cause: str
    partition: int
    offset: int


def rfc3339(at_us: int, digits: int = 3) -> str:
    """`2026-05-02T09:13:44.120Z`: UTC with `digits` (3 or 6) decimals."""
    second, micros = divmod(at_us, 1_000_000)
    return f"{_second(second)}{f'{micros:06d}'[:digits]}Z"


@lru_cache(maxsize=16)
def _second(second: int) -> str:
    # Events come in the order of their time: most share their second with the one before, and strftime costs 2 us.
    return (_EPOCH_START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.")


def from_rfc3339(text: str) -> int:
    """Microseconds since the epoch. Raises ValueError when `text` is not RFC 3339."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return (moment - _EPOCH_START) // timedelta(microseconds=1)


def encode_event(
    event: Event,
    *,
    partition: int,
    run_id: str,
    seq: int,
    epoch: int,
    n: int,
    at_us: int,
    cause: str,
    body: bytes | None = None,
) -> Entry:
    """The log entry of an event. `body` replaces the event's own JSON (large values already moved out)."""
    key = run_id.encode() if run_id else None
    headers = [
        _SPEC,
        _CONTENT,
        _type_header(type(event).__name__),
        ("ce_id", b"%d-%d-%d" % (partition, epoch, n)),
        _source_header(partition),
        ("ce_time", rfc3339(at_us, 6).encode()),
        ("ce_epoch", b"%d" % epoch),
        ("ce_n", b"%d" % n),
        ("ce_cause", cause.encode()),
    ]
    if seq:
        headers.append(("ce_subject", key or b""))
        headers.append(("ce_sequence", b"%d" % seq))
    return Entry(key, encode_body(event) if body is None else body, headers, epoch, n)


@lru_cache(maxsize=256)
def _type_header(name: str) -> tuple[str, bytes]:
    return "ce_type", f"{_TYPE_PREFIX}{name}.{VERSIONS[name]}".encode()


@lru_cache(maxsize=4096)
def _source_header(partition: int) -> tuple[str, bytes]:
    return "ce_source", f"flowledger/{partition}".encode()


def encode_body(event: BaseModel) -> bytes:
    """The JSON body of an event or command, without fields that have their default None."""
    # The serializer itself: `model_dump_json` makes a str of its bytes, which would be encoded again.
    try:
        return event.__pydantic_serializer__.to_json(event, exclude_none=True)
    except PydanticSerializationError:
        # Half a surrogate pair (a model's answer cut in an emoji) is no UTF-8. A "?" in its place harms nobody; an
        # outcome that cannot be recorded would stop its run, and every later owner, for ever.
        return json.dumps(event.model_dump(exclude_none=True), ensure_ascii=False).encode("utf-8", "replace")


def stamp_of(record: Record) -> Stamp | None:
    """The record's stamp, or None when it has none that can be read. Never raises."""
    headers = record.headers
    try:
        return Stamp(int(headers["ce_epoch"]), int(headers["ce_n"]), headers["ce_type"].startswith(_CLAIM))
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


_CLAIM = b"flowledger.PartitionClaimed."


def type_of(record: Record) -> str:
    """The event type by the record's headers (`NodeSucceeded`); empty when there is none. Never raises."""
    header = record.headers.get("ce_type") or b""
    parts = header.decode("utf-8", "replace").split(".")
    return parts[1] if len(parts) == 3 else ""


def run_of(record: Record) -> str:
    """The run id by the record's headers; empty for partition events. Never raises."""
    return (record.headers.get("ce_subject") or b"").decode("utf-8", "replace")


def marked_as(record: Record) -> tuple[str, str] | None:
    """`(kind, of)` of the marks (`model.Mark`) that mean this event; None: no mark does. Never raises."""
    kind = _MARKED.get(type_of(record))
    if kind is None:
        return None
    if kind == "edited":
        return kind, (record.headers.get("ce_cause") or b"").decode("utf-8", "replace")
    return kind, run_of(record)


def decode_event(record: Record, vault: Vault | None = None) -> Recorded:
    """The event of a record that the validity rule admitted. Raises CodecError.

    Sealed values are opened with `vault` (raises SealError); without it they are what readers are shown.
    """
    headers = record.headers
    try:
        name, version, model, is_run_event = _parse_type(headers["ce_type"])
    except (KeyError, ValueError) as error:
        text = f"unknown event type {headers.get('ce_type')!r}. Upgrade this process"
        raise CodecError(f"{_place(record)}: {text}") from error
    if version > VERSIONS[name]:
        text = f"{name} version {version} is newer than {VERSIONS[name]}. Upgrade this process"
        raise CodecError(f"{_place(record)}: {text}")
    try:
        if version < VERSIONS[name]:
            body = from_json(record.value or b"")
            for step in range(version, VERSIONS[name]):
                body = UPCASTERS[name, step](body)
            event = model.model_validate(body)
        else:
            event = model.model_validate_json(record.value or b"")
        if MARK in (record.value or b""):
            event = read_sealed(event, vault)
        return Recorded(
            event,
            headers["ce_subject"].decode() if is_run_event else "",
            int(headers["ce_sequence"]) if is_run_event else 0,
            int(headers["ce_epoch"]),
            int(headers["ce_n"]),
            from_rfc3339(headers["ce_time"].decode()),
            headers.get("ce_cause", b"").decode(),
            record.partition,
            record.offset,
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise CodecError(f"{_place(record)}: {name} cannot be read: {error}") from error


@lru_cache(maxsize=256)
def _parse_type(header: bytes) -> tuple[str, int, type[Any], bool]:
    """(name, version, model, whether it is a run event). Raises KeyError, ValueError."""
    _, name, version = header.decode().split(".")
    return name, int(version), EVENT_TYPES[name], name in RUN_EVENT_TYPES


def _place(record: Record) -> str:
    return f"{record.topic}[{record.partition}]@{record.offset}"


def encode_command(command: AnyCommand) -> Entry:
    """The log entry of a command; its partition is the run's."""
    name = type(command).__name__
    headers = [
        _SPEC,
        _CONTENT,
        ("ce_type", f"{_TYPE_PREFIX}{name}.1".encode()),
        ("ce_subject", command.run_id.encode()),
    ]
    return Entry(key=command.run_id.encode(), value=encode_body(command), headers=headers)


def decode_command(record: Record) -> AnyCommand:
    """The command of a record. Raises CodecError."""
    try:
        return COMMAND.validate_json(record.value or b"")
    except ValidationError as error:
        raise CodecError(f"{_place(record)}: command cannot be read: {error}") from error


def public_record(recorded: Recorded, execution_id: str | None) -> dict[str, JsonValue]:
    """One line of a history: the public JSON of an event (`docs/events.md`); absent keys do not apply."""
    data = recorded.event.model_dump(mode="json", exclude_none=True, exclude={"type", "node_id", "path", "attempt"})
    line: dict[str, JsonValue] = {
        "seq": recorded.seq,
        "type": type(recorded.event).__name__,
        "at": rfc3339(recorded.at_us),
        "run_id": recorded.run_id,
    }
    for name in ("node_id", "path", "attempt"):
        value = getattr(recorded.event, name, None)
        if value is not None:
            line[name] = value
    if execution_id is not None:
        line["node_execution_id"] = execution_id
    line |= {
        "data": data,
        "partition": recorded.partition,
        "offset": recorded.offset,
        "epoch": recorded.epoch,
        "cause": recorded.cause,
    }
    return line
