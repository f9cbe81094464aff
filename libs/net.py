"""Outbound HTTP to addresses that come from documents, data and requests, so from people we do not trust.

Promises: no connection to an address that is not public unless the operator allowed it, through DNS, numeric
spellings, IPv6 forms of IPv4 addresses and redirects alike; a name is resolved once and the connection goes to an
address that was vetted, so an answer that changes in between (DNS rebinding) changes nothing; what a request carries
for one host does not follow a redirect to another; no cookie is kept; no proxy variable of the environment is used.

Model providers do not go through here: their addresses come from the operator and may be private.
"""

import asyncio
import re
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpcore
import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

SETTING: Final = "FLOWLEDGER_HTTP_ALLOW"
MAX_REDIRECTS: Final = 10

# A keep-alive shorter than common server-side ones: a request on a connection the server has just closed would fail,
# and an effect must not be repeated without being asked.
_KEEP_ALIVE_S: Final = 3.0

_REFUSED: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(block), kind)
    for block, kind in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier-grade NAT address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address (cloud metadata lives there)"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a protocol assignment"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("64:ff9b:1::/48", "a local NAT64 address"),
        ("100::/64", "a discard address"),
        ("2001::/32", "a Teredo address"),
        ("2002::/16", "a 6to4 address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
)

# Labels of letters, digits, hyphens and underscores; the last of them no number, which would be a slip in an address.
_HOST_NAME: Final = re.compile(r"(?:[\w-]+\.)*(?!\d+\.?$)\w(?:[\w-]*\w)?\.?")

# IPv6 blocks whose last 32 bits are an IPv4 address that the packet may end up at.
_EMBEDDING: Final = tuple(ip_network(block) for block in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))

# Headers that may follow a redirect to another host; everything else may be meant for the first host only.
_HARMLESS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "connection",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "transfer-encoding",
        "user-agent",
    }
)


class TooLarge(Exception):
    """A body is larger than its reader takes."""


class AddressRefused(httpx.RequestError):
    """The target is not public and not allowed. Nothing was sent to it."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached although it is not public: hosts and networks, each for one port or for all (None)."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[Network, int | None], ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "Allowed":
        """`name`, `name:port`, `10.0.0.0/8`, `127.0.0.1`, `127.0.0.1:8080`, `::1`, `[::1]:8080`. Raises ValueError."""
        hosts: set[tuple[str, int | None]] = set()
        networks: list[tuple[Network, int | None]] = []
        for entry in entries:
            host, port = _host_and_port(entry.strip())
            network = _network(host)
            if network is not None:
                networks.append((network, port))
            elif not _HOST_NAME.fullmatch(host):
                raise ValueError(f"{SETTING}: expected a host, host:port, address or network, got {entry!r}")
            else:
                hosts.add((host.rstrip(".").lower(), port))
        return cls(frozenset(hosts), tuple(networks))

    def name(self, host: str, port: int) -> bool:
        plain = host.rstrip(".").lower()
        return (plain, None) in self.hosts or (plain, port) in self.hosts

    def address(self, address: Address, port: int) -> bool:
        return any(address in network and only in (None, port) for network, only in self.networks)


def refusal(address: Address) -> str | None:
    """Why an address is not public, e.g. `a loopback address`; None when it is."""
    inner = _embedded(address)
    if inner is not None:
        why = refusal(inner)
        return f"{why} inside IPv6" if why else None
    for network, kind in _REFUSED:
        if address in network:
            return kind
    return None if address.is_global else "not a public address"


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Addresses of a host by the system's resolver, which also reads numeric spellings such as `0x7f.1`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, proto=6)  # 6: TCP; one answer per address
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedHttp:
    """Sends requests to vetted addresses only. One per process; `aclose` at the end. One event loop."""

    def __init__(self, allow: Iterable[str] = (), resolve: Resolve = system_resolve) -> None:
        self._backend = _GuardedBackend(Allowed.parse(allow), resolve)
        self._clients: dict[bool, httpx.AsyncClient] = {}

    @asynccontextmanager
    async def open(
        self, request: httpx.Request, *, verify: bool = True, max_redirects: int = MAX_REDIRECTS
    ) -> AsyncIterator[httpx.Response]:
        """The response to `request`, its body not read yet; redirects are followed, every hop is vetted.

        Leaving the block, also by cancellation, closes the connection unless the body was read to its end.
        Raises httpx.HTTPError; AddressRefused is one.
        """
        client = self._client(verify)
        response = await client.send(request, stream=True)
        try:
            for _ in range(max_redirects):
                if response.next_request is None:
                    break
                following = _for_host(response.next_request, response.request)
                await response.aclose()
                response = await client.send(following, stream=True)
            if response.next_request is not None:
                raise httpx.TooManyRedirects(f"more than {max_redirects} redirects", request=response.request)
            yield response
        finally:
            await response.aclose()

    def _client(self, verify: bool) -> httpx.AsyncClient:
        if verify not in self._clients:
            # Certificate bundles may be replaced by SSL_CERT_FILE: that is the operator's word, unlike a proxy variable
            # which would take the connection, and with it the check, out of our hands.
            context = httpx.create_ssl_context(verify=verify)
            self._clients[verify] = httpx.AsyncClient(
                transport=_GuardedTransport(self._backend, context),
                trust_env=False,
                follow_redirects=False,
                # All runs share the client; a kept cookie would carry one run's session into another's request.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
        return self._clients[verify]

    async def aclose(self) -> None:
        """Close all connections. May be called again."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()


