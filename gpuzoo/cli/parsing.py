"""Reading the words of a command, and its last line."""

import io
import json
import os
import re
import sys

import tyro

from gpuzoo.errors import GpuzooError, meant

Flag = tyro.conf.FlagCreatePairsOff[bool]
Word = tyro.conf.Positional[str]


def last_line(summary: dict, on_terminal: bool = False) -> int:
    """Print the one JSON object that every command ends with; returns 0.

    Not on a terminal, unless it was asked for with --json: a person wants to read what
    stands before it.
    """
    try:
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w")
    try:
        if sys.stdout.isatty() and not on_terminal:
            sys.stdout.flush()
            return 0
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
        for word in re.findall(r"--[\w-]+", text.partition(". ")[0]):
            if default is not None and (told := meant(word)):
                if told.startswith("nearest: "):
                    fields = (
                        told.removeprefix("nearest: ").replace("_", "-").split(", ")
                    )
                    told = "nearest: " + ", ".join(f"--{field}" for field in fields)
                raise GpuzooError(f"unknown option {word}; {told}") from None
        raise GpuzooError(text or "wrong use") from None
    finally:
        sys.stderr = stderr
