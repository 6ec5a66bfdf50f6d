"""Go on with a finished run: `gpuzoo resume RUN --epochs N`, as a new run."""

import hashlib
import pathlib

import safetensors.numpy

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.engine.given import Given
from gpuzoo.errors import GpuzooError
from gpuzoo.files import LARGEST_JSON, expand, read_inside
from gpuzoo.runs import drift
from gpuzoo.runs.record import (
    RESTORE,
    architecture_of,
    options_of,
    private,
    read_run,
    recipe_of,
)
from gpuzoo.runtime.environment import environment
from gpuzoo.runtime.options import Options
from gpuzoo.weights import weights_bytes

STATE = "state.safetensors"
"""The final state of a finished run, besides its weights: the variables of the
optimizer and of the random layers; and, under `last/`, the weights of the last step
that are not those kept (averaged, or of the best evaluation)."""
LAST = "last/"


def from_parent(
    run: str | pathlib.Path, epochs: int
) -> tuple[Recipe, Options, Given, dict]:
    """Return the recipe of a run that is trained for more epochs, its runtime options,
    the state that it starts with, and the record of the run.

    Raises:
        GpuzooError: the run has not finished, or its state is missing or changed.
    """
    path = expand(run)
    record = read_run(path)
    if type(epochs) is not int or epochs < 1:
        raise GpuzooError(f"epochs must be at least 1, those to add: {epochs!r}")
    if record["state"] != "finished":
        raise GpuzooError(
            f"resume with epochs needs a finished run, and {path} is "
            f"{record['state']}"
            + f"; finish it first: gpuzoo resume {path}"
            * (record["state"] != "diverged")
        )
    if record["fast_dev_run"]:
        raise GpuzooError(
            f"{path} is a run of --fast-dev-run, two steps: it cannot be continued"
        )
    recipe = recipe_of(record)
    content, state = _split(path, record)
    parent = {
        "run": private(path.resolve().name), "id": record["id"],
        "weights_sha256": record["weights_sha256"],
        "state_sha256": record["files"][STATE],
        "epoch": record["epochs"], "step": record["steps"],
    }  # fmt: skip
    compiled = record.get("compiled") or {}
    described = architecture_of(
        record, path, lambda name: read_inside(path, name, LARGEST_JSON)
    )
    given = Given(
        architecture=described, content=content, fresh=False,
        optimizer=compiled.get("optimizer"), loss=compiled.get("loss"),
        most=None if described else len(content), parent=parent, state=state,
    )  # fmt: skip
    # A short one has fewer steps than the run had checkpoints, perhaps.
    steps = record["steps"] // record["epochs"] * epochs
    recipe = recipe.override(
        epochs=record["epochs"] + epochs,
        keep_checkpoints=min(recipe.keep_checkpoints, steps - 1),
    )
    return recipe, options_of(record), given, record


def _split(path: pathlib.Path, record: dict) -> tuple[bytes, bytes]:
    """Return the weights of the last step and the other variables, as two files."""
    if STATE not in record["files"]:
        raise GpuzooError(
            f"{path} has no {STATE} (recipe field keep_state, or an earlier version): "
            "the state of its optimizer is missing; start a new training from its "
            f"weights: gpuzoo train {record['recipe']['name']} --init {path}"
        )
    contents = {}
    for name in ("weights.safetensors", STATE):
        try:
            contents[name] = read_inside(path, name)
        except OSError as error:
            why = f"cannot be read: {error.strerror or error}"
        else:
            if hashlib.sha256(contents[name]).hexdigest() == record["files"][name]:
                continue
            why = "has been changed since the run finished"
        raise GpuzooError(f"{path / name} {why}; {RESTORE}")
    weights, state = (safetensors.numpy.load(one) for one in contents.values())
    last = {k.removeprefix(LAST): v for k, v in state.items() if k.startswith(LAST)}
    rest = {k: v for k, v in state.items() if not k.startswith(LAST)}
    return weights_bytes({**weights, **last}), weights_bytes(rest)


def state_bytes(result) -> bytes:
    """Return the file of the final state of a training."""
    kept = result.weights
    return weights_bytes({
        LAST + name if name in kept else name: value
        for name, value in result.state_arrays.items()
        if name not in kept or kept[name].tobytes() != value.tobytes()
    })  # fmt: skip


def check(record: dict, session, path: str | pathlib.Path) -> list[str]:
    """Return lines on how a run is continued.

    Args:
        record: of the finished run.

    Raises:
        GpuzooError: its data have changed.
    """
    from gpuzoo.engine import optim
    from gpuzoo.engine.plan import epochs_of

    changed = drift.data_differences(record["data"], session.dataset.as_record())
    drift.refuse(changed, f"{path} cannot be continued, its data have changed")
    recipe, epoch, step = session.recipe, record["epochs"], record["steps"]
    here = {
        "environment": environment(), "runtime": session.runtime.as_record(),
        "code": session.code, "inputs": session.inputs,
    }  # fmt: skip
    changes = drift.environment_differences({**record, "code": None}, here)
    if processor := drift.other_processor(record, here):
        changes.insert(0, processor)
    lines = [
        f"Note: the environment is not that of the run: {change}." for change in changes
    ]
    lines += [
        f"Continuing {path} after epoch {epoch}, step {step}, to epoch "
        f"{recipe.epochs}, as a new run."
    ]
    if recipe.reduces:
        lines.append("The learning rate stays as it was reduced.")
    elif not session.given.optimizer:
        per_epoch, first = step // epoch, recipe_of(record)
        planned = epochs_of(first, per_epoch)
        here = optim.learning_rates(recipe, per_epoch * recipe.epochs)[step]
        before = optim.learning_rates(first, per_epoch * planned)[step - 1]
        lines.append(
            f"The schedule ({recipe.schedule}) is that of {recipe.epochs} epochs: the "
            f"learning rate continues at {here:.3g}; at the end of the run it was "
            f"{before:.3g}."
        )
    if recipe.sparsity:
        lines.append(
            f"sparsity={recipe.sparsity:g}: the weights were pruned for the length of "
            "the run, and are pruned further for that of the new one."
        )
    if recipe.chooses:
        lines.append(f"{recipe.chooses} sees the evaluations of the new epochs only.")
    return lines
