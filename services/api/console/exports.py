"""A run's history for who has a link: made at the console, good for minutes, without a token.

The reference exports what it has archived. Here every run is in the log, so every run can be exported.
"""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.codec import rfc3339
from services.api import schemas
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.session import App
from services.api.errors import ApiError, forbidden
from services.api.parts import Parts
from services.api.runs import history_lines
from services.api.schemas import answers, errors, parameters


def export_routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["Console"])
    lines: schemas.Responses = {
        200: {"description": "JSON lines; docs/events.md", "content": {"application/x-ndjson": {}}}
    }

    @router.get(
        "/console/api/apps/{app_id}/workflow-runs/{run_id}/export",
        summary="A link to the history of a run",
        responses=answers(shapes.RunExport, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def export_run(request: Request, app: App, run_id: str) -> Response:
        run = await parts.reads.summary(run_id)
        if run is None or run.app_id != app.app_id:
            raise ApiError(404, "archive_log_not_found", f'the app has no run "{run_id[:64]}"')
        link, expires_us = parts.signer.history_link(run.id)
        url = str(request.base_url).rstrip("/") + link
        return JSONResponse(
            {"status": "success", "presigned_url": url, "presigned_url_expires_at": rfc3339(expires_us)}
        )

    @router.get(
        "/files/runs/{run_id}/history",
        summary="Read a run's history by a signed link",
        description="The link is the `presigned_url` of an export; it expires.",
        responses=lines | errors(403, 404, 503),
        openapi_extra=parameters("timestamp", "nonce", "sign", required=("timestamp", "nonce", "sign"))
        | {"security": []},
    )
    async def signed_history(request: Request, run_id: str) -> Response:
        if not parts.signer.holds_for_history(run_id, request.query_params):
            raise forbidden("the link has expired or is not signed by this server")
        return await history_lines(parts, run_id, 1, None, as_stream=False)

    return router
