"""Films as arrays."""

import numpy as np

from gpuzoo.data import validate
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.validate import label_examples
from gpuzoo.errors import GpuzooError

TASK = "classify_film"
_SHAPE = "(examples, frames, height, width[, channels])"


def are_films(splits: dict, task: str) -> bool:
    """Whether the examples of arrays are films: they have five axes, or the task is
    that of films."""
    axes = {np.ndim(arrays["image"]) for arrays in splits.values()}
    return task == TASK or 5 in axes


def make_dataset(name: str, source: str, splits: dict, classes=None) -> Dataset:
    """Check the films of splits, which are called `image`, and build a Dataset.

    Films may be (examples, frames, height, width) or (examples, frames, height, width,
    channels), of the dtypes and values of images; labels as those of images.

    Raises:
        GpuzooError: the fault, the array, and the remedy.
    """
    clean = {}
    for split, arrays in splits.items():
        film = clean_films(f"{name}, {split} films", arrays["image"])
        rest = {field: array for field, array in arrays.items() if field != "image"}
        clean[split] = {"film": film, **rest}
    train = clean["train"]["film"]
    for split, arrays in clean.items():
        film = arrays["film"]
        if (film.shape[1:], film.dtype) != (train.shape[1:], train.dtype):
            raise GpuzooError(
                f"{name}: train films are {train.dtype} {train.shape[1:]} but {split} "
                f"films are {film.dtype} {film.shape[1:]} (frames, height, width, "
                "channels); make them equal"
            )
    return label_examples(name, source, clean, classes)


def clean_films(what: str, films: np.ndarray) -> np.ndarray:
    """Return films as (examples, frames, height, width, channels), uint8 or float32 in
    [0, 1].

    Raises:
        GpuzooError: another shape, or values that images may not have.
    """
    if films.ndim == 4 and films.shape[-1] <= 4 < min(films.shape[1:3], default=0):
        raise GpuzooError(
            f"{what}: the shape {films.shape} is that of images in colour; the shape "
            f"of films must be {_SHAPE}"
        )
    if films.ndim == 4:
        films = films[..., None]
    if films.ndim != 5 or 0 in films.shape:
        raise GpuzooError(
            f"{what}: the shape must be {_SHAPE} with at least one of each: "
            f"{films.shape}"
        )
    if films.shape[2] <= 4 < min(films.shape[3:]):
        raise GpuzooError(
            f"{what}: the shape {films.shape} has the channels before height and "
            "width; put them last: x.transpose(0, 1, 3, 4, 2)"
        )
    if films.shape[1] <= 4 < min(films.shape[2:]):
        raise GpuzooError(
            f"{what}: the shape {films.shape} has the channels before the frames; put "
            "them last: x.transpose(0, 2, 3, 4, 1)"
        )
    flat = films.reshape(-1, *films.shape[2:])
    try:
        return validate.clean_images(what, flat).reshape(films.shape)
    except GpuzooError as error:
        if films.dtype.kind != "f" or np.isfinite(films).all():
            raise
        first = np.unravel_index(np.argmin(np.isfinite(films)), films.shape)
        raise GpuzooError(
            f"{what}: {films[first]} at index {tuple(map(int, first))}; every value "
            "must be finite"
        ) from error
