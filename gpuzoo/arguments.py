"""Reading the words of a command, and its last line."""

import io
import json
import os
import re
import sys

import tyro

from gpuzoo.errors import GpuzooError

Flag = tyro.conf.FlagCreatePairsOff[bool]
Word = tyro.conf.Positional[str]


def last_line(summary: dict) -> int:
    """Print the one JSON object that every command ends with; returns 0."""
    try:
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w")
    try:
        print(json.dumps(summary), flush=True)
    except OSError as error:
        # The interpreter would try once more, and fail once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            raise GpuzooError(f"stdout cannot be written: {error.strerror}") from None
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
        lines = frame.getvalue().splitlines()
        # Without the frame and its title, which the text repeats.
        text = " ".join(line for line in lines if not line.startswith("╭"))
        text = re.sub(r"[╭╮╰╯│─]+", " ", text)
        text = re.sub(r"\s+", " ", text).strip()
        raise GpuzooError(text or "wrong use") from None
    finally:
        sys.stderr = stderr
