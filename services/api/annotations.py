"""The reference's paths for annotations: answers that people have written, kept with their app.

These paths take no `user`, and whoever has a key of the app may write; as in the reference all of it is done in the
name of the app's owner.
"""

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from libs.events.annotations import AnnotationWritten
from libs.events.registry import AppCreated
from services.api import schemas, talk_records
from services.api.dialogues import whole
from services.api.errors import invalid_param, not_found
from services.api.frames import Json, encode
from services.api.parts import Parts
from services.api.requests import read_json
from services.api.schemas import answers, json_body, nothing, parameters, secured
from services.api.talks import ask

MOST_LIMIT: Final = 100
MAX_PAGE: Final = 99_999
MAX_QUESTION: Final = 2_000
MAX_ANSWER: Final = 10_000
MAX_NAME: Final = 255

_KEY = secured("app_key")


def annotation_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/apps", tags=["Annotations (Dify-compatible)"])
    _add_annotations(router, parts)
    _add_reply(router, parts)
    return router


def _add_annotations(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/annotations",
        summary="Annotations of the app, newest first",
        description=f"A page has at most {MOST_LIMIT}. `keyword`: only those with these words, in question or answer.",
        responses=answers(schemas.AnnotationPage, 400, 401, 503),
        openapi_extra=_KEY | parameters("page", "limit", "keyword"),
    )
    async def annotations(request: Request) -> Response:
        app = await parts.access.app_key(request)
        query = request.query_params
        page = whole(query, "page", 1, MAX_PAGE)
        limit = whole(query, "limit", 20, MOST_LIMIT, cut=True)
        await parts.access.catch_up()
        found = _with(parts.registry.annotations.of_app(app.app_id), query.get("keyword") or "")
        shown = found[(page - 1) * limit : page * limit]
        more = len(found) > page * limit
        answer = {"data": await _items(parts, shown), "has_more": more, "limit": limit}
        return _json(answer | {"total": len(found), "page": page})

    @router.post(
        "/annotations",
        summary="Write an annotation",
        responses=answers(schemas.Annotation, 400, 401, 413, 415, 503, status=201),
        openapi_extra=_KEY | json_body(schemas.AnnotationBody),
        status_code=201,
    )
    async def write(request: Request) -> Response:
        app = await parts.access.app_key(request)
        question, answer = _written(await read_json(request, parts.limits.max_body_bytes))
        return _json(_item(await parts.annotating.write(app, question, answer), 0), 201)

    @router.put(
        "/annotations/{annotation_id}",
        summary="Change an annotation",
        responses=answers(schemas.Annotation, 400, 401, 404, 413, 415, 503),
        openapi_extra=_KEY | json_body(schemas.AnnotationBody),
    )
    async def rewrite(request: Request, annotation_id: str) -> Response:
        app = await parts.access.app_key(request)
        question, answer = _written(await read_json(request, parts.limits.max_body_bytes))
        known = await _found(parts, app, annotation_id)
        (item,) = await _items(parts, [await parts.annotating.rewrite(known, question, answer)])
        return _json(item)

    @router.delete(
        "/annotations/{annotation_id}",
        summary="Delete an annotation",
        status_code=204,
        responses=nothing(401, 404, 503),
        openapi_extra=_KEY,
    )
    async def delete(request: Request, annotation_id: str) -> Response:
        app = await parts.access.app_key(request)
        await parts.annotating.delete(await _found(parts, app, annotation_id))
        return Response(status_code=204)


