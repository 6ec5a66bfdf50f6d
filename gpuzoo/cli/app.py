"""The command line: `gpuzoo VERB ...`, sub-commands by tyro.

The last line of stdout is one JSON object, but on a terminal only with --json.
Exit codes: 0 done, 1 a check failed, 2 wrong use or environment, 130 interrupted.
"""

import contextlib
import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from gpuzoo.cli.parsing import last_line, parse, printable
from gpuzoo.errors import ExitCode, GpuzooError, nearest, remedy_of
from gpuzoo.runtime import bootstrap

if TYPE_CHECKING:
    from gpuzoo.catalogue.recipe import Recipe

# Verb -> the module of its class (new-key: NewKey) in this folder, its `--help` line.
# Modules are imported when their verb is used: `gpuzoo --help` needs none of them.
_VERBS = {
    "list": ("listing", "List models and recipes with their test results."),
    "info": ("listing", "Show a model: options, reference, layers."),
    "train": ("runs", "Train a recipe."),
    "resume": ("runs", "Continue a run that was interrupted or killed."),
    "launch": ("runs", "Train in several processes of this machine."),
    "sweep": ("many", "Train a recipe with several settings and seeds."),
    "runs": ("many", "List, filter, sort and remove runs."),
    "verify": ("runs", "Re-run a training and compare the weights bit for bit."),
    "audit": ("runs", "Retrain random segments of a run and compare the bits."),
    "report": ("runs", "Write the HTML report of a run again."),
    "compare": ("compare", "Compare runs: settings, metrics, common seeds."),
    "diff": ("runs", "Show where two runs diverge, and why."),
    "evaluate": ("evaluate", "Evaluate a trained run, on its own or on other data."),
    "predict": ("predict", "Predict files with a trained run, or generate images."),
    "export": ("export", "Export a trained run: ONNX, LiteRT, OpenVINO, ..."),
    "compress": ("compress", "Quantize, prune and distill a trained run, and compare."),
    "robustness": ("robustness", "Test a classifier on corrupted, adversarial images."),
    "serve": ("serve", "Serve a trained model over HTTP."),
    "check": ("checking", "Check a model before training: repeatable, compiles, slow."),
    "bench": ("machine", "Measure the training speed in each mode of this machine."),
    "compile": ("compiling", "Compile a recipe for GPUs that are not here."),
    "doctor": ("machine", "Check the installation and this machine."),
    "new-key": ("protect", "Create a key for signing or encryption."),
    "sign": ("protect", "Sign a finished run."),
    "check-signature": ("protect", "Check who signed a run, and that it is unchanged."),
    "encrypt": ("protect", "Encrypt a file or a folder."),
    "decrypt": ("protect", "Decrypt a file of gpuzoo encrypt."),
}  # fmt: skip
_HELP = ("-h", "--help")
_WITH_RECIPE = ("train", "sweep", "bench", "compile")
_ABOUT = """Keras 3 models and training recipes, fast and repeatable to the bit.
- Catalogue: list, info
- Training: train, resume, launch, sweep, runs
- Reproducibility: verify, audit, diff, check
- Reports: report, compare
- After training: evaluate, predict, export, compress, robustness, serve
- This machine: bench, doctor
- Other machines: compile
- Protection: new-key, sign, check-signature, encrypt, decrypt
To start: `gpuzoo train mnist`. Options of a command: `gpuzoo VERB --help`.
(Exit codes: 0 done, 1 a check failed, 2 usage or environment, 130 interrupted.)"""


@dataclasses.dataclass
class _Unused:
    """Placeholder for the verbs that are not used in this call."""


