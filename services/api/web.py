"""The API of an app's public page (`/api`): a passport for the browser, then runs, always streaming, in reduced detail.

The page is named by its code, which nobody guesses; a browser shows the code and the passport that it got for it. A
passport is a signed statement of who the browser is: nothing is kept on a server. Browsers are users of their own: one
that calls itself like a user of the service API is still somebody else.
"""

import uuid
from dataclasses import replace
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.ids import run_id_of_task
from libs.events.registry import AppCreated
from services.api import schemas
from services.api.about import parameters_of, published, site_of
from services.api.annotating import reply_of
from services.api.bodies import Body
from services.api.chat import conversation_of, query_of, require_chat
from services.api.errors import ApiError, invalid_param, not_found, unauthorized
from services.api.forms import MAX_BYTES, shown, submitted
from services.api.frames import Json
from services.api.parts import Parts
from services.api.receiving import keep_upload
from services.api.requests import RunRequest, body_digest, read_json
from services.api.schemas import answers, errors, file_body, json_body, parameters, streamed
from services.api.starting import Wanted
from services.api.uploads import uploaded
from services.api.visitors import BY_PASSPORT, PASSPORT, PASSPORT_S, FromPage, Visitor, visitor_of
from services.api.workflows import attach, chosen_version, last_event_id, require_workflow

MAX_USER: Final = 255


