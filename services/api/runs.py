"""Our own paths for runs: list, start, state, history, stop. App keys see their app's runs, the admin token all."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response, StreamingResponse

from libs.events.codec import CodecError, Recorded, from_rfc3339, public_record
from libs.events.ids import execution_id, task_id_of
from libs.events.log import LogError
from libs.events.model import CommandRejected, RunAccepted, RunSetAside
from libs.events.registry import AppCreated
from libs.events.sealing import SealError
from libs.workflow.catalog import DefinitionMissing
from libs.workflow.definition import Definition, DefinitionInvalid
from libs.workflow.pins import PinsInvalid, parse_pins
from services.api import schemas
from services.api.access import ANYBODY, Principal
from services.api.asked import Asked, AskedForm
from services.api.chat import conversation_of
from services.api.errors import ApiError, forbidden, invalid_param, not_found, unavailable
from services.api.forms import MAX_BYTES, asking, submit
from services.api.frames import Json, encode
from services.api.history import Span, read_events
from services.api.parts import Parts
from services.api.reads import RunSummary
from services.api.records import Filter, RecordsUnavailable, make_cursor, read_cursor
from services.api.requests import RunRequest, body_digest, canonical_id, read_json, whole_number
from services.api.schemas import answers, errors, json_body, secured, streamed
from services.api.starting import Wanted
from services.api.tail import Answer
from services.api.uploads import FileUser
from services.api.views import listed, show
from services.api.workflows import chosen_version, last_event_id

STATUSES = ("pending", "running", "paused", "succeeded", "partial-succeeded", "failed", "stopped")
MAX_PAGE = 100
WISH_S = 1.0
"""How long a wish waits for what becomes of it."""
RELEASE_S = 15.0
"""The same, where the whole history of a run has to be read first."""


def run_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/runs", tags=["Runs"])
    both = secured("admin", "app_key")

    @router.get(
        "",
        summary="List runs, newest first",
        responses=answers(schemas.RunList, 400, 401, 404, 503),
        openapi_extra=both | schemas.parameters("status", "app", "since", "id_prefix", "cursor", "limit"),
    )
    async def list_runs(request: Request) -> Response:
        return await _list(parts, request)

    @router.post(
        "",
        summary="Start a run",
        responses=streamed(schemas.BlockingAnswer) | errors(400, 401, 403, 404, 413, 415, 422, 429, 503),
        openapi_extra=json_body(schemas.StartBody) | both,
    )
    async def start_run(request: Request) -> Response:
        return await _start(parts, request)

    @router.get(
        "/{run_id}",
        summary="A run with its nodes and variables",
        responses=answers(schemas.RunState, 401, 404, 503),
        openapi_extra=both,
    )
    async def get_run(request: Request, run_id: str) -> Response:
        return await _state(parts, await parts.access.anyone(request), run_id, None)

    @router.get(
        "/{run_id}/state",
        summary="A run as of one of its events",
        responses=answers(schemas.RunState, 400, 401, 404, 503),
        openapi_extra=both | schemas.parameters("at"),
    )
    async def get_state(request: Request, run_id: str) -> Response:
        principal = await parts.access.anyone(request)
        return await _state(parts, principal, run_id, whole_number(request, "at", None))

    @router.get(
        "/{run_id}/history",
        summary="The events of a run, read from the log",
        responses=schemas.lines(schemas.HistoryLine) | errors(400, 401, 404, 503),
        openapi_extra=both | schemas.parameters("from", "to"),
    )
    async def get_history(request: Request, run_id: str) -> Response:
        return await _history(parts, request, run_id)

    @router.post(
        "/{run_id}/stop",
        summary="Stop a run",
        responses=answers(schemas.Stopped, 401, 404, 503),
        openapi_extra=both,
    )
    async def stop_run(request: Request, run_id: str) -> Response:
        return await _stop(parts, request, run_id)

    @router.post(
        "/{run_id}/pause",
        summary="Let nothing new begin in a run",
        responses=answers(schemas.Paused, 400, 401, 404, 409, 503),
        openapi_extra=json_body(schemas.PauseBody, required=False) | both,
    )
    async def pause_run(request: Request, run_id: str) -> Response:
        return await _pause(parts, request, run_id)

    @router.post(
        "/{run_id}/resume",
        summary="Let a paused run go on: answer its form, or take a pause back",
        responses=answers(schemas.Resumed, 400, 401, 404, 409, 412, 413, 415, 503),
        openapi_extra=json_body(schemas.ResumeBody, required=False) | both,
    )
    async def resume_run(request: Request, run_id: str) -> Response:
        return await _resume(parts, request, run_id)

    @router.post(
        "/{run_id}/release",
        summary="Try again with a run that was set aside",
        responses=answers(schemas.Released, 400, 401, 404, 409, 503),
        openapi_extra=json_body(schemas.ReleaseBody, required=False) | secured("admin"),
    )
    async def release_run(request: Request, run_id: str) -> Response:
        return await _release(parts, request, run_id)

    return router


async def _list(parts: Parts, request: Request) -> Response:
    principal = await parts.access.anyone(request)
    query = request.query_params
    status = query.get("status") or None
    if status is not None and status not in STATUSES:
        raise invalid_param(f"status: expected one of {', '.join(STATUSES)}", "status")
    since_us = instant(query.get("since"))
    try:
        after = read_cursor(query["cursor"]) if query.get("cursor") else None
    except (ValueError, OverflowError) as error:
        raise invalid_param(str(error), "cursor") from error
    limit = whole_number(request, "limit", None)
    limit = 20 if limit is None else limit
    if not 1 <= limit <= MAX_PAGE:
        raise invalid_param(f"limit: expected 1 to {MAX_PAGE}", "limit")
    app_id = (query.get("app") or query.get("app_id") or "").replace("\0", "") or None
    if principal.app is not None:
        if app_id not in (None, principal.app.app_id):
            raise not_found(f'app "{str(app_id)[:64]}" does not exist')
        app_id = principal.app.app_id
    wanted = Filter(app_id, status, since_us, query.get("id_prefix", "").replace("\0", "") or None, after)
    try:
        rows = await (await parts.fresh.tables()).runs(wanted, limit + 1)
    except RecordsUnavailable as error:
        raise unavailable("the list of runs cannot be read now. Runs themselves can: ask for one by its id") from error
    more = make_cursor(rows[limit - 1]) if len(rows) > limit else None
    page = {"data": [listed(row) for row in rows[:limit]], "next_cursor": more, "has_more": more is not None}
    return JSONResponse(page)


async def _start(parts: Parts, request: Request) -> Response:
    principal = await parts.access.anyone(request)
    body = await read_json(request, parts.limits.max_body_bytes)
    app = await _app_to_run(parts, principal, body)
    wanted = RunRequest.parse(request, {"inputs": {}} | body)
    pins = asked_pins(principal, body)
    version = await chosen_version(parts, app, None)
    query = body.get("query")
    if query is not None and not isinstance(query, str):
        raise invalid_param("query: expected a string", "query")
    user = body.get("user")
    return await parts.starter.start(
        Wanted(
            principal,
            app,
            version,
            str(user) if user else ANYBODY,
            wanted,
            body_digest(body),
            query=query,
            conversation_id=conversation_of(body),
            pins=pins,
            **_place(principal, body),
        ),
        last_event_id(request),
    )


async def _app_to_run(parts: Parts, principal: Principal, body: Json) -> AppCreated:
    app_id = body.get("app_id")
    if app_id is None and principal.app is not None:
        return principal.app
    if not isinstance(app_id, str) or not app_id:
        raise invalid_param("app_id is required", "app_id")
    return await parts.access.app(canonical_id(app_id), principal)


def _place(principal: Principal, body: Json) -> Json:
    """Where the run begins, or which node of the workflow it runs alone: fields of `Wanted`."""
    root, only, from_run = (_text(body, name) for name in ("root", "only", "from_run"))
    if only is None:
        if from_run is not None:
            raise invalid_param("from_run: goes with only, the node that runs with that run's variables", "from_run")
        return {"root": root}
    if root is not None:
        raise invalid_param("root: goes without only, which runs one node and nothing that leads to it", "root")
    if not principal.admin:
        raise forbidden("only needs the admin token: whoever has a key starts workflows, not single nodes of them")
    from_run = None if from_run is None else canonical_id(from_run)
    return {"only": only, "from_run": from_run, "triggered_from": "debugging", "invoke_from": "debugger"}


def _text(body: Json, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise invalid_param(f"{name}: expected a string", name)
    return value


def asked_pins(principal: Principal, body: Json) -> dict[str, JsonValue] | None:
    """Raises ApiError 400, 403."""
    pins = body.get("pins")
    if pins is None:
        return None
    if not principal.admin:
        raise forbidden("pins need the admin token")
    try:
        parse_pins(pins)
    except PinsInvalid as error:
        raise invalid_param(str(error), "pins") from error
    return dict(pins)


async def _visible(parts: Parts, principal: Principal, run_id: str) -> RunSummary:
    """The run, if the caller may see it. Raises ApiError 404."""
    summary = await parts.reads.summary(run_id)
    if summary is None or not principal.may_see(summary.app_id):
        raise not_found(f'run "{run_id[:64]}" does not exist')
    return summary


async def _span(parts: Parts, run_id: str) -> Span:
    span = await parts.reads.span(run_id)
    if span is None:
        raise not_found(f'run "{run_id[:64]}" does not exist')
    return span


async def _state(parts: Parts, principal: Principal, run_id: str, at: int | None) -> Response:
    summary = await _visible(parts, principal, run_id)
    if at is not None and not 1 <= at <= summary.seq:
        raise invalid_param(f"at: the run has events 1 to {summary.seq}", "at")
    span = await _span(parts, run_id)
    return Response(await parts.threads.run(_fold, parts, span, at), media_type="application/json")


def _fold(parts: Parts, span: Span, at: int | None) -> bytes:
    """Blocking: the fold of the run's history up to sequence `at`, as JSON."""
    history: list[Recorded] = []
    for events in read_events(parts.log, parts.blobs, span):
        history += [recorded for recorded in events if at is None or recorded.seq <= at]
        if at is not None and history[-1].seq >= at:
            break
    found = show(span.run_id, history, _definition(parts, history))
    if found is None:
        raise not_found(f'run "{span.run_id}" does not exist')
    return encode(found)