def main(arguments: list[str] | None = None) -> None:
    """The `gpuzoo` command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        bootstrap.start(words)
    _guard(lambda: _run(words), "--debug" in words)


def run_recipe(recipe: "Recipe") -> None:
    """The main function of every file in recipes/."""
    words = sys.argv[1:]
    bootstrap.start(None)
    about = _first_line(sys.modules["__main__"])
    _guard(lambda: _run_script(recipe, words, about), "--debug" in words)


def _run(words: list[str]) -> int:
    verb = words[0] if words else ""
    if verb == "--version":
        from gpuzoo import __version__

        if sys.stdout.isatty():
            print(f"gpuzoo {__version__}")
        return last_line({"version": __version__})
    if words and verb not in (*_VERBS, *_HELP) and not verb.startswith("--tyro-"):
        raise GpuzooError(f"no command named {verb!r}; {nearest(verb, _VERBS)}")
    if words in ([], *([verb] for verb in _WITH_RECIPE)):
        with contextlib.suppress(SystemExit):
            _parse([*words, "--help"])
        return ExitCode.MISUSE
    _check_no_passphrase(words)
    words, launched = _split_launched(words)
    command, recipe = _parse(words)
    if launched is not None:
        command = dataclasses.replace(command, words=tuple(launched))
    if recipe:
        command = _overridden(command, recipe, words)
    return command()


def _split_launched(words: list[str]) -> tuple[list[str], list[str] | None]:
    """Return the words of launch itself, and those of the training that it starts."""
    if words[:1] != ["launch"] or set(words) & {*_HELP}:
        return words, None
    places = [i for i, word in enumerate(words) if word in ("train", "resume")]
    place = places[0] if places else len(words)
    return words[:place], words[place:]


def _check_no_passphrase(words: list[str]) -> None:
    """Refuse a passphrase on the command line, without printing it."""
    for word in words:
        name = word.partition("=")[0]
        if name in ("--passphrase", "--password", "--passwd", "--pass"):
            raise GpuzooError(
                f"unknown option {name}: other users can read a command line; use "
                "--passphrase-file FILE (mode 0600), or neither and type it when asked"
            )


def _run_script(recipe: "Recipe", words: list[str], about: str) -> int:
    from gpuzoo.cli.runs import Train

    default = Train(recipe=recipe)
    command = parse(
        Train, words, prog=f"python {sys.argv[0]}", default=default, description=about
    )
    return _overridden(command, recipe, words)()


def _parse(words: list[str]):
    """Return the command that the words name and its recipe, or None."""
    verb, name = [*words, "", ""][:2]
    recipe = None
    if verb in _WITH_RECIPE and name not in _HELP:
        from gpuzoo.catalogue.recipes import load_recipe

        if name.startswith("-"):
            raise GpuzooError(
                f"the recipe comes first: gpuzoo {verb} RECIPE {name} ..., for example "
                f"gpuzoo {verb} mnist {name} ..."
            )
        recipe = load_recipe(name)
    # Shell completion (--tyro-print-completion bash) needs all verbs.
    wanted = _VERBS if verb.startswith("--tyro-") else (verb,)
    arms = [
        Annotated[
            Any,
            tyro.conf.subcommand(
                each,
                constructor=_type_of(each, recipe) if each in wanted else _Unused,
                # The help of the verb itself shows the whole docstring.
                description=line if each != verb or each in _WITH_RECIPE else None,
            ),
        ]
        for each, (_, line) in _VERBS.items()
    ]
    union = Union[tuple(arms)]  # type: ignore[valid-type]  # noqa: UP007 - made at run time
    return parse(union, words, prog="gpuzoo", description=_ABOUT), recipe


def _type_of(verb: str, recipe: "Recipe | None"):
    """Return the dataclass of a verb; for verbs that take a recipe a union with one
    sub-command per recipe, whose values are the defaults of the options."""
    module = importlib.import_module(f"gpuzoo.cli.{_VERBS[verb][0]}")
    command = getattr(module, verb.title().replace("-", ""))
    if verb not in _WITH_RECIPE:
        return command
    from gpuzoo.catalogue import recipes

    names = [recipe.name] if recipe else recipes.list_recipes()
    arms = [
        Annotated[
            command,
            tyro.conf.subcommand(
                each,
                default=command(recipe=recipes.load_recipe(each)),
                description=None
                if recipe and verb in ("bench", "compile")
                else _first_line(recipes.module_of(each)),
            ),
        ]
        for each in names
    ]
    # Union[X] of a single type would collapse to X.
    return Union[(*arms, Annotated[None, tyro.conf.Suppress])]  # noqa: UP007


def _first_line(module) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def _overridden(command, recipe: "Recipe", words: list[str]):
    """Pass the fields set on the command line through override(), which applies the
    side effects of setting a field, even to its default value."""
    changes = {
        field.name: getattr(command.recipe, field.name)
        for field in dataclasses.fields(recipe)
        if any(_names(word, field.name) for word in words)
    }
    run = getattr(command, "init", None)
    if run is not None and not {"model", "model_options"} & changes.keys():
        from gpuzoo.training import initial

        recipe = initial.with_model_of(run, recipe)
    return dataclasses.replace(command, recipe=recipe.override(**changes))


def _names(word: str, field: str) -> bool:
    return word.partition("=")[0].replace("_", "-") == "--" + field.replace("_", "-")


def _guard(action, debug: bool) -> None:
    """Run an action; print a user's error as one line and exit with its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))
    try:
        code = action()
    except GpuzooError as error:
        if debug:
            raise
        line = printable(" ".join(str(error).split()))
        with contextlib.suppress(OSError):
            print(f"gpuzoo: error: {line}", file=sys.stderr, flush=True)
        code = error.exit_code
    except OSError as error:
        if debug:
            raise
        # Mostly stdout; the interpreter would try to flush it again on exit, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        broken = isinstance(error, BrokenPipeError)
        code = ExitCode.DONE if broken else ExitCode.MISUSE
        if code:
            print(f"gpuzoo: error: {error}; {remedy_of(error)}", file=sys.stderr)
    except Exception as error:
        from gpuzoo.training import failures

        line = failures.out_of_memory(error)
        if debug or not line:
            raise
        print(f"gpuzoo: error: {line}", file=sys.stderr, flush=True)
        code = ExitCode.MISUSE
    except KeyboardInterrupt:
        if debug:
            raise
        with contextlib.suppress(OSError):
            print("gpuzoo: interrupted", file=sys.stderr, flush=True)
            sys.stdout.flush()
        # At once: libraries interrupted while being imported may crash at shutdown.
        os._exit(ExitCode.INTERRUPTED)
    sys.exit(code)
