"""The reference's paths for files: upload, preview with the app's key, and preview by a signed link."""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from libs.events.files import StoredFile
from services.api import schemas
from services.api.access import ANYBODY, Principal
from services.api.errors import ApiError, bad_request, forbidden, invalid_param
from services.api.multipart import MultipartInvalid, Part, parse_multipart
from services.api.parts import Parts
from services.api.requests import read_body
from services.api.schemas import answers, errors, file_body, parameters, secured
from services.api.uploads import MAX_UPLOAD_BYTES, uploaded

_MARKUP: Final = frozenset({"text/html", "application/xhtml+xml", "text/xml", "application/xml"})
"""What a browser would show as a page of this server."""
_SENDABLE: Final = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


def file_routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["Files (Dify-compatible)"])
    content: schemas.Responses = {200: {"description": "The bytes", "content": {"*/*": {"schema": schemas.BINARY}}}}

    @router.post(
        "/v1/files/upload",
        summary="Upload a file",
        description="With the admin token, `app_id` in the query says for which app.",
        status_code=201,
        responses=answers(schemas.UploadedFile, 400, 401, 404, 413, 415, 503, status=201),
        openapi_extra=file_body("user") | secured("app_key", "admin") | parameters("app_id"),
    )
    async def upload(request: Request) -> Response:
        principal = await parts.access.anyone(request)
        app = principal.app
        if app is None:
            app_id = request.query_params.get("app_id")
            if not app_id:
                raise invalid_param("app_id is required with the admin token", "app_id")
            app = await parts.access.app(app_id, principal)

        def user(form: list[Part]) -> str:
            return field_of(form, "user") or ANYBODY

        file = await keep_upload(parts, request, app.app_id, principal, user)
        return JSONResponse(uploaded(file, parts.signer.link(file.file_id)), 201)

    @router.get(
        "/v1/files/{file_id}/preview",
        summary="Read a file of the app",
        responses=content | errors(401, 403, 404, 503),
        openapi_extra=secured("app_key", "admin") | parameters("as_attachment", "user"),
    )
    async def preview(request: Request, file_id: str) -> Response:
        principal = await parts.access.anyone(request)
        file = await _found(parts, file_id)
        if not principal.may_see(file.app_id):
            raise ApiError(403, "file_access_denied", "the file belongs to another app")
        return await _sent(parts, request, file)

    @router.get(
        "/files/{file_id}/file-preview",
        summary="Read a file by a signed link",
        description="The link is the `source_url` of an upload; it expires.",
        responses=content | errors(403, 404, 503),
        openapi_extra=parameters("timestamp", "nonce", "sign", required=("timestamp", "nonce", "sign")),
    )
    async def signed_preview(request: Request, file_id: str) -> Response:
        if not parts.signer.holds(file_id, request.query_params):
            raise forbidden("the link has expired or is not signed by this server")
        return await _sent(parts, request, await _found(parts, file_id))

    return router


async def keep_upload(
    parts: Parts, request: Request, app_id: str, principal: Principal, user_of: Callable[[list[Part]], str]
) -> StoredFile:
    """The file of the request's form, kept for the app and the user, whom the form may name. Raises ApiError."""
    declared = request.headers.get("content-length", "")
    size = min(int(declared), MAX_UPLOAD_BYTES) if declared.isdigit() else MAX_UPLOAD_BYTES
    with parts.uploads.room.taken(size):
        form = await read_form(request, MAX_UPLOAD_BYTES)
        user = user_of(form)
        file = await parts.uploads.take(form, app_id, principal.caller(user).id)
    await parts.end_users.seen(principal, user)
    return file


async def read_form(request: Request, limit_bytes: int, code: str = "file_too_large") -> list[Part]:
    """The parts of the body. Raises ApiError 413 (`code`), 408, 415, 400."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError(415, "unsupported_media_type", "Content-Type must be multipart/form-data")
    try:
        body = await read_body(request, limit_bytes)
    except ApiError as error:
        if error.status != 413:
            raise
        raise ApiError(413, code, error.message, headers=error.headers) from error
    try:
        return parse_multipart(kind, body)
    except MultipartInvalid as error:
        raise bad_request(f"the form cannot be read: {error}") from error


def field_of(form: list[Part], name: str) -> str:
    """The text of a plain field; empty when there is none."""
    return next((part.text for part in form if part.name == name and part.filename is None), "")


async def _found(parts: Parts, file_id: str) -> StoredFile:
    file = await parts.uploads.find(file_id)
    if file is None:
        raise ApiError(404, "file_not_found", f'file "{file_id[:64]}" does not exist')
    return file


async def _sent(parts: Parts, request: Request, file: StoredFile) -> Response:
    headers = {
        "Cache-Control": "public, max-age=3600",
        "X-Content-Type-Options": "nosniff",
        # Whatever the bytes are, they run nothing in the name of this server.
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
    }
    media_type = file.mime_type if _SENDABLE.fullmatch(file.mime_type) else "application/octet-stream"
    wanted = request.query_params.get("as_attachment", "").lower() in ("true", "1", "yes")
    if wanted or media_type.lower() in _MARKUP:
        media_type = "application/octet-stream"
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(file.name, safe='')}"
    status, span = 200, range(file.size)
    if file.mime_type.startswith(("audio/", "video/")):
        headers["Accept-Ranges"] = "bytes"
        asked = _span(request.headers.get("range", ""), file.size)
        if asked is not None:
            status, span = 206, asked
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    headers["Content-Length"] = str(len(span))
    return StreamingResponse(await parts.uploads.content(file, span), status, headers, media_type)


def _span(header: str, size: int) -> range | None:
    """The one range that is asked for; None: all of it, also when the header makes no sense."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]) or len(found[1]) > 15 or len(found[2]) > 15:
        return None
    if not found[1]:
        return range(max(size - int(found[2]), 0), size) if int(found[2]) and size else None
    first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
    return range(first, last + 1) if first <= last else None