def _definition(parts: Parts, history: list[Recorded]) -> Definition | None:
    if not history or not isinstance(history[0].event, RunAccepted):
        return None
    try:
        return parts.catalog.get(history[0].event.digest)
    except (DefinitionMissing, DefinitionInvalid, SealError):
        return None


async def _history(parts: Parts, request: Request, run_id: str) -> Response:
    principal = await parts.access.anyone(request)
    first, last = whole_number(request, "from", 1) or 1, whole_number(request, "to", None)
    await _visible(parts, principal, run_id)
    as_stream = "text/event-stream" in request.headers.get("accept", "")
    return await history_lines(parts, run_id, first, last, as_stream=as_stream)


async def history_lines(parts: Parts, run_id: str, first: int, last: int | None, *, as_stream: bool) -> Response:
    """The run's events from sequence `first` to `last`, as JSON lines or as a stream. Raises ApiError, LogError."""
    span = await _span(parts, run_id)
    events = parts.reads.events(span)
    # The first batch is read before the answer begins, so that a log that cannot be read is still an error answer.
    nothing: list[Recorded] = []
    begun = await anext(events, nothing)

    async def lines() -> AsyncIterator[bytes]:
        batch = begun
        try:
            while batch:
                yield b"".join(_line(each, as_stream) for each in batch if each.seq >= first and _within(each, last))
                if last is not None and batch[-1].seq >= last:
                    return
                batch = await anext(events, nothing)
        except (LogError, CodecError) as error:
            yield _broken(error, as_stream)

    kind = "text/event-stream; charset=utf-8" if as_stream else "application/x-ndjson"
    return StreamingResponse(lines(), media_type=kind, headers={"Cache-Control": "no-cache"})


