"""Paths of the reference for what no app here can do: speech, and apps of the mode `completion`.

They check what the contract checks, in its order, and answer with its codes, so that a client learns why instead of
meeting a path that is not there.
"""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.api import schemas
from services.api.about import enabled, published
from services.api.access import required_user
from services.api.errors import ApiError, invalid_param
from services.api.parts import Parts
from services.api.receiving import read_form
from services.api.requests import read_json
from services.api.schemas import errors, file_body, json_body, secured

MAX_AUDIO_BYTES: Final = 30 * 1024 * 1024
AUDIO_TYPES: Final = frozenset(f"audio/{kind}" for kind in ("mp3", "m4a", "wav", "amr", "mpga"))


def absent_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["App (Dify-compatible)"])
    key = secured("app_key")

    @router.post(
        "/audio-to-text",
        summary="Speech to text: needs a provider for it, and there is none",
        responses=errors(400, 401, 413, 415, 503),
        openapi_extra=file_body("user") | key,
    )
    async def audio_to_text(request: Request) -> Response:
        app = await parts.access.app_key(request)
        form = await read_form(request, MAX_AUDIO_BYTES + 64 * 1024, "audio_too_large")
        if not enabled(await published(parts, app), "speech_to_text"):
            raise invalid_param("speech to text is not switched on in this app")
        part = next((part for part in form if part.name == "file" and part.filename is not None), None)
        if part is None:
            raise ApiError(400, "no_audio_uploaded", "the form has no part `file`. Send the recording under that name")
        if part.mime_type not in AUDIO_TYPES:
            expected = ", ".join(sorted(AUDIO_TYPES))
            raise ApiError(415, "unsupported_audio_type", f"the recording must be one of {expected}")
        if len(part.content) > MAX_AUDIO_BYTES:
            raise ApiError(413, "audio_too_large", f"the recording is larger than {MAX_AUDIO_BYTES >> 20} MB")
        raise ApiError(400, "provider_not_support_speech_to_text", "no model provider here turns speech into text")

    @router.post(
        "/text-to-audio",
        summary="Text to speech: needs a provider for it, and there is none",
        responses=errors(400, 401, 413, 415, 503),
        openapi_extra=json_body(schemas.SpeechBody) | key,
    )
    async def text_to_audio(request: Request) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        if not enabled(await published(parts, app), "text_to_speech"):
            raise invalid_param("text to speech is not switched on in this app")
        if not body.get("message_id") and not body.get("text"):
            raise invalid_param("text or message_id must be given", "text")
        raise ApiError(400, "provider_not_initialize", "no model provider here turns text into speech")

    @router.post(
        "/completion-messages",
        summary="For apps of the mode completion, which do not exist here",
        responses=errors(400, 401, 413, 415),
        openapi_extra=json_body(schemas.UserBody) | key,
    )
    async def completion_messages(request: Request) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        required_user(body.get("user"))
        raise ApiError(400, "app_unavailable", f"this app is a {app.mode} app, not a completion app")

    return router
