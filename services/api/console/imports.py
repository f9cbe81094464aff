"""Documents in and out of the console: import with its statuses, confirmation of what was held back, export.

What is imported is a draft: it may hold mistakes, which publishing and running name. A document of a newer format
waits for a confirmation for ten minutes, at any replica. One at a URL is fetched as nodes fetch: not from private
addresses.
"""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

import yaml
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.drafts import ImportPending
from libs.events.registry import AppChanged, AppCreated, Fact
from libs.workflow.document import parse
from libs.workflow.problems import Findings, kind_of
from services.api import schemas
from services.api.console import shapes
from services.api.console.apps import CONSOLE, MODES, new_app
from services.api.console.asked import flag, optional_text
from services.api.console.fetching import FetchFailed, fetched
from services.api.console.secrets import VARIABLES, without_secrets
from services.api.console.session import Account, App
from services.api.drafting import DSL_VERSION, composed
from services.api.errors import invalid_param, not_found
from services.api.frames import Json
from services.api.parts import Parts
from services.api.requests import read_json
from services.api.schemas import answers, json_body, parameters

PENDING_US: Final = 10 * 60 * 1_000_000
OLDEST_VERSION: Final = "0.1.0"
"""Of a document that does not say its own."""

_VERSION: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}")
_LOOKS: Final = ("description", "icon_type", "icon", "icon_background")
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class ImportFailed(Exception):
    """The document cannot be imported; the text says why."""


