"""From what people type to ids: any unique prefix of an id, and names for apps."""

import re
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from flowledger.cli.exits import NOT_FOUND, USAGE, Problem
from flowledger.cli.target import Server

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PAGE = 100
_MOST = 2_000
"""Runs that are looked through for a prefix."""


def rows(answer: Any) -> list[dict[str, Any]]:
    """The items of a list answer, with or without an envelope."""
    found: list[dict[str, Any]] = answer if isinstance(answer, list) else answer.get("data", [])
    return found


def pages(server: Server, limit: int, **filters: Any) -> Iterator[dict[str, Any]]:
    """Runs, newest first, at most `limit`, page by page."""
    cursor = None
    while limit > 0:
        answer = server.get("/v1/runs", limit=min(limit, _PAGE), cursor=cursor, **filters)
        page = rows(answer)
        yield from page[:limit]
        limit -= len(page)
        cursor = answer.get("next_cursor") if isinstance(answer, dict) else None
        if not page or cursor is None:
            return


def find_run(server: Server, text: str) -> str:
    """The id of the run that `text` is a prefix of."""
    wanted = text.lower()
    if _UUID.fullmatch(wanted):
        return wanted
    if not re.fullmatch(r"[0-9a-f-]{1,36}", wanted):
        hint = f"List runs: {server.command('runs')}"
        raise Problem(f'run "{text}": not found, and not the beginning of a run id. {hint}', NOT_FOUND)
    found = [run["id"] for run in pages(server, _MOST, id_prefix=wanted) if run["id"].startswith(wanted)]
    return _one(found, "run", text, server, f"List runs: {server.command('runs')}")


def find_app(server: Server, text: str) -> dict[str, Any]:
    """The app whose id or name is `text`, or whose id begins with it."""
    apps = rows(server.get("/v1/apps"))
    exact = [app for app in apps if app["app_id"] == text] or [app for app in apps if app["name"] == text]
    by_id = {app["app_id"]: app for app in exact or [app for app in apps if app["app_id"].startswith(text.lower())]}
    return by_id[_one(list(by_id), "app", text, server, f"List apps: {server.command('apps')}")]


def _one(found: list[str], what: str, text: str, server: Server, hint: str) -> str:
    if not found:
        raise Problem(f'{what} "{text}": not found on {server.name}. {hint}', NOT_FOUND)
    if len(found) > 1:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise Problem(f'{what} "{text}": {len(found)} match: {some}. Give more of the id', USAGE)
    return found[0]


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run ids for the shell; nothing when no running server is found at once."""
    from flowledger.cli.target import address_in, settings, token_of

    try:
        given = settings(ctx.params.get("data"))
        url = ctx.params.get("url") or given.url or address_in(given.data)
        if not url:
            return []
        with_token = Server(url, token_of(given))
        found = [run for run in pages(with_token, _PAGE) if run["id"].startswith(incomplete)]
        with_token.close()
    except click.ClickException:
        return []
    return [CompletionItem(run["id"], help=run.get("status")) for run in found]
