"""Optimizers and learning rates from a recipe."""

import copy

import keras
import numpy as np

from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.engine.backends.optimizers import Muon, fused_adam
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import keras_state

UNDECAYED = "exclude_from_weight_decay"
"""Key of a compiled optimizer in run.json: places of the weights without
`weight_decay` among its trainable weights."""


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """Return the learning rate of every step of a run, float32 of shape (steps,).

    Computed on the host in float64 and rounded once, so that every backend and every
    way of compiling sees the same bits. The warmup ends at `learning_rate` after
    `warmup_fraction * steps` steps; the decay reaches 0 one step after the last.
    """
    rising = int(recipe.warmup_fraction * steps)
    up = np.arange(rising) / max(rising, 1)
    down = np.arange(steps - rising) / max(steps - rising, 1)
    fall = {
        "constant": np.ones_like(down),
        "linear": 1 - down,
        "cosine": (1 + np.cos(np.pi * down)) / 2,
        "one_cycle": (1 + np.cos(np.pi * down)) / 2,
    }[recipe.schedule]
    if recipe.schedule == "one_cycle":
        # From a 25th of the peak, along a cosine: Smith and Topin, arXiv 1708.07120,
        # in the form that PyTorch's OneCycleLR made common.
        rise = 1 / 25 + (1 - 1 / 25) * (1 - np.cos(np.pi * up)) / 2
    else:
        rise = (np.arange(rising) + 1) / (rising + 1)
    return (recipe.learning_rate * np.concatenate([rise, fall])).astype(np.float32)


class Table(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule from a table, one rate for each training step, of an optimizer with
    `moves` updates per step."""

    def __init__(self, rates: np.ndarray, moves: int = 1):
        self.rates, self.moves = rates, moves

    def __call__(self, step):
        index = keras.ops.cast(step, "int32")
        if self.moves > 1:
            index = index // self.moves
        index = keras.ops.minimum(index, len(self.rates) - 1)
        return keras.ops.take(keras.ops.convert_to_tensor(self.rates), index)

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
    common: dict = {"weight_decay": recipe.weight_decay or None}
    if recipe.clip_norm and recipe.clip_value:
        raise GpuzooError(
            f"clip_norm {recipe.clip_norm:g} and clip_value {recipe.clip_value:g}: set "
            "only one of them"
        )
    common["global_clipnorm"] = recipe.clip_norm or None
    common["clipvalue"] = recipe.clip_value or None
    if recipe.ema_decay:
        common |= {"use_ema": True, "ema_momentum": recipe.ema_decay}
    if recipe.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            schedule, recipe.momentum, nesterov=True, **common
        )
    elif recipe.optimizer == "muon":
        optimizer = Muon(
            schedule, momentum=recipe.momentum, epsilon=1e-8,
            adam_beta_1=recipe.beta_1, adam_beta_2=recipe.beta_2,
            adam_weight_decay=common["weight_decay"], **common,
        )  # fmt: skip
    else:
        optimizer = fused_adam(backend)(
            schedule, recipe.beta_1, recipe.beta_2, epsilon=1e-8, **common
        )
    return _scaled(optimizer, backend)


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


def averages(optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each weight that an optimizer moves with its running average, if it keeps one."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return keras_state.moving_averages(optimizer) if optimizer.use_ema else []
