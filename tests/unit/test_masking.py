"""The ways in which a secret may stand in a text."""

from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, urlencode

import pytest

from services.executor.nodes.masking import Masks

SECRET = 'pa"ss\\w\nrd with+space/%=&é'


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "some user:"])
@pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode])
def test_a_secret_in_base64_is_masked_wherever_it_begins(before: str, encode: type) -> None:
    text = encode(f"{before}key-ABCDEF-0123456789>>>???:more".encode()).decode()
    shown = Masks(["key-ABCDEF-0123456789>>>???"]).text(f"Basic {text}")
    assert "key-AB" in shown
    assert text[len(before) * 2 + 4 : -12] not in shown


@pytest.mark.parametrize("text", [SECRET, quote(SECRET, safe=""), urlencode({"q": SECRET}), repr(ValueError(SECRET))])
def test_a_secret_is_masked_in_urls_forms_and_messages(text: str) -> None:
    shown = Masks([SECRET]).text(text)
    assert "space" not in shown


def test_text_like_a_short_secret_in_base64_stays() -> None:
    text = b64encode(b"abcd and more").decode()
    assert Masks(["abcd"]).text(text) == text
