"""How a request looks on the wire. The only module that knows httpx, and it loads it when a client is made."""

import sys
from typing import TYPE_CHECKING, Any

from flowledger.client.asking import Call, Lost

if TYPE_CHECKING:
    import httpx

# httpx brings a command line of its own and, for it, rich and pygments: 60 ms of every program. It does without them.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: "cannot be imported", as documented

ANSWER_S = 45.0
"""A start with an idempotency key is answered when it is decided, which may take 30 s."""

_CONNECT_S = 5.0


class Http:
    """Requests, and the errors of their transport."""

    def __init__(self, token: str | None) -> None:
        import httpx

        self._httpx = httpx
        self.errors: tuple[type[Exception], ...] = (httpx.TransportError,)
        self._token = token

    def blocking(self) -> "httpx.Client":
        return self._httpx.Client(headers=self._headers(), mounts=self._past_proxies(self._httpx.HTTPTransport))

    def asynchronous(self) -> "httpx.AsyncClient":
        return self._httpx.AsyncClient(
            headers=self._headers(), mounts=self._past_proxies(self._httpx.AsyncHTTPTransport)
        )

    def request(self, url: str, call: Call, silence_s: float = ANSWER_S) -> dict[str, Any]:
        """The arguments of `stream`."""
        return {
            "method": call.method,
            "url": url + call.path,
            "params": dict(call.params),
            "headers": dict(call.headers),
            "content": call.content,
            "timeout": self._httpx.Timeout(silence_s, connect=_CONNECT_S),
        }

    def lost(self, error: Exception) -> Lost:
        return Lost(error, asked=not isinstance(error, self._httpx.ConnectError | self._httpx.ConnectTimeout))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _past_proxies(self, transport: Any) -> dict[str, Any]:
        """A proxy of the environment must not get between us and our own machine."""
        return {f"all://{host}": transport() for host in ("127.0.0.1", "localhost", "[::1]")}
