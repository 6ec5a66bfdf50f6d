"""Object detection: boxes and classes of the objects in an image."""

import math

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.tasks import augment, base, ends, scenes

STRIDE = 4  # pixels per cell of the model's map
SIZE = 16.0  # pixels per unit of its heights and widths
FOUND = 20  # boxes kept per image
_WIDTH = 0.7  # cells; sigma of the Gaussian around the centre of an object

MAP50 = base.Metric("map50", greater_is_better=True)


class Task(base.Task):
    """Minimise the focal loss of object centres and the error of their boxes.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    light on dark, with labels (batch,), int32. Inside the step one to four of them are
    put on a canvas (gpuzoo/tasks/scenes.py). The model maps canvases to cells, see
    models/detector.py. The losses are those of Zhou et al. (CenterNet), arXiv
    1904.07850, with a Gaussian of one width for objects of all sizes.

    Metrics: `loss`, per object; in an evaluation also `map50`, the mean average
    precision at an IoU of 0.5 as defined by COCO, computed by faster-coco-eval. The
    scenes of the test images are always the same.
    """

    fields = ("image", "label")
    loss_name = "focal loss of the centres and L1 error of the boxes"
    metrics = (base.LOSS, MAP50)
    headline = MAP50
    pictures = ("detections",)
    expansion = 8
    own_draws = scenes.DRAWS

    def __init__(self, *, dataset, **parts):
        super().__init__(dataset=dataset, **parts)
        self.size, self.classes = scenes.canvas(dataset), len(dataset.classes)

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        shape = (len(dataset.test["image"]), scenes.DRAWS)
        ways = randomness.uniform(shape, self.recipe.seed, "detect", "test")
        self.ways = keras.ops.convert_to_tensor(ways.astype(np.float32))

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        classes = len(dataset.classes)
        return {"input_shape": scenes.canvas(dataset), "num_classes": classes}

    @staticmethod
    def check_data(dataset) -> str | None:
        """Return what is wrong with the data, or None."""
        for name, split in dataset.splits.items():
            if not scenes.any_object(split["image"]):
                return (
                    f"have no {name} image with a pixel brighter than 0.2, which "
                    "detection needs; invert images that are dark on light"
                )
        return None

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        height, width, _ = canvas = scenes.canvas(dataset)
        if fault := base.Task.misfit(model, canvas):
            return fault
        cells = (height // STRIDE, width // STRIDE, len(dataset.classes) + 4)
        found = ends.output_shape_of(model)
        return None if found == (None, *cells) else f"puts out {found}, not {cells}"

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the loss of the batch."""
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
        """Return of each example its scene as `canvas`, uint8; `boxes`, `label` and
        `present` as in scenes.py; the detections, (batch, FOUND), as `found_boxes`,
        `found_label` and `score`; the summed loss and the `count` of objects."""
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

    @classmethod
    def taken_shape(cls, dataset) -> tuple[int, ...]:
        """Return the shape of a canvas."""
        return scenes.canvas(dataset)

    def inputs(self, batch: dict) -> dict:
        """Return the scenes of test examples as `image`, uint8."""
        ways = keras.ops.take(self.ways, batch["index"], axis=0)
        pixels = augment.pixels(batch["image"])
        scene = scenes.make(pixels, batch["label"], ways, self.size)
        return {"image": augment.bytes_of(scene["image"])}

    def infer(self, batch: dict) -> dict:
        """Return the detections in canvases, (batch, FOUND): `found_boxes`,
        `found_label` and `score`."""
        return self._found(self.model(augment.pixels(batch["image"]), training=False))

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation."""
        total = np.sum(outputs["loss"], dtype=np.float64)
        loss = float(total / max(1.0, np.sum(outputs["count"])))
        return {"loss": loss, "map50": mean_average_precision(outputs, self.classes)}

    def _found(self, cells) -> dict:
        """Return the FOUND cells of highest score among local maxima."""
        cells = keras.ops.cast(cells, "float32")
        _, rows, columns, _ = cells.shape  # of any batch, also when exported
        scores = keras.ops.sigmoid(cells[..., : self.classes])
        highest = keras.ops.max_pool(scores, 3, strides=1, padding="same")
        scores = keras.ops.where(scores == highest, scores, 0.0)
        flat = keras.ops.reshape(scores, (-1, rows * columns * self.classes))
        score, index = keras.ops.top_k(flat, min(FOUND, flat.shape[1]))
        index = keras.ops.cast(index, "int32")
        label, cell = index % self.classes, index // self.classes
        sizes = keras.ops.reshape(cells[..., self.classes :], (-1, rows * columns, 4))
        sizes = keras.ops.take_along_axis(sizes, cell[..., None], axis=1)
        place = keras.ops.stack([cell // columns, cell % columns], axis=-1)
        middle = (keras.ops.cast(place, "float32") + sizes[..., 2:]) * STRIDE
        half = keras.ops.maximum(sizes[..., :2], 0.0) * (SIZE / 2)
        boxes = keras.ops.concatenate([middle - half, middle + half], axis=-1)
        return {"found_boxes": boxes, "found_label": label, "score": score}


def loss(objects, cells):
    """Return the loss of detection, for Keras's `compile`: a scalar, per object.

    Args:
        objects: the targets of `fit`, (batch, objects, 6), float32: top, left, bottom
            and right in pixels, the class, and 1.0, or 0.0 for no object.
        cells: the outputs of the model, see models/detector.py.
    """
    label = keras.ops.cast(objects[..., 4], "int32")
    scene = {"boxes": objects[..., :4], "label": label, "present": objects[..., 5]}
    return per_object(*losses_of(scene, cells))


def per_object(losses, counts):
    """Return the mean over all objects, a scalar, of results of `losses_of`."""
    return keras.ops.sum(losses) / keras.ops.maximum(keras.ops.sum(counts), 1.0)


def losses_of(scene: dict, cells) -> tuple:
    """Return the loss summed over the objects of each scene (gpuzoo/tasks/scenes.py),
    and their number, (batch,)."""
    cells = keras.ops.cast(cells, "float32")
    count = cells.shape[-1] - 4
    logits, regressed = cells[..., :count], cells[..., count:]
    present, boxes = scene["present"], scene["boxes"]
    middles = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    corner = keras.ops.floor(middles)
    # Distance of each cell from the object's own, (batch, objects, rows, columns).
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
    at = keras.ops.einsum("bkyx,byxf->bkf", own, regressed)
    sizes = (boxes[..., 2:] - boxes[..., :2]) / SIZE
    wanted = keras.ops.concatenate([sizes, middles - corner], axis=-1)
    error = keras.ops.abs(at - wanted) * present[..., None]
    return loss + _sum(error), keras.ops.sum(present, axis=1)


def mean_average_precision(outputs: dict[str, np.ndarray], classes: int) -> float:
    """Return the mean average precision at an IoU of 0.5 over the classes that occur;
    nan if there is no object. Outputs as evaluate() returns them, of all examples."""
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
    """Sum over all axes but the first."""
    return keras.ops.sum(values, axis=tuple(range(1, len(values.shape))))
