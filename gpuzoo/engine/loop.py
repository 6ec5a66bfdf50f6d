"""The training loop; it reads from top to bottom."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from gpuzoo.data.dataset import Arrays
from gpuzoo.engine import checkpoint
from gpuzoo.engine.checkpoint import Checkpoint
from gpuzoo.engine.choice import Choice
from gpuzoo.engine.history import Journal, Watcher
from gpuzoo.engine.plan import Plan, segments
from gpuzoo.engine.program import Program
from gpuzoo.errors import Diverged
from gpuzoo.runs import chain

# It begins at 2**15, and each step that is skipped halves it. From about 2**-16 on, all
# gradients would be zero, and finite.
_LEAST_SCALE = 2.0**-12


@dataclasses.dataclass
class Result:
    """The result of a training."""

    state: str
    """finished, early or not, or stopped (by the user)."""
    steps: int
    epochs: int
    """Whole epochs done."""
    metrics: dict[str, float]
    """The evaluation of `weights`: test_loss, ..., of validation data val_loss, ..."""
    outputs: Arrays
    """The task's outputs of each test example in that evaluation."""
    evaluation: dict
    """Its figures by `Task.scores`: F1, AUC, R2, ...; {} if the task has none."""
    weights: Arrays
    """Name -> value of every weight of the model, as kept: the last or the best."""
    state_arrays: Arrays
    """Name -> value of every variable after the last step, the weights included."""
    sparsity: dict | None
    """Zeros in the kernels (`Pruning.measure`), if the recipe prunes them."""
    best: dict | None
    """Of a recipe that chooses: epoch, step, monitor and metrics of the best evaluation
    on validation data; `kept`, whether its weights are kept; `stopped_early`."""
    reductions: list[dict]
    """Epoch and step of each reduction of the learning rate on a plateau."""
    parameters: int
    seconds: dict[str, float]
    """setup, compile, train, evaluate."""
    device_bytes: int | None
    trail: dict
    """Of the rows of digests (`gpuzoo.runs.chain.record`)."""
    kept: tuple[int, ...]
    """Numbers of steps after which a checkpoint was written that stays."""


def run(
    program: Program,
    *,
    watch: Watcher = lambda event, row: None,
    stop: Callable[[], bool] = lambda: False,
    folder: pathlib.Path | None = None,
    keep: Callable[[Checkpoint], None] | None = None,
    resume: Checkpoint | None = None,
    run_id: str = "",
    until: int | None = None,
) -> Result:
    """Train a program to its end.

    Args:
        watch: called with every event and its row.
        stop: called after each compiled call; True ends the training early.
        folder: where checkpoints to resume from go; without it there are none.
        keep: called with each checkpoint that stays (`plan.kept`).
        resume: the checkpoint to continue from, of the same recipe and dataset.
        run_id: the id of the run, for its checkpoints.
        until: end after this step, as if stopped there.

    Raises:
        Diverged: the loss is not finite; `.weights` are the last good ones.
    """
    session, plan, state = program.session, program.plan, program.state
    recipe, clock = session.recipe, program.clock
    journal, step, stopped = Journal(watch), program.first, False
    choice = Choice(recipe, program.monitor)
    if resume:
        step = resume.step
        state.write(_strip("state/", resume.arrays))
        journal.restore(resume.history, resume.arrays)
        choice.restore(resume.choice, resume.arrays)
        clock.seconds.update(resume.seconds)
    good = _Good(step, state.read(state.all), set(state.weights))

    watch("start", {
        "steps": plan.steps, "epochs": plan.epochs, "batch": plan.batch,
        "parameters": program.model.count_params(), "step": step,
        "first": program.first,
        "figures": {"train": program.step_metrics, program.watched: program.metrics},
    })  # fmt: skip
    outputs, metrics = {}, {}
    if resume:  # a checkpoint is saved before logging and evaluation
        outputs, metrics = _look(program, journal, choice, good, step)
    parts = segments(plan, recipe, step, until, program.most_steps)
    if choice.over:  # killed just before it ended
        parts = iter(())
    for first, step, results in program.train_parts(parts):
        _check_finite(results["loss"], first, plan, good)
        journal.add(results)
        watch("progress", {"step": step, "seconds": clock.seconds["train"]})
        stopped = step < plan.steps and (step == until or stop())
        due = recipe.checkpoint_every and step % recipe.checkpoint_every == 0
        saved = folder if step < plan.steps and (due or stopped) else None
        kept = keep if step in plan.kept else None
        if saved or kept:
            made = _checkpoint(program, journal, choice, good, step, run_id)
            _save(program, journal, made, saved, kept)
        if stopped:
            watch("stopping", {"step": step})
        outputs, metrics = _look(program, journal, choice, good, step, stopped)
        if stopped or choice.over:
            break

    stopped = stopped and not choice.over
    if journal.losses:  # it has stopped early
        _digest(program, journal, good, step)
    if good.step != step:
        raise good.diverged(f"a weight is no longer finite at step {step}", step)
    return _result(program, journal, choice, good, stopped, outputs, metrics)


