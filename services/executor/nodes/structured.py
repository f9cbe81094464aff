"""Structured output: asking a model for JSON of a schema, and checking what came."""

import importlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from libs.workflow.configs.models import LlmConfig
from services.executor.lenient_json import parse_leniently
from services.executor.models.port import Message
from services.executor.models.reasoning import split_reasoning


class StructuredOutputError(Exception):
    """The schema, or the answer, is not usable. The text names the stage (`schema`, `result`) and a JSON path."""

    def __init__(self, stage: str, path: str, problem: str) -> None:
        super().__init__(f"structured output, {stage} at {path}: {problem}")


def wanted_schema(config: LlmConfig) -> dict[str, Any] | None:
    """The schema of the answer; None: the node wants none. Raises StructuredOutputError: it is no Draft 7 schema."""
    if not config.structured_output_switch_on or config.structured_output is None:
        return None
    schema = config.output_schema
    if schema is None:
        problem = "expected a JSON schema, an object, in `structured_output.schema`"
        raise StructuredOutputError("schema", "$", problem)
    _check_schema(schema)
    return schema


def _check_schema(schema: Mapping[str, Any]) -> None:
    jsonschema = importlib.import_module("jsonschema")  # here: only documents with a schema pay for it (some 50 ms)
    try:
        jsonschema.Draft7Validator.check_schema(dict(schema))
    except jsonschema.exceptions.SchemaError as error:
        raise StructuredOutputError("schema", error.json_path, error.message[:300]) from error


def with_instruction(messages: tuple[Message, ...], schema: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt with the schema in words: not every server knows the option for it, and none minds being told."""
    text = (
        "Answer with one JSON value and nothing else: no prose, no Markdown. It has to fit this JSON schema:\n"
        f"{json.dumps(dict(schema), ensure_ascii=False)}"
    )
    if messages and messages[0].role == "system":
        first = messages[0]
        return (Message("system", f"{first.text}\n\n{text}", first.media), *messages[1:])
    return (Message("system", text), *messages)


def parse_structured(answer: str, schema: Mapping[str, Any], finish_reason: str | None) -> dict[str, JsonValue]:
    """The object in an answer. Raises StructuredOutputError."""
    text = split_reasoning(answer).text
    # Half of an object may be one, once it is mended: only what is wrong with it then tells.
    cut = "; it was cut off at the bound of its length, so allow more tokens (`max_tokens`)"
    cut = cut if finish_reason == "length" else ""
    try:
        value = parse_leniently(text)
    except ValueError as error:
        raise StructuredOutputError("result", "$", f"the answer is not JSON ({error}){cut}") from error
    if not isinstance(value, dict):
        raise StructuredOutputError("result", "$", f"expected an object, got {type(value).__name__}")
    jsonschema, referencing = importlib.import_module("jsonschema"), importlib.import_module("referencing")
    # An empty registry: the default one would fetch remote references over HTTP.
    validator = jsonschema.Draft7Validator(dict(schema), registry=referencing.Registry())
    try:
        violation = jsonschema.exceptions.best_match(validator.iter_errors(value))
    except referencing.exceptions.Unresolvable as unresolvable:
        problem = f"it refers to {unresolvable.ref}, which is not in it; remote references are not fetched"
        raise StructuredOutputError("schema", "$", problem) from unresolvable
    if violation is not None:
        raise StructuredOutputError("result", violation.json_path, violation.message[:300] + cut)
    return value
