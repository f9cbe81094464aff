"""Files that somebody uploads while editing: for runs of any draft, by whoever holds the admin token."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.files import EVERY_APP
from services.api import schemas
from services.api.account import ADMIN_ID
from services.api.console.apps import CONSOLE
from services.api.console.session import Account
from services.api.parts import Parts
from services.api.receiving import keep_upload
from services.api.schemas import answers, file_body
from services.api.uploads import uploaded


def console_file_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/files", tags=["Console"])

    @router.post(
        "/upload",
        summary="Upload a file for runs of drafts",
        status_code=201,
        responses=answers(schemas.UploadedFile, 400, 401, 403, 408, 413, 415, 503, status=201),
        openapi_extra=file_body() | CONSOLE,
    )
    async def upload(request: Request, principal: Account) -> Response:
        file = await keep_upload(parts, request, EVERY_APP, principal, lambda _: ADMIN_ID)
        return JSONResponse(uploaded(file, parts.signer.link(file.file_id)), 201)

    return router
