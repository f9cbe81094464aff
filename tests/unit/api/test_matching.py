"""How messages are compared with questions: what counts as equal, and what is near."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.embeddings import Offline
from services.api.matching import Closest, closest, likeness, normal, unit

numbers = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3).filter(lambda each: math.hypot(*each) > 1e-3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How late is it?", "how  LATE is it"),
        ("  Wie spät?\n", "wie spät"),
        ("STRASSE", "straße"),
        ("e-mail, please!", "E mail please"),
        ("退款政策是什么？", "退款政策是什么"),  # noqa: RUF001  # how it is written
        ("ｆｕｌｌ width", "full width"),  # noqa: RUF001  # that is the point
        ("a b", "a\u00a0b"),  # a space that breaks no line
    ],
)
def test_texts_that_differ_in_case_spaces_and_punctuation_are_equal(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("?", "!"), ("5 + 3", "5 - 3"), ("not", "no t"), ("año", "ano"), ("C#", "C"), ("5 %", "5"), ("", "a")],
)
def test_texts_that_say_something_else_are_not(one: str, other: str) -> None:
    assert normal(one) != normal(other)


@given(text=st.text())
def test_what_is_normal_stays_so(text: str) -> None:
    assert normal(normal(text)) == normal(text)


@given(one=numbers, other=numbers)
def test_likeness_is_between_0_and_1_and_the_same_both_ways(one: list[float], other: list[float]) -> None:
    assert 0 <= likeness(unit(one), unit(other)) <= 1
    assert likeness(unit(one), unit(other)) == likeness(unit(other), unit(one))
    assert likeness(unit(one), unit(one)) == pytest.approx(1, abs=1e-6)


def test_vectors_of_different_models_are_not_alike_and_one_without_direction_is_none() -> None:
    assert likeness(unit([1, 0]), unit([1, 0, 0])) == 0
    for none in ([], [0.0, 0.0], [math.inf, 1.0], [math.nan]):
        with pytest.raises(ValueError, match="direction"):
            unit(none)


def test_the_closest_is_the_first_of_the_best_and_must_reach_the_threshold() -> None:
    known = {"far": unit([0, 1]), "near": unit([1, 0.1]), "twin": unit([1, 0.1])}
    found = closest(unit([1, 0]), known, 0.9)
    assert found == Closest("near", likeness(unit([1, 0]), unit([1, 0.1])))
    assert closest(unit([1, 0]), known, 0.999) is None
    assert closest(unit([1, 0]), {}, 0.0) is None


def embedded(*texts: str) -> list[float]:
    """How much each of the others is like the first."""
    first, *others = asyncio.run(Offline().embed("any", texts))
    return [likeness(first, other) for other in others]


def test_the_stand_in_finds_texts_with_much_in_common() -> None:
    near, far, equal = embedded(
        "What is your refund policy?", "What is the refund policy", "Good morning", "what is your REFUND policy"
    )
    assert equal == pytest.approx(1, abs=1e-6)
    assert 0.75 < near < 1
    assert far < 0.3


def test_the_stand_in_says_the_same_at_every_process() -> None:
    (vector,) = asyncio.run(Offline().embed("any", ["abc"]))
    assert [place for place, each in enumerate(vector) if each] == [1, 158, 240, 352, 450]
