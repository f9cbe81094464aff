"""Forks and retries over HTTP: a new run that shares the beginning of another one."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from libs.events.codec import Recorded
from libs.events.commands import Origin, StartRun
from libs.events.ids import task_id_of
from libs.workflow.fork import Fork, ForkInvalid, RetryPoint, fork, retry_point
from services.api import schemas
from services.api.access import Principal
from services.api.errors import ApiError, invalid_param
from services.api.folds import accepted_in
from services.api.frames import Json
from services.api.parts import Parts
from services.api.requests import body_digest, idempotency_key, read_json
from services.api.schemas import answers, json_body, secured
from services.api.submit import Started
from services.api.talks import name_of

__all__ = ["fork_routes", "retry"]

_COPIED = (
    "app_id", "workflow_id", "version", "digest", "mode", "inputs", "files", "query", "caller", "invoke_from",
    "triggered_from", "pins", "only", "root", "variables", "annotation",
)  # fmt: skip
"""What the new run has in common with the first one, beside what happened."""


def fork_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/runs", tags=["Runs"])
    both = secured("admin", "app_key")

    @router.post(
        "/{run_id}/fork",
        summary="A new run that shares this one's events up to one of them",
        responses=answers(schemas.Forked, 400, 401, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=json_body(schemas.ForkBody) | both,
    )
    async def fork_run(request: Request, run_id: str) -> Response:
        principal = await parts.access.anyone(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        at, edits = _place(body), _edits(body)
        return await _begin(parts, request, principal, run_id, body, RetryPoint(at), edits)

    @router.post(
        "/{run_id}/retry",
        summary="A new run that tries again what made this one fail",
        responses=answers(schemas.Forked, 400, 401, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=both,
    )
    async def retry_run(request: Request, run_id: str) -> Response:
        principal = await parts.access.anyone(request)
        body = await read_json(request, parts.limits.max_body_bytes, optional=True)
        return await _begin(parts, request, principal, run_id, body, None, _edits(body))

    return router


def _place(body: Json) -> int:
    at = body.get("at")
    if type(at) is not int:
        raise invalid_param("at: expected the sequence of an event, a whole number. See them: flowledger history", "at")
    return at


def _edits(body: Json) -> dict[str, JsonValue]:
    edits = body.get("set")
    if edits is None:
        return {}
    if not isinstance(edits, dict):
        raise invalid_param("set: expected an object of node.output -> value", "set")
    return edits


async def _begin(
    parts: Parts,
    request: Request,
    principal: Principal,
    run_id: str,
    body: Json,
    point: RetryPoint | None,
    edits: dict[str, JsonValue],
) -> Response:
    key = idempotency_key(request)
    made, started = await _begun(parts, principal, run_id, key, body, point, edits)
    answer = {
        "id": started.run_id,
        "task_id": task_id_of(started.run_id),
        "forked_from": run_id,
        "forked_at": made.at,
        "again": list(made.again),
        "first": list(made.first),
    }
    return JSONResponse(answer, headers={"X-Workflow-Run-Id": started.run_id})


async def retry(parts: Parts, principal: Principal, run_id: str, key: str) -> Started:
    """A new run that tries again what made this one fail. Raises ApiError."""
    _, started = await _begun(parts, principal, run_id, key, {}, None, {})
    return started


async def _begun(
    parts: Parts,
    principal: Principal,
    run_id: str,
    key: str | None,
    body: Json,
    point: RetryPoint | None,
    edits: dict[str, JsonValue],
) -> tuple[Fork, Started]:
    """(how it was forked, the new run). Raises ApiError."""
    history = await parts.folds.history(run_id, principal, sealed=True)
    await parts.access.app(accepted_in(history).app_id, principal)
    try:
        made = await parts.threads.run(_make, parts, history, point, edits)
    except ForkInvalid as error:
        if error.code == "invalid_param":
            raise invalid_param(str(error), str(error).partition(":")[0]) from error
        raise ApiError(409, error.code, f"run {run_id}: {error}") from error
    command = _command(parts, run_id, made, key, body_digest(body, run_id))
    return made, await parts.submitter.start(command, answer_s=parts.limits.start_lifetime_s + 1.0)


def _make(parts: Parts, history: list[Recorded], point: RetryPoint | None, edits: dict[str, JsonValue]) -> Fork:
    """Blocking. `point` None: where a failed run is tried again."""
    definition = parts.folds.definition(history)
    events: list[Any] = [recorded.event for recorded in history]
    if point is None:
        point = retry_point(definition, events)
    return fork(definition, events, point.at, edits, point.without)


def _command(parts: Parts, origin: str, made: Fork, key: str | None, digest: str) -> StartRun:
    accepted = made.accepted
    run_id = parts.submitter.new_run_id(accepted.app_id, key)
    return StartRun(
        run_id=run_id,
        **_conversation(parts.submitter.new_conversation_id(run_id), made),
        idempotency_key=key,
        body_digest=digest,
        not_after_us=parts.submitter.not_after_us(),
        forked_from=Origin(run_id=origin, seq=made.at, tokens=made.tokens),
        prefix=made.prefix,
        **{name: getattr(accepted, name) for name in _COPIED},
    )


def _conversation(conversation_id: str, made: Fork) -> dict[str, Any]:
    """A conversation of its own, as the first run found it: what the fork says is no turn of that one's."""
    if made.accepted.mode != "advanced-chat":
        return {}
    started = made.started
    forms = started.forms or {}
    state = {
        "count": (made.accepted.dialogue_count or 1) - 1,
        "variables": started.variables or {},
        "forms": {name: form.model_dump() for name, form in forms.items()},
        "history": started.history,
    }
    return {
        "conversation_id": conversation_id,
        "conversation": state,
        "continues": True,
        "conversation_name": made.accepted.conversation_name or name_of(made.accepted.query or ""),
    }
