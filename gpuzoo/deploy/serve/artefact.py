"""The exported model that is served: its description, and ONNX Runtime over it."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from gpuzoo.data.preparation import Preparation
from gpuzoo.data.series_form import Series
from gpuzoo.data.vocabulary import Vocabulary
from gpuzoo.errors import GpuzooError
from gpuzoo.files import parse_json, read_inside

DESCRIPTION = "export.json"
# Type of an input -> its name in ONNX Runtime, and the integers it can hold.
_DTYPES = {
    "float32": ("float", None),
    "uint8": ("uint8", (0, 255)),
    "int16": ("int16", (-(2**15), 2**15 - 1)),
    "int32": ("int32", (-(2**31), 2**31 - 1)),
}


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of the model; `shape` and `range` are of one example.

    Attributes:
        range: least and largest value; None: any finite number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    range: tuple[int, int] | None

    @property
    def is_image(self) -> bool:
        """Whether an example is one image, grey or in colour."""
        named = self.name == "image" and self.range is not None
        return named and len(self.shape) == 3 and self.shape[2] in (1, 3)


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported ONNX model, ready to predict; `about` is its export.json."""

    about: dict
    inputs: tuple[Input, ...]
    session: Any
    table: Preparation | None = None
    """Of a model of a table."""
    series: Series | None = None
    """Of a model of a series with named columns."""
    text: Vocabulary | None = None
    """Of a model of texts."""

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.about.get("classes") or ())

    @property
    def takes_images(self) -> bool:
        return len(self.inputs) == 1 and self.inputs[0].is_image

    @property
    def classifies_images(self) -> bool:
        return self.takes_images and self.labels

    @property
    def labels(self) -> bool:
        """Whether it gives the probability of each class."""
        return bool(self.classes) and "probabilities" in self.outputs

    @property
    def segments(self) -> bool:
        """Whether it gives the class of each pixel."""
        return bool(self.classes) and "mask" in self.outputs

    @property
    def outputs(self) -> list[str]:
        return [one["name"] for one in self.about["outputs"]]

    def predict(self, examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, for inputs by name, (count, *shape) each.

        Raises:
            FloatingPointError: an output is not finite.
        """
        found = self.session.run(self.outputs, examples)
        for name, values in zip(self.outputs, found, strict=True):
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise FloatingPointError(f"the model's output {name} is not finite")
        return dict(zip(self.outputs, found, strict=True))


def load(folder: pathlib.Path) -> Artefact:
    """Load the ONNX model of an export folder; nothing in it is unpickled.

    Raises:
        GpuzooError: onnxruntime is missing, or the folder is incomplete, damaged or not
            what its export.json says.
    """
    about, inputs = description(folder)
    forms: dict[str, Any] = {}
    kinds: dict[str, Any] = {"table": Preparation, "series": Series, "text": Vocabulary}
    for name, kind in kinds.items():
        if about.get(name):
            try:
                forms[name] = kind.from_record(about[name])
            except GpuzooError:
                raise GpuzooError(
                    f"{folder / DESCRIPTION} is damaged ({name}); export again"
                ) from None
    session = _session(folder, content(folder, about))
    made = Artefact(about, inputs, session, **forms)
    if problem := _problem(made):
        raise GpuzooError(
            f"{folder}: the ONNX model is not as {DESCRIPTION} says: {problem}; export "
            "again"
        )
    return made


def description(folder: pathlib.Path) -> tuple[dict, tuple[Input, ...]]:
    """Return the export.json of a folder, and the inputs of its ONNX model.

    Raises:
        GpuzooError: it cannot be read, is damaged, or names no ONNX model.
    """
    file = folder / DESCRIPTION
    try:
        about = parse_json(read_inside(folder, DESCRIPTION).decode())
        if about["schema"] != 1:
            raise ValueError(f"its schema is {about['schema']!r}, expected 1")
        classes = about.get("classes") or []
        given = about.get("inputs") or [about["input"]]
        inputs = tuple(_input(one, len(classes)) for one in given)
        names = [*classes, *(one["name"] for one in about["outputs"])]
        if not about["outputs"] or not all(type(name) is str for name in names):
            raise ValueError("its classes or outputs have no names")
        found = "onnx" in about["formats"]
    except OSError as error:
        raise GpuzooError(
            f"{file}: {error.strerror or error}; give a run folder or a folder that "
            "`gpuzoo export` wrote"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GpuzooError(f"{file} is damaged ({_line(error)}); export again") from None
    if not found:
        raise GpuzooError(
            f"{folder} has no ONNX model; make one with: gpuzoo export RUN --to onnx"
        )
    return about, inputs


def _input(one: dict, classes: int) -> Input:
    name, dtype, meaning = one["name"], one["dtype"], str(one.get("meaning", ""))
    shape = tuple(one["shape"][1:])
    if dtype not in _DTYPES or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise ValueError(f"its input has the type {dtype!r} and the shape {shape}")
    _, limits = _DTYPES[dtype]
    if name == "label" and classes:
        limits = (0, classes - 1)
    elif name in ("image", "film") and dtype == "float32":
        limits = (0, 1) if "0 to 1" in meaning else (0, 255)
    return Input(name, dtype, shape, meaning, limits)


def content(folder: pathlib.Path, about: dict) -> bytes:
    """Return the content of the ONNX file.

    Raises:
        GpuzooError: it cannot be read, or does not have the recorded digest.
    """
    try:
        entry = about["formats"]["onnx"]
        name, digest = entry["file"], entry["sha256"]
        found = read_inside(folder, name)
    except OSError as error:
        raise GpuzooError(
            f"{folder}: the ONNX model cannot be read ({error.strerror or error})"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GpuzooError(f"{folder / DESCRIPTION} is damaged; export again") from None
    if hashlib.sha256(found).hexdigest() != digest:
        raise GpuzooError(
            f"{folder / name} does not have the sha256 of {DESCRIPTION}: it was "
            "changed or damaged; export again"
        )
    return found


def _session(folder: pathlib.Path, model: bytes):
    # Before the import: ONNX Runtime 1.29 and later send usage data unless told not to.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime") from None
    options = onnxruntime.SessionOptions()
    # Requests are spread over threads: each is computed by one.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, too
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime raises many types
        raise GpuzooError(
            f"{folder}: ONNX Runtime cannot load the model: {_line(error)}"
        ) from None


def missing(name: str) -> GpuzooError:
    return GpuzooError(
        f"{name} is not installed, and `gpuzoo serve` needs it: pip install "
        "'gpuzoo[serve]'"
    )


def _problem(made: Artefact) -> str:
    """Return how the model differs from its description, tried with two examples."""
    given = {one.name: one.type for one in made.session.get_inputs()}
    wanted = {one.name: f"tensor({_DTYPES[one.dtype][0]})" for one in made.inputs}
    if given != wanted:
        return f"its inputs are {given}, expected {wanted}"
    has = {one.name for one in made.session.get_outputs()}
    if lacking := sorted(set(made.outputs) - has):
        return f"it has no output {lacking[0]}"
    try:
        found = made.predict(
            {one.name: np.zeros((2, *one.shape), one.dtype) for one in made.inputs}
        )
    except Exception as error:  # ONNX Runtime raises many types
        return f"it fails with zeros: {_line(error)}"
    if any(values.shape[:1] != (2,) for values in found.values()):
        return "it does not give one output for each example"
    if made.labels and found["probabilities"].shape != (2, len(made.classes)):
        return f"its probabilities have the shape {found['probabilities'].shape}"
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
