"""Which server a verb talks to, and the requests it makes.

Order: `--url` or FLOWLEDGER_URL; the server that has the data folder open (it leaves `server.json` there, confirmed
by `/healthz` answering with the same instance id); the data folder itself, opened embedded for this one command. With
FLOWLEDGER_KAFKA set nothing falls back to embedded: the verb asks for FLOWLEDGER_URL.
"""

import gc
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowledger.cli.exits import INVALID, NOT_FOUND, UNREACHABLE, USAGE, Problem
from flowledger.cli.output import own_name, problem_line

if TYPE_CHECKING:
    import httpx

    from libs.settings import Settings

# httpx brings a command line of its own and, for it, rich and pygments: 60 ms of every verb. It does without them.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: "cannot be imported", as documented

_RUN_PATH = re.compile(r"/v1/(?:runs|workflow)/[0-9a-f-]{36}(?:/|$)")

ADDRESS_FILE = "server.json"
TOKEN_FILE = "admin-token"

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0", "::"})

_OPENING_S = 20.0
"""How long another command may take to open or close the data folder."""

TRIES = 20
"""How many servers of a data folder may end under a command before it gives up."""


class ConnectionLost(Problem):
    """The connection broke before the answer: what was asked may or may not have been done."""


def settings(data: Path | None = None) -> "Settings":
    """The settings of this command; a mistake in them is wrong usage."""
    from libs.settings import SettingsError, load_settings

    try:
        loaded = load_settings()
    except SettingsError as error:
        raise Problem(str(error), USAGE) from error
    return replace(loaded, data=data) if data is not None else loaded


@contextmanager
def quick_imports() -> Iterator[None]:
    """For imports of whole services: nothing they make is garbage, and looking for some costs a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Server:
    """A server and its requests. Every answer that is not 2xx becomes a `Problem` with its exit code."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        embedded: bool = False,
        name: str | None = None,
        options: str = "",
        again: Callable[["Server"], None] | None = None,
    ) -> None:
        """`name`: what people know it by; `options`: what a command to copy needs to find it.

        `again` finds the server anew after its connection was lost.
        """
        self.name = name or url
        self.options = options
        self._again = again
        self.point_at(url, token, embedded=embedded)

    def point_at(self, url: str, token: str | None, *, embedded: bool) -> None:
        import httpx

        self.url = url.rstrip("/").removesuffix("/v1")  # as Dify's clients are given it
        try:
            address = httpx.URL(self.url)
            address.host.encode("idna")  # as the look-up of the name will, and it has no error of its own for that
            usable = address.scheme in ("http", "https") and address.host and (address.port or 1) in range(1, 65536)
        except (httpx.InvalidURL, UnicodeError):
            usable = False
        if not usable:
            hint = "Give one as http://127.0.0.1:5001, by --url or FLOWLEDGER_URL"
            raise Problem(f"{url}: no address of a server. {hint}", USAGE)
        self.embedded = embedded
        """Whether it lives only as long as this command."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env off for loopback: a proxy of the environment must not get between us and our own process.
        local = address.host in _LOCAL
        self.http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(30.0, connect=5.0), trust_env=not local
        )

    def find_again(self) -> bool:
        """Look for the server anew, as the data folder's may have ended; False where it has a fixed address."""
        if self._again is None or self.embedded:
            return False
        self.http.close()
        self._again(self)
        return True

    def command(self, verb: str) -> str:
        """A command to copy that finds this server again."""
        return f"{own_name()} {verb}{self.options}"

    def get(self, path: str, **query: Any) -> Any:
        return self.request("GET", path, params=_given(query)).json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.request("POST", path, json=body, params=_given(query)).json()

    def request(self, method: str, path: str, **parts: Any) -> "httpx.Response":
        response = self.reached(lambda: self.http.request(method, path, **parts), repeatable=method == "GET")
        self.check(response)
        return response

    def reached(self, ask: "Callable[[], httpx.Response]", *, repeatable: bool) -> "httpx.Response":
        """What `ask` answers; asked again of another server when nobody listened, or if it is `repeatable`.

        A server that ends resets connections it has not looked at; whether it did so before or after it acted nobody
        can tell. Raises ConnectionLost then, else Problem.
        """
        import httpx

        for _ in range(TRIES):
            try:
                return ask()
            except httpx.TransportError as error:
                # Of these nothing has left: no connection was made, or none was free.
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if not repeatable and not unsent:
                    raise ConnectionLost(*self._unreachable(error)) from error
                if not self.find_again():
                    raise self.unreachable(error) from error
        raise Problem(f"{self.name}: its servers end before they answer. Try again", UNREACHABLE)

    def check(self, response: "httpx.Response") -> None:
        """Raises Problem unless the answer (already read) is a success."""
        if response.is_success:
            return
        code, message, problems, about = _error(response)
        if response.status_code == 401:
            raise Problem(
                f"{self.url} refuses the admin token: {message}. Set FLOWLEDGER_ADMIN_TOKEN, "
                f"or --data to the folder that holds the server's {TOKEN_FILE}",
                UNREACHABLE,
            )
        if response.status_code == 404:
            no_run = _RUN_PATH.match(response.url.path) and about != "node"
            hint = f". List runs: {self.command('runs')}" if no_run else ""
            raise Problem(f"{message} ({self.name}){hint}", NOT_FOUND)
        too_large = response.status_code == 413 and response.url.path.endswith("/import")
        if problems or too_large or code == "definition_invalid":
            raise Problem("\n".join([message, *map(_problem_line, problems)]), INVALID)
        if response.status_code in (400, 409, 412, 422) and code:
            raise Problem(f"{message} ({code})", USAGE, about=about)
        # Nothing is wrong with what was asked: later, or by another server, it may be done.
        busy = response.status_code in (429, 502, 503, 504)
        wait_s = response.headers.get("Retry-After")
        again = f" (wait {wait_s} s)" if busy and wait_s and wait_s.isdecimal() else ""
        said = f"{self.name} answered {response.status_code} {code}: {message}{again}"
        raise Problem(said, UNREACHABLE if busy else USAGE)

    def unreachable(self, error: Exception) -> Problem:
        return Problem(*self._unreachable(error))

    def _unreachable(self, error: Exception) -> tuple[str, int]:
        start = "flowledger api" if os.environ.get("FLOWLEDGER_KAFKA") else "flowledger dev"
        return f"{self.url}: {str(error).rstrip('.')}. Is the server running? Start one: {start}", UNREACHABLE

    def close(self) -> None:
        self.http.close()


