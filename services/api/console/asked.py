"""What requests to the console ask for, checked with the contract's codes, and how values of documents are answered."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.api.errors import invalid_param
from services.api.frames import Json, encode

MAX_PAGE = 99_999
MAX_LIMIT = 100


def text(body: Json, name: str) -> str:
    """A text that is not empty. Raises ApiError 400."""
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise invalid_param(f"{name}: expected a text that is not empty", name)
    return value


def optional_text(body: Json, name: str, most: int | None = None) -> str | None:
    """Raises ApiError 400."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid_param(f"{name}: expected a text", name)
    if value is not None and most is not None and len(value) > most:
        raise invalid_param(f"{name}: at most {most} characters", name)
    return value


def boolean(body: Json, name: str) -> bool:
    """Raises ApiError 400."""
    value = body.get(name)
    if not isinstance(value, bool):
        raise invalid_param(f"{name}: expected true or false", name)
    return value


def whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises ApiError 400."""
    raw = request.query_params.get(name)
    if raw is None or raw == "":
        return default
    if not (raw.isascii() and raw.isdecimal() and len(raw) < 10 and least <= int(raw) <= most):
        raise invalid_param(f"{name}: expected {least} to {most}", name)
    return int(raw)


def limit_of(request: Request, default: int) -> int:
    return whole(request, "limit", default, 1, MAX_LIMIT)


def paging(request: Request, *, default_limit: int) -> tuple[int, int]:
    """(page from 1, limit). Raises ApiError 400."""
    return whole(request, "page", 1, 1, MAX_PAGE), limit_of(request, default_limit)


def flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1", "yes")


def answered(body: Any, status: int = 200) -> Response:
    """An answer with values of a document, which may hold what UTF-8 cannot."""
    return Response(encode(body), status, media_type="application/json")
