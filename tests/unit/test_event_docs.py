"""What outside consumers read about events is what the models say, and records keep to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from docs.events import GROUPS, body_schema, files, line_schema
from docs.examples_of_events import EXAMPLES, history
from libs.events.codec import encode_body
from libs.events.model import RUN_EVENT_TYPES, RunEvent
from tests.examples_of_records import EVENTS

FILES = files()
LINE = Draft202012Validator(line_schema())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_in_docs_are_what_the_models_say(path: Path) -> None:
    assert path.is_file(), f"{path} is missing. Run: python -m docs.events"
    assert path.read_text("utf-8") == FILES[path], f"{path} differs from the models. Run: python -m docs.events"


def test_every_run_event_is_documented_with_an_example() -> None:
    assert {name for names in GROUPS.values() for name in names} == set(RUN_EVENT_TYPES) == set(EXAMPLES)


@pytest.mark.parametrize("name", RUN_EVENT_TYPES)
def test_every_field_has_a_meaning(name: str) -> None:
    fields = body_schema(name)["properties"].items()
    assert [field for field, details in fields if field != "type" and "description" not in details] == []


@pytest.mark.parametrize("line", history(), ids=lambda line: line["type"])
def test_a_line_of_a_history_fits_its_schema(line: dict[str, Any]) -> None:
    LINE.validate(line)


@pytest.mark.parametrize("event", [each for each in EVENTS if type(each).__name__ in RUN_EVENT_TYPES], ids=repr)
def test_the_body_of_a_record_fits_its_schema(event: RunEvent) -> None:
    Draft202012Validator(body_schema(type(event).__name__)).validate(json.loads(encode_body(event)))


@pytest.mark.parametrize("name", RUN_EVENT_TYPES)
def test_the_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(body_schema(name))


def test_a_line_with_the_data_of_another_type_does_not_fit() -> None:
    line = next(each for each in history() if each["type"] == "NodeFailed")
    assert not LINE.is_valid(line | {"type": "NodeSkipped", "data": {"handle": 3}})
    assert not LINE.is_valid({key: value for key, value in line.items() if key != "node_id"})
