"""`/healthz` (alive), `/readyz` (makes progress), `/metrics`, and `/v1/`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from prometheus_client.registry import Collector
from starlette.responses import JSONResponse, Response

from libs.events.log import LogError, Topic
from libs.events.sealing import SealError
from services.api import schemas
from services.api.errors import ApiError
from services.api.metrics import ApiMetrics
from services.api.parts import Parts


@dataclass(frozen=True, slots=True)
class Beside:
    """Another service in this process, which answers for its part of readiness and metrics."""

    name: str
    problem: Callable[[], str | None]
    """What keeps it from its work. Called on any thread; may block."""
    numbers: Collector


def health_routes(parts: Parts, metrics: ApiMetrics, beside: Sequence[Beside]) -> APIRouter:
    for other in beside:
        metrics.registry.register(other.numbers)
    router = APIRouter(tags=["Operation"])

    @router.get("/healthz", summary="Is the process alive", responses={200: {"model": schemas.Health}})
    async def healthz() -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "service": "api",
                "instance_id": parts.instance_id,
                "version": parts.version,
                "models": parts.models,
            }
        )

    @router.get(
        "/readyz",
        summary="Does the process make progress",
        responses={200: {"model": schemas.Readiness}, 503: {"model": schemas.Readiness}},
    )
    async def readyz() -> Response:
        problem, lag = await _progress(parts)
        if problem is None:
            problem = await parts.threads.run(_problem_of, beside)
        body = {"status": "ready" if problem is None else "not ready", "service": "api", "lag_records": lag}
        if problem is not None:
            body["problem"] = problem
        return JSONResponse(body, 200 if problem is None else 503)

    @router.get("/metrics", summary="Prometheus metrics", responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        return Response(await parts.threads.run(metrics.text), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/", summary="Who answers here", include_in_schema=True)
    async def index(request: Request) -> Response:
        welcome = {"welcome": "Flowledger API", "api_version": "v1", "server_version": parts.version}
        return JSONResponse(welcome)

    return router


async def _progress(parts: Parts) -> tuple[str | None, int | None]:
    """(why this replica is not ready, records it is behind)."""
    if parts.tail.problem is not None:
        return parts.tail.problem, None
    try:
        ends = await parts.threads.run(_ends, parts)
        await parts.access.refresh()
        parts.registry.check_sealed()
    except SealError as error:
        return str(error), None
    except (LogError, ApiError) as error:
        return f"the log cannot be read: {error}", None
    lag = parts.tail.lag(ends)
    if lag > parts.limits.max_lag_records:
        return f"this replica is {lag} records behind the log", lag
    return None, lag


def _problem_of(beside: Sequence[Beside]) -> str | None:
    return next((f"{other.name}: {problem}" for other in beside if (problem := other.problem())), None)


def _ends(parts: Parts) -> dict[int, int]:
    return {number: parts.log.bounds(Topic.EVENTS, number)[1] for number in parts.tail.partitions}
