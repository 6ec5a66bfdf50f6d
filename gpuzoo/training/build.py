"""Build the model of a recipe and its data, and record the code that it uses."""

import contextlib
import functools

import keras

from gpuzoo import tasks
from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.architecture import Architecture
from gpuzoo.catalogue.recipe import Recipe, parse_options
from gpuzoo.catalogue.registry import build, check_options, model_info
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.sources import load_data
from gpuzoo.engine import optim
from gpuzoo.engine.backends import missing_kernels
from gpuzoo.engine.program import Program, Session
from gpuzoo.errors import GpuzooError
from gpuzoo.runs import code
from gpuzoo.runtime.keras_state import drawn_by_numpy, fresh_names
from gpuzoo.runtime.options import Runtime
from gpuzoo.tasks.subclassed import in_graph, is_subclassed
from gpuzoo.training import failures

# Modules that every run uses.
_ROOTS = ("gpuzoo.engine.loop", "gpuzoo.data.sources")


def session_of(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Session:
    """Return a session of data in memory, without a record."""
    return Session(recipe, runtime, dataset, build_model(recipe, dataset))


def build_and_note(
    recipe: Recipe,
    dataset: Dataset,
    backend: str,
    note=lambda line: None,
    described: Architecture | None = None,
    room=None,
) -> tuple[keras.Model, dict[str, str], dict[str, str]]:
    """Build the model of a recipe; return also its code and inputs.

    Args:
        backend: tensorflow or jax.
        note: called with lines for the user.
        described: the architecture of a model object.
        room: a context to build the model in, if its size is limited.

    Returns:
        The model; name of a module, or of the file that defines the model -> digest;
        files that the user's code has read -> sha256.

    Raises:
        GpuzooError: the model, or its teacher, cannot be built, or the teacher has
            changed since it was trained.
    """
    kind = tasks.load(recipe.task)
    roots = {*_ROOTS, f"gpuzoo.tasks.{recipe.task}", *kind.modules}
    if backend == "jax":
        roots.add("gpuzoo.engine.backends.jax")
    modules, inputs = kind.code_and_inputs(recipe, dataset, note)
    make = functools.partial(build_model, recipe, dataset, described)
    with room or contextlib.nullcontext():
        model, own, own_inputs = code.watched(make, recipe.model, roots, note)
    if backend == "jax":
        from gpuzoo.engine.backends.jax import refuse_float64

        refuse_float64(model, recipe.model_name)
    return (
        model,
        dict(sorted({**modules, **own}.items())),
        dict(sorted({**inputs, **own_inputs}.items())),
    )


def compiled(session: Session, backend=None) -> Program:
    """Compile the steps of a session.

    Raises GpuzooError with the layer that fails, if one does."""
    with failures.readable(session.recipe):
        return Program(session, backend)


def trace_and_note(session: Session, note) -> tuple[Program, dict, dict]:
    """Compile a session; return also code and inputs with those that only its first
    step needs, as what the call of a layer imports or reads."""
    make = functools.partial(compiled, session)
    return code.traced(make, session.recipe.model, session.code, session.inputs, note)


def build_model(
    recipe: Recipe, dataset: Dataset, described: Architecture | None = None
):
    """Return the model of a recipe, built for the shape and the classes of a dataset;
    `described`: the architecture of a model object.

    Raises GpuzooError if the model is for another task or refuses its options.
    """
    kind = tasks.load(recipe.task)
    fields = kind.fields_of(dataset)
    if not set(fields) <= set(dataset.train):
        remedy = ""
        if "labels" in dataset.train:
            count = dataset.train["labels"].sum(axis=1)
            row = int((count != 1).argmax())
            remedy = (
                f": each example has any number of labels (training example {row} has "
                f"{count[row]} of {len(dataset.classes)}); use the task multilabel"
            )
        elif "objects" in dataset.train:
            remedy = ": boxes of objects; use the task detect"
        elif "mask" in dataset.train and "label" in fields:
            remedy = ": a class for each pixel; use the task segment"
        elif "mask" in fields:
            remedy = (
                ", and no masks: give a folder with images/ and masks/, or masks y "
                "(examples, height, width) in the .npz"
            )
        elif "labels" in fields and "label" in dataset.train:
            remedy = ": each example has one label; use the task classify"
        elif recipe.task == "detect":
            remedy = (
                ", and no boxes: give them as COCO JSON, YOLO .txt, Pascal VOC .xml, "
                "or arrays boxes and labels in the .npz; or images with classes, one "
                "sub-folder for each, to compose scenes of"
            )
        elif "label" in fields and "label" not in dataset.train:
            remedy = (
                " alone, without two classes: give one sub-folder for each class, or "
                "labels y in the .npz"
            )
        raise GpuzooError(
            f"recipe {recipe.name!r} needs {' and '.join(fields)} of every "
            f"example; data {dataset.name} have {' and '.join(dataset.train)}{remedy}"
        )
    if fault := kind.check_data(dataset):
        raise GpuzooError(f"data {dataset.name} {fault}")
    return build_for_shape(recipe, dataset, described)


def build_for_shape(
    recipe: Recipe, dataset: Dataset, described: Architecture | None = None
):
    """Do the same for a dataset of which only shapes and classes are looked at."""
    info, kind = model_info(recipe.model), tasks.load(recipe.task)
    wanted = kind.models or recipe.task
    called = recipe.model_name
    if info.task not in ("", wanted):
        raise GpuzooError(
            f"model {called!r} is for the task {info.task!r}; recipe "
            f"{recipe.name!r} needs one for {wanted!r}"
        )
    options = {
        k: v for k, v in kind.model_options(dataset).items() if k in info.options
    }
    if "num_classes" in options and not dataset.classes:
        raise GpuzooError(
            f"model {called!r} needs classes, and data {dataset.name} have none: give "
            "one sub-folder for each class, or labels y in the .npz"
        )
    options |= parse_options(recipe.model_options)
    # A sub-classed model makes layers when it is called, too: one count of names.
    with fresh_names(), drawn_by_numpy(), missing_kernels.replaced():
        try:
            model = described.rebuild() if described else build(recipe.model, **options)
        except (TypeError, ValueError) as error:
            raise GpuzooError(f"model {called!r} cannot be built: {error}") from error
        if isinstance(model, keras.Model):
            architecture.check_form(model, f"model {called!r}")
        if is_subclassed(model):
            shape, dtype = kind.taken_shape(dataset), kind.input_dtype
            model = in_graph(model, shape, f"model {called!r}", dtype)
    if not isinstance(model, keras.Model) or not model.built:
        raise GpuzooError(
            f"model {called!r} must return a built keras.Model, not {model!r}"
        )
    if fault := kind.check_model(model, dataset):
        raise GpuzooError(f"model {called!r} {fault}")
    return model


def check_recipe(recipe: Recipe) -> None:
    """Raise GpuzooError for all that is wrong without looking at the data."""
    recipe.check_optimizer()
    recipe.check_schedule()
    recipe.check_choice()
    optim.chosen(recipe)
    tasks.load(recipe.task).check_recipe(recipe)
    options = parse_options(recipe.model_options)
    derived = (
        "input_shape",
        "num_classes",
        "horizon",
        "numbers",
        "vocabulary",
        "num_outputs",
        "targets",
        "words",
    )
    for name in derived:
        if name in options:
            raise GpuzooError(
                f"model_options cannot set {name}: it is derived from the data"
            )
    try:
        check_options(recipe.model, options)
    except TypeError as error:
        raise GpuzooError(str(error)) from None


def load_data_of(recipe: Recipe, note, fingerprint: str | None = None) -> Dataset:
    """Return the dataset that a recipe names, as `load_data` does."""
    return load_data(
        recipe.data,
        data_dir=recipe.data_dir,
        fallback_data=recipe.fallback_data,
        image_size=recipe.image_size,
        audio_seconds=recipe.audio_seconds,
        frames=recipe.frames,
        validation=recipe.validation,
        seed=recipe.seed,
        target=recipe.target,
        kinds=recipe.columns,
        task=recipe.task,
        window=recipe.window,
        horizon=recipe.horizon,
        gaps=recipe.gaps,
        calendar=recipe.calendar,
        fold=recipe.fold,
        stream=recipe.stream,
        fingerprint=fingerprint,
        note=note,
    )
