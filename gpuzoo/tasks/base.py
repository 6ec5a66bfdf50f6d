"""The base class of tasks: fields, loss, step, metrics and plots."""

import dataclasses
from typing import ClassVar

import keras

from gpuzoo.catalogue.recipe import MARGIN
from gpuzoo.data.series import HORIZON, WINDOW
from gpuzoo.errors import GpuzooError
from gpuzoo.keras_layers import layers_of
from gpuzoo.tasks import augment, ends


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that a step or an evaluation returns under this name."""

    name: str
    unit: str = ""
    greater_is_better: bool = False
    format: str = ".4f"

    def text(self, value: float) -> str:
        """Return a value as text, with its unit."""
        return f"{value:{self.format}} {self.unit}".rstrip()


LOSS = Metric("loss")
ACCURACY = Metric("accuracy", greater_is_better=True, format=".2%")
# Fields of a recipe that only some tasks use -> what they are for.
_FOR = {
    "augment": "changes images", "mixup and cutmix": "are for labels",
    "label_smoothing": "is for labels", "tta": "is for classifying images",
    "teacher": "is for the task distill",
    "class_weight": "weighs classes, one per example",
    "target": "names a column of a table", "columns": "are those of a table",
    "window": "is for a series", "horizon": "is for a series",
    "frames": "is for films",
    "gaps": "is for a series", "calendar": "is for a series", "fold": "is for a series",
    "embed_loss": "is for the task embed", "margin": "is for the task embed",
    "scale": "is for the task embed",
}  # fmt: skip


class Task:
    """Base class: all that the training calls. A task is a subclass called Task in a
    file of its name; it is found there, and not registered. It must define
    `check_model`, `step`, `evaluate` and `summarise`, and `infer` or `generate`; all
    else has a default.

    The constructor makes what a trained model needs (`infer`, `generate`), from shapes
    and classes alone; `begin` adds what `step`, `evaluate` and `summarise` need.

    Attributes:
        model: the network to train, or a model that contains all of them.
        optimizers: one for each entry of `groups`, built; set by `begin`.
        changes: the parsed `augment` of the recipe.
        compute_dtype: the dtype of most computations in the network.
    """

    fields: tuple[str, ...] = ("image",)
    """The arrays of an example."""
    loss_name = ""
    """The loss, or the choice of losses."""
    step_metrics: tuple[Metric, ...] = (LOSS,)
    metrics: tuple[Metric, ...] = (LOSS,)
    """What a step and an evaluation return."""
    measured: tuple[Metric, ...] = ()
    """Figures of `scores` that are single numbers, which a training may choose by."""
    headline = LOSS
    """The main metric of a run; the loss if an evaluation lacks it."""
    pictures: tuple[str, ...] = ()
    """Functions of gpuzoo/report/plots.py that plot the outputs."""
    uses: ClassVar[frozenset[str]] = frozenset({"augment"})
    """The fields in `_FOR` that it uses."""
    expansion = 1
    """Pixels in memory during an evaluation per pixel of an example."""
    models = ""
    """The task that its models are registered for, if another."""
    modules: tuple[str, ...] = ()
    """Modules that its metrics depend on, besides those that it imports."""
    told_by_layer = ""
    """A layer whose losses (for Keras's own fit) the task computes itself."""
    from_logits = False
    """Whether its loss is computed from the logits of the model."""
    takes_loss = False
    """Whether a compiled loss of Keras may replace its loss."""
    keras_loss = ""
    """The class of keras.losses that is its loss, if there is one."""
    compiled = None
    """The compiled loss of this training, labels and logits -> the loss of each example
    (gpuzoo/engine/compile_config.py); None: the task's own loss."""
    own_draws = 0
    """Uniform numbers per example of a step, before those of `augment`."""
    target = ""
    """The field of the labels, if a compiled loss is computed from them."""
    takes = "image"
    """The field that `infer` takes; "" if the task has no `infer`."""
    input_dtype = "float32"
    """The dtype of what a model takes: float32, which may also be another float, or
    int32."""
    generates = False
    """Whether it has `codes` and `generate`."""
    heads: tuple[keras.Variable, ...] = ()
    """What `heads_of` has returned for this training."""

    def __init__(self, *, model: keras.Model, recipe, dataset, runtime):
        self.compute_dtype = runtime.compute_dtype
        self.model, self.recipe = model, recipe
        self.changes = augment.parse(recipe.augment)

    def begin(self, optimizers: list, dataset) -> None:
        """Prepare training and evaluation on a dataset; evaluation alone, if there are
        no optimizers."""
        self.optimizers = optimizers

    @classmethod
    def taken_shape(cls, dataset) -> tuple[int, ...]:
        """Return the shape of an example for `infer`."""
        return tuple(dataset.input_shape)

    @classmethod
    def keras_metrics(cls, model: keras.Model, by_name: bool) -> set[str]:
        """Return the Keras metrics that compile() may name, as the task measures them:
        names in lower case, without `_`.

        Args:
            by_name: the metric is named by a string, such as "accuracy".
        """
        return set()

    @classmethod
    def count_draws(cls, recipe, model: keras.Model) -> int:
        """Return the uniform numbers per example of a step."""
        changes = augment.parse(recipe.augment)
        return cls.own_draws + sum(change.draws for change in changes)

    @classmethod
    def loss_of(cls, recipe) -> str:
        """Return the name of the loss of a recipe, for the first lines of a run."""
        return cls.loss_name

    @classmethod
    def check_recipe(cls, recipe) -> None:
        """Raise GpuzooError for a bad augmentation, and for fields that the task does
        not use."""
        changes = augment.parse(recipe.augment)
        given = {
            "augment": changes, "mixup and cutmix": any(one.mixes for one in changes),
            "label_smoothing": recipe.label_smoothing, "tta": recipe.tta != "none",
            "teacher": recipe.teacher, "class_weight": recipe.class_weight,
            "target": recipe.target, "columns": recipe.columns,
            "window": recipe.window != WINDOW, "horizon": recipe.horizon != HORIZON,
            "gaps": recipe.gaps != "refuse", "calendar": recipe.calendar,
            "fold": recipe.fold, "frames": recipe.frames,
            "embed_loss": recipe.embed_loss != "arcface",
            "margin": recipe.margin != MARGIN, "scale": recipe.scale,
        }  # fmt: skip
        for name, value in given.items():
            if value and name not in cls.uses:
                them = "them" if " " in name or name == "columns" else "it"
                raise GpuzooError(
                    f"{name} {_FOR[name]}; the task {recipe.task} does not use {them}: "
                    f"leave {them} out"
                )

    @staticmethod
    def settle(recipe):
        """Return the recipe with the digests of all files that it names.

        Raises:
            GpuzooError: a file cannot be read.
        """
        return recipe

    @classmethod
    def fields_of(cls, dataset) -> tuple[str, ...]:
        """Return the arrays of an example of these data."""
        return cls.fields

    @staticmethod
    def of_data(recipe, dataset):
        """Return the recipe with the task that fits the data, if it leaves that open.

        Raises:
            GpuzooError: the recipe does not fit that task.
        """
        return recipe

    @staticmethod
    def code_and_inputs(recipe, dataset, note) -> tuple[dict, dict]:
        """Return digests of its code and input files, besides the model's."""
        return {}, {}

    @staticmethod
    def only_in_training(recipe) -> str:
        """Return the terms of the training loss that the evaluation's lacks."""
        smoothing = recipe.label_smoothing
        terms = [f"label smoothing {smoothing:g}"] if smoothing else []
        return " and ".join([*terms, *["class weights"] * bool(recipe.class_weight)])

    @staticmethod
    def check_data(dataset) -> str | None:
        """Return what is wrong with the data, or None."""

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model for the data, or None: text that continues
        "model 'name' ...". Most begin with `misfit`."""
        raise NotImplementedError

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {"input_shape": tuple(dataset.input_shape)}

    @staticmethod
    def groups(model: keras.Model) -> list[list]:
        """Return the trainable weights of each optimizer."""
        return [model.trainable_variables]

    @classmethod
    def heads_of(cls, model: keras.Model, recipe, dataset) -> list[keras.Variable]:
        """Return variables that the first optimizer trains, too, and that are of the
        training alone: its checkpoints and state hold them, not the trained model."""
        return []

    @staticmethod
    def moves(model: keras.Model) -> list[int]:
        """Return the updates of each optimizer per step."""
        return [1]

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return its metrics, scalars named as `step_metrics`.

        Traced once: it may depend on nothing but its arguments and the variables.

        Args:
            batch: name in `fields` -> array (batch, ...) on the device.
            draws: uniform numbers in [0, 1), (batch, count_draws), those of the task
                first; the only source of randomness.
            backend: gradients and updates, see gpuzoo/engine/backends/.
        """
        raise NotImplementedError

    def evaluate(self, batch: dict) -> dict:
        """Return name -> array (batch, ...): what the model gives for each example.

        Traced once, too; draws nothing at random.

        Args:
            batch: as for `step`, and `index` (batch,): the places of the examples in
                the test set.
        """
        raise NotImplementedError

    def inputs(self, batch: dict) -> dict:
        """Return `takes` -> what `infer` takes for test examples, and `target` if they
        lack what it predicts. `begin` must have been called.

        Args:
            batch: as for `evaluate`.
        """
        return {self.takes: batch[self.takes]}

    def infer(self, batch: dict) -> dict:
        """Return name -> array (batch, ...): what the model gives for examples without
        targets. `evaluate` computes the same.

        Args:
            batch: `takes` -> array (batch, *taken_shape), as in the dataset.
        """
        raise NotImplementedError

    def in_units(self, outputs: dict) -> dict:
        """Return the outputs of `infer` as `predict` gives them to the user; NumPy
        arrays, on the host."""
        return outputs

    def codes(self, count: int, seed: int, label: int | None = None) -> dict:
        """Return name -> NumPy array (count, ...): what `generate` needs for as many
        images, the same for equal arguments.

        Args:
            label: the class of all images; None: all classes in turn.
        """
        raise NotImplementedError

    def generate(self, batch: dict) -> dict:
        """Return `samples`, (batch, height, width, channels), uint8, for a batch of
        `codes`."""
        raise NotImplementedError

    def summarise(self, outputs: dict, arrays: dict) -> dict[str, float]:
        """Return the metrics of an evaluation, named as `metrics`. It runs on the host.

        Args:
            outputs: those of `evaluate`, NumPy arrays with a row per example.
            arrays: name in `fields` -> the same examples.
        """
        raise NotImplementedError

    def scores(self, outputs: dict, arrays: dict) -> dict:
        """Return the figures of the final evaluation (gpuzoo/tasks/scores.py), {} if
        the task has none. It runs on the host.

        Args:
            outputs, arrays: as for `summarise`.
        """
        return {}

    def blank_outputs(self, arrays: dict) -> dict:
        """Return outputs of a model that knows nothing, for `scores`."""
        return {}

    @staticmethod
    def misfit(
        model: keras.Model, shape: tuple[int, ...], *, reshapes: bool = False,
        dtype: str = "float32",
    ) -> str | None:  # fmt: skip
        """Return what is wrong with a model for examples of a shape, or None;
        `reshapes`: it may take them without a channel axis of one, or flat; `dtype`:
        the `input_dtype` of the task."""
        if not isinstance(model, keras.Function | keras.Sequential):
            return "is neither a functional nor a Sequential keras.Model"
        wanted = (None, *shape)
        if len(model.inputs) != 1:
            return f"takes {len(model.inputs)} inputs, not one, {wanted}"
        if fault := _other_dtype(str(model.inputs[0].dtype), dtype):
            return fault
        taken = model.inputs[0].shape
        if fault := _keeps_state(model):
            return fault
        if taken[0] is not None:
            return f"takes batches of {taken[0]} only; remove batch_size from its Input"
        if (form := ends.taken_form(model, shape)) is None:
            return f"takes {taken}, not {wanted}"
        if form != tuple(shape) and not reshapes:
            return f"takes {taken}, not {wanted}"
        return None

    @staticmethod
    def squashed(model: keras.Model, output=None) -> str | None:
        """Return what is wrong with a model that must give logits of pixels, or None:
        an activation at its end that cannot be left out."""
        output = ends.output_of(model) if output is None else output
        end = ends.find(output, model)
        if not end.kind:
            if ends.in_unit_range(end, model):
                return (
                    f"puts out values between 0 and 1, from {end.operation.name!r}; "
                    "let it put out the logits"
                )
            fault = ends.scaled(output, model)
            return fault and f"{fault}; let it put out the logits"
        if end.kind == "sigmoid" and end.only_moved(picked=True):
            if end.used_once(model) and ends.skips_only(end, model):
                return None
        return f"ends in a {end.kind}{end.reason(model)}; let it put out the logits"

    def minimise(self, loss, backend):
        """Update the model; see minimise() below."""
        return minimise(
            loss, self.optimizers[0], self.model, backend, self.told_by_layer,
            self.heads,
        )  # fmt: skip


def shape_and_classes(dataset) -> dict:
    """Return `Task.model_options` of a model that puts out a value for each class."""
    return {
        "input_shape": tuple(dataset.input_shape),
        "num_classes": len(dataset.classes),
    }


def minimise(
    loss, optimizer, network: keras.Model, backend, without: str = "", heads=()
):
    """Update the weights of a network once by the gradient of loss(), which returns the
    loss and other results; return the latter. Losses added by layers, as regularizers
    do, are added here and not reported; those of the layer `without` are left out.
    `heads`: variables that are trained beside it."""
    variables = [*network.trainable_variables, *heads]
    apart = [layer for layer in network.layers if layer.name == without]

    def scaled():
        value, results = loss()
        theirs = {id(added) for layer in apart for added in layer.losses}
        for added in (one for one in network.losses if id(one) not in theirs):
            value = value + keras.ops.sum(keras.ops.cast(added, "float32"))
        return optimizer.scale_loss(value), results

    (_, results), gradients = backend.value_and_grad(scaled, variables)
    backend.apply(optimizer, gradients, variables)
    return results


def _other_dtype(kind: str, wanted: str) -> str | None:
    """Return what is wrong with the dtype of a model's input, or None."""
    if wanted == "int32" and kind != wanted:
        return (
            f"takes {kind}, and the words of a text are integers, int32: write "
            "keras.Input(input_shape, dtype='int32')"
        )
    if wanted != "int32" and not kind.startswith(("float", "bfloat")):
        return f"takes {kind}, and examples are floats; remove dtype from its Input"
    return None


def _keeps_state(model: keras.Model) -> str | None:
    """Return what is wrong with a model that keeps state between batches, or None."""
    for layer in layers_of(model):
        if getattr(layer, "stateful", False) and isinstance(layer, keras.layers.RNN):
            return (
                f"has a layer {layer.name!r} with stateful=True: it would continue "
                "from the previous batch, and their order is random; remove stateful"
            )
    return None
