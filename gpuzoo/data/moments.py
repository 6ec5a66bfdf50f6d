"""When a cell of a table says that something was."""

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
# What stands in each group: year, month, day; without a day the first is meant.
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
    )
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def moments(cell: str) -> dict[str, float]:
    """Seconds of a date, with or without a time of day, for each order of day, month
    and year that it may be written in; {} if it is none."""
    if len(cell) > 50 or not re.search(r"\d", cell):
        return {}
    if found := re.fullmatch(r"(\d{4})[- ]?Q([1-4])", cell):  # a quarter
        cell = f"{found[1]}-{3 * int(found[2]) - 2:02}-01"
    cell = _WEEKDAY.sub("", cell, count=1)
    clock = _CLOCK.search(cell)
    day = (cell[: clock.start()] if clock else cell).strip()
    for pattern, orders in _DATES:
        if found := pattern.fullmatch(day):
            groups = [found[1], *found.groups()[2:]]
            each = {order: _moment(groups, order.split(), clock) for order in orders}
            return {o: seconds for o, seconds in each.items() if seconds is not None}
    return {}


def is_date(cell: str) -> bool:
    """Whether a cell is a date; a plain number is none, but for 20240131."""
    if _NUMBER.fullmatch(cell) and not re.fullmatch(r"(19|20)\d{6}", cell):
        return False
    return bool(moments(cell))


def _moment(groups: list[str], order: list[str], clock) -> float | None:
    parts = dict(zip(order, groups, strict=True))
    year = int(parts["Y"].lstrip("'"))
    if year < 100:
        year += 2000 if year < 69 else 1900
    month = parts["M"]
    month = int(month) if month.isdecimal() else _MONTHS.get(month[:3].lower(), 0)
    try:
        day = datetime.datetime(
            year, month, int(parts.get("D", 1)), tzinfo=datetime.UTC
        ).timestamp()
    except ValueError:
        return None
    return day + _time_of_day(clock) if clock else day


def _time_of_day(clock: re.Match) -> float:
    hour, minute, second, part, half, zone = clock.groups()
    hour = int(hour)
    if half:
        hour = hour % 12 + 12 * (half.lower() == "pm")
    seconds = 3600 * hour + 60 * int(minute) + float(f"{second or 0}.{part or 0}")
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        away = 3600 * int(digits[:2]) + 60 * int(digits[2:])
        seconds -= away if zone[0] == "+" else -away
    return seconds
