"""Optimizers and learning rates from a recipe."""

import copy
import inspect
import math

import keras
import numpy as np

from gpuzoo import elementary
from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe, parse_options
from gpuzoo.engine.backends.optimizers import Muon, fused_adam
from gpuzoo.errors import GpuzooError, nearest
from gpuzoo.runtime import keras_state

UNDECAYED = "exclude_from_weight_decay"
"""Key of a compiled optimizer in run.json: places of the weights without
`weight_decay` among its trainable weights."""
REDUCTION = "learning_rate_reduction"
"""Name of the variable of an optimizer by which its learning rates are multiplied, with
schedule=reduce_on_plateau."""

# Arguments of Keras's optimizers that are fields of a recipe.
_FIELDS = {
    "learning_rate": "learning_rate", "weight_decay": "weight_decay",
    "clipnorm": "clip_norm", "global_clipnorm": "clip_norm", "clipvalue": "clip_value",
    "use_ema": "ema_decay", "ema_momentum": "ema_decay",
    "gradient_accumulation_steps": "accumulate",
}  # fmt: skip
_ADAM = {"beta_1": "beta_1", "beta_2": "beta_2"}
_MUON = {
    "adam_beta_1": "beta_1", "adam_beta_2": "beta_2", "momentum": "momentum",
    "adam_weight_decay": "weight_decay",
}  # fmt: skip
_FIELDS_OF = {
    "adam": _ADAM, "adamw": _ADAM, "muon": _MUON, "sgd": {"momentum": "momentum"},
}  # fmt: skip
# Arguments that have no effect here -> why.
_NO_OPTION = {
    ("", "ema_overwrite_frequency"): "the average never replaces the trained weights",
    ("", "loss_scale_factor"): "mixed_float16 scales the loss by itself",
    ("", "name"): "no name of it is recorded",
    ("muon", "nesterov"): "muon always uses it",
    ("muon", "exclude_layers"): "muon moves all kernels but the last one",
    ("muon", "exclude_embeddings"): "muon moves all kernels but the last one",
}


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """Return the learning rate of every step of a run, float32 of shape (steps,).

    Computed on the host in float64 and rounded once, so that every backend and every
    way of compiling sees the same bits. The warmup ends at `learning_rate` after
    `warmup_fraction * steps` steps; the decay reaches 0 one step after the last.
    """
    rising = int(recipe.warmup_fraction * steps)
    up = np.arange(rising) / max(rising, 1)
    down = np.arange(steps - rising) / max(steps - rising, 1)
    if recipe.restarts:
        down = _periods(recipe.restarts, steps - rising)
    fall = {
        "constant": np.ones_like(down),
        "reduce_on_plateau": np.ones_like(down),
        "linear": 1 - down,
        "cosine": (1 + elementary.cos_turns(down / 2)) / 2,
        "one_cycle": (1 + elementary.cos_turns(down / 2)) / 2,
    }[recipe.schedule]
    if recipe.schedule == "one_cycle":
        # From a 25th of the peak, along a cosine: Smith and Topin, arXiv 1708.07120,
        # in the form that PyTorch's OneCycleLR made common.
        rise = 1 / 25 + (1 - 1 / 25) * (1 - elementary.cos_turns(up / 2)) / 2
    else:
        rise = (np.arange(rising) + 1) / (rising + 1)
    return (recipe.learning_rate * np.concatenate([rise, fall])).astype(np.float32)


