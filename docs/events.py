"""Makes what outside consumers read about events: `docs/schemas/*.json` and the catalogue in `docs/events.md`.

Everything comes from the models in `libs/events/model.py`: names, defaults, docstrings, the texts below fields. Run
`python -m docs.events` after a change there; a test fails while the files differ. Text outside the catalogue's two
marks is written by hand.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from docs.examples_of_events import EXAMPLES, history
from libs.events import model
from libs.events.codec import VERSIONS
from libs.events.commands import Caller
from libs.events.model import RUN_EVENT_TYPES

HERE = Path(__file__).parent
BEGIN, END = "<!-- catalogue: python -m docs.events -->", "<!-- end of catalogue -->"
PLACE = ("node_id", "path", "attempt")
"""Fields of events that stand beside `data` in a line of a history."""

GROUPS = {
    "The run": ("RunAccepted", "RunStarted", "StopRequested", "LimitExceeded", "RunSucceeded", "RunPartiallySucceeded",
                "RunFailed", "RunStopped"),
    "Pauses and forms": ("RunPaused", "RunResumed", "PauseRequested", "ResumeRequested", "FormOpened", "FormSubmitted",
                         "FormExpired"),
    "Nodes": ("NodeStarted", "NodeRestarted", "NodeSucceeded", "NodeRetryScheduled", "NodeFailed", "NodeExcepted",
              "NodeSkipped", "NodeStopped"),
    "Rounds of iterations and loops": ("RoundStarted", "RoundFinished"),
}  # fmt: skip

MEANINGS = {
    "RunFailed": "The run failed. `node_id` names the node whose failure ended it; "
    "`code` is `node_failed`, `limit_exceeded`, `definition_invalid` or `engine_error`.",
    "RunSucceeded": "Everything that could be reached is done; no node ended with an exception.",
    "RunStopped": "The run was stopped on request.",
    "NodeSucceeded": "The attempt succeeded; `outputs` are what successors read. The node's last event.",
}
"""Of types whose docstring in the code is not for readers from outside, or that need none there."""

FIELDS = {
    "app_id": "the app whose run it is",
    "attempt": "from 1; a retry is a new attempt",
    "body_digest": "digest of what the client sent",
    "by": "who asked",
    "caller": "who asked for the run",
    "code": "stable reason",
    "description": "for people",
    "command_offset": "place of the command in the commands topic",
    "conversation_id": "chatflows: the conversation",
    "digest": "`sha256:` and the digest of the document that runs",
    "due_us": "not before this instant, microseconds since 1970 UTC",
    "elapsed_s": "seconds",
    "error": "what went wrong, for people",
    "error_type": "class of the failure, as `error_type` in the run",
    "exceptions_count": "nodes that ended with an exception",
    "files": "files given with the start",
    "handle": "the selected branch; absent: all outgoing edges",
    "idempotency_key": "the client's `Idempotency-Key`",
    "index": "order, see the event",
    "inputs": "values by name",
    "invoke_from": "`service-api`, `debugger`, ...",
    "limit": "which limit",
    "max_steps": "limit in force: node starts",
    "message": "names the limit and the count",
    "mode": "workflow or chatflow",
    "node_id": "the node in the document",
    "node_type": "type in the document",
    "outputs": "values by name",
    "pins": "pinned answers, as in a pins file",
    "process_data": "what the node worked with, for people",
    "query": "chatflows: the user's message",
    "reason": "for people",
    "strategy": "the error strategy that handled the failure",
    "task_id": "the id that stop requests may use",
    "title": "the node's title in the document",
    "total_steps": "node starts in the main graph, retries included",
    "total_tokens": "sum over all nodes",
    "triggered_from": "`app-run`, `debugging`, `single-step`, `webhook` or `schedule`",
    "updates": "variables written elsewhere: `{selector, value, value_type}`",
    "version": "name of the workflow version",
    "workflow_id": "the workflow version that runs",
}
"""Meanings of fields that have no text in the code. A text in the code wins."""


def texts(kind: type[BaseModel]) -> dict[str, str]:
    """Field -> the text below it in the source, of the class and those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if cls.__module__ not in (model.__name__, Caller.__module__):
            continue
        found |= _texts(cls)
    return found


@cache
def _texts(cls: type[BaseModel]) -> dict[str, str]:
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(ast.literal_eval(text.value)).split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name)
    }


def meaning(name: str) -> str:
    """What the type says, on one line."""
    return " ".join(str(MEANINGS.get(name) or RUN_EVENT_TYPES[name].__doc__).split())


