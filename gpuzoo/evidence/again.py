"""A recorded run done again in this process: for resume, verify and diff."""

import dataclasses
import os
import pathlib

from gpuzoo import runtime as runtimes
from gpuzoo.errors import Diverged
from gpuzoo.evidence import compare, record
from gpuzoo.evidence.code import code_sha256
from gpuzoo.machine import environment


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a recorded run takes to be done again, and what of it is not as it was."""

    recipe: "Recipe"  # noqa: F821 - read from the record
    runtime: runtimes.Runtime
    dataset: "Dataset"  # noqa: F821 - the data package stays unloaded
    brought: "Given"  # noqa: F821 - likewise
    """What its model object had: weights, optimizer, loss."""
    drift: list[compare.Difference]
    """Fields of the environment that differ."""
    other_data: list[compare.Difference]
    """Fields of the data that differ."""


def set_up(recorded: dict, folder: pathlib.Path, note=lambda text: None) -> Setting:
    """Configure this process, and load the data, as the record of a run folder says.

    Raises:
        GpuzooError: the machine, the data or the weights to begin with are not there.
    """
    recipe, found = record.recipe_of(recorded), environment()
    if recorded["runtime"] and recorded["runtime"]["onednn"] is False:
        # TensorFlow had been imported before gpuzoo could turn it on.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    runtime = runtimes.configure(
        record.options_of(recorded), seed=recipe.seed, quiet=True
    )
    here = {
        "environment": found,
        "code_sha256": code_sha256(recipe.as_record()),
        "runtime": runtime.as_record(),
    }
    from gpuzoo.data import sources
    from gpuzoo.engine import given

    fingerprint = (recorded["data"] or {}).get("fingerprint")
    dataset = sources.of_recipe(recipe, note, fingerprint)
    return Setting(
        recipe,
        runtime,
        dataset,
        given.recorded(folder, recorded),
        drift=compare.environment_differences(recorded, here),
        other_data=compare.data_differences(recorded["data"], dataset.as_record()),
    )


def first_steps(setting: Setting, until: int, *, fast: bool, take_apart: bool = False):
    """Do the first `until` steps again.

    Args:
        fast: the run was a `--fast-dev-run`.
        take_apart: take the step after them apart.

    Returns:
        The digests, the weights then, the figures of the last evaluation, the tensors
        of the step that was taken apart, and None or how it diverged: the digests then
        end before that step, and the weights are the last good ones.

    Raises:
        Diverged: before the step to be taken apart.
    """
    from gpuzoo.engine import compiled, loop

    compiled.forget()
    rows, done = [], 0

    def watch(event: str, row: dict) -> None:
        nonlocal done
        if event == "digest":
            rows.append(row)
        elif event == "progress":
            done = row["step"]

    try:
        result = loop.run(
            setting.recipe, setting.dataset, setting.runtime, watch=watch,
            stop=lambda: done >= until, fast=fast, until=until, take_apart=take_apart,
            brought=setting.brought,
        )  # fmt: skip
    except Diverged as error:
        if take_apart:
            raise
        return rows, error.weights, {}, [], error
    return rows, result.weights, result.metrics, result.tensors, None
