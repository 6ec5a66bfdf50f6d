"""Arrays from Python as data: they become a .npz file, which every command can read."""

import hashlib
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from gpuzoo.data import columns, texts
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, new_file, root

MOST_BYTES = 8 << 30
"""Of an iterable, which may have no end."""
_WANTED = (
    "(x, y), x alone, (x, boxes, labels), or an iterable of (x, y), as arrays of NumPy "
    "or tensors of TensorFlow, JAX or PyTorch; or a data frame or a dict of columns, "
    "with target; or (texts, labels)"
)


def as_file(
    data, validation=None, test=None, keep: str | pathlib.Path | None = None
) -> pathlib.Path:
    """Write examples to a .npz file, unless it is there already, and return its path.

    Args:
        data: the training examples: (x, y), x alone, or an iterable of bounded size of
            (x, y), such as a tf.data.Dataset or a DataLoader of PyTorch: single
            examples or batches, y perhaps masks; (x, boxes, labels), of each image
            its boxes, left, top, right and bottom in pixels, and their classes, in
            lists of any length; (texts, labels); or all rows of a table
            (`columns.is_table`).
        validation, test: likewise. Without `test` a part of `data` is held out, as of a
            .npz file with x and y.
        keep: the file; default: a name made of the digest of the arrays in the folder
            `arrays` of the cache.

    Raises:
        GpuzooError: something is not an array, or `keep` holds something else.
    """
    pair = texts.from_pair(data)
    if pair or columns.is_table(data):
        if validation is not None or test is not None:
            raise GpuzooError(
                "validation and test: of a table, and of texts, a part of the rows is "
                "taken; name a fraction, as validation=0.1, and evaluate other rows "
                "with gpuzoo.evaluate(run, data=file)"
            )
        table = pair or columns.from_memory("data", data)
        return _kept(columns.as_arrays(table), keep)
    given = {"train": data, "val": validation, "test": test}
    arrays = {}
    for split, examples in given.items():
        if examples is not None:
            what = {"train": "data", "val": "validation"}.get(split, split)
            ending = f"_{split}" if test is not None or validation is not None else ""
            for name, array in _pair(what, examples).items():
                arrays[name + ending] = array
    if validation is not None and test is None:
        raise GpuzooError(
            "validation: arrays need test=(x, y), too; or name a fraction"
        )
    return _kept(arrays, keep)


def _kept(arrays: dict[str, np.ndarray], keep) -> pathlib.Path:
    """Write arrays to a file, unless it is there already, and return its path."""
    path = expand(str(keep)) if keep else root() / "arrays" / f"{_digest(arrays)}.npz"
    if path.suffix != ".npz":
        raise GpuzooError(f"keep_data must end in .npz: {path}")
    try:
        if path.exists():
            _check_same(path, arrays)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as file:
                np.savez(file, **arrays)
    except OSError as error:
        raise GpuzooError(
            f"the arrays cannot be written to {path}: {error.strerror or error}; name "
            "another file with keep_data"
        ) from None
    return path


def is_kept(data: str | pathlib.Path) -> bool:
    """Whether a path looks like one that `as_file` has chosen."""
    return re.search(r"/arrays/arrays-[0-9a-f]{16}\.npz$", str(data)) is not None


def _pair(what: str, examples) -> dict[str, np.ndarray]:
    if isinstance(examples, tuple | list) and len(examples) == 3:
        if all(hasattr(one, "__len__") for one in examples):
            return _with_boxes(what, *examples)
    if isinstance(examples, tuple | list):
        if len(examples) != 2:
            raise GpuzooError(f"{what} must be {_WANTED}; got {len(examples)} parts")
        x, y = (_array(f"{what}, {n}", a) for n, a in zip("xy", examples, strict=True))
        return {"x": x, "y": y}
    if hasattr(examples, "__array__") or hasattr(examples, "__dlpack__"):
        return {"x": _array(f"{what}, x", examples)}
    if not isinstance(examples, Iterable) or isinstance(examples, str | bytes | dict):
        raise GpuzooError(f"{what} must be {_WANTED}; got {type(examples).__name__}")
    return _gather(what, examples)


