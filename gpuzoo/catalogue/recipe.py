"""Recipe: a flat, frozen dataclass of literals."""

import ast
import dataclasses
import inspect
import itertools
import math
import numbers
import os
import re
import reprlib
import textwrap
import typing
from typing import Literal

import typeguard

from gpuzoo.catalogue.model_info import ARCHITECTURE, TASKS
from gpuzoo.errors import GpuzooError, nearest

# Value ranges as (rule in the error message, test). Other fields take any value of
# their type.
_POWERS = [2**power for power in range(1, 11)]
_RULES = {
    "task": (f"one of {', '.join(TASKS)}", lambda v: v in TASKS),
    "epochs": ("at least 1", lambda v: v >= 1),
    "min_steps": ("0 or more", lambda v: v >= 0),
    "batch_size": ("at least 1", lambda v: v >= 1),
    "accumulate": ("at least 1", lambda v: v >= 1),
    "shards": ("a power of two from 2 to 1024", lambda v: v in _POWERS),
    "restarts": ("0 or more", lambda v: v >= 0),
    "plateau_patience": ("at least 1 evaluation", lambda v: v >= 1),
    "plateau_factor": ("in (0, 1)", lambda v: 0 < v < 1),
    "learning_rate": ("a positive number", lambda v: 0 < v < math.inf),
    "momentum": ("in [0, 1)", lambda v: 0 <= v < 1),
    "beta_1": ("in [0, 1)", lambda v: 0 <= v < 1),
    "beta_2": ("in [0, 1)", lambda v: 0 <= v < 1),
    "weight_decay": ("0 or more", lambda v: 0 <= v < math.inf),
    "clip_norm": ("0 or more", lambda v: 0 <= v < math.inf),
    "clip_value": ("0 or more", lambda v: 0 <= v < math.inf),
    "ema_decay": ("in [0, 1)", lambda v: 0 <= v < 1),
    "distill_alpha": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "temperature": ("a positive number", lambda v: 0 < v < math.inf),
    "margin": ("an angle in [0, 1.5] radians", lambda v: 0 <= v <= 1.5),
    "scale": ("0, or a positive number", lambda v: 0 <= v < math.inf),
    "label_smoothing": ("in [0, 1)", lambda v: 0 <= v < 1),
    "sparsity": ("in [0, 1)", lambda v: 0 <= v < 1),
    "warmup_fraction": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "validation": ("a fraction in [0, 1)", lambda v: 0 <= v < 1),
    "early_stopping": ("0 or more evaluations", lambda v: v >= 0),
    "min_delta": ("0 or more", lambda v: 0 <= v < math.inf),
    "window": ("in 2..4096 rows", lambda v: 2 <= v <= 4096),
    "horizon": ("in 1..4096 rows", lambda v: 1 <= v <= 4096),
    "fold": ("k/m with k in 1..m, as 2/4", lambda v: not v or _is_fold(v)),
    "image_size": ("in 0..4096", lambda v: 0 <= v <= 4096),
    "audio_seconds": ("in 0..30", lambda v: 0 <= v <= 30),
    "frames": ("0, or in 2..4096", lambda v: v == 0 or 2 <= v <= 4096),
    "name": (
        "letters, digits, - and _ only",
        lambda v: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", v) is not None,
    ),
    "seed": ("0 or more and below 2**63", lambda v: 0 <= v < 2**63),
    "log_every": ("at least 1", lambda v: v >= 1),
    "eval_every": ("at least 1", lambda v: v >= 1),
    "checkpoint_every": ("0 or more", lambda v: v >= 0),
    "keep_checkpoints": ("0 or more", lambda v: v >= 0),
    "digest_every": ("at least 1", lambda v: v >= 1),
}


def _is_fold(text: str) -> bool:
    found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text)
    return found is not None and 1 <= int(found[1]) <= int(found[2])


