"""Parse dates and times of day in the cells of a table."""

import datetime
import re

_MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan", "feb", "mar mrz mär", "apr", "may mai", "jun", "jul", "aug", "sep",
         "oct okt", "nov", "dec dez"), 1)
    for name in names.split()
}  # fmt: skip
_CLOCK = re.compile(
    r"[T ,]+(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s*([ap]m)?\s*"
    r"(z|utc|gmt|[+-]\d\d(?::?\d\d)?|[a-z]{3,4})?$",
    re.IGNORECASE | re.ASCII,
)
_WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+", re.IGNORECASE)
_NAME = r"([^\W\d_]{3,9})"
_YEAR = r"('?\d\d|\d{4})"
# Order of the groups: year, month, day; without a day the first of the month.
_DATES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.ASCII), orders)
    for pattern, orders in (
        (r"(\d{4})([-/. ])(\d{1,2})\2(\d{1,2})", ("Y M D",)),
        (r"(\d{4})()(\d\d)(\d\d)", ("Y M D",)),
        (r"(\d{1,2})([-/. ])(\d{1,2})\2(\d{4})", ("D M Y", "M D Y")),
        (r"(\d{1,2})([-/. ])(\d{1,2})\2(\d\d)", ("D M Y", "M D Y", "Y M D")),
        (rf"(\d{{1,2}})(?:st|nd|rd|th)?([-/. ]+){_NAME}[-/., ]+{_YEAR}", ("D M Y",)),
        (rf"{_NAME}([-/. ]+)(\d{{1,2}})(?:st|nd|rd|th)?,? *{_YEAR}", ("M D Y",)),
        (r"(\d{4})([-/])(\d{1,2})", ("Y M",)),
        (r"(\d{1,2})([-/.])(\d{4})", ("M Y",)),
        (rf"{_NAME}([-/. ]+){_YEAR}", ("M Y",)),
        (rf"{_YEAR}([-/. ]+){_NAME}", ("Y M",)),
        (r"(\d{4})(M)(\d{1,2})", ("Y M",)),
        (rf"(\d{{4}})(){_NAME}", ("Y M",)),
        (rf"{_NAME}()(\d{{4}})", ("M Y",)),
    )
)
_QUARTER = re.compile(
    r"(\d{4})[-/ ]?Q([1-4])|Q([1-4])[-/ ]?(\d{4})",
    re.IGNORECASE | re.ASCII,
)
_WEEK = re.compile(r"(\d{4})[- ]?W(\d{1,2})(?:-(\d))?", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def moments(cell: str) -> dict[str, float]:
    """Return the seconds of a date, with or without a time of day, for each possible
    order of day, month and year; {} if it is not a date."""
    if len(cell) > 50 or not re.search(r"\d", cell):
        return {}
    if found := _QUARTER.fullmatch(cell):
        month = 3 * int(found[2] or found[3]) - 2
        cell = f"{found[1] or found[4]}-{month:02}-01"
    if found := _WEEK.fullmatch(cell):
        return _week(*(int(group or 1) for group in found.groups()))
    cell = _WEEKDAY.sub("", cell, count=1)
    at = _CLOCK.search(cell)
    day = (cell[: at.start()] if at else cell).strip()
    for pattern, orders in _DATES:
        if found := pattern.fullmatch(day):
            groups = [found[1], *found.groups()[2:]]
            each = {order: _moment(groups, order.split(), at) for order in orders}
            return {o: seconds for o, seconds in each.items() if seconds is not None}
    return {}


def _week(year: int, week: int, day: int) -> dict[str, float]:
    try:
        monday = datetime.date.fromisocalendar(year, week, day)
    except ValueError:
        return {}
    return {"Y W": (monday - datetime.date(1970, 1, 1)).total_seconds()}


def clock(cell: str) -> float | None:
    """Return the seconds since midnight of 10:30, 10:30:15 or 9:05 pm, or None."""
    found = _CLOCK.fullmatch(f" {cell}")
    return _time_of_day(found) if found else None


def is_date(cell: str) -> bool:
    """Whether a cell is a date; plain numbers are not, except like 20240131."""
    if _NUMBER.fullmatch(cell) and not re.fullmatch(r"(19|20)\d{6}", cell):
        return False
    return bool(moments(cell))


def _moment(groups: list[str], order: list[str], at) -> float | None:
    parts = dict(zip(order, groups, strict=True))
    year = int(parts["Y"].lstrip("'"))
    if year < 100:
        year += 2000 if year < 69 else 1900
    month = month_number(parts["M"])
    try:
        day = datetime.datetime(
            year, month, int(parts.get("D", 1)), tzinfo=datetime.UTC
        ).timestamp()
    except ValueError:
        return None
    return day + _time_of_day(at) if at else day


def month_number(cell: str) -> int:
    """Return 12 for 12, Dec or Dezember; 0 if it is not a month."""
    return int(cell) if cell.isdecimal() else _MONTHS.get(cell[:3].lower(), 0)


def _time_of_day(at: re.Match) -> float:
    hour, minute, second, part, half, zone = at.groups()
    hour = int(hour)
    if half:
        hour = hour % 12 + 12 * (half.lower() == "pm")
    seconds = 3600 * hour + 60 * int(minute) + float(f"{second or 0}.{part or 0}")
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        away = 3600 * int(digits[:2]) + 60 * int(digits[2:])
        seconds -= away if zone[0] == "+" else -away
    return seconds
