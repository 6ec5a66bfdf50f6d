"""`gpuzoo compare`: runs side by side, as numbers and as one HTML page."""

import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Sequence

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, read_inside
from gpuzoo.home import redact
from gpuzoo.report import page
from gpuzoo.report.charts import Chart, chart, number
from gpuzoo.runs import evaluation
from gpuzoo.runs.listing import SWEEP
from gpuzoo.runs.record import read_run

LINES = 24  # of a chart at most
# Fields of a recipe that do not change a result, or of which the data's digest tells.
_NO_SETTING = {
    "name", "seed", "log_every", "eval_every", "checkpoint_every", "digest_every",
    "keep_state", "keep_checkpoints", "stream", "data", "data_dir", "fallback_data",
}  # fmt: skip
_DEFAULTS = {"elastic": False, "shards": 8}
_RUNTIME = ("backend", "device", "precision", "xla", "tf32", "level")


def compare(
    runs: Sequence[str | pathlib.Path], metric: str = "", html: str | None = None
) -> dict:
    """Compare runs: settings, metrics, and differences over common seeds.

    Runs with the same settings but for the seed, and the same data, form a group. Of
    two groups the differences between runs of the same seed are averaged.

    Args:
        runs: two or more run folders, or folders of runs, as of a sweep.
        metric: for the differences; "": the main metric of the first run with one.
        html: a new file for a page with tables and curves.

    Returns:
        `metric`; `runs` (run, group, seed, state, epochs, steps, metrics, train
        seconds); `settings` that differ (field, then a value for each run);
        `differences` of two groups (groups, seeds, `mean` of the second minus the
        first, `low` and `high`, the 95 % interval by Student's t, None for one common
        seed) and `notes`.

    Raises:
        GpuzooError: a folder is not a run or was edited, or no run has the metric.
    """
    paths = [path for run in runs for path in _run_folders(expand(run))]
    if len(paths) < 2:
        raise GpuzooError("compare needs two or more run folders")
    records = [read_run(path) for path in paths]
    mains = [main[0] for record in records if (main := page.main_metric(record))]
    if metric:
        metric = metric if metric.startswith("test_") else f"test_{metric}"
    elif mains:
        metric = mains[0].replace(" ", "_")
    else:
        raise GpuzooError("none of the runs has been evaluated yet: nothing to compare")
    every = [_figures(record) for record in records]
    having = [metric in one for one in every]
    if not any(having):
        known = dict.fromkeys(name for one in every for name in one)
        raise GpuzooError(
            f"no run has the metric {metric!r}; known: {', '.join(known) or 'none'}"
        )
    labels = _labels(paths)
    groups = _groups(records)
    notes = [
        f"{label} has no {metric} (it is {record['state']})"
        for label, record, there in zip(labels, records, having, strict=True)
        if not there
    ]
    if len({_data_of(one) for one in records}) > 1:
        notes.append("the runs have different data: their metrics are not comparable")
    if changed := _changed_modules(records):
        more = f" and {len(changed) - 3} more" * (len(changed) > 3)
        named = ", ".join(changed[:3]) + more
        notes.append(f"the runs used different versions of gpuzoo's modules: {named}")
    if tested := _shorter(labels, records):
        notes.append(f"not trained to the end: {', '.join(tested)}")
    values = [one.get(metric) for one in every]
    differences = _differences(records, groups, values, notes)
    found = {
        "metric": metric,
        "runs": [
            {
                "run": label, "group": group, "seed": record["recipe"]["seed"],
                "state": record["state"], "epochs": record.get("epochs"),
                "steps": record.get("steps"),
                "metrics": record["metrics"] | ({metric: value} if there else {}),
                "train_seconds": record.get("seconds", {}).get("train"),
            }
            for label, group, record, there, value in zip(
                labels, groups, records, having, values, strict=True
            )
        ],
        "settings": _settings(records),
        "differences": differences,
        "notes": notes,
    }  # fmt: skip
    if html:
        _write(expand(html), found, paths, records)
    return found


def _data_of(record: dict) -> str | None:
    """Return the digest of a run's data."""
    return (record["data"] or {}).get("fingerprint")


