"""A recorded run done again in this process: for resume, verify and diff."""

import dataclasses
import os
import pathlib

from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.runs import code as codes
from gpuzoo.runs import drift as compare
from gpuzoo.runs.record import options_of, recipe_of
from gpuzoo.runtime import configure as runtimes
from gpuzoo.runtime.environment import environment
from gpuzoo.runtime.options import Runtime


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a recorded run takes to be done again, and what of it is not as it was."""

    recipe: "Recipe"  # noqa: F821 - read from the record
    runtime: Runtime
    dataset: "Dataset"  # noqa: F821 - the data package stays unloaded
    brought: "Given"  # noqa: F821 - likewise
    """What its model object had: weights, optimizer, loss."""
    drift: list[compare.Difference]
    """Fields of the environment that differ."""
    other_data: list[compare.Difference]
    """Fields of the data that differ."""
    built: codes.Built | None
    """The model, with its code; None where other data or missing inputs forbid it."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of doing the first steps again."""

    digests: list[dict]
    """The rows of digests.jsonl."""
    metrics: list[dict]
    """The rows of metrics.jsonl."""
    result: "loop.Result | None"  # noqa: F821 - the engine stays unloaded
    diverged: Diverged | None


def set_up(recorded: dict, folder: pathlib.Path, note=lambda text: None) -> Setting:
    """Configure this process, and load the data, as the record of a run folder says.

    Raises:
        GpuzooError: the machine, the data or the weights to begin with are not there.
    """
    recipe, found = recipe_of(recorded), environment()
    if recorded["runtime"] and recorded["runtime"]["onednn"] is False:
        # TensorFlow had been imported before gpuzoo could turn it on.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    runtime = runtimes.configure(options_of(recorded), seed=recipe.seed, quiet=True)
    from gpuzoo import tasks
    from gpuzoo.data import sources
    from gpuzoo.engine import model_objects

    recipe = tasks.settle(recipe)  # if it was killed before that was known
    fingerprint = (recorded["data"] or {}).get("fingerprint")
    dataset = sources.of_recipe(recipe, note, fingerprint)
    here = {"environment": found, "runtime": runtime.as_record(), "code": None}
    drift = compare.environment_differences(recorded, here)
    other_data = compare.data_differences(recorded["data"], dataset.as_record())
    built = None
    unreadable = codes.unreadable_inputs(recorded)
    if unreadable:
        drift += [
            compare.Difference(f"inputs.{name}", recorded["inputs"][name], why, why)
            for name, why in unreadable.items()
        ]
    elif not other_data:
        built = _build(recorded, recipe, dataset, runtime)
        code, inputs = codes.found_again(recorded, built)
        drift += compare.code_differences(recorded, {"code": code, "inputs": inputs})
    brought = model_objects.recorded(folder, recorded)
    return Setting(recipe, runtime, dataset, brought, drift, other_data, built)


def own_files(recorded: dict) -> list[str]:
    """path.py:function of the run's own code that doing it again executes."""
    return codes.models_files(recorded["recipe"])


def _build(recorded: dict, recipe, dataset, runtime) -> codes.Built:
    try:
        return codes.build(recipe, dataset, runtime.backend)
    except GpuzooError:
        raise
    except Exception as error:
        if not (files := own_files(recorded)):
            raise
        line = " ".join(str(error).split())[:300]
        raise GpuzooError(
            f"model {' or '.join(files)} of the run cannot be built here: "
            f"{type(error).__name__}: {line}"
        ) from error


def first_steps(setting: Setting, until: int, *, fast: bool, take_apart: bool = False):
    """Do the first `until` steps again.

    Args:
        fast: the run was a `--fast-dev-run`.
        take_apart: take the step after them apart.

    Returns:
        What was done (`Done`). Where it diverged the digests end before that step.

    Raises:
        Diverged: before the step to be taken apart.
    """
    from gpuzoo.engine import loop
    from gpuzoo.engine.backends import compile_cache

    compile_cache.forget()
    rows, told, done = [], [], 0

    def watch(event: str, row: dict) -> None:
        nonlocal done
        if event == "digest":
            rows.append(row)
        elif event in ("train", "test"):
            told.append({"split": event, **row})
        elif event == "progress":
            done = row["step"]

    try:
        result = loop.run(
            setting.recipe, setting.dataset, setting.runtime, watch=watch,
            stop=lambda: done >= until, fast=fast, until=until, take_apart=take_apart,
            brought=setting.brought,
            model=setting.built and setting.built.model,
        )  # fmt: skip
    except Diverged as error:
        if take_apart:
            raise
        return Done(rows, told, None, error)
    return Done(rows, told, result, None)
