"""Distillation: a small classifier learns from a trained one."""

import functools

import keras

from gpuzoo.catalogue.recipe import parse_options
from gpuzoo.catalogue.registry import build, model_info
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, unredact
from gpuzoo.runs import code
from gpuzoo.runs.teacher import SHIPPED, record_of
from gpuzoo.runtime.keras_state import fresh_names, in_float32
from gpuzoo.tasks import classify, frechet
from gpuzoo.weights import digest_of, load_weights


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, with the loss that Hinton, Vinyals and Dean give in
    arXiv 1503.02531: of `distill_alpha` parts the divergence of the model's
    probabilities from the teacher's, both softened by `temperature` and weighted with
    its square (Keras's LogitsDistillation), and for the rest the cross-entropy of the
    labels.

    The teacher computes in float32, without dropout, and sees the same images as the
    model. Where `distill_alpha` is 0 there is none: the control of a recipe. An
    evaluation tells the loss of the labels and the accuracy.
    """

    loss_name = "cross-entropy and divergence from the teacher"
    models = "classify"
    uses = classify.Task.uses | {"teacher"}

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.alpha = recipe.distill_alpha
        self.teacher = load_teacher(recipe, dataset) if recipe.distill_alpha else None
        # Not by name: as a plain function Keras would give it logits.
        self.likeness = keras.distillation.LogitsDistillation(
            temperature=recipe.temperature, loss=keras.losses.KLDivergence()
        )

    @staticmethod
    def settle(recipe):
        """See settle() below."""
        return settle(recipe)

    @staticmethod
    def code_and_inputs(recipe, dataset, note) -> tuple[dict, dict]:
        """The teacher's: what its weights were trained with."""
        if not recipe.distill_alpha:
            return {}, {}
        _, modules, files = teacher_and_code(recipe, dataset, note)
        ours = {n: digest for n, digest in modules.items() if n.startswith("gpuzoo.")}
        others = {code.TEACHER + n: modules[n] for n in modules if n not in ours}
        inputs = {code.TEACHER + name: digest for name, digest in files.items()}
        return ours | others, inputs

    @staticmethod
    def only_in_training(recipe) -> str:
        """What makes the loss of a training another quantity than the evaluation's."""
        smoothing = classify.Task.only_in_training(recipe)
        teacher = "the teacher" if recipe.distill_alpha else ""
        return " and ".join(filter(None, (smoothing, teacher)))

    def loss(self, images, labels, own, logits):
        if self.teacher is None:
            return super().loss(images, labels, own, logits)
        told = self.teacher(keras.ops.cast(images, "float32"), training=False)
        told = keras.ops.stop_gradient(keras.ops.cast(told, "float32"))
        logits = keras.ops.cast(logits, "float32")
        hard = super().loss(images, labels, own, logits)
        soft = self.likeness.compute_loss(told, logits)
        return (1 - self.alpha) * hard + self.alpha * soft


def settle(recipe):
    """The recipe with the digest of its teacher's weights, if it has none yet.

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
    """The trained classifier that a recipe names, in float32, called for logits.

    Raises:
        GpuzooError: it is none, was trained on other shapes or classes, or its record,
            its weights, its code or the files that it reads are not those it was
            trained with.
    """
    teacher, _, _ = teacher_and_code(recipe, dataset)
    teacher.trainable = False
    return classify.Logits(teacher, tuple(dataset.input_shape))


def teacher_and_code(
    recipe, dataset, note=lambda line: None
) -> tuple[keras.Model, dict, dict]:
    """The teacher, the digests of its code and of the files that it reads."""
    if recipe.teacher == SHIPPED:
        inputs, classes = frechet.SHAPE, tuple(map(str, range(frechet.CLASSES)))
        teacher, modules, files = code.watched(frechet.load_logits, SHIPPED)
    else:
        record = record_of(recipe.teacher)
        data = record["data"]
        inputs, classes = tuple(data["input_shape"]), tuple(data["classes"])
        name = record["recipe"]["model"]
        make = functools.partial(_build, record, inputs, classes)
        teacher, modules, files = code.watched(make, name, (), note)
        _check_unchanged(recipe.teacher, record, modules, files)
        load_weights(teacher, expand(recipe.teacher), sha256=record["weights_sha256"])
        if recipe.teacher_sha256 not in ("", record["weights_sha256"]):
            raise GpuzooError(
                f"teacher {recipe.teacher}: its weights' sha256 is "
                f"{record['weights_sha256']}, not {recipe.teacher_sha256}, with which "
                "the run began; put that teacher back"
            )
    _check_fit(recipe, dataset, inputs, classes)
    return teacher, modules, files


def _build(record: dict, inputs: tuple, classes: tuple) -> keras.Model:
    """The model of a teacher's record, in float32, with the weights it begins with."""
    trained = record["recipe"]
    known = model_info(trained["model"]).options
    options = {"input_shape": inputs, "num_classes": len(classes)}
    options = {name: told for name, told in options.items() if name in known}
    options |= parse_options(tuple(map(unredact, trained["model_options"])))
    with fresh_names(), in_float32():
        return build(trained["model"], **options)


def _check_unchanged(teacher: str, record: dict, modules: dict, files: dict) -> None:
    """What a teacher computes is told by its weights, its model's code and what that
    reads; how it was trained no longer matters."""
    told = {
        name: digest
        for name, digest in record["code"].items()
        if name.startswith("gpuzoo.models.") or not name.startswith("gpuzoo.")
    } | record["inputs"]
    told = {n: d for n, d in told.items() if not n.startswith("teacher/")}
    changed = [n for n, d in told.items() if {**modules, **files}.get(n) != d]
    if changed:
        raise GpuzooError(
            f"teacher {teacher}: changed or missing since it was trained: "
            f"{', '.join(sorted(changed))}; put it back, or train the teacher anew"
        )


def _check_fit(recipe, dataset, inputs: tuple, classes: tuple) -> None:
    """Whether a teacher knows what a student is to learn."""
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
    if recipe.teacher == SHIPPED and frechet.reader_of(dataset) is None:
        raise GpuzooError(
            f"teacher {SHIPPED}: reads handwritten digits, and fewer than four in five "
            f"of the test images of {dataset.name}; name the folder of a run"
        )
