"""Errors as the contract shows them: `{"code", "message", "status"}`, never a traceback."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from services.api.frames import encode


class ApiError(Exception):
    """An answer that is not a success. `code` is stable; `message` is for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: str | None = None,
        problems: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.params = params
        self.problems = problems

    def response(self) -> Response:
        body: dict[str, Any] = {"code": self.code, "message": self.message, "status": self.status}
        if self.params is not None:
            body["params"] = self.params
        if self.problems is not None:
            body["problems"] = self.problems
        return Response(encode(body), self.status, dict(self.headers), "application/json")


def invalid_param(message: str, params: str | None = None) -> ApiError:
    return ApiError(400, "invalid_param", message, params=params)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "bad_request", message)


def not_found(message: str, params: str | None = None) -> ApiError:
    return ApiError(404, "not_found", message, params=params)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="api"'})


def forbidden(message: str) -> ApiError:
    return ApiError(403, "forbidden", message)


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    """Ask again: nothing is wrong with the request."""
    return ApiError(503, "service_unavailable", message, headers={"Retry-After": str(retry_after_s)})


def too_many_requests(message: str, retry_after_s: int = 1) -> ApiError:
    """Ask again: a limit is reached at the moment."""
    return ApiError(429, "too_many_requests", message, headers={"Retry-After": str(retry_after_s)})


CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    413: "request_entity_too_large",
    415: "unsupported_media_type",
    422: "unprocessable_entity",
    429: "too_many_requests",
    500: "internal_server_error",
    503: "service_unavailable",
}
"""Codes of errors that the framework raises."""
