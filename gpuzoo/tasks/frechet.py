"""How like the real ones are images that a model draws? A fixed classifier is asked.

It is the catalogue's lenet5, trained on MNIST; its weights are digits.safetensors
beside this file. What it sees in an image are the 84 numbers before its logits. The
distance between two sets of images is that of Frechet between the normal distributions
of what it sees in them: what FID is for the Inception network (Heusel et al., arXiv
1706.08500). Its numbers compare with each other only, never with FID.
"""

import hashlib
import importlib.resources

import keras
import numpy as np
import safetensors.numpy

from gpuzoo.catalogue.registry import build
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import in_float32
from gpuzoo.tasks import augment, base

FRECHET = base.Metric("frechet")
MODULES = ("gpuzoo.models.lenet",)  # what the classifier is built by
SHA256 = "df0c980b839a48700ed66701b0f7216a7f2fe0fefd46ce7f2cbf7c63b81d3c2a"
"""Of digits.safetensors: figures under other weights would be others."""
CLASSES = 10
SHAPE = (28, 28, 1)
# Of the test images that are looked at, how many must be read right for the classifier
# to have a say about what is drawn after them.
_LOOKED_AT, _RIGHT = 500, 0.8


class Measure:
    """What an evaluation tells of images that were drawn, if the classifier can read
    the real ones (`reader_of`)."""

    def __init__(self, dataset):
        self.classifier = reader_of(dataset)
        self.metrics = (FRECHET,) if self.classifier else ()

    def look(self, drawn, real) -> dict:
        """What it sees in as many drawn as real images in [0, 1], for each of them."""
        if self.classifier is None:
            return {}
        seen, predicted = self.classifier(drawn)
        seen_in_real, _ = self.classifier(real)
        return {"seen": seen, "predicted": predicted, "seen_in_real": seen_in_real}

    def summarise(self, outputs: dict[str, np.ndarray]) -> dict:
        """The figures of all that it saw."""
        if self.classifier is None:
            return {}
        return {"frechet": frechet(outputs["seen"], outputs["seen_in_real"])}


def reader_of(dataset) -> keras.Model | None:
    """The classifier (`load`), if it knows what a dataset shows: grey images of 28x28
    in ten classes, of whose test images it reads four in five."""
    test = dataset.test
    if tuple(dataset.input_shape) != SHAPE or len(dataset.classes) != CLASSES:
        return None
    if not {"image", "label"} <= set(test):
        return None
    classifier = load()
    _, predicted = classifier(augment.pixels(test["image"][:_LOOKED_AT]))
    right = keras.ops.convert_to_numpy(predicted) == test["label"][:_LOOKED_AT]
    return classifier if right.mean() >= _RIGHT else None


def load() -> keras.Model:
    """The classifier: images (batch, 28, 28, 1) in [0, 1] to what it sees, (batch, 84),
    and the class (batch,), int32. It computes in float32 whatever the run does."""
    model = load_logits()
    with in_float32():
        predicted = keras.ops.argmax(model.output, axis=-1)
        seen = model.get_layer("dense_2").output
        outputs = [seen, keras.ops.cast(predicted, "int32")]
        return keras.Model(model.input, outputs, trainable=False)


def load_logits() -> keras.Model:
    """The same with the logits (batch, 10) as its output.

    Raises:
        GpuzooError: the file of its weights is not the one that was measured with.
    """
    file = importlib.resources.files(__package__).joinpath("digits.safetensors")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise GpuzooError(
            f"{file} has the sha256 {found}, not {SHA256}; install gpuzoo again"
        )
    with in_float32():
        model = build("lenet5")
    weights = safetensors.numpy.load(content)
    for variable in model.weights:
        variable.assign(weights[variable.path])
    return model


def frechet(seen: np.ndarray, seen_in_real: np.ndarray) -> float:
    """Squared distance of Frechet between the normal distributions with the means and
    covariances of two sets of vectors, each (examples, numbers); in float64; NaN if one
    is not finite."""
    if not (np.isfinite(seen).all() and np.isfinite(seen_in_real).all()):
        return float("nan")
    means, covariances = [], []
    for one in (seen, seen_in_real):
        one = np.asarray(one, np.float64)
        means.append(one.mean(axis=0))
        covariances.append(np.cov(one, rowvar=False))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    shared = np.sum(np.sqrt(np.maximum(product, 0)))
    apart = np.sum((means[0] - means[1]) ** 2)
    spread = np.trace(covariances[0]) + np.trace(covariances[1])
    return float(apart + spread - 2 * shared)