def _run_folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the run folders that a path stands for: itself, or those of a sweep; none
    for the file of a sweep, as `sweep/*` names it."""
    if path.name == SWEEP and path.is_file():
        return []
    if (path / SWEEP).is_file():
        return [one.parent for one in sorted(path.glob("*/run.json"))]
    return [path]


def _figures(record: dict) -> dict[str, float]:
    """Return the metrics of a run, and the figures of its final evaluation."""
    found = evaluation.flat(record.get("evaluation", {}))
    more = {f"test_{k}": value for k, value in found.items() if value is not None}
    return {**record["metrics"], **more}


def _labels(paths: list[pathlib.Path]) -> list[str]:
    """Return a short name of each run: of its folder, or its path if that is taken."""
    names = [path.resolve().name for path in paths]
    return [
        redact(str(path)) if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def _shorter(labels: list[str], records: list[dict]) -> list[str]:
    return [
        label
        for label, record in zip(labels, records, strict=True)
        if record["state"] != "finished" or record["fast_dev_run"]
    ]


def _groups(records: list[dict]) -> list[str]:
    """Return the group of each run: A, B, ..., Z, 27, ..."""
    known: list = []
    for record in records:
        setting = _setting(record)
        if setting not in known:
            known.append(setting)
    places = [known.index(_setting(record)) for record in records]
    return [chr(ord("A") + n) if n < 26 else str(n + 1) for n in places]


def _setting(record: dict) -> tuple:
    """Return what the runs of a group have in common."""
    # Older records lack newer fields.
    whole = {**_DEFAULTS, **record["recipe"]}
    recipe = {k: v for k, v in whole.items() if k not in _NO_SETTING}
    chooses = recipe.get("keep") == "best" or recipe.get("early_stopping")
    if chooses or recipe.get("schedule") == "reduce_on_plateau":
        recipe["eval_every"] = record["recipe"]["eval_every"]
    runtime = record["runtime"] or {}
    data = (record["data"] or {}).get("fingerprint", record["recipe"]["data"])
    used = {name: runtime.get(name) for name in _RUNTIME}
    if not recipe.get("elastic"):  # older records have no devices
        used["devices"] = runtime.get("devices", 1)
    return recipe, used, data, record["fast_dev_run"], _start(record)


def _start(record: dict) -> dict:
    """Return what a training starts from, besides its recipe."""
    init, parent = record.get("init") or {}, record.get("parent") or {}
    given = record.get("weights") == "as given" and not init and not parent
    return {
        "init": init.get("weights_sha256", "")[:16] or None,
        "continues after step": parent.get("step"),
        "architecture digest": (record.get("architecture_sha256") or "")[:16] or None,
        "initial weights digest": (record["initial_weights_sha256"] or "")[:16]
        if given
        else None,
        "compiled": json.dumps(record.get("compiled"), sort_keys=True),
        "user code digest": _user_code(record),
    }


def _user_code(record: dict) -> str | None:
    """Return one digest of the user's modules and inputs that a run's model used; None
    if there are none."""
    modules = record.get("code") or {}
    used = {n: one for n, one in modules.items() if not n.startswith("gpuzoo.")}
    used |= record.get("inputs") or {}
    text = json.dumps(used, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if used else None


def _changed_modules(records: list[dict]) -> list[str]:
    """Return the modules of gpuzoo that two of the runs used in different versions."""
    seen: dict[str, set[str]] = {}
    for record in records:
        for name, one in (record.get("code") or {}).items():
            if name.startswith("gpuzoo."):
                seen.setdefault(name, set()).add(one)
    return sorted(name for name, digests in seen.items() if len(digests) > 1)


def _settings(records: list[dict]) -> list[list]:
    """Return the fields in which the runs differ, each with a value for every run."""
    flat = [_flat(record) for record in records]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = [[name, *(one.get(name) for one in flat)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def _flat(record: dict) -> dict:
    left_out = ("reasons", "variables", "seed")
    runtime = {k: v for k, v in (record["runtime"] or {}).items() if k not in left_out}
    versions = record["environment"]["versions"]
    return {
        **_DEFAULTS,
        **record["recipe"],
        **_start(record),
        **{f"runtime {name}": value for name, value in runtime.items()},
        **{f"version of {name}": value for name, value in versions.items()},
        "data digest": (record["data"] or {}).get("fingerprint", "none")[:16],
    }


def _differences(
    records: list[dict], groups: list[str], figures: list, notes: list[str]
) -> list[dict]:
    """Return the paired differences of every two groups that have common seeds;
    `figures`: that of each run, or None."""
    values: dict[str, dict[int, float]] = {}
    data = dict(zip(groups, map(_data_of, records), strict=True))
    for record, group, figure in zip(records, groups, figures, strict=True):
        of_group, seed = values.setdefault(group, {}), record["recipe"]["seed"]
        if figure is None:
            continue
        if seed in of_group:
            notes.append(f"group {group} has seed {seed} twice; the first counts")
        of_group.setdefault(seed, figure)
    found = []
    for one, other in itertools.combinations(values, 2):
        if data[one] != data[other]:
            continue  # a note says so
        seeds = [seed for seed in values[one] if seed in values[other]]
        if seeds:
            pairs = [values[other][seed] - values[one][seed] for seed in seeds]
            found.append({"groups": [one, other], "seeds": seeds, **statistics(pairs)})
        else:
            notes.append(f"groups {one} and {other} have no common seed")
    return found


def statistics(values: list[float]) -> dict:
    """Return `mean`, sample standard deviation `sd`, and `low` and `high` of the 95 %
    interval of the mean by Student's t; all but the mean are None for one value, the
    limits for equal values."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return {"mean": mean, "sd": None, "low": None, "high": None}
    from scipy import special  # a quarter of a second

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(special.stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
    sd = math.sqrt(variance)
    if sd == 0:  # equal values of few examples: no estimate of the deviation
        return {"mean": mean, "sd": 0.0, "low": None, "high": None}
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def in_words(found: dict) -> list[str]:
    """Return a line for each difference of two groups."""
    lines = []
    for one in found["differences"]:
        first, second = one["groups"]
        seeds = ", ".join(map(str, one["seeds"]))
        line = f"{second} minus {first}: {_signed(one['mean'])} {found['metric']}"
        if one["low"] is None:
            alone = len(one["seeds"]) == 1
            line += ", seed" if alone else ", the same difference for seeds"
            line += f" {seeds}{' alone' * alone}: more common seeds give an interval"
        else:
            line += (
                f", 95 % interval {_signed(one['low'])} to {_signed(one['high'])} "
                f"(seeds {seeds})"
            )
            if one["low"] <= 0 <= one["high"]:
                line += "; it contains 0, so these runs show no difference"
        lines.append(line)
    return lines


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(float(value))


def runs_table(found: dict) -> tuple[list[str], list[list]]:
    """Return heads and rows of the table of runs."""
    names = dict.fromkeys(name for run in found["runs"] for name in run["metrics"])
    first, last = ["run", "group", "seed"], ["state", "epochs", "steps"]
    rows = []
    for run in found["runs"]:
        metrics = [run["metrics"].get(name) for name in names]
        numbers = [
            "" if value is None else number(float(value))
            for value in (*metrics, run["train_seconds"])
        ]
        plain = ["" if run[key] is None else run[key] for key in (*first, *last)]
        rows.append([*plain[:3], *numbers[:-1], *plain[3:], numbers[-1]])
    return [*first, *names, *last, "train s"], rows


def _charts(trails: dict[str, list[dict]]) -> list[Chart]:
    """Return a chart of each metric of evaluations, with a line for each run."""
    every = [row for rows in trails.values() for row in rows]
    made = []
    for split in sorted({row["split"] for row in every}):
        names = page.figures([row for row in every if row["split"] == split])
        for key in sorted(names, key=lambda key: (key != "loss", key)):
            series = {
                name: [
                    (row["step"], row[key])
                    for row in rows
                    if row["split"] == split and key in row
                ]
                for name, rows in trails.items()
            }
            made.append(chart(f"{split} {key}", series))
    return [one for one in made if one]


def _write(goal: pathlib.Path, found: dict, paths: list, records: list[dict]) -> None:
    """Write the page."""
    trails: dict[str, list[dict]] = {}
    notes = [*found["notes"]]
    for run, path, record in list(zip(found["runs"], paths, records, strict=True)):
        rows, wrong = page.read_rows(
            record, lambda name, path=path: read_inside(path, name)
        )
        notes += [f"{run['run']}: {line}" for line in wrong]
        if len(trails) < LINES:
            name = f"{run['run']} ({run['group']}, seed {run['seed']})"
            trails[name] = [row for row in rows if row["split"] != "train"]
    if len(records) > LINES:
        notes.append(f"the charts show the first {LINES} runs")
    heads, rows = runs_table(found)
    content = page.fill(
        "compare.html",
        found=found,
        notes=notes,
        heads=heads,
        rows=rows,
        lines=in_words(found),
        labels=[run["run"] for run in found["runs"]],
        charts=_charts(trails),
    )
    try:
        page.write_new(goal, content, "--html")
    except OSError as error:
        raise GpuzooError(
            f"--html {goal} cannot be written: {error.strerror or error}"
        ) from None
