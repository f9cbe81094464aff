import json
from typing import Any

import pytest

from services.api.shortening import MAX_BYTES, MAX_CHARACTERS, MAX_ITEMS, shortened


@pytest.mark.parametrize(
    "values", [{}, {"a": None}, {"a": "x" * MAX_CHARACTERS}, {"a": [1] * MAX_ITEMS}, {"a": {"b": [{"c": "d"}]}}]
)
def test_what_fits_stays_as_it_is(values: dict[str, Any]) -> None:
    kept, cut = shortened(values)
    assert kept is values
    assert not cut


def test_long_texts_end_with_dots_at_every_depth() -> None:
    kept, cut = shortened({"a": [{"b": "x" * (MAX_CHARACTERS + 1)}], "c": 1})
    assert cut
    assert kept["a"][0]["b"] == "x" * (MAX_CHARACTERS - 3) + "..."
    assert kept["c"] == 1


def test_long_lists_lose_their_ends() -> None:
    kept, cut = shortened({"a": list(range(MAX_ITEMS + 1))})
    assert (kept["a"], cut) == (list(range(MAX_ITEMS)), True)


@pytest.mark.parametrize(
    "values",
    [
        {f"k{number}": "x" * 90_000 for number in range(40)},
        {"a": [["y" * 90_000] * 20, ["z" * 90_000] * 20], "b": "last"},
        {"a": {"b": {"c": ["ü" * 90_000] * 40}}, "b": "last"},
        {"surrogate": ["\ud83d" * 90_000] * 40},
    ],
)
def test_a_large_mapping_is_cut_to_fit(values: dict[str, Any]) -> None:
    kept, cut = shortened(values)
    assert cut
    assert len(json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")) <= MAX_BYTES
    assert next(iter(kept)) == next(iter(values))
    if "b" in values:
        assert kept["b"] == "last"
