"""Video prediction: the next frame of two moving images (Moving MNIST)."""

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.tasks import augment, base, ends
from gpuzoo.tasks.autoencode import cross_entropy

FRAMES = 8  # of the input
SPEED = 4.0  # largest movement per frame along an axis, in pixels

LOSS = base.Metric("loss", unit="nats per frame")
ERROR = base.Metric("error")


class Task(base.Task):
    """Minimise the cross-entropy of the pixels of the next frame.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1]. The
    videos are made of them inside the step: each image moves in a straight line over a
    canvas 1.5 times as large, bounces off its borders, and shares it with the image
    from the other end of the batch; where they overlap, the lighter one is seen
    (Srivastava, Mansimov and Salakhutdinov, arXiv 1502.04681). The model maps (batch,
    FRAMES, height, width, channels) in [0, 1] to the logits of the next frame.

    Metrics: `loss`, the binary cross-entropy in nats per frame; `error`, the mean
    squared error of a pixel; in an evaluation also `copied`, the error of repeating the
    last frame. The videos of the test images are always the same.
    """

    loss_name = "cross-entropy of the next frame"
    step_metrics = (LOSS, ERROR)
    metrics = (LOSS, ERROR, base.Metric("copied"))
    headline = ERROR
    pictures = ("frames",)
    expansion = FRAMES
    own_draws = 8  # place and speed of two images along two axes

    def __init__(self, *, dataset, **parts):
        super().__init__(dataset=dataset, **parts)
        self.size = _canvas(dataset)[1:3]
        self.network = ends.Network(self.model, _canvas(dataset))

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        shape = (len(dataset.test["image"]), 8)
        # "next_frame": another word would draw other numbers
        ways = randomness.uniform(shape, self.recipe.seed, "next_frame", "test")
        self.ways = keras.ops.convert_to_tensor(ways.astype(np.float32))

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {"input_shape": _canvas(dataset)}

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        canvas = _canvas(dataset)
        if fault := base.Task.misfit(model, canvas):
            return fault
        frame, found = (None, *canvas[1:]), ends.output_shape_of(model)
        if found != frame:
            return f"puts out {found}, not {frame}"
        return base.Task.squashed(model)

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the metrics of the batch."""
        images, _ = augment.apply(self.changes, batch["image"], draws[:, 8:])
        film = moving(augment.pixels(images), draws[:, :8], self.size)

        def loss():
            logits = self.network(film[:, :-1], training=True)
            figures = _figures(logits, film[:, -1])
            means = {name: keras.ops.mean(each) for name, each in figures.items()}
            return means["loss"], means

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return of each example the metrics and the frames `last`, `next` and
        `forecast`, uint8."""
        ways = keras.ops.take(self.ways, batch["index"], axis=0)
        film = moving(augment.pixels(batch["image"]), ways, self.size)
        logits = self.network(film[:, :-1], training=False)
        forecast = keras.ops.sigmoid(keras.ops.cast(logits, "float32"))
        shown = {"last": film[:, -2], "next": film[:, -1], "forecast": forecast}
        return {
            **_figures(logits, film[:, -1]),
            "copied": _mean(keras.ops.square(film[:, -1] - film[:, -2])),
            **{name: augment.bytes_of(image) for name, image in shown.items()},
        }

    @classmethod
    def taken_shape(cls, dataset) -> tuple[int, ...]:
        """Return the shape of a film, (FRAMES, height, width, channels)."""
        return _canvas(dataset)

    def inputs(self, batch: dict) -> dict:
        """Return the films of test examples as `image`, and their next frames as
        `target`, both uint8."""
        ways = keras.ops.take(self.ways, batch["index"], axis=0)
        film = moving(augment.pixels(batch["image"]), ways, self.size)
        film = augment.bytes_of(film)
        return {"image": film[:, :-1], "target": film[:, -1]}

    def infer(self, batch: dict) -> dict:
        """Return of each film its next frame as `forecast`, uint8."""
        logits = self.network(augment.pixels(batch["image"]), training=False)
        frame = keras.ops.sigmoid(keras.ops.cast(logits, "float32"))
        return {"forecast": augment.bytes_of(frame)}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        return {
            name: float(np.mean(outputs[name], dtype=np.float64))
            for name in (one.name for one in self.metrics)
        }


def moving(images, ways, size: tuple[int, int]):
    """Return videos (batch, FRAMES + 1, *size, channels) of moving images in [0, 1].

    Args:
        images: (batch, height, width, channels), float32.
        ways: (batch, 8) numbers in [0, 1): row, column, vertical and horizontal speed
            of each image, then those of the other one.
        size: height and width of the canvas.
    """
    one = _alone(images, ways[:, :4], size)
    other = _alone(keras.ops.flip(images, axis=0), ways[:, 4:], size)
    return keras.ops.maximum(one, other)


def _alone(images, ways, size):
    time = np.arange(FRAMES + 1, dtype="f4")[None]
    places = []
    for axis in (0, 1):
        free = float(size[axis] - images.shape[1 + axis])
        travelled = ways[:, axis, None] * free
        travelled = travelled + (2 * ways[:, 2 + axis, None] - 1) * SPEED * time
        # To the border and back: a triangle wave of period 2 * free.
        places.append(free - keras.ops.abs(keras.ops.mod(travelled, 2 * free) - free))
    rows, columns = (
        _between(place, images.shape[1 + axis], size[axis])
        for axis, place in enumerate(places)
    )
    seen = keras.ops.einsum("bfyi,bijc->bfyjc", rows, images)
    seen = keras.ops.einsum("bfyjc,bfxj->bfyxc", seen, columns)
    return keras.ops.clip(seen, 0, 1)


def _between(first, side: int, length: int):
    """Return (batch, frames, length, side): weights of linear interpolation from the
    pixels of an image that starts at `first` to those of the canvas."""
    places = np.arange(length, dtype="f4") - first[..., None]
    apart = keras.ops.abs(places[..., None] - np.arange(side, dtype="f4"))
    return keras.ops.maximum(0.0, 1 - apart)


def _canvas(dataset) -> tuple[int, int, int, int]:
    """Return (FRAMES, height, width, channels): 1.5 times the sides, multiples of 4."""
    height, width, channels = dataset.input_shape
    return (FRAMES, *(-(-side * 3 // 8) * 4 for side in (height, width)), channels)


def _figures(logits, target) -> dict:
    """Return the metrics of each example, (batch,)."""
    logits = keras.ops.cast(logits, "float32")
    error = _mean(keras.ops.square(keras.ops.sigmoid(logits) - target))
    return {"loss": cross_entropy(target, logits), "error": error}


def _mean(values):
    return keras.ops.mean(values, axis=(1, 2, 3))
