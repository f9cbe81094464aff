"""Our own paths for apps, their versions and their keys."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.registry import AppCreated, KeyCreated
from libs.workflow.roots import default_root
from services.api import schemas
from services.api.errors import bad_request
from services.api.frames import Json
from services.api.parts import Parts
from services.api.publishing import problem_json
from services.api.requests import read_body, read_json
from services.api.schemas import answers, json_body, secured
from services.api.views import moment


def app_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/apps", tags=["Apps"])

    @router.post(
        "/import",
        summary="Import a workflow document",
        description="The body is the document (YAML or JSON). `app` updates and publishes an existing app.",
        responses=answers(schemas.Imported, 400, 401, 403, 404, 413, 503),
        openapi_extra=schemas.document_body() | secured("admin") | schemas.parameters("app", "key"),
    )
    async def import_document(request: Request) -> Response:
        principal = await parts.access.admin(request)
        document = await read_body(request, parts.limits.max_document_bytes, "the document")
        if not document.strip():
            raise bad_request("the body must be a workflow document")
        app_id = request.query_params.get("app") or request.query_params.get("app_id")
        app = await parts.access.app(app_id, principal) if app_id else None
        wants_key = app is None or request.query_params.get("key", "").lower() in ("true", "1", "yes")
        made = await parts.publisher.import_document(document, app, with_key=wants_key)
        answer = {
            "app_id": made.app.app_id,
            "name": made.app.name,
            "mode": made.app.mode,
            "workflow_id": made.version.workflow_id,
            "version": made.version.version,
            "api_key": made.api_key,
            "warnings": [problem_json(each) for each in made.warnings],
            "digest": made.version.digest,
        }
        return JSONResponse(answer)

    @router.get(
        "",
        summary="List apps",
        responses=answers(schemas.AppList, 401),
        openapi_extra=secured("admin", "app_key"),
    )
    async def list_apps(request: Request) -> Response:
        principal = await parts.access.anyone(request)
        apps = [app for app in parts.registry.apps() if principal.may_see(app.app_id)]
        return JSONResponse({"data": [_app(parts, app) for app in apps]})

    @router.get(
        "/{app_id}",
        summary="One app, its versions and declared inputs",
        responses=answers(schemas.AppDetail, 401, 404),
        openapi_extra=secured("admin", "app_key"),
    )
    async def get_app(request: Request, app_id: str) -> Response:
        principal = await parts.access.anyone(request)
        app = await parts.access.app(app_id, principal)
        return JSONResponse(_app(parts, app) | {"inputs": await _inputs(parts, app)})

    @router.get(
        "/{app_id}/keys",
        summary="List an app's keys",
        responses=answers(schemas.KeyList, 401, 403, 404),
        openapi_extra=secured("admin"),
    )
    async def list_keys(request: Request, app_id: str) -> Response:
        app = await parts.access.app(app_id, await parts.access.admin(request))
        return JSONResponse({"data": [_key(key) for key in parts.registry.keys(app.app_id)]})

    @router.post(
        "/{app_id}/keys",
        summary="Make a key, or add an existing one",
        description="The whole key is shown in this answer only.",
        status_code=201,
        responses=answers(schemas.NewKey, 400, 401, 403, 404, 415, 503, status=201),
        openapi_extra=json_body(schemas.KeyBody, required=False) | secured("admin"),
    )
    async def add_key(request: Request, app_id: str) -> Response:
        app = await parts.access.app(app_id, await parts.access.admin(request))
        body = await read_json(request, parts.limits.max_body_bytes, optional=True)
        fact, key = await parts.publisher.add_key(app, body.get("key"))
        return JSONResponse(_key(fact) | {"key": key}, 201)

    @router.delete(
        "/{app_id}/keys/{key_id}",
        summary="Revoke a key",
        responses=answers(schemas.Result, 401, 403, 404, 503),
        openapi_extra=secured("admin"),
    )
    async def revoke_key(request: Request, app_id: str, key_id: str) -> Response:
        app = await parts.access.app(app_id, await parts.access.admin(request))
        await parts.publisher.revoke_key(app, key_id)
        return JSONResponse({"result": "success"})

    @router.delete(
        "/{app_id}/keys",
        summary="Revoke a key, its id in the query",
        responses=answers(schemas.Result, 400, 401, 403, 404, 503),
        openapi_extra=secured("admin") | schemas.parameters("id", required=("id",)),
    )
    async def revoke_key_by_query(request: Request, app_id: str) -> Response:
        app = await parts.access.app(app_id, await parts.access.admin(request))
        key_id = request.query_params.get("id")
        if not key_id:
            raise bad_request("id: the id of the key is required")
        await parts.publisher.revoke_key(app, key_id)
        return JSONResponse({"result": "success"})

    return router


def _app(parts: Parts, app: AppCreated) -> Json:
    versions = parts.registry.versions(app.app_id)
    latest = versions[-1] if versions else None
    return {
        "app_id": app.app_id,
        "name": app.name,
        "mode": app.mode,
        "workflow_id": latest.workflow_id if latest else None,
        "versions": [
            {"workflow_id": one.workflow_id, "version": one.version, "published_at": moment(one.published_at_us)}
            for one in versions
        ],
        "description": app.description,
        "icon": app.icon,
        "icon_background": app.icon_background,
        "created_at": moment(app.created_at_us),
        "digest": latest.digest if latest else None,
    }


async def _inputs(parts: Parts, app: AppCreated) -> list[Json]:
    """The declared inputs of the newest version, as its document has them."""
    latest = parts.registry.latest(app.app_id)
    if latest is None:
        return []
    definition = await parts.starter.definition(latest)
    declared = definition.nodes[default_root(definition)].data.get("variables")
    return [dict(one) for one in declared or () if isinstance(one, dict)]


def _key(key: KeyCreated) -> Json:
    return {"id": key.key_id, "prefix": key.prefix, "created_at": moment(key.created_at_us)}