def _periods(restarts: int, steps: int) -> np.ndarray:
    """Return the place of each step in its period, in [0, 1); each period is twice as
    long as the one before (Loshchilov and Hutter, arXiv 1608.03983)."""
    parts = 2 ** (restarts + 1) - 1
    ends = [steps * (2**period - 1) // parts for period in range(restarts + 2)]
    lengths = np.diff(ends)
    return np.concatenate([np.arange(length) / max(length, 1) for length in lengths])


class Table(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule from a table, one rate for each training step, of an optimizer with
    `moves` updates per step."""

    def __init__(self, rates: np.ndarray, moves: int = 1):
        self.rates, self.moves = rates, moves
        self.reduction: keras.Variable | None = None

    def __call__(self, step):
        index = keras.ops.cast(step, "int32")
        if self.moves > 1:
            index = index // self.moves
        index = keras.ops.minimum(index, len(self.rates) - 1)
        rate = keras.ops.take(keras.ops.convert_to_tensor(self.rates), index)
        return rate if self.reduction is None else rate * self.reduction

    def get_config(self) -> dict:
        return {"rates": self.rates.tolist(), "moves": self.moves}


def build_optimizer(
    recipe: Recipe, steps: int, backend, moves: int = 1, compiled: dict | None = None
) -> keras.optimizers.Optimizer:
    """Return the optimizer of a recipe, with `moves` updates per training step, or the
    one that a model was compiled with; with loss scaling at float16."""
    if compiled:
        return _scaled(_compiled(compiled, backend), backend)
    schedule = Table(learning_rates(recipe, steps), moves)
    kind, options = _class_and_arguments(recipe, backend)
    try:
        optimizer = kind(schedule, **options)
    except ValueError as error:
        line = str(error).partition("\n")[0]
        raise GpuzooError(f"optimizer_options of {recipe.optimizer}: {line}") from None
    if recipe.reduces:
        schedule.reduction = optimizer.add_variable(
            (), initializer="ones", dtype="float32", name=REDUCTION
        )
    return _scaled(optimizer, backend)


def _class_and_arguments(recipe: Recipe, backend) -> tuple[type, dict]:
    """Return the class of the optimizer of a recipe, and its arguments but the learning
    rate."""
    kind, options = chosen(recipe)
    if recipe.clip_norm and recipe.clip_value:
        raise GpuzooError(
            f"clip_norm {recipe.clip_norm:g} and clip_value {recipe.clip_value:g}: set "
            "only one of them"
        )
    options["weight_decay"] = recipe.weight_decay or None
    options["global_clipnorm"] = recipe.clip_norm or None
    options["clipvalue"] = recipe.clip_value or None
    if recipe.ema_decay:
        options |= {"use_ema": True, "ema_momentum": recipe.ema_decay}
    if recipe.optimizer == "sgd":
        options = {"momentum": recipe.momentum, "nesterov": True} | options
    elif recipe.optimizer == "muon":
        kind = Muon
        options = {
            "momentum": recipe.momentum, "epsilon": 1e-8,
            "adam_beta_1": recipe.beta_1, "adam_beta_2": recipe.beta_2,
            "adam_weight_decay": options["weight_decay"], **options,
        }  # fmt: skip
    elif recipe.optimizer in ("adam", "adamw"):
        kind = keras.optimizers.Adam if options.get("amsgrad") else fused_adam(backend)
        both = {"beta_1": recipe.beta_1, "beta_2": recipe.beta_2}
        options = {**both, "epsilon": 1e-8, **options}
    elif recipe.optimizer == "adafactor":
        # With Keras's 1e-30 an update is 0 / 0 where a row and a column of a kernel
        # have no gradient, as at black pixels and dead units.
        options = {"epsilon_1": 1e-15, **options}
    return kind, options


def chosen(recipe: Recipe) -> tuple[type, dict]:
    """Return Keras's class of the optimizer of a recipe, and its `optimizer_options`.

    Raises:
        GpuzooError: an option that the class lacks, that a field of the recipe sets,
            or with a value of the wrong type.
    """
    wanted = recipe.optimizer.replace("_", "")
    classes = {name.lower(): one for name, one in vars(keras.optimizers).items()}
    kind = classes[wanted]
    known = inspect.signature(kind).parameters
    fields = _FIELDS | _FIELDS_OF.get(recipe.optimizer, {})
    left_out = {
        name: why
        for (of, name), why in _NO_OPTION.items()
        if of in ("", recipe.optimizer)
    }
    options = parse_options(recipe.optimizer_options, "optimizer_options")
    for name, value in options.items():
        what = f"optimizer_options of {recipe.optimizer}: {name}"
        if name in fields:
            raise GpuzooError(f"{what} is set by the field {fields[name]}; use that")
        if name in left_out:
            raise GpuzooError(f"{what} has no effect: {left_out[name]}; leave it out")
        if name not in known or known[name].kind is inspect.Parameter.VAR_KEYWORD:
            possible = [
                one for one, parameter in known.items()
                if one not in {*fields, *left_out}
                and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            ]  # fmt: skip
            raise GpuzooError(f"{what} is unknown; {nearest(name, possible)}")
        options[name] = _checked(what, value, known[name].default)
    return kind, options


def _checked(what: str, value, default):
    """Return the value of an option, of the type of its default."""
    if isinstance(default, bool):
        rule, good = "True or False", isinstance(value, bool)
    elif isinstance(default, int) and what.endswith("steps"):
        rule, good = "an integer", type(value) is int
    else:
        rule, good = "a finite number", type(value) in (int, float)
        good = good and math.isfinite(value)
        value = float(value) if good else value
    if not good:
        raise GpuzooError(f"{what} must be {rule}: {value!r}")
    return value


def deserialized(config: dict, module):
    """Rebuild an object of `keras.optimizers` or `keras.losses` from the config of its
    `serialize`.

    Raises:
        GpuzooError: it is not Keras's own, or cannot be built from these settings.
    """
    if foreign := next(architecture.foreign_parts(config), None):
        raise GpuzooError(f"compiled: {foreign} is not part of Keras")
    name = config.get("class_name")
    try:
        made = module.deserialize(copy.deepcopy(config))  # Keras modifies it
        if isinstance(made, str):  # Keras's table has no Lamb
            made = getattr(module, name).from_config(copy.deepcopy(config["config"]))
    except Exception as error:  # whatever Keras's constructors raise
        reason = str(error).strip().partition("\n")[0]
        raise GpuzooError(f"compiled {name} cannot be rebuilt: {reason}") from None
    return made


def _compiled(config: dict, backend) -> keras.optimizers.Optimizer:
    optimizer = deserialized(config, keras.optimizers)
    if type(optimizer) is keras.optimizers.Adam and not optimizer.amsgrad:
        return fused_adam(backend).from_config(copy.deepcopy(config["config"]))
    return optimizer


def _scaled(
    optimizer: keras.optimizers.Optimizer, backend
) -> keras.optimizers.Optimizer:
    """Add loss scaling if it is needed and missing."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if backend.runtime.precision == "mixed_float16" and not scales:
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def build_state(optimizer, variables: list, compiled: dict | None) -> None:
    """Build the state of an optimizer for its trainable weights.

    Raises:
        GpuzooError: weights to exclude from weight decay are not among them.
    """
    if places := (compiled or {}).get(UNDECAYED):
        try:
            excluded = [variables[place] for place in places]
        except (IndexError, TypeError):
            raise GpuzooError(
                f"compiled: {UNDECAYED} must hold places of the {len(variables)} "
                f"trained weights: {places}"
            ) from None
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inner.exclude_from_weight_decay(var_list=excluded)
    optimizer.build(variables)
    keras_state.list_all_variables(optimizer)


def averages(optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each weight that an optimizer moves with its running average, if it keeps one."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return keras_state.moving_averages(optimizer) if optimizer.use_ema else []
