"""The settings of a model's compile(): optimizer, loss and metrics."""

import json

import keras
import numpy as np

from gpuzoo import tasks
from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.engine import optim
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import keras_state
from gpuzoo.tasks import ends

# Fields of a recipe that a compiled optimizer replaces.
_OPTIMIZER_FIELDS = (
    "learning_rate", "momentum", "beta_1", "beta_2", "weight_decay",
    "schedule", "warmup_fraction", "ema_decay", "clip_norm", "clip_value",
    "optimizer_options", "restarts", "plateau_patience", "plateau_factor",
)  # fmt: skip
# These take integer labels; all others one-hot labels.
_SPARSE = ("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy")
_OF_LABELS = ("BinaryCrossentropy", "BinaryFocalCrossentropy")
"""Losses of several labels per example."""
_SCHEDULE = keras.optimizers.schedules.LearningRateSchedule
_AROUND_0 = ("Hinge", "SquaredHinge", "CategoricalHinge")
"""Losses of one unit without from_logits whose threshold between the classes is 0; for
all others it is 0.5, as labels are 0 and 1."""


def read(model: keras.Model, recipe: Recipe, named: set[str]):
    """Return optimizer and loss, serialized, and notes on settings not used."""
    settings = keras_state.compile_arguments(model)
    findings = []
    for name in ("loss_weights", "weighted_metrics"):
        if settings.get(name):
            raise GpuzooError(
                f"the model is compiled with {name}, which gpuzoo does not use; "
                "remove it from compile()"
            )
    for name, default in (("run_eagerly", False), ("steps_per_execution", 1)):
        if settings.get(name, default) != default:
            findings.append(
                f"{name}={settings[name]} of compile() is not used: gpuzoo compiles "
                "many steps into a call"
            )
    optimizer, notes = _optimizer(model, settings["optimizer"], recipe, named)
    loss = _loss(settings["loss"], model, recipe, named)
    units = (keras.tree.flatten(ends.output_shape_of(model)) or [None])[-1]
    logits = not any(
        ends.find(one, model).kind for one in keras.tree.flatten(ends.output_of(model))
    )
    if loss:
        logits &= _threshold(loss["class_name"], loss["config"], units) == 0
    for metric in keras.tree.flatten(settings.get("metrics") or []):
        if note := _check_metric(metric, model, recipe, logits):
            findings.append(note)
    return optimizer, loss, [*findings, *notes]


def loss_of(config: dict | None, recipe: Recipe, model: keras.Model):
    """Return a compiled loss, for the task to call; None: the task's own is used.

    Args:
        config: the loss as Keras serializes it, or None.

    Raises:
        GpuzooError: the task cannot minimise it.
    """
    kind = tasks.load(recipe.task)
    logits = config is None or "from_logits" in config["config"]
    if kind.from_logits and logits:
        if fault := ends.scaled(ends.output_of(model), model):
            raise GpuzooError(
                f"model {model.name!r} {fault}, and its loss is computed from logits; "
                f"end it in Dense({ends.output_shape_of(model)[-1]}) without activation"
            )
    if config is None or not kind.takes_loss:  # it is the task's own loss
        return None
    loss = optim.deserialized(config, keras.losses)
    name = type(loss).__name__
    if getattr(loss, "reduction", "") not in ("sum_over_batch_size", "sum", "mean"):
        raise GpuzooError(
            f"compiled loss {name} has reduction={loss.reduction!r}; training needs "
            "'sum_over_batch_size' or 'sum'"
        )
    if loss.reduction == "sum" and recipe.accumulate > 1:
        refuse_sum(f"accumulate={recipe.accumulate}", name)
    ignored = config["config"].get("ignore_class")
    if ignored is not None:
        raise GpuzooError(
            f"compiled loss {name} has ignore_class={ignored}, which is not supported; "
            "remove the examples of that class from the data"
        )
    several = kind.target == "labels"
    if several and name not in _OF_LABELS:
        raise GpuzooError(
            f"compiled loss {name} is not for several labels per example; compile the "
            f"model with {' or '.join(_OF_LABELS)}"
        )
    return _Loss(loss, model, several)


