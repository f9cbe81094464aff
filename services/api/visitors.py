"""Who asks on an app's public page: a browser with a passport, a signed statement of who it is."""

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request

from libs.events.registry import AppCreated
from services.api.access import Principal
from services.api.dialogues import Speaker
from services.api.errors import ApiError, unauthorized
from services.api.frames import Json
from services.api.parts import parts_of
from services.api.reads import RunSummary

PASSPORT: Final = "web-passport"
PASSPORT_S: Final = 30 * 24 * 60 * 60
BY_PASSPORT: Final[Json] = {"security": [{"passport": []}]}
"""Security of a route, for the document."""


@dataclass(slots=True, frozen=True)
class Visitor:
    """A browser on an app's page."""

    app: AppCreated
    user: str

    @property
    def principal(self) -> Principal:
        return Principal(self.app, surface="browser")

    @property
    def speaker(self) -> Speaker:
        return Speaker(self.app, self.principal.caller(self.user))

    def owns(self, run: RunSummary | None) -> bool:
        return run is not None and self.principal.began(run, self.user)


async def visitor_of(request: Request) -> Visitor:
    """The browser whose passport the request carries. Raises ApiError 401."""
    parts = parts_of(request)
    claims = parts.access.signer.read(PASSPORT, _passport_in(request), parts.now_us() / 1e6)
    if claims is None:
        raise unauthorized("the header X-App-Passport must carry a passport of GET /api/passport")
    code = request.headers.get("x-app-code")
    if code is not None and code != claims.get("app_code"):
        raise unauthorized("the passport is of another page")
    app = parts.registry.app(str(claims.get("app_id")))
    if app is None or parts.registry.app_of_site(str(claims.get("app_code"))) != app:
        # It may be new here; whoever has a passport got it from one of us.
        await parts.access.refresh()
        app = parts.registry.app_of_site(str(claims.get("app_code")))
    if app is None or app.app_id != claims.get("app_id"):
        raise ApiError(401, "web_app_access_denied", "the page is gone or switched off")
    return Visitor(app, str(claims.get("user")))


FromPage = Annotated[Visitor, Depends(visitor_of)]
"""Parameter of a route: the browser that asks."""


def _passport_in(request: Request) -> str:
    """By header, by the cookie of the page, or as older clients send it."""
    given = request.headers.get("x-app-passport")
    if given:
        return given
    code = request.headers.get("x-app-code", "")
    cookie = request.cookies.get(f"passport-{code}")
    if cookie:
        return cookie
    scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
