"""Early stopping, best weights and reductions of the learning rate: what an evaluation
on validation data decides."""

from collections.abc import Callable

import numpy as np

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.errors import GpuzooError
from gpuzoo.runs.evaluation import flat
from gpuzoo.tasks import scores
from gpuzoo.tasks.base import Metric


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Raise GpuzooError if a recipe chooses and the data have no validation split."""
    if recipe.chooses and "val" not in dataset.splits:
        raise GpuzooError(
            f"{recipe.chooses} needs a validation split, and data {dataset.name} have "
            "none; add --validation 0.1 for a tenth of the training examples, or your "
            "own: x_val and y_val in a .npz, val/ beside train/ and test/ in a folder"
        )


def monitor_of(
    recipe: Recipe, metrics: tuple[Metric, ...], measured: tuple[Metric, ...] = ()
) -> Metric | None:
    """Return the metric that a recipe chooses by; None if it does not choose.

    Args:
        metrics: of an evaluation on the validation data.
        measured: others that the task can compute of it.
    """
    if not recipe.chooses:
        return None
    known = {metric.name: metric for metric in (*metrics, *measured)}
    name = recipe.monitor.removeprefix("val_") or metrics[0].name
    if name not in known:
        raise GpuzooError(
            f"monitor={recipe.monitor}: no validation metric of the task {recipe.task} "
            f"on these data; use one of {', '.join(known)}"
        )
    return known[name]


def check_defined(monitor: Metric | None, judge, examples: Arrays) -> None:
    """Raise GpuzooError if a metric that chooses is not defined for the validation
    examples, whatever the model puts out; `judge`: their task."""
    if monitor in judge.measured:
        value_of(monitor.name, judge.scores(judge.blank_outputs(examples), examples))


def value_of(name: str, found: dict) -> float:
    """Return a figure by its name; NaN if an output of the model is not finite.

    Args:
        found: as `Task.scores` returns it.

    Raises:
        GpuzooError: it is not defined for these examples, whatever the model puts out.
    """
    value, why = flat(found)[name], found["undefined"].get(name, "no example")
    if value is None and why != scores.NOT_FINITE:
        raise GpuzooError(
            f"monitor={name} is not defined for the validation examples: {why}; name "
            "another metric"
        )
    return np.nan if value is None else value


class Choice:
    """Follows the monitored metric from evaluation to evaluation.

    Attributes:
        best: epoch, step, monitor and metrics of the best evaluation, the first of
            equal ones; None before the first, and if the recipe does not choose.
        weights: those of that evaluation; None unless the recipe keeps them.
        over: whether early stopping ends the training now.
        reductions: epoch and step of each reduction of the learning rate.
    """

    def __init__(self, recipe: Recipe, monitor: Metric | None):
        self.recipe, self.monitor = recipe, monitor
        self.best: dict | None = None
        self.weights: Arrays | None = None
        self._waited = 0  # evaluations since the last improvement
        self._reference: float | None = None  # the value of that
        self._stale = 0  # evaluations since that, or since the last reduction
        self.reductions: list[dict] = []

    @property
    def over(self) -> bool:
        return 0 < self.recipe.early_stopping <= self._waited

    def see(
        self, epoch: int, step: int, metrics: dict, weights: Callable[[], Arrays]
    ) -> None:
        """Take note of an evaluation; `weights` returns what it has evaluated."""
        if self.monitor is None:
            return
        value = metrics[self.monitor.name]
        if self._improves(value, self.best and self.best["metrics"][self.monitor.name]):
            self.best = {
                "epoch": epoch, "step": step, "monitor": self.monitor.name,
                "metrics": metrics,
            }  # fmt: skip
            if self.recipe.keep == "best":
                self.weights = weights()
        self._waited += 1
        self._stale += 1
        if self._improves(value, self._reference, self.recipe.min_delta):
            self._waited, self._stale, self._reference = 0, 0, value
        if self.recipe.reduces and self._stale >= self.recipe.plateau_patience:
            self._stale = 0
            self.reductions.append({"epoch": epoch, "step": step})

    def reduces_at(self, step: int) -> bool:
        """Return whether the learning rate is reduced after that step."""
        return bool(self.reductions) and self.reductions[-1]["step"] == step

    def _improves(self, value: float, on: float | None, delta: float = 0.0) -> bool:
        if not np.isfinite(value):
            return False
        if on is None:
            return True
        return (value - on if self.monitor.greater_is_better else on - value) > delta

    def arrays(self) -> Arrays:
        """Return the arrays that a checkpoint needs."""
        return {f"best/{name}": array for name, array in (self.weights or {}).items()}

    def facts(self) -> dict:
        """Return the rest."""
        return {
            "best": self.best, "waited": self._waited, "reference": self._reference,
            "stale": self._stale, "reductions": list(self.reductions),
        }  # fmt: skip

    def as_record(self, *, stopped_early: bool) -> dict | None:
        """Return the best evaluation for run.json; None if there is none."""
        if self.best is None:
            return None
        monitor = self.best["monitor"]
        return {
            "epoch": self.best["epoch"], "step": self.best["step"],
            "monitor": f"val_{monitor}", "value": self.best["metrics"][monitor],
            "kept": self.weights is not None, "stopped_early": stopped_early,
        }  # fmt: skip

    def restore(self, facts: dict, arrays: Arrays) -> None:
        """Continue from a checkpoint."""
        if facts:
            self.best, self._waited = facts["best"], facts["waited"]
            self._reference, self._stale = facts["reference"], facts["stale"]
            self.reductions = list(facts["reductions"])
        kept = [name for name in arrays if name.startswith("best/")]
        if kept:
            self.weights = {k.removeprefix("best/"): arrays[k] for k in kept}
