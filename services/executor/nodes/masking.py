"""Text for records, without the secrets that were sent.

A secret is masked where a template names it, and its value wherever else it appears: runs copy secrets into other
variables, where they are plain text.
"""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

from pydantic import JsonValue

from libs.workflow import templates
from libs.workflow.pool import Pool
from libs.workflow.segments import as_text, mask

# Masking every "a" because some secret is "a" would destroy the record and hide nothing.
_SHORTEST = 4
_SHORTEST_IN_BASE64 = 8


class Masks:
    """Known secrets, and what records show in their place. Falsy when there are none."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first: one secret may be the beginning of another.
        longest_first = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        self._masks = {form: mask(secret) for secret in longest_first for form in _forms(secret)}

    def __bool__(self) -> bool:
        return bool(self._masks)

    @property
    def forms(self) -> tuple[str, ...]:
        """Every way in which a secret may stand in a text."""
        return tuple(self._masks)

    def hide(self, value: JsonValue) -> bool:
        """Whether anything in the value would be masked."""
        if not self._masks:
            return False
        match value:
            case str():
                return any(form in value for form in self._masks)
            case list():
                return any(map(self.hide, value))
            case dict():
                return any(self.hide(key) or self.hide(item) for key, item in value.items())
        return False

    def json(self, value: JsonValue) -> JsonValue:
        """A value without the secrets in it."""
        match value:
            case str():
                return self.text(value)
            case list() if self._masks:
                return [self.json(item) for item in value]
            case dict() if self._masks:
                return {self.text(key): self.json(item) for key, item in value.items()}
        return value

    def text(self, text: str) -> str:
        for secret, masked in self._masks.items():
            text = text.replace(secret, masked)
        return text


class Masking(Masks):
    """Writes text for records. Reads the pool: make it before the first `await`."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.secrets())
        self._pool = pool

    def render(self, template: str) -> str:
        """As `render_text`, with masks."""
        pieces = []
        for part in templates.segments(template):
            selector = templates.as_selector(part) if isinstance(part, str) else part
            segment = self._pool.get(selector) if selector else None
            if segment is not None and segment.type == "secret":
                pieces.append(mask(str(segment.value)))
            elif segment is not None:
                pieces.append(as_text(segment))
            else:
                pieces.append(part if isinstance(part, str) else ".".join(part))
        return self.text("".join(pieces))


def _forms(secret: str) -> tuple[str, ...]:
    """The secret as it is, inside JSON, URLs, forms and messages of Python, and inside base64 wherever it begins."""
    plain = (
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
        quote_plus(secret),
        repr(secret)[1:-1],
    )
    return tuple(dict.fromkeys((*plain, *_in_base64(secret.encode(errors="replace")))))


def _in_base64(secret: bytes) -> Iterator[str]:
    """What of it is the same whatever stands around it; too little is left of a short one to be told from anything."""
    for before in range(3):
        first, behind = (before * 8 + 5) // 6, (before + len(secret)) * 8 // 6
        if behind - first >= _SHORTEST_IN_BASE64:
            for encode in (b64encode, urlsafe_b64encode):
                yield encode(bytes(before) + secret).decode()[first:behind]