# Fields that not every optimizer uses -> those that do; the others take them, if at
# all, as optimizer_options.
_ADAMS = ("adam", "adamw", "muon")
_USED_BY = {"momentum": ("sgd", "muon"), "beta_1": _ADAMS, "beta_2": _ADAMS}
# Fields of one schedule.
_OF_SCHEDULE = {
    "restarts": "cosine",
    "plateau_patience": "reduce_on_plateau",
    "plateau_factor": "reduce_on_plateau",
}


MARGIN = 0.5
"""That of the paper of ArcFace."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training: model, data and hyperparameters."""

    name: str
    """Name of the recipe and of its run folders."""
    task: str = "classify"
    """Task: loss, metrics and training step; one file in gpuzoo/tasks/."""

    model: str = "cnn"
    """Name from `gpuzoo list` or `gpuzoo list "keras/*"`, or path.py:function for your
    own model."""
    model_options: tuple[str, ...] = ()
    """Model options as key=value, e.g. filters=(32,64) dense=128."""

    teacher: str = ""
    """Teacher for the task distill: run folder of a classifier, or lenet5, trained on
    MNIST, which ships with gpuzoo."""
    teacher_sha256: str = ""
    """Expected sha256 of the teacher's weights; empty: computed and recorded."""
    distill_alpha: float = 0.9
    """Weight of the distillation loss; the loss on the labels has the rest."""
    temperature: float = 3.0
    """Softmax temperature for distillation."""
    embed_loss: Literal["arcface", "contrastive"] = "arcface"
    """Loss of the task embed: arcface, a softmax over the training identities with an
    angular margin (Deng et al., arXiv 1801.07698), or contrastive, over pairs of two
    augmented views of each image of a batch, or of a micro-batch or shard of it (Khosla
    et al., arXiv 2004.11362)."""
    margin: float = MARGIN
    """Angle in radians that arcface keeps between identities."""
    scale: float = 0.0
    """Factor of the cosines in the softmax of the task embed, of contrastive the
    inverse of its temperature; 0: those of the papers, 64 and 10."""

    data: str = "mnist"
    """mnist, cifar10, ... (any TFDS image dataset), digits, tones, spoken_digits,
    mackey_glass, market, textured_digits, moving_digits, reviews, glyphs, a .npz or
    .csv file, or a folder with one sub-folder of images, audio files or films per
    class, or with images/ and masks/; with `target` a table: a .csv or .parquet file,
    flats or lettings."""
    target: str = ""
    """Column of a table to predict; generated ones have a default. Of a series several,
    separated by commas; of texts the column of classes."""
    columns: tuple[str, ...] = ()
    """What columns of a table hold, where it is not what the first lines of the run
    say: name:number, name:category, or name:drop to leave one out; of a series also
    name:time, the column of times; of texts name:text or name:drop."""
    window: int = 64
    """Rows of a series that a forecast is made from."""
    horizon: int = 16
    """Rows of a series that are predicted; of the task next_move the row whose target
    is compared with the last one's."""
    gaps: Literal["refuse", "interpolate", "ignore"] = "refuse"
    """Times or values of a series that are missing: an error that names the first;
    interpolated, and no window ends in such a row; or, of times, rows one after the
    other whatever is between them."""
    calendar: tuple[str, ...] = ()
    """Cycles in which a series also has the place of each row as inputs: day, week,
    month, year."""
    fold: str = ""
    """Part k of m of the last fifth of a series to test on, as k/m, with all before it
    for training: a walk forward is a training for each part. Empty: 1/1."""
    data_dir: str | None = None
    """Prepared TFDS folder to read the dataset from, without downloading."""
    fallback_data: str = ""
    """Dataset to use if the recipe's `data` is unavailable; --data switches it off."""
    image_size: int = 0
    """Resize images of a folder to this side in pixels; 0: all must have one size."""
    audio_seconds: float = 0.0
    """Cut or pad audio files of a folder to this length; 0: that of the longest."""
    frames: int = 0
    """Frames to take from each film of a folder, evenly spread; 0: 16."""

    validation: float = 0.0
    """Fraction of the training examples to hold out for validation, stratified by class
    and chosen by the seed; of a series its last part. 0: the validation split of the
    data, if there is one. The validation split is evaluated during the training, the
    test split only at the end."""

    stream: Literal["auto", "on", "off", "disk"] = "auto"
    """Stream examples to the device instead of keeping the dataset in its memory; auto:
    if it fills more than half of it; disk: also read and decode the images of a TFDS
    dataset from its files when a step needs them. Does not change results."""

    epochs: int = 1
    """Passes over the training examples."""
    min_steps: int = 0
    """Minimum number of training steps (small datasets are repeated), less the part
    that --validation takes; switched off by --epochs."""
    batch_size: int = 128
    """Examples per step; the last, incomplete batch of an epoch is dropped."""
    accumulate: int = 1
    """Gradient accumulation: number of micro-batches that a batch is computed in, to
    need less memory, with one update by their mean gradient. Batch normalization, mixup
    and cutmix see one micro-batch at a time."""

    elastic: bool = False
    """Elastic training: compute each batch in `shards` equal parts and average their
    gradients in a fixed order, with backend jax. The results are the same to the bit on
    any number of --devices that divides the shards."""
    shards: int = 8
    """With elastic: shards of a batch, a power of two. Batch normalization, mixup and
    cutmix see one shard each."""

    optimizer: Literal[
        "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl", "lamb",
        "lion", "muon", "nadam", "rmsprop", "schedule_free_adamw", "sgd",
    ] = "adam"  # fmt: skip
    """Optimizer, by its name in keras.optimizers; sgd uses Nesterov momentum; muon uses
    adam for the last kernel and for weights that are not kernels."""
    optimizer_options: tuple[str, ...] = ()
    """Options of the optimizer as key=value, e.g. rho=0.95 centered=True. The others
    have Keras's defaults, except epsilon of adam, adamw, muon and adafactor."""
    learning_rate: float = 1e-3
    """Peak learning rate of the schedule."""
    momentum: float = 0.9
    """Momentum of sgd and muon."""
    beta_1: float = 0.9
    """Decay rate of adam's first moment."""
    beta_2: float = 0.999
    """Decay rate of adam's second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate in each step."""
    clip_norm: float = 0.0
    """Clip the gradients of an update to this global norm. 0: off."""
    clip_value: float = 0.0
    """Clip each value of a gradient to this magnitude. 0: off."""
    schedule: Literal[
        "constant", "cosine", "linear", "one_cycle", "reduce_on_plateau"
    ] = "constant"
    """Learning rate schedule after the warmup: constant, decay to 0, or reduced when
    `monitor` on the validation examples no longer improves; warmup is linear, with
    one_cycle a cosine."""
    warmup_fraction: float = 0.0
    """Fraction of all steps in which the learning rate rises to its peak."""
    restarts: int = 0
    """Number of warm restarts of the schedule cosine (SGDR); each period is twice as
    long as the one before."""
    plateau_patience: int = 3
    """Patience of reduce_on_plateau: evaluations in a row without an improvement before
    it reduces the learning rate."""
    plateau_factor: float = 0.1
    """Factor by which reduce_on_plateau reduces the learning rate."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average (EMA) of the weights, which is
    evaluated and saved instead of them; 0: no EMA."""
    label_smoothing: float = 0.0
    """Fraction of the target spread evenly over all classes."""
    class_weight: tuple[str, ...] = ()
    """Weights of the classes in the training loss: balanced, which is inverse to their
    numbers of training examples, or class:weight by name or index, e.g. cat:2 dog:0.5;
    1 for the others. Validation and test metrics are not weighted."""
    sparsity: float = 0.0
    """Magnitude pruning: fraction of the weights of each kernel that are set to zero.
    It rises over the first three quarters of the steps; the rest fine-tunes the other
    weights. 0: no pruning."""
    augment: tuple[str, ...] = ()
    """Data augmentation of training images as name:amount, e.g. translate:2 flip."""

    early_stopping: int = 0
    """Patience: stop after this many evaluations in a row without an improvement of
    `monitor` on the validation split; 0: train for all epochs."""
    min_delta: float = 0.0
    """Smallest change of `monitor` that early_stopping and reduce_on_plateau count as
    an improvement."""
    keep: Literal["last", "best"] = "last"
    """Weights to save: those of the last step, or of the evaluation with the best
    `monitor` on the validation split."""
    monitor: str = ""
    """Validation metric for keep=best, early_stopping and reduce_on_plateau, e.g.
    accuracy, macro_f1, auc or rmse; empty: the task's first, which is the
    loss, of embed the eer."""

    tta: Literal["none", "flip", "flip_translate"] = "none"
    """Test-time augmentation of a classifier: average the logits over the image and its
    mirror image, with flip_translate also over both translated by one pixel."""

    seed: int = 0
    """Random seed; two runs with the same seed have identical results."""
    log_every: int = 50
    """Steps between log entries of the training loss."""
    eval_every: int = 1
    """Epochs between evaluations on the validation set, or without one on the test set;
    there is always a final one."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0: only when stopped."""
    keep_checkpoints: int = 0
    """Number of evenly spaced checkpoints that stay in the run folder, for `gpuzoo
    audit`; each is usually three times the size of the weights."""
    keep_state: Literal["on", "off"] = "on"
    """Save the optimizer state of the finished run, for `gpuzoo resume RUN --epochs N`;
    usually twice the size of the weights."""
    digest_every: int = 100
    """Steps between digests of the weights in digests.jsonl."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if field.name == "class_weight":
                value = _as_texts(value)
            if hints[field.name] is float and type(value) is int:
                value = float(value)
            object.__setattr__(self, field.name, value)
            if field.name == "model" and not isinstance(value, str):
                raise GpuzooError(self._not_a_name(value))
            try:
                typeguard.check_type(value, hints[field.name])
            except typeguard.TypeCheckError as error:
                what = str(error).partition("\n")[0][:200]
                if "union" in what:
                    what = f"must be {hints[field.name]}"
                raise GpuzooError(
                    f"{field.name} of recipe {self.name!r}: {what}; got "
                    f"{reprlib.repr(value)}".replace("\n", " ")
                ) from None
            rule, test = _RULES.get(field.name, ("", lambda v: True))
            switch = hints[field.name] is bool
            if not test(value) or isinstance(value, bool) != switch:
                raise GpuzooError(
                    f"{field.name} of recipe {self.name!r} must be {rule}: {value!r}"
                )

    def _not_a_name(self, model) -> str:
        """Return the error for a model that is an object."""
        text = f"model of recipe {self.name!r} must be a name or path.py:function, got "
        if callable(model) and hasattr(model, "__qualname__"):
            return (
                f"{text}the function {model.__qualname__}; decorate it with "
                "@gpuzoo.register and pass its name"
            )
        kinds = [kind.__name__ for kind in type(model).__mro__]
        if "Model" not in kinds:
            return f"{text}{reprlib.repr(model)}".replace("\n", " ")
        return (
            f"{text}a keras {kinds[0]}; pass a model object first, and settings as "
            f"arguments: gpuzoo.train(model, task={self.task!r}, data={self.data!r})"
        )

    def override(self, **changes) -> "Recipe":
        """Return a copy with other values. Setting `data` clears `fallback_data`,
        setting `epochs` clears `min_steps`, another `model` clears `model_options`, and
        another `optimizer` or `schedule` resets the fields that it does not use."""
        known = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise GpuzooError(f"a recipe has no {key!r}; {nearest(key, known)}")
        if "data" in changes or "data_dir" in changes:
            changes.setdefault("fallback_data", "")
        if "epochs" in changes:
            changes.setdefault("min_steps", 0)
        if changes.get("model", self.model) != self.model:
            changes.setdefault("model_options", ())
        optimizer = changes.get("optimizer", self.optimizer)
        if optimizer != self.optimizer:
            changes.setdefault("optimizer_options", ())
        schedule = changes.get("schedule", self.schedule)
        for field in dataclasses.fields(self):
            unused = optimizer not in _USED_BY.get(field.name, (optimizer,))
            unused &= optimizer != self.optimizer
            other = schedule != _OF_SCHEDULE.get(field.name, schedule)
            if unused or (other and schedule != self.schedule):
                changes.setdefault(field.name, field.default)
        return dataclasses.replace(self, **changes)

    def check_optimizer(self) -> None:
        """Raise GpuzooError if a field is set that the optimizer does not use."""
        for field in dataclasses.fields(self):
            users, value = _USED_BY.get(field.name, ()), getattr(self, field.name)
            if users and self.optimizer not in users and value != field.default:
                raise GpuzooError(
                    f"{field.name} is used by {', '.join(users)}, not by the optimizer "
                    f"{self.optimizer}: leave it at {field.default}"
                )

    def check_schedule(self) -> None:
        """Raise GpuzooError if a field is set that the schedule does not use."""
        for name, schedule in _OF_SCHEDULE.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name]
            if value != default.default and self.schedule != schedule:
                raise GpuzooError(
                    f"{name}={value:g} is for schedule={schedule}, and the schedule is "
                    f"{self.schedule}: leave it out"
                )

    @property
    def reduces(self) -> bool:
        """Whether the learning rate depends on validation metrics."""
        return self.schedule == "reduce_on_plateau"

    @property
    def chooses(self) -> str:
        """The settings that choose by validation metrics, for messages; "" if none."""
        stops = f"early_stopping={self.early_stopping}" if self.early_stopping else ""
        best = "keep=best" if self.keep == "best" else ""
        plateau = f"schedule={self.schedule}" if self.reduces else ""
        return " and ".join(filter(None, (best, stops, plateau)))

    def check_choice(self) -> None:
        """Raise GpuzooError if a setting is given that nothing uses."""
        if self.monitor and not self.chooses:
            raise GpuzooError(
                f"monitor={self.monitor} is for keep=best and early_stopping, and for "
                "schedule=reduce_on_plateau: set one of them, or leave it out"
            )
        if self.min_delta and not self.early_stopping and not self.reduces:
            raise GpuzooError(
                f"min_delta={self.min_delta:g} is for early_stopping and for "
                "schedule=reduce_on_plateau: set one of them, or leave min_delta out"
            )

    @property
    def model_name(self) -> str:
        """The model in messages; a model object is called like its recipe."""
        return self.name if self.model == ARCHITECTURE else self.model

    def as_record(self) -> dict:
        """Return the fields as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


