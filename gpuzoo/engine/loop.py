"""The training loop. Everybody reads this one; it reads from top to bottom."""

import dataclasses
import pathlib
from collections.abc import Callable

import keras
import numpy as np

from gpuzoo import tasks
from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe, parse_options
from gpuzoo.catalogue.registry import build, check_options, model_info, short_name
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.engine import batches, checkpoint, initializers, model_objects, optim
from gpuzoo.engine.backends import get
from gpuzoo.engine.checkpoint import Checkpoint
from gpuzoo.engine.history import Journal, Watcher
from gpuzoo.engine.plan import Plan, make_plan, segments
from gpuzoo.engine.state import State
from gpuzoo.engine.timing import Stopwatch
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.repro import capture
from gpuzoo.runtime.environment import busy_cores
from gpuzoo.runtime.keras_state import drawn_by_numpy, fresh_names
from gpuzoo.runtime.options import Runtime

# A random layer draws at (its key, step * this + the draw's number within the step).
DRAWS_PER_STEP = 256


@dataclasses.dataclass
class Result:
    """What a run leaves behind."""

    state: str
    """finished, or stopped (by the user)."""
    steps: int
    epochs: int
    """Whole epochs done."""
    metrics: dict[str, float]
    """The last evaluation: test_loss, ..."""
    outputs: Arrays
    """Per test example, of the last evaluation: what the task puts out."""
    weights: Arrays
    """Name -> final value of every weight of the model."""
    parameters: int
    seconds: dict[str, float]
    """setup, compile, train, evaluate."""
    device_bytes: int | None
    tensors: list[tuple[str, np.ndarray]] = dataclasses.field(default_factory=list)
    """Of the step that was taken apart: what it is, its values."""


