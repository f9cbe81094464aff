"""Records as earlier releases wrote them: `records/<type>.<version>.json`, one per type and version. Add, never edit.

Fields that came later are in a record of their own: `records/<type>-<what for>.<version>.json`.

A record of an old version must decode; one of the version that is written must also encode to the same bytes.
"""

import json
from pathlib import Path

import pytest

from libs.events.codec import VERSIONS, Recorded, decode_command, decode_event, encode_command, encode_event
from libs.events.log import Entry, Record, Topic
from libs.events.model import RUN_EVENT_TYPES, Event
from libs.events.registry import FACT, Fact, encode_fact
from tests.examples_of_records import COMMANDS, EVENTS, FACTS, MORE, RUN

FOLDER = Path(__file__).parent / "records"
EXAMPLES = {type(example).__name__: example for example in (*EVENTS, *COMMANDS, *FACTS)} | MORE
FILES = sorted(FOLDER.glob("*.json"))


_COMMANDS = {type(command).__name__ for command in COMMANDS}
_FACTS = {type(fact).__name__ for fact in FACTS}


def _type(name: str) -> str:
    return name.partition("-")[0]


def as_text(entry: Entry) -> str:
    """What a golden file of this record contains."""
    record = {
        "key": entry.key.decode() if entry.key is not None else None,
        "headers": {name: value.decode() for name, value in entry.headers},
        "value": (entry.value or b"").decode(),
    }
    return json.dumps(record, indent=1, ensure_ascii=True) + "\n"


def load(path: Path) -> Record:
    data = json.loads(path.read_text())
    headers = {name: value.encode() for name, value in data["headers"].items()}
    key = data["key"].encode() if data["key"] is not None else None
    return Record(Topic.EVENTS, 3, 55, 0, key, data["value"].encode(), headers)


def encode_example(name: str) -> Entry:
    example = EXAMPLES[name]
    if _type(name) in _COMMANDS:
        return encode_command(example)  # type: ignore[arg-type]  # a command by its name
    if _type(name) in _FACTS:
        return encode_fact(example)  # type: ignore[arg-type]  # a fact by its name
    is_run_event = _type(name) in RUN_EVENT_TYPES
    return encode_event(
        example,  # type: ignore[arg-type]  # an event: it is nothing else
        partition=3,
        run_id=RUN if is_run_event else "",
        seq=12 if is_run_event else 0,
        epoch=2,
        n=0 if name == "PartitionClaimed" else 345,
        at_us=1_762_000_000_123_456,
        cause="node:iteration:each:2/llm#1" if is_run_event else "owner",
    )


def decode(name: str, record: Record) -> Recorded | Event | Fact | object:
    if _type(name) in _COMMANDS:
        return decode_command(record)
    if _type(name) in _FACTS:
        return FACT.validate_json(record.value or b"")
    return decode_event(record)


@pytest.mark.parametrize("name", sorted({*VERSIONS, *EXAMPLES}))
def test_every_type_has_a_golden_record_of_the_version_that_is_written(name: str) -> None:
    path = FOLDER / f"{name}.{VERSIONS.get(_type(name), 1)}.json"
    assert path.is_file(), f"{path} is missing. Write it once and never change it:\n{as_text(encode_example(name))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_record_decodes_to_what_it_said(path: Path) -> None:
    name, _ = path.stem.split(".")
    decoded = decode(name, load(path))
    assert (decoded.event if isinstance(decoded, Recorded) else decoded) == EXAMPLES[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_record_of_the_version_that_is_written_encodes_alike(path: Path) -> None:
    name, version = path.stem.split(".")
    if int(version) == VERSIONS.get(_type(name), 1):
        assert as_text(encode_example(name)) == path.read_text()
