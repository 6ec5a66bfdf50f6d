"""Start a training from the weights of a run: `train(..., init=RUN)`."""

import dataclasses
import hashlib
import pathlib

from gpuzoo.catalogue.model_info import ARCHITECTURE
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.engine.given import Given
from gpuzoo.errors import GpuzooError
from gpuzoo.files import LARGEST_JSON, expand, read_inside
from gpuzoo.runs import code
from gpuzoo.runs.record import architecture_of, private, read_run, recipe_of
from gpuzoo.runtime.options import Options

WEIGHTS = "weights.safetensors"


def with_model_of(run: str | pathlib.Path, recipe: Recipe) -> Recipe:
    """Return the recipe with the model of a run, its options included.

    Raises:
        GpuzooError: that model is code of a user, which would be executed.
    """
    theirs = recipe_of(_ended(run))
    if file_of(theirs.model):
        raise GpuzooError(
            f"init {run}: its model is user code, {theirs.model}, which would be "
            f"executed with your permissions; review it, then name it: --model "
            f"{theirs.model}"
        )
    return recipe.override(model=theirs.model, model_options=theirs.model_options)


def given_by(
    run: str | pathlib.Path, recipe: Recipe, options: Options
) -> tuple[Options, Given]:
    """Return the runtime options and what a run gives to a training: its weights, and
    its layers if it has trained a model object.

    Raises:
        GpuzooError: the run has not ended, or its files are missing or changed.
    """
    path, record = expand(run), _ended(run)
    try:
        content = read_inside(path, WEIGHTS)
    except OSError as error:
        raise GpuzooError(
            f"init {path / WEIGHTS} cannot be read: {error.strerror or error}; restore "
            "it from a copy"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != record["weights_sha256"]:
        raise GpuzooError(
            f"init {path / WEIGHTS} has been changed since the run ended; restore it "
            "from a copy"
        )
    theirs, described = recipe_of(record), None
    if recipe.model == ARCHITECTURE:
        described = architecture_of(
            record, path, lambda name: read_inside(path, name, LARGEST_JSON)
        )
        if described is None:
            raise GpuzooError(f"init {path} has not trained a model object")
        precision = record["runtime"]["precision"]
        if options.precision == "auto":  # it is part of the layers
            options = dataclasses.replace(options, precision=precision)
        described = described.with_policy(precision, options.precision)
    own = (recipe.model, recipe.model_options) == (theirs.model, theirs.model_options)
    name = private(path.resolve().name)
    return options, Given(
        architecture=described,
        content=content,
        fresh=False,
        init={"run": name, "id": record["id"], "weights_sha256": digest},
        most=len(content) if own else None,
    )


def changed_code(run: str | pathlib.Path, session) -> list[str]:
    """Return modules of the run's model that have changed since it was trained."""
    record = _ended(run)
    if record["recipe"]["model"] != session.recipe.as_record()["model"]:
        return []
    return code.changed_of_model(record, session.code, session.inputs)


def _ended(run: str | pathlib.Path) -> dict:
    path = expand(run)
    record = read_run(path)
    if record["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"init {path} has not finished ({record['state']}): it has no trained "
            "weights"
            + f"; finish it with: gpuzoo resume {path}"
            * (record["state"] != "diverged")
        )
    return record
