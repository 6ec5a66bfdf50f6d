"""Adversarial examples of a trained classifier: FGSM and PGD in the maximum norm.

The fast gradient sign method (Goodfellow, Shlens and Szegedy, arXiv 1412.6572) is one
step along the sign of the gradient of the loss by the pixels; projected gradient
descent (Madry et al., arXiv 1706.06083) is several from a random start. The attacker
knows the weights. The loss is that of the task's own evaluation, through the compiled
backend, in the precision of the run.
"""

from collections.abc import Callable

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.engine import backends
from gpuzoo.engine.evaluation import Evaluation
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks.classify_robust import EPSILONS, within

# The steps of PGD add up to this many times the bound, as those of the paper do.
_REACH = 2.5


def default_epsilons(channels: int) -> tuple[float, ...]:
    """Return the usual bounds for images of that many channels."""
    if channels not in EPSILONS:
        raise GpuzooError(
            f"attacks have no default bounds for images of {channels} channels; name "
            "them with --epsilons"
        )
    return EPSILONS[channels]


class Attacks:
    """Attacks on a trained classifier, compiled once for all bounds and steps.

    Args:
        trained: see gpuzoo/deploy/trained.py; it takes images.
        images: (examples, height, width, channels), as in the dataset.
        labels: (examples,), int32.
        indices: (examples,), the places of the images in their dataset.
        seed: of the random starts.
    """

    def __init__(self, trained, images, labels, indices, seed: int):
        whole = images.dtype == np.uint8
        # As augment.pixels computes it: unattacked, the outputs are those of the run.
        factor = np.float32(1 / 255) if whole else np.float32(1)
        self.clean = images.astype(np.float32) * factor
        self.labels, self.indices, self.seed = labels, indices, seed
        self.backend, self.task = backends.get(trained.runtime), trained.task
        self._call = Evaluation(
            self._step, self._arrays(self.clean[:1], slice(1), 0.0, 0.0),
            trained.batch, self.backend, trained.runtime, trained.model.variables,
            streamed=True,
        )  # fmt: skip

    def fgsm(self, epsilon: float) -> tuple[np.ndarray, int]:
        """Return attacked images, float32 in [0, 1], at most `epsilon` from the clean
        ones, and for how many the gradient was zero everywhere."""
        images, flat = self._move(self.clean, epsilon, epsilon)
        return images, int(flat.sum())

    def pgd(
        self, epsilon: float, steps: int, progress: Callable = lambda done: None
    ) -> tuple[np.ndarray, int]:
        """Do the same in `steps` steps from a random start, which for every bound is
        the same up to its size; the gradients are those of the last step."""
        start = self.clean + np.float32(epsilon) * self._directions()
        images = np.clip(start, 0, 1)
        for step in range(steps):
            images, flat = self._move(images, _REACH * epsilon / steps, epsilon)
            progress(step + 1)
        return images, int(flat.sum())

    def _directions(self) -> np.ndarray:
        """Return uniform numbers in [-1, 1), each image's at its own address."""
        shape = self.clean.shape[1:]
        made = np.empty_like(self.clean)
        for place, index in enumerate(self.indices):
            u = randomness.uniform(shape, self.seed, "attack", "start", int(index))
            made[place] = 2 * u - 1
        return made

    def _move(self, images, size: float, epsilon: float) -> tuple:
        arrays = self._arrays(images, slice(None), size, epsilon)
        found = self._call(len(images), arrays)
        return found["image"], found["flat"]

    def _arrays(self, images, rows: slice, size: float, epsilon: float) -> dict:
        count = len(images)
        return {
            "image": images,
            "clean": self.clean[rows],
            "label": self.labels[rows],
            "size": np.full(count, size, np.float32),
            "epsilon": np.full(count, epsilon, np.float32),
        }

    def _step(self, batch: dict) -> dict:
        def loss(images):
            found = self.task.evaluate({**batch, "image": images})
            # The gradient of a sum: that of each image is its own.
            return keras.ops.sum(found["loss"])

        size, epsilon = (
            batch[name][:, None, None, None] for name in ("size", "epsilon")
        )
        slope = self.backend.input_gradient(loss, batch["image"])
        moved = batch["image"] + size * keras.ops.sign(slope)
        return {
            "image": within(moved, batch["clean"], epsilon),
            "flat": keras.ops.all(keras.ops.equal(slope, 0), axis=(1, 2, 3)),
        }
