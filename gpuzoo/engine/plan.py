"""The number of steps, the examples of each, and where to stop between them."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from gpuzoo import randomness
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data.dataset import Arrays
from gpuzoo.engine import pruning
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.options import Runtime
from gpuzoo.tasks import augment

# So that a table of learning rates fits into memory, and 256 * step into 32 bits (of
# the parts of a step, too).
MOST_STEPS = 8_000_000


@dataclasses.dataclass(frozen=True)
class Plan:
    """The number of steps, and the examples of each."""

    examples: int
    batch: int
    steps_per_epoch: int
    epochs: int
    seed: int
    draws: int
    """Uniform random numbers for each example of a step."""
    lasting: tuple[int, ...] = ()
    """Columns of them that belong to the example: the same in every epoch, plus 1/2
    (modulo 1) from epoch to epoch."""
    prunings: tuple[int, ...] = ()
    """Numbers of steps after which kernels are pruned."""
    kept: tuple[int, ...] = ()
    """Numbers of steps after which a checkpoint is written that stays."""

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def feed(self, first: int, last: int) -> Arrays:
        """Return the feed of steps first..last-1, all of one epoch."""
        epoch, start = divmod(first, self.steps_per_epoch)
        end = start + last - first
        indices = randomness.permuted(
            self.examples, start * self.batch, end * self.batch,
            self.seed, "order", epoch,
        ).reshape(-1, self.batch)  # fmt: skip
        draws = np.zeros((last - first, self.batch, self.draws), np.float32)
        for row, step in enumerate(range(start, end) if self.draws else ()):
            draws[row] = randomness.uniform(
                draws.shape[1:], self.seed, "augment", epoch, step
            )
        for column in self.lasting:
            own = randomness.uniform_at(indices, self.examples, self.seed, "own")
            draws[..., column] = (own + epoch / 2) % 1
        return {
            "indices": indices,
            "draws": draws,
            "step": np.arange(first, last, dtype=np.int32),
        }


def make_plan(
    recipe: Recipe, examples: int, draws: int, fast: bool = False, first: int = 0
) -> Plan:
    """Return the plan; `first`: steps done before, by a run that this one goes on with.

    Raises:
        GpuzooError: the data do not fill one batch, or there are too few steps.
    """
    if recipe.batch_size > examples:
        raise GpuzooError(
            f"batch_size {recipe.batch_size} is larger than the {examples} training "
            f"examples; use --batch-size {min(32, examples)}"
        )
    if recipe.batch_size % recipe.accumulate:
        raise GpuzooError(
            f"batch_size {recipe.batch_size} must be a multiple of accumulate="
            f"{recipe.accumulate}, the number of equal parts of a batch"
        )
    per_epoch = examples // recipe.batch_size
    epochs = epochs_of(recipe, per_epoch)
    if recipe.restarts and not fast:
        _check_restarts(recipe, per_epoch * epochs)
    if fast:
        per_epoch, epochs = min(per_epoch, 2), 1
    if per_epoch * epochs * recipe.accumulate > MOST_STEPS:
        parts = f" of {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
        raise GpuzooError(
            f"epochs {epochs} of {per_epoch} steps are {epochs * per_epoch} steps"
            f"{parts}; {MOST_STEPS // recipe.accumulate} is the most"
        )
    steps, count = per_epoch * epochs, recipe.keep_checkpoints
    if count and count >= steps - first and not fast:
        raise GpuzooError(
            f"keep_checkpoints={count} must be less than the {steps - first} steps of "
            "the training"
        )
    count = max(0, min(count, steps - first - 1))
    lasting = tuple(augment.alternating(recipe.augment))
    return Plan(
        examples, recipe.batch_size, per_epoch, epochs, recipe.seed, draws, lasting,
        pruning.steps_of(steps) if recipe.sparsity else (),
        kept_steps(count, first, steps),
    )  # fmt: skip


def shards_of(recipe: Recipe, runtime: Runtime, critic_steps: int = 1) -> int:
    """Return the number of shards of a batch; 0: it is computed as a whole.

    Args:
        critic_steps: equal parts that the task needs of each shard.

    Raises:
        GpuzooError: the devices, the batch or other settings do not allow it.
    """
    count, devices = recipe.shards, runtime.devices
    if not recipe.elastic:
        if count != recipe.__dataclass_fields__["shards"].default:
            raise GpuzooError(
                f"shards={count} is used with elastic: add --elastic, or leave it out"
            )
        if devices == 1:
            return 0
        count, named = devices, f"devices={devices}"
    else:
        named = f"shards={count}"
        if runtime.backend != "jax":
            raise GpuzooError(
                f"elastic needs --backend jax: {runtime.backend} computes a batch as a "
                "whole"
            )
        if count % devices:
            raise GpuzooError(
                f"devices={devices} must divide shards={count}, so that each has as "
                "many; use a power of two"
            )
    if recipe.batch_size % (count * critic_steps):
        raise GpuzooError(
            f"batch_size {recipe.batch_size} must be a multiple of "
            f"{count * critic_steps}, for {named}"
        )
    if recipe.stream == "off":
        raise GpuzooError(
            f"stream=off cannot be combined with {named}: the examples of a step are "
            "sent to the devices with it; leave stream out"
        )
    if recipe.accumulate > 1:
        raise GpuzooError(
            f"accumulate={recipe.accumulate} cannot be combined with {named}, which "
            "computes a batch in parts, too; leave one of them out"
        )
    return count


def epochs_of(recipe: Recipe, per_epoch: int) -> int:
    """Return the number of epochs: more than the recipe's for data so small that they
    would have less than min_steps, without counting the examples that `validation` has
    taken."""
    least = round(recipe.min_steps * (1 - recipe.validation))
    return max(recipe.epochs, math.ceil(least / per_epoch))


def kept_steps(count: int, first: int, last: int) -> tuple[int, ...]:
    """Return the steps after which a training that does steps first..last-1 writes the
    checkpoints that stay: `count` of them cut it into equal parts."""
    cuts = (
        first + (last - first) * part // (count + 1) for part in range(1, count + 1)
    )
    return tuple(sorted({*cuts} - {first}))


def _check_restarts(recipe: Recipe, steps: int) -> None:
    """Raise GpuzooError if there are too few steps for the periods of the schedule."""
    needed = 2 ** (recipe.restarts + 1) - 1
    left = steps - int(recipe.warmup_fraction * steps)
    if needed > left:
        raise GpuzooError(
            f"restarts={recipe.restarts} needs at least {needed} steps after the "
            f"warmup, and there are {left}; set fewer restarts, or more epochs"
        )


def segments(
    plan: Plan,
    recipe: Recipe,
    start: int,
    until: int | None = None,
    most: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield (first, last) parts of at most `most` steps, cut where something is due
    between two steps."""
    marks = {plan.steps_per_epoch, recipe.log_every, recipe.digest_every}
    marks |= {recipe.checkpoint_every} - {0}
    step = start
    while step < plan.steps:
        end = min(step + mark - step % mark for mark in marks)
        end = min(end, plan.steps, step + (most or plan.steps))
        cuts = (*plan.prunings, *plan.kept)
        end = min([end, *(one for one in cuts if one > step)])
        if until is not None and step < until:
            end = min(end, until)
        yield step, end
        step = end
