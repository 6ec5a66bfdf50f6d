"""The user's home folder, kept out of what gpuzoo writes."""

import contextlib
import os
import re


def redact(text: str) -> str:
    """Replace the user's home by `~` in a path that stands alone, after an option
    (`--data=`), in quotes, a list or a URL. The home is known by $HOME, the user
    database and their resolved links; relative paths that lead into it count too.

    Unchanged where a path does not begin with the whole home, or there is no home.
    """
    text = _BEFORE_RELATIVE.sub(lambda found: found[1] + _absolute(found[2]), text)
    for home in _homes():
        text = _exchange(home, "~", text)
    return text


def unredact(text: str) -> str:
    """Undo `redact` on a machine with the same home."""
    return _exchange("~", _home(), text)


def without_home(text: str) -> str:
    """Replace the user's home by `~` wherever a path in a message begins with it; not
    reversible."""
    for home in _homes():
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w-])", "~", text)
    return text


def _home() -> str:
    home = os.path.expanduser("~")  # unchanged where there is no home
    return home if len(home) > 1 else "~"


def _homes() -> list[str]:
    """Return every path of the user's home, the longest first."""
    homes = {os.path.expanduser("~")}
    with contextlib.suppress(ImportError, KeyError):  # Windows; an unknown user
        import pwd

        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    homes = {home.rstrip("/") for home in homes if home.startswith("/")}
    homes |= {os.path.realpath(home) for home in homes}
    return sorted((home for home in homes if len(home) > 1), key=len, reverse=True)


def _absolute(path: str) -> str:
    """Return a relative path through the home as `~/...`; others unchanged."""
    if "/" not in path:  # a plain name, of a recipe or a dataset
        return path
    try:
        place, homes, parts = os.getcwd(), _homes(), path.split("/")
    except OSError:  # the current folder has been removed
        return path
    for number, part in enumerate(parts, start=1):
        place = os.path.normpath(os.path.join(place, part))
        if part not in ("", ".", "..") and place in homes:
            return "/".join(["~", *parts[number:]])
    return path


# Where a path may begin: alone, after an option, in quotes, in a list, in a URL.
_URL = r"(?:[A-Za-z][\w+.-]*://[^/~\s'\"]*)?"
_BEGIN = rf"\A(?:[\w-]+=)?{_URL}|(?:['\"]|[\s,;:|(\[{{]){_URL}"
_BEFORE_RELATIVE = re.compile(
    r"(\A(?:[\w-]+=)?(?:file://)?|['\"(\[,]\s*)([^/~'\"()\[\],\s][^'\"()\[\],]*)"
)


def _exchange(head: str, other: str, text: str) -> str:
    begin = rf"({_BEGIN}){re.escape(head)}(?=[/'\",;:|)\]}}\s]|$)"
    return re.sub(begin, lambda found: found[1] + other, text)
