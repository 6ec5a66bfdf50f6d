"""`gpuzoo sweep` and `gpuzoo runs`: many runs."""

import ast
import dataclasses
import re
import sys
import typing

import tyro

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.cli.parsing import Common, Flag, Output, Word
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.errors import ExitCode, GpuzooError
from gpuzoo.report import trackers
from gpuzoo.runtime.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train a recipe with several settings and seeds: gpuzoo sweep RECIPE --grid
    learning_rate=0.001,0.003 --seeds 3.

    Each training is an ordinary run folder. If the sweep is interrupted or killed, run
    the same command with the same --out: the interrupted training is resumed.
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
    track: tuple[trackers.Name, ...] = ()
    """Log every training to these trackers; see `gpuzoo train`."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.training.sweep import sweep

        grid = dict(map(parse_axis, self.grid))
        found = sweep(
            self.recipe, grid, seeds=self.seeds, init=self.init, out=self.out,
            options=self.runtime, track=self.track, quiet=self.output.quiet,
        )  # fmt: skip
        if not self.output.quiet:
            print_sweep(found)
        self.output.last_line(found)
        if found["state"] == "stopped":
            self.output.note("Stopped; run the same command with --out to continue.")
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
    heads = [name.replace("_", "\n", 1) for name in names]
    trials = table("run", *axes, "seed", "state", *heads, right=heads, whole=heads)
    for row in rows:
        figures = [_number(row["metrics"].get(name)) for name in names]
        values, number = row["settings"].values(), row["run"].partition("-")[0]
        add_row(trials, f"{number}-...", *values, row["seed"], row["state"], *figures)
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
    if any(len(group["seeds"]) == 2 for group in groups):
        last += "; the interval of two seeds is very wide: train more"
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


# Columns of `gpuzoo runs` if the runs differ in them.
_SETTINGS = ("recipe", "model", "data", "epochs", "seed")


@dataclasses.dataclass(frozen=True)
class Runs:
    """List the runs in a folder: gpuzoo runs [FOLDER] --where "test_accuracy>0.99".

    A run that was killed is listed as killed; gpuzoo resume finishes it.
    """

    folder: Word = "runs"
    """The folder; runs in its sub-folders (sweeps) are listed, too."""
    where: tuple[str, ...] = ()
    """Only runs that meet all of these: FIELD=VALUE, also != < <= > >= (in quotes).
    Fields: state, those of the recipe and the options, test_accuracy and other
    metrics."""
    sort: str = "started"
    """Field to sort by, e.g. test_accuracy."""
    descending: Flag = False
    """The largest first."""
    remove: Flag = False
    """Remove the listed runs, after confirmation; only files that they wrote."""
    yes: Flag = False
    """Remove without confirmation."""
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
        last, failed = {"runs": rows, "unreadable": faults}, False
        if self.remove:
            last["removed"], failed = self._remove(rows)
        self.output.last_line(last)
        return ExitCode.FAILED if failed else ExitCode.DONE

    def _print(self, rows: list[dict]) -> None:
        """Print a line for each run: what differs between them, and the metrics."""
        metrics = [n for row in rows for n in row if n.startswith("test_")]
        asked = re.findall(r"^\s*(\w[\w-]*)", "\n".join(self.where), re.M)
        asked = [name.replace("-", "_") for name in (*asked, self.sort)]
        values = {name: {str(row.get(name, "")) for row in rows} for name in _SETTINGS}
        differ = [name for name in _SETTINGS if len(values[name]) > 1]
        first = ["run", "state", "started", *differ]
        names = list(dict.fromkeys(n for n in (*asked, *metrics) if n not in first))
        heads = [name.replace("_", "\n", 1) for name in names]
        whole = [head for head in (*first, *heads) if head not in ("run", "model")]
        shown = table(*first, *heads, right=heads, whole=whole)
        for row in rows:
            started = row["started"][5:16].replace("T", " ")
            cells = [row["run"], row["state"], started, *map(row.get, differ)]
            add_row(shown, *(_cell(v) for v in (*cells, *map(row.get, names))))
        count = f"{len(rows)} run{'s' * (len(rows) != 1)}"
        alike = [
            f"{name} {next(iter(values[name]))}"
            for name in _SETTINGS
            if rows and name not in (*differ, *names)
        ]
        show(shown, f"{count}: {', '.join(alike)}" if alike else count)

    def _remove(self, rows: list[dict]) -> tuple[list[str], bool]:
        """Remove runs; return those whose folder is gone, and whether one could not be
        removed."""
        from gpuzoo.training.finish import remove_run

        if rows and not self.yes:
            if not sys.stdin.isatty():
                raise GpuzooError("--remove asks first; without a terminal add --yes")
            if input(f"Remove these {len(rows)} runs? [y/N] ").strip().lower() != "y":
                return [], False
        removed, failed = [], False
        for row in rows:
            run = row["run"]
            try:
                left = remove_run(run, row["state"])
            except GpuzooError as error:
                self.output.note(f"not removed: {error}")
                failed = True
                continue
            if left:
                self.output.note(f"{run}: kept {', '.join(left)}, not of the run")
            else:
                removed.append(run)
        return removed, failed


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value)
