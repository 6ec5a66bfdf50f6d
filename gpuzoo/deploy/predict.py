"""Predict the examples of files: rows of results, and what is written about them."""

import csv
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from gpuzoo.data import mask_files, masks
from gpuzoo.deploy.inputs import Example
from gpuzoo.deploy.trained import Trained
from gpuzoo.errors import GpuzooError
from gpuzoo.files import Folder, expand

LEAST_SIDE = 320  # pixels of the shorter side of a picture
_ACROSS = 8  # generated images in a row
MOST_ON_SHEET = 4096  # generated images


def kind_of(trained: Trained) -> str:
    """Return what the rows of a model hold: classes, boxes, masks, values, frames,
    images (reconstructions), vectors (of identities) or number (of a table)."""
    task = trained.recipe.task
    if task == "forecast":
        return "values"
    kinds = {
        "detect": "boxes", "autoencode": "images", "video_prediction": "frames",
        "regress_table": "number", "segment": "masks", "embed": "vectors",
    }  # fmt: skip
    return kinds.get(task, "classes")


def predict(
    trained: Trained, examples: list[Example], *, top: int = 3, score: float = 0.3
) -> Iterator[tuple[dict, dict]]:
    """Yield for each example its row and its arrays.

    Args:
        examples: at most a batch, all of one dtype.
        top: classes per row, the most probable first.
        score: detections below it are left out.

    Returns:
        row: JSON: `file`; `index` of an array with several examples; `changes`, what
            was done to the input, if anything; and `predictions` (class, probability),
            `boxes` (class, score, top, left, bottom, right in pixels of the file),
            `areas` of a mask (class, pixels, fraction; in pixels of the file),
            `forecast` in the units of the series, of several targets a dict of lists
            by name; `value` in that of the target; `embedding`, a list of numbers; or
            `error` of a reconstruction, the mean squared error of a pixel in [0, 1].
        arrays: of the outputs of `Trained.predict`, the rows of the example.
    """
    prepared = trained.takes in ("table", "text") or trained.dataset.series is not None
    call = trained.infer if prepared else trained.predict
    outputs = call(np.stack([example.values for example in examples]))
    make = {
        "classes": _classes, "boxes": _boxes, "values": _values, "images": _images,
        "frames": lambda *_: {}, "number": _number, "masks": _masks,
        "vectors": _vector,
    }[kind_of(trained)]  # fmt: skip
    for place, example in enumerate(examples):
        arrays = {name: array[place] for name, array in outputs.items()}
        row = {"file": example.file}
        if example.index is not None:
            row["index"] = example.index
        if example.changes:
            row["changes"] = list(example.changes)
        yield row | make(trained, example, arrays, top, score), arrays


def _classes(trained: Trained, example, arrays: dict, top: int, score) -> dict:
    from scipy.special import expit, softmax

    kind = expit if trained.task.target == "labels" else softmax
    probability = kind(arrays["logits"].astype(np.float64))
    order = np.argsort(-probability, kind="stable")[:top]
    return {
        "predictions": [
            {"class": trained.classes[index], "probability": float(probability[index])}
            for index in order
        ]
    }


def _boxes(trained: Trained, example: Example, arrays: dict, top, score) -> dict:
    height, width = trained.input_shape[:2]
    shape = example.shape or (height, width)
    scale = np.array(2 * [shape[0] / height, shape[1] / width])
    found = []
    for box, label, value in zip(
        arrays["found_boxes"], arrays["found_label"], arrays["score"], strict=True
    ):
        if value >= score:
            sides = (box.astype(np.float64) * scale).round(2).tolist()
            row = {"class": trained.classes[label], "score": float(value)}
            found.append(row | dict(zip(SIDES, sides, strict=True)))
    return {"boxes": found}


SIDES = ("top", "left", "bottom", "right")


def _masks(trained: Trained, example: Example, arrays: dict, top, score) -> dict:
    mask = _mask_of_file(example, arrays)
    return {"areas": masks.areas(mask, trained.classes)}


def _mask_of_file(example: Example, arrays: dict) -> np.ndarray:
    """Return the predicted mask in the size of the file."""
    mask = arrays["predicted"]
    return mask_files.nearest(mask, example.shape) if example.shape else mask


def _values(trained: Trained, example, arrays: dict, top, score) -> dict:
    told, series = trained.unscale(arrays["forecast"]), trained.dataset.series
    if series is None or series.targets == 1:
        return {"forecast": told.tolist()}
    return {"forecast": dict(zip(series.names, told.T.tolist(), strict=True))}


def _number(trained: Trained, example, arrays: dict, top, score) -> dict:
    return {"value": float(arrays["value"])}


def _vector(trained: Trained, example, arrays: dict, top, score) -> dict:
    return {"embedding": arrays["embedding"].tolist()}


def _images(trained: Trained, example: Example, arrays: dict, top, score) -> dict:
    pixels = _bytes(example.values).astype(np.float64)
    error = np.square((pixels - arrays["reconstruction"]) / 255).mean()
    return {"error": float(error)}


# --- files --------------------------------------------------------------------------


