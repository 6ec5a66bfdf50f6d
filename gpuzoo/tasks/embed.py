"""Embedding (metric learning): pictures of one identity get vectors that lie close."""

import math

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks import augment, base, ends, pairs

EER = base.Metric("eer", format=".2%")
RECALL = base.Metric("recall_at_1", greater_is_better=True, format=".2%")
PRECISION = base.Metric("mean_average_precision", greater_is_better=True)
_SCALES = {"arcface": 64.0, "contrastive": 10.0}
"""Those of the papers, of recipes with scale=0; of the second a temperature of 0.1."""
_LONGEST = 0.01  # how far the length of a vector may be from 1


class Task(base.Task):
    """Train vectors of length 1 on identities; measure them on others.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    with labels (batch,), int32, the identity. The model maps images in [0, 1] to
    vectors (batch, numbers) of length 1. Losses, by `embed_loss` of the recipe, in
    float32 whatever the compute dtype:

    - arcface: the cross-entropy of a softmax over the training identities, whose logits
      are `scale` times the cosine of the angle between the vector and a learned
      direction of each identity; the angle of the right one is enlarged by `margin`
      radians (Deng et al., arXiv 1801.07698). Where the sum is more than pi, the cosine
      goes on as a line, as in the authors' code. The directions are part of the
      training alone: of its checkpoints and its state, not of the model.
    - contrastive: the supervised contrastive loss (Khosla et al., arXiv 2004.11362, the
      sum outside the logarithm) over two augmented views of each image of a batch, with
      the temperature 1 / `scale`.

    Metrics of an evaluation, whose identities are not those of the training:

    - `eer`: the equal error rate over pairs of images; `threshold` in the figures of
      the final evaluation is the cosine from which a pair is then taken for the same.
    - `recall_at_1`: the fraction of images whose nearest other image is of the same
      identity; `mean_average_precision` of all others in their order.
    """

    fields = ("image", "label")
    loss_name = "arcface or contrastive (embed_loss)"
    metrics = (EER, RECALL, PRECISION)
    headline = EER
    pictures = ("similarities", "worst_pairs")
    uses = frozenset({"augment", "margin", "scale", "embed_loss"})

    def __init__(self, *, model: keras.Model, recipe, dataset, **parts):
        super().__init__(model=model, recipe=recipe, dataset=dataset, **parts)
        self.taken = ends.taken_form(model, dataset.input_shape)
        self.scale = scale_of(recipe)
        self.contrastive = recipe.embed_loss == "contrastive"

    @classmethod
    def loss_of(cls, recipe) -> str:
        return recipe.embed_loss

    @classmethod
    def check_recipe(cls, recipe) -> None:
        super().check_recipe(recipe)
        if recipe.embed_loss == "contrastive" and not recipe.augment:
            raise GpuzooError(
                "embed_loss=contrastive compares two augmented views of each image: "
                "set augment, e.g. --augment translate:2"
            )

    @classmethod
    def count_draws(cls, recipe, model: keras.Model) -> int:
        """Return the uniform numbers per example of a step, of each view."""
        views = 2 if recipe.embed_loss == "contrastive" else 1
        return views * super().count_draws(recipe, model)

    @staticmethod
    def check_data(dataset) -> str | None:
        """Return what is wrong with the data, or None: labels must be apart."""
        train = set(np.unique(dataset.train["label"]).tolist())
        both = train & set(np.unique(dataset.test["label"]).tolist())
        if not both:
            return None
        return (
            f"have the identity {dataset.classes[min(both)]!r} in the training and in "
            "the test part, and the task embed is tested on identities that the "
            "training has not: give a folder with one sub-folder for each identity, a "
            ".npz file with x and y, or glyphs"
        )

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        shape = dataset.input_shape
        if fault := base.Task.misfit(model, shape, reshapes=True):
            return fault
        found = ends.output_shape_of(model)
        if len(found) != 2 or found[1] is None or found[1] < 2:
            return f"puts out {found}, not vectors (batch, numbers)"
        lengths = ends.lengths_of(model)
        if np.abs(lengths - 1).max() > _LONGEST:
            return (
                f"puts out vectors of length {lengths.min():.3g} to "
                f"{lengths.max():.3g}, not 1; end it in "
                "keras.layers.UnitNormalization(dtype='float32')"
            )
        return None

    @classmethod
    def heads_of(cls, model: keras.Model, recipe, dataset) -> list[keras.Variable]:
        """Return the directions of the training identities (identities, numbers)."""
        if recipe.embed_loss == "contrastive":
            return []
        count = int(dataset.train["label"].max()) + 1
        shape = (count, ends.output_shape_of(model)[1])
        drawn = randomness.normal(shape, recipe.seed, "directions of identities")
        drawn = (drawn / math.sqrt(shape[1])).astype(np.float32)
        return [keras.Variable(drawn, dtype="float32", name="directions")]

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the loss of the batch."""
        count = sum(change.draws for change in self.changes)
        views = [draws[:, :count], draws[:, count:]] if self.contrastive else [draws]
        changed = [augment.apply(self.changes, batch["image"], one)[0] for one in views]
        images = [augment.pixels(one, self.compute_dtype) for one in changed]
        pixels = keras.ops.concatenate(images) if self.contrastive else images[0]

        def loss():
            vectors = self._vectors(pixels, training=True)
            if self.contrastive:
                labels = keras.ops.concatenate([batch["label"]] * 2)
                value = contrastive(vectors, labels, self.scale)
            else:
                value = arcface(
                    vectors, batch["label"], self.heads[0],
                    self.recipe.margin, self.scale,
                )  # fmt: skip
            return value, {"loss": value}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return the `embedding` of each image."""
        return self.infer(batch)

    def infer(self, batch: dict) -> dict:
        """Return of each image its `embedding`, float32, of length 1."""
        # Rounded once, as users compute it for predict().
        pixels = keras.ops.cast(augment.pixels(batch["image"]), self.compute_dtype)
        return {"embedding": self._vectors(pixels, training=False)}

    def _vectors(self, pixels, training: bool):
        """Return the vectors of images in [0, 1], float32."""
        pixels = keras.ops.reshape(pixels, (keras.ops.shape(pixels)[0], *self.taken))
        return keras.ops.cast(self.model(pixels, training=training), "float32")

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        vectors, labels = _checked(outputs["embedding"]), arrays["label"]
        found = pairs.verification(pairs.pairs(vectors, labels))
        return {"eer": found["eer"], **pairs.retrieval(vectors, labels)}

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the figures of the final evaluation: the `threshold` of the equal
        error rate, the area under the ROC curve, and the numbers of pairs."""
        vectors, labels = _checked(outputs["embedding"]), arrays["label"]
        found = pairs.pairs(vectors, labels)
        figures = pairs.verification(found)
        return {
            "threshold": figures["threshold"],
            "auc": figures["auc"],
            "identities": len(np.unique(labels)),
            "pairs_same": int(found.same.sum()),
            "pairs_different": int((~found.same).sum()),
            "undefined": {},
        }


def scale_of(recipe) -> float:
    """Return the scale of the logits of a recipe."""
    return recipe.scale or _SCALES[recipe.embed_loss]


def _checked(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (images, numbers) that are finite."""
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise GpuzooError(
            f"the vectors of {bad.sum()} of {len(vectors)} images are not finite: "
            "train with a smaller learning_rate, or in another precision"
        )
    return vectors


