"""Parsing a command with tyro, the options of every command, and its last line."""

import dataclasses
import io
import itertools
import json
import os
import re
import sys
import traceback

import tyro

from gpuzoo.errors import ExitCode, GpuzooError, meant

Flag = tyro.conf.FlagCreatePairsOff[bool]
Word = tyro.conf.Positional[str]


@dataclasses.dataclass(frozen=True)
class Output:
    """Common to all commands."""

    quiet: Flag = False
    """Print only errors and the JSON line."""
    json: Flag = False
    """Print the JSON line on a terminal too; in a pipe it is always the last line."""
    debug: Flag = False
    """Show the traceback of an error."""

    def note(self, text: str) -> None:
        """Print a line of progress to stderr."""
        if not self.quiet:
            print(printable_lines(text), file=sys.stderr, flush=True)

    def last_line(self, summary: dict) -> None:
        last_line(summary, self.json)


def chosen(**options: str) -> dict:
    """Return the runtime options other than "run", which stands for the run's own."""
    return {name: value for name, value in options.items() if value != "run"}


Common = tyro.conf.OmitArgPrefixes[Output]


def last_line(summary: dict, on_terminal: bool = False) -> int:
    """Print the JSON object that every command ends with; return 0.

    On a terminal only with --json, so that the readable output is not followed by it.
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
        # The interpreter would try to flush again on exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            raise GpuzooError(f"stdout cannot be written: {error.strerror}") from None
    return 0


def printable(text: str) -> str:
    """Escape characters that would control the terminal: a file may have any name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Do the same, but for the ends of lines."""
    return "\n".join(map(printable, text.split("\n")))


def without_1(call):
    """Decorate a command whose exit code 1 means that results differ: any failure, also
    one in a model's own code, is 2."""

    def guarded(self) -> int:
        try:
            return call(self)
        except BrokenPipeError:
            raise
        except (Exception, SystemExit) as error:
            if self.output.debug:
                traceback.print_exc()
                return ExitCode.MISUSE
            line = " ".join(str(error).split())[:300]
            if not isinstance(error, GpuzooError):
                line = f"{type(error).__name__}: {line}"
            elif error.exit_code == ExitCode.MISUSE:
                raise
            verb = type(self).__name__.lower()
            raise GpuzooError(f"{verb} failed: {line} (--debug shows where)") from error

    return guarded


def parse(command, words: list[str], **options):
    """Call `tyro.cli`; turn its framed error message into a GpuzooError of one line."""
    frame, stderr = io.StringIO(), sys.stderr
    try:
        sys.stderr = frame
        return tyro.cli(
            command,
            args=words,
            config=(tyro.conf.PositionalMetavarFromFieldName,),
            **options,
        )
    except SystemExit as stop:
        if not stop.code:
            raise
        # Without colours, the frame and its title, which the text repeats.
        lines = re.sub(r"\x1b\[[0-9;]*m", "", frame.getvalue()).splitlines()
        text = " ".join(line for line in lines if not line.startswith("╭"))
        text = re.sub(r"[╭╮╰╯│─]+", " ", text)
        text = re.sub(r"\s+", " ", text).replace(" (required)", "").strip()
        with_recipe = "default" in options or words[0] in (
            "train",
            "sweep",
            "bench",
            "compile",
        )
        for word in re.findall(r"--[\w-]+", text.partition(". ")[0]):
            if with_recipe and (hint := meant(word)):
                if hint.startswith("nearest: "):
                    fields = (
                        hint.removeprefix("nearest: ").replace("_", "-").split(", ")
                    )
                    hint = "nearest: " + ", ".join(f"--{field}" for field in fields)
                raise GpuzooError(f"unknown option {word}; {hint}") from None
        raise GpuzooError(_plain(text, words, options.get("prog", ""))) from None
    finally:
        sys.stderr = stderr


# Of tyro and of Python's constructors -> what users read.
_WORDS = (
    (r"Error parsing \S*__tyro\S*: ", ""),  # an error of a recipe says which field
    (r"Error parsing (\S+): ", r"\1: "),
    (r"\s*Argument helptext:.*", ""),
    (r"invalid literal for int\(\) with base 10: ", "must be an integer: "),
    (r"could not convert string to float: ", "must be a number: "),
    (r"Unrecognized options?: (--[\w-]+)(, [^\s-]\S*)?", r"unknown option \1"),
    (r"Unrecognized options?: ", "unknown: "),
    (r" Perhaps you meant: (--[\w-]+).*", r"; nearest: \1"),
    (r" Arguments similar to (--[\w-]+): (--[\w-]+).*", r"; nearest to \1: \2"),
)


def _plain(text: str, words: list[str], prog: str) -> str:
    """Return an error of tyro as one sentence, with the command that shows the help."""
    text = re.sub(r"\s*For full helptext, (?:see|run):? .*", "", text)
    for pattern, plain in _WORDS:
        text = re.sub(pattern, plain, text)
    known = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    shown = known[: 2 if known and known[0] in ("train", "sweep", "bench") else 1]
    text = text.strip().rstrip(".;") or "wrong use"
    return f"{text}; see {' '.join([prog, *shown]).strip()} --help"
