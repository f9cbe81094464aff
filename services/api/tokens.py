"""Signed statements (JSON Web Tokens, HS256): what a browser shows so that no server has to remember it.

Whoever reads one checks signature, kind and expiry; nothing else of the standard is understood, and no other algorithm.
"""

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

_HEADER = {"alg": "HS256", "typ": "JWT"}
MAX_LENGTH = 4_096


class Signer:
    """Signs and reads with one key, which all replicas share."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, kind: str, claims: dict[str, Any], expires_s: int) -> str:
        """A token that says `claims` until `expires_s` (Unix seconds)."""
        payload = claims | {"kind": kind, "exp": expires_s}
        said = f"{_encoded(_HEADER)}.{_encoded(payload)}"
        return f"{said}.{_text(self._signature(said))}"

    def read(self, kind: str, token: str, now_s: float) -> dict[str, Any] | None:
        """What the token says; None when it is not ours, of another kind, or too old."""
        said, dot, signature = token.rpartition(".")
        if not dot or len(token) > MAX_LENGTH or not token.isascii():
            return None
        if not hmac.compare_digest(signature.encode(), _text(self._signature(said)).encode()):
            return None
        try:
            claims = json.loads(_bytes(said.partition(".")[2]))
        except (ValueError, binascii.Error):
            return None
        if not isinstance(claims, dict) or claims.get("kind") != kind or claims.get("exp", 0) <= now_s:
            return None
        return claims

    def _signature(self, said: str) -> bytes:
        return hmac.new(self._key, said.encode(), hashlib.sha256).digest()


def _encoded(value: dict[str, Any]) -> str:
    return _text(json.dumps(value, separators=(",", ":")).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
