"""Model objects and other given weights: initial, trained, and in the record."""

import hashlib
import pathlib

import keras
import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo import tasks
from gpuzoo.catalogue.architecture import Architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.engine import compile_config, initializers
from gpuzoo.engine.given import AS_GIVEN, FILE, STATE, Given
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_inside
from gpuzoo.keras_layers import layers_of
from gpuzoo.runs.record import architecture_of
from gpuzoo.runtime import keras_state
from gpuzoo.tasks.subclassed import is_subclassed
from gpuzoo.weights import assign, by_name, load_weights, weights_bytes


def take(
    model: keras.Model, described: Architecture, recipe: Recipe, named, fresh: bool
) -> Given:
    """Return what a model object adds to its training.

    Args:
        described: its architecture.
        recipe: of the training.
        named: the fields of the recipe that the user has named.
        fresh: draw the weights from the seed.

    Raises:
        GpuzooError: it was compiled with something that would not be used.
    """
    optimizer, loss, findings = None, None, []
    if model.compiled:
        optimizer, loss, findings = compile_config.read(model, recipe, set(named))
    if fresh:
        keras_state.reseed(recipe.seed)
    with keras_state.fresh_names():
        twin = described.rebuild()
    pairs = zip(model.weights, twin.weights, strict=True)
    if fresh:  # trainable weights without a known initializer are as just built
        kept = {
            id(weight)
            for layer in layers_of(model)
            if getattr(layer, "keeps_weights", False)
            for weight in layer.weights
        }
        pairs = (
            (new if one.trainable and id(one) not in kept else one, new)
            for one, new in pairs
        )
    assign(twin, [np.array(one) for one, _ in pairs])
    if fresh:
        for layer, its in zip(layers_of(model), layers_of(twin), strict=True):
            its.keeps_weights = getattr(layer, "keeps_weights", False)
        initializers.initialise(twin, recipe.seed)
    content = weights_bytes({k: np.array(v) for k, v in by_name(twin.weights).items()})
    return Given(described, content, fresh, optimizer, loss, tuple(findings))


def recorded(folder: pathlib.Path, record: dict) -> Given:
    """Return what a run started with, from its folder.

    Raises:
        GpuzooError: its architecture or initial weights are missing or damaged.
    """
    contents = {
        name: _content(folder / name, wanted) if wanted else None
        for name, wanted in (
            (FILE, record.get("initial_weights_sha256")),
            (STATE, record.get("initial_state_sha256")),
        )
    }
    compiled = record.get("compiled") or {}
    return Given(
        architecture_of(record, folder, lambda name: read_inside(folder, name)),
        contents[FILE],
        record.get("weights") != AS_GIVEN,
        compiled.get("optimizer"),
        compiled.get("loss"),
        tuple(record.get("findings", ())),
        record.get("init"),
        record.get("parent"),
        contents[STATE],
    )


def _content(path: pathlib.Path, wanted: str) -> bytes:
    """Return the content of a file of initial values with that digest."""
    try:
        content = read_inside(path.parent, path.name)
    except OSError as error:
        raise GpuzooError(
            f"{path} cannot be read: {error.strerror or error}; without its initial "
            "weights the run cannot be repeated"
        ) from None
    if hashlib.sha256(content).hexdigest() != wanted:
        raise GpuzooError(f"{path} has been changed since the run began")
    return content


def begin(model: keras.Model, recipe: Recipe, dataset: Dataset, given: Given) -> None:
    """Set the initial weights of a model."""
    if given.content is None:
        initializers.initialise(model, recipe.seed)
    else:
        put_back(model, given)
    if given.fresh:
        initializers.whiten(model, dataset.train[dataset.field])


def put_back(model: keras.Model, given: Given) -> None:
    """Set the weights of a model from the content of a file of initial weights.

    Raises:
        GpuzooError: they differ from the model's in a name, a shape or a dtype; names
            the first.
    """
    weights, variables = read(given.content), by_name(model.weights)
    forms = {n: f"{a.dtype} {a.shape}" for n, a in weights.items()}
    wanted = {n: f"{v.dtype} {tuple(v.shape)}" for n, v in variables.items()}
    for name in (*wanted, *forms):
        here, there = wanted.get(name, "missing"), forms.get(name, "missing")
        if here != there:
            where, remedy = FILE, ""
            if given.init:
                where = f"init {given.init['run']}"
                remedy = "; model, options, shape and classes must be those of the run"
            raise GpuzooError(
                f"{where} holds the weights of another model: {name!r} is {there} "
                f"there, and {here} in the model{remedy}"
            )
    assign(model, [weights[name] for name in variables])


def read(content: bytes) -> Arrays:
    """Return the arrays of a safetensors file."""
    try:
        return safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise GpuzooError(f"{FILE}: damaged: {error}") from None


def give_back(
    model: keras.Model, folder: pathlib.Path, described: Architecture
) -> None:
    """Copy the weights of a run into the model object that it has trained."""
    with keras_state.fresh_names():
        trained = described.rebuild()
    load_weights(trained, folder)
    assign(model, [np.array(weight) for weight in trained.weights])


def not_used(model: keras.Model, recipe: Recipe) -> tuple[str, ...]:
    """Return warnings about a compiled model that a function has returned."""
    # Of a subclassed model the one layer is the user's.
    every = (model, *filter(is_subclassed, model.layers))
    compiled = [one for one in every if one.compiled]
    if not compiled:
        return ()
    kind = type(compiled[0].optimizer).__name__
    return (
        f"the model is compiled with {kind}, which is not used: optimizer, loss and "
        f"metrics are those of the recipe {recipe.name}; to use the compiled "
        "ones, pass the model object to gpuzoo.train()",
    )


def line(given: Given, recipe: Recipe) -> str:
    """Describe initial weights, optimizer and loss, for the first lines of a run."""
    begins = "drawn from the seed"
    if not given.fresh:
        begins = "as given"
    if given.parent:
        begins = f"those of run {given.parent['run']}"
    if given.init:
        begins = f"those of run {given.init['run']}, "
        begins += f"sha256 {given.init['weights_sha256'][:16]}"
    if given.optimizer:
        how = f"{_text(given.optimizer)}, as compiled"
    else:
        rate = f"learning rate {recipe.learning_rate:g}"
        how = f"{recipe.optimizer}, {rate}, {recipe.schedule}"
    loss = tasks.load(recipe.task).loss_of(recipe)
    if given.loss:
        loss = f"{given.loss['class_name']}, as compiled"
    return f"weights: {begins} · optimizer: {how} · loss: {loss}"


def _text(config: dict) -> str:
    """Describe an optimizer: `SGD, learning rate 0.1`."""
    inner = config["config"].get("inner_optimizer", config)
    rate = inner["config"]["learning_rate"]
    rate = rate["class_name"] if isinstance(rate, dict) else f"{rate:g}"
    return f"{inner['class_name']}, learning rate {rate}"
