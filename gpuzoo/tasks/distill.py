"""Distillation: a small classifier learns from a trained one."""

import functools

import keras

from gpuzoo.catalogue.recipe import parse_options
from gpuzoo.catalogue.registry import build, model_info
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, read_inside
from gpuzoo.home import unredact
from gpuzoo.runs import code
from gpuzoo.runs.record import architecture_of
from gpuzoo.runs.teacher import SHIPPED, record_of
from gpuzoo.runtime.keras_state import fresh_names, in_float32
from gpuzoo.tasks import classify, frechet
from gpuzoo.weights import digest_of, load_weights


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, with the loss of Hinton, Vinyals and Dean, arXiv
    1503.02531: `distill_alpha` times the KL divergence of the model's probabilities
    from the teacher's, both softened by `temperature` and weighted with its square
    (Keras's LogitsDistillation), plus `1 - distill_alpha` times the cross-entropy of
    the labels.

    The teacher computes in float32, without dropout, and sees the same images as the
    model. With `distill_alpha` 0 there is no teacher: the control of a recipe. An
    evaluation returns the cross-entropy of the labels and the accuracy.
    """

    loss_name = "cross-entropy and divergence from the teacher"
    models = "classify"
    takes_loss = False
    uses = classify.Task.uses | {"teacher"}

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        recipe = self.recipe
        self.alpha = recipe.distill_alpha
        taught = recipe.distill_alpha and optimizers
        self.teacher = load_teacher(recipe, dataset) if taught else None
        # Not by name: as a plain function Keras would give it logits.
        self.likeness = keras.distillation.LogitsDistillation(
            temperature=recipe.temperature, loss=keras.losses.KLDivergence()
        )

    @staticmethod
    def settle(recipe):
        """Return the recipe with the teacher's digest; see settle() below."""
        return settle(recipe)

    @staticmethod
    def code_and_inputs(recipe, dataset, note) -> tuple[dict, dict]:
        """Return digests of the teacher's code and input files."""
        if not recipe.distill_alpha:
            return {}, {}
        _, modules, files = teacher_and_code(recipe, dataset, note)
        ours = {n: digest for n, digest in modules.items() if n.startswith("gpuzoo.")}
        others = {code.TEACHER + n: modules[n] for n in modules if n not in ours}
        inputs = {code.TEACHER + name: digest for name, digest in files.items()}
        return ours | others, inputs

    @staticmethod
    def only_in_training(recipe) -> str:
        """Return the terms of the training loss that the evaluation's lacks."""
        smoothing = classify.Task.only_in_training(recipe)
        teacher = "the teacher" if recipe.distill_alpha else ""
        return " and ".join(filter(None, (smoothing, teacher)))

    def loss(self, images, labels, own, logits):
        if self.teacher is None:
            return super().loss(images, labels, own, logits)
        taught = self.teacher(keras.ops.cast(images, "float32"), training=False)
        taught = keras.ops.stop_gradient(keras.ops.cast(taught, "float32"))
        logits = keras.ops.cast(logits, "float32")
        hard = super().loss(images, labels, own, logits)
        soft = self.likeness.compute_loss(taught, logits)
        return (1 - self.alpha) * hard + self.alpha * soft


def settle(recipe):
    """Return the recipe with the digest of its teacher's weights.

    Raises:
        GpuzooError: no teacher is named, or its weights cannot be read.
    """
    if not recipe.distill_alpha:
        return recipe
    if not recipe.teacher:
        raise GpuzooError(
            "teacher must be named for the task distill: the folder of a run that "
            f"classifies, or {SHIPPED}, which comes with gpuzoo"
        )
    if recipe.teacher_sha256:
        return recipe
    if recipe.teacher == SHIPPED:
        return recipe.override(teacher_sha256=frechet.SHA256)
    path = expand(recipe.teacher).resolve()
    record_of(str(path))
    return recipe.override(teacher=str(path), teacher_sha256=digest_of(path))


def load_teacher(recipe, dataset) -> classify.Logits:
    """Return the teacher of a recipe, in float32, called for logits.

    Raises:
        GpuzooError: it is not a classifier, was trained on other shapes or classes, or
            its record, weights, code or input files have changed since.
    """
    teacher, _, _ = teacher_and_code(recipe, dataset)
    teacher.trainable = False
    return classify.Logits(teacher, tuple(dataset.input_shape))


def teacher_and_code(
    recipe, dataset, note=lambda line: None
) -> tuple[keras.Model, dict, dict]:
    """Return the teacher, the digests of its code and of its input files."""
    if recipe.teacher == SHIPPED:
        inputs, classes = frechet.SHAPE, tuple(map(str, range(frechet.CLASSES)))
        teacher, modules, files = code.watched(frechet.load_logits, SHIPPED)
    else:
        record = record_of(recipe.teacher)
        data = record["data"]
        inputs, classes = tuple(data["input_shape"]), tuple(data["classes"])
        name = record["recipe"]["model"]
        make = functools.partial(_build, record, recipe.teacher, inputs, classes)
        teacher, modules, files = code.watched(make, name, (), note)
        _check_unchanged(recipe.teacher, record, modules, files)
        load_weights(teacher, expand(recipe.teacher), sha256=record["weights_sha256"])
        if recipe.teacher_sha256 not in ("", record["weights_sha256"]):
            raise GpuzooError(
                f"teacher {recipe.teacher}: its weights' sha256 is "
                f"{record['weights_sha256']}, not {recipe.teacher_sha256} as when "
                "the run started; restore that teacher"
            )
    _check_fit(recipe, dataset, inputs, classes)
    return teacher, modules, files


def _build(record: dict, teacher: str, inputs: tuple, classes: tuple) -> keras.Model:
    """Build the model of a teacher's record, in float32, with initial weights."""
    trained = record["recipe"]
    known = model_info(trained["model"]).options
    options = {"input_shape": inputs, "num_classes": len(classes)}
    options = {name: value for name, value in options.items() if name in known}
    options |= parse_options(tuple(map(unredact, trained["model_options"])))
    folder = expand(teacher)
    described = architecture_of(record, folder, lambda name: read_inside(folder, name))
    with fresh_names(), in_float32():
        if described:
            return described.rebuild()
        return build(trained["model"], **options)


def _check_unchanged(teacher: str, record: dict, modules: dict, files: dict) -> None:
    """Check the code and inputs of the teacher's model, which with the weights define
    its outputs; how it was trained does not matter."""
    if changed := code.changed_of_model(record, modules, files):
        raise GpuzooError(
            f"teacher {teacher}: changed or missing since it was trained: "
            f"{', '.join(changed)}; restore it, or retrain the teacher"
        )


def _check_fit(recipe, dataset, inputs: tuple, classes: tuple) -> None:
    """Raise GpuzooError if the teacher has other shapes or classes than the data."""
    shape, labels = tuple(dataset.input_shape), tuple(dataset.classes)
    if (inputs, len(classes)) != (shape, len(labels)):
        raise GpuzooError(
            f"teacher {recipe.teacher}: has {len(classes)} classes of examples "
            f"{inputs}; {dataset.name} has {len(labels)} of {shape}"
        )
    if recipe.teacher != SHIPPED and classes != labels:
        pairs = zip(classes, labels, strict=True)
        theirs, ours = next(pair for pair in pairs if len({*pair}) > 1)
        raise GpuzooError(
            f"teacher {recipe.teacher}: has class {theirs!r} where {dataset.name} has "
            f"{ours!r}; name a teacher with the same classes in the same order"
        )
    if recipe.teacher == SHIPPED and frechet.reader_of(dataset) is None:
        raise GpuzooError(
            f"teacher {SHIPPED}: reads handwritten digits, and fewer than 80 % of the "
            f"test images of {dataset.name}; name the folder of a run"
        )
