"""Who works at the console: the holder of the admin token, by header, or by cookies that a login gave out.

A session is three signed tokens and nothing on a server, so any replica reads what another gave out; all of them end
when the admin token is replaced. Cookies need the CSRF token in a header as well: a page of others can make a browser
send cookies, but not read them. The one exception is saving the draft, which browsers send as a beacon without headers;
there `SameSite=Lax` keeps others' pages out.
"""

import base64
import binascii
import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from libs.events.registry import AppCreated
from services.api import schemas
from services.api.access import Principal
from services.api.bodies import Body
from services.api.console import shapes
from services.api.errors import ApiError, unauthorized
from services.api.parts import Parts, parts_of
from services.api.schemas import answers, json_body

SESSION = "console-session"
REFRESH = "console-refresh"
CSRF = "console-csrf"
SESSION_S = 60 * 60
REFRESH_S = 30 * 24 * 60 * 60
COOKIES = ("access_token", "refresh_token", "csrf_token")
CHAT = "advanced-chat"
CHAT_PREFIX = f"/{CHAT}"
"""Behind an app's path, of routes that are for chatflows alone."""


def session_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api", tags=["Console"])

    @router.post(
        "/login",
        summary="Log in with the admin token as password",
        description="Gives out three cookies. Later requests repeat `csrf_token` in the header X-CSRF-Token.",
        responses=answers(schemas.Result, 400, 401, 413, 415),
        openapi_extra=json_body(shapes.LoginBody) | {"security": []},
    )
    async def login(request: Request, body: Body) -> Response:
        password = body.get("password")
        if not isinstance(password, str) or not any(map(parts.access.is_admin, _readings(password))):
            raise unauthorized("the password must be the admin token (flowledger keeps it in the file admin-token)")
        return _opened(parts, request, parts.new_uuid())

    @router.post(
        "/refresh-token",
        summary="Go on with a session whose access token is over",
        responses=answers(schemas.Result, 401),
        openapi_extra={"security": [{"session": []}]},
    )
    async def refresh_token(request: Request) -> Response:
        claims = _claims(parts, request, REFRESH, "refresh_token")
        if claims is None:
            raise unauthorized("the session is over. Log in again")
        return _opened(parts, request, str(claims.get("sid")))

    @router.post(
        "/logout",
        summary="End the session in this browser",
        responses=answers(schemas.Result, 401, 403),
        openapi_extra={"security": [{"session": []}, {"admin": []}]},
    )
    async def logout(request: Request, _: Account) -> Response:
        answer = JSONResponse({"result": "success"})
        for name in COOKIES:
            answer.delete_cookie(_cookie(request, name), secure=_secure(request))
        return answer

    return router


async def account(parts: Parts, request: Request, *, csrf: bool = True) -> Principal:
    """The administrator. Raises ApiError: 401, or 403 for the key of an app."""
    if request.headers.get("authorization"):
        return await _by_header(parts, request)
    claims = _claims(parts, request, SESSION, "access_token")
    if claims is None:
        raise unauthorized("log in, or send the admin token as Authorization: Bearer")
    if csrf and not _csrf_holds(parts, request, claims):
        raise unauthorized("the header X-CSRF-Token must repeat the cookie csrf_token")
    return Principal(None)


async def _account(request: Request) -> Principal:
    return await account(parts_of(request), request)


Account = Annotated[Principal, Depends(_account)]
"""Parameter of a route that is the administrator's."""


async def app_of(parts: Parts, request: Request, app_id: str, *modes: str, csrf: bool = True) -> AppCreated:
    """The app, known as of this request, whatever was changed at another replica. Raises ApiError."""
    await account(parts, request, csrf=csrf)
    await parts.access.catch_up()
    app = parts.registry.app(app_id)
    if app is None or (modes and app.mode not in modes):
        raise ApiError(404, "app_not_found", f'app "{app_id[:64]}" does not exist, or is of another mode')
    return app


async def _app(request: Request, app_id: str) -> AppCreated:
    of_chatflows = f"{CHAT_PREFIX}/" in request.url.path
    return await app_of(parts_of(request), request, app_id, *((CHAT,) if of_chatflows else ()))


async def _workflow_app(request: Request, app_id: str) -> AppCreated:
    return await app_of(parts_of(request), request, app_id, "workflow")


App = Annotated[AppCreated, Depends(_app)]
"""Parameter of a route: the app in its path, for the administrator. Below `CHAT_PREFIX`: a chatflow."""

WorkflowApp = Annotated[AppCreated, Depends(_workflow_app)]
"""As `App`, of mode `workflow`."""


async def _by_header(parts: Parts, request: Request) -> Principal:
    scheme, _, token = request.headers["authorization"].strip().partition(" ")
    if scheme.lower() == "bearer":
        claims = parts.access.signer.read(SESSION, token.strip(), parts.now_us() / 1e6)
        if claims is not None:
            return Principal(None)
    return await parts.access.admin(request)


def _readings(password: str) -> list[str]:
    """What a password may be: as it is, or as the reference's clients send it, in base64."""
    try:
        return [password, base64.b64decode(password, validate=True).decode("utf-8")]
    except (ValueError, binascii.Error):
        return [password]


def _opened(parts: Parts, request: Request, session_id: str) -> Response:
    now_s = parts.now_us() // 1_000_000
    signer = parts.access.signer
    said: dict[str, Any] = {"sid": session_id}
    tokens = {
        "access_token": (signer.sign(SESSION, said, now_s + SESSION_S), SESSION_S),
        "refresh_token": (signer.sign(REFRESH, said, now_s + REFRESH_S), REFRESH_S),
        "csrf_token": (signer.sign(CSRF, said, now_s + REFRESH_S), REFRESH_S),
    }
    answer = JSONResponse({"result": "success"})
    for name, (token, age_s) in tokens.items():
        answer.set_cookie(
            _cookie(request, name),
            token,
            max_age=age_s,
            httponly=name != "csrf_token",  # the page must read this one to repeat it
            samesite="lax",
            secure=_secure(request),
        )
    return answer


def _claims(parts: Parts, request: Request, kind: str, cookie: str) -> dict[str, Any] | None:
    token = request.cookies.get(_cookie(request, cookie), "")
    return parts.access.signer.read(kind, token, parts.now_us() / 1e6)


def _csrf_holds(parts: Parts, request: Request, session: dict[str, Any]) -> bool:
    repeated = request.headers.get("x-csrf-token", "")
    cookie = request.cookies.get(_cookie(request, "csrf_token"), "")
    claims = parts.access.signer.read(CSRF, repeated, parts.now_us() / 1e6)
    same = hmac.compare_digest(repeated.encode("latin-1", "replace"), cookie.encode("latin-1", "replace"))
    return same and claims is not None and claims.get("sid") == session.get("sid")


def _secure(request: Request) -> bool:
    return request.headers.get("x-forwarded-proto", request.url.scheme) == "https"


def _cookie(request: Request, name: str) -> str:
    """Browsers take a `__Host-` cookie from this very host only, over https."""
    return f"__Host-{name}" if _secure(request) else name
