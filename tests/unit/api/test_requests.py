"""What tells two requests apart, and what keys and cursors look like."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from services.api.access import end_user_id
from services.api.errors import ApiError
from services.api.records import make_cursor, read_cursor
from services.api.requests import body_digest, is_app_key, is_uuid, parsed, read_body


def test_how_an_answer_is_delivered_does_not_make_another_request() -> None:
    one = body_digest({"inputs": {"a": 1, "b": 2}, "user": "u", "response_mode": "blocking"})
    two = body_digest({"user": "u", "inputs": {"b": 2, "a": 1}, "response_mode": "streaming", "trace_id": "t"})
    assert one == two


def test_everything_else_does() -> None:
    body = {"inputs": {"a": 1}, "user": "u"}
    others = [body | {"user": "v"}, body | {"inputs": {"a": 2}}, body | {"files": []}, body | {"query": "q"}]
    digests = {body_digest(each) for each in [body, *others]} | {body_digest(body, "version")}
    assert len(digests) == 6


def test_half_a_surrogate_pair_has_a_digest() -> None:
    assert body_digest({"inputs": {"a": "\ud83d"}})


def test_app_keys_are_told_from_other_tokens() -> None:
    assert is_app_key("app-0123456789abcdefghijklmn")
    for other in ("dataset-0123456789", "app-", "app-a b c d e f g", None, 7, "app-" + "x" * 200):
        assert not is_app_key(other)


def test_uuids_are_told_from_other_texts() -> None:
    assert is_uuid("00000000-0000-4000-8000-000000000009")
    for other in ("draft", "", "00000000000040008000000000000009", "{00000000-0000-4000-8000-000000000009}"):
        assert not is_uuid(other)


def test_an_end_user_has_one_id_per_app() -> None:
    assert end_user_id("a", "u") == end_user_id("a", "u")
    assert len({end_user_id("a", "u"), end_user_id("b", "u"), end_user_id("a", "v")}) == 3


def test_a_cursor_reads_back() -> None:
    assert read_cursor(make_cursor({"created_at": 5, "id": "x"})) == (5, "x")


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1.5E+309", "1" + "0" * 400 + ".0", "9" * 250 + "e99", "[{'a': 1e400}]"]
)
def test_a_number_that_becomes_infinity_is_refused(number: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(f'{{"a": {number}}}'.replace("'", '"').encode())
    assert (caught.value.status, caught.value.code) == (400, "bad_request")
    assert "too large" in caught.value.message


def test_large_numbers_and_what_looks_like_them_are_taken() -> None:
    text = '{"a": [1e308, -1.7e308, 1e-400, "1e400", 3e45], "b": ' + "9" * 300 + "}"
    assert parsed(text.encode())["a"] == [1e308, -1.7e308, 0.0, "1e400", 3e45]


def test_a_byte_order_mark_in_front_of_a_body_is_passed_over() -> None:
    assert parsed(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def _request(parts: AsyncIterator[bytes]) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(parts), "more_body": True}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def test_a_body_that_never_ends_is_given_up() -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.001)
            yield b"x"

    with pytest.raises(ApiError) as late:
        asyncio.run(read_body(_request(forever()), 1_000_000_000, within_s=0.05))
    assert (late.value.status, late.value.code) == (408, "request_timeout")
