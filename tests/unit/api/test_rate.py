"""Requests a minute: a quota that refills evenly."""

import pytest

from services.api.errors import ApiError
from services.api.rate import RequestRate


def asked(rate: RequestRate, key: str = "k") -> int:
    """0: it may; else the seconds to wait."""
    try:
        rate.count(key)
    except ApiError as error:
        return int(error.headers["Retry-After"])
    return 0


def test_a_quota_may_be_used_at_once_and_comes_back_evenly() -> None:
    now = [1000.0]
    rate = RequestRate(6, lambda: now[0])
    assert [asked(rate) for _ in range(8)] == [0] * 6 + [10, 10]
    now[0] += 9
    assert asked(rate) == 1
    now[0] += 1
    assert [asked(rate), asked(rate)] == [0, 10]
    now[0] += 3600
    assert [asked(rate) for _ in range(7)] == [0] * 6 + [10]
    assert asked(rate, "other") == 0


@pytest.mark.parametrize("per_minute", [1, 7, 600])
def test_who_asks_evenly_is_never_refused(per_minute: int) -> None:
    now = [0.0]
    rate = RequestRate(per_minute, lambda: now[0])
    for _ in range(3 * per_minute):
        assert asked(rate) == 0
        now[0] += 60 / per_minute


def test_without_a_limit_nothing_is_counted() -> None:
    rate = RequestRate(0, lambda: 0.0)
    assert {asked(rate) for _ in range(1000)} == {0}