def _within(recorded: Recorded, last: int | None) -> bool:
    return last is None or recorded.seq <= last


def _line(recorded: Recorded, as_stream: bool) -> bytes:
    event = recorded.event
    node_id, path = getattr(event, "node_id", None), getattr(event, "path", None)
    execution = execution_id(recorded.run_id, path, node_id) if node_id and path is not None else None
    data = encode(public_record(recorded, execution))
    return b"id: %d\ndata: %s\n\n" % (recorded.seq, data) if as_stream else data + b"\n"


def _broken(error: Exception, as_stream: bool) -> bytes:
    data = json.dumps({"error": {"code": "internal_server_error", "message": str(error), "status": 500}}).encode()
    return b"data: " + data + b"\n\n" if as_stream else data + b"\n"


async def _stop(parts: Parts, request: Request, run_id: str) -> Response:
    principal = await parts.access.anyone(request)
    body = await read_json(request, parts.limits.max_body_bytes, optional=True)
    summary = await _visible(parts, principal, run_id)
    answer: Any = None
    if not summary.ended:
        reason = body.get("reason")
        by = str(body.get("user") or ("admin" if principal.admin else ""))
        answer = await parts.submitter.stop(
            run_id, reason if isinstance(reason, str) and reason else "User requested stop", by, answer_s=1.0
        )
    requested = not summary.ended and not isinstance(answer, CommandRejected)
    result = {"result": "success", "id": run_id, "task_id": task_id_of(run_id), "stop_requested": requested}
    return JSONResponse(result | {"status": summary.status})


