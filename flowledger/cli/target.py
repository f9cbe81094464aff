"""Which server a verb talks to, and the requests it makes.

Order: `--url` or FLOWLEDGER_URL; the server that has the data folder open (it leaves `server.json` there, confirmed
by `/healthz` answering with the same instance id); the data folder itself, opened embedded for this one command. With
FLOWLEDGER_KAFKA set nothing falls back to embedded: the verb asks for FLOWLEDGER_URL.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowledger.cli.exits import INVALID, NOT_FOUND, UNREACHABLE, USAGE, Problem

if TYPE_CHECKING:
    import httpx

    from libs.settings import Settings

_F = TypeVar("_F", bound=Callable[..., Any])

ADDRESS_FILE = "server.json"
TOKEN_FILE = "admin-token"


def target_options(command: _F) -> _F:
    """`--url` and `--data`, on every verb that needs a server."""
    command = click.option("--data", type=click.Path(path_type=Path), help="Data folder (FLOWLEDGER_DATA).")(command)
    return click.option("--url", help="Server (FLOWLEDGER_URL).")(command)


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

    def __init__(self, url: str, token: str | None, *, embedded: bool = False) -> None:
        import httpx

        self.url = url.rstrip("/")
        self.embedded = embedded
        """Whether it lives only as long as this command."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env off for loopback: a proxy of the environment must not get between us and our own process.
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self.http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(30.0, connect=5.0), trust_env=not local
        )

    def get(self, path: str, **query: Any) -> Any:
        return self.request("GET", path, params=_given(query)).json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.request("POST", path, json=body, params=_given(query)).json()

    def request(self, method: str, path: str, **parts: Any) -> "httpx.Response":
        import httpx

        try:
            response = self.http.request(method, path, **parts)
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        self.check(response)
        return response

    def check(self, response: "httpx.Response") -> None:
        """Raises Problem unless the answer (already read) is a success."""
        if response.is_success:
            return
        code, message, problems = _error(response)
        if response.status_code == 401:
            raise Problem(
                f"{self.url} refuses the admin token: {message}. Set FLOWLEDGER_ADMIN_TOKEN, "
                f"or --data to the folder that holds the server's {TOKEN_FILE}",
                UNREACHABLE,
            )
        if response.status_code == 404:
            raise Problem(f"{message} ({self.url})", NOT_FOUND)
        if problems or code in ("definition_invalid", "document_invalid", "workflow_invalid"):
            raise Problem("\n".join([message, *map(_problem_line, problems)]), INVALID)
        exit_code = UNREACHABLE if response.status_code in (502, 503, 504) else USAGE
        raise Problem(f"{self.url} answered {response.status_code} {code}: {message}", exit_code)

    def unreachable(self, error: Exception) -> Problem:
        return Problem(f"{self.url}: {error}. Is the server running? Start one: flowledger dev", UNREACHABLE)

    def close(self) -> None:
        self.http.close()


@contextmanager
def server(url: str | None, data: Path | None, *, executor: bool = True, offline: bool = False) -> Iterator[Server]:
    """The server to talk to; see the module docstring. `executor` False: embedded without running anything."""
    given = settings(data)
    url = url or given.url
    if url:
        found = Server(url, _token(given))
    else:
        found_url = _address(given.data)
        if found_url is not None:
            found = Server(found_url, _token(given))
        elif given.kafka is not None:
            raise Problem(
                "FLOWLEDGER_KAFKA is set, but no server is known. Set FLOWLEDGER_URL to the API's address "
                "(start one: flowledger api)",
                UNREACHABLE,
            )
        else:
            with _embedded(given, executor=executor, offline=offline) as embedded:
                yield embedded
            return
    try:
        yield found
    finally:
        found.close()


@contextmanager
def _embedded(given: "Settings", *, executor: bool, offline: bool) -> Iterator[Server]:
    import logging

    with quick_imports():
        from flowledger.dev import start_embedded
    from libs.events.log import LogError

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    chosen = replace(given, models="offline") if offline else given
    try:
        instance = start_embedded(given.data, "127.0.0.1", 0, chosen, executor=executor)
    except LogError as error:
        raise Problem(f"cannot open {given.data}: {error}", UNREACHABLE) from error
    try:
        found = Server(instance.url, instance.admin_token, embedded=True)
        yield found
        found.close()
    finally:
        instance.stop()


def _address(folder: Path) -> str | None:
    """The address of the server that has `folder` open, if it still answers as the one that wrote it."""
    import httpx

    try:
        there = json.loads((folder / ADDRESS_FILE).read_text("utf-8"))
        answer = httpx.get(f"{there['url']}/healthz", timeout=2.0, trust_env=False).json()
        same = answer.get("instance_id") == there["instance_id"]
        return str(there["url"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, httpx.HTTPError):
        return None


def _token(given: "Settings") -> str | None:
    if given.admin_token:
        return given.admin_token
    try:
        return (given.data / TOKEN_FILE).read_text("utf-8").strip() or None
    except OSError:
        return None


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name.rstrip("_"): value for name, value in query.items() if value is not None}


def _error(response: "httpx.Response") -> tuple[str, str, list[Any]]:
    """(code, message, problems) of an error answer, whatever made it."""
    try:
        body = response.json()
        return str(body.get("code", "")), str(body.get("message", "")), list(body.get("problems") or [])
    except (ValueError, AttributeError):
        return "", response.text[:200] or response.reason_phrase, []


def _problem_line(problem: Any) -> str:
    if not isinstance(problem, dict):
        return f"  {problem}"
    hint = f" {problem['hint']}" if problem.get("hint") else ""
    return f"  {problem.get('severity', 'error')} at {problem.get('at')}: {problem.get('problem')}.{hint}"
