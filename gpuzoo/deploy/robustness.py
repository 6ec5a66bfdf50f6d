"""Measure how a trained classifier of images fares on images that it was not made for.

Corrupted images, adversarial examples, the calibration of its probabilities, and images
of another dataset. Everything is a function of the run, the data and the seed.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import PIL.features
import PIL.Image
from scipy import optimize, special
from sklearn import metrics

from gpuzoo import __version__, randomness
from gpuzoo.data.sources import is_folder, load_data
from gpuzoo.deploy import corruptions
from gpuzoo.deploy.evaluate import check_new
from gpuzoo.deploy.trained import Trained, load
from gpuzoo.errors import GpuzooError, remedy_of
from gpuzoo.files import expand, write_atomically
from gpuzoo.runs import drift
from gpuzoo.runs.record import read_run
from gpuzoo.runs.teacher import CLASSIFIERS
from gpuzoo.runtime.environment import version_of

PARTS = ("corruptions", "attacks", "calibration")
# Examples, unless named: MNIST and CIFAR-10 get the first number, photographs fewer.
_MOST, _LEAST, _PIXELS = 2_000, 200, 4_000_000
_FITTED = 5_000  # training examples for the temperature
_TEMPERATURES = (0.05, 20.0)
_VERSIONS = ("keras", "numpy", "scipy", "scikit-learn", "pillow")


def robustness(
    run: str | pathlib.Path,
    *,
    only: str | Sequence[str] = PARTS,
    examples: int | None = None,
    seed: int = 0,
    epsilons: Sequence[float] = (),
    pgd_steps: int = 20,
    data_dir: str | None = None,
    ood: str | None = None,
    ood_data_dir: str | None = None,
    out: str | pathlib.Path | None = None,
    allow_drift: bool = False,
    trust_code: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    **options,
) -> dict:
    """Measure the robustness of a trained classifier of images.

    Args:
        run: the run folder.
        only: parts to measure, of corruptions, attacks and calibration.
        examples: test images, chosen by the seed; default: all, but at most 2,000, and
            fewer if they have more than 2,000 pixels, down to 200.
        seed: of the choice, the corruptions and the random starts. Not that of the run:
            the same images for all runs.
        epsilons: bounds of the attacks, of values in [0, 1]; default: 0.1, 0.2, 0.3 for
            one channel, 1, 2, 4, 8 / 255 for three.
        pgd_steps: steps of PGD.
        data_dir: prepared TFDS folder of the run's data; default: that of the run.
        ood: another dataset, as `gpuzoo.load_data` takes it, whose test images should
            be told apart from those of the run; resized to their shape.
        ood_data_dir: prepared TFDS folder of that dataset.
        out: a new folder for robustness.json, pictures and robustness.html.
        allow_drift, trust_code, options: see `gpuzoo.load`.
        note: called with lines for the user.
        progress: called with what is being done, the steps done and all of them; 0 of
            0 if they are not counted.

    Returns:
        The results, as in robustness.json (docs/howto/robustness.md).

    Raises:
        GpuzooError: the run cannot be loaded or is not a classifier of images, its data
            have changed, or an argument is out of range.
    """
    only = (only,) if isinstance(only, str) else only
    _check(only, examples, seed, epsilons, pgd_steps)
    if ood_data_dir and not ood:
        raise GpuzooError("ood_data_dir is for ood, which names no dataset")
    if out is not None:
        check_new(out)
    task = read_run(expand(run))["recipe"]["task"]
    if task not in CLASSIFIERS:
        raise GpuzooError(
            f"{run} was trained for the task {task}; robustness is measured of "
            f"classifiers of images: tasks {', '.join(CLASSIFIERS)}"
        )
    trained = load(
        run, allow_drift=allow_drift, trust_code=trust_code, note=note, **options
    )
    progress("predicting the test images", 0, 0)
    subject = _subject(trained, data_dir, examples, seed, note)
    shape = subject.images.shape[1:]
    if "corruptions" in only:
        corruptions.check(shape)
    other = _other(ood, ood_data_dir, trained, examples, seed, note) if ood else None
    head, done = _head(subject), {}
    if "corruptions" in only:
        done["corruptions"] = _corruptions(subject, progress)
    if "attacks" in only:
        done["attacks"] = _attacks(subject, epsilons, pgd_steps, note, progress)
    if "calibration" in only:
        done["calibration"] = _calibration(subject, note, progress)
    if other:
        done["ood"] = _out_of_distribution(subject, *other, progress)
    found = {**head, **done}
    if out is not None:
        progress("drawing pictures", 0, 0)
        _write(expand(out), found, _examples(subject, found))
    return found


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and the test images that it is measured on."""

    trained: Trained
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    """Their places in the test set."""
    train: dict
    """The training examples."""
    seed: int
    clean: dict
    """What the model gives for the images."""

    @property
    def right(self) -> np.ndarray:
        return self.clean["predicted"] == self.labels


