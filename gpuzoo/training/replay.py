"""Replay the steps that led to a value that is not finite, and look at each operation.

The steps after the last good state are done again, one by one, until a variable or a
result is not finite. That step is done once more with a look at every operation
(gpuzoo/engine/nonfinite.py), in the run's precision and in float32.
"""

import collections
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from gpuzoo.data.dataset import Arrays
from gpuzoo.engine.nonfinite import Look, Observer, Origin
from gpuzoo.engine.plan import segments
from gpuzoo.engine.program import Program
from gpuzoo.engine.state import variables_of
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.runtime.keras_state import in_float32
from gpuzoo.training import build, failures
from gpuzoo.workers import one_line

SECONDS = 120.0
"""No part of a diagnosis begins later than this."""
_ONE_BY_ONE = 8  # of the last steps, at first
_BEFORE = 3  # steps looked at before the one that went wrong
_ON = 8  # steps in float32 after it


class GaveUp(GpuzooError):
    """The replay cannot go on; the message says why."""


@dataclasses.dataclass
class Replay:
    """What the replay in the run's precision has found."""

    step: int
    """Steps done before the one, or the evaluation, that went wrong."""
    split: str
    """What the evaluation used that went wrong, test or val; train: a step did."""
    before: Arrays
    """All variables then."""
    after: Arrays
    """All variables after it; of a GAN some may have changed and be finite."""
    losses: list[float]
    norms: list[float]
    """Of the gradients of the same steps."""
    origin: Origin | None


class Clock:
    def __init__(self, stop: Callable[[], bool]):
        self._begun, self._stop = time.perf_counter(), stop

    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    def check(self) -> None:
        if self._stop():
            raise GaveUp("interrupted")
        if self.seconds() > SECONDS:
            raise GaveUp(f"the replay took longer than {SECONDS:g} s")


def replayed(program: Program, error: Diverged, clock: Clock) -> Replay:
    """Find the step that went wrong, and look at it."""
    plan, state = program.plan, program.state
    if error.split != "train":
        return _evaluated(program, error, clock)
    if error.step == error.at:  # the weights are finite: updates are skipped
        step, values = error.step, error.state
        if any(values[name] < 1 for name in state.scales):
            step = min(step, plan.steps - 1)
            # So small a scale would make gradients zero.
            values = values | {n: np.ones_like(values[n]) for n in state.scales}
        return _looked_at(program, [(step, values)], clock)
    first = max(error.step, error.at - _ONE_BY_ONE)
    passed = _steps(program, error, first, clock)
    if passed is None:  # it began earlier
        passed = _steps(program, error, error.step, clock)
    if passed is None:
        raise GaveUp(
            f"replayed from step {error.step}, everything is finite up to step "
            f"{error.at}: the run is not repeatable"
        )
    return _looked_at(program, passed, clock)


def _steps(program: Program, error: Diverged, first: int, clock: Clock):
    """Replay up to step `first`, then one by one until something is not finite; return
    (step, variables before it) of the last steps, None if that is not seen."""
    state = program.state
    state.write(error.state)
    recipe, most = program.session.recipe, program.most_steps
    for start, end in segments(program.plan, recipe, error.step, first, most):
        if start >= first:
            break
        clock.check()
        program.train(start, end)
    before = state.read(state.all)
    known = _bad(before) - _bad(error.state)
    if known:
        return None
    kept = collections.deque(maxlen=_BEFORE + 1)
    for step in range(first, error.at):
        clock.check()
        kept.append((step, before))
        results = program.train(step, step + 1)
        after = state.read(state.all)
        if _bad(results) or _bad(after) - _bad(before):
            return list(kept)
        before = after
    return None


def _bad(arrays: Arrays) -> set[str]:
    """Return the names of arrays that are not finite."""
    return {name for name, array in arrays.items() if not np.isfinite(array).all()}


def _looked_at(program: Program, passed: list, clock: Clock) -> Replay:
    """Do the last steps once more with a look at every operation."""
    step, before = passed[-1]
    clock.check()
    observer = Observer(program)
    program.state.write(passed[0][1])
    looks: list[Look] = []
    for number, _ in passed:
        clock.check()
        looks.append(observer.look(number))
    losses = [one.results.get("loss", np.nan) for one in looks]
    norms, after = [one.norm for one in looks], program.state.read(program.state.all)
    return Replay(step, "train", before, after, losses, norms, looks[-1].origin)


def _evaluated(program: Program, error: Diverged, clock: Clock) -> Replay:
    """Evaluate once more, with a look at every operation."""
    before = error.state | error.weights
    found = Replay(error.step, error.split, before, before, [], [], None)
    observer = Observer(program, error.split)
    with program.state.holding(error.weights):
        for look in observer.evaluate():
            if look.origin:
                found.origin = look.origin
                break
            clock.check()
    return found


def float32_looks(program: Program, replay: Replay, clock: Clock):
    """Do the step, and some after it, in float32 from the same state; return what was
    seen, or nothing and why."""
    if program.session.runtime.precision == "float32":
        return [], "the run is in float32"
    if replay.split != "train":
        return [], "only the evaluation is concerned"
    looks: list[Look] = []
    try:
        clock.check()
        other = _in_float32(program, replay.before)
        with in_float32():
            observer = Observer(other)
            last = min(replay.step + 1 + _ON, program.plan.steps)
            for step in range(replay.step, last):
                clock.check()
                looks.append(observer.look(step))
                if looks[-1].origin:
                    break
    except Exception as problem:
        if not looks:
            why = failures.out_of_memory(problem) or one_line(problem)
            return [], f"float32 was not tried: {why}"
    return looks, ""


def _in_float32(program: Program, values: Arrays) -> Program:
    """Return the program in float32, with the same values of the variables."""
    session = program.session
    described = session.given.architecture
    if described:
        described = described.with_policy(session.runtime.precision, "float32")
    with in_float32():
        model = build.build_model(session.recipe, session.dataset, described)
        runtime = dataclasses.replace(session.runtime, precision="float32")
        changed = dataclasses.replace(session, model=model, runtime=runtime)
        other = Program(changed, like=program)
    theirs = {id(v): name for name, v in program.state.all.items()}
    pairs = list(zip(program.model.weights, model.weights, strict=True))
    for one, two in zip(program.task.optimizers, other.task.optimizers, strict=True):
        inner = [variables_of(getattr(o, "inner_optimizer", o)) for o in (one, two)]
        pairs += zip(*inner, strict=True)
    for one, two in pairs:
        two.assign(values[theirs[id(one)]].astype(two.dtype))
    return other


def float32_text(looks: list[Look], step: int) -> str:
    last = step + len(looks)
    if not looks[-1].origin:
        return f"finite up to step {last}"
    return f"not finite either, in step {last}"