def run(
    recipe: Recipe,
    dataset: Dataset,
    runtime: Runtime,
    *,
    watch: Watcher = lambda event, row: None,
    stop: Callable[[], bool] = lambda: False,
    fast: bool = False,
    folder: pathlib.Path | None = None,
    resume: Checkpoint | None = None,
    run_id: str = "",
    until: int | None = None,
    take_apart: bool = False,
    model: keras.Model | None = None,
    brought: model_objects.Given | None = None,
) -> Result:
    """Train a recipe on a dataset.

    Args:
        watch: told of every event.
        stop: asked after each compiled call whether to end early.
        fast: two steps of everything.
        folder: where checkpoints go; without it there are none.
        resume: the checkpoint to go on from, of the same recipe and dataset.
        run_id: what its checkpoints say that they are of.
        until: a step to cut the compiled calls at, so that `stop` is asked there.
        take_apart: train up to `until` only, and take the step after it apart.
        model: what `build_model` returned for it, as the last that was built; without
            it that is done here.

    Raises:
        Diverged: the loss is not finite; `.weights` are the last good ones.
    """
    # ----------------------------------------------------------------- model and data
    backend = get(runtime)
    brought = brought or model_objects.Given()
    clock = Stopwatch(backend.synchronise)
    with clock.phase("setup"):
        model = model or build_model(recipe, dataset)
        model_objects.begin(model, recipe, dataset, brought)
        generators = initializers.address_generators(model, recipe.seed)
        tasks.check(recipe)
        kind = tasks.load(recipe.task)
        draws = kind.count_draws(recipe, model)
        plan = make_plan(recipe, dataset.count("train"), draws, fast)
        groups = kind.groups(model)
        optimizers = [
            optim.build_optimizer(recipe, plan.steps, backend, moves, brought.optimizer)
            for moves in kind.moves(model)
        ]
        for optimizer, variables in zip(optimizers, groups, strict=True):
            optimizer.build(variables)
        task = kind(model=model, optimizers=optimizers, recipe=recipe, dataset=dataset)
        if loss := model_objects.loss_of(brought, recipe, model):
            task.compiled = loss
        state = State(model, optimizers, generators, backend)
        streamed = batches.streams(recipe, dataset.splits, task.fields, backend)
        train, test = (
            batches.Examples({n: split[n] for n in task.fields}, backend, streamed)
            for split in (dataset.train, dataset.test)
        )

    # --------------------------------------------------------------- the compiled calls
    def train_step(feed, backend=backend):
        for generator, key in generators:
            generator.assign(backend.seed_state(key, feed["step"] * DRAWS_PER_STEP))
        batch = train.take(feed)
        return task.step(batch, feed["draws"], backend)

    def evaluation_step(feed):
        return task.evaluate({**test.take(feed), "index": feed["indices"]})

    def feed_of(first, last):
        return train.send(plan.feed(first, last))

    evaluation_feed, evaluated = batches.whole(dataset, fast, kind.expansion)
    with clock.phase("compile"):
        # One step of each, and every variable put back: nothing of it stays.
        before, variables = state.read(state.all), list(state.all.values())
        example = feed_of(0, train.at_once(plan.batch, plan.steps_per_epoch))
        train_steps = backend.compile_steps(train_step, example, variables)
        train_steps(once := batches.first(example))
        if runtime.level == "strict":
            for _ in range(backend.recompilations):
                again = backend.compile_steps(train_step, example, variables)
                _try_again(again, once, state, before)
            _try_again(train_steps, once, state, before)
        steps, batch = evaluation_feed["indices"].shape
        indices = evaluation_feed["indices"][: test.at_once(batch, steps)]
        example = test.send({"indices": indices})
        evaluate_steps = backend.compile_steps(evaluation_step, example, variables)
        evaluate_steps(batches.first(example))
        state.write(before)

    # ------------------------------------------------------------- between two segments
    journal, step, stopped = Journal(watch), 0, False
    metrics, outputs = {}, {}
    if resume:
        step = resume.step
        state.write(_strip("state/", resume.arrays))
        journal.restore(resume.history, resume.arrays)
        clock.seconds.update(resume.seconds)
    good = _Good(step, state.read(state.weights))

    def save() -> None:
        nonlocal good
        values = state.read(state.all)
        # As a run that goes on from here begins, should it diverge.
        good = good.follow(step, {name: values[name] for name in state.weights})
        arrays = {f"state/{name}": a for name, a in values.items()} | journal.pending()
        with clock.phase("checkpoint"):
            told = step, arrays, journal.history, clock.rounded(), run_id
            checkpoint.save(folder, Checkpoint(*told))

    def look() -> None:
        """Log, digest and evaluate where it is due after `step`; moves no bit."""
        nonlocal good, metrics, outputs
        epoch, in_epoch = divmod(step - 1, plan.steps_per_epoch)
        epoch, ends_epoch = epoch + 1, in_epoch + 1 == plan.steps_per_epoch
        last = stopped or step == plan.steps
        if step % recipe.log_every == 0 or ends_epoch or last:
            journal.log(epoch, step)
        if step % recipe.digest_every == 0 or last:
            with clock.phase("digest"):
                weights = state.read(state.weights)
                good = good.follow(step, weights)
                journal.digest(step, weights, state.read(state.others))
        if last or (ends_epoch and epoch % recipe.eval_every == 0):
            with clock.phase("evaluate"), state.averaged():
                outputs = batches.in_parts(evaluate_steps, test, evaluation_feed)
                outputs = {
                    name: array.reshape(-1, *array.shape[2:])[:evaluated]
                    for name, array in outputs.items()
                }
                seen = {name: dataset.test[name][:evaluated] for name in task.fields}
                figures = task.summarise(outputs, seen)
            wild = [name for name, value in figures.items() if not np.isfinite(value)]
            if wild and step == plan.steps:
                told = f"test_{wild[0]} is {figures[wild[0]]}"
                raise _diverged(f"{told} at the end", good)
            journal.test(epoch, step, figures)
            if "samples" in outputs:
                watch("samples", {"epoch": epoch, "images": outputs["samples"]})
            metrics = {f"test_{name}": value for name, value in figures.items()}

    # ------------------------------------------------------------------------- training
    watch("start", {
        "steps": plan.steps, "epochs": plan.epochs, "batch": plan.batch,
        "parameters": model.count_params(), "step": step,
        "figures": {"train": task.step_figures, "test": task.figures},
        "cost": getattr(train_steps, "cost", lambda: None),
    })  # fmt: skip
    if resume:
        look()  # a checkpoint is saved before the run looks at itself
    parts = segments(plan, recipe, step, until, train.most(plan.batch))
    for (first, last), feed in batches.ahead(parts, feed_of):
        if take_apart and first == until:
            break
        with clock.phase("train"):
            results = train_steps(feed())
        step = last
        _check_finite(results["loss"], first, plan, good)
        journal.add(results)
        watch("progress", {"step": step, "seconds": clock.seconds["train"]})
        stopped = step < plan.steps and stop()
        due = recipe.checkpoint_every and step % recipe.checkpoint_every == 0
        if folder and step < plan.steps and (due or stopped):
            save()
        if stopped:
            watch("stopping", {"step": step})
        look()
        if stopped:
            break

    # --------------------------------------------------------------------------- result
    tensors = []
    if take_apart:
        feed = feed_of(step, step + 1)
        tensors = capture.take_apart(train_step, feed, model, state, backend)
    elif good.step != step:
        raise _diverged(f"a weight is no longer finite at step {step}", good)
    with state.averaged():
        weights = state.read(state.weights)
    return Result(
        state="stopped" if stopped else "finished",
        steps=step,
        epochs=step // plan.steps_per_epoch,
        metrics=metrics,
        outputs=outputs,
        weights=weights,
        parameters=model.count_params(),
        seconds=clock.rounded(),
        device_bytes=backend.peak_device_bytes(),
        tensors=tensors,
    )


