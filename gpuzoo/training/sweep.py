"""Several trainings of one recipe: with several seeds, over a grid of settings."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.files import (
    LARGEST_JSON,
    expand,
    is_temporary,
    parse_json,
    read_inside,
    write_atomically,
)
from gpuzoo.home import redact
from gpuzoo.report.compare import statistics
from gpuzoo.report.progress import Screen
from gpuzoo.runs.listing import SWEEP
from gpuzoo.runs.record import change_texts, read_run, recipe_of
from gpuzoo.runtime.options import Options
from gpuzoo.runtime.startup import quiet_start
from gpuzoo.training import initial, watching
from gpuzoo.training.interrupts import Interrupts
from gpuzoo.training.resume import resume
from gpuzoo.training.train import resolve, train
from gpuzoo.training.watching import OnEvent

# Settings that name files or code.
_SOURCES = {
    "data", "data_dir", "fallback_data", "image_size", "audio_seconds", "frames",
    "task", "model", "model_options", "teacher", "distill_alpha",
}  # fmt: skip
_MOST = 10_000  # trainings; a larger grid is a mistake


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training of a sweep; `name` is that of its run folder."""

    name: str
    settings: dict
    seed: int
    recipe: Recipe


def sweep(
    recipe: Recipe | str,
    grid: Mapping[str, Iterable] | None = None,
    *,
    init: str | pathlib.Path | None = None,
    seeds: int | Iterable[int] = 1,
    out: str | None = None,
    options: Options | None = None,
    on_event: OnEvent | None = None,
    track: str | Iterable[str] = (),
    quiet: bool = False,
    **changes,
) -> dict:
    """Train a recipe with every combination of settings and seeds.

    Each training is an ordinary run folder. A sweep that was interrupted or killed goes
    on if the same call is made again with the same `out`: finished trainings are kept,
    and the one that was interrupted is resumed to the same bits.

    Args:
        recipe: a Recipe or the name of one.
        grid: field of the recipe -> values to try, e.g.
            `{"learning_rate": [0.001, 0.003]}`; None: the recipe's own.
        seeds: the seeds to train each combination with; of a number, so many from the
            recipe's seed on.
        init: a run folder whose weights all trainings start from.
        out: the folder of the sweep; default: the next free runs/<recipe>-sweep-<n>.
        options, on_event, track, quiet, changes: as for `gpuzoo.train`.

    Returns:
        `state` (finished, stopped), `run_dir`, `trials` (each with `run`, `settings`,
        `seed`, `state`, `error`, `metrics` and `weights_sha256`), `groups` (for each
        combination its `settings`, the `seeds` that finished, and for each metric
        `mean`, sample standard deviation `sd`, and the limits `low` and `high` of the
        95 % confidence interval of the mean by Student's t; None for a single seed),
        `best` (the number in `groups` of the best mean on the validation examples, of
        the recipe's `monitor` or the main metric of its task; None without validation
        examples or if there is nothing to choose).

    Raises:
        GpuzooError: a setting is not valid, `out` holds something else, or all
            trainings failed.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
        if init is not None and not {"model", "model_options"} & changes.keys():
            recipe = initial.with_model_of(init, recipe)
    recipe, options = resolve(recipe, options, changes)
    if options.distributed:
        raise GpuzooError(
            "a sweep, or --seeds, trains one run after another in one process: leave "
            "distributed out, or train one seed at a time"
        )
    trials = plan(recipe, grid or {}, seeds)
    how = {"on_event": on_event, "track": watching.check(on_event, track)}
    wanted = {
        "recipe": change_texts(redact, recipe.as_record()),
        "options": change_texts(redact, dataclasses.asdict(options)),
        "init": init and redact(str(init)),
        "trials": [
            {"run": t.name, "seed": t.seed, **change_texts(redact, t.settings)}
            for t in trials
        ],
    }
    folder = _folder(out, recipe.name, wanted)
    rows, stopped, seen = [], False, {}
    screen = Screen(quiet)
    for number, trial in enumerate(trials, start=1):
        screen.say(f"Training {number} of {len(trials)}: {trial.name}", "bold")
        row = _train(trial, folder / trial.name, init, options, quiet, how)
        rows.append(row)
        if row["state"] != "failed":
            _check_alike(folder / trial.name, trial, seen)
        late = Interrupts.late and len(rows) < len(trials)
        if stopped := row["state"] == "stopped" or late:
            break
    if len(rows) == len(trials) and all(row["state"] == "failed" for row in rows):
        raise GpuzooError(f"all trainings of {folder} failed: {rows[0]['error']}")
    groups, count = summarise(rows), len({trial.seed for trial in trials})
    return {
        "state": "stopped" if stopped else "finished",
        "run_dir": redact(str(folder)),
        "trials": rows,
        "groups": groups,
        "best": None if stopped else best_of(recipe, groups, count),
    }


def plan(recipe: Recipe, grid: Mapping[str, Iterable], seeds) -> list[Trial]:
    """Return the trainings of a sweep; every setting is checked."""
    if isinstance(seeds, int):
        if seeds < 1:
            raise GpuzooError(f"seeds must be at least 1: {seeds}")
        seeds = range(recipe.seed, recipe.seed + seeds)
    axes = {name: list(values) for name, values in grid.items()}
    seeds = list(seeds)
    for name, values in {**axes, "seeds": seeds}.items():
        fields = [
            one if name == "seeds" else recipe.override(**{name: one}).as_record()[name]
            for one in values
        ]
        if not values or len(set(map(repr, fields))) < len(values):
            raise GpuzooError(f"{name}: needs at least one value, and none twice")
    if "seed" in axes:
        raise GpuzooError("the grid has no seed; pass seeds=N (--seeds N)")
    if (count := math.prod(map(len, [*axes.values(), seeds]))) > _MOST:
        raise GpuzooError(f"the grid has {count:,} trainings; at most {_MOST:,}")
    trials = []
    for values in itertools.product(*axes.values(), seeds):
        *values, seed = values
        settings = dict(zip(axes, values, strict=True))
        named = {
            k: pathlib.PurePath(v).name if isinstance(v, str) else v  # not the home
            for k, v in {**settings, "seed": seed}.items()
        }
        text = "-".join(f"{name}={value}" for name, value in named.items())
        text = re.sub(r"[^A-Za-z0-9_.=]+", "-", text)[:80]
        changed = recipe.override(**settings, seed=seed)
        settings = {name: changed.as_record()[name] for name in settings}
        trials.append(Trial(f"{len(trials) + 1:03d}-{text}", settings, seed, changed))
    return trials


def summarise(rows: list[dict]) -> list[dict]:
    """Return the statistics of the finished trainings of each combination."""
    groups = []
    for settings, members in itertools.groupby(rows, lambda row: row["settings"]):
        done = [row for row in members if row["state"] == "finished"]
        names = dict.fromkeys(name for row in done for name in row["metrics"])
        figures = {
            name: statistics([row["metrics"][name] for row in done])
            for name in names
            if all(name in row["metrics"] for row in done)
        }
        seeds = [row["seed"] for row in done]
        groups.append({"settings": settings, "seeds": seeds, "metrics": figures})
    return groups


def best_of(recipe: Recipe, groups: list[dict], seeds: int) -> int | None:
    """Return the number of the group with the best mean on the validation examples,
    among those in which the trainings of all `seeds` finished."""
    metrics = {name for group in groups for name in group["metrics"]}
    if not any(name.startswith("val_") for name in metrics):
        return None
    with quiet_start():  # all trainings may have finished before
        from gpuzoo import tasks  # imports Keras
        from gpuzoo.tasks import scores
        from gpuzoo.tasks.base import ACCURACY

    task = recipe.task
    if task == "table":  # until the data of a training say which
        task = "regress_table" if "val_r2" in metrics else "classify_table"
    kind = tasks.load(task)
    # The accuracy of generated digits is a metric of some instances only.
    measured = (*scores.CLASSIFIER, *scores.LABELS, *kind.measured)
    every = (*measured, ACCURACY, *kind.metrics, kind.headline)
    known = {one.name: one for one in every}
    metric = known.get(recipe.monitor.removeprefix("val_"), kind.headline)
    means = {
        number: group["metrics"][name]["mean"]
        for number, group in enumerate(groups)
        if (name := f"val_{metric.name}") in group["metrics"]
        and len(group["seeds"]) == seeds  # not the luckiest seed of one that diverges
    }
    if len(means) < 2:
        return None
    return (max if metric.greater_is_better else min)(means, key=lambda n: means[n])


def _folder(out: str | None, name: str, wanted: dict) -> pathlib.Path:
    """Return the folder of a sweep, created with its file, or of the same sweep that
    was begun before."""
    names = (f"{name}-sweep-{number:03d}" for number in itertools.count(1))
    free = (
        path for path in map(pathlib.Path("runs").joinpath, names) if not path.exists()
    )
    path = expand(out) if out else next(free)
    try:
        path.mkdir(parents=True, exist_ok=bool(out))
        if not (path / SWEEP).exists():
            if not all(is_temporary(one.name) for one in path.iterdir()):
                raise GpuzooError(
                    f"--out {path} exists and holds no sweep; name another folder"
                )
            text = json.dumps({"schema": 1, **wanted}, indent=1) + "\n"
            write_atomically(path / SWEEP, text.encode(), replace=False)
        found = parse_json(read_inside(path, SWEEP, LARGEST_JSON).decode())
    except GpuzooError:
        raise
    except OSError as error:
        raise GpuzooError(
            f"output folder {path} cannot be written: {error.strerror or error}; name "
            "another with --out"
        ) from None
    except ValueError as error:
        raise GpuzooError(f"{path / SWEEP} is damaged: {error}") from None
    for part, value in json.loads(json.dumps(wanted)).items():
        old = found.get(part) if isinstance(found, dict) else None
        if old != value:
            both = isinstance(old, dict) and isinstance(value, dict)
            names = [k for k in value if both and old.get(k) != value[k]]
            raise GpuzooError(
                f"{path} holds a sweep with other settings "
                f"({', '.join(names) or part}); repeat its command to continue it, "
                "or name another with --out"
            )
    return path


def _train(
    trial: Trial, path: pathlib.Path, init, options, quiet: bool, how: dict
) -> dict:
    """Train, resume or read one run; return its row. `how`: who watches it."""
    row = {"run": path.name, "settings": trial.settings, "seed": trial.seed}
    error = None
    try:
        if not path.exists():
            train(
                trial.recipe, init=init, options=options, out=str(path), quiet=quiet,
                **how,
            )  # fmt: skip
        elif (record := _recorded(path, trial))["state"] != "diverged":
            resume(path, quiet=quiet or record["state"] == "finished", **how)
    except Diverged as problem:
        error = str(problem)
    except GpuzooError as problem:
        return {**row, "state": "failed", "error": str(problem), "metrics": {},
                "weights_sha256": None}  # fmt: skip
    record = read_run(path)
    return {
        **row,
        "state": record["state"],
        "error": error or record["error"],
        "metrics": record["metrics"],
        "weights_sha256": record.get("weights_sha256"),
    }


def _check_alike(path: pathlib.Path, trial: Trial, seen: dict) -> None:
    """Raise GpuzooError if a run had other data, code or weights to start from than an
    earlier one with the same settings for them, kept in `seen`."""
    record = read_run(path)
    if record["data"] is None:
        return
    facts = {
        "data": record["data"]["fingerprint"],
        "init": (record.get("init") or {}).get("weights_sha256"),
        "teacher": record["recipe"].get("teacher_sha256"),
        **(record["code"] or {}),
        **record["inputs"],
    }
    key = repr({k: v for k, v in trial.settings.items() if k in _SOURCES})
    first, theirs = seen.setdefault(key, (path.name, facts))
    if changed := [n for n in facts if n in theirs and facts[n] != theirs[n]]:
        raise GpuzooError(
            f"{path} and {first} were trained with different {', '.join(changed[:3])}, "
            "which changed in between; restore it, or name another folder with --out"
        )


def _recorded(path: pathlib.Path, trial: Trial) -> dict:
    """Return the record of a run that was begun before.

    Raises:
        GpuzooError: it is of another training.
    """
    record = read_run(path)
    found = recipe_of(record).as_record()
    for name, value in {**trial.settings, "seed": trial.seed}.items():
        if found[name] != value:
            raise GpuzooError(
                f"{path} is another training: its {name} is {found[name]!r}, not "
                f"{value!r}"
            )
    return record