def data_options(data: Path | None) -> str:
    """What a command to copy needs so as to find the folder that this one was given."""
    return "" if data is None or data == settings().data else f" --data {shlex.quote(str(data))}"


@contextmanager
def server(url: str | None, data: Path | None, *, executor: bool = True, offline: bool = False) -> Iterator[Server]:
    """The server to talk to; see the module docstring. `executor` False: embedded without running anything."""
    given = settings(data)
    options = (f" --url {shlex.quote(url)}" if url else "") + data_options(data)
    url = url or given.url
    with ExitStack() as closing:
        if url:
            found = Server(url, token_of(given), options=options)
        else:
            folder = _Folder(given, closing, executor=executor, offline=offline)
            where, token, embedded = folder.find()
            name = f"data folder {given.data}"
            found = Server(where, token, embedded=embedded, name=name, options=options, again=folder.find_again)
        closing.callback(found.close)
        yield found


class _Folder:
    """The data folder as a target: the server that has it open, else opened embedded until this command ends."""

    def __init__(self, given: "Settings", closing: ExitStack, *, executor: bool, offline: bool) -> None:
        self._given = given
        self._closing = closing
        self._executor = executor
        self._offline = offline

    def find(self) -> tuple[str, str | None, bool]:
        """(URL, token, whether it is ours). Raises Problem."""
        from libs.events.log import LogError, LogInUse

        deadline = time.monotonic() + _OPENING_S
        while True:
            there = address_in(self._given.data)
            if there is not None:
                return there, token_of(self._given), False
            if self._given.kafka is not None:
                raise Problem(
                    "FLOWLEDGER_KAFKA is set, but no server is known. Set FLOWLEDGER_URL to the API's address "
                    "(start one: flowledger api)",
                    UNREACHABLE,
                )
            try:
                return self._open()
            except LogError as error:
                # In use: another command opens or closes it right now, so it has no address yet, or no more.
                if not isinstance(error, LogInUse) or time.monotonic() > deadline:
                    raise Problem(f"cannot open {self._given.data}: {error}", UNREACHABLE) from error
                time.sleep(0.05)

    def find_again(self, server: Server) -> None:
        url, token, embedded = self.find()
        server.point_at(url, token, embedded=embedded)

    def _open(self) -> tuple[str, str | None, bool]:
        import logging

        from libs.serving import ReadableLines
        from libs.settings import SettingsError

        with quick_imports():
            from flowledger.dev import start_embedded

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(ReadableLines())
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        given = replace(self._given, models="offline") if self._offline else self._given
        try:
            instance = start_embedded(given.data, "127.0.0.1", 0, given, executor=self._executor)
        except SettingsError as error:
            raise Problem(str(error), USAGE) from error
        self._closing.callback(instance.stop)
        return instance.url, instance.admin_token, True


def address_in(folder: Path) -> str | None:
    """The address of the server that has `folder` open, if it still answers as the one that wrote it."""
    import httpx

    try:
        there = json.loads((folder / ADDRESS_FILE).read_text("utf-8"))
        answer = httpx.get(f"{there['url']}/healthz", timeout=2.0, trust_env=False).json()
        same = answer.get("instance_id") == there["instance_id"]
        return str(there["url"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, httpx.HTTPError):
        return None


def token_of(given: "Settings") -> str | None:
    """The admin token: of the settings, else what the server of the data folder left there."""
    if given.admin_token:
        return given.admin_token
    try:
        return (given.data / TOKEN_FILE).read_text("utf-8").strip() or None
    except OSError:
        return None


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name.rstrip("_"): value for name, value in query.items() if value is not None}


def _error(response: "httpx.Response") -> tuple[str, str, list[Any], str]:
    """(code, message, problems, what it is about) of an error answer, whatever made it."""
    try:
        body = response.json()
        problems, about = list(body.get("problems") or []), str(body.get("params") or "")
        return str(body.get("code", "")), str(body.get("message", "")), problems, about
    except (ValueError, AttributeError):
        return "", response.text[:200] or response.reason_phrase, [], ""


def _problem_line(problem: Any) -> str:
    return f"  {problem_line(problem) if isinstance(problem, dict) else problem}"
