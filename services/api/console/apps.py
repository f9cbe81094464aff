"""Apps at the console: list, make, change, copy, delete; their keys; switches of API and page."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.registry import AppChanged, AppCreated, AppDeleted, Fact, KeyCreated
from services.api import schemas
from services.api.about import site_of
from services.api.account import ADMIN_ACCOUNT, ADMIN_ID
from services.api.bodies import Body, OptionalBody
from services.api.console import shapes
from services.api.console.asked import boolean, optional_text, paging, text
from services.api.console.session import Account, App
from services.api.errors import ApiError, invalid_param
from services.api.frames import Json
from services.api.parts import Parts
from services.api.schemas import answers, json_body, parameters, secured

MODES = ("workflow", "advanced-chat")
MAX_DESCRIPTION = 400
NOBODY = ADMIN_ACCOUNT
"""The account that holds the admin token, as records show it."""

CONSOLE = secured("session", "admin")


def console_app_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps", tags=["Console"])

    @router.get(
        "",
        summary="List apps, newest first",
        responses=answers(shapes.AppPage, 400, 401, 403, 503),
        openapi_extra=CONSOLE | parameters("page", "limit", "mode", "name"),
    )
    async def list_apps(request: Request, _: Account) -> Response:
        return await _list(parts, request)

    @router.post(
        "",
        summary="Make an app without a workflow",
        status_code=201,
        responses=answers(shapes.AppDetail, 400, 401, 403, 413, 415, 503, status=201),
        openapi_extra=CONSOLE | json_body(shapes.AppBody),
    )
    async def make_app(request: Request, _: Account, body: Body) -> Response:
        mode = body.get("mode")
        if mode not in MODES:
            raise invalid_param(f"mode: expected one of {', '.join(MODES)}", "mode")
        app, facts = new_app(parts, text(body, "name"), str(mode), _described(body))
        await parts.publisher.record(facts)
        return JSONResponse(app_detail(parts, request, parts.registry.app(app.app_id) or app), 201)

    @router.get(
        "/{app_id}",
        summary="An app",
        responses=answers(shapes.AppDetail, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def get_app(request: Request, app: App) -> Response:
        return JSONResponse(app_detail(parts, request, app))

    @router.put(
        "/{app_id}",
        summary="Change an app",
        responses=answers(shapes.AppDetail, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.AppChangeBody),
    )
    async def put_app(request: Request, app: App, body: Body) -> Response:
        changes = _described(body)
        if "name" in body:
            changes["name"] = text(body, "name")
        if body.get("use_icon_as_answer_icon") is not None:
            changes["use_icon_as_answer_icon"] = boolean(body, "use_icon_as_answer_icon")
        most = body.get("max_active_requests")
        if most is not None:
            if isinstance(most, bool) or not isinstance(most, int) or most < 0:
                raise invalid_param("max_active_requests: expected a whole number of at least 0", "max_active_requests")
            changes["max_active_requests"] = most
        return await _change(parts, request, app, changes)

    @router.delete(
        "/{app_id}",
        summary="Delete an app",
        description="Its keys open nothing any more. Its runs stay in the log.",
        status_code=204,
        responses=schemas.nothing(401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def delete_app(app: App) -> Response:
        await parts.drafting.delete(app, AppDeleted(app_id=app.app_id, deleted_at_us=parts.now_us()))
        return Response(status_code=204)

    @router.post(
        "/{app_id}/copy",
        summary="Copy an app with its draft",
        status_code=201,
        responses=answers(shapes.AppDetail, 400, 401, 403, 404, 413, 415, 503, status=201),
        openapi_extra=CONSOLE | json_body(shapes.AppChangeBody, required=False),
    )
    async def copy_app(request: Request, app: App, body: OptionalBody) -> Response:
        return await _copy(parts, request, app, body)

    @router.post(
        "/{app_id}/convert-to-workflow",
        summary="Make a workflow of a chat or completion app, which do not exist here",
        responses=schemas.errors(401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def convert_app(app: App) -> Response:
        raise ApiError(
            404, "app_not_found", f'app "{app.name}" is a {app.mode} app already: there is nothing to convert'
        )

    @router.post(
        "/{app_id}/site-enable",
        summary="Switch the app's page on or off",
        responses=answers(shapes.AppDetail, 400, 401, 403, 404, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.SiteEnableBody),
    )
    async def enable_site(request: Request, app: App, body: Body) -> Response:
        on = boolean(body, "enable_site")
        code = {} if app.site_code else {"site_code": parts.publisher.make_site_code()}
        return await _change(parts, request, app, {"enable_site": on} | code)

    @router.post(
        "/{app_id}/api-enable",
        summary="Switch the app's API on or off",
        responses=answers(shapes.AppDetail, 400, 401, 403, 404, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.ApiEnableBody),
    )
    async def enable_api(request: Request, app: App, body: Body) -> Response:
        on = boolean(body, "enable_api")
        return await _change(parts, request, app, {"enable_api": on})

    @router.get(
        "/{app_id}/api-keys",
        summary="List the app's keys",
        responses=answers(shapes.ConsoleKeys, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def list_keys(app: App) -> Response:
        # Only hashes are kept: what is shown of a key is its beginning.
        keys = [_key(key, f"{key.prefix}...") for key in parts.registry.keys(app.app_id)]
        return JSONResponse({"data": keys})

    @router.post(
        "/{app_id}/api-keys",
        summary="Make a key",
        description="The whole key is shown in this answer only.",
        status_code=201,
        responses=answers(shapes.ConsoleKey, 400, 401, 403, 404, 503, status=201),
        openapi_extra=CONSOLE,
    )
    async def make_key(app: App) -> Response:
        fact, key = await parts.publisher.add_key(app, None)
        return JSONResponse(_key(fact, key), 201)

    @router.delete(
        "/{app_id}/api-keys/{key_id}",
        summary="Revoke a key",
        status_code=204,
        responses=schemas.nothing(401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def revoke_key(app: App, key_id: str) -> Response:
        await parts.publisher.revoke_key(app, key_id)
        return Response(status_code=204)

    return router


def new_app(
    parts: Parts, name: str, mode: str, about: Json, app_id: str | None = None
) -> tuple[AppCreated, list[Fact]]:
    """An app and the facts that make it. `about`: what `AppChanged` can say of it."""
    now_us = parts.now_us()
    app = AppCreated(app_id=app_id or parts.new_uuid(), name=name, mode=mode, created_at_us=now_us)  # type: ignore[arg-type]  # pydantic checks it
    code = parts.publisher.make_site_code()
    more = AppChanged(change_id=parts.new_uuid(), app_id=app.app_id, site_code=code, updated_at_us=now_us, **about)
    return app, [app, more]


def app_partial(parts: Parts, app: AppCreated) -> Json:
    latest = parts.registry.latest(app.app_id)
    workflow = None
    if latest is not None:
        at = latest.published_at_us // 1_000_000
        workflow = {
            "id": latest.workflow_id,
            "created_by": ADMIN_ID,
            "created_at": at,
            "updated_by": ADMIN_ID,
            "updated_at": at,
        }
    return {
        "id": app.app_id,
        "name": app.name,
        "description": app.description,
        "mode": app.mode,
        "icon_type": app.icon_type or None,
        "icon": app.icon,
        "icon_background": app.icon_background,
        "icon_url": None,
        "max_active_requests": app.max_active_requests,
        "use_icon_as_answer_icon": app.use_icon_as_answer_icon,
        "model_config": None,
        "workflow": workflow,
        "tags": [],
        "access_mode": None,
        "author_name": None,
        "create_user_name": None,
        "created_by": ADMIN_ID,
        "created_at": app.created_at_us // 1_000_000,
        "updated_by": ADMIN_ID,
        "updated_at": (app.updated_at_us or app.created_at_us) // 1_000_000,
    }


def app_detail(parts: Parts, request: Request, app: AppCreated) -> Json:
    base = str(request.base_url).rstrip("/")
    return app_partial(parts, app) | {
        "enable_site": app.enable_site and bool(app.site_code),
        "enable_api": app.enable_api,
        "tracing": None,
        "api_base_url": f"{base}/v1",
        "site": site_of(app, None)
        | {
            "access_token": app.site_code,
            "code": app.site_code,
            "icon_type": app.icon_type or None,
            "icon": app.icon,
            "icon_background": app.icon_background,
            "icon_url": None,
            "description": app.description,
            "use_icon_as_answer_icon": app.use_icon_as_answer_icon,
            "app_base_url": base,
        },
        "deleted_tools": [],
    }


async def _list(parts: Parts, request: Request) -> Response:
    await parts.access.catch_up()
    page, limit = paging(request, default_limit=20)
    mode = request.query_params.get("mode") or "all"
    name = request.query_params.get("name", "").casefold()
    apps = [
        app
        for app in sorted(parts.registry.apps(), key=lambda app: (app.created_at_us, app.app_id), reverse=True)
        if mode in ("all", app.mode) and name in app.name.casefold()
    ]
    shown = apps[(page - 1) * limit : page * limit]
    return JSONResponse(
        {
            "page": page,
            "limit": limit,
            "total": len(apps),
            "has_more": page * limit < len(apps),
            "data": [app_partial(parts, app) for app in shown],
        }
    )


async def _change(parts: Parts, request: Request, app: AppCreated, changes: Json) -> Response:
    if changes:
        fact = AppChanged(change_id=parts.new_uuid(), app_id=app.app_id, updated_at_us=parts.now_us(), **changes)
        await parts.publisher.record([fact])
    return JSONResponse(app_detail(parts, request, parts.registry.app(app.app_id) or app))


async def _copy(parts: Parts, request: Request, app: AppCreated, body: Json) -> Response:
    about = {
        "description": app.description,
        "icon_type": app.icon_type,
        "icon": app.icon,
        "icon_background": app.icon_background,
        "use_icon_as_answer_icon": app.use_icon_as_answer_icon,
    }
    name = text(body, "name") if body.get("name") is not None else f"{app.name} copy"
    copy, facts = new_app(parts, name, app.mode, about | _described(body))
    draft = await parts.drafting.find(app)
    if draft is not None:
        facts += parts.drafting.overwriting(copy, draft.document)
    await parts.publisher.record(facts)
    return JSONResponse(app_detail(parts, request, parts.registry.app(copy.app_id) or copy), 201)


def _described(body: Json) -> Json:
    """What a body says about the looks of an app. Raises ApiError 400."""
    found: dict[str, Any] = {}
    for name in ("description", "icon_type", "icon", "icon_background"):
        value = optional_text(body, name)
        if value is not None:
            found[name] = value
    if len(found.get("description", "")) > MAX_DESCRIPTION:
        raise invalid_param(f"description: at most {MAX_DESCRIPTION} characters", "description")
    return found


def _key(key: KeyCreated, shown: str) -> Json:
    return {
        "id": key.key_id,
        "type": "app",
        "token": shown,
        "last_used_at": None,
        "created_at": key.created_at_us // 1_000_000,
    }
