import base64
import json

import pytest

from services.api.tokens import MAX_LENGTH, Signer

SIGNER = Signer(b"key")
TOKEN = SIGNER.sign("session", {"sid": "1"}, 100)


def test_a_token_says_what_was_signed_until_it_expires() -> None:
    assert SIGNER.read("session", TOKEN, 99) == {"sid": "1", "kind": "session", "exp": 100}
    assert SIGNER.read("session", TOKEN, 100) is None


def test_a_token_of_another_kind_or_key_says_nothing() -> None:
    assert SIGNER.read("passport", TOKEN, 1) is None
    assert Signer(b"other").read("session", TOKEN, 1) is None


def forged() -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    payload = base64.urlsafe_b64encode(json.dumps({"kind": "session", "exp": 200}).encode()).rstrip(b"=").decode()
    return f"{header}.{payload}."


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b.c", forged(), TOKEN[:-1], TOKEN + "A", "é.é.é", "x" * (MAX_LENGTH + 1) + "." + TOKEN]
)
def test_what_was_not_signed_says_nothing(token: str) -> None:
    assert SIGNER.read("session", token, 1) is None
