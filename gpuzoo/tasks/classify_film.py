"""Classification of films."""

import numpy as np

from gpuzoo.tasks import classify


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, for films (batch, frames, height, width, channels),
    uint8 or floats in [0, 1]; the model gets values in [0, 1], as of images."""

    fields = ("film", "label")
    field = "film"
    pictures = ("confusion", "film_mistakes")
    uses = frozenset({"label_smoothing", "class_weight", "frames"})

    @staticmethod
    def check_data(dataset) -> str | None:
        """Return what is wrong with the data, or None."""
        frames = dataset.input_shape[0]
        if frames < 2:
            return f"have {frames} frame in each film; a film has at least 2"
        film = np.asarray(dataset.train["film"][:1000])
        if (film == film[:, :1]).all():
            return "have films in which all frames are the same: use images"
        return None