def body_schema(name: str) -> dict[str, Any]:
    """JSON Schema of a record's body. More fields may come, so they are allowed."""
    kind = RUN_EVENT_TYPES[name]
    schema: dict[str, Any] = kind.model_json_schema()
    schema.pop("title", None)
    said = texts(kind)
    for field, details in schema["properties"].items():
        details.pop("title", None)
        text = said.get(field) or FIELDS.get(field)
        if text:
            details["description"] = text
    schema["required"] = ["type", *schema.get("required", ())]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"flowledger:event/{name}/{VERSIONS[name]}",
        "title": name,
        "description": meaning(name),
    } | {key: value for key, value in schema.items() if key != "description"}


def line_schema() -> dict[str, Any]:
    """JSON Schema of one line of a history: what stands beside `data`, and `data` by type."""
    definitions: dict[str, Any] = {}
    cases = []
    for name in RUN_EVENT_TYPES:
        body = body_schema(name)
        definitions |= body.pop("$defs", {})
        data = {key: value for key, value in body.items() if key in ("type", "properties", "required")}
        beside = [field for field in PLACE if field in data["properties"]]
        data["properties"] = {k: v for k, v in data["properties"].items() if k not in ("type", *PLACE)}
        data["required"] = [field for field in data["required"] if field not in ("type", *PLACE)]
        definitions[name] = data
        cases.append(
            {
                "if": {"properties": {"type": {"const": name}}},
                "then": {"properties": {"data": {"$ref": f"#/$defs/{name}"}}, "required": [*beside]},
            }
        )
    names: list[str] = list(RUN_EVENT_TYPES)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "flowledger:history-line/1",
        "title": "HistoryLine",
        "description": "One event of a run, as histories and exports show it.",
        "type": "object",
        "properties": {
            "seq": {"type": "integer", "minimum": 1, "description": "place in the run, without gaps"},
            "type": {"enum": names},
            "at": {"type": "string", "format": "date-time"},
            "run_id": {"type": "string"},
            "node_id": {"type": "string"},
            "node_execution_id": {"type": "string"},
            "path": {"type": "string"},
            "attempt": {"type": "integer", "minimum": 1},
            "data": {"type": "object"},
            "partition": {"type": "integer", "minimum": 0},
            "offset": {"type": "integer", "minimum": 0},
            "epoch": {"type": "integer", "minimum": 1},
            "cause": {"type": "string"},
        },
        "required": ["seq", "type", "at", "run_id", "data", "partition", "offset", "epoch"],
        "allOf": cases,
        "$defs": definitions,
    }


def kind_of(details: dict[str, Any]) -> str:
    """A field's type in few words."""
    if "anyOf" in details:
        return " or ".join(kind_of(each) for each in details["anyOf"] if each.get("type") != "null")
    if "enum" in details:
        return ", ".join(f"`{each}`" for each in details["enum"])
    if "$ref" in details:
        return "object"
    return str(details.get("type", "any"))


def catalogue() -> str:
    return "\n".join(_catalogue()) + "\n"


def _catalogue() -> Iterator[str]:
    lines = {line["type"]: line for line in history()}
    for group, names in GROUPS.items():
        yield f"\n### {group}"
        for name in names:
            yield f"\n#### {name}\n\n{meaning(name)}\n"
            yield from _fields(name)
            yield f"\n```json\n{_compact(lines[name])}\n```"


def _fields(name: str) -> Iterator[str]:
    schema = body_schema(name)
    rows = [(field, details) for field, details in schema["properties"].items() if field not in ("type", *PLACE)]
    if not rows:
        yield "No fields of its own."
        return
    yield "| field of `data` | type | always there | meaning |\n|---|---|---|---|"
    for field, details in rows:
        known = RUN_EVENT_TYPES[name].model_fields[field]
        always = known.is_required() or known.get_default(call_default_factory=True) is not None
        yield f"| `{field}` | {kind_of(details)} | {'yes' if always else 'no'} | {details.get('description', '')} |"


def _compact(line: dict[str, Any]) -> str:
    """One member of `data` a row, the envelope above it."""
    envelope = {key: value for key, value in line.items() if key != "data"}
    head = json.dumps(envelope, ensure_ascii=False)[:-1]
    return f'{head},\n "data": {json.dumps(line["data"], ensure_ascii=False)}}}'


def files() -> dict[Path, str]:
    """Every generated file and what it must contain."""
    made = {HERE / "schemas" / f"{name}.json": _json(body_schema(name)) for name in RUN_EVENT_TYPES}
    made[HERE / "schemas" / "history-line.json"] = _json(line_schema())
    page = HERE / "events.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    made[page] = f"{before}{BEGIN}\n{catalogue()}\n{END}{rest.partition(END)[2]}"
    return made


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    assert {name for names in GROUPS.values() for name in names} == set(RUN_EVENT_TYPES) == set(EXAMPLES)
    for path, text in files().items():
        path.write_text(text, "utf-8")