def arcface(vectors, labels, directions, margin: float, scale: float):
    """Return the mean loss of vectors (batch, numbers) of length 1 with labels
    (batch,); `directions`: (identities, numbers), of any length."""
    ops = keras.ops
    weights = ops.convert_to_tensor(directions)
    square = ops.sum(ops.square(weights), axis=1, keepdims=True)
    weights = weights / ops.sqrt(ops.maximum(square, 1e-12))
    cosine = ops.matmul(vectors, ops.transpose(weights))
    # A sine of 0 has no derivative.
    sine = ops.sqrt(ops.maximum(1 - ops.square(cosine), 1e-6))
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    on_line = cosine - margin * math.sin(margin)
    moved = ops.where(cosine > -math.cos(margin), moved, on_line)
    right = ops.one_hot(labels, weights.shape[0], dtype="float32")
    logits = scale * ops.where(right > 0, moved, cosine)
    return ops.mean(
        keras.losses.categorical_crossentropy(right, logits, from_logits=True)
    )


def contrastive(vectors, labels, scale: float):
    """Return the mean loss of vectors (views, numbers) of length 1 with labels
    (views,), each of which has at least two."""
    ops = keras.ops
    logits = scale * ops.matmul(vectors, ops.transpose(vectors))
    itself = ops.eye(vectors.shape[0], dtype="float32")
    same = ops.cast(ops.equal(labels[:, None], labels[None, :]), "float32") - itself
    # So far below the others that its exponential is 0.
    logits = logits - 1e4 * itself
    largest = ops.stop_gradient(ops.max(logits, axis=1, keepdims=True))
    logits = logits - largest
    total = ops.log(ops.sum(ops.exp(logits), axis=1, keepdims=True))
    likely = ops.sum(same * (logits - total), axis=1) / ops.sum(same, axis=1)
    return -ops.mean(likely)