def web_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["Public page"])

    @router.get(
        "/passport",
        summary="A passport for a browser",
        description="The header X-App-Code names the page.",
        responses=answers(schemas.Passport, 400, 401, 404),
        openapi_extra=parameters("user_id") | {"security": []},
    )
    async def passport(request: Request) -> Response:
        app = await _page(parts, request)
        user = request.query_params.get("user_id") or str(uuid.UUID(parts.new_uuid()))
        if len(user) > MAX_USER:
            raise invalid_param(f"user_id: at most {MAX_USER} characters", "user_id")
        now_s = parts.now_us() // 1_000_000
        claims = {"sub": "Web API Passport", "app_id": app.app_id, "app_code": app.site_code, "user": user}
        return JSONResponse({"access_token": parts.access.signer.sign(PASSPORT, claims, now_s + PASSPORT_S)})

    @router.get(
        "/login/status",
        summary="Whether a browser may use the page, and has a passport for it",
        responses=answers(schemas.LoginStatus),
        openapi_extra=parameters("app_code") | {"security": []},
    )
    async def login_status(request: Request) -> Response:
        code = request.query_params.get("app_code")
        # Pages are open to everybody who knows their code: there is no account to log in to.
        try:
            visitor = await visitor_of(request)
        except ApiError:
            return JSONResponse({"logged_in": True, "app_logged_in": False})
        return JSONResponse({"logged_in": True, "app_logged_in": code in (None, visitor.app.site_code)})

    @router.get(
        "/parameters",
        summary="Input form and features",
        responses=answers(schemas.Parameters, 400, 401, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def app_parameters(visitor: FromPage) -> Response:
        return JSONResponse(
            parameters_of(await published(parts, visitor.app), reply_of(parts.registry.annotations, visitor.app.app_id))
        )

    @router.get("/meta", summary="Icons of tools", responses=answers(schemas.Meta, 401), openapi_extra=BY_PASSPORT)
    async def meta(_: FromPage) -> Response:
        return JSONResponse({"tool_icons": {}})

    @router.get("/site", summary="The page", responses=answers(schemas.Site, 401, 503), openapi_extra=BY_PASSPORT)
    async def site(visitor: FromPage) -> Response:
        latest = parts.registry.latest(visitor.app.app_id)
        definition = None if latest is None else await parts.starter.definition(latest)
        user = visitor.principal.caller(visitor.user).id
        about = {"app_id": visitor.app.app_id, "end_user_id": user, "enable_site": True}
        return JSONResponse(about | {"site": site_of(visitor.app, definition)} | site_of(visitor.app, definition))

    @router.post(
        "/files/upload",
        summary="Upload a file for runs of this browser",
        status_code=201,
        responses=answers(schemas.UploadedFile, 400, 401, 408, 413, 415, 503, status=201),
        openapi_extra=BY_PASSPORT | file_body(),
    )
    async def upload(request: Request, visitor: FromPage) -> Response:
        file = await keep_upload(parts, request, visitor.app.app_id, visitor.principal, lambda _: visitor.user)
        return JSONResponse(uploaded(file, parts.signer.link(file.file_id)), 201)

    @router.post(
        "/workflows/run",
        summary="Run the published version",
        responses=streamed(None) | errors(400, 401, 413, 415, 422, 429, 503),
        openapi_extra=BY_PASSPORT | json_body(schemas.WebRunBody),
    )
    async def run_workflow(request: Request, visitor: FromPage, body: Body) -> Response:
        require_workflow(visitor.app)
        wanted = await _wanted(parts, request, visitor, body)
        return await parts.starter.start(wanted, last_event_id(request))

    @router.post(
        "/workflows/tasks/{task_id}/stop",
        summary="Stop an own run by its task id",
        responses=answers(schemas.Result, 400, 401, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def stop_task(visitor: FromPage, task_id: str) -> Response:
        require_workflow(visitor.app)
        await _stop(parts, visitor, task_id)
        return JSONResponse({"result": "success"})

    @router.post(
        "/chat-messages",
        summary="Send a message to a chatflow",
        responses=streamed(None) | errors(400, 401, 404, 413, 415, 422, 429, 503),
        openapi_extra=BY_PASSPORT | json_body(schemas.WebChatBody),
    )
    async def send_message(request: Request, visitor: FromPage, body: Body) -> Response:
        require_chat(visitor.app)
        wanted = await _wanted(parts, request, visitor, body)
        return await parts.starter.start(
            replace(wanted, query=query_of(body), conversation_id=conversation_of(body), annotations=True),
            last_event_id(request),
        )

    @router.post(
        "/chat-messages/{task_id}/stop",
        summary="Stop an own answer by its task id",
        responses=answers(schemas.Result, 400, 401, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def stop_message(visitor: FromPage, task_id: str) -> Response:
        require_chat(visitor.app)
        await _stop(parts, visitor, task_id)
        return JSONResponse({"result": "success"})

    @router.get(
        "/workflow/{workflow_run_id}/events",
        summary="Attach to an own run's event stream",
        responses=streamed(None) | errors(400, 401, 404, 503),
        openapi_extra=BY_PASSPORT | parameters("include_state_snapshot", "continue_on_pause"),
    )
    async def run_events(request: Request, visitor: FromPage, workflow_run_id: str) -> Response:
        run = await parts.reads.summary(workflow_run_id)
        if run is None or not visitor.owns(run):
            raise not_found("Workflow run not found")
        return await attach(parts, request, run)

    @router.get(
        "/form/human_input/{form_token}",
        summary="A form that a run waits for",
        responses=answers(schemas.FormDefinition, 401, 404, 412, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def get_form(visitor: FromPage, form_token: str) -> Response:
        return await shown(parts, form_token, visitor.principal)

    @router.post(
        "/form/human_input/{form_token}",
        summary="Answer a form: whoever has its token may, also for another's run",
        responses=answers(schemas.Nothing, 400, 401, 404, 412, 413, 415, 503),
        openapi_extra=BY_PASSPORT | json_body(schemas.WebSubmissionBody),
    )
    async def submit_form(request: Request, visitor: FromPage, form_token: str) -> Response:
        body = await read_json(request, min(MAX_BYTES, parts.limits.max_body_bytes))
        return await submitted(parts, form_token, visitor.principal, body, visitor.user)

    return router


async def _wanted(parts: Parts, request: Request, visitor: Visitor, body: Json) -> Wanted:
    """A run that a browser asks for; always streaming. Raises ApiError."""
    given = {name: value for name, value in body.items() if name != "response_mode"}
    return Wanted(
        visitor.principal,
        visitor.app,
        await chosen_version(parts, visitor.app, None),
        visitor.user,
        replace(RunRequest.parse(request, given), streaming=True),
        body_digest(given, visitor.user),
        invoke_from="web-app",
    )


async def _page(parts: Parts, request: Request) -> AppCreated:
    code = request.headers.get("x-app-code", "")
    if not code:
        raise unauthorized("the header X-App-Code must name the page")
    app = parts.registry.app_of_site(code)
    if app is None:
        await parts.access.refresh()
        app = parts.registry.app_of_site(code)
    if app is None:
        raise not_found("there is no such page, or it is switched off")
    return app


async def _stop(parts: Parts, visitor: Visitor, task_id: str) -> None:
    """Ask for a stop if the task is an own run; nobody learns whether it is."""
    try:
        run_id = run_id_of_task(task_id)
    except ValueError:
        return
    run = await parts.reads.summary(run_id)
    if run is not None and visitor.owns(run) and not run.ended:
        await parts.submitter.stop(run_id, "User requested stop", visitor.user)
