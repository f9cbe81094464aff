"""Schedules: when a workflow is due. A five-field cron expression, or what the editor's form says, in a time zone.

Pure: instants in, instants out, in microseconds since the epoch. Times are those of a wall clock: at a shift to
daylight saving time a time that does not exist is due at the instant its clock would have shown it, and one that comes
twice is due once; schedules of every hour go by real time.
"""

import calendar
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from libs.workflow.problems import WorkflowError

LAST: Final = "L"
"""In place of a day of the month: the last one."""

MOST_DAYS: Final = 8 * 366
"""How far to look: the 29th of February may be eight years away. A schedule that has none by then is never due."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "day of the week": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
_MACROS: Final[Mapping[str, str]] = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_PART: Final = re.compile(r"(\*|[0-9a-z]+(?:-[0-9a-z]+)?)(?:/([0-9]{1,4}))?")
_TIME: Final = re.compile(r"(1[0-2]|0?[1-9]):([0-5][0-9])\s*(am|pm)", re.IGNORECASE)


class ScheduleInvalid(WorkflowError):
    """The schedule cannot be kept; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Schedule:
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    last_day: bool
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    any_day: bool
    """Days of the month are not restricted; with `any_weekday` false the weekdays alone decide."""
    any_weekday: bool
    every_hour: bool
    zone: ZoneInfo

    def next_us(self, after_us: int) -> int | None:
        """The first instant behind `after_us`; None: there is none for years."""
        day = _local(after_us, self.zone).date() - timedelta(days=1)
        for number in range(MOST_DAYS):
            for at_us in self._instants(day + timedelta(days=number)):
                if at_us > after_us:
                    return at_us
        return None

    def last_us(self, until_us: int, after_us: int) -> int | None:
        """The last instant in (after_us, until_us]; None: there is none."""
        day = _local(until_us, self.zone).date() + timedelta(days=1)
        first = _local(after_us, self.zone).date() - timedelta(days=1)
        for number in range(min(MOST_DAYS, (day - first).days + 1)):
            for at_us in reversed(list(self._instants(day - timedelta(days=number)))):
                if after_us < at_us <= until_us:
                    return at_us
        return None

    def _instants(self, day: date) -> Iterator[int]:
        if not self._is_due(day):
            return
        found = set()
        for hour in self.hours:
            for minute in self.minutes:
                wall = datetime.combine(day, time(hour, minute), self.zone)
                found.add(_us(wall))
                if self.every_hour:
                    found.add(_us(wall.replace(fold=1)))
        yield from sorted(found)

    def _is_due(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        is_last = day.day == calendar.monthrange(day.year, day.month)[1]
        by_day = day.day in self.days or (self.last_day and is_last)
        by_weekday = (day.weekday() + 1) % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday  # as cron has it: either restriction lets a day through


def schedule_of(data: Mapping[str, Any]) -> Schedule:
    """The schedule of a `trigger-schedule` node, from its data in the document. Raises ScheduleInvalid."""
    zone = _zone(data.get("timezone") or "UTC")
    if data.get("mode") == "cron":
        return parse_cron(str(data.get("cron_expression") or ""), zone)
    return _of_form(data, zone)


def parse_cron(expression: str, zone: ZoneInfo) -> Schedule:
    """Raises ScheduleInvalid."""
    text = expression.strip().lower()
    fields = _MACROS.get(text, text).split()
    if len(fields) != 5:
        raise ScheduleInvalid(
            f'cron_expression: expected five fields (minute hour day month weekday), got "{expression[:60]}"'
        )
    minute, hour, day, month, weekday = fields
    days = [part for part in day.split(",") if part != LAST.lower()]
    weekdays = _field(weekday, "day of the week", 0, 7)
    return Schedule(
        minutes=_field(minute, "minute", 0, 59),
        hours=_field(hour, "hour", 0, 23),
        days=_field(",".join(days), "day of the month", 1, 31) if days else frozenset(),
        last_day=len(days) < len(day.split(",")),
        months=_field(month, "month", 1, 12),
        weekdays=frozenset(number % 7 for number in weekdays),
        any_day=day.startswith("*") or day == "?",
        any_weekday=weekday.startswith("*") or weekday == "?",
        every_hour=hour.startswith("*"),
        zone=zone,
    )


def _field(text: str, name: str, least: int, most: int) -> frozenset[int]:
    found: set[int] = set()
    for part in ("*" if text == "?" else text).split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ScheduleInvalid(f'cron_expression: {name} "{part[:20]}" is no number, range or step')
        first, last = least, most
        if match[1] != "*":
            begin, _, end = match[1].partition("-")
            first = _number(begin, name, least, most)
            # "5/15" goes on to the end, "5" is itself.
            last = _number(end, name, least, most) if end else most if match[2] else first
        step = int(match[2] or 1)
        if step < 1 or first > last:
            raise ScheduleInvalid(f'cron_expression: {name} "{part[:20]}" holds nothing')
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, name: str, least: int, most: int) -> int:
    names = _NAMES.get(name, ())
    if text[:3] in names and text.isalpha():
        return names.index(text[:3]) + (1 if name == "month" else 0)
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and least <= int(text) <= most):
        raise ScheduleInvalid(f'cron_expression: {name} "{text[:20]}" is not in {least} to {most}')
    return int(text)


def _of_form(data: Mapping[str, Any], zone: ZoneInfo) -> Schedule:
    raw = data.get("visual_config")
    form: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    frequency = data.get("frequency") or "daily"
    if frequency == "hourly":
        minute = form.get("on_minute") or 0
        if not isinstance(minute, int) or not 0 <= minute <= 59:
            raise ScheduleInvalid("visual_config.on_minute: expected 0 to 59")
        return parse_cron(f"{minute} * * * *", zone)
    at = _TIME.fullmatch(str(form.get("time") or "12:00 AM").strip())
    if at is None:
        raise ScheduleInvalid("visual_config.time: expected a time such as 9:30 AM")
    hour = int(at[1]) % 12 + (12 if at[3].lower() == "pm" else 0)
    clock = f"{int(at[2])} {hour}"
    match frequency:
        case "daily":
            return parse_cron(f"{clock} * * *", zone)
        case "weekly":
            return parse_cron(f"{clock} * * {_listed(form, 'weekdays', 'sun')}", zone)
        case "monthly":
            days = _listed(form, "monthly_days", "1").lower().replace("last", LAST)
            return parse_cron(f"{clock} {days} * *", zone)
        case _:
            raise ScheduleInvalid(f'frequency: expected hourly, daily, weekly or monthly, got "{str(frequency)[:40]}"')


def _listed(form: Mapping[str, Any], name: str, default: str) -> str:
    values = form.get(name)
    if isinstance(values, list) and values:
        return ",".join(str(value).strip() for value in values)
    return default


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ScheduleInvalid(
            f'timezone: "{str(name)[:60]}" is not known here. Give one such as Europe/Berlin'
        ) from error


def _local(at_us: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + timedelta(microseconds=at_us)).astimezone(zone)


def _us(wall: datetime) -> int:
    return (wall.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
