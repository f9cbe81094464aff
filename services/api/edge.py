"""The outermost layer of every answer: version header, CORS, an envelope for whatever escapes, and metrics.

Pages of any origin may call, as with the reference, unless origins are named; credentials are never shared with them
by the browser: a page sends its key itself.

Plain ASGI: a stream passes through it as one coroutine, message by message.
"""

import logging
import re
import time
from typing import Any

from starlette.routing import Match

from services.api.detached import run_detached
from services.api.errors import ApiError
from services.api.metrics import ApiMetrics

logger = logging.getLogger(__name__)

_UUID = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_ID_IN_PATH = re.compile(rf"(?<!/nodes)/{_UUID}(?=/|$)")
"""Ids of nodes are texts of the document, whatever they look like."""
_ID_IN_QUERY = re.compile(
    rf"(?<![^&])(?:app|app_id|conversation_id|first_id|id|last_id|run|workflow_id)={_UUID}(?=&|$)".encode()
)

_METHODS = b"GET, PUT, POST, DELETE, OPTIONS, PATCH"
_REQUEST_HEADERS = b"Content-Type, X-App-Code, X-App-Passport, Authorization, Idempotency-Key, Last-Event-ID"
_EXPOSED = b"X-Version, X-Workflow-Run-Id, X-Task-Id, Retry-After"


class Edge:
    def __init__(self, app: Any, version: str, metrics: ApiMetrics, origins: tuple[str, ...] = ("*",)) -> None:
        """`origins`: pages of these may call; `*`: of all."""
        self._app = app
        self._metrics = metrics
        self._headers = [
            (b"x-version", version.encode()),
            (b"x-env", b"PRODUCTION"),
            (b"access-control-expose-headers", _EXPOSED),
        ]
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _with_canonical_ids(scope)
        begun_s = time.perf_counter()
        started = False
        route = ""

        async def send_with_headers(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *self._headers, *self._allowance(scope)]
                self._count(scope, route, message["status"], time.perf_counter() - begun_s)
            await send(message)

        if scope["method"] == "OPTIONS" and _is_preflight(scope):
            await _preflight(send_with_headers)
            return
        if _is_head_of_get(scope):
            scope, send = scope | {"method": "GET"}, _only_headers(send)
        try:
            await self._app(scope, receive, send_with_headers)
            route = getattr(scope.get("route"), "path", "none")
            await run_detached(scope, receive, send_with_headers)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
        except Exception:
            # Whatever nobody expected: the client gets an envelope, the operator the traceback.
            logger.exception("request_failed", extra={"path": scope["path"], "method": scope["method"]})
            if started:
                raise
            problem = ApiError(500, "internal_server_error", "the server has failed to answer; its log says why")
            await problem.response()(scope, receive, send_with_headers)

    def _allowance(self, scope: Any) -> list[tuple[bytes, bytes]]:
        """Whether the page that asks may see the answer."""
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        differs = [(b"vary", b"Origin")]  # a cache must not give one page what was answered to another
        return [(b"access-control-allow-origin", origin), *differs] if origin in self._origins else differs

    def _count(self, scope: Any, route: str, status: int, took_s: float) -> None:
        route = route or getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.seconds.labels(route).observe(took_s)


def _with_canonical_ids(scope: Any) -> Any:
    """UUIDs are kept in lower case and may be asked for in any; here, so that no route has to think of it.

    What comes to a trigger is for the workflow, as it is.
    """
    if scope["path"].startswith("/triggers/"):
        return scope
    return scope | {
        "path": _ID_IN_PATH.sub(lambda found: found[0].lower(), scope["path"]),
        "query_string": _ID_IN_QUERY.sub(lambda found: found[0].lower(), scope["query_string"]),
    }


def _is_head_of_get(scope: Any) -> bool:
    """HEAD is GET without the body, unless a route knows HEAD itself."""
    return scope["method"] == "HEAD" and not any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)


def _only_headers(send: Any) -> Any:
    """The answer ends with its headers: a stream would go on and hold the connection."""

    async def send_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})

    return send_headers


def _is_preflight(scope: Any) -> bool:
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])


async def _preflight(send: Any) -> None:
    headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
