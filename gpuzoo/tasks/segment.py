"""Semantic segmentation: predict the class of every pixel."""

import keras
import numpy as np

from gpuzoo.data import balance, masks
from gpuzoo.data.masks import VOID
from gpuzoo.tasks import augment, augment_masks, base, ends, scores

MEAN_IOU = base.Metric("mean_iou", greater_is_better=True)


class Task(base.Task):
    """Minimise the cross-entropy of the classes of pixels.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    with masks (batch, height, width), uint8: the class of each pixel, or VOID (255) if
    it is not known. The model maps images in [0, 1] to logits (batch, height, width,
    classes), or to a softmax of these over the last axis, which the loss leaves out.

    The loss is the mean over the pixels of the batch that are not VOID. With class
    weights the loss of each pixel is multiplied by the weight of its class; the mean is
    over as many pixels.

    Metrics, without VOID pixels: `loss`, `accuracy` of a pixel, and in an evaluation
    `mean_iou`, the mean intersection over union (Jaccard index) of the classes that
    occur in the masks or in the predictions, over all pixels of all examples.
    """

    fields = ("image", "mask")
    loss_name = "cross-entropy of each pixel"
    step_metrics = (base.LOSS, base.ACCURACY)
    metrics = (base.LOSS, MEAN_IOU, base.ACCURACY)
    headline = MEAN_IOU
    pictures = ("segmentations", "confusion_of_pixels")
    expansion = 4
    uses = frozenset({"augment", "class_weight"})

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.names = dataset.classes
        self.network = ends.Network(self.model, dataset.input_shape)

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        self.class_weights = None
        if optimizers and self.recipe.class_weight:
            weights = balance.class_weights(self.recipe.class_weight, dataset)
            weights = np.array(list(weights.values()), np.float32)
            self.class_weights = keras.ops.convert_to_tensor(weights)

    @classmethod
    def check_recipe(cls, recipe) -> None:
        """Raise GpuzooError for an augmentation that is not for masks, too."""
        super().check_recipe(recipe)
        augment_masks.check(recipe.augment)

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return base.shape_and_classes(dataset)

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        if fault := base.Task.misfit(model, dataset.input_shape):
            return fault
        height, width, _ = dataset.input_shape
        classes, found = len(dataset.classes), ends.output_shape_of(model)
        wanted = (None, height, width, classes)
        if found != wanted:
            return (
                f"puts out {found}, not (batch, height, width, classes) = {wanted}; "
                f"end it in Conv2D({classes}, 1)"
            )
        return _no_logits(model, classes)

    @classmethod
    def keras_metrics(cls, model: keras.Model, by_name: bool) -> set[str]:
        """Return the Keras metrics that are its accuracy."""
        return {"sparsecategoricalaccuracy", *(("accuracy", "acc") if by_name else ())}

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the loss and the accuracy of the batch."""
        images, wanted = augment_masks.apply(
            self.changes, batch["image"], batch["mask"], draws
        )
        pixels = augment.pixels(images, self.compute_dtype)

        def loss():
            logits = self._logits(pixels, training=True)
            losses, known = self._losses(wanted, logits, self.class_weights)
            mean = keras.ops.sum(losses) / _at_least_one(keras.ops.sum(known))
            return mean, (mean, logits, known)

        mean, logits, known = self.minimise(loss, backend)
        right = keras.ops.cast(keras.ops.equal(_decided(logits), wanted), "float32")
        accuracy = keras.ops.sum(right * known) / _at_least_one(keras.ops.sum(known))
        return {"loss": mean, "accuracy": accuracy}

    def evaluate(self, batch: dict) -> dict:
        """Return of each example the class of each pixel, `predicted`, uint8, and its
        probability, `confidence`; the summed loss and the `count` of known pixels."""
        logits = self._infer(batch)
        outputs = _outputs(logits)
        losses, known = self._losses(batch["mask"], logits)
        return {
            "loss": keras.ops.sum(losses, axis=(1, 2)),
            "count": keras.ops.sum(known, axis=(1, 2)),
            **outputs,
            "predicted": keras.ops.cast(outputs["predicted"], "uint8"),
        }

    def infer(self, batch: dict) -> dict:
        """Return of each example the class of each pixel, `predicted`, (batch, height,
        width), int32, and its probability, `confidence`."""
        return _outputs(self._infer(batch))

    def in_units(self, outputs: dict) -> dict:
        """Return the outputs of `infer` with masks as the data have them, uint8: some
        formats of exported models have no such cast."""
        return {**outputs, "predicted": outputs["predicted"].astype(np.uint8)}

    def _infer(self, batch: dict):
        pixels = keras.ops.cast(augment.pixels(batch["image"]), self.compute_dtype)
        return self._logits(pixels, training=False)

    def _logits(self, pixels, training: bool):
        return keras.ops.cast(self.network(pixels, training=training), "float32")

    def _losses(self, mask, logits, weights=None) -> tuple:
        """Return the loss of each pixel, 0 of a VOID one, and 1 for each other one."""
        known = keras.ops.cast(keras.ops.not_equal(mask, VOID), "float32")
        classes = keras.ops.cast(mask, "int32") * keras.ops.cast(known, "int32")
        wanted = keras.ops.one_hot(classes, logits.shape[-1], dtype="float32")
        likely = keras.ops.log_softmax(logits, axis=-1)
        losses = -keras.ops.sum(wanted * likely, axis=-1) * known
        if weights is not None:
            losses = losses * keras.ops.sum(wanted * weights, axis=-1)
        return losses, known

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        count = max(1.0, np.sum(outputs["count"], dtype=np.float64))
        told, classes = outputs["predicted"], len(self.names)
        confusion = masks.confusion_of(arrays["mask"], told, classes)
        iou = masks.overlaps(confusion)["mean_iou"]
        return {
            "loss": float(np.sum(outputs["loss"], dtype=np.float64) / count),
            **({} if np.isnan(iou) else {"mean_iou": iou}),
            "accuracy": float(np.trace(confusion) / count),
        }

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the figures of the final evaluation."""
        return scores.segmentation(arrays["mask"], outputs["predicted"], self.names)


def _outputs(logits) -> dict:
    confidence = keras.ops.max(keras.ops.softmax(logits, axis=-1), axis=-1)
    return {"predicted": _decided(logits), "confidence": confidence}


def _decided(logits):
    # Keras's argmax looks at the bits of floats, for which ONNX has no operation.
    _, index = keras.ops.top_k(logits, 1)
    return keras.ops.cast(index[..., 0], "int32")


def _at_least_one(count):
    """Return a number of pixels to divide by: all of a batch may be VOID."""
    return keras.ops.maximum(count, 1.0)


def _no_logits(model: keras.Model, classes: int) -> str | None:
    """Return what is wrong with the end of a model of the right shape, or None."""
    output = ends.output_of(model)
    end = ends.find(output, model)
    wanted = f"end it in Conv2D({classes}, 1) without an activation"
    if not end.kind:
        if end.operation is not None and ends.in_unit_range(end, model):
            name = end.operation.name
            return f"puts out values between 0 and 1, from {name!r}; {wanted}"
        fault = ends.scaled(output, model)
        return fault and f"{fault}; {wanted}"
    if end.kind == "softmax" and end.only_moved() and end.used_once(model):
        last = len(end.tensor.shape) - 1
        if end.axis in (-1, last) and not end.after and ends.skips_only(end, model):
            return None
    return f"ends in a {end.kind}{end.reason(model)}; {wanted}"
