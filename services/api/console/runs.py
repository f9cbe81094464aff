"""Run history at the console: lists, counts, details, node executions, logs by day, and streams of runs."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request
from sqlalchemy.engine import Connection
from starlette.responses import JSONResponse, Response

from libs.events.ids import message_id_of, run_id_of_task
from libs.events.registry import AppCreated
from services.api import schemas
from services.api.access import Principal
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import limit_of, paging
from services.api.console.executions import created_by, executions
from services.api.console.queries import SHOWN_AS, Runs, count_of_runs, days_of_runs, page_of_runs
from services.api.console.session import CHAT_PREFIX, Account, App
from services.api.drafting import workflow_of
from services.api.errors import invalid_param, not_found, unavailable
from services.api.frames import Json, encode
from services.api.logs import LOG_QUERY, log_page
from services.api.parts import Parts
from services.api.reads import RunSummary
from services.api.records import RecordsUnavailable
from services.api.requests import is_uuid
from services.api.runs import STATUSES as EVERY_STATUS
from services.api.schemas import answers, errors, parameters, streamed
from services.api.workflows import attach

T = TypeVar("T")

STATUSES: Final = ("running", "succeeded", "failed", "stopped", "partial-succeeded")
TRIGGERED_FROM: Final = ("debugging", "app-run")
_RANGE: Final = re.compile(r"([1-9][0-9]{0,5})([dhms])")
_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def run_history_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api", tags=["Console"])

    for prefix in ("", CHAT_PREFIX):
        _lists(router, parts, f"/apps/{{app_id}}{prefix}", chat=bool(prefix))
    _details(router, parts)
    _statistics(router, parts)
    return router


def _lists(router: APIRouter, parts: Parts, prefix: str, *, chat: bool) -> None:
    @router.get(
        f"{prefix}/workflow-runs",
        summary="Runs of the app, newest first",
        responses=answers(shapes.RunPage, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("last_id", "limit", "status", "triggered_from"),
    )
    async def list_runs(request: Request, app: App) -> Response:
        limit = limit_of(request, 20)
        last_id = request.query_params.get("last_id") or None
        if last_id is not None and not is_uuid(last_id):
            raise invalid_param("last_id: expected the id of a run", "last_id")
        wanted = _wanted(request, app)
        rows = await asked(parts, lambda connection: page_of_runs(connection, wanted, last_id, limit + 1))
        if rows is None:
            raise not_found(f'the app has no run "{str(last_id)[:64]}"')
        items = [_item(row, chat=chat) for row in rows[:limit]]
        return JSONResponse({"limit": limit, "has_more": len(rows) > limit, "data": items})

    @router.get(
        f"{prefix}/workflow-runs/count",
        summary="How many runs the app has, by status",
        responses=answers(shapes.RunCount, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("status", "time_range", "triggered_from"),
    )
    async def count_runs(request: Request, app: App) -> Response:
        wanted = _wanted(request, app, from_us=_since(parts, request.query_params.get("time_range")))
        counts = await asked(parts, lambda connection: count_of_runs(connection, wanted))
        by_status = {status.replace("-", "_"): counts.get(status, 0) for status in STATUSES}
        return JSONResponse({"total": sum(counts.values()), **by_status})


def _details(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/apps/{app_id}/workflow-runs/{run_id}",
        summary="A run",
        responses=answers(shapes.RunDetail, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def get_run(app: App, run_id: str) -> Response:
        run = await run_of(parts, app, run_id)
        return Response(encode(_detail(run, await _graph(parts, run))), media_type="application/json")

    @router.get(
        "/apps/{app_id}/workflow-runs/{run_id}/node-executions",
        summary="The node executions of a run, in the order of their starts",
        responses=answers(shapes.NodeExecutions, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def node_executions(app: App, run_id: str) -> Response:
        run = await parts.reads.summary(run_id)
        if run is None or run.app_id != app.app_id:
            return JSONResponse({"data": []})
        history = await parts.folds.history(run_id, Principal(None))
        return Response(encode({"data": executions(history)}), media_type="application/json")

    @router.get(
        "/apps/{app_id}/workflow-app-logs",
        summary="Published runs of the app, newest first",
        responses=answers(schemas.LogPage, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters(*LOG_QUERY),
    )
    async def app_logs(request: Request, app: App) -> Response:
        return await log_page(parts, app.app_id, request.query_params, EVERY_STATUS)

    @router.get(
        "/apps/{app_id}/workflow-archived-logs",
        summary="Archived runs of the app: none, because runs stay where they are",
        responses=answers(schemas.LogPage, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("page", "limit"),
    )
    async def archived_logs(request: Request, _: App) -> Response:
        page, limit = paging(request, default_limit=20)
        return JSONResponse({"page": page, "limit": limit, "total": 0, "has_more": False, "data": []})

    @router.post(
        "/apps/{app_id}/workflow-runs/tasks/{task_id}/stop",
        summary="Stop a run by its task id",
        responses=answers(schemas.Result, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def stop_task(request: Request, app: App, task_id: str) -> Response:
        try:
            run_id = run_id_of_task(task_id)
        except ValueError:
            return JSONResponse({"result": "success"})  # as for every other task that is not running
        run = await parts.reads.summary(run_id)
        if run is not None and run.app_id == app.app_id and not run.ended:
            await parts.submitter.stop(run_id, "User requested stop", "admin")
        return JSONResponse({"result": "success"})

    @router.get(
        "/workflow/{run_id}/events",
        summary="Attach to a run's event stream",
        responses=streamed(None) | errors(400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("include_state_snapshot", "continue_on_pause"),
    )
    async def run_events(request: Request, run_id: str, _: Account) -> Response:
        run = await parts.reads.summary(run_id)
        if run is None:
            raise not_found(f'run "{run_id[:64]}" does not exist')
        return await attach(parts, request, run)


def _statistics(router: APIRouter, parts: Parts) -> None:
    def statistic(path: str, summary: str, made: Callable[[Any], Json]) -> None:
        @router.get(
            f"/apps/{{app_id}}/workflow/statistics/{path}",
            name=path,
            summary=summary,
            description="Of published runs, by day (UTC). `start` and `end`: `YYYY-MM-DD HH:MM`, UTC.",
            responses=answers(shapes.Days, 400, 401, 403, 404, 503),
            openapi_extra=CONSOLE | parameters("start", "end"),
        )
        async def days(request: Request, app: App) -> Response:
            wanted = Runs(app.app_id, "app-run", from_us=_moment(request, "start"), to_us=_moment(request, "end"))
            found = await asked(parts, lambda connection: days_of_runs(connection, wanted))
            return JSONResponse({"data": [{"date": day.date, **made(day)} for day in found]})

    statistic("daily-conversations", "Runs a day", lambda day: {"runs": day.runs})
    statistic("daily-terminals", "Callers a day", lambda day: {"terminal_count": day.users})
    statistic("token-costs", "Tokens a day", lambda day: {"token_count": day.tokens})
    statistic(
        "average-app-interactions",
        "Runs a day and caller",
        lambda day: {"interactions": round(day.runs / day.users, 2)},
    )


async def run_of(parts: Parts, app: AppCreated, run_id: str) -> RunSummary:
    """Raises ApiError 404."""
    run = await parts.reads.summary(run_id)
    if run is None or run.app_id != app.app_id:
        raise not_found(f'the app has no run "{run_id[:64]}"')
    return run


async def asked(parts: Parts, question: Callable[[Connection], T]) -> T:
    """The answer of the tables, never older than the request. Raises ApiError 503."""
    try:
        return await (await parts.fresh.tables()).ask(question)
    except RecordsUnavailable as error:
        raise unavailable("lists of runs cannot be read now. Runs themselves can: ask for one by its id") from error


async def _graph(parts: Parts, run: RunSummary) -> Json | None:
    text = parts.registry.document(run.digest)
    return None if text is None else workflow_of(await parts.drafting.parsed(text))["graph"]


def _wanted(request: Request, app: AppCreated, *, from_us: int | None = None) -> Runs:
    query = request.query_params
    status = query.get("status") or None
    if status is not None and status not in STATUSES:
        raise invalid_param(f"status: expected one of {', '.join(STATUSES)}", "status")
    triggered_from = query.get("triggered_from") or TRIGGERED_FROM[0]
    if triggered_from not in TRIGGERED_FROM:
        raise invalid_param(f"triggered_from: expected one of {', '.join(TRIGGERED_FROM)}", "triggered_from")
    return Runs(app.app_id, triggered_from, status, from_us)


def _since(parts: Parts, time_range: str | None) -> int | None:
    if not time_range:
        return None
    found = _RANGE.fullmatch(time_range)
    if found is None:
        raise invalid_param("time_range: expected a duration such as 7d, 4h, 30m or 30s", "time_range")
    # Before the epoch there are no runs, and no database has all of those instants.
    return max(0, parts.now_us() - int(found[1]) * _UNITS[found[2]] * 1_000_000)


def _moment(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        at = datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise invalid_param(f"{name}: expected YYYY-MM-DD HH:MM", name) from error
    return max(0, (at - _EPOCH) // timedelta(microseconds=1))


def _item(row: Any, *, chat: bool) -> Json:
    by = created_by(row["created_by_role"], row["created_by"], row["created_by_user"], row["invoke_from"])
    item = {
        "id": row["id"],
        "version": row["version"],
        "status": SHOWN_AS.get(row["status"], row["status"]),
        "elapsed_time": row["elapsed_time"] or 0.0,
        "total_tokens": row["total_tokens"] or 0,
        "total_steps": row["total_steps"] or 0,
        "created_by_account": by["created_by_account"],
        "created_at": row["created_at"] // 1_000_000,
        "finished_at": row["finished_at"] // 1_000_000 if row["finished_at"] is not None else None,
        "exceptions_count": row["exceptions_count"] or 0,
        "retry_index": 0,
    }
    if chat:
        item |= {"conversation_id": row["conversation_id"], "message_id": message_id_of(row["id"])}
    return item


def _detail(run: RunSummary, graph: Json | None) -> Json:
    invoke_from = "debugger" if run.triggered_from == "debugging" else "service-api"
    return {
        "id": run.id,
        "version": run.version,
        "graph": graph,
        "inputs": run.inputs,
        "status": SHOWN_AS.get(run.status, run.status),
        "outputs": run.outputs,
        "error": run.error,
        "elapsed_time": run.elapsed_s,
        "total_tokens": run.total_tokens,
        "total_steps": run.total_steps,
        **created_by(run.caller_role, run.caller_id, run.caller_user, invoke_from),
        "created_at": run.created_us // 1_000_000,
        "finished_at": run.finished_us // 1_000_000 if run.finished_us is not None else None,
        "exceptions_count": run.exceptions_count,
    }