def _result(
    program: Program, journal: Journal, choice: Choice, good: "_Good", stopped: bool,
    outputs: Arrays, metrics: dict[str, float],
) -> Result:  # fmt: skip
    """Return the result of a training; `outputs` and `metrics` of its last look."""
    plan, clock, step = program.plan, program.clock, good.step
    if choice.weights:
        metrics = choice.best["metrics"]
    found = {f"{program.watched}_{name}": value for name, value in metrics.items()}
    if program.watched == "val":
        outputs, metrics = program.evaluate("test", choice.weights)
        _log_evaluation(program, journal, choice, "test", step, metrics, not stopped)
        found |= {f"test_{name}": value for name, value in metrics.items()}
    weights = choice.weights or program.weights()
    return Result(
        state="stopped" if stopped else "finished",
        steps=step,
        epochs=step // plan.steps_per_epoch,
        metrics=found,
        outputs=outputs,
        evaluation=program.scores(outputs),
        weights=weights,
        state_arrays=good.values,
        sparsity=program.pruning.measure(weights),
        best=choice.as_record(stopped_early=choice.over and step < plan.steps),
        reductions=choice.reductions,
        parameters=program.model.count_params(),
        seconds=clock.rounded(),
        device_bytes=program.backend.peak_device_bytes(),
        trail=chain.record(journal.digests()),
        kept=plan.kept,
    )


def _checkpoint(program, journal, choice, good, step: int, run_id: str) -> Checkpoint:
    """Return everything that the next step depends on."""
    state, clock = program.state, program.clock
    values = state.read(state.all)
    # As a run resumed from here would have it, should it diverge.
    good.follow(step, values)
    arrays = {f"state/{name}": a for name, a in values.items()}
    arrays |= journal.pending() | choice.arrays()
    content = step, arrays, journal.history, clock.rounded(), run_id
    return Checkpoint(*content, choice.facts())


def _save(program, journal, made: Checkpoint, folder, keep) -> None:
    """Write a checkpoint, as one that stays, as one to resume from, or both: in this
    order, as a run that is resumed from here does not write it again."""
    with program.clock.phase("checkpoint"):
        if keep:
            keep(checkpoint.lasting(made))
        if folder:
            checkpoint.save(folder, made)
    if folder:
        journal.watch("checkpoint", {"step": made.step})


