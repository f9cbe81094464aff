"""The reference's log of an app, page by page, and its end users. From tables that are as new as the request."""

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.codec import rfc3339
from libs.events.ids import execution_id
from libs.tables import TENANT_ID
from services.api import schemas
from services.api.access import ANYBODY
from services.api.account import ADMIN_ACCOUNT, ADMIN_ID
from services.api.errors import ApiError, invalid_param, unavailable
from services.api.frames import Json
from services.api.parts import Parts
from services.api.records import LogFilter, RecordsUnavailable
from services.api.requests import is_uuid
from services.api.schemas import answers, parameters, secured

LOG_QUERY: Final = (
    "keyword", "status", "created_at__before", "created_at__after", "created_by_end_user_session_id",
    "created_by_account", "page", "limit",
)  # fmt: skip
STATUSES: Final = ("succeeded", "failed", "stopped")
MAX_PAGE: Final = 99_999
MAX_LIMIT: Final = 100
KEYWORD_CHARS: Final = 30

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US: Final = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""Instants beyond these two mean the same to a list, and no database takes all of them."""
_LOST_PLUS: Final = re.compile(r" (\d\d:?\d\d)$")
_CREATED_FROM: Final = {"explore": "installed-app"}


def log_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["App (Dify-compatible)"])

    @router.get(
        "/workflows/logs",
        summary="Runs of the app, newest first",
        responses=answers(schemas.LogPage, 400, 401, 503),
        openapi_extra=secured("app_key") | parameters(*LOG_QUERY),
    )
    async def logs(request: Request) -> Response:
        app = await parts.access.app_key(request)
        return await log_page(parts, app.app_id, request.query_params)

    @router.get(
        "/end-users/{end_user_id}",
        summary="An end user of the app",
        responses=answers(schemas.EndUser, 401, 404, 503),
        openapi_extra=secured("app_key"),
    )
    async def end_user(request: Request, end_user_id: str) -> Response:
        app = await parts.access.app_key(request)
        try:
            tables = await parts.fresh.tables()
            found = await tables.end_user(app.app_id, end_user_id) if is_uuid(end_user_id) else None
        except RecordsUnavailable as error:
            raise unavailable("end users cannot be looked up now. Try again") from error
        if found is None:
            raise ApiError(404, "end_user_not_found", f'end user "{end_user_id[:64]}" has done nothing in this app')
        return JSONResponse(
            {
                "id": end_user_id,
                "tenant_id": TENANT_ID,
                "app_id": app.app_id,
                "type": _type(found.invoke_from),
                "external_user_id": found.user,
                "name": found.user,
                "is_anonymous": found.user == ANYBODY,
                "session_id": found.user,
                "created_at": rfc3339(found.created_us),
                "updated_at": rfc3339(found.updated_us),
            }
        )

    return router


async def log_page(
    parts: Parts, app_id: str, query: Mapping[str, str], statuses: tuple[str, ...] = STATUSES
) -> Response:
    """A page of the app's log; `statuses`: those that may be asked for. Raises ApiError."""
    wanted = _wanted(app_id, query, statuses)
    page = _whole(query, "page", 1, MAX_PAGE)
    limit = _whole(query, "limit", 20, MAX_LIMIT)
    try:
        tables = await parts.fresh.tables()
        rows, total = await tables.logs(wanted, page, limit)
    except RecordsUnavailable as error:
        raise unavailable("the log of runs cannot be read now. Try again") from error
    data = [_entry(row) for row in rows]
    return JSONResponse({"page": page, "limit": limit, "total": total, "has_more": page * limit < total, "data": data})


def _wanted(app_id: str, query: Mapping[str, str], statuses: tuple[str, ...]) -> LogFilter:
    status = query.get("status") or None
    if status is not None and status not in statuses:
        raise invalid_param(f"status: expected one of {', '.join(statuses)}", "status")
    account = query.get("created_by_account") or None
    if account is not None and account != ADMIN_ACCOUNT["email"]:
        raise invalid_param(f'created_by_account: no account "{account[:64]}"', "created_by_account")
    keyword = query.get("keyword", "").replace("\0", "")
    return LogFilter(
        app_id=app_id,
        keyword=keyword[:KEYWORD_CHARS] or None,
        run_id=_run_id(keyword),
        status=status,
        from_us=_instant(query, "created_at__after"),
        to_us=_instant(query, "created_at__before"),
        user=query.get("created_by_end_user_session_id", "").replace("\0", "") or None,
        account_id=None if account is None else ADMIN_ID,
    )


def _run_id(keyword: str) -> str | None:
    try:
        return str(uuid.UUID(keyword.strip()))
    except ValueError:
        return None


def _instant(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    try:
        # An unescaped + of an offset has become a space on its way through the query.
        found = datetime.fromisoformat(_LOST_PLUS.sub(r"+\1", text) if "T" in text else text)
        at_us = ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
        return min(max(at_us, 0), _LAST_US)
    except (ValueError, OverflowError) as error:
        raise invalid_param(f"{name}: expected an instant such as 2026-05-02T09:00:00Z", name) from error


def _whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise invalid_param(f"{name}: expected a whole number from 1 to {most}", name)
    return int(text)


def _type(invoke_from: str) -> str:
    return "browser" if invoke_from == "web-app" else "service-api"


def _entry(row: Mapping[str, Any]) -> Json:
    by_user = row["created_by_role"] == "end_user"
    user = {
        "id": row["created_by"],
        "type": _type(row["invoke_from"]),
        "is_anonymous": row["created_by_user"] == ANYBODY,
        "session_id": row["created_by_user"],
    }
    run = {
        "id": row["id"],
        "version": row["version"],
        "status": row["status"],
        "triggered_from": row["triggered_from"],
        "error": row["error"],
        "elapsed_time": row["elapsed_time"] or 0.0,
        "total_tokens": row["total_tokens"] or 0,
        "total_steps": row["total_steps"] or 0,
        "created_at": row["created_at"] // 1_000_000,
        "finished_at": row["finished_at"] // 1_000_000 if row["finished_at"] is not None else None,
        "exceptions_count": row["exceptions_count"] or 0,
    }
    return {
        "id": execution_id(row["id"], "", "log"),
        "workflow_run": run,
        "details": None,
        "created_from": _CREATED_FROM.get(row["invoke_from"], row["invoke_from"]),
        "created_by_role": row["created_by_role"],
        "created_by_account": None if by_user else ADMIN_ACCOUNT,
        "created_by_end_user": user if by_user else None,
        "created_at": row["created_at"] // 1_000_000,
    }
