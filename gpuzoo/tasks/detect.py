"""Detection: where in an image things are, and of which class."""

import math

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.tasks import augment, base, ends, scenes

STRIDE = 4  # pixels for one cell of the model's map
SIZE = 16.0  # pixels in one unit of its heights and widths
FOUND = 20  # boxes that are kept of each image
_WIDTH = 0.7  # cells, of the bell around the middle of an object

MAP50 = base.Metric("map50", greater_is_better=True)


class Task(base.Task):
    """The focal loss of the middles of objects, and the error of their boxes.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    light on dark, with labels (batch,), int32. Inside of the step one to four of them
    are put on a canvas (gpuzoo/tasks/scenes.py). The model maps canvases to cells, as
    models/detector.py tells. The losses are those of Zhou et al., arXiv 1904.07850,
    with a bell of one width for objects of all sizes.

    Figures: `loss`, per object; in an evaluation also `map50`, the mean over the
    classes of the average precision at an overlap of 0.5, as COCO counts it, computed
    by faster-coco-eval. The scenes of the test images are always the same.
    """

    fields = ("image", "label")
    loss_name = "focal loss of the middles, and the error of the boxes"
    metrics = (base.LOSS, MAP50)
    headline = MAP50
    pictures = ("detections",)
    expansion = 8
    own_draws = scenes.DRAWS

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.size, self.classes = scenes.canvas(dataset), len(dataset.classes)
        shape = (len(dataset.test["image"]), scenes.DRAWS)
        ways = randomness.uniform(shape, recipe.seed, "detect", "test")
        self.ways = keras.ops.convert_to_tensor(ways.astype(np.float32))

    @staticmethod
    def model_options(dataset) -> dict:
        """Options of the model that follow from the data."""
        classes = len(dataset.classes)
        return {"input_shape": scenes.canvas(dataset), "num_classes": classes}

    @staticmethod
    def check_data(dataset) -> str | None:
        """What is wrong with the data, or None."""
        for name, split in dataset.splits.items():
            if not scenes.any_object(split["image"]):
                return (
                    f"have no {name} image with a pixel lighter than a fifth, which is "
                    "what is found on a canvas; turn dark images on light ones over"
                )
        return None

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """What is wrong with a model, or None."""
        height, width, _ = canvas = scenes.canvas(dataset)
        if fault := base.Task.misfit(model, canvas):
            return fault
        cells = (height // STRIDE, width // STRIDE, len(dataset.classes) + 4)
        found = ends.output_shape_of(model)
        return None if found == (None, *cells) else f"puts out {found}, not {cells}"

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of training; returns the loss of the batch."""
        ours = scenes.DRAWS
        images, _ = augment.apply(self.changes, batch["image"], draws[:, ours:])
        pixels = augment.pixels(images)
        scene = scenes.make(pixels, batch["label"], draws[:, :ours], self.size)

        def loss():
            cells = self.model(scene["image"], training=True)
            loss = per_object(*losses_of(scene, cells))
            return loss, {"loss": loss}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Per example: its scene as `canvas`, uint8, with `boxes`, `label` and
        `present` as in scenes.py; what was found there, (batch, FOUND), as
        `found_boxes`, `found_label` and `score`; the loss and the `count` of objects
        that it is a sum over."""
        ways = keras.ops.take(self.ways, batch["index"], axis=0)
        pixels = augment.pixels(batch["image"])
        scene = scenes.make(pixels, batch["label"], ways, self.size)
        cells = self.model(scene["image"], training=False)
        losses, counts = losses_of(scene, cells)
        return {
            "canvas": augment.bytes_of(scene.pop("image")),
            **scene,
            **self._found(cells),
            "loss": losses,
            "count": counts,
        }

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """The figures of an evaluation."""
        total = np.sum(outputs["loss"], dtype=np.float64)
        loss = float(total / max(1.0, np.sum(outputs["count"])))
        return {"loss": loss, "map50": mean_average_precision(outputs, self.classes)}

    def _found(self, cells) -> dict:
        """The FOUND cells of the highest scores that no neighbour surpasses."""
        cells = keras.ops.cast(cells, "float32")
        batch, rows, columns, _ = cells.shape
        scores = keras.ops.sigmoid(cells[..., : self.classes])
        highest = keras.ops.max_pool(scores, 3, strides=1, padding="same")
        scores = keras.ops.where(scores == highest, scores, 0.0)
        flat = keras.ops.reshape(scores, (batch, -1))
        score, index = keras.ops.top_k(flat, min(FOUND, flat.shape[1]))
        index = keras.ops.cast(index, "int32")
        label, cell = index % self.classes, index // self.classes
        told = keras.ops.reshape(cells[..., self.classes :], (batch, -1, 4))
        told = keras.ops.take_along_axis(told, cell[..., None], axis=1)
        place = keras.ops.stack([cell // columns, cell % columns], axis=-1)
        middle = (keras.ops.cast(place, "float32") + told[..., 2:]) * STRIDE
        half = keras.ops.maximum(told[..., :2], 0.0) * (SIZE / 2)
        boxes = keras.ops.concatenate([middle - half, middle + half], axis=-1)
        return {"found_boxes": boxes, "found_label": label, "score": score}


def loss(objects, cells):
    """The loss of detection for Keras's `compile`: a scalar, per object of the batch.

    Args:
        objects: what `fit` is given as the goal, (batch, objects, 6), float32: top,
            left, bottom and right in pixels, the class, and 1.0, or 0.0 where there is
            none.
        cells: what the model puts out, as models/detector.py tells.
    """
    label = keras.ops.cast(objects[..., 4], "int32")
    scene = {"boxes": objects[..., :4], "label": label, "present": objects[..., 5]}
    return per_object(*losses_of(scene, cells))


def per_object(losses, counts):
    """The mean over all objects, a scalar, of what `losses_of` returns."""
    return keras.ops.sum(losses) / keras.ops.maximum(keras.ops.sum(counts), 1.0)


def losses_of(scene: dict, cells) -> tuple:
    """The sum over the objects of each scene, as gpuzoo/tasks/scenes.py makes them, and
    how many they are, (batch,)."""
    cells = keras.ops.cast(cells, "float32")
    count = cells.shape[-1] - 4
    logits, told = cells[..., :count], cells[..., count:]
    present, boxes = scene["present"], scene["boxes"]
    middles = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    corner = keras.ops.floor(middles)
    # Of each object how near a cell is to its own, (batch, objects, rows, columns).
    rows, columns = (
        np.arange(side, dtype="f4") - corner[..., axis, None]
        for axis, side in enumerate(cells.shape[1:3])
    )
    apart = keras.ops.square(rows)[..., :, None]
    apart = apart + keras.ops.square(columns)[..., None, :]
    near = keras.ops.exp(-apart / (2 * _WIDTH**2)) * present[..., None, None]
    classes = keras.ops.one_hot(scene["label"], count, dtype="float32")
    goal = keras.ops.max(
        near[..., None] * classes[:, :, None, None, :], axis=1
    )  # (batch, rows, columns, classes)
    # log p = -softplus(-x) and log(1 - p) = -softplus(x): neither overflows.
    p = keras.ops.sigmoid(logits)
    middle = keras.ops.square(1 - p) * keras.ops.softplus(-logits)
    other = (1 - goal) ** 4 * keras.ops.square(p) * keras.ops.softplus(logits)
    loss = _sum(keras.ops.where(goal == 1.0, middle, other))
    own = keras.ops.cast(apart == 0, "float32") * present[..., None, None]
    at = keras.ops.einsum("bkyx,byxf->bkf", own, told)
    sizes = (boxes[..., 2:] - boxes[..., :2]) / SIZE
    wanted = keras.ops.concatenate([sizes, middles - corner], axis=-1)
    error = keras.ops.abs(at - wanted) * present[..., None]
    return loss + _sum(error), keras.ops.sum(present, axis=1)


def mean_average_precision(outputs: dict[str, np.ndarray], classes: int) -> float:
    """The mean over the classes that occur of the average precision of the boxes that
    were found, at an overlap of 0.5; nan if there is no object. Outputs as evaluate()
    returns them, of all examples."""
    from faster_coco_eval import COCO, COCOeval_faster

    def rows(boxes, labels, taken, scores=None) -> list[dict]:
        boxes = boxes.astype(np.float64)
        sizes = boxes[..., 2:] - boxes[..., :2]
        found = []
        for number, (image, place) in enumerate(np.argwhere(taken), start=1):
            (top, left), (height, width) = boxes[image, place, :2], sizes[image, place]
            row = {
                "id": number, "image_id": int(image), "iscrowd": 0,
                "category_id": int(labels[image, place]),
                "bbox": [left, top, width, height], "area": height * width,
            }  # fmt: skip
            if scores is not None:
                row["score"] = float(scores[image, place])
            found.append(row)
        return found

    present = outputs["present"] > 0
    if not present.any():
        return math.nan
    truth = COCO({
        "images": [{"id": i} for i in range(len(present))],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": rows(outputs["boxes"], outputs["label"], present),
    })  # fmt: skip
    score = outputs["score"]
    found = rows(outputs["found_boxes"], outputs["found_label"], score > 0.01, score)
    if not found:
        return 0.0
    judge = COCOeval_faster(
        truth, truth.loadRes(found), "bbox", print_function=lambda *_: None
    )
    judge.params.iouThrs = np.array([0.5])
    judge.evaluate()
    judge.accumulate()
    # (overlaps, recalls, classes, areas, most boxes); -1: a class without objects.
    precision = judge.eval["precision"][0, :, :, 0, -1]
    return float(np.mean(precision[precision > -1], dtype=np.float64))


def _sum(values):
    """(batch, ...) -> (batch,)"""
    return keras.ops.sum(values, axis=tuple(range(1, len(values.shape))))
