from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.workflow.schedules import ScheduleInvalid, parse_cron, schedule_of

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_US = 3_600_000_000


def us(text: str) -> int:
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 1_000_000


def said(at_us: int | None) -> str | None:
    return None if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def following(expression: str, after: str, count: int = 1, zone: ZoneInfo | None = None) -> list[str | None]:
    schedule = parse_cron(expression, zone or ZoneInfo("UTC"))
    found: list[str | None] = []
    at_us: int | None = us(after)
    for _ in range(count):
        at_us = None if at_us is None else schedule.next_us(at_us)
        found.append(said(at_us))
    return found


@pytest.mark.parametrize(
    ("expression", "after", "then"),
    [
        ("* * * * *", "2026-05-02 09:13:44", "2026-05-02 09:14"),
        ("*/15 * * * *", "2026-05-02 09:15", "2026-05-02 09:30"),
        ("5/20 * * * *", "2026-05-02 09:26", "2026-05-02 09:45"),
        ("0 9-17/4 * * *", "2026-05-02 10:00", "2026-05-02 13:00"),
        ("30 8 * * 1-5", "2026-05-02 09:00", "2026-05-04 08:30"),
        ("0 0 * * SUN", "2026-05-02 09:00", "2026-05-03 00:00"),
        ("0 0 * * 7", "2026-05-02 09:00", "2026-05-03 00:00"),
        ("0 0 1 jan,jul *", "2026-05-02 09:00", "2026-07-01 00:00"),
        ("0 0 29 2 *", "2026-05-02 09:00", "2028-02-29 00:00"),
        ("0 0 L * *", "2026-05-02 09:00", "2026-05-31 00:00"),
        ("0 0 15,L * *", "2026-02-15 09:00", "2026-02-28 00:00"),
        ("0 0 31 * *", "2026-05-31 09:00", "2026-07-31 00:00"),
        ("0 0 13 * 5", "2026-05-02 09:00", "2026-05-08 00:00"),
        ("@daily", "2026-05-02 09:00", "2026-05-03 00:00"),
        ("0 0 30 2 *", "2026-05-02 09:00", None),
    ],
)
def test_the_next_instant(expression: str, after: str, then: str | None) -> None:
    assert following(expression, after) == [then]


def test_a_time_that_a_shift_leaves_out_is_due_once_and_one_that_comes_twice_too() -> None:
    # In Berlin 02:30 did not exist on 2026-03-29 and came twice on 2026-10-25.
    spring = following("30 2 * * *", "2026-03-28 12:00", 2, BERLIN)
    assert spring == ["2026-03-29 01:30", "2026-03-30 00:30"]
    autumn = following("30 2 * * *", "2026-10-24 12:00", 2, BERLIN)
    assert autumn == ["2026-10-25 00:30", "2026-10-26 01:30"]


def test_hours_go_by_real_time_through_a_shift() -> None:
    for after in ("2026-03-28 23:30", "2026-10-24 22:30"):
        found = following("0 * * * *", after, 6, BERLIN)
        instants = [us(str(text)) for text in found]
        assert [later - sooner for sooner, later in pairwise(instants)] == [HOUR_US] * 5


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "a * * * *",
     "5-1 * * * *", "*/0 * * * *", "1,,2 * * * *", "- * * * *", "99999999999 * * * *", "\u0663 * * * *"],
)  # fmt: skip
def test_what_is_no_schedule_says_why(expression: str) -> None:
    with pytest.raises(ScheduleInvalid, match="cron_expression"):
        parse_cron(expression, ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("data", "then"),
    [
        ({}, "2026-05-03 00:00"),
        ({"frequency": "hourly", "visual_config": {"on_minute": 20}}, "2026-05-02 09:20"),
        ({"frequency": "daily", "visual_config": {"time": "3:05 PM"}}, "2026-05-02 15:05"),
        ({"frequency": "weekly", "visual_config": {"time": "12:00 PM", "weekdays": ["mon"]}}, "2026-05-04 12:00"),
        ({"frequency": "monthly", "visual_config": {"time": "1:30 AM", "monthly_days": ["last"]}}, "2026-05-31 01:30"),
        ({"frequency": "daily", "visual_config": {"time": "3:05 PM"}, "timezone": "Asia/Tokyo"}, "2026-05-03 06:05"),
        ({"mode": "cron", "cron_expression": "0 10 * * *", "frequency": "x"}, "2026-05-02 10:00"),
    ],
)  # fmt: skip
def test_what_the_editors_form_means(data: dict[str, Any], then: str) -> None:
    assert said(schedule_of(data).next_us(us("2026-05-02 09:13"))) == then


@pytest.mark.parametrize(
    "data",
    [
        {"timezone": "Nowhere/Land"},
        {"timezone": "../etc/passwd"},
        {"frequency": "often"},
        {"frequency": "hourly", "visual_config": {"on_minute": 60}},
        {"frequency": "daily", "visual_config": {"time": "25:00"}},
        {"frequency": "weekly", "visual_config": {"weekdays": ["someday"]}},
        {"mode": "cron"},
    ],
)
def test_a_form_that_means_nothing_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ScheduleInvalid):
        schedule_of(data)


FIELDS = st.tuples(
    st.sampled_from(["*", "0", "*/7", "30", "5-40/11"]),
    st.sampled_from(["*", "0", "2", "*/5", "23"]),
    st.sampled_from(["*", "1", "L", "28-31"]),
    st.sampled_from(["*", "2", "*/3"]),
    st.sampled_from(["*", "1-5", "sun"]),
)


@given(fields=FIELDS, after_s=st.integers(1_700_000_000, 1_900_000_000), zone=st.sampled_from(["UTC", "Europe/Berlin"]))
def test_the_next_instant_is_the_last_one_as_of_itself(fields: tuple[str, ...], after_s: int, zone: str) -> None:
    schedule = parse_cron(" ".join(fields), ZoneInfo(zone))
    after_us = after_s * 1_000_000
    due_us = schedule.next_us(after_us)
    if due_us is None:
        return
    assert due_us > after_us
    assert schedule.last_us(due_us, after_us) == due_us
    assert schedule.last_us(due_us - 1, after_us) is None
    further_us = schedule.next_us(due_us)
    if further_us is not None:
        assert schedule.last_us(further_us - 1, after_us) == due_us
