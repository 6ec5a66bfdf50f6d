"""Classification of sounds."""

import keras

from gpuzoo.tasks import classify


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, of sounds (batch, samples), int16; the model is
    given numbers in [-1, 1), float32 in every precision: a spectrum needs them."""

    fields = ("audio", "label")
    field = "audio"
    pictures = ("confusion",)
    uses = frozenset({"label_smoothing"})

    def prepare(self, sounds):
        return keras.ops.cast(sounds, "float32") * (1 / 32768)

    def rounded_once(self, sounds):
        return self.prepare(sounds)
