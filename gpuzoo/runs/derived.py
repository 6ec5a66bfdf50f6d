"""Files of a run that are written again after it has ended: the verdict of the last
`verify`, and report.html. run.json has no digest of them; each shows by itself that
gpuzoo wrote it for this run, so that no file of the user is overwritten.
"""

import hashlib
import json
import re

from gpuzoo.files import parse_json
from gpuzoo.runs.record import now, private, seal

REPORT, VERDICT = "report.html", "verify.json"
DERIVED = (REPORT, VERDICT)
_STAMP = re.compile(rb"<!-- gpuzoo: report of run (\w*), sha256 ([0-9a-f]{64}) -->\n\Z")


def stamp(page: bytes, run_id: str) -> bytes:
    """Return a page with a last line that holds the run's id and the page's digest."""
    digest = hashlib.sha256(page).hexdigest()
    return page + f"<!-- gpuzoo: report of run {run_id}, sha256 {digest} -->\n".encode()


def is_own(name: str, content: bytes, run_id: str) -> bool:
    """Whether gpuzoo wrote this file for this run, and nobody has changed it."""
    if name == REPORT:
        found = _STAMP.search(content)
        if not found or found[1].decode() != run_id:
            return False
        digest = hashlib.sha256(content[: found.start()]).hexdigest()
        return digest == found[2].decode()
    return name == VERDICT and _parse(content, run_id) is not None


def verdict_file(found: dict, record: dict, version: str) -> bytes:
    """Return the content of verify.json.

    Args:
        found: as `gpuzoo.verify` returns it.
        record: of the run that was verified.
        version: of gpuzoo.
    """
    rest = {key: value for key, value in found.items() if key != "run_dir"}
    verdict = {
        "id": record.get("id", ""), "run_seal": record["seal"], "at": now(),
        "gpuzoo": version, **private(rest),
    }  # fmt: skip
    return (json.dumps({**verdict, "seal": seal(verdict)}, indent=1) + "\n").encode()


def verdict_of(content: bytes, record: dict) -> dict | None:
    """Return the verdict in a verify.json; None if it is damaged, or of another run or
    of another state of run.json."""
    found = _parse(content, record.get("id", ""))
    return found if found and found.get("run_seal") == record["seal"] else None


def _parse(content: bytes, run_id: str) -> dict | None:
    try:
        found = parse_json(content.decode())
        own = found["id"] == run_id and found["seal"] == seal(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if own else None
