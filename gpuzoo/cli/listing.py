"""`gpuzoo list` and `gpuzoo info`: what is in the catalogue."""

import collections
import dataclasses
import fnmatch
import math
import re
import sys

from gpuzoo.catalogue.recipes import figures_of, list_recipes, load_recipe, rating_of
from gpuzoo.catalogue.registry import list_models, model_info
from gpuzoo.cli.parsing import Common, Output, Word
from gpuzoo.cli.tables import add_row, show, table, width
from gpuzoo.errors import GpuzooError

_WIDE = 160  # columns needed to show a model's summary
_REST = ("data", "training", "on")  # keys of a recipe's results that are not metrics


@dataclasses.dataclass(frozen=True)
class List:
    """List models and recipes with their test results."""

    pattern: Word = "*"
    """Shell-style pattern for names of models and of recipes (or their models): "res*";
    "keras/*": the networks of keras.applications."""
    task: str | None = None
    """Only list models for this task, and their recipes."""
    output: Common = Output()

    def __call__(self) -> int:
        models = [model_info(n) for n in list_models(self.pattern, task=self.task)]
        known = {model.name for model in models}
        trained = {name: load_recipe(name).model for name in list_recipes()}
        everything = {name: figures_of(name) for name in trained}
        figures = {
            name: everything[name]
            for name, model in trained.items()
            if model in known
            or fnmatch.fnmatch(name, self.pattern)
            and self.task in (None, model_info(model).task)
        }
        if not models and not figures:
            task = f" with task {self.task!r}" if self.task else ""
            raise GpuzooError(
                f"no model and no recipe matches {self.pattern!r}{task}; `gpuzoo list` "
                'shows all; use wildcards for a part of a name: "*net*"'
            )
        best = {name: _best(name, trained) for name in known}
        if not self.output.quiet:
            if models:
                show(_models(models, best, everything), "")
            if figures:
                show(_recipes(figures), "", *_footnotes(figures))
        rows = [
            {"name": m.name, "task": m.task, "parameters": m.parameters,
             "recipe": best[m.name]}
            for m in models
        ]  # fmt: skip
        self.output.last_line(
            {"models": rows, "recipes": list(figures), "figures": figures}
        )
        return 0


@dataclasses.dataclass(frozen=True)
class Info:
    """Show a model: description, options, reference, the recipes that train it, and
    Keras's summary of its layers."""

    name: Word
    """Name of the model (gpuzoo list), or path.py:function of your own."""
    output: Common = Output()

    def __call__(self) -> int:
        found = model_info(self.name)
        recipes = [n for n in list_recipes() if load_recipe(n).model == found.name]
        say = (lambda text: None) if self.output.quiet else show
        # Docstrings have lines of up to 84 characters: join them on narrow terminals.
        narrow = width() < 88
        doc = re.sub(r"(?<=\S)\n(?=[\w`(])", " ", found.doc) if narrow else found.doc
        say(f"{found.name} ({found.task})\n\n{doc}\n\noptions:")
        for name, declared in found.options.items():
            say(f"  {name}: {declared}")
        say(f"\nreference: {found.reference}")
        for name in recipes:
            results = figures_of(name)
            reached = [f"{k} {v}" for k, v in results.items() if k not in _REST]
            reached += [f"{key} {results[key]}" for key in _REST if key in results]
            say(f"gpuzoo train {name}: {', '.join(reached) or 'not measured yet'}")
        sys.stdout.flush()  # starting a backend takes seconds
        count = _print_summary(found.name, say)
        card = {**dataclasses.asdict(found), "parameters": count, "recipes": recipes}
        self.output.last_line(card)
        return 0


def _print_summary(name: str, say) -> int | None:
    """Build a model with its default options, print Keras's summary of it and return
    the number of parameters."""
    from gpuzoo.catalogue import keras_applications
    from gpuzoo.catalogue.registry import build
    from gpuzoo.runtime.configure import configure

    configure(device="cpu", quiet=True)
    try:
        model = build(name)
    except Exception as error:  # a user's own function may raise anything
        if name == keras_applications.HUB:
            say(f"\nno summary: {error}")
            return None
        raise GpuzooError(f"model {name!r} cannot be built: {error}") from error
    for network in _networks(model):
        say("")
        network.summary(line_length=min(width(), 120), expand_nested=True, print_fn=say)
    count = model.count_params()
    fixed = count - sum(math.prod(weight.shape) for weight in model.trainable_weights)
    say(f"parameters: {count:,}" + f", {fixed:,} of them not trainable" * (fixed > 0))
    return count


def _networks(model) -> list:
    """Return the model, or its parts if it only holds other models, as a GAN does."""
    import keras

    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if inner and not isinstance(model, keras.Function | keras.Sequential):
        return [network for one in inner for network in _networks(one)]
    return [model]


def _best(model: str, trained: dict[str, str]) -> str | None:
    """The recipe with the best result of a model."""
    rated = {name: rating_of(name) for name, its in trained.items() if its == model}
    rated = {name: rating for name, rating in rated.items() if rating is not None}
    return max(rated, key=rated.get, default=None)


def _models(models: list, best: dict[str, str | None], figures: dict):
    wide = ("summary",) if width() >= _WIDE else ()
    heads = ("model", "task", "parameters", "time", "best result (recipe)", *wide)
    made = table(*heads, right=("parameters", "time"), whole=heads[:4])
    for model in models:
        count = "-" if model.parameters is None else f"{model.parameters:,}"
        results, result = figures.get(best[model.name], {}), "-"
        if results:
            metric, figure = next(iter(results.items()))
            result = f"{figure.partition(' (')[0]} {metric.removeprefix('test ')}"
            result += f" ({best[model.name]})"
        cells = (model.name, model.task, count, results.get("training", "-"), result)
        add_row(made, *cells, *([model.summary] if wide else []))
    return made


def _recipes(figures: dict[str, dict[str, str]]):
    """Return a table with one line per recipe and metric."""
    made = table("recipe", "model", "time", "metric", "test result", right=("time",),
                 whole=("recipe", "time", "metric"))  # fmt: skip
    for name, results in figures.items():
        first = (name, load_recipe(name).model, results.get("training", "-"))
        metrics = {k: v for k, v in results.items() if k not in _REST}
        for metric, figure in (metrics or {"": "not measured yet"}).items():
            data = f" on {results['data']}" if "data" in results and first[0] else ""
            add_row(made, *first, metric.removeprefix("test "), figure + data)
            first = ("", "", "")
    return made


def _footnotes(figures: dict[str, dict[str, str]]) -> list[str]:
    machines = collections.defaultdict(list)
    for name, results in figures.items():
        if "on" in results:
            machines[results["on"].rpartition(", ")[0]].append(name)
    notes = []
    for machine in sorted(machines, key=lambda one: len(machines[one])):
        names = ", ".join(machines[machine])
        last = len(notes) == len(machines) - 1
        whose = f" ({'all others' if last else names})" if len(machines) > 1 else ""
        notes.append(f"measured{whose}: {machine}")
    return [
        *notes,
        "time: seconds of training; results: mean ± standard deviation over seeds",
        "parameters: with the default options of a model; a recipe may set others",
    ]