class Output:
    """A new folder with a file for each example: pictures, and forecasts as .csv.

    It is created with the first file.

    Raises:
        GpuzooError: the folder exists and is not empty.
    """

    def __init__(self, name: str, trained: Trained):
        self.path, self.trained, self.count = expand(name), trained, 0
        self.folder: Folder | None = None
        check_new(name, folder=True)

    def add(self, example: Example, row: dict, arrays: dict) -> list[str]:
        """Write the files of an example; return their names."""
        if self.folder is None:
            self.path.mkdir(exist_ok=True)
            self.folder = Folder(self.path)
        self.count += 1
        stem = re.sub(r"[^\w.-]+", "_", pathlib.PurePath(example.file).stem)[:60]
        index = "" if example.index is None else f"-{example.index}"
        name = f"{self.count:05d}-{stem}{index}"
        files = _FILES[kind_of(self.trained)](self.trained, example, row, arrays)
        for suffix, content in files.items():
            self.folder.write_file(name + suffix, content)
        return [name + suffix for suffix in files]

    def close(self) -> None:
        if self.folder is not None:
            self.folder.close()


def check_new(name: str, *, folder: bool = False) -> pathlib.Path:
    """Return the path of an output, which must not exist; an empty folder may.

    Raises:
        GpuzooError: it exists, or the folder that it is to be in does not.
    """
    path = expand(name)
    empty = folder and path.is_dir() and not path.is_symlink() and not os.listdir(path)
    if os.path.lexists(path) and not empty:
        raise GpuzooError(f"--out {name} exists; remove it, or choose another name")
    if not path.parent.is_dir():
        raise GpuzooError(f"--out {name}: there is no folder {path.parent}; create it")
    return path


def _boxes_drawn(trained: Trained, example: Example, row: dict, arrays: dict) -> dict:
    """Return the image that the model saw, magnified, with the boxes."""
    from PIL import ImageDraw

    image, scale = _magnified(_bytes(example.values))
    draw = ImageDraw.Draw(image := image.convert("RGB"))
    height, width = trained.input_shape[:2]
    shape = example.shape or (height, width)
    ratio = np.array(2 * [height / shape[0], width / shape[1]]) * scale
    for box in row["boxes"]:
        top, left, bottom, right = np.array([box[side] for side in SIDES]) * ratio
        draw.rectangle((left, top, right, bottom), outline="#c8553d", width=2)
        text = f"{box['class']} {box['score']:.0%}"
        draw.text((left + 3, max(top - 12, 0)), text, fill="#c8553d")
    return {".png": _png(image)}


def _masked(trained: Trained, example: Example, row: dict, arrays: dict) -> dict:
    """Return the mask in the size of the file, and a sheet: what the model saw, its
    mask, and both, one over the other."""
    colours = masks.palette()[arrays["predicted"]]
    pixels = _bytes(example.values)
    if pixels.shape[2] != 3:
        pixels = pixels.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
    both = ((pixels.astype(np.uint16) + colours) // 2).astype(np.uint8)
    whole = np.concatenate([pixels, colours, both], axis=1)
    return {
        ".png": masks.png(_mask_of_file(example, arrays)),
        "-sheet.png": _png(_magnified(whole)[0]),
    }


def _reconstructed(trained, example: Example, row: dict, arrays: dict) -> dict:
    both = np.concatenate([_bytes(example.values), arrays["reconstruction"]], axis=1)
    return {".png": _png(_magnified(both)[0])}


def _frame(trained, example: Example, row: dict, arrays: dict) -> dict:
    """Return the last frame that the model saw and the next one."""
    both = np.concatenate([_bytes(example.values)[-1], arrays["forecast"]], axis=1)
    return {".png": _png(_magnified(both)[0])}


def _forecast(trained: Trained, example: Example, row: dict, arrays: dict) -> dict:
    from gpuzoo.report import plots

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    series, told = trained.dataset.series, row["forecast"]
    past = example.values[:, :1]
    if series is not None:
        past = series.unscaled(example.values[:, : series.targets].squeeze())
        past = past.reshape(len(past), -1)
    told = told if isinstance(told, dict) else {"forecast": told}
    writer.writerow(["step", *told])
    for step, values in enumerate(zip(*told.values(), strict=True), start=1):
        writer.writerow([step, *map(repr, values)])
    with plots.plain():
        title = pathlib.PurePath(example.file).name
        figure = plots.next_values(title, past, told)
        picture = plots.png_bytes(figure)
    return {".csv": text.getvalue().encode(), ".png": picture}


_FILES: dict[str, Callable[..., dict[str, bytes]]] = {
    "boxes": _boxes_drawn, "values": _forecast, "images": _reconstructed,
    "frames": _frame, "masks": _masked,
}  # fmt: skip


def sheet(images: np.ndarray) -> bytes:
    """Return generated images, pixel for pixel or magnified, as one PNG."""
    count, height, width, channels = images.shape
    across = min(_ACROSS if count <= 64 else 2 * _ACROSS, count)
    rows = -(-count // across)
    tiles = np.zeros((rows * across, height + 2, width + 2, channels), np.uint8)
    tiles[:count, 1:-1, 1:-1] = images
    tiles = tiles.reshape(rows, across, *tiles.shape[1:]).swapaxes(1, 2)
    whole = tiles.reshape(rows * (height + 2), across * (width + 2), channels)
    return _png(_magnified(whole)[0])


def _bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    return np.round(255 * values).astype(np.uint8)


def _magnified(pixels: np.ndarray) -> tuple:
    """Return pixels (height, width, channels), uint8, as an image of at least
    LEAST_SIDE, and the factor."""
    from PIL import Image

    if pixels.shape[2] not in (1, 3):
        pixels = pixels.mean(axis=2, keepdims=True).astype(np.uint8)
    factor = max(1, -(-LEAST_SIDE // min(pixels.shape[:2])))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST), factor


def _png(image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()