def import_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps", tags=["Console"])
    failed: schemas.Responses = {
        400: {"model": shapes.Imported | schemas.Error, "description": "It cannot be imported, or asked for so"}
    }
    held: schemas.Responses = {
        202: {"model": shapes.Imported, "description": "Held back until it is confirmed, for ten minutes"}
    }

    @router.post(
        "/imports",
        summary="Import a document as an app, or over an app's draft",
        description="A document that cannot be imported answers 400 with `status` failed.",
        responses=answers(shapes.Imported, 401, 403, 413, 415, 503) | held | failed,
        openapi_extra=CONSOLE | json_body(shapes.ImportBody),
    )
    async def import_app(request: Request, _: Account) -> Response:
        return await _import(parts, await read_json(request, parts.limits.max_document_bytes * 2))

    @router.post(
        "/imports/{import_id}/confirm",
        summary="Import what was held back",
        responses=answers(shapes.Imported, 401, 403, 503) | failed,
        openapi_extra=CONSOLE,
    )
    async def confirm_import(import_id: str, _: Account) -> Response:
        return await _confirm(parts, import_id)

    @router.get(
        "/imports/{app_id}/check-dependencies",
        summary="Plugins that an app needs and that are not there",
        responses=answers(shapes.Dependencies, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def check_dependencies(_: App) -> Response:
        # There are no plugins here: what needs one is answered by pins, and validation says so.
        return JSONResponse({"leaked_dependencies": []})

    @router.get(
        "/{app_id}/export",
        summary="The draft, or a version, as a document",
        responses=answers(shapes.Exported, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("include_secret", "workflow_id"),
    )
    async def export_app(request: Request, app: App) -> Response:
        workflow_id = request.query_params.get("workflow_id")
        if workflow_id:
            version = parts.registry.version(workflow_id)
            if version is None or version.app_id != app.app_id:
                raise not_found(f'the app has no version "{workflow_id[:64]}"')
            document = await parts.drafting.document_of(version)
        else:
            document = (await parts.drafting.require(app)).document
        made = exported(composed(app, document), secrets=flag(request, "include_secret"))
        return JSONResponse({"data": await parts.threads.run(_as_yaml, made)})

    return router


async def _import(parts: Parts, body: Json) -> Response:
    mode = body.get("mode")
    if mode not in ("yaml-content", "yaml-url"):
        raise invalid_param("mode: expected yaml-content or yaml-url", "mode")
    changes: Json = {name: text for name in ("name", *_LOOKS) if (text := optional_text(body, name)) is not None}
    app_id = optional_text(body, "app_id") or None
    import_id = parts.new_uuid()
    version = ""
    try:
        text = body.get(mode.replace("-", "_"))
        if not isinstance(text, str) or not text.strip():
            raise ImportFailed(f"{mode.replace('-', '_')} is required")
        if mode == "yaml-url":
            text = await fetched(parts.http, text, parts.limits.max_document_bytes)
        document = await parts.threads.run(_readable, text)
        version = _version_of(document)
        if app_id is not None:
            await parts.access.catch_up()
        app = _target(parts, app_id, document)
        status = import_status(version)
        if status == "pending":
            held = ImportPending(
                import_id=import_id, app_id=app_id, document=text, changes=changes, pending_since_us=parts.now_us()
            )
            await parts.publisher.record([held])
            return JSONResponse(_answer(import_id, status, app, document, version), 202)
        made = await _complete(parts, import_id, app, document, changes)
    except (ImportFailed, FetchFailed) as failed:
        return JSONResponse(_failed(import_id, version, str(failed)), 400)
    return JSONResponse(_answer(import_id, status, made, document, version))


async def _confirm(parts: Parts, import_id: str) -> Response:
    await parts.access.catch_up()
    held = parts.registry.drafts.pending_import(import_id)
    version = ""
    try:
        if held is None or parts.now_us() > held.pending_since_us + PENDING_US:
            raise ImportFailed("there is no such import, or it waited for more than ten minutes. Import again")
        document = await parts.threads.run(_readable, held.document)
        version = _version_of(document)
        app = _target(parts, held.app_id, document)
        made = await _complete(parts, import_id, app, document, held.changes)
    except ImportFailed as failed:
        return JSONResponse(_failed(import_id, version, str(failed)), 400)
    await parts.publisher.take_back(f"import/{import_id}")
    return JSONResponse(_answer(import_id, "completed", made, document, version))


async def _complete(
    parts: Parts, import_id: str, app: AppCreated | None, document: Json, changes: Mapping[str, Any]
) -> AppCreated:
    """Make the app or change it, and save its draft. An import confirmed twice makes one app."""
    about = _looks(document) | {name: value for name, value in changes.items() if name != "name"}
    described = document.get("app")
    said = described.get("name") if isinstance(described, dict) else None
    name = changes.get("name") or (said if isinstance(said, str) and said.strip() else None)
    facts: list[Fact]
    if app is None:
        own_id = str(uuid.uuid5(uuid.UUID(import_id), "app"))
        app, facts = new_app(parts, str(name or "workflow"), _mode_of(document), about, own_id)
    else:
        changed = about | ({"name": name} if name else {})
        facts = [AppChanged(change_id=parts.new_uuid(), app_id=app.app_id, updated_at_us=parts.now_us(), **changed)]
    await parts.drafting.replace(app, document, *facts)
    return app


def import_status(version: str) -> str:
    """`completed`, `completed-with-warnings` or `pending`. Raises ImportFailed: it is no version."""
    if _VERSION.fullmatch(version) is None:
        raise ImportFailed(f'version: expected one such as {DSL_VERSION}, got "{version[:40]}"')
    theirs, ours = _numbers(version), _numbers(DSL_VERSION)
    if theirs > ours or theirs[0] < ours[0]:
        return "pending"
    return "completed-with-warnings" if theirs[1] < ours[1] else "completed"


def exported(document: Json, *, secrets: bool) -> Json:
    """What of a document leaves here: nothing that belongs to this installation alone."""
    workflow = {"rag_pipeline_variables": []} | dict(document["workflow"])
    if not secrets:
        for name in VARIABLES:
            workflow[name] = without_secrets(workflow[name])
    graph = dict(workflow["graph"])
    nodes = graph.get("nodes")
    if isinstance(nodes, list):
        graph["nodes"] = [_exported_node(each, secrets=secrets) for each in nodes]
    return document | {"version": DSL_VERSION, "workflow": workflow | {"graph": graph}}


_DEFAULT_SCHEDULE: Final = {
    "mode": "visual",
    "frequency": "daily",
    "cron_expression": "",
    "visual_config": {"time": "12:00 AM", "on_minute": 0, "weekdays": ["sun"], "monthly_days": [1]},
    "timezone": "UTC",
}


def _exported_node(node: Any, *, secrets: bool) -> Any:
    data = node.get("data") if isinstance(node, dict) else None
    if not isinstance(data, dict):
        return node
    data = dict(data)
    match data.get("type"):
        case "trigger-webhook":
            data |= {"webhook_url": "", "webhook_debug_url": ""}
        case "trigger-schedule":
            data |= _DEFAULT_SCHEDULE
        case "trigger-plugin":
            data["subscription_id"] = ""
        case "start" if isinstance(data.get("variables"), list):
            data["variables"] = [_without_local_files(each) for each in data["variables"]]
        case "tool" if not secrets:
            data.pop("credential_id", None)
        case "agent" if not secrets:
            data = _without_credentials(data)
    return node | {"data": data}


def _without_credentials(value: Any) -> Any:
    """Agents name their tools deep inside their parameters."""
    if isinstance(value, dict):
        return {name: _without_credentials(each) for name, each in value.items() if name != "credential_id"}
    return [_without_credentials(each) for each in value] if isinstance(value, list) else value


def _without_local_files(variable: Any) -> Any:
    if not isinstance(variable, dict) or variable.get("type") not in ("file", "file-list"):
        return variable
    default = variable.get("default")
    files = default if isinstance(default, list) else [default]
    if any(isinstance(each, dict) and each.get("transfer_method") == "local_file" for each in files):
        return {name: each for name, each in variable.items() if name != "default"}
    return variable


def _readable(text: str) -> Json:
    findings = Findings()
    document = parse(text, findings)
    if document is None or findings.failed:
        raise ImportFailed("\n".join(map(str, findings.errors())) or "the document cannot be read")
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ImportFailed("the document holds half of a surrogate pair, which is no character") from error
    if not isinstance(document.get("app"), dict):
        raise ImportFailed(f"app: expected a mapping with name and mode, got {kind_of(document.get('app'))}")
    _mode_of(document)
    workflow = document.get("workflow")
    graph = workflow.get("graph") if isinstance(workflow, dict) else None
    if not isinstance(graph, dict):
        raise ImportFailed(f"workflow.graph: expected a mapping with nodes and edges, got {kind_of(graph)}")
    return document


def _mode_of(document: Json) -> str:
    mode = document["app"].get("mode")
    if mode not in MODES:
        raise ImportFailed(f"app.mode: expected one of {', '.join(MODES)}, got {str(mode)[:40]!r}")
    return str(mode)


def _version_of(document: Json) -> str:
    version = document.get("version", OLDEST_VERSION)
    if not isinstance(version, str):
        raise ImportFailed(f'version: expected text such as "{DSL_VERSION}", got {kind_of(version)}. Put it in quotes')
    return version


def _target(parts: Parts, app_id: str | None, document: Json) -> AppCreated | None:
    if app_id is None:
        return None
    app = parts.registry.app(app_id)
    if app is None:
        raise ImportFailed(f'app "{app_id[:64]}" does not exist')
    if app.mode != _mode_of(document):
        raise ImportFailed(f'app "{app.name}" is of mode {app.mode}, the document is of mode {_mode_of(document)}')
    return app


def _looks(document: Json) -> Json:
    about = document["app"]
    found = {name: about[name] for name in _LOOKS if isinstance(about.get(name), str)}
    if isinstance(about.get("use_icon_as_answer_icon"), bool):
        found["use_icon_as_answer_icon"] = about["use_icon_as_answer_icon"]
    return found


def _numbers(version: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in version.split(".")]
    numbers += [0] * (3 - len(numbers))
    return numbers[0], numbers[1], numbers[2]


def _answer(import_id: str, status: str, app: AppCreated | None, document: Json, version: str) -> Json:
    return {
        "id": import_id,
        "status": status,
        "app_id": app.app_id if app is not None else None,
        "app_mode": _mode_of(document),
        "current_dsl_version": DSL_VERSION,
        "imported_dsl_version": version,
        "error": "",
    }


def _failed(import_id: str, version: str, error: str) -> Json:
    return {
        "id": import_id,
        "status": "failed",
        "app_id": None,
        "app_mode": None,
        "current_dsl_version": DSL_VERSION,
        "imported_dsl_version": version,
        "error": error,
    }


class _PlainDumper(_Dumper):  # type: ignore[misc]  # the class depends on what PyYAML was built with
    """Writes every value where it stands; readers of documents need not know anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _as_yaml(document: Json) -> str:
    made: str = yaml.dump(document, Dumper=_PlainDumper, allow_unicode=True, sort_keys=False, width=1_000_000)
    return made
