"""Classification of the rows of a table."""

import keras

from gpuzoo.tasks import classify


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, for rows (batch, numbers), float32 at every
    precision, since some of the numbers are indices of categories
    (gpuzoo/data/preparation.py)."""

    fields = ("table", "label")
    field = "table"
    models = "table"
    pictures = ("confusion",)
    uses = frozenset({"label_smoothing", "class_weight", "target", "columns"})

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {
            **of_columns(dataset),
            "num_classes": len(dataset.classes), "num_outputs": len(dataset.classes),
        }  # fmt: skip

    def prepare(self, rows):
        return keras.ops.cast(rows, "float32")

    def rounded_once(self, rows):
        return self.prepare(rows)


def of_columns(dataset) -> dict:
    """Return options of a model that describe the columns of a table."""
    return {
        "input_shape": tuple(dataset.input_shape),
        "numbers": len(dataset.table.numeric),
        "vocabulary": dataset.table.vocabulary,
    }
