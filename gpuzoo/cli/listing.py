"""What the catalogue tells: the tables of `gpuzoo list`, the card of `gpuzoo info`."""

import collections
import dataclasses
import fnmatch
import math
import shutil
import sys
import textwrap

from gpuzoo.catalogue.recipes import figures_of, list_recipes, load_recipe
from gpuzoo.catalogue.registry import list_models, model_info
from gpuzoo.cli.parsing import Flag, Word, last_line, parse
from gpuzoo.errors import GpuzooError

_WIDE = 160  # columns from which on there is room for what a model is
_GREATER = ("test accuracy", "test map50")  # figures that are better when greater
_NUMBERS = ("parameters", "training")  # columns
_REST = ("training", "on")  # of a recipe's figures, what is no figure of the model


@dataclasses.dataclass(frozen=True)
class ListCommand:
    """List the models with what they reach, and the recipes that train them."""

    pattern: Word = "*"
    """Shell-style pattern for the names of models and recipes, e.g. "res*"; a recipe is
    also listed with its model. "keras/*": the networks of keras.applications."""
    task: str | None = None
    """Only models for this task, and their recipes."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""


@dataclasses.dataclass(frozen=True)
class InfoCommand:
    """Show what is known of a model, and how it is built."""

    name: Word
    """Name of the model (gpuzoo list), or path.py:function of your own."""
    layers: Flag = False
    """In place of the diagram, Keras's table of all layers and what feeds them."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


def list_all(words: list[str]) -> int:
    """`gpuzoo list`."""
    asked = parse(ListCommand, words, "gpuzoo list")
    models = [model_info(n) for n in list_models(asked.pattern, task=asked.task)]
    known = {model.name for model in models}
    trained = {name: load_recipe(name).model for name in list_recipes()}
    everything = {name: figures_of(name) for name in trained}
    figures = {
        name: everything[name]
        for name, model in trained.items()
        if model in known
        or fnmatch.fnmatch(name, asked.pattern)
        and asked.task in (None, model_info(model).task)
    }
    if not models and not figures:
        task = f" with task {asked.task!r}" if asked.task else ""
        raise GpuzooError(
            f"no model and no recipe matches {asked.pattern!r}{task}; `gpuzoo list` "
            'shows all; a part of a name needs stars: "*net*"'
        )
    best = {name: _best(name, trained, everything) for name in known}
    if models:
        _print_models(models, best, everything)
    if figures:
        _print_recipes(figures)
    rows = [
        {"name": m.name, "task": m.task, "parameters": m.parameters,
         "recipe": best[m.name]}
        for m in models
    ]  # fmt: skip
    told = {"models": rows, "recipes": list(figures), "figures": figures}
    return last_line(told, asked.json)


def info(words: list[str]) -> int:
    """`gpuzoo info`."""
    asked = parse(InfoCommand, words, "gpuzoo info")
    found = model_info(asked.name)
    print(f"{found.name} ({found.task})\n\n{found.doc}\n\noptions:")
    for name, declared in found.options.items():
        print(f"  {name}: {declared}")
    print(f"\nreference: {found.reference}")
    recipes = [name for name in list_recipes() if load_recipe(name).model == found.name]
    for name in recipes:
        print(f"gpuzoo train {name}: {_told(figures_of(name), *_REST)}")
    sys.stdout.flush()  # what follows takes the time that a backend takes to start
    count = _print_built(found.name, asked.layers)
    card = {**dataclasses.asdict(found), "parameters": count, "recipes": recipes}
    return last_line(card, asked.json)


