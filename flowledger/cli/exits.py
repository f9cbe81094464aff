"""Exit codes and the error that carries one."""

from typing import IO, Any

import click

DONE, RUN_FAILED, USAGE, NOT_FOUND, INVALID, STOPPED, TIMED_OUT, UNREACHABLE, PAUSED = range(9)
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done or run succeeded; 1 the run failed; 2 wrong usage; 3 not found; 4 document invalid; "
    "5 stopped; 6 waiting timed out; 7 cannot reach the server; 8 paused, waiting for a person; 130 interrupted."
)

BY_STATUS = {
    "succeeded": DONE,
    "partial-succeeded": DONE,
    "failed": RUN_FAILED,
    "stopped": STOPPED,
    "paused": PAUSED,
}


class Problem(click.ClickException):
    """What went wrong, where, and the next command; shown on stderr as it is."""

    def __init__(self, message: str, code: int, *, about: str = "") -> None:
        """`about`: which part of a request the server refused, where it says so."""
        super().__init__(message)
        self.about = about
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance as well

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=file is None)
