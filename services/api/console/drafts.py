"""The draft of an app and its published versions: load, save, back up, publish, mark, delete, restore.

A save carries the hash of the draft it was made from. When that is not the draft any more, the save is refused with
409, whichever replica it came to; what decides is the order of the log, so two editors never both win.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from libs.events.registry import AppCreated, VersionDeleted, VersionMarked, VersionPublished
from libs.workflow.definition import Definition
from libs.workflow.node_configs import ROOT_TYPES
from libs.workflow.problems import Findings, kind_of
from libs.workflow.roots import root_nodes
from libs.workflow.schedules import ScheduleInvalid, schedule_of
from libs.workflow.variables import read_variables
from services.api import schemas
from services.api.account import ADMIN_ID
from services.api.bodies import Body, DocumentBody, OptionalBody
from services.api.console import shapes
from services.api.console.apps import CONSOLE, NOBODY
from services.api.console.asked import answered, flag, optional_text, paging
from services.api.console.secrets import VARIABLES, masked, restored
from services.api.console.session import App, app_of
from services.api.drafting import DRAFT, DSL_VERSION, Draft, draft_workflow_id, named, not_in_sync, workflow_of
from services.api.errors import ApiError, bad_request, forbidden, invalid_param, not_found
from services.api.frames import Json
from services.api.parts import Parts
from services.api.publishing import graph_hash
from services.api.requests import read_json
from services.api.schemas import answers, json_body, parameters

MAX_NAME = 20
MAX_COMMENT = 100
TRIGGERS = ROOT_TYPES - {"start", "datasource"}


def draft_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps/{app_id}/workflows", tags=["Console"])

    @router.get(
        "/draft",
        summary="The draft",
        responses=answers(shapes.Workflow, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def get_draft(app: App) -> Response:
        return answered(_of_draft(app, await parts.drafting.require(app)))

    @router.post(
        "/draft",
        summary="Save the draft",
        responses=answers(shapes.Synced, 400, 401, 403, 404, 409, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.DraftBody),
    )
    async def save_draft(request: Request, app_id: str) -> Response:
        app = await app_of(parts, request, app_id, csrf=False)  # browsers send it as a beacon, without headers
        body = await read_json(request, parts.limits.max_document_bytes, beacon=True)
        return await _save(parts, app, body)

    @router.post(
        "/draft/features",
        summary="Change the features of the draft",
        responses=answers(schemas.Result, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.FeaturesBody),
    )
    async def save_features(app: App, body: DocumentBody) -> Response:
        await _change(parts, app, {"features": _mapping(body, "features")})
        return answered({"result": "success"})

    @router.post(
        "/draft/environment-variables",
        summary="Replace the environment variables of the draft",
        responses=answers(schemas.Result, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.EnvironmentBody),
    )
    async def save_environment(app: App, body: DocumentBody) -> Response:
        await _change(parts, app, {"environment_variables": _variables(body, "environment_variables")})
        return answered({"result": "success"})

    @router.post(
        "/draft/conversation-variables",
        summary="Replace the conversation variables of the draft",
        responses=answers(schemas.Result, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.ConversationBody),
    )
    async def save_conversation(app: App, body: DocumentBody) -> Response:
        await _change(parts, app, {"conversation_variables": _variables(body, "conversation_variables")})
        return answered({"result": "success"})

    @router.post(
        "/draft/backup",
        summary="Put a copy of the draft aside",
        description="In place of the copy before. Ours: the reference's editor keeps its copy in the browser.",
        status_code=201,
        responses=answers(shapes.Backup, 401, 403, 404, 503, status=201),
        openapi_extra=CONSOLE,
    )
    async def back_up(app: App) -> Response:
        draft = await parts.drafting.require(app)
        made = await parts.drafting.back_up(app, draft)
        return answered(_backup(made.draft_id, made.hash, made.backed_up_at_us, draft.document), 201)

    @router.get(
        "/draft/backup",
        summary="The copy that was put aside",
        responses=answers(shapes.Backup, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def get_backup(app: App) -> Response:
        made, document = await parts.drafting.backup(app)
        return answered(_backup(made.draft_id, made.hash, made.backed_up_at_us, document))

    @router.post(
        "/draft/backup/restore",
        summary="Make the copy the draft again",
        responses=answers(shapes.Synced, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def restore_backup(app: App) -> Response:
        _, document = await parts.drafting.backup(app)
        return answered(await _replace(parts, app, document))

    _publishing(router, parts)
    return router


def _publishing(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/publish",
        summary="The version that runs now, or null",
        responses=answers(shapes.Workflow | None, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def get_published(app: App) -> Response:
        latest = parts.registry.latest(app.app_id)
        return answered(None if latest is None else await _of_version(parts, latest))

    @router.post(
        "/publish",
        summary="Publish the draft",
        responses=answers(shapes.PublishedAt, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.PublishBody, required=False),
    )
    async def publish(app: App, body: OptionalBody) -> Response:
        name = optional_text(body, "marked_name", MAX_NAME) or ""
        comment = optional_text(body, "marked_comment", MAX_COMMENT) or ""
        draft = await parts.drafting.require(app)
        _check_roots(draft.workflow["graph"])
        definition, text = await parts.drafting.compiled(app, draft)
        _check_schedules(definition)
        version = await parts.publisher.publish(app, definition, text, name, comment)
        return answered({"result": "success", "created_at": version.published_at_us // 1_000_000})

    @router.get(
        "",
        summary="Draft and versions, newest first",
        responses=answers(shapes.WorkflowPage, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("page", "limit", "user_id", "named_only"),
    )
    async def list_versions(request: Request, app: App) -> Response:
        return await _list(parts, request, app)

    @router.patch(
        "/{workflow_id}",
        summary="Name a version",
        responses=answers(shapes.Workflow, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.PublishBody),
    )
    async def mark_version(app: App, workflow_id: str, body: Body) -> Response:
        version = _version(parts, app, workflow_id)
        name = optional_text(body, "marked_name", MAX_NAME)
        comment = optional_text(body, "marked_comment", MAX_COMMENT)
        if name is None and comment is None:
            raise invalid_param("give marked_name or marked_comment")
        fact = VersionMarked(
            change_id=parts.new_uuid(),
            workflow_id=version.workflow_id,
            marked_name=name,
            marked_comment=comment,
            marked_at_us=parts.now_us(),
        )
        await parts.publisher.record([fact])
        return answered(await _of_version(parts, parts.registry.version(workflow_id) or version))

    @router.delete(
        "/{workflow_id}",
        summary="Delete a version that is not the current one",
        status_code=204,
        responses=schemas.nothing(400, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def delete_version(request: Request, app: App, workflow_id: str) -> Response:
        version = _version(parts, app, workflow_id)
        if parts.registry.latest(app.app_id) == version:
            raise bad_request("the version is the app's current one. Publish another one first")
        fact = VersionDeleted(app_id=app.app_id, workflow_id=workflow_id, deleted_at_us=parts.now_us())
        await parts.publisher.record([fact])
        return Response(status_code=204)

    @router.post(
        "/{workflow_id}/restore",
        summary="Make a version the draft",
        responses=answers(shapes.Synced, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def restore_version(app: App, workflow_id: str) -> Response:
        document = await parts.drafting.document_of(_version(parts, app, workflow_id))
        return answered(await _replace(parts, app, document))


async def _save(parts: Parts, app: AppCreated, body: Json) -> Response:
    graph = _mapping(body, "graph")
    _check_roots(graph)
    base = body.get("hash")
    if base is not None and not isinstance(base, str):
        raise invalid_param("hash: expected a text", "hash")
    given: Json = {"graph": graph}
    if body.get("features") is not None:
        given["features"] = _mapping(body, "features")
    for name in VARIABLES:
        if body.get(name) is not None:
            given[name] = _variables(body, name)

    def made(current: Draft | None) -> Json:
        if current is not None and current.hash != (base or None):
            raise not_in_sync()
        return _with(current, given)

    draft = await parts.drafting.save(app, made)
    return answered(_synced(draft))


async def _change(parts: Parts, app: AppCreated, parts_of_draft: Json) -> None:
    """Change parts of the draft other than its graph, whoever has saved meanwhile."""

    def made(current: Draft | None) -> Json:
        if current is None:
            raise ApiError(404, "draft_workflow_not_exist", "the app has no draft yet")
        return _with(current, parts_of_draft)

    await parts.drafting.save(app, made)


async def _replace(parts: Parts, app: AppCreated, document: Json) -> Json:
    """Make `document` the draft, whatever the draft is."""
    await parts.drafting.replace(app, document)
    draft = await parts.drafting.require(app)
    return _synced(draft)


def _with(current: Draft | None, given: Json) -> Json:
    document = dict(current.document) if current is not None else {"version": DSL_VERSION}
    kept = workflow_of(document)
    for name in VARIABLES:
        if name in given:
            given = given | {name: restored(given[name], kept[name])}
    return document | {"workflow": {**_all_of(document), **kept, **given}}


def _all_of(document: Json) -> Json:
    """The workflow of a document, with what editors do not work on."""
    workflow = document.get("workflow")
    return dict(workflow) if isinstance(workflow, dict) else {}


async def _list(parts: Parts, request: Request, app: AppCreated) -> Response:
    page, limit = paging(request, default_limit=10)
    if request.query_params.get("user_id") not in (None, "", ADMIN_ID):
        raise forbidden("user_id: only the caller's own versions can be asked for")
    named_only = flag(request, "named_only")
    draft = None if named_only else await parts.drafting.find(app)
    versions = [one for one in reversed(parts.registry.versions(app.app_id)) if one.marked_name or not named_only]
    everything: list[Draft | VersionPublished] = [*([draft] if draft is not None else []), *versions]
    shown = everything[(page - 1) * limit : page * limit]
    items = [_of_draft(app, one) if isinstance(one, Draft) else await _of_version(parts, one) for one in shown]
    return answered({"items": items, "page": page, "limit": limit, "has_more": page * limit < len(everything)})


def _version(parts: Parts, app: AppCreated, workflow_id: str) -> VersionPublished:
    if workflow_id in (DRAFT, draft_workflow_id(app.app_id)):
        raise bad_request("the draft is not a version. Publish it first")
    version = parts.registry.version(workflow_id)
    if version is None or version.app_id != app.app_id:
        raise not_found(f'the app has no version "{workflow_id[:64]}"')
    return version


# --- what requests bring ---


def _mapping(body: Json, name: str) -> Json:
    value = body.get(name)
    if not isinstance(value, dict):
        raise invalid_param(f"{name}: expected an object", name)
    return value


def _variables(body: Json, name: str) -> list[Any]:
    """Raises ApiError 400 for variables that no run could use."""
    value = body.get(name)
    if not isinstance(value, list):
        raise invalid_param(f"{name}: expected a list", name)
    findings = Findings()
    read_variables(value, "env" if name == "environment_variables" else "conversation", name, findings)
    for number, one in enumerate(value):
        for key in ("id", "description"):
            if isinstance(one, dict) and not isinstance(one.get(key), str | None):
                findings.error(f"{name}[{number}].{key}", f"expected a text, got {kind_of(one[key])}")
    if findings.failed:
        raise invalid_param("\n".join(map(str, findings.errors())), name)
    return value


def _check_roots(graph: Mapping[str, Any]) -> None:
    """Raises ApiError 400: a workflow is started by people or by triggers, not by both."""
    nodes = graph.get("nodes")
    datas = [node.get("data") for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    types = {data.get("type") for data in datas if isinstance(data, dict) and isinstance(data.get("type"), str)}
    if "start" in types and types & TRIGGERS:
        raise invalid_param("graph.nodes: a start node and a trigger cannot stand in one workflow. Remove one", "graph")


def _check_schedules(definition: Definition) -> None:
    """Raises ApiError 400 for a schedule that no clock can keep: it would be published and never run."""
    for node in root_nodes(definition):
        if node.type == "trigger-schedule":
            try:
                schedule_of(node.data)
            except ScheduleInvalid as error:
                raise invalid_param(f'node "{node.id}": {error}') from error


# --- answers ---


def _of_draft(app: AppCreated, draft: Draft) -> Json:
    at_us = draft.saved.saved_at_us
    return _workflow(draft_workflow_id(app.app_id), DRAFT, draft.document, draft.hash, at_us, ("", ""))


async def _of_version(parts: Parts, version: VersionPublished) -> Json:
    document = await parts.drafting.document_of(version)
    marks = (version.marked_name, version.marked_comment)
    graph = workflow_of(document)["graph"]
    return _workflow(version.workflow_id, version.version, document, graph_hash(graph), version.published_at_us, marks)


def _workflow(workflow_id: str, version: str, document: Json, hashed: str, at_us: int, marks: tuple[str, str]) -> Json:
    workflow = workflow_of(document)
    return {
        "id": workflow_id,
        "graph": workflow["graph"],
        "features": workflow["features"],
        "hash": hashed,
        "version": version,
        "marked_name": marks[0],
        "marked_comment": marks[1],
        "created_by": NOBODY,
        "created_at": at_us // 1_000_000,
        "updated_by": NOBODY,
        "updated_at": at_us // 1_000_000,
        "tool_published": False,
        **_shown_variables(workflow),
        "rag_pipeline_variables": [],
    }


def _backup(backup_id: str, hashed: str, at_us: int, document: Json) -> Json:
    workflow = workflow_of(document)
    return {
        "id": backup_id,
        "hash": hashed,
        "created_at": at_us // 1_000_000,
        "graph": workflow["graph"],
        "features": workflow["features"],
        **_shown_variables(workflow),
    }


def _shown_variables(workflow: Json) -> Json:
    return {name: named(masked(workflow[name])) for name in VARIABLES}


def _synced(draft: Draft) -> Json:
    return {"result": "success", "hash": draft.hash, "updated_at": draft.saved.saved_at_us // 1_000_000}
