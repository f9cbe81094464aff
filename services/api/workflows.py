"""The reference's paths for workflow apps: run, run a version, detail, stop, attach to the event stream."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.ids import run_id_of_task
from libs.events.registry import AppCreated, VersionPublished
from services.api import schemas
from services.api.access import Principal, required_user
from services.api.drafting import draft_workflow_id
from services.api.errors import ApiError, bad_request, invalid_param, not_found
from services.api.frames import Cursor, encode
from services.api.parts import Parts
from services.api.reads import RunSummary
from services.api.requests import RunRequest, body_digest, canonical_id, check_trace_session, is_uuid, read_json
from services.api.schemas import answers, errors, json_body, secured, streamed
from services.api.sse import EventStream
from services.api.starting import Wanted, run_headers
from services.api.views import detail


def workflow_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Workflow apps (Dify-compatible)"])
    run_doc = json_body(schemas.RunBody) | secured("app_key")

    @router.post(
        "/workflows/run",
        summary="Run the published version",
        responses=streamed(schemas.BlockingAnswer) | errors(400, 401, 413, 415, 422, 429, 503),
        openapi_extra=run_doc,
    )
    async def run_workflow(request: Request) -> Response:
        return await _run(parts, request, None)

    @router.post(
        "/workflows/{workflow_id}/run",
        summary="Run one version",
        responses=streamed(schemas.BlockingAnswer) | errors(400, 401, 404, 413, 415, 422, 429, 503),
        openapi_extra=run_doc,
    )
    async def run_version(request: Request, workflow_id: str) -> Response:
        return await _run(parts, request, workflow_id)

    @router.get(
        "/workflows/run/{workflow_run_id}",
        summary="Detail of a run",
        responses=answers(schemas.RunDetail, 401, 404, 503),
        openapi_extra=secured("app_key"),
    )
    async def run_detail(request: Request, workflow_run_id: str) -> Response:
        app = await parts.access.app_key(request)
        summary = await parts.reads.summary(workflow_run_id)
        if summary is None or summary.app_id != app.app_id:
            raise not_found("Workflow run not found")
        return Response(encode(detail(summary)), media_type="application/json")

    @router.post(
        "/workflows/tasks/{task_id}/stop",
        summary="Stop a run by its task id",
        responses=answers(schemas.Result, 400, 401, 415, 503),
        openapi_extra=json_body(schemas.UserBody) | secured("app_key"),
    )
    async def stop_task(request: Request, task_id: str) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        user = required_user(body.get("user"))
        require_workflow(app)
        await _stop(parts, app, task_id, user)
        return JSONResponse({"result": "success"})

    @router.get(
        "/workflow/{workflow_run_id}/events",
        summary="Attach to a run's event stream",
        responses=streamed(None) | errors(400, 401, 404, 503),
        openapi_extra=secured("app_key", "admin")
        | schemas.parameters("user", "include_state_snapshot", "continue_on_pause", required=("user",)),
    )
    async def run_events(request: Request, workflow_run_id: str) -> Response:
        return await _attach(parts, request, workflow_run_id)

    return router


async def _run(parts: Parts, request: Request, workflow_id: str | None) -> Response:
    app = await parts.access.app_key(request)
    body = await read_json(request, parts.limits.max_body_bytes)
    user = required_user(body.get("user"))
    require_workflow(app)
    wanted = RunRequest.parse(request, body)
    check_trace_session(request, body)
    version = await chosen_version(parts, app, workflow_id)
    return await parts.starter.start(
        Wanted(Principal(app), app, version, user, wanted, body_digest(body, workflow_id or "")),
        last_event_id(request),
    )


async def chosen_version(parts: Parts, app: AppCreated, workflow_id: str | None) -> VersionPublished:
    """The version that a request names, or the newest one. Raises ApiError."""
    if workflow_id is None:
        newest = parts.registry.latest(app.app_id)
        if newest is None:  # another replica may have published the first one just now
            await parts.access.refresh()
            newest = parts.registry.latest(app.app_id)
        if newest is None:
            raise invalid_param("the app has no published version")
        return newest
    if not is_uuid(workflow_id):
        raise bad_request("workflow_id must be a UUID")
    workflow_id = canonical_id(workflow_id)
    if workflow_id == draft_workflow_id(app.app_id):
        raise bad_request("a draft cannot be run by its id. Publish it")
    version = parts.registry.version(workflow_id)
    if version is None:
        await parts.access.refresh()
        version = parts.registry.version(workflow_id)
    if version is None or version.app_id != app.app_id:
        raise not_found("Workflow not found")
    return version


async def _stop(parts: Parts, app: AppCreated, task_id: str, user: str) -> None:
    """Ask for a stop if the task is a run of this app; nobody learns whether it is."""
    try:
        run_id = run_id_of_task(task_id)
    except ValueError:
        return
    summary = await parts.reads.summary(run_id)
    if summary is not None and summary.app_id == app.app_id and not summary.ended:
        await parts.submitter.stop(run_id, "User requested stop", user)


async def _attach(parts: Parts, request: Request, run_id: str) -> Response:
    principal = await parts.access.anyone(request)
    user = required_user(request.query_params.get("user"))
    last_event_id(request)  # what is wrong with the request is said before what is wrong with the run
    summary = await parts.reads.summary(run_id)
    if summary is None or not (principal.admin or principal.began(summary, user)):
        raise not_found("Workflow run not found")
    return await attach(parts, request, summary)


async def attach(parts: Parts, request: Request, summary: RunSummary) -> Response:
    """The run's stream as the request wants it: from an id on, from now on, or with what is known first."""
    run_id, after = summary.id, last_event_id(request)
    through_pauses = _asked_for(request, "continue_on_pause")
    if after is not None:
        if after.seq > summary.seq:
            raise invalid_param(f"Last-Event-ID {after.seq}: the run has {summary.seq} events. Is it another run's id?")
        return parts.starter.attach(run_id, after, through_pauses=through_pauses)
    if summary.ended:
        return await _finished(parts, run_id)
    if _asked_for(request, "include_state_snapshot"):
        return await _with_snapshot(parts, run_id, through_pauses=through_pauses)
    return parts.starter.attach(run_id, None, through_pauses=through_pauses)


