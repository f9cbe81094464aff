"""Files that come with requests: a multipart body is read, and its file kept."""

from collections.abc import Callable

from fastapi import Request

from libs.events.files import StoredFile
from services.api.access import Principal
from services.api.errors import ApiError, bad_request
from services.api.multipart import MultipartInvalid, Part, parse_multipart
from services.api.parts import Parts
from services.api.requests import read_body
from services.api.uploads import MAX_UPLOAD_BYTES


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
