"""The compiled steps of a training, for train, bench and verify."""

import dataclasses
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from gpuzoo import tasks
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.engine import (
    accumulation,
    backends,
    batches,
    choice,
    compile_config,
    initializers,
    model_objects,
    optim,
)
from gpuzoo.engine.backends.determinism import no_draws
from gpuzoo.engine.evaluation import Evaluation, batch_size
from gpuzoo.engine.plan import MOST_STEPS, make_plan, shards_of
from gpuzoo.engine.pruning import Pruning
from gpuzoo.engine.state import State
from gpuzoo.engine.timing import Stopwatch
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.environment import busy_cores
from gpuzoo.runtime.options import Runtime

# A random layer draws at (its key, step * this + number of the draw in the step).
DRAWS_PER_STEP = 256


@dataclasses.dataclass(frozen=True)
class Session:
    """The parts of a training; opened by gpuzoo/training/session.py."""

    recipe: Recipe
    runtime: Runtime
    dataset: Dataset
    model: keras.Model
    """Built for the dataset; a program sets its initial weights."""
    given: model_objects.Given = model_objects.Given()
    """Weights, optimizer and loss of a model object."""
    fast: bool = False
    """Two steps of everything (`--fast-dev-run`)."""
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    """Module of the model or the training -> digest."""
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files that the user's code has read -> sha256."""


