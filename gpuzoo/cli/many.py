"""`gpuzoo sweep` and `gpuzoo runs`: many runs."""

import ast
import dataclasses
import sys
import typing

import tyro

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.cli.parsing import Common, Flag, Output, Word
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.errors import ExitCode, GpuzooError
from gpuzoo.runtime.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train a recipe with several settings and seeds: gpuzoo sweep RECIPE --grid
    learning_rate=0.001,0.003 --seeds 3.

    Each training is an ordinary run folder. After an interrupt or a kill the same
    command with the same --out goes on: the training that was interrupted is resumed.
    """

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    grid: tuple[str, ...] = ()
    """Settings of the recipe to try, as NAME=VALUE,VALUE,...; several: every
    combination."""
    seeds: int = 1
    """Number of seeds for each combination, from --seed on."""
    runtime: tyro.conf.OmitArgPrefixes[Options] = Options()
    init: str | None = None
    """Run folder whose weights all trainings start from; see `gpuzoo train`."""
    out: str | None = None
    """Folder of the runs; default: the next free runs/<recipe>-sweep-<number>."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.training.sweep import sweep

        grid = dict(map(parse_axis, self.grid))
        found = sweep(
            self.recipe, grid, seeds=self.seeds, init=self.init, out=self.out,
            options=self.runtime,
            quiet=self.output.quiet,
        )  # fmt: skip
        if not self.output.quiet:
            print_sweep(found)
        self.output.last_line(found)
        if found["state"] == "stopped":
            self.output.note("Stopped; the same command with --out goes on with it.")
            return ExitCode.INTERRUPTED
        failed = any(row["error"] for row in found["trials"])
        return ExitCode.FAILED if failed else ExitCode.DONE


def parse_axis(text: str) -> tuple[str, list]:
    """Parse `learning_rate=0.001,0.003` to ("learning_rate", [0.001, 0.003])."""
    name, equals, values = text.partition("=")
    name = name.replace("-", "_")
    if not equals or not values:
        raise GpuzooError(f"--grid must look like NAME=VALUE,VALUE,...: {text!r}")
    kind = typing.get_type_hints(Recipe).get(name, str)
    if kind is str or typing.get_origin(kind) is typing.Literal:
        return name, values.split(",")
    try:
        found = ast.literal_eval(f"[{values}]")
    except (ValueError, SyntaxError):
        raise GpuzooError(
            f"--grid {name}: expected values of Python separated by commas, got "
            f"{values!r}"
        ) from None
    return name, found


def print_sweep(found: dict) -> None:
    """Print every training, and the statistics of each combination."""
    rows, groups = found["trials"], found["groups"]
    axes = list(rows[0]["settings"])
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    trials = table("run", *axes, "seed", "state", *names, right=names)
    for row in rows:
        figures = [_number(row["metrics"].get(name)) for name in names]
        values = row["settings"].values()
        add_row(trials, row["run"], *values, row["seed"], row["state"], *figures)
    heads = [*axes, "seeds", "metric", "mean", "sd", "95 % interval of the mean"]
    summary = table(*heads, right=["seeds", "mean", "sd"])
    for group in groups:
        count = len(group["seeds"])
        for name, s in group["metrics"].items():
            limits = "" if s["low"] is None else f"{s['low']:.5g} to {s['high']:.5g}"
            figures = (_number(s["mean"]), _number(s["sd"]), limits)
            add_row(summary, *group["settings"].values(), count, name, *figures)
    failed = [f"{row['run']}: {row['error']}" for row in rows if row["error"]]
    last = f"{len(rows)} trainings in {found['run_dir']}/"
    show(trials, "", summary, *failed, *_choice(found), last)


def _choice(found: dict) -> list[str]:
    """Return a line that names the best settings, or why none are chosen."""
    if len(found["groups"]) < 2 or found["state"] == "stopped":
        return []
    if found["best"] is None:
        return [
            "No settings are chosen: that takes validation examples (--validation "
            "0.1); a setting chosen by the test set looks better there than it is."
        ]
    group = found["groups"][found["best"]]
    settings = ", ".join(f"{k}={v}" for k, v in group["settings"].items())
    return [f"Best on the validation examples: {settings}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


# Columns of `gpuzoo runs`, besides the metrics and the fields of the conditions.
_COLUMNS = ("run", "state", "started", "recipe", "model", "data", "seed", "epochs")


@dataclasses.dataclass(frozen=True)
class Runs:
    """List the runs in a folder: gpuzoo runs [FOLDER] --where test_accuracy>0.99."""

    folder: Word = "runs"
    """The folder; runs in its sub-folders (sweeps) are listed, too."""
    where: tuple[str, ...] = ()
    """Only runs that meet all of these: FIELD=VALUE, also != < <= > >=. Fields: state,
    those of the recipe and the options, test_accuracy and other metrics."""
    sort: str = "started"
    """Field to sort by, e.g. test_accuracy."""
    descending: Flag = False
    """The largest first."""
    remove: Flag = False
    """Remove the listed runs, after a question: only files that they wrote."""
    yes: Flag = False
    """Do not ask before removing."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.runs import listing

        found, faults = listing.find(self.folder)
        rows = listing.select(found, self.where)
        rows = listing.ordered(rows, self.sort, self.descending)
        if not self.output.quiet:
            self._print(rows)
        for fault in faults:
            self.output.note(f"Left out: {fault}")
        last = {"runs": rows, "unreadable": faults}
        if self.remove:
            last["removed"] = self._remove([row["run"] for row in rows])
        self.output.last_line(last)
        return ExitCode.DONE

    def _print(self, rows: list[dict]) -> None:
        metrics = [n for row in rows for n in row if n.startswith(("test_", "val_"))]
        asked = [name for name in (self.sort,) if name not in _COLUMNS]
        names = list(dict.fromkeys((*asked, *metrics)))
        shown = table(*_COLUMNS, *names, right=names)
        for row in rows:
            cells = [row.get(c, "") for c in _COLUMNS]
            figures = [row.get(name) for name in names]
            add_row(shown, *cells, *(
                f"{v:.5g}" if isinstance(v, float) else "" if v is None else v
                for v in figures
            ))  # fmt: skip
        show(shown, f"{len(rows)} runs")

    def _remove(self, runs: list[str]) -> list[str]:
        """Remove runs; return those whose folder is gone."""
        from gpuzoo.training.finish import remove_run

        if runs and not self.yes:
            if not sys.stdin.isatty():
                raise GpuzooError("--remove asks first; without a terminal add --yes")
            if input(f"Remove these {len(runs)} runs? [y/N] ").strip().lower() != "y":
                return []
        removed = []
        for run in runs:
            try:
                left = remove_run(run)
            except GpuzooError as error:
                self.output.note(f"not removed: {error}")
                continue
            if left:
                self.output.note(f"{run}: kept {', '.join(left)}, not of the run")
            else:
                removed.append(run)
        return removed
