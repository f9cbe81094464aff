"""Parameters of routes that take a JSON object: `body: Body`.

A body is read when the parameters before it are known: put who calls first.
"""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from services.api.frames import Json
from services.api.parts import parts_of
from services.api.requests import read_json


async def _body(request: Request) -> Json:
    return await read_json(request, parts_of(request).limits.max_body_bytes)


async def _optional_body(request: Request) -> Json:
    return await read_json(request, parts_of(request).limits.max_body_bytes, optional=True)


async def _document_body(request: Request) -> Json:
    return await read_json(request, parts_of(request).limits.max_document_bytes)


Body = Annotated[Json, Depends(_body)]
OptionalBody = Annotated[Json, Depends(_optional_body)]
"""No body counts as `{}`."""
DocumentBody = Annotated[Json, Depends(_document_body)]
"""With parts of a workflow document in it: as large as one."""
