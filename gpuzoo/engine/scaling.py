"""Is a model given numbers of the size that it was made for?

gpuzoo gives images in [0, 1]. A model that begins by dividing them by 255 again, as
Keras's tutorials do, trains badly and without an error.
"""

import keras
import numpy as np

from gpuzoo.data.dataset import Dataset
from gpuzoo.tasks import augment

_LOOKED_AT = 32
_SHRUNK = 1 / 20
"""What is left of the spread of the images where they have been scaled twice."""


def findings(model: keras.Model, dataset: Dataset) -> list[str]:
    """What is odd about the numbers that the first layers with weights see, if the
    examples are images: one line each, with the remedy."""
    if dataset.field != "image":
        return []
    images = dataset.train["image"][:: max(1, dataset.count("train") // _LOOKED_AT)]
    images = np.asarray(images[:_LOOKED_AT])
    found = []
    if isinstance(model, keras.Function | keras.Sequential) and len(model.inputs) == 1:
        values = keras.ops.convert_to_tensor(augment.pixels(images, "float32"))
        walk = _Walk()
        walk.through(model, [(values, 1.0)])
        found += dict.fromkeys(walk.found)
    return found


class _Walk:
    """Runs the layers before the first ones with weights on some images, and follows
    how the spread of the numbers is changed on each way."""

    def __init__(self):
        self.found: list[str] = []
        self.shrinking: dict = {}

    def through(self, model, inputs: list) -> list:
        """Each input and output is (values, factor of its spread), or None if it comes
        after a layer with weights."""
        graph = model._functional if isinstance(model, keras.Sequential) else model
        known = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.operation is None or node.is_input:
                    continue
                given = [known.get(id(one)) for one in node.input_tensors]
                ended = [None] * len(node.outputs)
                told = ended if None in given else self._apply(node, given, known)
                known.update(zip(map(id, node.outputs), told or ended, strict=True))
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
        if getattr(layer, "_call_has_training_arg", False):
            kwargs["training"] = False
        try:
            outputs = keras.tree.flatten(layer(*args, **kwargs))
        except Exception:  # the training tells it, with the line of a user's file
            return None
        factor = min(factor for _, factor in given)
        before = _spread(given[0][0])
        if len(given) == len(outputs) == 1 and before > 0:
            # Where the shape is another, as after pooling, the spread may be, too.
            if tuple(outputs[0].shape) == tuple(given[0][0].shape):
                ratio = _spread(outputs[0]) / before
                factor *= ratio
                if ratio < _SHRUNK:
                    self.shrinking[layer.name] = ratio
        return [(one, factor) for one in outputs]

    def _look(self, layer, given: list) -> None:
        factor = min(factor for _, factor in given)
        if factor >= _SHRUNK or not self.shrinking:
            return
        names = " and ".join(map(repr, self.shrinking))
        self.found.append(
            f"the images are scaled twice: they come in [0, 1], and {names} in the "
            f"model leaves {factor:.2g} of their spread to {layer.name!r}; leave that "
            "layer out, or make it for numbers in [0, 1]"
        )

    def _check_range(self, layer, given) -> None:
        """Layers that change images randomly take them as 0..255 unless told."""
        top = max(getattr(layer, "value_range", None) or (0,))
        values = keras.ops.convert_to_numpy(given[0])
        if top > 2 and np.abs(values).max() <= 1:
            self.found.append(
                f"{layer.name!r} works on numbers up to {top:g}, and the images come "
                f"in [0, 1]; give it value_range=(0, 1)"
            )


def _spread(values) -> float:
    return float(np.std(keras.ops.convert_to_numpy(values).astype(np.float64)))
