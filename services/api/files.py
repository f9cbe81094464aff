"""The reference's paths for files: upload, preview with the app's key, and preview by a signed link."""

import re
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from libs.events.files import StoredFile
from services.api import schemas
from services.api.access import ANYBODY, Principal
from services.api.console.session import account
from services.api.errors import ApiError, forbidden, invalid_param
from services.api.multipart import Part
from services.api.parts import Parts
from services.api.receiving import field_of, keep_upload
from services.api.schemas import answers, errors, file_body, parameters, secured
from services.api.uploads import FileUser, uploaded
from services.api.visitors import Visitor, visitor_of

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
        description="With a passport: a file that this visitor of the app's page uploaded, or that a node made.",
        responses=content | errors(401, 403, 404, 503),
        openapi_extra=secured("app_key", "admin", "session", "passport") | parameters("as_attachment", "user"),
    )
    async def preview(request: Request, file_id: str) -> Response:
        reader = await _reader(parts, request)
        file = await _found(parts, file_id)
        if isinstance(reader, Visitor):
            allowed = FileUser(reader.app.app_id, reader.principal, reader.user).may_use(file)
        else:
            allowed = reader.may_see(file.app_id)
        if not allowed:
            raise ApiError(403, "file_access_denied", "the file belongs to another app, or to another user of its page")
        by_key = isinstance(reader, Principal) and "authorization" in request.headers
        return await _sent(parts, request, file, "public" if by_key else "private")

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


async def _reader(parts: Parts, request: Request) -> Principal | Visitor:
    """By a key of the app, the admin token, a session of the console or a passport. Raises ApiError 401."""
    try:
        return await parts.access.anyone(request)
    except ApiError as error:
        with suppress(ApiError):
            return await account(parts, request, csrf=False)
        with suppress(ApiError):
            return await visitor_of(request)
        raise error


async def _found(parts: Parts, file_id: str) -> StoredFile:
    file = await parts.uploads.find(file_id)
    if file is None:
        raise ApiError(404, "file_not_found", f'file "{file_id[:64]}" does not exist')
    return file


async def _sent(parts: Parts, request: Request, file: StoredFile, cached: str = "public") -> Response:
    headers = {
        "Cache-Control": f"{cached}, max-age=3600",
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
