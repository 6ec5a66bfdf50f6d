"""The command line: one command per verb; the last line on stdout is one JSON object,
but on a terminal only with --json.

Exit codes: 0 done, 1 a check says no, 2 wrong use or environment, 130 interrupted.
"""

import contextlib
import dataclasses
import os
import sys

import tyro

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.recipes import list_recipes, load_recipe
from gpuzoo.cli import listing, runs
from gpuzoo.cli.parsing import Flag, last_line, parse
from gpuzoo.errors import GpuzooError, nearest, remedy_of
from gpuzoo.runtime import bootstrap
from gpuzoo.runtime.options import Options
from gpuzoo.training import failures

_VERBS = {
    "train": "train a recipe: gpuzoo train mnist [--epochs 3 ...]",
    "resume": "finish a run that was stopped or killed: gpuzoo resume RUN",
    "verify": "do a run again and compare the bits: gpuzoo verify RUN",
    "diff": "show where two runs part: gpuzoo diff RUN RUN",
    "bench": "time a recipe in every mode of this machine: gpuzoo bench mnist",
    "doctor": "look at this machine, tell what is wrong and what mends it",
    "list": "list the models, what they reach, the recipes: gpuzoo list [PATTERN]",
    "info": "show what is known of a model, and its diagram: gpuzoo info cnn",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Everything that may be said about a training."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    options: tyro.conf.OmitArgPrefixes[Options]
    out: str | None = None
    """The run folder; by default the next free runs/<recipe>-<data>-<number>."""
    fast_dev_run: Flag = False
    """Two steps of everything, to see whether all of it works."""
    quiet: Flag = False
    """Print nothing but the JSON line."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


def main(arguments: list[str] | None = None) -> None:
    """The `gpuzoo` command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        bootstrap.start(words)
    _guard(lambda: _dispatch(words), "--debug" in words)


def run_recipe(recipe: Recipe) -> None:
    """The main function of every file in recipes/."""
    words = sys.argv[1:]
    bootstrap.start(None)
    _guard(lambda: _train(recipe, words, f"python {sys.argv[0]}"), "--debug" in words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        _print_help()
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb == "--version":
        from gpuzoo import __version__

        if sys.stdout.isatty():
            print(f"gpuzoo {__version__}")
        return last_line({"version": __version__})
    if verb not in _VERBS:
        raise GpuzooError(f"no command named {verb!r}; {nearest(verb, _VERBS)}")
    verbs = {
        "train": _train_named, "resume": runs.resume, "verify": runs.verify,
        "diff": runs.diff, "bench": _bench,
        "doctor": runs.doctor, "list": listing.list_all, "info": listing.info,
    }  # fmt: skip
    return verbs[verb](rest)


def _print_help() -> None:
    print("usage: gpuzoo COMMAND ...\n")
    for verb, meaning in _VERBS.items():
        print(f"  {verb:<7} {meaning}")
    print("\ngpuzoo COMMAND --help shows the options. Recipes:", *list_recipes())


def _train_named(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print("usage: gpuzoo train RECIPE [OPTIONS]\n\nrecipes:", *list_recipes())
        print("gpuzoo train RECIPE --help shows every option and its default.")
        return 0 if words else 2
    return _train(load_recipe(words[0]), words[1:], f"gpuzoo train {words[0]}")


def _train(recipe: Recipe, words: list[str], program: str) -> int:
    default = TrainCommand(recipe=recipe, options=Options())
    asked = parse(TrainCommand, words, program, default)
    from gpuzoo.training.train import train

    summary = train(
        _changed(recipe, asked.recipe, words),
        options=asked.options,
        out=asked.out,
        fast_dev_run=asked.fast_dev_run,
        quiet=asked.quiet,
    )
    last_line(summary, asked.json)
    return 130 if summary["state"] == "stopped" else 0


def _changed(recipe: Recipe, asked: Recipe, words: list[str]) -> Recipe:
    """What was named on the command line goes through override(), which knows what
    naming a field means, even if it was given its default value."""
    named = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(Recipe)
        if any(_names(word, field.name) for word in words)
    }
    return recipe.override(**named)


def _names(word: str, field: str) -> bool:
    return word.partition("=")[0].replace("_", "-") == "--" + field.replace("_", "-")


def _bench(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print("usage: gpuzoo bench RECIPE [OPTIONS]\n\nrecipes:", *list_recipes())
        print("gpuzoo bench RECIPE --help shows every option and its default.")
        return 0 if words else 2
    recipe, rest = load_recipe(words[0]), words[1:]

    from gpuzoo.bench.bench import Settings

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class BenchCommand:
        """Time a recipe in every mode that this machine has."""

        recipe: tyro.conf.OmitArgPrefixes[Recipe]
        settings: tyro.conf.OmitArgPrefixes[Settings]
        quiet: Flag = False
        """Print nothing but the JSON line."""
        json: Flag = False
        """Print the last line, one JSON object, on a terminal too; elsewhere it always
        is."""
        debug: Flag = False
        """Show the traceback of an error."""

    default = BenchCommand(recipe=recipe, settings=Settings())
    asked = parse(BenchCommand, rest, f"gpuzoo bench {words[0]}", default)
    return runs.bench(
        _changed(recipe, asked.recipe, rest), asked.settings, asked.quiet, asked.json
    )


def _guard(action, debug: bool) -> None:
    """Run an action; print a user's error as one line and exit with its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w"))
    try:
        code = action()
    except GpuzooError as error:
        if debug:
            raise
        line = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            print(f"gpuzoo: error: {line}", file=sys.stderr, flush=True)
        code = error.exit_code
    except OSError as error:
        if debug:
            raise
        # Mostly stdout; the interpreter would try, and fail, once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0 if isinstance(error, BrokenPipeError) else 2
        if code:
            print(f"gpuzoo: error: {error}; {remedy_of(error)}", file=sys.stderr)
    except Exception as error:
        line = failures.out_of_memory(error)
        if debug or not line:
            raise
        print(f"gpuzoo: error: {line}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        if debug:
            raise
        with contextlib.suppress(OSError):
            print("gpuzoo: interrupted", file=sys.stderr, flush=True)
            sys.stdout.flush()
        # At once: libraries cut off in their import may crash in the interpreter's end.
        os._exit(130)
    sys.exit(code)