async def decoded(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body in pieces of at most 64 KB with gzip and deflate undone; a body in another coding comes as it is.

    The pieces are bounded after unpacking, so a reader that stops at a limit has met no more than that: a few
    kilobytes can unpack to gigabytes.
    """
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("gzip", "x-gzip", "deflate"):
        async for raw in response.aiter_raw(_PIECE):
            yield raw
        return
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
    try:
        async for raw in response.aiter_raw(_PIECE):
            waiting = raw
            while waiting:
                piece = unpack.decompress(waiting, _PIECE)
                if piece:
                    yield piece
                waiting = unpack.unconsumed_tail
                if unpack.eof:  # a gzip body may have several members
                    waiting, unpack = unpack.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 32)
    except zlib.error as error:
        raise httpx.DecodingError(f"the response is not valid {coding}: {error}", request=response.request) from error


async def read_at_most(response: httpx.Response, limit_bytes: int) -> bytes:
    """The whole body, `decoded`. Raises TooLarge as soon as more than `limit_bytes` have come."""
    content = bytearray()
    async with aclosing(decoded(response)) as pieces:
        async for piece in pieces:
            content += piece
            if len(content) > limit_bytes:
                raise TooLarge
    return bytes(content)


_PIECE: Final = 65_536


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects by name to vetted addresses. Host header and TLS server name stay those of the request."""

    def __init__(self, allowed: Allowed, resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the interface's own parameter
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._vetted(host, port)
                for number, address in enumerate(addresses, 1):
                    try:
                        return await self._sockets.connect_tcp(address, port, None, local_address, socket_options)
                    except httpcore.ConnectError:
                        if number == len(addresses):
                            raise
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection to {host}:{port} within {timeout:g} s") from None
        raise httpcore.ConnectError(f"{host}: the name has no address")

    async def _vetted(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: the name cannot be resolved ({error})") from error
        if not self._allowed.name(host, port):
            for found in addresses:
                self._check(host, port, ip_address(found))
        return addresses

    def _check(self, host: str, port: int, address: Address) -> None:
        plain = _embedded(address) or address
        why = refusal(address)
        if why is None or self._allowed.address(plain, port) or self._allowed.address(address, port):
            return
        target = host if host == str(address) else f"{host} ({address})"
        names = host if host == str(plain) else f"{host} or {plain}"
        raise AddressRefused(f"refused to connect to {target}: {why}. To allow it, add {names} to {SETTING}")


class _GuardedTransport(httpx.AsyncBaseTransport):
    """httpx over an httpcore pool of our own: httpx's transport does not let its caller choose how to connect."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend, context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,  # bounded by the executor's slots
            max_keepalive_connections=100,
            keepalive_expiry=_KEEP_ALIVE_S,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        inner = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await self._pool.handle_async_request(inner)
        except _HTTPCORE_ERRORS as error:
            raise _translated(error) from error
        assert isinstance(response.stream, AsyncIterable)
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._stream:
                yield piece
        except _HTTPCORE_ERRORS as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()


_HTTPCORE_ERRORS: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


def _translated(error: Exception) -> httpx.TransportError:
    """The exception of the same name in httpx: the two libraries name theirs alike."""
    kind = getattr(httpx, type(error).__name__, httpx.TransportError)
    assert issubclass(kind, httpx.TransportError)
    return kind(str(error))


def _for_host(following: httpx.Request, previous: httpx.Request) -> httpx.Request:
    """The redirected request without what was meant for the previous host only."""
    if not _same_host(following.url, previous.url):
        for name in [name for name in following.headers if name.lower() not in _HARMLESS]:
            del following.headers[name]
    elif "cookie" in previous.headers:  # httpx drops it: it expects cookies to be in its jar
        following.headers["cookie"] = previous.headers["cookie"]
    return following


def _same_host(one: httpx.URL, other: httpx.URL) -> bool:
    """Same origin, or its upgrade from http to https on the default ports."""
    if one.host != other.host:
        return False
    if (one.scheme, one.port) == (other.scheme, other.port):
        return True
    return (one.scheme, one.port, other.scheme, other.port) == ("https", None, "http", None)


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address inside an IPv6 one, where a packet may be translated to it."""
    if isinstance(address, IPv4Address) or int(address) <= 1:  # `::` and `::1` are addresses of their own
        return None
    if any(address in network for network in _EMBEDDING):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _host_and_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        if not rest:
            return host, None
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    else:
        return entry, None
    if not (port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError(f"{SETTING}: expected a port of 1 to 65535 in {entry!r}")
    return host, int(port)
