"""A recipe is data: a flat, frozen dataclass of literals, and nothing else."""

import ast
import dataclasses
import inspect
import itertools
import math
import os
import re
import reprlib
import textwrap
import typing
from typing import Literal

import typeguard

from gpuzoo.catalogue.model_info import TASKS
from gpuzoo.errors import GpuzooError, nearest

# Value ranges, as (rule for the reader, test). Fields not named here take any value
# of their type.
_RULES = {
    "task": (f"one of {', '.join(TASKS)}", lambda v: v in TASKS),
    "epochs": ("at least 1", lambda v: v >= 1),
    "min_steps": ("0 or more", lambda v: v >= 0),
    "batch_size": ("at least 1", lambda v: v >= 1),
    "learning_rate": ("a positive number", lambda v: 0 < v < math.inf),
    "momentum": ("in [0, 1)", lambda v: 0 <= v < 1),
    "beta_1": ("in [0, 1)", lambda v: 0 <= v < 1),
    "beta_2": ("in [0, 1)", lambda v: 0 <= v < 1),
    "weight_decay": ("0 or more", lambda v: 0 <= v < math.inf),
    "ema_decay": ("in [0, 1)", lambda v: 0 <= v < 1),
    "distill_alpha": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "temperature": ("a positive number", lambda v: 0 < v < math.inf),
    "label_smoothing": ("in [0, 1)", lambda v: 0 <= v < 1),
    "warmup_fraction": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "image_size": ("in 0..4096", lambda v: 0 <= v <= 4096),
    "audio_seconds": ("in 0..30", lambda v: 0 <= v <= 30),
    "name": (
        "letters, digits, - and _ only",
        lambda v: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", v) is not None,
    ),
    "seed": ("0 or more and below 2**63", lambda v: 0 <= v < 2**63),
    "log_every": ("at least 1", lambda v: v >= 1),
    "eval_every": ("at least 1", lambda v: v >= 1),
    "checkpoint_every": ("0 or more", lambda v: v >= 0),
    "digest_every": ("at least 1", lambda v: v >= 1),
}