def _look(program, journal, choice, good, step: int, stopped=False) -> tuple:
    """Log, digest and evaluate where due after `step`; changes no later step.

    Returns:
        Outputs and metrics of the evaluation, empty if none was due.
    """
    recipe, plan = program.session.recipe, program.plan
    epoch, in_epoch = divmod(step - 1, plan.steps_per_epoch)
    epoch, ends_epoch = epoch + 1, in_epoch + 1 == plan.steps_per_epoch
    last = stopped or step == plan.steps
    if step % recipe.log_every == 0 or ends_epoch or last:
        journal.log(epoch, step)
    if step % recipe.digest_every == 0 or last or step in plan.kept:
        _digest(program, journal, good, step)
    due = (ends_epoch and epoch % recipe.eval_every == 0) or step == plan.steps
    if not (due or stopped):
        return {}, {}
    outputs, metrics = program.evaluate(program.watched)
    pruned = step >= max(plan.prunings, default=0)
    if due and pruned:  # a resumed run has no evaluation where it was stopped
        choice.see(epoch, step, metrics, program.weights)
        if choice.reduces_at(step):
            program.state.reduce_learning_rate(recipe.plateau_factor)
            good.follow(step, program.state.read(program.state.all))
    end = (step == plan.steps or choice.over) and choice.weights is None
    if end and journal.losses:  # what is kept if a metric is not finite
        _digest(program, journal, good, step)
    _log_evaluation(program, journal, choice, program.watched, step, metrics, end)
    if "samples" in outputs:
        journal.watch("samples", {"epoch": epoch, "images": outputs["samples"]})
    return outputs, metrics


def _digest(program, journal, good, step: int) -> None:
    """Log digests of all variables after `step`."""
    state = program.state
    with program.clock.phase("digest"):
        weights, others = state.read(state.weights), state.read(state.others)
        good.follow(step, {**weights, **others})
        journal.digest(step, weights, others)
    _check_scale(state, others, step, good)


def _log_evaluation(
    program, journal, choice, split: str, step: int, metrics: dict, end: bool
) -> None:
    """Log an evaluation after `step`; raise Diverged if the run is to `end` with a
    metric that is not finite, although the weights are."""
    wild = [name for name, value in metrics.items() if not np.isfinite(value)]
    if wild and end:
        weights = choice.weights or program.weights()
        if all(np.isfinite(array).all() for array in weights.values()):
            raise Diverged(
                f"{split}_{wild[0]} is {metrics[wild[0]]} at the end",
                step=choice.best["step"] if choice.weights else step, weights=weights,
                at=step, state=program.state.read(program.state.all), split=split,
            )  # fmt: skip
    epoch = (step - 1) // program.plan.steps_per_epoch + 1
    journal.evaluation(split, epoch, step, metrics)


@dataclasses.dataclass
class _Good:
    """The last state whose weights were all finite, and its step."""

    step: int
    values: Arrays
    """Of all variables: what follows can be replayed from here."""
    weights: set[str]

    def follow(self, step: int, values: Arrays) -> None:
        if all(np.isfinite(values[name]).all() for name in self.weights):
            self.step, self.values = step, values

    def diverged(self, what: str, at: int) -> Diverged:
        weights = {n: a for n, a in self.values.items() if n in self.weights}
        return Diverged(what, step=self.step, weights=weights, at=at, state=self.values)


def _check_finite(losses: np.ndarray, first: int, plan: Plan, good: _Good) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size == 0:
        return
    step = first + int(bad[0]) + 1
    epoch, in_epoch = divmod(step - 1, plan.steps_per_epoch)
    raise good.diverged(
        f"the loss became {losses[bad[0]]} at epoch {epoch + 1}, step {in_epoch + 1} "
        f"(step {step} of the run)", step
    )  # fmt: skip


def _check_scale(state, others: Arrays, step: int, good: _Good) -> None:
    """Raise Diverged if float16 gradients are not finite whatever the loss is scaled
    by: all updates are skipped, and the loss alone would never show it."""
    for name in state.scales:
        if others[name] < _LEAST_SCALE:
            what = "the float16 gradients are not finite at any loss scale; all recent "
            what += f"updates were skipped, the last in step {step}"
            raise good.diverged(what, step)


def _strip(prefix: str, arrays: Arrays) -> Arrays:
    return {
        k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
    }
