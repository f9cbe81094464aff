"""Parameters that many verbs share, and what they refuse before anything is asked of a server.

An empty text is what a shell makes of an unset variable (`--app "$APP"`). It never means "not given", which would widen
what is done.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


class Filled(click.types.StringParamType):
    """A text that is not empty."""

    def __init__(self, wanted: str) -> None:
        """`wanted`: what to give instead of nothing."""
        self._wanted = wanted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip():
            self.fail(f"it is empty. Give {self._wanted}", param, ctx)
        return str(value)


class _Folder(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty. Give a folder, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


class _Seconds(click.FloatRange):
    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail("nan is no number of seconds", param, ctx)
        return found


APP = Filled("an app's id, the beginning of one, or a name")
FILTER_APP = Filled("an app's id, the beginning of one, or a name; or leave the option out for all apps")
KEY = Filled("a key, or for revoke its id or prefix")
NODE = Filled("a node's id or title, or leave it out")
RUN = Filled("a run's id or the beginning of one, or leave it out")
SINCE = Filled("10m, 2h, 3d, or 2026-05-02T09:00:00Z; or leave the option out")

data_option = click.option("--data", type=_Folder(path_type=Path), help="Data folder (FLOWLEDGER_DATA).")
timeout_option = click.option("--timeout", "timeout_s", type=_Seconds(), help="Seconds to wait; the run goes on.")


def target_options(command: _F) -> _F:
    """`--url` and `--data`, on every verb that needs a server."""
    url = Filled("the address of a server, as http://127.0.0.1:5001, or leave the option out")
    return click.option("--url", type=url, help="Server (FLOWLEDGER_URL).")(data_option(command))