def _asked_for(request: Request, name: str) -> bool:
    """Clients in Python write True, and would wait for ever for what was left out."""
    return request.query_params.get(name, "").lower() == "true"


async def _finished(parts: Parts, run_id: str) -> Response:
    """One frame, rebuilt from the history."""
    summary = await parts.reads.summary(run_id)
    assert summary is not None  # it was there a moment ago
    frame = await parts.streams.finished_frame(summary)
    outbox = parts.streams.new_outbox()

    async def source(write: object) -> None:
        await write(frame)  # type: ignore[operator]  # Write

    return EventStream(
        outbox,
        source,
        parts.pinger,
        run_headers(run_id),
        ping_first=False,
        on_close=lambda: parts.streams.discard(outbox, run_id),
    )


async def _with_snapshot(parts: Parts, run_id: str, *, through_pauses: bool) -> Response:
    """What is known of the run in reduced form, then what is still to come."""
    live = await parts.streams.live(run_id)
    if live is None or live.fold is None:
        raise not_found("Workflow run not found")
    if live.ended:
        return await _finished(parts, run_id)
    outbox = parts.streams.new_outbox(through_pauses=through_pauses)
    snapshot = b"".join(live.fold.maker.snapshot())
    outbox.cursor, outbox.at_pause = live.place, live.fold.maker.asked.parked
    over = outbox.ends_here
    live.attach(outbox, live.place)  # in the same step as the snapshot: nothing comes between them

    async def source(write: object) -> None:
        if snapshot:
            await write(snapshot)  # type: ignore[operator]  # Write
        if over:
            return
        await parts.streams.resume(run_id, outbox, write)  # type: ignore[arg-type]  # Write

    return EventStream(
        outbox,
        source,
        parts.pinger,
        run_headers(run_id),
        on_close=lambda: parts.streams.discard(outbox, run_id),
    )


def last_event_id(request: Request) -> Cursor | None:
    """Where the client wants to go on. Raises ApiError 400."""
    given = request.headers.get("last-event-id")
    if not given:
        return None
    try:
        return Cursor.parse(given)
    except ValueError as error:
        raise invalid_param(str(error)) from error


def require_workflow(app: AppCreated) -> None:
    """Raises ApiError 400."""
    if app.mode != "workflow":
        raise ApiError(400, "not_workflow_app", f"this app is a {app.mode} app, not a workflow")
