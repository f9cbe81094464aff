"""How much a message is like a question that somebody has answered: equal texts, then texts of near meaning. Pure.

Texts that differ only in case, spaces and punctuation are equal and score 1, whatever a provider thinks of them. All
others score the cosine of their vectors; who makes the vectors is not known here.
"""

import math
import unicodedata
from array import array
from collections.abc import Iterable, Mapping
from operator import mul
from typing import Final, NamedTuple, TypeVar

_SIGNS: Final = frozenset("#%&*/@\\")
"""Punctuation to Unicode, and still a part of what is said: C# is not C."""

Vector = array
"""Of floats, of length 1: half the memory of a list's, per number an eighth."""

EQUAL: Final = 1.0

T = TypeVar("T")


class Closest(NamedTuple):
    """A key, and how much its text is like the one that was asked about."""

    key: str
    score: float


def normal(text: str) -> str:
    """What of a text counts: letters, digits and signs, without case; words are parted by one space.

    A text of punctuation alone is not nothing: `?` is another question than `!`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(each if _counts(each) else " " for each in folded)
    return " ".join(kept.split()) or folded.strip()


def _counts(character: str) -> bool:
    return character in _SIGNS or unicodedata.category(character)[0] not in "PZC"


def unit(numbers: Iterable[float]) -> "Vector[float]":
    """The vector of length 1 in the same direction. Raises ValueError when there is none."""
    vector = array("f", numbers)
    length = math.sqrt(sum(map(mul, vector, vector)))
    if not (math.isfinite(length) and length > 0):
        raise ValueError("a vector without direction")
    return array("f", (each / length for each in vector))


def likeness(one: "Vector[float]", other: "Vector[float]") -> float:
    """The cosine of two vectors of length 1, and 0 where it is negative or they are of different spaces."""
    if len(one) != len(other):
        return 0.0
    cosine: float = sum(map(mul, one, other))
    return min(max(cosine, 0.0), EQUAL)


def closest(asked: "Vector[float]", known: Mapping[str, "Vector[float]"], threshold: float) -> Closest | None:
    """The key whose vector is most like `asked`, if it is so by `threshold` at least. Of equals the first."""
    best: Closest | None = None
    for key, vector in known.items():
        score = likeness(asked, vector)
        if score >= threshold and (best is None or score > best.score):
            best = Closest(key, score)
    return best
