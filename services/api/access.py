"""Who calls: an app key opens its app, the admin token opens everything.

Keys are looked up by their hash; the token is compared in constant time. An unknown key is refused only after the
definitions were read to their end.
"""

import hmac
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from starlette.requests import Request

from libs.events.commands import Caller
from libs.events.log import LogError
from libs.events.registry import AppCreated, RegistryTail, hash_key
from libs.tables import TENANT_ID
from services.api.account import ADMIN_ID
from services.api.errors import ApiError, forbidden, invalid_param, not_found, unauthorized, unavailable
from services.api.rate import RequestRate
from services.api.threads import Threads
from services.api.tokens import Signer

if TYPE_CHECKING:
    from services.api.reads import RunSummary

TOKEN_CONTEXT = b"flowledger session tokens"

ANYBODY = "DEFAULT-USER"
"""The end user of requests that may name one and do not."""


@dataclass(slots=True, frozen=True)
class Principal:
    """The holder of an app key (`app` is its app) or of the admin token (`app` is None)."""

    app: AppCreated | None
    surface: Literal["api", "browser", "trigger"] = "api"
    """Where it came in. Browsers invent what they are called; what triggers begin belongs to nobody outside."""

    @property
    def admin(self) -> bool:
        return self.app is None

    def may_see(self, app_id: str) -> bool:
        return self.app is None or self.app.app_id == app_id

    def caller(self, user: str) -> Caller:
        """Who starts a run, as records show it."""
        if self.app is None:
            return Caller(role="account", id=ADMIN_ID, user=user)
        # A browser that takes the name of a user of the service API must not become that user.
        named = user if self.surface == "api" else f"{self.surface}\n{user}"
        return Caller(role="end_user", id=end_user_id(self.app.app_id, named), user=user)

    def began(self, run: "RunSummary", user: str) -> bool:
        """Whether `run` was started by this user of this app, at this surface."""
        return self.may_see(run.app_id) and run.caller_id == self.caller(user).id


def end_user_id(app_id: str, user: str) -> str:
    """The id of an app's end user; derived, so that every replica gives the same one."""
    return str(uuid.uuid5(uuid.UUID(TENANT_ID), f"{app_id}\n{user}"))


class Access:
    def __init__(self, registry: RegistryTail, admin_token: str, rate: RequestRate | None = None) -> None:
        """`rate`: how often a key may ask; None: as often as it likes."""
        self._registry = registry
        self._rate = rate
        self._admin_token = admin_token.encode()
        # Sessions and passports are signed with a key of their own: the same at every replica, gone with the token.
        self.signer = Signer(hmac.digest(self._admin_token or secrets.token_bytes(32), TOKEN_CONTEXT, "sha256"))
        # Few threads of its own: a flood of unknown keys waits here and keeps nobody else waiting.
        self._threads = Threads(2)

    def close(self) -> None:
        self._threads.close()

    async def app_key(self, request: Request) -> AppCreated:
        """The app whose key the request carries. Raises ApiError 401, 403."""
        token = bearer_token(request)
        app = await self._app_of(token)
        if app is None:
            raise unauthorized("Access token is invalid")
        return app

    async def anyone(self, request: Request) -> Principal:
        """The holder of an app key or of the admin token. Raises ApiError 401."""
        token = bearer_token(request)
        if self.is_admin(token):
            return Principal(None)
        app = await self._app_of(token)
        if app is None:
            raise unauthorized("Access token is invalid")
        return Principal(app)

    async def admin(self, request: Request) -> Principal:
        """The holder of the admin token. Raises ApiError: 401, or 403 for a valid app key."""
        principal = await self.anyone(request)
        if not principal.admin:
            raise ApiError(403, "forbidden", "this needs the admin token")
        return principal

    async def app(self, app_id: str, principal: Principal) -> AppCreated:
        """The app, if the principal may see it. Raises ApiError 404."""
        app = self._registry.app(app_id)
        if app is None and principal.admin:
            await self.refresh()
            app = self._registry.app(app_id)
        if app is None or not principal.may_see(app_id):
            raise not_found(f'app "{app_id[:64]}" does not exist')
        return app

    async def catch_up(self) -> None:
        """As `refresh`, for the administrator: nothing that another replica has answered is missing here."""
        await self._read_on(self._registry.catch_up)

    async def refresh(self) -> None:
        """Read definitions to their end as of now: only then is something certainly not there. Raises ApiError 503."""
        await self._read_on(self._registry.refresh)

    async def _read_on(self, read: Callable[[], None]) -> None:
        try:
            await self._threads.run(read)
        except LogError as error:
            raise unavailable("apps and keys cannot be looked up now. Try again") from error

    def is_admin(self, token: str) -> bool:
        return bool(self._admin_token) and hmac.compare_digest(token.encode("utf-8", "replace"), self._admin_token)

    async def _app_of(self, token: str) -> AppCreated | None:
        """The app that the key opens; None: it opens none.

        Raises ApiError: 403 when the app is closed to all keys, 429 when the key asks too often.
        """
        app = self._known(token)
        if app is None and token.startswith("app-"):
            await self.refresh()
            app = self._known(token)
            app_id = self._registry.app_of_key(token)
            if app is None and app_id is not None and self._registry.deleted(app_id):
                raise forbidden("the app was deleted")
        if app is not None and not app.enable_api:
            raise forbidden("the app's API is switched off")
        if app is not None and self._rate is not None:
            self._rate.count(hash_key(token))
        return app

    def _known(self, token: str) -> AppCreated | None:
        app_id = self._registry.app_of_key(token)
        return None if app_id is None else self._registry.app(app_id)


def bearer_token(request: Request) -> str:
    """The token of the Authorization header. Raises ApiError 401."""
    header = request.headers.get("authorization")
    if header is None or " " not in header.strip():
        raise unauthorized("Authorization header must be provided and begin with Bearer")
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise unauthorized("Authorization scheme must be Bearer")
    return token.strip()


def required_user(value: object) -> str:
    """The caller's name for its user. Raises ApiError 400."""
    user = value if isinstance(value, str) else "" if value is None else str(value)
    if not user:
        raise invalid_param("the user argument must be given", "user")
    return user