def _with_boxes(what: str, images, boxes, labels) -> dict[str, np.ndarray]:
    """Return images, boxes (examples, most, 4) and labels (examples, most), those of
    images with fewer followed by zeros, and -1 or an empty name."""
    if len(boxes) != len(labels):
        raise GpuzooError(
            f"{what}: boxes of {len(boxes)} images, and labels of {len(labels)}"
        )
    corners = [_array(f"{what}, boxes of image {n}", b) for n, b in enumerate(boxes)]
    kinds = [_array(f"{what}, labels of image {n}", k) for n, k in enumerate(labels)]
    names = any(own.dtype.kind == "U" for own in kinds if own.size)
    for number, (mine, own) in enumerate(zip(corners, kinds, strict=True)):
        count = mine.size // 4
        good = not mine.size or mine.shape == (count, 4)
        whole = not own.size or own.dtype.kind in ("U" if names else "iu")
        if not good or own.shape != (count,) or not whole:
            raise GpuzooError(
                f"{what}, image {number}: boxes must be (count, 4), and labels: must "
                "be integers, or in all images names, one for each box: "
                f"{mine.dtype} {mine.shape}, {own.dtype} {own.shape}"
            )
    most = max(map(len, kinds), default=0)
    kind = np.result_type(*[own for own in kinds if own.size]) if most else int
    whole = np.zeros((len(corners), most, 4), np.float64)
    told = np.full((len(kinds), most), "" if names else -1, kind if names else int)
    for place, (mine, own) in enumerate(zip(corners, kinds, strict=True)):
        if own.size:
            whole[place, : len(own)], told[place, : len(own)] = mine, own
    return {"x": _array(f"{what}, x", images), "boxes": whole, "labels": told}


def _gather(what: str, examples: Iterable) -> dict[str, np.ndarray]:
    """Return the examples of an iterable, single ones or batches, in their order."""
    parts: dict[str, list] = {"x": [], "y": []}
    size, batches = 0, set()
    for example in examples:
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise GpuzooError(f"{what}: an iterable must give pairs (x, y)")
        x, y = (np.asarray(_array(what, one)) for one in example)
        batches.add(batch := y.ndim > 0 and not _with_mask(x, y))
        if batch and (x.ndim == 0 or len(x) != len(y)):
            raise GpuzooError(
                f"{what}: an iterable must give single examples, with a number or a "
                f"mask as label, or batches; got shapes {x.shape} and {y.shape}"
            )
        size += x.nbytes + y.nbytes
        if len(batches) > 1:
            raise GpuzooError(f"{what}: single examples and batches are mixed")
        if size > MOST_BYTES:
            raise GpuzooError(
                f"{what}: more than {MOST_BYTES >> 30} GB, or without an end; save the "
                "examples to a folder or a .npz file"
            )
        for name, part in (("x", x), ("y", y)):
            parts[name].append(part)
    if not size:
        raise GpuzooError(f"{what}: the iterable gave no examples; is it used up?")
    join = np.concatenate if batches == {True} else np.stack
    try:
        return {name: join(values) for name, values in parts.items()}
    except ValueError as error:
        raise GpuzooError(
            f"{what}: the examples have different shapes: {error}"
        ) from None


def _with_mask(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether x is a single image with channels, and y the mask of its pixels."""
    image = x.ndim == 3 and x.shape[2] in (1, 3, 4)
    return image and y.shape in (x.shape[:2], (*x.shape[:2], 1))


def _array(what: str, value) -> np.ndarray:
    try:
        found = np.asarray(value)
    except Exception as error:  # of another library
        raise GpuzooError(
            f"{what}: {type(value).__name__} cannot be read as an array: {error}; pass "
            "an array in main memory, of PyTorch x.detach().cpu().numpy()"
        ) from None
    if np.ma.is_masked(value):
        raise GpuzooError(
            f"{what}: a masked array, of which some values are missing; leave these "
            "examples out, or fill them: x.filled(0)"
        )
    if found.dtype == object and found.ndim == 1:  # of texts, of TensorFlow as bytes
        kinds = {type(one) for one in found.tolist()}
        found = found.astype(kinds.pop()) if kinds in ({str}, {bytes}) else found
    if found.dtype.name == "bfloat16":  # which no file of NumPy holds
        found = found.astype(np.float32)
    if found.dtype == object:
        raise GpuzooError(
            f"{what}: {type(value).__name__} holds Python objects or rows of different "
            "lengths; pass arrays of numbers"
        )
    return found


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return f"arrays-{digest.hexdigest()[:16]}"


def _check_same(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            there = {name: file[name] for name in file.files}
    except Exception:  # of zipfile, zlib and NumPy
        there = {}
    if _digest(there) != _digest(arrays):
        raise GpuzooError(
            f"{path} exists and holds other data; remove it, or name another file with "
            "keep_data"
        )
