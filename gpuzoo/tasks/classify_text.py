"""Classification of short texts."""

import keras

from gpuzoo.tasks import base, classify


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, for texts (batch, words), int32: the number of each
    word in the vocabulary of the run (gpuzoo/data/vocabulary.py). The model takes them
    as they are, int32 at every precision: 16 bits of a float do not hold them."""

    fields = ("text", "label")
    field = "text"
    pictures = ("confusion",)
    uses = frozenset({"label_smoothing", "class_weight", "target", "columns"})
    # A network makes about so many numbers of each word.
    expansion = 64
    input_dtype = "int32"

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {**base.shape_and_classes(dataset), "words": dataset.text.size}

    def prepare(self, texts):
        return keras.ops.cast(texts, "int32")

    def rounded_once(self, texts):
        return self.prepare(texts)
