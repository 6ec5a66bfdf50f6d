"""Reading the words of a command, and its last line."""

import io
import json
import re
import sys

import tyro

from gpuzoo.errors import GpuzooError

Flag = tyro.conf.FlagCreatePairsOff[bool]
Word = tyro.conf.Positional[str]


def last_line(summary: dict) -> int:
    """Print the one JSON object that every command ends with; returns 0."""
    sys.stderr.flush()
    print(json.dumps(summary), flush=True)
    return 0


def parse(command: type, words: list[str], program: str, default=None):
    """tyro's parser, with its framed error text made one line."""
    frame, stderr = io.StringIO(), sys.stderr
    try:
        sys.stderr = frame
        kwargs = {} if default is None else {"default": default}
        return tyro.cli(command, args=words, prog=program, **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"[╭╮╰╯│─]+", " ", frame.getvalue())
        text = re.sub(r"\s+", " ", text).strip()
        raise GpuzooError(text or "wrong use") from None
    finally:
        sys.stderr = stderr
