"""Classification: predict the class of an example."""

import math

import keras
import numpy as np

from gpuzoo.data import balance
from gpuzoo.tasks import augment, base, ends, scores


class Task(base.Task):
    """Minimise the cross-entropy of logits, with label smoothing and class weights.

    With class weights the loss of each training example is multiplied by the weight of
    its class, and the mean is over the examples of the batch, as in Keras's `fit`.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    with labels (batch,), int32. The model maps images in [0, 1], without a channel axis
    of one or flat if it is built for that, to logits (batch, classes). If its last
    activation is a softmax, the loss uses the logits before it. For two classes one
    unit is enough: the logit of the second class, or a sigmoid of it.
    """

    fields = ("image", "label")
    field = "image"
    """The input of the model."""
    target = "label"
    """What it predicts."""
    loss_name = "cross-entropy"
    metrics = step_metrics = (base.LOSS, base.ACCURACY)
    headline = base.ACCURACY
    pictures = ("confusion", "mistakes")
    uses = frozenset(
        {"augment", "mixup and cutmix", "label_smoothing", "tta", "class_weight"}
    )
    from_logits = takes_loss = True

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.takes = self.field
        self.classes, self.names = len(dataset.classes), dataset.classes
        several = self.classes > scores.TOP
        self.measured = scores.CLASSIFIER if several else scores.FEW_CLASSES
        self.network = Logits(self.model, dataset.input_shape)
        self.smoothing = recipe.label_smoothing
        self.views = recipe.tta

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        self.class_weights = None
        if optimizers and self.recipe.class_weight:
            weights = balance.class_weights(self.recipe.class_weight, dataset)
            weights = np.array(list(weights.values()), np.float32)
            self.class_weights = keras.ops.convert_to_tensor(weights)

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return base.shape_and_classes(dataset)

    @classmethod
    def check_model(cls, model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        shape, classes = dataset.input_shape, len(dataset.classes)
        dtype = cls.input_dtype
        if fault := cls.misfit(model, shape, reshapes=True, dtype=dtype):
            return fault
        found = ends.output_shape_of(model)
        if found == (None, 1) and classes != 2:
            return (
                "puts out one number, enough for two classes, and the data have "
                f"{classes}; end it in Dense({classes})"
            )
        if found not in ((None, classes), (None, 1)):
            return f"puts out {found}, not (batch, classes) = (None, {classes})"
        return _no_logits(model, dataset)

    @classmethod
    def keras_metrics(cls, model: keras.Model, by_name: bool) -> set[str]:
        """Return the Keras metrics that are its accuracy."""
        known = {"sparsecategoricalaccuracy", "categoricalaccuracy"}
        if model.output_shape[-1:] == (1,):
            known = {"binaryaccuracy"}
        return known | ({"accuracy", "acc"} if by_name else set())  # Keras chooses one

    def prepare(self, images):
        """Return uint8 pixels as values in [0, 1] of the compute dtype."""
        return augment.pixels(images, self.compute_dtype)

    def rounded_once(self, images):
        """Return `image / 255` as users compute it for predict(); `prepare` also rounds
        the factor, which in 16 bits changes the metrics."""
        return keras.ops.cast(augment.pixels(images), self.compute_dtype)

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the loss and the accuracy of the batch."""
        mine, rest = draws, draws
        if self.own_draws:
            mine, rest = draws[:, : self.own_draws], draws[:, self.own_draws :]
        images, own = augment.apply(self.changes, batch[self.field], rest)
        images = self.prepare(self.disturbed(images, batch[self.target], mine, backend))

        def loss():
            logits = self.network(images, training=True)
            loss = self.loss(images, batch[self.target], own, logits)
            return loss, (loss, logits)

        loss, logits = self.minimise(loss, backend)
        correct = keras.ops.equal(self._decided(logits), batch[self.target])
        return {
            "loss": loss,
            "accuracy": keras.ops.mean(keras.ops.cast(correct, "float32")),
        }

    def disturbed(self, images, labels, draws, backend):
        """Return the images to train on, by the task's own draws: here they stay."""
        return images

    def loss(self, images, labels, own, logits):
        """Return the mean loss of a batch; `own`: the fraction of each image that is
        its own (mixup, cutmix), or None."""
        loss = self._weighted(labels, logits)
        if own is not None:
            other = self._weighted(keras.ops.flip(labels, axis=0), logits)
            loss = own * loss + (1 - own) * other
        if self.compiled and self.compiled.reduction == "sum":
            return keras.ops.sum(loss)
        return keras.ops.mean(loss)

    def evaluate(self, batch: dict) -> dict:
        """Return of each example the loss, the predicted class, its probability and the
        logits of all classes."""
        logits, outputs = self._infer(batch)
        losses = self._losses(batch[self.target], logits, smoothing=0.0)
        return {"loss": losses, **outputs}

    def infer(self, batch: dict) -> dict:
        """Return of each example the `predicted` class, its probability `confidence`
        and the `logits` of all classes, whose softmax are the probabilities."""
        return self._infer(batch)[1]

    def _infer(self, batch: dict) -> tuple:
        """Return the logits of the network, and the outputs of `infer`."""
        logits, each = self._logits(batch)
        decided = confident = self._apart(logits)
        if self.network.end.kind == "softmax" and len(each) == 1:
            # In the model's own precision, in which two classes may be equal.
            decided = keras.ops.softmax(each[0][1])
        return logits, {
            "predicted": _predicted(decided),
            "confidence": keras.ops.max(keras.ops.softmax(confident), axis=-1),
            "logits": confident,
        }

    def _logits(self, batch: dict) -> tuple:
        """Return the logits, averaged over the views of test-time augmentation, and
        weight and logits of each view."""
        images = self.rounded_once(batch[self.field])
        each = [
            (weight, self.network(view, training=False))
            for weight, view in _views(images, self.views)
        ]
        return sum(
            weight * keras.ops.cast(one, "float32") for weight, one in each
        ), each

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        return {
            "loss": float(np.mean(outputs["loss"], dtype=np.float64)),
            "accuracy": float(np.mean(outputs["predicted"] == arrays[self.target])),
        }

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the figures of the final evaluation."""
        return scores.classification(
            arrays["label"], outputs["predicted"], outputs["logits"], self.names
        )

    def blank_outputs(self, arrays: dict) -> dict:
        """Return outputs of a model that knows nothing, for `scores`."""
        target = arrays[self.target]
        logits = np.zeros((len(target), len(self.names)), np.float32)
        return {"predicted": np.zeros_like(target), "logits": logits}

    def _decided(self, logits):
        """Return the predictions of a step."""
        return _predicted(self._apart(logits))

    def _apart(self, logits):
        """Return logits with threshold 0, of one unit that a compiled loss such as
        MeanSquaredError trains to the labels 0 and 1 themselves."""
        threshold = self.compiled.threshold if self.compiled else 0.0
        return logits - np.float32([0, threshold]) if threshold else logits

    def _weighted(self, labels, logits):
        """Return the losses of training, each times the weight of its class."""
        losses = self._losses(labels, logits, self.smoothing)
        if self.class_weights is None:
            return losses
        return losses * keras.ops.take(self.class_weights, labels)

    def _losses(self, labels, logits, smoothing: float):
        """Return losses (batch,) of labels (batch,) and logits (batch, classes)."""
        logits = keras.ops.cast(logits, "float32")
        if self.compiled:
            return self.compiled(labels, logits)
        return keras.losses.categorical_crossentropy(
            keras.ops.one_hot(labels, self.classes, dtype="float32"), logits,
            from_logits=True, label_smoothing=smoothing,
        )  # fmt: skip


class Logits(ends.Network):
    """A classifier, called for logits (batch, classes)."""

    def __call__(self, examples, training: bool = False):
        logits = super().__call__(examples, training)
        if logits.shape[-1] > 1:
            return logits
        # The softmax of these is the sigmoid of the one.
        return keras.ops.concatenate([keras.ops.zeros_like(logits), logits], axis=-1)


def _no_logits(model: keras.Model, dataset) -> str | None:
    """Return what is wrong with the end of a model of the right shape, or None."""
    classes = len(dataset.classes)
    end = ends.find(ends.output_of(model), model)
    units = ends.output_shape_of(model)[-1]
    wanted = f"Dense({units}) without an activation"
    if not end.kind:
        if end.operation is None:
            return None
        what = ""
        if ends.in_unit_range(end, model):
            what = "values between 0 and 1"
        if units > 1 and ends.gives_probabilities(end, model):
            what = "probabilities"
        if not what:
            return None
        return (
            f"puts out {what}, from {end.operation.name!r}; let it put out the logits: "
            f"{wanted}"
        )
    if (end.kind, units) == ("softmax", 1):
        return "ends in a softmax of one unit, which is always 1; use a sigmoid"
    if end.kind == "sigmoid" and units > 1:
        return (
            f"ends in a sigmoid of {units} units, for several labels per example, and "
            f"the data have one; end it in Dense({classes}, activation='softmax')"
        )
    exact = end.kind in ("softmax", "sigmoid") and end.only_moved()
    if exact and end.used_once(model):
        shape = end.tensor.shape
        if end.kind == "softmax" and shape[end.axis] != math.prod(shape[1:]):
            return (
                f"ends in a softmax over an axis of {shape}; let it put out the logits"
            )
        if ends.skips_only(end, model):
            return None
    return f"ends in a {end.kind}{end.reason(model)}; end it in {wanted}"


def _views(images, kind: str) -> list[tuple[float, object]]:
    """Return the views of test-time augmentation with weights that add up to 1; shifted
    ones are padded with 0."""
    if kind == "none":
        return [(1.0, images)]
    both = [images, keras.ops.flip(images, axis=2)]
    if kind == "flip":
        return [(0.5, view) for view in both]
    views = [(0.25, view) for view in both]
    for before, after in ((1, 0), (0, 1)):
        pad = ((0, 0), (before, after), (before, after), (0, 0))
        first, last = (after, None) if after else (0, -1)
        for view in both:
            padded = keras.ops.pad(view, pad)
            views.append((0.125, padded[:, first:last, first:last]))
    return views


def _predicted(logits):
    return keras.ops.cast(keras.ops.argmax(logits, axis=-1), "int32")
