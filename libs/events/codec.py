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
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from libs.events.commands import COMMAND, StartRun, StopRun
from libs.events.log import Entry, Record
from libs.events.model import EVENT_TYPES, RUN_EVENT_TYPES, Event

_TYPE_PREFIX = "flowledger."
_SPEC = ("ce_specversion", b"1.0")
_CONTENT = ("content-type", b"application/json")
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)

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
    moment = _EPOCH_START + timedelta(microseconds=at_us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_us % 1_000_000:06d}"[:digits] + "Z"


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
    name = type(event).__name__
    headers = [
        _SPEC,
        _CONTENT,
        ("ce_type", f"{_TYPE_PREFIX}{name}.{VERSIONS[name]}".encode()),
        ("ce_id", f"{partition}-{epoch}-{n}".encode()),
        ("ce_source", f"flowledger/{partition}".encode()),
        ("ce_time", rfc3339(at_us, 6).encode()),
        ("ce_epoch", b"%d" % epoch),
        ("ce_n", b"%d" % n),
        ("ce_cause", cause.encode()),
    ]
    if seq:
        headers.append(("ce_subject", run_id.encode()))
        headers.append(("ce_sequence", b"%d" % seq))
    value = body if body is not None else encode_body(event)
    return Entry(key=run_id.encode() if run_id else None, value=value, headers=headers, epoch=epoch, n=n)


def encode_body(event: BaseModel) -> bytes:
    """The JSON body of an event or command, without fields that have their default None."""
    return event.model_dump_json(exclude_none=True).encode()


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


def decode_event(record: Record) -> Recorded:
    """The event of a record that the validity rule admitted. Raises CodecError."""
    headers = record.headers
    place = f"{record.topic}[{record.partition}]@{record.offset}"
    try:
        _, name, version_text = headers["ce_type"].decode().split(".")
        version = int(version_text)
        model = EVENT_TYPES[name]
    except (KeyError, ValueError) as error:
        raise CodecError(f"{place}: unknown event type {headers.get('ce_type')!r}. Upgrade this process") from error
    if version > VERSIONS[name]:
        raise CodecError(f"{place}: {name} version {version} is newer than {VERSIONS[name]}. Upgrade this process")
    try:
        if version < VERSIONS[name]:
            body = json.loads(record.value or b"")
            for step in range(version, VERSIONS[name]):
                body = UPCASTERS[name, step](body)
            event = model.model_validate(body)
        else:
            event = model.model_validate_json(record.value or b"")
        is_run_event = name in RUN_EVENT_TYPES
        return Recorded(
            event=event,
            run_id=headers["ce_subject"].decode() if is_run_event else "",
            seq=int(headers["ce_sequence"]) if is_run_event else 0,
            epoch=int(headers["ce_epoch"]),
            n=int(headers["ce_n"]),
            at_us=from_rfc3339(headers["ce_time"].decode()),
            cause=headers.get("ce_cause", b"").decode(),
            partition=record.partition,
            offset=record.offset,
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise CodecError(f"{place}: {name} cannot be read: {error}") from error


def encode_command(command: StartRun | StopRun) -> Entry:
    """The log entry of a command; its partition is the run's."""
    name = type(command).__name__
    headers = [_SPEC, _CONTENT, ("ce_type", f"{_TYPE_PREFIX}{name}.1".encode()), ("ce_subject", command.run_id.encode())]
    return Entry(key=command.run_id.encode(), value=encode_body(command), headers=headers)


def decode_command(record: Record) -> StartRun | StopRun:
    """The command of a record. Raises CodecError."""
    try:
        return COMMAND.validate_json(record.value or b"")
    except ValidationError as error:
        place = f"{record.topic}[{record.partition}]@{record.offset}"
        raise CodecError(f"{place}: command cannot be read: {error}") from error


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
