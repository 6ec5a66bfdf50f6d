"""Frechet distance of generated and real images under a fixed classifier.

It is the catalogue's lenet5, trained on MNIST; its weights are digits.safetensors
beside this file. The features of an image are the 84 numbers before its logits. The
distance of two sets of images is the Frechet distance of the normal distributions of
their features, as FID with the Inception network (Heusel et al., arXiv 1706.08500). Its
values are comparable with each other, never with FID.
"""

import hashlib
import importlib.resources

import keras
import numpy as np
import safetensors.numpy
import threadpoolctl

from gpuzoo.catalogue.registry import build
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import in_float32
from gpuzoo.tasks import augment, base, scores

FRECHET = base.Metric("frechet")
MODULES = ("gpuzoo.models.lenet",)  # builds the classifier
SHA256 = "df0c980b839a48700ed66701b0f7216a7f2fe0fefd46ce7f2cbf7c63b81d3c2a"
"""Of digits.safetensors: with other weights every distance changes."""
CLASSES = 10
SHAPE = (28, 28, 1)
# Test images looked at, and the accuracy on them from which on the classifier is used.
_LOOKED_AT, _RIGHT = 500, 0.8


class Measure:
    """Metrics of generated images, if the classifier recognises the real ones
    (`reader_of`)."""

    def __init__(self, dataset):
        self.classifier = reader_of(dataset)
        self.metrics = (FRECHET,) if self.classifier else ()

    def look(self, drawn, real) -> dict:
        """Return features of as many generated as real images in [0, 1]."""
        if self.classifier is None:
            return {}
        seen, predicted = self.classifier(drawn)
        seen_in_real, _ = self.classifier(real)
        return {"seen": seen, "predicted": predicted, "seen_in_real": seen_in_real}

    def summarise(self, outputs: dict[str, np.ndarray]) -> dict:
        """Return the metrics of all outputs of `look`."""
        if self.classifier is None:
            return {}
        return {"frechet": frechet(outputs["seen"], outputs["seen_in_real"])}


def reader_of(dataset) -> keras.Model | None:
    """Return the classifier (`load`) for a dataset of grey 28x28 images in ten classes
    if its accuracy on the test images is at least 80 %; else None."""
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
    """Return the classifier: images (batch, 28, 28, 1) in [0, 1] to features (batch,
    84) and class (batch,), int32. It computes in float32 at any precision."""
    model = load_logits()
    with in_float32():
        predicted = keras.ops.argmax(model.output, axis=-1)
        seen = model.get_layer("dense_2").output
        outputs = [seen, keras.ops.cast(predicted, "int32")]
        return keras.Model(model.input, outputs, trainable=False)


def load_logits() -> keras.Model:
    """Return the classifier with the logits (batch, 10) as its output.

    Raises:
        GpuzooError: the file of its weights has another sha256.
    """
    file = importlib.resources.files(__package__).joinpath("digits.safetensors")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise GpuzooError(
            f"{file} has the sha256 {found}, not {SHA256}; reinstall gpuzoo"
        )
    with in_float32():
        model = build("lenet5")
    weights = safetensors.numpy.load(content)
    for variable in model.weights:
        variable.assign(weights[variable.path])
    return model


def frechet(seen: np.ndarray, seen_in_real: np.ndarray) -> float:
    """Return the squared Frechet distance of the normal distributions with the means
    and covariances of two sets of vectors, each (examples, features); in float64, then
    rounded (`scores.rounded`); NaN if one is not finite."""
    if not (np.isfinite(seen).all() and np.isfinite(seen_in_real).all()):
        return float("nan")
    with threadpoolctl.threadpool_limits(1):  # the bits depend on the number of threads
        return scores.rounded(_distance(seen, seen_in_real))


def _distance(seen: np.ndarray, seen_in_real: np.ndarray) -> float:
    means, covariances = [], []
    for one in (seen, seen_in_real):
        one = np.asarray(one, np.float64)
        means.append(one.mean(axis=0))
        covariances.append(np.cov(one, rowvar=False))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    # The root of a zero that is not exact has half as many digits as the others.
    product = np.where(product > 1e-12 * product.max(), product, 0)
    shared = np.sum(np.sqrt(product))
    apart = np.sum((means[0] - means[1]) ** 2)
    spread = np.trace(covariances[0]) + np.trace(covariances[1])
    return float(apart + spread - 2 * shared)
