"""How results look: JSON on request, else plain columns; colour only where it helps and a terminal takes it."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import click

_COLOURS = {
    "succeeded": "green",
    "partial-succeeded": "yellow",
    "exception": "yellow",
    "retry": "yellow",
    "failed": "red",
    "stopped": "magenta",
    "running": "cyan",
    "paused": "blue",
}

SIGNS = {
    "pending": "·",
    "running": "▸",
    "succeeded": "✓",
    "partial-succeeded": "◐",
    "exception": "!",
    "retry": "↻",
    "failed": "✗",
    "stopped": "■",
    "skipped": "-",
    "paused": "‖",
}

_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def fancy(stream: TextIO) -> bool:
    """Whether colour and cursor moves are welcome on `stream`."""
    quiet = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not quiet


def data(value: Any) -> None:
    """One JSON object or list on stdout, on one line."""
    click.echo(_json(value))


def pretty(value: Any) -> None:
    """JSON for a person, on stdout."""
    click.echo(_json(value, indent=2))


def _json(value: Any, indent: int | None = None) -> str:
    """Readable text; escaped where something in it is none (half a surrogate pair in a foreign record).

    And where it would end a line for who reads by the lines of Unicode.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isascii():
        return text
    readable = encodable(text, sys.stdout.encoding or "utf-8")
    return text.translate(_LINE_ENDS) if readable else json.dumps(value, indent=indent)


def encodable(text: str, encoding: str = "utf-8") -> bool:
    """False where half a surrogate pair is in it: of bytes that were no text, or of a foreign record."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def talk(text: str) -> None:
    """A sentence to the person, on stderr."""
    click.echo(text, err=True)


def problem_line(problem: Mapping[str, Any]) -> str:
    """A mistake or oddity of a document: severity, place if it has one, what it is, what to do."""
    place = f" at {problem['at']}" if problem.get("at") else ""
    hint = f" {problem['hint']}" if problem.get("hint") else ""
    return f"{problem.get('severity', 'error')}{place}: {problem.get('problem')}.{hint}"


def own_name() -> str:
    """How this program was called, so that a line can be copied."""
    called = Path(sys.argv[0])
    if called.name == "flowledger" and str(called.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        with suppress(ValueError):
            return str(called.absolute().relative_to(Path.cwd()))
    return "flowledger"


def state(status: str, stream: TextIO | None = None) -> str:
    """Sign and word of a state; coloured too where that is welcome, never by colour alone."""
    text = f"{SIGNS.get(status, ' ')} {status}"
    colour = _COLOURS.get(status)
    return click.style(text, fg=colour) if colour and fancy(stream or sys.stdout) else text


def table(head: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Aligned columns on stdout; without rows, `empty` (what would fill it) on stderr."""
    if not rows:
        talk(empty)
        return
    cells = [[("" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(len(click.unstyle(row[i])) for row in [list(head), *cells]) for i in range(len(head))]
    for row in [list(head), *cells]:
        padded = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def seconds(value: float | None) -> str:
    """A duration for a person."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(int(value), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def ago(moment: str | None) -> str:
    """`3 min ago` for an RFC 3339 instant."""
    if not moment:
        return ""
    past = (datetime.now(UTC) - datetime.fromisoformat(moment.replace("Z", "+00:00"))).total_seconds()
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if past >= size:
            return f"{int(past // size)} {word} ago"
    return f"{max(0, int(past))} s ago"
