"""Text templates: `{{#node.name#}}` placeholders in otherwise literal text.

Two rules that surprise, and that documents rely on: a placeholder without a value renders as its bare selector, and a
literal part that happens to equal a selector with a value is replaced as well. Text that was put in is never looked at
again.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from libs.workflow.pool import Pool
from libs.workflow.segments import Segment, as_log, as_markdown, as_text

Selector = tuple[str, ...]

_PLACEHOLDER: Final = re.compile(r"\{\{#([a-zA-Z0-9_]{1,50}(?:\.[a-zA-Z_][a-zA-Z0-9_]{0,29}){1,10})#\}\}")

# A literal longer than this is not tried as a selector: no real one is near it, and long prose is full of dots.
_LONGEST_SELECTOR: Final = 512


def render_text(template: str, pool: Pool) -> str:
    """The template in the form of prompts, HTTP requests and conditions."""
    return _render(template, pool, as_text)


def render_markdown(template: str, pool: Pool) -> str:
    """The template in the form of answers and streams."""
    return _render(template, pool, as_markdown)


def render_log(template: str, pool: Pool) -> str:
    """The template in the form of records: secrets are masked."""
    return _render(template, pool, as_log)


def segments(template: str) -> list[str | Selector]:
    """The parts in order: literal text (never empty) and selectors of placeholders."""
    return [selector if placeholder else text for text, selector, placeholder in _compiled(template)]


def placeholders(template: str) -> list[Selector]:
    """The selectors of the placeholders, in order, repeated as written."""
    return [selector for _, selector, placeholder in _compiled(template) if placeholder]


def as_selector(literal: str) -> Selector:
    """The selector that a literal part may equal, or `()`."""
    return tuple(literal.split(".")) if "." in literal and len(literal) <= _LONGEST_SELECTOR else ()


@lru_cache(maxsize=4096)
def _compiled(template: str) -> tuple[tuple[str, Selector, bool], ...]:
    """(text if it has no value, selector to look up or `()`, whether it is a placeholder) by part."""
    parts = _PLACEHOLDER.split(template)  # literal, selector, literal, selector, ..., literal
    return tuple(
        (part, tuple(part.split(".")), True) if number % 2 else (part, as_selector(part), False)
        for number, part in enumerate(parts)
        if part
    )


def _render(template: str, pool: Pool, form: Callable[[Segment], str]) -> str:
    rendered = []
    for text, selector, _ in _compiled(template):
        segment = pool.get(selector) if selector else None
        rendered.append(text if segment is None else form(segment))
    return "".join(rendered)