def _check(only, examples, seed, epsilons, pgd_steps) -> None:
    if not only or not set(only) <= set(PARTS):
        raise GpuzooError(
            f"only must name some of {', '.join(PARTS)}: {only!r}".replace("\n", " ")
        )
    if examples is not None and (type(examples) is not int or examples < 1):
        raise GpuzooError(f"examples must be at least 1: {examples!r}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise GpuzooError(f"seed must be 0 or more and below 2**63: {seed!r}")
    for epsilon in epsilons:
        if not 0 < epsilon <= 1:
            raise GpuzooError(
                f"epsilons must be in (0, 1], where 1 is the whole range: {epsilon!r}"
            )
    if type(pgd_steps) is not int or not 1 <= pgd_steps <= 10_000:
        raise GpuzooError(f"pgd_steps must be in 1..10000: {pgd_steps!r}")


def _write(path: pathlib.Path, found: dict, examples: dict) -> None:
    """Write the report into a new folder."""
    from gpuzoo.report import robustness as report

    content = report.files(found, examples)
    try:
        path.mkdir(parents=True)
        for name, one in content.items():
            write_atomically(path / name, one, replace=False)
    except OSError as error:
        raise GpuzooError(
            f"out: {path}: {error.strerror or error}; {remedy_of(error)}"
        ) from None


def _subject(trained: Trained, data_dir, examples, seed: int, note) -> Subject:
    """Return the chosen test images of a run, and what its model gives for them."""
    from gpuzoo.training import build

    recorded, recipe = trained.record["data"], trained.recipe
    if data_dir is not None:
        recipe = dataclasses.replace(recipe, data_dir=data_dir)
    dataset = build.load_data_of(recipe, note, recorded["fingerprint"])
    changes = drift.data_differences(recorded, dataset.as_record())
    drift.refuse(changes, f"{trained.path} has other data than when it was trained")
    rows = _chosen(dataset.count("test"), dataset.input_shape, examples, seed, "test")
    images, labels = (dataset.test[name][rows] for name in ("image", "label"))
    return Subject(
        trained, images, labels, rows, dataset.train, seed, trained.predict(images)
    )


def _chosen(count: int, shape, examples: int | None, seed: int, what: str):
    """Return sorted places of as many of `count` examples."""
    if examples is None:
        examples = min(_MOST, max(_LEAST, _PIXELS // (shape[0] * shape[1])))
    elif examples > count and what == "test":
        raise GpuzooError(f"examples must be at most the {count} test images")
    if examples >= count:
        return np.arange(count)
    return np.sort(randomness.permutation(count, seed, "robustness", what)[:examples])


# --- the parts ----------------------------------------------------------------------


def _head(subject: Subject) -> dict:
    """Return what was measured, and the figures of the unchanged images."""
    trained, record = subject.trained, subject.trained.record
    return {
        "schema": 1,
        "run": trained.path.name,
        "run_id": record.get("id", ""),
        "weights_sha256": record["weights_sha256"],
        "recipe": trained.recipe.name,
        "model": trained.recipe.model_name,
        "data": record["data"]["name"],
        "classes": list(trained.classes),
        "backend": trained.runtime.backend,
        "precision": trained.runtime.precision,
        "seed": subject.seed,
        "examples": len(subject.images),
        "test_examples": record["data"]["test_examples"],
        "versions": _versions(),
        "clean": {
            "accuracy": float(np.mean(subject.right)),
            "log_loss": _log_loss(subject.clean["logits"], subject.labels, 1.0),
        },
    }


def _versions() -> dict:
    """Return the versions of what is installed under its usual name."""
    found = {name: version for name in _VERSIONS if (version := version_of(name))}
    jpeg = PIL.features.version("libjpeg_turbo")
    return {"gpuzoo": __version__, **found, "libjpeg-turbo": jpeg}


def _corruptions(subject: Subject, progress) -> dict:
    """Return kind -> accuracy at each severity, and the mean of all."""
    rows: dict[str, list[float]] = {}
    seen = hashlib.sha256()
    cells = [(kind, s) for kind in corruptions.KINDS for s in corruptions.SEVERITIES]
    for done, (kind, severity) in enumerate(cells):
        progress("corruptions", done, len(cells))
        images = corruptions.corrupt(
            subject.images, subject.indices, kind, severity, subject.seed
        )
        outputs = subject.trained.predict(images)
        seen.update(images.tobytes() + outputs["logits"].tobytes())
        right = float(np.mean(outputs["predicted"] == subject.labels))
        rows.setdefault(kind, []).append(right)
    progress("corruptions", len(cells), len(cells))
    return {
        "after": "ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261); computed "
        "otherwise, so not comparable with published figures",
        "accuracy": rows,
        "mean_accuracy": float(np.mean(list(rows.values()))),
        "sha256": seen.hexdigest(),
    }


def _attacks(subject: Subject, epsilons, steps: int, note, progress) -> dict:
    """Return the accuracy under each attack: of images that are classified correctly
    with and without it."""
    from gpuzoo.deploy.attacks import Attacks, default_epsilons

    epsilons = tuple(epsilons) or default_epsilons(subject.images.shape[-1])
    attacks = Attacks(
        subject.trained, subject.images, subject.labels, subject.indices, subject.seed
    )
    seen, rows, flat = hashlib.sha256(), {"fgsm": [], "pgd": []}, 0
    of, done = len(epsilons) * (steps + 1), 0
    for epsilon in epsilons:
        tell = lambda n, done=done: progress("attacks", done + n, of)  # noqa: E731
        fast, flat_fast = attacks.fgsm(epsilon)
        tell(1)
        slow, flat_slow = attacks.pgd(epsilon, steps, lambda n, tell=tell: tell(n + 1))
        done += steps + 1
        flat = max(flat, flat_fast, flat_slow)
        for name, images in (("fgsm", fast), ("pgd", slow)):
            outputs = subject.trained.predict(images)
            seen.update(images.tobytes() + outputs["logits"].tobytes())
            right = (outputs["predicted"] == subject.labels) & subject.right
            rows[name].append(float(np.mean(right)))
    found: dict = {
        "norm": "maximum",
        "epsilons": list(epsilons),
        "pgd_steps": steps,
        **rows,
        "without_gradient": flat,
        "sha256": seen.hexdigest(),
        "findings": [
            *_rounded(epsilons, subject.trained.runtime.precision),
            *_masked(epsilons, rows, flat, len(subject.images)),
        ],
    }
    for line in found["findings"]:
        note(line)
    return found


def _rounded(epsilons, precision: str) -> list[str]:
    """Return whether the network rounds the smallest attack away."""
    kind = precision.removeprefix("mixed_")
    # Just below 1, where white is; the digits of each precision.
    spacing = {"bfloat16": 2**-8, "float16": 2**-11}.get(kind, 0)
    if min(epsilons) > 2 * spacing:
        return []
    return [
        f"attacks: {kind} rounds pixels near 1 to multiples of {spacing:.2g}, which "
        f"hides attacks of {min(epsilons):.2g}; measure with precision float32, too"
    ]


def _masked(epsilons, rows: dict, flat: int, count: int) -> list[str]:
    """Return signs that gradients are masked, so that other attacks would find more
    (Athalye, Carlini and Wagner, arXiv 1802.00420)."""
    found = [
        f"attack of {epsilon:g}: FGSM finds more mistakes than PGD; its gradients may "
        "be masked, and a stronger attack may succeed"
        for epsilon, fast, slow in zip(
            epsilons, rows["fgsm"], rows["pgd"], strict=True
        )
        if fast < slow - 0.01
    ]  # fmt: skip
    if flat > count // 100:
        found.append(
            f"attacks: the gradient of {flat} of {count} images was zero in the run's "
            "precision, so that they were not attacked"
        )
    return found


def _calibration(subject: Subject, note, progress) -> dict:
    """Return the expected calibration error before and after one temperature, fitted
    on training examples."""
    from gpuzoo.tasks import scores  # imports Keras, which `load` has configured

    progress("calibration: predicting training examples", 0, 0)
    train, labels = subject.train, subject.labels
    rows = randomness.permutation(
        len(train["label"]), subject.seed, "robustness", "temperature"
    )
    rows = np.sort(rows[:_FITTED])
    fitted_on = subject.trained.predict(train["image"][rows])["logits"]
    theirs = train["label"][rows]
    fit = optimize.minimize_scalar(
        lambda power: _log_loss(fitted_on, theirs, float(np.exp(power))),
        bounds=tuple(np.log(_TEMPERATURES)), method="bounded",
    )  # fmt: skip
    temperature = float(np.exp(fit.x))
    logits = subject.clean["logits"]
    found: dict = {
        "temperature": temperature,
        "fitted_on": f"{len(rows)} training examples",
        "bins": scores.BINS,
        "before": _reliability(logits, labels, 1.0),
        "after": _reliability(logits, labels, temperature),
        "findings": [],
    }
    if found["after"]["log_loss"] > found["before"]["log_loss"]:
        found["findings"].append(
            "calibration: the temperature of the training examples makes the log loss "
            "of the test images worse: the model knows its training examples too well; "
            "fit one on images that it has not seen"
        )
    for line in found["findings"]:
        note(line)
    return found


def _probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    return special.softmax(logits.astype(np.float64) / temperature, axis=1)


def _log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    chances = _probabilities(logits, temperature)
    return float(metrics.log_loss(labels, chances, labels=range(logits.shape[1])))


def _reliability(logits, labels, temperature: float) -> dict:
    """Return the log loss and what `scores.reliability` does."""
    from gpuzoo.tasks import scores

    chances = _probabilities(logits, temperature)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    return {
        "log_loss": _log_loss(logits, labels, temperature),
        **scores.reliability(confidence, right),
    }


def _other(name, data_dir, trained: Trained, examples, seed: int, note) -> tuple:
    """Return images of another dataset in the shape of the run's, and its name."""
    # Images of several sizes must be brought to one before they are an array.
    folder = is_folder(name, by_name=data_dir is not None)
    size = max(trained.input_shape[:2]) if folder else 0
    data = load_data(name, data_dir=data_dir, image_size=size, note=note)
    if data.field != "image" or len(data.input_shape) != 3:
        raise GpuzooError(f"ood {name!r}: has no images")
    if data.fingerprint == trained.record["data"]["fingerprint"]:
        raise GpuzooError(f"ood {name!r}: are the data of the run; name other data")
    rows = _chosen(data.count("test"), data.input_shape, examples, seed, "ood")
    images = data.test["image"][rows]
    if images.dtype != np.uint8:
        images = np.rint(255 * images).astype(np.uint8)
    shape = trained.input_shape
    if images.shape[1:] != shape:
        note(
            f"ood {data.name}: images of {images.shape[1:]} are brought to {shape} "
            "(height, width, channels)"
        )
        images = np.stack([_as_shape(image, shape) for image in images])
    return data.name, images


def _as_shape(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if image.shape[-1] not in (1, 3) or shape[-1] not in (1, 3):
        raise GpuzooError(f"ood: images of {image.shape} cannot be made {shape}")
    picture = PIL.Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    picture = picture.convert("RGB" if shape[-1] == 3 else "L")
    how = PIL.Image.Resampling.BILINEAR
    return np.asarray(picture.resize(shape[1::-1], how)).reshape(shape)


def _out_of_distribution(subject: Subject, name: str, images, progress) -> dict:
    """Return how well two scores tell the images of another dataset from the run's: the
    largest probability (Hendrycks and Gimpel, arXiv 1610.02136) and the energy (Liu et
    al., arXiv 2010.03759)."""
    progress(f"predicting images of {name}", 0, 0)
    theirs = subject.trained.predict(images)["logits"].astype(np.float64)
    ours = subject.clean["logits"].astype(np.float64)
    known = np.repeat([1, 0], [len(ours), len(theirs)])
    found: dict = {"data": name, "examples": len(theirs)}
    for score, function in (
        ("confidence", lambda logits: special.softmax(logits, axis=1).max(axis=1)),
        ("energy", lambda logits: special.logsumexp(logits, axis=1)),
    ):
        values = np.concatenate([function(ours), function(theirs)])
        false, true, _ = metrics.roc_curve(known, values)
        found[score] = {
            "auroc": float(metrics.roc_auc_score(known, values)),
            # Of the others, those that pass where 95 % of the run's images do.
            "false_positives_at_95": float(false[np.argmax(true >= 0.95)]),
        }
    return found


def _examples(subject: Subject, found: dict) -> dict[str, np.ndarray]:
    """Return kind -> the first image at each severity, for the sheet."""
    if "corruptions" not in found:
        return {}
    first, where = subject.images[:1], subject.indices[:1]
    return {
        kind: np.concatenate(
            [first]
            + [
                corruptions.corrupt(first, where, kind, severity, subject.seed)
                for severity in corruptions.SEVERITIES
            ]
        )
        for kind in corruptions.KINDS
    }