async def _pause(parts: Parts, request: Request, run_id: str) -> Response:
    principal = await parts.access.anyone(request)
    body = await read_json(request, parts.limits.max_body_bytes, optional=True)
    summary = await _visible(parts, principal, run_id)
    reason = body.get("reason")
    reason = reason if isinstance(reason, str) and reason else "Paused on request"
    answer: Answer | None = None
    if not summary.ended:
        answer = await parts.submitter.pause(run_id, reason[:1000], _by(body), answer_s=WISH_S)
    if summary.ended or (isinstance(answer, CommandRejected) and answer.code == "not_running"):
        raise _conflict("not_running", f"run {run_id} has ended, so nothing of it can be paused")
    requested = not isinstance(answer, CommandRejected)  # else somebody has paused it already
    return JSONResponse(_wished(run_id, summary) | {"pause_requested": requested})


async def _resume(parts: Parts, request: Request, run_id: str) -> Response:
    principal = await parts.access.anyone(request)
    body = await read_json(request, min(MAX_BYTES, parts.limits.max_body_bytes), optional=True)
    summary = await _visible(parts, principal, run_id)
    maker = await asking(parts, run_id)
    if summary.ended or maker is None or maker.ended:
        raise _conflict("not_running", f"run {run_id} has ended")
    if body.get("action") is not None or body.get("form") is not None:
        form = _form_of(maker.asked, body.get("form"))
        await submit(parts, maker, form, body, FileUser(summary.app_id, principal, _by(body)))
        return JSONResponse(_wished(run_id, summary) | {"resumed": "form"})
    forms = maker.asked.open_forms()
    if forms and maker.asked.pause_reason is None:
        choices = "; ".join(f"{form.opened.node_id}: {', '.join(form.opened.actions)}" for form in forms)
        raise _conflict("form_required", f"run {run_id} waits for people. Give an action ({choices})")
    answer = await parts.submitter.resume(run_id, _by(body), answer_s=WISH_S)
    if isinstance(answer, CommandRejected):
        raise _conflict(answer.code, f"nobody has paused run {run_id}")
    return JSONResponse(_wished(run_id, summary) | {"resumed": "pause"})


async def _release(parts: Parts, request: Request, run_id: str) -> Response:
    principal = await parts.access.admin(request)
    body = await read_json(request, parts.limits.max_body_bytes, optional=True)
    summary = await _visible(parts, principal, run_id)
    if summary.ended:
        raise _conflict("not_running", f"run {run_id} has ended, so nothing of it can be released")
    answer = await parts.submitter.release(run_id, _by(body), answer_s=RELEASE_S)
    match answer:
        case None:
            raise unavailable(
                f"no executor has tried run {run_id} again yet. See what became of it: flowledger quarantine list"
            )
        case CommandRejected(code="not_set_aside"):
            raise _conflict("not_set_aside", f"run {run_id} is not set aside: it goes on by itself")
        case CommandRejected():
            raise _conflict(answer.code, answer.message)
        case RunSetAside():
            message = f"run {run_id} stays set aside: {answer.error}. Release it after a mend, or stop it"
            raise _conflict("unfoldable", message)
    return JSONResponse(_wished(run_id, summary) | {"released": True})


def _form_of(asked: Asked, wanted: object) -> AskedForm:
    """The form that is meant: by id, token or node, or the only one that is open."""
    forms = asked.open_forms()
    if wanted is not None:
        known = list(asked.forms.values())
        named = [form for form in known if wanted in (form.opened.form_id, form.opened.token)]
        forms = named or [form for form in forms if wanted == form.opened.node_id]
    if not forms:
        raise _conflict("not_paused", "the run waits for no such form")
    if len(forms) > 1:
        found = ", ".join(f"{form.opened.form_id} ({form.title or form.opened.node_id})" for form in forms)
        raise invalid_param(f"form: the run waits for several. Name one: {found}", "form")
    return forms[0]


def _by(body: Json) -> str:
    return str(body.get("user") or "admin")


def _wished(run_id: str, summary: RunSummary) -> Json:
    return {"result": "success", "id": run_id, "task_id": task_id_of(run_id), "status": summary.status}


def _conflict(code: str, message: str) -> ApiError:
    return ApiError(409, code, message)


def instant(text: str | None) -> int | None:
    """Microseconds since the epoch. Raises ApiError 400."""
    try:
        return from_rfc3339(text) if text else None
    except (ValueError, OverflowError) as error:
        raise invalid_param("since: expected an instant such as 2026-05-02T09:00:00Z", "since") from error
