"""Distillation: a small classifier learns from a trained one."""

import json

import keras

from gpuzoo.deploy.artifact import digest_of, load_weights
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, unredact
from gpuzoo.recipe import parse_options
from gpuzoo.registry import build, model_info
from gpuzoo.tasks import classify, measure

SHIPPED = "lenet5"
"""The name of the teacher that comes with gpuzoo: the classifier of measure.py."""


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, with the loss that Hinton, Vinyals and Dean give in
    arXiv 1503.02531: of `imitation` parts the divergence of the model's probabilities
    from the teacher's, both softened by `temperature` and weighted with its square
    (Keras's LogitsDistillation), and for the rest the cross-entropy of the labels.

    The teacher computes in float32, without dropout, and sees the same images as the
    model. Where `imitation` is 0 there is none: the control of a recipe. An evaluation
    tells the loss of the labels and the accuracy.
    """

    models = "classify"

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.imitation = recipe.imitation
        self.teacher = load_teacher(recipe, dataset) if recipe.imitation else None
        # Not by name: as a plain function Keras would give it logits.
        self.likeness = keras.distillation.LogitsDistillation(
            temperature=recipe.temperature, loss=keras.losses.KLDivergence()
        )

    def loss(self, images, labels, own, logits):
        if self.teacher is None:
            return super().loss(images, labels, own, logits)
        told = self.teacher(keras.ops.cast(images, "float32"), training=False)
        told = keras.ops.stop_gradient(keras.ops.cast(told, "float32"))
        logits = keras.ops.cast(logits, "float32")
        hard = super().loss(images, labels, own, logits)
        soft = self.likeness.compute_loss(told, logits)
        return (1 - self.imitation) * hard + self.imitation * soft


def settle(recipe):
    """The recipe with the digest of its teacher's weights, if it has none yet.

    Raises:
        GpuzooError: no teacher is named, or its weights cannot be read.
    """
    if not recipe.imitation:
        return recipe
    if not recipe.teacher:
        raise GpuzooError(
            "teacher must be named for the task distill: the folder of a run that "
            f"classifies, or {SHIPPED}, which comes with gpuzoo"
        )
    if recipe.teacher_sha256:
        return recipe
    if recipe.teacher == SHIPPED:
        return recipe.override(teacher_sha256=measure.SHA256)
    path = expand(recipe.teacher).resolve()
    return recipe.override(teacher=str(path), teacher_sha256=digest_of(path))


def load_teacher(recipe, dataset) -> classify.Logits:
    """The trained classifier that a recipe names, in float32, called for logits.

    Raises:
        GpuzooError: it is none, was trained on other shapes or classes, or its weights
            are not those that the recipe names.
    """
    if recipe.teacher == SHIPPED:
        inputs, classes = measure.SHAPE, tuple(map(str, range(measure.CLASSES)))
        teacher = measure.load_logits()
    else:
        path = expand(recipe.teacher)
        try:
            record = json.loads((path / "run.json").read_text("utf-8"))
            trained, data = record["recipe"], record["data"]
            inputs, classes = tuple(data["input_shape"]), tuple(data["classes"])
        except (OSError, ValueError, KeyError, TypeError):
            raise GpuzooError(
                f"teacher {recipe.teacher}: is not the folder of a run; name one, or "
                f"{SHIPPED}"
            ) from None
        if trained["task"] not in ("classify", "distill"):
            raise GpuzooError(
                f"teacher {recipe.teacher}: was trained to {trained['task']}, not to "
                "classify"
            )
        known = model_info(trained["model"]).options
        options = {"input_shape": inputs, "num_classes": len(classes)}
        options = {name: told for name, told in options.items() if name in known}
        options |= parse_options(tuple(map(unredact, trained["model_options"])))
        with measure.fresh_names(), measure.in_float32():
            teacher = build(trained["model"], **options)
        load_weights(teacher, path, sha256=recipe.teacher_sha256)
    shape, labels = tuple(dataset.input_shape), tuple(dataset.classes)
    if (inputs, len(classes)) != (shape, len(labels)):
        raise GpuzooError(
            f"teacher {recipe.teacher}: knows {len(classes)} classes of examples "
            f"{inputs}; {dataset.name} has {len(labels)} of {shape}"
        )
    if recipe.teacher != SHIPPED and classes != labels:
        pairs = zip(classes, labels, strict=True)
        theirs, ours = next(pair for pair in pairs if len({*pair}) > 1)
        raise GpuzooError(
            f"teacher {recipe.teacher}: was taught {theirs!r} where {dataset.name} has "
            f"{ours!r}; name a teacher of the same classes in the same order"
        )
    if recipe.teacher == SHIPPED and measure.reader_of(dataset) is None:
        raise GpuzooError(
            f"teacher {SHIPPED}: reads handwritten digits, and fewer than four in five "
            f"of the test images of {dataset.name}; name the folder of a run"
        )
    teacher.trainable = False
    return classify.Logits(teacher, shape)