def _add_reply(router: APIRouter, parts: Parts) -> None:
    @router.post(
        "/annotation-reply/{action}",
        summary="Let annotations answer messages, or not",
        description="`action`: enable or disable. Enabling asks the provider for a vector of every question.",
        responses=answers(schemas.AnnotationJob, 400, 401, 413, 415, 503),
        openapi_extra=_KEY | json_body(schemas.AnnotationReplyBody, required=False),
    )
    async def switch(request: Request, action: str) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes, optional=_action(action) == "disable")
        if action == "disable":
            return _json({"job_id": await parts.annotating.disable(app), "job_status": "completed"})
        names = ("embedding_provider_name", "embedding_model_name")
        provider_id, model = (_text(body, name, MAX_NAME) for name in names)
        job_id = await parts.annotating.enable(app, _threshold(body), provider_id, model)
        return _json({"job_id": job_id, "job_status": "waiting"})

    @router.get(
        "/annotation-reply/{action}/status/{job_id}",
        summary="How far a job is",
        responses=answers(schemas.AnnotationJobStatus, 400, 401, 404, 503),
        openapi_extra=_KEY,
    )
    async def status(request: Request, action: str, job_id: str) -> Response:
        app = await parts.access.app_key(request)
        _action(action)
        await parts.access.catch_up()
        found = parts.registry.annotations.job(app.app_id, job_id)
        if found is None or found[0].action != action:
            raise not_found(f'the app has no job "{job_id[:64]}" to {action} annotations')
        job_status, error = parts.annotating.status(*found)
        return _json({"job_id": job_id, "job_status": job_status, "error_msg": error})


# --- what is asked for ------------------------------------------------------------------------------------------------


def _written(body: Json) -> tuple[str, str]:
    """Question and answer. Raises ApiError 400."""
    return _text(body, "question", MAX_QUESTION), _text(body, "answer", MAX_ANSWER)


def _text(body: Json, name: str, most: int) -> str:
    given = body.get(name)
    if given is None:
        raise invalid_param(f"{name} is required", name)
    if not isinstance(given, str) or len(given) > most:
        raise invalid_param(f"{name}: expected a text of at most {most} characters", name)
    # What no text in a database may have, and half a surrogate pair, which UTF-8 cannot hold.
    text = given.replace("\x00", "").encode("utf-8", "replace").decode()
    if not text.strip():
        raise invalid_param(f"{name}: expected a text, got an empty one", name)
    return text


def _threshold(body: Json) -> float:
    given: Any = body.get("score_threshold")
    if given is None:
        raise invalid_param("score_threshold is required", "score_threshold")
    if not (isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1):
        raise invalid_param("score_threshold: expected a number from 0 to 1", "score_threshold")
    return float(given)


def _action(action: str) -> str:
    if action not in ("enable", "disable"):
        raise invalid_param(f'"{action[:64]}": expected enable or disable', "action")
    return action


async def _found(parts: Parts, app: AppCreated, annotation_id: str) -> AnnotationWritten:
    """Raises ApiError 404."""
    found = parts.registry.annotations.one(app.app_id, annotation_id)
    if found is None:
        await parts.access.refresh()
        found = parts.registry.annotations.one(app.app_id, annotation_id)
    if found is None:
        raise not_found(f'annotation "{annotation_id[:64]}" does not exist')
    return found


def _with(written: tuple[AnnotationWritten, ...], keyword: str) -> list[AnnotationWritten]:
    """Those with the keyword, newest first."""
    sought = keyword.strip().casefold()
    found = [one for one in written if sought in one.question.casefold() or sought in one.answer.casefold()]
    return found[::-1]


# --- what is answered -------------------------------------------------------------------------------------------------


async def _items(parts: Parts, written: list[AnnotationWritten]) -> list[Json]:
    """Raises ApiError 503."""
    if not written:
        return []
    tables = await parts.talks.tables()
    ids = [one.annotation_id for one in written]
    hits = await ask(tables, talk_records.annotation_hit_counts, written[0].app_id, ids)
    return [_item(one, hits.get(one.annotation_id, 0)) for one in written]


def _item(one: AnnotationWritten, hits: int) -> Json:
    return {
        "id": one.annotation_id,
        "question": one.question,
        "answer": one.answer,
        "hit_count": hits,
        "created_at": one.created_at_us // 1_000_000,
    }


def _json(value: Json, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")
