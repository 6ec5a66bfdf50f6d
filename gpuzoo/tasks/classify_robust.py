"""Classification, trained on adversarial examples."""

import math

import keras

from gpuzoo.tasks import augment, classify

EPSILONS = {1: (0.1, 0.2, 0.3), 3: (1 / 255, 2 / 255, 4 / 255, 8 / 255)}
"""Channels -> the usual bounds of attacks on such images, in the maximum norm: Madry et
al., arXiv 1706.06083, for handwritten digits; Croce et al., arXiv 2010.09670, for
photographs (8/255)."""
# The step of the attack relative to its bound, and the part of the images that stay.
_STEP = 1.25


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, on images that are attacked in each step by the fast
    gradient sign method from a random start (Wong, Rice and Kolter, arXiv 2001.03994),
    within the largest bound of EPSILONS.

    The gradient is that of the cross-entropy without label smoothing. The attacked
    network is the one being trained, without dropout and with its moving averages. An
    evaluation is that of clean images; `gpuzoo robustness` attacks.
    """

    loss_name = "cross-entropy of adversarial examples"
    models = "classify"
    takes_loss = False
    uses = classify.Task.uses - {"mixup and cutmix"}

    def __init__(self, *, dataset, **parts):
        super().__init__(dataset=dataset, **parts)
        self.own_draws = math.prod(dataset.input_shape)
        self.epsilon = max(EPSILONS[dataset.input_shape[-1]])

    @staticmethod
    def check_data(dataset) -> str | None:
        """Return what is wrong with the data, or None."""
        channels = dataset.input_shape[-1]
        if channels not in EPSILONS:
            return f"have images of {channels} channels; attacks are for 1 or 3"
        return None

    @classmethod
    def count_draws(cls, recipe, model: keras.Model) -> int:
        """Return the uniform numbers per example of a step: one for each value."""
        shape = model.inputs[0].shape[1:]
        return math.prod(shape) + super().count_draws(recipe, model)

    @staticmethod
    def only_in_training(recipe) -> str:
        """Return the terms of the training loss that the evaluation's lacks."""
        smoothing = classify.Task.only_in_training(recipe)
        return " and ".join(filter(None, ("attacks", smoothing)))

    def disturbed(self, images, labels, draws, backend):
        """Return attacked images, float32 in [0, 1]."""
        clean = augment.pixels(images)
        start = self.epsilon * (2 * keras.ops.reshape(draws, clean.shape) - 1)
        start = within(clean + start, clean, self.epsilon)
        slope = backend.input_gradient(lambda x: self.attacked_loss(x, labels), start)
        moved = start + _STEP * self.epsilon * keras.ops.sign(slope)
        return within(moved, clean, self.epsilon)

    def attacked_loss(self, images, labels):
        """Return the sum of the losses of images: that of each depends on it alone."""
        prepared = keras.ops.cast(images, self.compute_dtype)
        logits = self.network(prepared, training=False)
        return keras.ops.sum(self._losses(labels, logits, smoothing=0.0))


def within(images, clean, epsilon):
    """Return images moved into [0, 1] and to at most `epsilon` from the clean ones."""
    images = keras.ops.clip(images, clean - epsilon, clean + epsilon)
    return keras.ops.clip(images, 0.0, 1.0)