def build_model(recipe: Recipe, dataset: Dataset):
    """The model of a recipe, made for the shape and the classes of a dataset.

    Raises GpuzooError if the model is for another task or refuses its options.
    """
    info = model_info(recipe.model)
    kind = tasks.load(recipe.task)
    if not set(kind.fields) <= set(dataset.train):
        remedy = ""
        if "label" in kind.fields and "label" not in dataset.train:
            remedy = (
                " alone, without two classes: give one sub-folder for each class, or "
                "labels y in the .npz"
            )
        raise GpuzooError(
            f"recipe {recipe.name!r} needs {' and '.join(kind.fields)} of every "
            f"example; data {dataset.name} have {' and '.join(dataset.train)}{remedy}"
        )
    check_data = getattr(kind, "check_data", None)
    if check_data and (fault := check_data(dataset)):
        raise GpuzooError(f"data {dataset.name} {fault}")
    wanted = getattr(kind, "models", "") or recipe.task
    called = short_name(recipe.model)
    if info.task not in ("", wanted):
        raise GpuzooError(
            f"model {called!r} is for the task {info.task!r}; recipe "
            f"{recipe.name!r} needs one for {wanted!r}"
        )
    options = {
        k: v for k, v in kind.model_options(dataset).items() if k in info.options
    }
    if "num_classes" in options and not dataset.classes:
        raise GpuzooError(
            f"model {called!r} needs classes, and data {dataset.name} have none: give "
            "one sub-folder for each class, or labels y in the .npz"
        )
    options |= parse_options(recipe.model_options)
    try:
        with fresh_names(), drawn_by_numpy():
            model = build(recipe.model, **options)
    except (TypeError, ValueError) as error:
        raise GpuzooError(f"model {called!r} cannot be built: {error}") from error
    if isinstance(model, keras.Model):
        architecture.check_form(model, f"model {called!r}")
    if not isinstance(model, keras.Model) or not model.built:
        raise GpuzooError(
            f"model {called!r} must return a built keras.Model, not {model!r}"
        )
    if fault := kind.check_model(model, dataset):
        raise GpuzooError(f"model {called!r} {fault}")
    return model


def check_recipe(recipe: Recipe) -> None:
    """Whatever can be known to be wrong before the data are there."""
    tasks.check(recipe)
    options = parse_options(recipe.model_options)
    for name in ("input_shape", "num_classes", "horizon"):
        if name in options:
            raise GpuzooError(
                f"model_options cannot set {name}: it follows from the data"
            )
    try:
        check_options(recipe.model, options)
    except TypeError as error:
        raise GpuzooError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class _Good:
    """The last weights that were all finite, and the step they are of."""

    step: int
    weights: Arrays

    def follow(self, step: int, weights: Arrays) -> "_Good":
        finite = all(np.isfinite(array).all() for array in weights.values())
        return _Good(step, weights) if finite else self


def _try_again(train_steps, feed: Arrays, state: State, before: Arrays) -> None:
    """Level strict: the first step, just done, must end with the same bits again.

    `train_steps` is the same program, which finds an operation that varies, or one
    compiled anew, which finds a compiler that varies. Meanwhile every core has other
    work to do, so that threads finish in another order than before.
    """
    once = state.read(state.all)
    state.write(before)
    with busy_cores():
        train_steps(feed)
    again = state.read(state.all)
    differ = [name for name in once if once[name].tobytes() != again[name].tobytes()]
    if differ:
        raise GpuzooError(
            "level strict: the first step, done twice, gave other bits in "
            f"{', '.join(differ[:5])}; an operation of the model, or the way in which "
            "it is compiled, varies from run to run"
        )


def _check_finite(losses: np.ndarray, first: int, plan: Plan, good: _Good) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size == 0:
        return
    step = first + int(bad[0]) + 1
    epoch, in_epoch = divmod(step - 1, plan.steps_per_epoch)
    raise _diverged(
        f"the loss became {losses[bad[0]]} at epoch {epoch + 1}, step {in_epoch + 1} "
        f"(step {step} of the run)", good
    )  # fmt: skip


def _diverged(what: str, good: _Good) -> Diverged:
    return Diverged(
        f"{what}; the weights of step {good.step} are kept; try a smaller "
        "--learning-rate, or --precision float32",
        step=good.step,
        weights=good.weights,
    )


def _strip(prefix: str, arrays: Arrays) -> Arrays:
    return {
        k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
    }
