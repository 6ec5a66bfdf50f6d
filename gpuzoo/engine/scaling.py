"""Check that a model expects images in the range [0, 1].

gpuzoo feeds images in [0, 1]. A model that divides them by 255 again, as Keras's
tutorials do, trains badly and without an error.
"""

import keras
import numpy as np

from gpuzoo.data.dataset import Dataset
from gpuzoo.keras_layers import takes_training
from gpuzoo.runtime.keras_state import graph_of, nodes_of
from gpuzoo.tasks import augment

_LOOKED_AT = 32
_SHRUNK = 1 / 20
"""A factor of the standard deviation below which images were scaled twice."""
_SHIFTED = 20
"""Standard deviations from zero to the mean at which the images were shifted by a mean
of 0..255, as keras.applications.resnet.preprocess_input does."""


def findings(model: keras.Model, dataset: Dataset) -> list[str]:
    """Return warnings about the inputs of the first layers with weights, if the
    examples are images: one line each, with the remedy."""
    if dataset.field not in ("image", "film"):
        return []
    every = max(1, dataset.count("train") // _LOOKED_AT)
    images = dataset.train[dataset.field][::every]
    images = np.asarray(images[:_LOOKED_AT])
    found = []
    if isinstance(model, keras.Function | keras.Sequential) and len(model.inputs) == 1:
        values = keras.ops.convert_to_tensor(augment.pixels(images, "float32"))
        walk = _Walk()
        walk.through(model, [(values, 1.0)])
        found += dict.fromkeys(walk.found)
    return found


class _Walk:
    """Runs the layers before the first ones with weights on some images, and tracks
    the standard deviation along each path."""

    def __init__(self):
        self.found: list[str] = []
        self.shrinking: dict = {}

    def through(self, model, inputs: list) -> list:
        """Each input and output is (values, factor of its deviation), or None after a
        layer with weights."""
        graph = graph_of(model)
        known = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for node in nodes_of(graph):
            if node.operation is None or node.is_input:
                continue
            given = [known.get(id(one)) for one in node.input_tensors]
            ended = [None] * len(node.outputs)
            if None in given:  # joined with the output of a layer with weights
                self._look(node.operation, [one for one in given if one])
                found = ended
            else:
                found = self._apply(node, given, known)
            known.update(zip(map(id, node.outputs), found or ended, strict=True))
        return [known.get(id(one)) for one in graph.outputs]

    def _apply(self, node, given: list, known: dict) -> list | None:
        layer = node.operation
        if isinstance(layer, keras.Function | keras.Sequential):
            return self.through(layer, given)
        adapted = isinstance(layer, keras.layers.Normalization)
        if getattr(layer, "weights", ()) and not adapted:
            self._look(layer, given)
            return None
        self._check_range(layer, given[0])
        values = {key: pair[0] for key, pair in known.items() if pair}
        args, kwargs = node.arguments.fill_in(values)
        if takes_training(layer):
            kwargs["training"] = False
        try:
            outputs = keras.tree.flatten(layer(*args, **kwargs))
        except Exception:  # training reports it, with the line of the user's file
            return None
        factor = min(factor for _, factor in given)
        before = _spread(given[0][0])
        if len(given) == len(outputs) == 1 and before > 0:
            # If the shape changes, as by pooling, the deviation may change, too.
            if tuple(outputs[0].shape) == tuple(given[0][0].shape):
                ratio = _spread(outputs[0]) / before
                factor *= ratio
                if ratio < _SHRUNK:
                    self.shrinking[layer.name] = ratio
        return [(one, factor) for one in outputs]

    def _look(self, layer, given: list) -> None:
        factor = min((factor for _, factor in given), default=1)
        if factor >= _SHRUNK or not self.shrinking:
            self._check_shift(layer, given)
            return
        names = " and ".join(map(repr, self.shrinking))
        self.found.append(
            f"the images are scaled twice: they are in [0, 1], and {names} in the "
            f"model scales them by {factor:.2g} before {layer.name!r}; remove that "
            "layer, or let it expect values in [0, 1]"
        )

    def _check_shift(self, layer, given) -> None:
        """Check that no mean of images in 0..255 was subtracted."""
        for values, _ in given:
            channels = np.atleast_1d(keras.ops.convert_to_numpy(values).astype(float))
            channels = channels.reshape(-1, channels.shape[-1])
            mean, spread = channels.mean(), channels.std(axis=0).max()
            if spread > 0 and abs(mean) > max(2, _SHIFTED * spread):
                self.found.append(
                    f"the images are in [0, 1], and the model shifts them to a mean of "
                    f"{mean:.3g} before {layer.name!r}, as if they were in [0, 255]; "
                    "remove that shift, or put Rescaling(255) before it"
                )

    def _check_range(self, layer, given) -> None:
        """Check layers of random augmentation, which expect 0..255 by default."""
        top = max(getattr(layer, "value_range", None) or (0,))
        values = keras.ops.convert_to_numpy(given[0])
        if top > 2 and np.abs(values).max() <= 1:
            self.found.append(
                f"{layer.name!r} expects values up to {top:g}, and the images are in "
                f"[0, 1]; set value_range=(0, 1)"
            )


def _spread(values) -> float:
    return float(np.std(keras.ops.convert_to_numpy(values).astype(np.float64)))
