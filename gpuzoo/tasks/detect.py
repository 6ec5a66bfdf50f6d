"""Object detection: boxes and classes of the objects in an image."""

import math

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.data import boxes as data_boxes
from gpuzoo.tasks import augment, augment_boxes, base, ends, scenes

STRIDE = 4  # pixels per cell of the model's map
SIZE = 16.0  # pixels per unit of its heights and widths
FOUND = 20  # boxes kept per scene
FOUND_GIVEN = 100  # boxes kept per image of the user's own, as in COCO
_WIDTH = 0.7  # cells; sigma of the Gaussian around the centre of an object

_REACH = 4  # cells beyond which the Gaussian is below 1e-7
MAP50 = base.Metric("map50", greater_is_better=True)
MAP = base.Metric("map", greater_is_better=True)


class Task(base.Task):
    """Minimise the focal loss of object centres and the error of their boxes.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1], in
    one of two forms. With `objects` (batch, most, 6), see gpuzoo/data/boxes.py, they
    are the scenes. With labels (batch,), int32, light on dark, inside the step one to
    four of them are put on a canvas (gpuzoo/tasks/scenes.py). The model maps scenes to
    cells, see models/detector.py. The losses are those of Zhou et al. (CenterNet),
    arXiv 1904.07850, with a Gaussian of one width for objects of all sizes; cells in
    objects to be ignored have none.

    Metrics: `loss`, per object; in an evaluation also `map50`, the mean average
    precision at an IoU of 0.5, and `map`, its mean over IoUs from 0.5 to 0.95, as
    defined by COCO, computed by faster-coco-eval. The composed scenes of the test
    images are always the same.
    """

    fields = ("image", "label")
    loss_name = "focal loss of the centres and L1 error of the boxes"
    metrics = (base.LOSS, MAP50, MAP)
    headline = MAP50
    pictures = ("detections",)
    expansion = 8
    own_draws = scenes.DRAWS

    def __init__(self, *, dataset, **parts):
        super().__init__(dataset=dataset, **parts)
        self.fields, self.given = self.fields_of(dataset), _given(dataset)
        self.size, self.classes = _size(dataset), len(dataset.classes)
        self.most = FOUND_GIVEN if self.given else FOUND

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        if self.given:
            return
        shape = (len(dataset.test["image"]), scenes.DRAWS)
        ways = randomness.uniform(shape, self.recipe.seed, "detect", "test")
        self.ways = keras.ops.convert_to_tensor(ways.astype(np.float32))

    @classmethod
    def fields_of(cls, dataset) -> tuple[str, ...]:
        """Return the arrays of an example of these data."""
        return ("image", "objects") if _given(dataset) else cls.fields

    @staticmethod
    def of_data(recipe, dataset):
        """Raise GpuzooError for an augmentation that is not for boxes; return the
        recipe."""
        if _given(dataset):
            augment_boxes.check(recipe.augment)
        return recipe

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {"input_shape": _size(dataset), "num_classes": len(dataset.classes)}

    @staticmethod
    def check_data(dataset) -> str | None:
        """Return what is wrong with the data, or None."""
        if _given(dataset):
            height, width, _ = dataset.input_shape
            if height % STRIDE or width % STRIDE:
                return (
                    f"have images of {width}x{height} pixels; detection needs sides "
                    f"that are multiples of {STRIDE}: set --image-size, or pad them"
                )
            return None
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
        height, width, _ = size = _size(dataset)
        if fault := base.Task.misfit(model, size):
            return fault
        cells = (height // STRIDE, width // STRIDE, len(dataset.classes) + 4)
        found = ends.output_shape_of(model)
        return None if found == (None, *cells) else f"puts out {found}, not {cells}"

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the loss of the batch."""
        scene = self._scene_to_learn(batch, draws)

        def loss():
            cells = self.model(scene["image"], training=True)
            loss = per_object(*losses_of(scene, cells))
            return loss, {"loss": loss}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return of each example its scene as `canvas`, uint8; `boxes`, `label`,
        `present` and `ignored` as of `_scene`; the detections, (batch, most), as
        `found_boxes`, `found_label` and `score`; the summed loss and the `count` of
        objects."""
        scene = self._scene(batch)
        cells = self.model(scene["image"], training=False)
        losses, counts = losses_of(scene, cells)
        return {
            "canvas": augment.bytes_of(scene.pop("image")),
            **scene,
            **self._found(cells),
            "loss": losses,
            "count": counts,
        }

    def _scene_to_learn(self, batch: dict, draws) -> dict:
        """Return the scenes of a training step, augmented, as `scenes.make` does."""
        if self.given:
            images, objects = augment_boxes.apply(
                self.changes, batch["image"], batch["objects"], draws[:, scenes.DRAWS :]
            )
            return self._scene({"image": images, "objects": objects})
        ours = scenes.DRAWS
        images, _ = augment.apply(self.changes, batch["image"], draws[:, ours:])
        pixels = augment.pixels(images)
        return scenes.make(pixels, batch["label"], draws[:, :ours], self.size)

    def _scene(self, batch: dict) -> dict:
        """Return the scenes of examples: `image` in [0, 1], and `boxes`, `label` and
        `present` as `scenes.make` does; of given ones also `ignored`, 1.0 or 0.0."""
        pixels = augment.pixels(batch["image"])
        if self.given:
            return {"image": pixels, **parts_of(batch["objects"])}
        ways = keras.ops.take(self.ways, batch["index"], axis=0)
        return scenes.make(pixels, batch["label"], ways, self.size)

    @classmethod
    def taken_shape(cls, dataset) -> tuple[int, ...]:
        """Return the shape of a scene."""
        return _size(dataset)

    def inputs(self, batch: dict) -> dict:
        """Return the scenes of test examples as `image`, composed ones uint8."""
        if self.given:
            return {"image": batch["image"]}
        return {"image": augment.bytes_of(self._scene(batch)["image"])}

    def infer(self, batch: dict) -> dict:
        """Return the detections in scenes, (batch, most): `found_boxes`, `found_label`
        and `score`."""
        return self._found(self.model(augment.pixels(batch["image"]), training=False))

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation."""
        total = np.sum(outputs["loss"], dtype=np.float64)
        loss = float(total / max(1.0, np.sum(outputs["count"])))
        at_50, mean = mean_average_precision(outputs, self.classes)
        found = {"loss": loss, "map50": at_50, "map": mean}
        # Without an object nothing can be found.
        return {k: v for k, v in found.items() if not math.isnan(v) or k == "loss"}

    def _found(self, cells) -> dict:
        """Return the cells of highest score among local maxima."""
        cells = keras.ops.cast(cells, "float32")
        _, rows, columns, _ = cells.shape  # of any batch, also when exported
        scores = keras.ops.sigmoid(cells[..., : self.classes])
        highest = keras.ops.max_pool(scores, 3, strides=1, padding="same")
        scores = keras.ops.where(scores == highest, scores, 0.0)
        flat = keras.ops.reshape(scores, (-1, rows * columns * self.classes))
        score, index = keras.ops.top_k(flat, min(self.most, flat.shape[1]))
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
            and right in pixels, the class, and 1.0, or 0.0 for no object (-1.0: to be
            ignored).
        cells: the outputs of the model, see models/detector.py.
    """
    return per_object(*losses_of(parts_of(objects), cells))


def parts_of(objects) -> dict:
    """Return `boxes`, `label`, `present` and `ignored` of objects (batch, most, 6)."""
    kind = objects[..., 5]
    return {
        "boxes": objects[..., :4],
        "label": keras.ops.cast(objects[..., 4], "int32"),
        "present": keras.ops.cast(kind == data_boxes.OBJECT, "float32"),
        "ignored": keras.ops.cast(kind == data_boxes.IGNORED, "float32"),
    }


def _given(dataset) -> bool:
    """Whether the examples have boxes of their own."""
    return "objects" in dataset.train


def _size(dataset) -> tuple[int, int, int]:
    """Return height, width and channels of the scenes."""
    return tuple(dataset.input_shape) if _given(dataset) else scenes.canvas(dataset)


def per_object(losses, counts):
    """Return the mean over all objects, a scalar, of results of `losses_of`."""
    return keras.ops.sum(losses) / keras.ops.maximum(keras.ops.sum(counts), 1.0)


def losses_of(scene: dict, cells) -> tuple:
    """Return the loss summed over the objects of each scene (`Task._scene`), and their
    number, (batch,)."""
    cells = keras.ops.cast(cells, "float32")
    count = cells.shape[-1] - 4
    logits, regressed = cells[..., :count], cells[..., count:]
    present, boxes = scene["present"], scene["boxes"]
    middles = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    corner = keras.ops.floor(middles)
    few = boxes.shape[1] <= scenes.PLACES
    look = _at_few if few else _at_many
    goal, at = look(scene, corner, count, regressed)
    # log p = -softplus(-x) and log(1 - p) = -softplus(x): neither overflows.
    p = keras.ops.sigmoid(logits)
    middle = keras.ops.square(1 - p) * keras.ops.softplus(-logits)
    other = (1 - goal) ** 4 * keras.ops.square(p) * keras.ops.softplus(logits)
    if "ignored" in scene:
        other = other * _known(scene, cells.shape[1:3])[..., None]
    loss = _sum(keras.ops.where(goal == 1.0, middle, other))
    sizes = (boxes[..., 2:] - boxes[..., :2]) / SIZE
    wanted = keras.ops.concatenate([sizes, middles - corner], axis=-1)
    error = keras.ops.abs(at - wanted) * present[..., None]
    return loss + _sum(error), keras.ops.sum(present, axis=1)


def _at_few(scene: dict, corner, count: int, regressed) -> tuple:
    """Return how near each cell is to the middle of an object of each class, 1 in the
    cell of the middle, (batch, rows, columns, classes); and what the model says of the
    objects in their cells, (batch, objects, 4)."""
    present = scene["present"][..., None, None]
    # Distance of each cell from the object's own, (batch, objects, rows, columns).
    rows, columns = (
        np.arange(side, dtype="f4") - corner[..., axis, None]
        for axis, side in enumerate(regressed.shape[1:3])
    )
    apart = keras.ops.square(rows)[..., :, None]
    apart = apart + keras.ops.square(columns)[..., None, :]
    near = keras.ops.exp(-apart / (2 * _WIDTH**2)) * present
    classes = keras.ops.one_hot(scene["label"], count, dtype="float32")
    goal = keras.ops.max(near[..., None] * classes[:, :, None, None, :], axis=1)
    own = keras.ops.cast(apart == 0, "float32") * present
    return goal, keras.ops.einsum("bkyx,byxf->bkf", own, regressed)


def _at_many(scene: dict, corner, count: int, regressed) -> tuple:
    """Do the same in memory that does not grow with objects times cells: the Gaussian
    is a product of one down and one across, and beyond _REACH cells it is 0."""
    rows, columns = (
        keras.ops.cast(
            np.arange(side, dtype="f4") == corner[..., axis, None], "float32"
        )
        for axis, side in enumerate(regressed.shape[1:3])
    )
    classes = keras.ops.one_hot(scene["label"], count, dtype="float32")
    classes = classes * scene["present"][..., None]
    # Objects in each column, (batch, objects, columns, classes), then in each cell.
    across = columns[..., None] * classes[:, :, None, :]
    goal = keras.ops.einsum("bky,bkxc->byxc", rows, across)
    goal = keras.ops.minimum(goal, 1.0)
    for axis in (1, 2):
        goal = _spread(goal, axis)
    at = keras.ops.einsum("bky,byxf->bkxf", rows, regressed)
    return goal, keras.ops.sum(at * columns[..., None], axis=2)


def _spread(values, axis: int):
    """Return the largest of the values along an axis, weighted by the Gaussian."""
    sides = [[0, 0]] * 4
    sides[axis] = [_REACH, _REACH]
    wide, length = keras.ops.pad(values, sides), values.shape[axis]
    found = values
    for step in range(1, _REACH + 1):
        weight = float(np.exp(-(step**2) / (2 * _WIDTH**2)))
        for first in (_REACH - step, _REACH + step):
            place = [slice(None)] * 4
            place[axis] = slice(first, first + length)
            found = keras.ops.maximum(found, weight * wide[tuple(place)])
    return found


def _known(scene: dict, size: tuple[int, int]):
    """Return (batch, rows, columns): 0 where the middle of a cell is in an object to be
    ignored, else 1."""
    boxes, inside = scene["boxes"] / STRIDE, []
    for axis, side in enumerate(size):
        middles = np.arange(side, dtype="f4") + 0.5
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        within = keras.ops.logical_and(middles > low, middles < high)
        inside.append(keras.ops.cast(within, "float32"))
    rows, columns = inside
    rows = rows * scene["ignored"][..., None]
    covered = keras.ops.einsum("bky,bkx->byx", rows, columns)
    return keras.ops.cast(covered == 0, "float32")


def mean_average_precision(
    outputs: dict[str, np.ndarray], classes: int
) -> tuple[float, float]:
    """Return the mean average precision over the classes that occur, at an IoU of 0.5,
    and its mean over the IoUs 0.5, 0.55, ..., 0.95; nan if there is no object. Outputs
    as evaluate() returns them, of all examples."""
    from faster_coco_eval import COCO, COCOeval_faster

    def rows(boxes, labels, taken, scores=None, crowd=None) -> list[dict]:
        boxes = boxes.astype(np.float64)
        sizes = boxes[..., 2:] - boxes[..., :2]
        found = []
        for number, (image, place) in enumerate(np.argwhere(taken), start=1):
            (top, left), (height, width) = boxes[image, place, :2], sizes[image, place]
            row = {
                "id": number, "image_id": int(image),
                "iscrowd": int(crowd is not None and crowd[image, place]),
                "category_id": int(labels[image, place]),
                "bbox": [left, top, width, height], "area": height * width,
            }  # fmt: skip
            if scores is not None:
                row["score"] = float(scores[image, place])
            found.append(row)
        return found

    present = outputs["present"] > 0
    if not present.any():
        return math.nan, math.nan
    crowd = outputs.get("ignored", np.zeros_like(outputs["present"])) > 0
    truth = COCO({
        "images": [{"id": i} for i in range(len(present))],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": rows(
            outputs["boxes"], outputs["label"], present | crowd, crowd=crowd
        ),
    })  # fmt: skip
    score = outputs["score"]
    found = rows(outputs["found_boxes"], outputs["found_label"], score > 0.01, score)
    if not found:
        return 0.0, 0.0
    judge = COCOeval_faster(
        truth, truth.loadRes(found), "bbox", print_function=lambda *_: None
    )
    judge.evaluate()
    judge.accumulate()
    # (overlaps, recalls, classes, areas, most boxes); -1: a class without objects.
    precision = judge.eval["precision"][:, :, :, 0, -1]
    at_50, every = (
        float(np.mean(part[part > -1], dtype=np.float64))
        for part in (precision[0], precision)
    )
    return at_50, every


def _sum(values):
    """Sum over all axes but the first."""
    return keras.ops.sum(values, axis=tuple(range(1, len(values.shape))))
