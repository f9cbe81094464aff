"""Jinja templates of documents: the one environment, and the one way to run them, inside and outside the sandbox."""

from collections.abc import Mapping

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

ENVIRONMENT = ImmutableSandboxedEnvironment()


class OutputTooLong(Exception):
    """The text grew beyond its limit; it was not finished."""


def render_bounded(template: Template, variables: Mapping[str, object], limit_chars: int) -> str:
    """The text of the template. Raises OutputTooLong, and whatever the template's expressions raise."""
    pieces: list[str] = []
    room = limit_chars
    for piece in template.generate(dict(variables)):
        room -= len(piece)
        if room < 0:
            raise OutputTooLong(f"Output length exceeds {limit_chars} characters")
        pieces.append(piece)
    text = "".join(pieces)
    # A string constant of the template can hold half of a surrogate pair, which nothing that stores text takes.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def describe(error: BaseException) -> str:
    """What the author of the template reads."""
    line = getattr(error, "lineno", None)
    place = f" (line {line} of the template)" if line else ""
    text = getattr(error, "message", None) if isinstance(error, TemplateError) else str(error)
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