class Program:
    """A session, compiled: one call trains many steps, one evaluates.

    The constructor draws the initial weights, moves the examples to the device and
    compiles both calls. Every result is a function of the session and the step alone:
    the order of calls to train and evaluate does not change later results.

    Args:
        backend: default: that of the session's runtime.
        like: a program of the same data, whose examples on the device are shared;
            nothing is compiled then.

    Attributes:
        session, model, task, plan, backend, pruning.
        state: every variable that a step reads or writes (`gpuzoo.engine.state`).
        clock: seconds by phase: setup, compile, train, evaluate, and the loop's own.
        step_metrics, metrics: names of what a step and an evaluation return.
        watched: the split that is evaluated in training: val, or test without one.
        shards: parts of a batch on one or several devices; 0: it is not cut.
        first: the number of steps done before, by a run that this one goes on with.
        monitor: the metric that chooses by the split val; None if nothing does.

    Raises:
        GpuzooError: the model or one of its operations cannot be trained repeatably.
    """

    def __init__(self, session: Session, backend=None, like: "Program | None" = None):
        self.session, self.model = session, session.model
        self.backend = backend or backends.get(session.runtime)
        self.clock = Stopwatch(self.backend.synchronise)
        with self.clock.phase("setup"):
            self._set_up(like)
        if like is None:
            with self.clock.phase("compile"):
                self._compile()

    def _set_up(self, like: "Program | None") -> None:
        recipe, dataset, model = self.session.recipe, self.session.dataset, self.model
        given = self.session.given
        model_objects.begin(model, recipe, dataset, given)
        self._generators = initializers.address_generators(model, recipe.seed)
        kind = tasks.load(recipe.task)
        kind.check_recipe(recipe)
        draws = kind.count_draws(recipe, model)
        count = dataset.count("train")
        fast, self.first = self.session.fast, given.step
        self.plan = make_plan(recipe, count, draws, fast, self.first)
        optimizers = [
            optim.build_optimizer(
                recipe, self.plan.steps, self.backend, moves, given.optimizer
            )
            for moves in kind.moves(model)
        ]
        heads = kind.heads_of(model, recipe, dataset)
        groups = [list(group) for group in kind.groups(model)]
        groups[0] += heads
        for optimizer, variables in zip(optimizers, groups, strict=True):
            optim.build_state(optimizer, variables, given.optimizer)
        self.pruning = Pruning(
            recipe, self.plan.prunings, model, optimizers, self.backend
        )
        self.task = kind(
            model=model, recipe=recipe, dataset=dataset, runtime=self.session.runtime
        )
        self.task.heads = tuple(heads)
        self.task.begin(optimizers, dataset)
        self.shards = shards_of(
            recipe, self.session.runtime, getattr(model, "critic_steps", 1)
        )
        if self.plan.steps * self.shards > MOST_STEPS:
            raise GpuzooError(
                f"{self.plan.steps} steps of {self.shards} shards; "
                f"{MOST_STEPS // self.shards} steps are the most"
            )
        if loss := compile_config.loss_of(given.loss, recipe, model):
            if self.shards and loss.reduction == "sum":
                parts = "elastic" if recipe.elastic else "devices"
                compile_config.refuse_sum(parts, type(loss).__name__)
            self.task.compiled = loss
        self.step_metrics = tuple(metric.name for metric in self.task.step_metrics)
        choice.check_data(recipe, dataset)
        self.watched = "val" if "val" in dataset.splits else "test"
        judge = self.task if self.watched == "test" else self._judge()
        self.judges = {"test": self.task, self.watched: judge}
        self.monitor = choice.monitor_of(recipe, judge.metrics, judge.measured)
        choice.check_defined(self.monitor, judge, dataset.splits[self.watched])
        names = [metric.name for metric in judge.metrics]
        names += [self.monitor.name] if self.monitor else []
        self.metrics = tuple(dict.fromkeys(names))
        self.state = State(model, optimizers, self._generators, self.backend, heads)
        if given.state is not None:
            weights = self.state.read(self.state.weights)
            self.state.write({**weights, **model_objects.read(given.state)})
        fields = self.task.fields
        self._train_examples: batches.Examples
        if like:
            self._train_examples = like._train_examples
            return
        self._streamed = batches.streams(recipe, dataset.splits, fields, self.backend)
        self._train_examples = batches.Examples(
            {name: dataset.train[name] for name in fields}, self.backend,
            self._streamed or self.shards > 0,
        )  # fmt: skip

    def _compile(self) -> None:
        """Trace and compile both calls by one step of each, then restore every
        variable."""
        plan, state = self.plan, self.state
        before, variables = state.read(state.all), list(state.all.values())
        at_once = self._train_examples.at_once(plan.batch, plan.steps_per_epoch)
        example = self.feed(0, at_once)
        train, body = self.backend, self.step
        if self.shards:
            train, body = self.backend.sharded(self.shards), self._shard_step
        self._train_steps = train.compile_steps(body, example, variables)
        self._train_steps(once := batches.first(example))
        if self.session.runtime.level == "strict":
            for _ in range(self.backend.recompilations):
                again = train.compile_steps(body, example, variables)
                self._try_again(again, once, before)
            self._try_again(self._train_steps, once, before)
        self.evaluations = {
            split: self._compile_evaluation(split, variables) for split in self.judges
        }
        state.write(before)

    def _judge(self) -> "tasks.base.Task":
        """Return the task for evaluations of the validation examples: to it they are
        the test examples, of which it may make its own codes or statistics."""
        dataset, task = self.session.dataset, self.task
        splits = {"train": dataset.train, "test": dataset.splits["val"]}
        dataset = dataclasses.replace(dataset, splits=splits)
        judge = type(task)(
            model=self.model, recipe=self.session.recipe, dataset=dataset,
            runtime=self.session.runtime,
        )  # fmt: skip
        judge.begin([], dataset)
        judge.compiled = task.compiled
        return judge

    def _compile_evaluation(self, split: str, variables: list) -> Evaluation:
        session, task = self.session, self.judges[split]
        dataset, count = session.dataset, session.dataset.count(split)
        batch = batch_size(dataset.input_shape, count, task.expansion, session.fast)
        examples = {name: dataset.splits[split][name] for name in task.fields}
        return Evaluation(
            task.evaluate, examples, batch, self.backend, session.runtime, variables,
            streamed=self._streamed,
        )  # fmt: skip

    def _evaluated(self, split: str) -> int:
        """Return how many examples of a split are evaluated."""
        count = self.session.dataset.count(split)
        batch = self.evaluations[split].batch
        return min(count, 2 * batch) if self.session.fast else count

    def feed(self, first: int, last: int) -> Arrays:
        """Return the feed of steps first..last-1, all of one epoch."""
        feed = self._train_examples.send(self.plan.feed(first, last), self._own())
        if self.shards:
            places = feed["step"][:, None] * self.shards + np.arange(self.shards)
            del feed["indices"]  # the rows are sent along
            feed["place"] = places.astype(np.int32)
        return feed

    def _own(self) -> slice | None:
        """Return the rows of a batch that this process computes; None: all."""
        count = self.session.runtime.processes
        if count == 1 or not self.shards:
            return None
        size, rank = self.plan.batch // count, self.backend.processes.rank
        return slice(rank * size, (rank + 1) * size)

    def evaluation_feeds(self, split: str) -> Iterator[Arrays]:
        """Yield the feed of each batch of the evaluation of a split."""
        return self.evaluations[split].feeds(self._evaluated(split))

    def step(self, feed: dict, backend=None) -> dict:
        """Do one step, to be traced: one entry of a feed -> its metrics."""
        backend, parts = backend or self.backend, self.session.recipe.accumulate
        self._seed(feed["step"], backend)
        batch = self._train_examples.take(feed)
        with no_draws(self.session.runtime), self.pruning.zeros_kept(feed["step"]):
            if parts == 1:
                return self.task.step(batch, feed["draws"], backend)
            size = self.plan.batch // parts
            summed = accumulation.Summed(backend, parts, size)
            return self._in_parts(batch, feed, summed)

    def _shard_step(self, feed: dict) -> dict:
        """Do one step of one shard, to be traced; its `place` has one number."""
        self._seed(feed["place"][0], self.backend)
        batch = self._train_examples.take(feed)
        with no_draws(self.session.runtime), self.pruning.zeros_kept(feed["step"]):
            averaging = self.backend.averaging()
            results = self.task.step(batch, feed["draws"], averaging)
        # So that the state after a step is the same for all shards.
        self._seed(feed["step"] * self.shards, self.backend)
        return results

    def _seed(self, place, backend) -> None:
        """Let random layers draw what belongs to a step, or to a part of one."""
        for generator, key in self._generators:
            generator.assign(backend.seed_state(key, place * DRAWS_PER_STEP))

    def _in_parts(self, batch: dict, feed: dict, backend) -> dict:
        """Do one step, the parts of its batch one after another."""
        parts, totals = backend.parts, {}
        for part in range(parts):
            arrays = backend.next_part({**batch, "": feed["draws"]})
            draws = arrays.pop("")
            self._seed(feed["step"] * parts + part, backend)
            results = self.task.step(arrays, draws, backend)
            totals = {k: totals[k] + v for k, v in results.items()} if part else results
        return {name: total / parts for name, total in totals.items()}

    def check_whole(self, what: str) -> None:
        """Raise GpuzooError, saying what is not done, if batches are in shards."""
        if self.shards:
            raise GpuzooError(
                f"the batches of the run are computed in {self.shards} shards: {what}"
            )

    @property
    def most_steps(self) -> int | None:
        """The largest number of steps per call of `train`; None: any number."""
        return self._train_examples.most(self.plan.batch)

    def train(self, first: int, last: int) -> Arrays:
        """Do steps first..last-1, all of one epoch; return metric -> array of shape
        (steps,), the task's `loss` among them."""
        ((_, _, results),) = self.train_parts([(first, last)])
        return results

    def train_parts(self, parts: Iterable[tuple[int, int]]) -> Iterator[tuple]:
        """Train one part after another; yield (first, last, metrics) of each. The
        examples of a part are prepared while the previous one runs. If kernels are to
        be pruned after a step, a part must end there, as those of `segments` do."""
        for (first, last), feed in batches.ahead(iter(parts), self.feed):
            with self.clock.phase("train"):
                results = self._train_steps(feed())
                self.pruning.after(last)
            yield first, last, results

    def evaluate(
        self, split: str = "test", weights: Arrays | None = None
    ) -> tuple[Arrays, dict[str, float]]:
        """Evaluate all examples of a split, test or val.

        Args:
            weights: as `weights()` has returned them; default: the weights as they are,
                averaged if the recipe has an `ema_decay`.

        Returns:
            Outputs, one row per example, and metric -> value.

        Raises:
            GpuzooError: the metric that chooses is not defined for the examples.
        """
        state, task, count = self.state, self.judges[split], self._evaluated(split)
        held = state.averaged() if weights is None else state.holding(weights)
        with self.clock.phase("evaluate"), held:
            outputs = self.evaluations[split](count)
            metrics = task.summarise(outputs, self._seen(split))
        name = self.monitor.name if self.monitor and split == self.watched else None
        if name and name not in metrics:
            metrics[name] = choice.value_of(name, self.scores(outputs, split))
        return outputs, metrics

    def scores(self, outputs: Arrays, split: str = "test") -> dict:
        """Return the figures of a final evaluation; `outputs`: those of `evaluate`."""
        with self.clock.phase("evaluate"):
            return self.judges[split].scores(outputs, self._seen(split))

    def _seen(self, split: str) -> Arrays:
        """Return the examples of a split that are evaluated."""
        count, examples = self._evaluated(split), self.session.dataset.splits[split]
        return {name: examples[name][:count] for name in self.judges[split].fields}

    def weights(self) -> Arrays:
        """Return name -> value of every weight; the averages if the run keeps them."""
        with self.state.averaged():
            return self.state.read(self.state.weights)

    def cost(self) -> dict[str, float] | None:
        """Return XLA's `flops` and `bytes` of one step; None on TensorFlow."""
        count = getattr(self._train_steps, "cost", None)
        return count() if count else None

    def _try_again(self, train_steps, feed: Arrays, before: Arrays) -> None:
        """Repeat the first step for level strict: the results must be the same bits.

        `train_steps` is the same program, which detects an operation that varies, or a
        recompiled one, which detects a compiler that varies. Meanwhile every core has
        other work to do, so that threads finish in another order than before.
        """
        state = self.state
        once = state.read(state.all)
        state.write(before)
        with busy_cores():
            train_steps(feed)
        again = state.read(state.all)
        differ = [n for n in once if once[n].tobytes() != again[n].tobytes()]
        if differ:
            raise GpuzooError(
                "level strict: the first step, run twice, gave different results "
                f"in {', '.join(differ[:5])}; an operation of the model, or its "
                "compilation, varies from run to run"
            )