def _print_built(name: str, layers: bool) -> int | None:
    """How a model is built with its default options; returns its parameters."""
    from gpuzoo.catalogue import keras_applications
    from gpuzoo.catalogue.registry import build
    from gpuzoo.cli import diagram
    from gpuzoo.runtime.configure import configure

    configure(device="cpu", quiet=True)
    import keras

    try:
        model = build(name)
    except Exception as error:  # whatever a user's own function raises
        if name == keras_applications.HUB:
            print(f"\nnot drawn: {error}")
            return None
        raise GpuzooError(f"model {name!r} cannot be built: {error}") from error
    networks = list(diagram.networks_of(model))
    whole = isinstance(model, keras.Function | keras.Sequential)
    for network in networks[:1] if layers and whole else networks:
        print()
        if layers:
            network.summary(expand_nested=True)
        else:
            print(f"{network.name}:\n{diagram.draw(network)}")
    if not networks:
        print("\nno functional model: there is nothing to draw")
    count = model.count_params()
    fixed = count - sum(math.prod(weight.shape) for weight in model.trainable_weights)
    print(f"\nparameters: {count:,}" + f", {fixed:,} of them not trained" * (fixed > 0))
    return count


def _told(figures: dict[str, str], *more: str) -> str:
    """What was measured, in words; `more` of what is told with it."""
    words = [f"{k} {v}" for k, v in figures.items() if k not in ("data", *_REST)]
    if "data" in figures and words:
        words[-1] += f" on {figures['data']}"
    words += [f"{name} {figures[name]}" for name in more if name in figures]
    return ", ".join(words) or "not measured yet"


def _best(model: str, trained: dict[str, str], figures: dict) -> str | None:
    """The recipe with which a model reaches most: the greatest accuracy, or the least
    of what should be small."""
    rated = {}
    for recipe, told in figures.items():
        if told and trained[recipe] == model:
            name, figure = next(iter(told.items()))
            value = float(figure.split()[0])
            rated[recipe] = value if name in _GREATER else -value
    return max(rated, key=rated.get, default=None)


def _print_models(models: list, best: dict[str, str | None], figures: dict) -> None:
    wide = shutil.get_terminal_size().columns >= _WIDE
    rows = []
    for model in models:
        count = "-" if model.parameters is None else f"{model.parameters:,}"
        told, reached = figures.get(best[model.name], {}), "-"
        if told:
            name, figure = next(iter(told.items()))
            reached = f"{figure.partition(' (')[0]} {name.removeprefix('test ')}"
            reached += f", {best[model.name]}"
        row = (model.name, model.task, count, told.get("training", "-"), reached)
        rows.append((*row, model.summary) if wide else row)
    heads = ("model", "task", "parameters", "training", "reaches, with recipe")
    _print_table((*heads, "what it is") if wide else heads, rows)


def _print_recipes(figures: dict[str, dict[str, str]]) -> None:
    rows = [
        (name, load_recipe(name).model, told.get("training", "-"), _told(told))
        for name, told in figures.items()
    ]
    print()
    _print_table(("recipe", "model", "training", "reaches"), rows)
    machines = collections.defaultdict(list)
    for name, told in figures.items():
        if "on" in told:
            machines[told["on"].rpartition(", ")[0]].append(name)
    print()
    ranked = sorted(machines, key=lambda machine: len(machines[machine]))
    for machine in ranked:
        whose = "all others" if machine == ranked[-1] else ", ".join(machines[machine])
        told = f"measured{f' ({whose})' * (len(ranked) > 1)}: {machine}"
        width = max(40, shutil.get_terminal_size().columns)
        print(textwrap.fill(told, width, subsequent_indent="  "))
    print("parameters: with the default options of a model; a recipe may set others")


def _print_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """In columns, numbers at the right; the last one has what room the terminal
    leaves, and goes on below where that is not enough."""
    sizes = [max(map(len, column)) for column in zip(heads, *rows, strict=True)][:-1]
    used = sum(sizes) + 2 * len(sizes)
    room = max(shutil.get_terminal_size().columns - used, 20)
    for row in (heads, *rows):
        cells = [
            cell.rjust(size) if head in _NUMBERS else cell.ljust(size)
            for head, cell, size in zip(heads, row, sizes, strict=False)
        ]
        # A number stays beside its deviation and its unit.
        text = row[-1].replace(" ± ", "\xa0±\xa0").replace(" %", "\xa0%")
        first, *more = textwrap.wrap(text, room)
        for line in ("  ".join([*cells, first]), *(" " * used + text for text in more)):
            print(line.replace("\xa0", " ").rstrip())