# Fields that not every optimizer uses -> those that do.
_ADAMS = ("adam", "adamw", "muon")
_USED_BY = {"momentum": ("sgd", "muon"), "beta_1": _ADAMS, "beta_2": _ADAMS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, on what, and how. Every field is a literal."""

    name: str
    """Name of the recipe; the run folder is called after it."""
    task: str = "classify"
    """What is learned; one file in gpuzoo/tasks/."""

    model: str = "cnn"
    """A model of the catalogue (`gpuzoo list`), keras/<name> (`gpuzoo list "keras/*"`)
    or path.py:function of your own."""
    model_options: tuple[str, ...] = ()
    """Options of the model as key=value, e.g. filters=(32,64) dense=128."""

    teacher: str = ""
    """Of the task distill: the folder of a run that classifies, or lenet5, the one on
    MNIST that comes with gpuzoo."""
    teacher_sha256: str = ""
    """Digest that the teacher's weights must have; empty: it is found and recorded."""
    distill_alpha: float = 0.9
    """Part of the loss of the task distill that compares with the teacher."""
    temperature: float = 3.0
    """What the logits are divided by for that."""

    data: str = "mnist"
    """mnist, cifar10, ... (any TFDS image set), digits, tones, mackey_glass, a .npz or
    .csv file, or a folder with one sub-folder of images or .wav files per class."""
    data_dir: str | None = None
    """A prepared TFDS folder to read the dataset from; nothing is downloaded then."""
    fallback_data: str = ""
    """Dataset to train on when `data` is not to be had and was not named by you."""
    image_size: int = 0
    """Side in pixels that images of a folder are resized to; 0: all must agree."""
    audio_seconds: float = 0.0
    """Length that the sounds of a folder are cut or filled up to; 0: the longest's."""

    stream: Literal["auto", "on", "off"] = "auto"
    """Send the examples along with each compiled call, for data that are larger than
    the device's memory; auto: where they fill more than half of it. Moves no bit."""

    epochs: int = 1
    """Passes over the training examples."""
    min_steps: int = 0
    """A small dataset is repeated until at least so many steps are done; naming
    --epochs switches this off."""
    batch_size: int = 128
    """Examples per step; an epoch leaves out the last, incomplete batch."""

    optimizer: Literal["adam", "adamw", "muon", "sgd"] = "adam"
    """Optimizer; sgd has Nesterov momentum; muon uses adam for all but the kernels,
    and for the last kernel."""
    learning_rate: float = 1e-3
    """The highest learning rate that the schedule reaches."""
    momentum: float = 0.9
    """Of sgd and muon."""
    beta_1: float = 0.9
    """Decay of adam's first moment."""
    beta_2: float = 0.999
    """Decay of adam's second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, per step and times the learning rate."""
    schedule: Literal["constant", "cosine", "linear", "one_cycle"] = "constant"
    """Learning rate over the steps, after the warm-up: constant, or falling to 0;
    one_cycle warms up along a cosine, the others along a line."""
    warmup_fraction: float = 0.0
    """Fraction of all steps in which the learning rate rises to its highest."""
    ema_decay: float = 0.0
    """Decay per step of a running average of the weights, which is then what is
    evaluated and kept; 0: none."""
    label_smoothing: float = 0.0
    """Part of the target spread evenly over all classes."""
    augment: tuple[str, ...] = ()
    """Random changes of the training images, as name:amount, e.g. translate:2 flip."""

    tta: Literal["none", "flip", "flip_translate"] = "none"
    """Test-time augmentation of a classifier: the logits of each image are averaged
    with those of its mirror image, or of these two and both translated by a pixel."""

    seed: int = 0
    """Everything random is a function of it; two runs with one seed are equal."""
    log_every: int = 50
    """Steps between two lines of training loss."""
    eval_every: int = 1
    """Epochs between two evaluations on the test examples; the last one is always."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; 0: only when stopped."""
    digest_every: int = 100
    """Steps between two digests of the weights in digests.jsonl."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if hints[field.name] is float and type(value) is int:
                value = float(value)
            object.__setattr__(self, field.name, value)
            try:
                typeguard.check_type(value, hints[field.name])
            except typeguard.TypeCheckError as error:
                what = str(error).partition("\n")[0][:200]
                raise GpuzooError(
                    f"{field.name} of recipe {self.name!r}: {what}; got "
                    f"{reprlib.repr(value)}".replace("\n", " ")
                ) from None
            rule, test = _RULES.get(field.name, ("", lambda v: True))
            if not test(value) or isinstance(value, bool):
                raise GpuzooError(
                    f"{field.name} of recipe {self.name!r} must be {rule}: {value!r}"
                )
            users = _USED_BY.get(field.name, (self.optimizer,))
            if self.optimizer not in users and value != field.default:
                raise GpuzooError(
                    f"{field.name} of recipe {self.name!r} is for {', '.join(users)}; "
                    f"{self.optimizer} does not use it: leave it at {field.default}"
                )

    def override(self, **changes) -> "Recipe":
        """A copy with other values. Naming `data` means that data and no other,
        naming `epochs` that many and naming another `model` that one as it is: they
        clear `fallback_data`, `min_steps` and `model_options`. Another `optimizer`
        resets what it does not use."""
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
        for field in dataclasses.fields(self):
            if optimizer not in _USED_BY.get(field.name, (optimizer,)):
                changes.setdefault(field.name, field.default)
        return dataclasses.replace(self, **changes)

    def as_record(self) -> dict:
        """The fields as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


class _WithFields:
    """The docstring of a dataclass followed by its fields, each with the text below it,
    which Python drops: read from the source when help() asks."""

    def __init__(self, text: str):
        self.text = text

    def __get__(self, instance, owner) -> str:
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):
            return self.text
        body = ast.parse(source).body[0].body
        lines = [self.text, "", "Attributes:"]
        for field, told in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(told, ast.Expr):
                text = " ".join(ast.literal_eval(told.value).split())
                lines += textwrap.wrap(
                    f"{field.target.id}: {text}", 84, initial_indent="    ",
                    subsequent_indent="        ",
                )  # fmt: skip
        return "\n".join(lines)


Recipe.__doc__ = _WithFields(Recipe.__doc__)


def parse_options(texts: tuple[str, ...]) -> dict:
    """`("dense=128", "name=x")` -> `{"dense": 128, "name": "x"}`, literals only."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise GpuzooError(f"model_options must look like key=value: {text!r}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
