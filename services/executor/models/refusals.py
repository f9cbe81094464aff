"""What a server means that does not answer: its words, the contract's class of them, when to come back."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

_LONGEST_WAIT_S: Final = 60.0
"""For a server that says when to come back; longer waits are for the node's own retries."""


def message_of(said: Any) -> str:
    """The sentence of an error body, in the forms that servers use."""
    if not isinstance(said, Mapping):
        return ""
    error = said.get("error")
    behind = error.get("metadata") if isinstance(error, Mapping) else None
    if isinstance(error, Mapping) and isinstance(behind, Mapping) and isinstance(behind.get("raw"), str):
        return f"{error.get('message') or 'error'}: {behind['raw']}"  # a gateway's word says nothing
    named = error.get("param") if isinstance(error, Mapping) else None
    for candidate in (
        error.get("message") if isinstance(error, Mapping) else error,
        said.get("message"),
        said.get("detail"),
    ):
        if candidate:
            text = candidate if isinstance(candidate, str) else json.dumps(candidate, ensure_ascii=False)
            return f"{text} ({named})" if isinstance(named, str) and named not in text else text
    return ""


def kind_said(error: Any) -> tuple[str, bool]:
    """As `kind_of`, of an error that comes in an answer; its code is a status, a word, or missing."""
    code = error.get("code") if isinstance(error, Mapping) else None
    if isinstance(code, str) and "rate_limit" in code:
        return kind_of(429)
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 500
    return kind_of(status if 400 <= status < 600 else 500)


def kind_of(status: int) -> tuple[str, bool]:
    """The contract's class of a status, and whether to try again."""
    if status in (401, 403):
        return "InvokeAuthorizationError", False
    if status == 429:
        return "InvokeRateLimitError", True
    if status == 408 or status >= 500:
        return "InvokeServerUnavailableError", True
    return "InvokeBadRequestError", False


def wait_of(response: httpx.Response) -> float | None:
    """When the server says to come back, if that is soon; None: it does not, or later."""
    said = response.headers.get("retry-after", "").strip()
    in_ms = response.headers.get("retry-after-ms", "").strip()
    try:
        if in_ms:
            wait_s = float(in_ms) / 1000
        elif said[:1].isdigit():
            wait_s = float(said)
        else:
            wait_s = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
    return max(wait_s, 0.0) if wait_s <= _LONGEST_WAIT_S else None
