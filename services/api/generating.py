"""Asking a model for somebody who edits: a workflow of one model node, run like any other, and what it left.

So a question has the providers, settings, retries and records of model nodes, and survives its process; this service
knows no provider. Its runs belong to no app and count as debugging. What was asked stands in the log, as all inputs do.
"""

import json
import uuid
from dataclasses import dataclass
from typing import Any, Final

from libs.events.model import NodeFailed, RunEnd, RunSucceeded
from libs.events.registry import AppCreated, DocumentStored, VersionPublished
from libs.workflow.definition import check_document
from services.api.access import Principal
from services.api.account import ADMIN_ID
from services.api.drafting import DEBUGGING, DSL_VERSION
from services.api.errors import ApiError
from services.api.frames import Json
from services.api.parts import Parts
from services.api.publishing import document_invalid
from services.api.requests import RunRequest
from services.api.starting import Wanted

GENERATORS: Final = AppCreated(
    app_id=str(uuid.uuid5(uuid.UUID(int=0), "generators")), name="generators", created_at_us=0
)
"""Stands where runs name their app; the registry has none of this id."""

VERSION: Final = "generator"
_ASKS: Final = "ask"
_UNUSABLE: Final = "LLMNodeError"
"""Type of a node's failure when its model has answered, and the answer is not what was asked for."""
_NO_PROVIDER: Final = "ModelNotExistError"


@dataclass(slots=True, frozen=True)
class Model:
    """Which model to ask, and how, as documents say it."""

    provider: str
    name: str
    mode: str
    parameters: Json


class Unusable(Exception):
    """The model has answered, and not what it was asked for. The text is for people."""


async def ask_model(parts: Parts, model: Model, system: str, user: str, schema: Json | None = None) -> Any:
    """The model's text, or with a `schema` its object.

    Raises Unusable; ApiError: 400 `provider_not_initialize`, `completion_request_error`, and what a start may raise.
    """
    wanted = Wanted(
        Principal(None),
        GENERATORS,
        await _version(parts, model, schema),
        ADMIN_ID,
        RunRequest({"system": system, "user": user}, (), False, None),
        "",
        triggered_from=DEBUGGING,
        invoke_from="debugger",
    )
    run_id = await parts.starter.finished(wanted)
    history = [recorded.event for recorded in await parts.folds.history(run_id, Principal(None))]
    end = next((event for event in reversed(history) if isinstance(event, RunEnd)), None)
    if isinstance(end, RunSucceeded):
        return end.outputs.get("answer")
    failed = next((event for event in history if isinstance(event, NodeFailed)), None)
    if failed is None:
        why = end.error if end is not None and end.error else "the call was stopped"
        raise ApiError(400, "completion_request_error", f"{why} (run {run_id})")
    if failed.error_type == _UNUSABLE:
        raise Unusable(failed.error)
    if failed.error_type == _NO_PROVIDER:
        raise ApiError(400, "provider_not_initialize", failed.error)
    raise ApiError(400, "completion_request_error", failed.error)


async def _version(parts: Parts, model: Model, schema: Json | None) -> VersionPublished:
    """The workflow, with its document in the log. Raises ApiError."""
    text = json.dumps(_document(model, schema), ensure_ascii=False)
    definition, problems = await parts.threads.run(check_document, text)
    if definition is None or any(problem.severity == "error" for problem in problems):
        raise document_invalid(problems)
    if not parts.registry.has_document(definition.digest):
        await parts.publisher.record([DocumentStored(digest=definition.digest, document=text)])
    return VersionPublished(
        app_id=GENERATORS.app_id,
        workflow_id=GENERATORS.app_id,
        version=VERSION,
        digest=definition.digest,
        published_at_us=0,
    )


def _document(model: Model, schema: Json | None) -> Json:
    """What differs from question to question comes as inputs, so that a model has one document for each schema."""
    placed = {name: f"{{{{#start.{name}#}}}}" for name in ("system", "user")}
    question: Any = [{"role": role, "text": text} for role, text in placed.items()]
    if model.mode == "completion":
        question = {"text": "\n\n".join(placed.values())}
    asks: Json = {
        "type": "llm",
        "title": "Ask",
        "model": {
            "provider": model.provider,
            "name": model.name,
            "mode": model.mode,
            "completion_params": model.parameters,
        },
        "prompt_template": question,
        "reasoning_format": "separated",
        "structured_output_enabled": schema is not None,
    }
    if schema is not None:
        asks["structured_output"] = {"schema": schema}
    variables = [{"variable": name, "label": name, "type": "paragraph", "required": True} for name in placed]
    answer = {"variable": "answer", "value_selector": [_ASKS, "text" if schema is None else "structured_output"]}
    nodes: Json = {
        "start": {"type": "start", "title": "Start", "variables": variables},
        _ASKS: asks,
        "end": {"type": "end", "title": "End", "outputs": [answer]},
    }
    return {
        "version": DSL_VERSION,
        "kind": "app",
        "app": {"name": GENERATORS.name, "mode": "workflow"},
        "dependencies": [],
        "workflow": {
            "graph": {
                "nodes": [{"id": node_id, "data": data} for node_id, data in nodes.items()],
                "edges": [{"source": "start", "target": _ASKS}, {"source": _ASKS, "target": "end"}],
            }
        },
    }
