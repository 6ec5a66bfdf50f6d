"""What a client sends: JSON or an image, checked and turned into examples."""

import itertools
import threading

import numpy as np

from gpuzoo.data import folders, images
from gpuzoo.deploy.serve.artefact import Artefact, Input
from gpuzoo.files import parse_json

# Content type -> the first bytes of a file: of other formats Pillow reads more than is
# sensible here.
IMAGE_TYPES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_one_image = threading.Lock()  # a large one takes much memory
# Types of JSON -> how they are called there.
_NAMES = {list: "a list", dict: "an object", str: "a string", bool: "true or false",
          type(None): "null", int: "a number", float: "a number"}  # fmt: skip


class Refused(Exception):
    """A request that is not answered with a prediction.

    Attributes:
        status: the HTTP status.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, text: str, **headers: str):
        super().__init__(text)
        self.status = status
        self.headers = {k.replace("_", "-"): v for k, v in headers.items()}


def limit_pixels(most: int) -> None:
    """Have larger images refused by their header, in the whole process."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = most


def examples_of(body: bytes, most: int) -> list:
    """Return the examples of a body `{"inputs": [...]}`.

    Raises:
        Refused: it is not JSON of this form, or has more examples than `most`.
    """
    try:
        found = parse_json(body.decode())
    except ValueError:
        raise Refused(400, "the body is not valid JSON in UTF-8") from None
    if not isinstance(found, dict) or set(found) != {"inputs"}:
        raise Refused(422, 'the body must be an object {"inputs": [...]}')
    examples = found["inputs"]
    if not isinstance(examples, list) or not examples:
        raise Refused(422, "inputs must be a list of examples")
    if len(examples) > most:
        raise Refused(422, f"inputs has more than {most} examples")
    return examples


def as_arrays(examples: list, artefact: Artefact) -> dict[str, np.ndarray]:
    """Return the inputs by name, (count, *shape). An example is an array, for models
    with several inputs an object of arrays by name.

    Raises:
        Refused: other shapes, or values that are not numbers, not finite or out of
            range.
    """
    if len(artefact.inputs) == 1:
        columns = {artefact.inputs[0].name: examples}
    else:
        names = [one.name for one in artefact.inputs]
        if not all(isinstance(e, dict) and set(e) == set(names) for e in examples):
            raise Refused(
                422, f"each example must be an object with {', '.join(names)}"
            )
        columns = {name: [example[name] for example in examples] for name in names}
    return {one.name: _array(columns[one.name], one) for one in artefact.inputs}


def _array(examples: list, one: Input) -> np.ndarray:
    numbers = _numbers(examples, one)
    try:
        # Exact for the integers of every type of input.
        values = np.array(numbers, np.float64).reshape(len(examples), *one.shape)
    except OverflowError:  # an integer beyond 1.8e308
        raise Refused(422, f"{one.name}: the values must be finite") from None
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32) if one.dtype == "float32" else values
    if not np.isfinite(cast).all():
        raise Refused(422, f"{one.name}: the values must be finite")
    if one.range:
        low, high = one.range
        if cast.min() < low or cast.max() > high:
            raise Refused(422, f"{one.name}: the values must be in {low}..{high}")
    if one.dtype != "float32" and (cast != np.floor(cast)).any():
        raise Refused(422, f"{one.name}: the values must be integers")
    return cast.astype(one.dtype)


def _numbers(examples: list, one: Input) -> list:
    """Return the numbers of all examples in a row.

    They are checked before NumPy sees them: of a list with a string it makes an array
    in which every value takes the space of the longest string.

    Raises:
        Refused: the lists do not have the shape of the input, or hold other values than
            numbers. The last axis may be missing if it is 1.
    """
    shape, level = list(one.shape), examples
    where = f"{one.name}: an example has the shape {shape}"
    for axis, length in enumerate(shape):
        last = axis == len(shape) - 1
        if last and length == 1 and all(type(part) is not list for part in level):
            break
        for part in level:
            if type(part) is not list or len(part) != length:
                given = f"a list of {len(part)}" if type(part) is list else _name(part)
                raise Refused(422, f"{where}: expected a list of {length}, got {given}")
        level = list(itertools.chain.from_iterable(level))
    if not set(map(type, level)) <= {int, float}:
        other = next(part for part in level if type(part) not in (int, float))
        if type(other) is list:
            raise Refused(422, f"{where}: expected a number, got a list")
        given = _name(other)
        raise Refused(422, f"{one.name}: the values must be numbers, not {given}")
    return level


def _name(value) -> str:
    return _NAMES[type(value)]


def from_image(
    body: bytes, kind: str, artefact: Artefact
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return one example (1, *shape) of the bytes of an image file, decoded as for
    training, and what was changed.

    Raises:
        Refused: it is not an image of this type, damaged, or too large.
    """
    from PIL import Image

    (one,) = artefact.inputs
    if not body.startswith(IMAGE_TYPES[kind]):
        real = [name for name, magic in IMAGE_TYPES.items() if body.startswith(magic)]
        fix = f"send it with Content-Type: {real[0]}" if real else (
            "with curl: --data-binary @FILE (-d @FILE leaves bytes out)"
        )  # fmt: skip
        raise Refused(400, f"the body is not an image of type {kind}; {fix}")
    try:
        with _one_image:
            picture = images.read_image(body, one.shape[:2], one.shape[2])
    except Exception as error:  # Pillow raises many types
        text = folders.reason(error)[:120]
        bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
        if isinstance(error.__context__, bomb):
            raise Refused(413, f"the image is too large: {text}") from None
        raise Refused(400, f"the image cannot be read: {text}") from None
    pixels = picture.pixels
    if one.dtype == "float32" and one.range == (0, 1):
        pixels = pixels / np.float32(255)
    return {one.name: pixels[None].astype(one.dtype)}, [*picture.changes]


def inverted(
    examples: dict[str, np.ndarray], artefact: Artefact
) -> dict[str, np.ndarray]:
    """Return images with dark and light exchanged."""
    (one,) = artefact.inputs
    return {one.name: one.range[1] - examples[one.name]}


def warnings(
    examples: dict[str, np.ndarray], artefact: Artefact, invert: bool
) -> list[str]:
    """Return a line if an image is nearly black, as one of pixels 0 to 1 is, or,
    inverted if that was wanted, is dark on light and those of the training are known to
    be light on dark."""
    if not artefact.takes_images:
        return []
    (one,), data = artefact.inputs, artefact.about.get("data", "")
    for number, values in enumerate(examples[one.name]):
        brightest = values.max()
        if one.range == (0, 255) and not invert and 0 < brightest < images.DARK:
            return [f"inputs[{number}]: the brightest pixel is {brightest:g} of 255"]
        if images.looks_inverted(values, one.range[1], data):
            inverted, remedy = "", "POST /predict?invert=true exchanges dark and light"
            if invert:
                inverted, remedy = " when inverted", "leave ?invert=true out"
            line = (
                f"inputs[{number}] is light at its border{inverted}, and the images of "
                f"{data} are light on dark: {remedy}"
            )
            return [line]
    return []