class _Loss:
    """A compiled loss: labels (batch,) and logits (batch, classes) to the loss of each
    example, as Keras computes it from the outputs of the model; `several`: labels of 0
    and 1, (batch, classes)."""

    def __init__(self, loss: keras.losses.Loss, model: keras.Model, several=False):
        self.several = several
        name, config = type(loss).__name__, loss.get_config()
        self.loss, self.reduction = loss, loss.reduction
        self.sparse = name in _SPARSE
        output = ends.output_of(model)
        self.units, self.end = (
            ends.output_shape_of(model)[-1],
            ends.find(output, model).kind,
        )
        self.threshold = 0.0 if self.end else _threshold(name, config, self.units)
        of_classes = name in (
            "SparseCategoricalCrossentropy",
            "CategoricalCrossentropy",
        )
        if self.units == 1 and of_classes:
            raise GpuzooError(
                f"compiled loss {name} compares several units, and the model has one; "
                "compile it with BinaryCrossentropy"
            )
        if "from_logits" not in config:
            self._check_rows(name)
            return
        if bool(self.end) == config["from_logits"]:
            puts = f"ends in a {self.end}" if self.end else "puts out logits"
            takes = "logits" if config["from_logits"] else "probabilities"
            raise GpuzooError(
                f"compiled loss {name} takes {takes}, and the model {puts}; compile it "
                f"with {name}(from_logits={not self.end})"
            )
        of_units = self.units == 1 or several
        exact = of_classes or (name == "BinaryCrossentropy" and of_units)
        if self.end and exact:  # the same function of the logits: no rounding to 0
            self.end = ""
            self.loss = type(loss).from_config({**config, "from_logits": True})
        self._check_rows(name)

    def _check_rows(self, name: str) -> None:
        """Raise GpuzooError unless each example has a loss that depends on it alone."""
        classes = max(self.units, 2)
        labels = (np.arange(4) % classes).astype("int32")
        if self.several:
            labels = np.eye(classes, dtype="int32")[labels]
        logits = np.linspace(-2, 2, 4 * classes, dtype="float32").reshape(4, classes)
        why = "does not give one number for each example"
        try:
            each, first = (
                keras.ops.convert_to_numpy(self(labels[:rows], logits[:rows]))
                for rows in (4, 2)
            )
            if each.shape == (4,):
                if np.allclose(each[:2], first, 1e-3, 1e-5, equal_nan=True):
                    return
                why = "compares the examples of a batch with each other"
        except Exception as error:  # whatever Keras raises of a wrong shape
            why = f"cannot be computed: {str(error).strip().partition(chr(10))[0]}"
        raise GpuzooError(
            f"compiled loss {name} {why}, of labels (batch,) "
            f"and outputs (batch, {self.units}); compile it with a cross-entropy"
        )

    def __call__(self, labels, logits):
        if self.several:
            outputs = keras.ops.sigmoid(logits) if self.end else logits
            return self.loss.call(keras.ops.cast(labels, "float32"), outputs)
        if self.units == 1:
            logits, labels = logits[:, 1:], keras.ops.cast(labels, "float32")[:, None]
            outputs = keras.ops.sigmoid(logits) if self.end else logits
            return self.loss.call(labels, outputs)
        outputs = keras.ops.softmax(logits) if self.end else logits
        if not self.sparse:
            labels = keras.ops.one_hot(labels, self.units, dtype="float32")
        return self.loss.call(labels, outputs)


def _threshold(name: str, config: dict, units: int) -> float:
    """Return the threshold between two classes of one unit without an activation."""
    of_labels = "from_logits" not in config and name not in _AROUND_0
    return 0.5 if units == 1 and of_labels else 0.0