class _WithFields:
    """The docstring of a dataclass with its fields and their docstrings, which Python
    drops: parsed from the source when help() is called."""

    def __init__(self, text: str):
        self.text = text

    def __get__(self, instance, owner) -> str:
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):
            return self.text
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        lines = [self.text, "", "Attributes:"]
        for field, doc in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                text = " ".join(ast.literal_eval(doc.value).split())
                lines += textwrap.wrap(
                    f"{ast.unparse(field.target)}: {text}", 84, initial_indent="    ",
                    subsequent_indent="        ",
                )  # fmt: skip
        return "\n".join(lines)


Recipe.__doc__ = _WithFields(Recipe.__doc__)


def _as_texts(weights):
    """Return class weights as texts, also of a string or of a dict as Keras takes it:
    its integers are indices, `#0`."""
    if isinstance(weights, str):
        return tuple(weights.split())
    if isinstance(weights, dict):
        return tuple(
            f"{'#' * isinstance(name, numbers.Integral)}{name}:{weight}"
            for name, weight in weights.items()
        )
    return weights


def parse_options(texts: tuple[str, ...], field: str = "model_options") -> dict:
    """Parse `("dense=128", "name=x")` to `{"dense": 128, "name": "x"}`; `field`: the
    name of the field, for messages."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise GpuzooError(f"{field} must look like key=value: {text!r}")
        if key in options:
            raise GpuzooError(f"{field} has {key} twice; give it once")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
