"""JSON as templates and models write it."""

from typing import Any

import pytest

from services.executor.lenient_json import first_object, parse_leniently


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "b": [true, null, 1.5e3]}', {"a": 1, "b": [True, None, 1500.0]}),
        ('"text"', "text"),
        ("12", 12),
        ('{"a": "two\nlines\tand a tab"}', {"a": "two\nlines\tand a tab"}),
        ("[{'a': 1, 'b': None, 'c': True}]", [{"a": 1, "b": None, "c": True}]),
        ('{"a": "he said "hi" to me", "b": 2,}', {"a": 'he said "hi" to me', "b": 2}),
        ('{"a": "x, "y", z"}', {"a": 'x, "y", z'}),
        ('{a: some, b: "x"', {"a": "some", "b": "x"}),
        ('```json\n{"a": [1, 2]}\n```', {"a": [1, 2]}),
        ('Sure, here you are: {"a": 1} Anything else?', {"a": 1}),
        ('{"a": 1 // one\n, /* two */ "b": 2}', {"a": 1, "b": 2}),
        ('{"a": "\\ud83d\\ude00 \\u00e9 \\/"}', {"a": "😀 é /"}),
        ("{'a': \"it's\"}", {"a": "it's"}),
        ('{"a": , "b":}', {"a": None, "b": None}),
        ('{"a": [1, 2}', {"a": [1, 2]}),
        ('{"a": 1\n"b": 2}', {"a": 1, "b": 2}),
        ('{"a": "x"\n"b": 2}', {"a": "x", "b": 2}),
    ],
)
def test_what_is_nearly_json_is_read_as_what_it_means(text: str, value: Any) -> None:
    assert parse_leniently(text) == value


@pytest.mark.parametrize("text", ["", "hello", '{"a" 1}', "[" * 500, "{]}"])
def test_what_cannot_be_guessed_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_leniently(text)


def test_a_word_that_is_no_number_in_json_stays_a_word() -> None:
    assert parse_leniently('{"a": NaN, "b": -Infinity}') == {"a": "NaN", "b": "-Infinity"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('see [1]: {"a": 1} and {"b": 2}', {"a": 1}),
        ("{} {'a': 1}", {"a": 1}),
        ("no braces", None),
        ("[1, 2]", None),
        ("{" * 100_000, None),
        ('{"a": "' + "x" * 300_000 + '"}', {"a": "x" * 300_000}),
    ],
)
def test_the_first_object_of_a_text_is_found_in_bounded_time(text: str, expected: object) -> None:
    assert first_object(text) == expected