def _optimizer(model: keras.Model, raw, recipe: Recipe, named: set[str]):
    """Return the optimizer, serialized; None if the user has named another."""
    optimizer = model.optimizer
    wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if wrapped and not isinstance(raw, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer  # compile() has wrapped it
    kind = type(optimizer).__name__
    if "optimizer" in named:
        return None, [f"the optimizer named to train() replaces the compiled {kind}"]
    unused = sorted(named & set(_OPTIMIZER_FIELDS) - {"learning_rate"})
    if unused:
        raise GpuzooError(
            f"{unused[0]} has no effect beside the compiled {kind}: set it there, or "
            "name optimizer= to train(), too"
        )
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(inner, keras.optimizers.MultiOptimizer):
        raise GpuzooError(
            "the model is compiled with MultiOptimizer, which is not supported: one "
            "optimizer updates all weights; compile it with one of its optimizers, or "
            "name optimizer= to train()"
        )
    rate = keras_state.given_learning_rate(optimizer)
    if callable(rate) and not isinstance(rate, _SCHEDULE | keras.Variable):
        raise _refused(f"{kind} with a function as its learning rate", "optimizer")
    config = _serialized(optimizer, keras.optimizers, "optimizer")
    config["config"].pop("name", None)  # numbered by what the process has built
    if places := _undecayed(model, optimizer):
        config[optim.UNDECAYED] = places
    notes = []
    if done := int(np.array(optimizer.iterations)):
        notes.append(
            f"the compiled {kind} starts from zero: its state after {done} steps of "
            "Keras's fit is not used"
        )
    if "learning_rate" in named:
        inner = config["config"].get("inner_optimizer", config)["config"]
        inner["learning_rate"] = recipe.learning_rate
        notes.append("the learning_rate named to train() replaces the compiled one")
    return config, notes


def _undecayed(model: keras.Model, optimizer) -> list[int]:
    """Return the places in the model's trainable weights that
    `exclude_from_weight_decay` has excluded, which Keras does not serialize."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    weights = enumerate(model.trainable_variables)
    return [place for place, one in weights if not keras_state.decays(inner, one)]


def _loss(raw, model: keras.Model, recipe: Recipe, named: set[str]) -> dict | None:
    """Return the loss, serialized as an object of its class."""
    losses = keras.tree.flatten(raw)
    if raw is None:
        return None
    if len(losses) != 1:
        raise GpuzooError(f"the model is compiled with {len(losses)} losses, not one")
    (loss,) = losses
    if str(loss).lower() in ("crossentropy", "ce"):  # Keras chooses by the shapes
        one = keras.tree.flatten(ends.output_shape_of(model))[-1] == 1
        loss = "binary_crossentropy" if one else "sparse_categorical_crossentropy"
    if isinstance(loss, str):
        try:
            keras.losses.get(loss)
        except ValueError:
            raise _refused(repr(loss), "loss") from None
    if not isinstance(loss, keras.losses.Loss):
        name = getattr(keras.losses.get(loss), "__name__", str(loss))
        kinds = {
            one.lower(): kind
            for one, kind in vars(keras.losses).items()
            if isinstance(kind, type)  # the function hinge is not the class Hinge
        }
        kind = kinds.get(name.replace("_", "").lower())
        if kind is None or isinstance(keras.losses.get(loss), type):
            raise _refused(name, "loss")
        if callable(loss) and loss is not getattr(keras.losses, name, None):
            raise _refused(name, "loss")
        loss = kind()
    config = _serialized(loss, keras.losses, "loss")
    kind = config["class_name"]
    # Keras's Huber does not serialize its delta; others do the same.
    wanted = dict(keras_state.function_arguments(loss))
    again = optim.deserialized(config, keras.losses)
    found = keras_state.function_arguments(again)
    if missing := {k: v for k, v in wanted.items() if found.get(k) != v}:
        config["config"].update(missing)
        again = optim.deserialized(config, keras.losses)
        if keras_state.function_arguments(again) != wanted:
            raise GpuzooError(
                f"the model is compiled with the loss {kind}, whose settings cannot be "
                f"serialized: {missing}"
            )
    task = tasks.load(recipe.task)
    if kind == task.keras_loss:
        return config
    if not task.takes_loss:
        raise GpuzooError(
            f"the model is compiled with the loss {kind}; the task {recipe.task} has "
            f"its own loss ({task.loss_name}): remove loss from compile()"
        )
    if "label_smoothing" in named:
        raise GpuzooError(
            f"label_smoothing has no effect beside the compiled {kind}: set it there"
        )
    return config


def _check_metric(metric, model: keras.Model, recipe: Recipe, logits: bool) -> str:
    """Return a note on a compiled metric; mostly empty.

    Args:
        logits: whether the outputs are logits, whose threshold is 0.

    Raises:
        GpuzooError: the task does not measure it.
    """
    kind = type(metric).__name__
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", kind)
    known = tasks.load(recipe.task).keras_metrics(model, isinstance(metric, str))
    theirs = isinstance(metric, str) or metric is getattr(keras.metrics, name, None)
    if isinstance(metric, keras.metrics.Metric):
        same = type(metric) is getattr(keras.metrics, kind, None)
        theirs = same and not _changed(metric)
    if not theirs or name.replace("_", "").lower() not in known:
        own = "" if theirs else " of your own"
        raise GpuzooError(
            f"the model is compiled with the metric {name}{own}, which the task "
            f"{recipe.task} does not measure; remove it from compile() and compute it "
            "from model.predict() after the training"
        )
    threshold = keras_state.function_arguments(metric).get("threshold", 0.5)
    used = 0 if logits else 0.5
    if name.replace("_", "").lower() != "binaryaccuracy" or threshold == used:
        return ""
    if threshold != 0.5:
        raise GpuzooError(
            f"the model is compiled with {name}(threshold={threshold}), and accuracy "
            f"is measured here with {used}; remove it from compile() and compute it "
            "from model.predict() after the training"
        )
    return (
        f"{name} counts logits above 0 here, which are probabilities above 0.5; Keras "
        "itself would count those above its threshold 0.5"
    )


def _changed(part) -> str | None:
    """Return the name of a user function that was set on a Keras object, or None."""
    rate = keras_state.given_learning_rate(part)
    for name, value in vars(part).items():
        if architecture.is_foreign(value):
            return name
        nested = value is rate or name == "inner_optimizer"
        if (
            nested
            and not isinstance(value, keras.Variable)
            and hasattr(value, "__dict__")
        ):
            if found := _changed(value):
                return found
    return None


def _serialized(part, module, what: str) -> dict:
    """Return the serialized settings of a Keras optimizer or loss."""
    kind = type(part)
    if not kind.__module__.startswith("keras."):
        raise _refused(kind.__name__, what)
    try:
        config = json.loads(json.dumps(module.serialize(part)))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise GpuzooError(
            f"the model is compiled with {what} {kind.__name__}, whose settings cannot "
            f"be serialized: {str(error).partition(chr(10))[0]}"
        ) from None
    for foreign in architecture.foreign_parts(config):
        raise _refused(f"{kind.__name__} with {foreign}", what)
    if name := _changed(part):
        raise _refused(f"{kind.__name__} with its own {name} set on it", what)
    return config


def _refused(name: str, what: str) -> GpuzooError:
    return GpuzooError(
        f"the model is compiled with the {what} {name}, which is not Keras's own; use "
        f"one of keras.{'losses' if what == 'loss' else 'optimizers'}, or leave it out"
    )


def refuse_sum(what: str, name: str) -> None:
    """Refuse a loss that is a sum over the examples of a batch."""
    raise GpuzooError(
        f"compiled loss {name} has reduction='sum', and {what} averages over the parts "
        f"of a batch; compile it with the default reduction, or leave "
        f"{what.partition('=')[0]} out"
    )
