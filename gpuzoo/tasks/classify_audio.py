"""Classification of sounds."""

import keras

from gpuzoo.tasks import classify


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, for sounds (batch, samples), int16; the model gets
    values in [-1, 1), float32 at every precision, which a spectrum needs."""

    fields = ("audio", "label")
    field = "audio"
    pictures = ("confusion",)
    uses = frozenset({"label_smoothing"})

    def prepare(self, sounds):
        return keras.ops.cast(sounds, "float32") * (1 / 32768)

    def rounded_once(self, sounds):
        return self.prepare(sounds)
