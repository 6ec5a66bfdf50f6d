"""`gpuzoo.callbacks.Trail`: the trail and the record of an ordinary Keras `fit`."""

import hashlib
import inspect
import json
import pathlib
import re
import time
from typing import Any

import keras
import numpy as np

from gpuzoo.engine import fit, state
from gpuzoo.errors import GpuzooError
from gpuzoo.report.progress import Screen
from gpuzoo.runs.fit import FitFolder
from gpuzoo.runs.folder import write_weights
from gpuzoo.runtime import configure, keras_state
from gpuzoo.weights import by_name, digest, digest_all

_NEVER = (
    "the data and their order: fit does not show them to a callback",
    "code that is not in the script and the modules imported when fit began",
    "the step of a difference in the last bit of a loss: a recorded loss is the mean "
    "since the epoch began, and the next digest of the weights shows it",
)


class Trail(keras.callbacks.Callback):
    """Write digests of the weights, the losses and the record of a `fit` into a folder.

    `gpuzoo diff A B` finds the first step at which two of them differ. Before the first
    step, every so many steps and at the end, the digests of all weights and of the
    optimizer are written; the loss of every step is: as Keras reports it, the mean
    since the epoch began, in which a difference of a bit may vanish. The weights at the
    end are those that all callbacks leave. It changes nothing in the training.

    Args:
        folder: a new folder, or an empty one.
        every: steps between two digests. Each copies the weights to the host.
        quiet: do not print a row after each epoch to standard error.

    Raises:
        GpuzooError: the folder is not empty or cannot be written, or `every` is not a
            integer, 1 or more.
    """

    def __init__(
        self, folder: str | pathlib.Path, every: int = 100, *, quiet: bool = False
    ):
        super().__init__()
        if type(every) is not int or every < 1:
            raise GpuzooError(f"every must be an integer, 1 or more: {every!r}")
        self.every, self.screen = every, Screen(quiet)
        self._path, self._heads = folder, ()
        self._folder: Any = None  # of a fit that has begun
        self._metrics: dict[str, Any] = {}
        self._step = self._epoch = self._seen = self._digested = self._updates = 0
        self._losses: list[float] = []
        self._no_loss, self._last = False, None

    def on_train_begin(self, logs=None) -> None:
        if self._folder is not None:
            raise GpuzooError(
                f"Trail({str(self._path)!r}) is the trail of one fit already; make a "
                "new one for each"
            )
        self._begun, self._updates = time.perf_counter(), self._iterations()
        self._folder = FitFolder(
            self._path,
            settings=self._settings(),
            runtime=(now := configure.in_force()) and now.as_record(),
            not_promised=self._limits(),
        )
        self._digest()
        # Those after this one may change the weights when fit ends, as EarlyStopping
        # does: the end is written by a callback behind them all.
        if (callbacks := _callbacks_of_fit()) is not None:
            self._last = _Last(self._finish)
            callbacks.append(self._last)

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._epoch, self._seen = epoch + 1, 0

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        done = self._steps_done(batch + 1)
        self._seen, self._step = batch + 1, self._step + done
        if not self._no_loss:
            loss = _number((logs or {}).get("loss"))
            self._no_loss = not isinstance(loss, float)
            self._losses += [] if self._no_loss else [loss] * done
        if self._step // self.every > self._digested // self.every:
            self._digest()

    def _steps_done(self, batches: int) -> int:
        """Return how many steps the last call did, of so many batches of the epoch.
        With steps_per_execution Keras counts a last, shorter call in full."""
        if steps := self.params.get("steps"):
            return min(batches, steps) - min(self._seen, steps)
        done = batches - self._seen
        if done > 1:  # of generators and datasets of unknown length
            before, self._updates = self._updates, self._iterations()
            done = min(done, self._updates - before) or done
        return done

    def _iterations(self) -> int:
        """Return the number of updates so far; 0 if they are not those of steps."""
        optimizer = getattr(self.model, "optimizer", None)
        if getattr(optimizer, "gradient_accumulation_steps", 1) is not None:
            return 0
        return int(optimizer.iterations)

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        values = {name: _number(value) for name, value in (logs or {}).items()}
        values.pop("learning_rate", None)
        split = {
            "train": {n: v for n, v in values.items() if not n.startswith("val_")},
            "val": {n[4:]: v for n, v in values.items() if n.startswith("val_")},
        }
        for name, metrics in split.items():
            if metrics:
                row = {"split": name, "epoch": self._epoch, "step": self._step}
                self._folder.append("metrics.jsonl", {**row, **metrics})
        self._print_row({n: v for n, v in values.items() if isinstance(v, float)})
        self._metrics = values

    def on_train_end(self, logs=None) -> None:
        if self._last is None:
            self._finish()

    def _finish(self) -> None:
        """Write what the fit leaves."""
        self._digest(end=True)
        weights = _values(by_name(self.model.weights))
        sha256 = write_weights(self._folder, weights)
        limits = list(self._folder.record["not_promised"])
        if self._no_loss:
            limits.append("the loss of each step: fit reports none, or no number")
        self._folder.update(
            state="finished", steps=self._step, metrics=self._metrics,
            weights_sha256=sha256, files=self._folder.digests(), not_promised=limits,
        )  # fmt: skip
        for name in self._folder.set_apart:
            self.screen.say(
                f"{self._path}/{name}: written by another callback, and renamed"
            )
        self._folder.close()

    def _digest(self, end: bool = False) -> None:
        """Write a row of digests, as those of a run; `end`: of what the fit leaves."""
        model = self.model
        weights = by_name(model.weights)
        known = {id(variable) for variable in model.weights}
        others = [v for v in model.variables if id(v) not in known]
        if getattr(model, "optimizer", None) is not None:
            others += state.variables_of(model.optimizer)
        values = _values(weights)
        rest = _values({str(place): one for place, one in enumerate(others)})
        losses = np.array(self._losses, "<f4")
        self._losses, self._digested = [], self._step
        self._folder.append("digests.jsonl", {
            **({"end": True} if end else {}), "step": self._step,
            "losses": losses.tobytes().hex(),
            "weights": digest_all(values), "optimizer": digest_all(rest),
            "variables": {name: digest(one)[:8] for name, one in values.items()},
        })  # fmt: skip

    def _print_row(self, values: dict[str, float]) -> None:
        heads = ("epoch", "step", *values, "s")
        width = max(11, *(len(head) + 2 for head in heads))
        if heads != self._heads:
            self._heads = heads
            self.screen.say("".join(head.rjust(width) for head in heads), "bold")
        seconds = time.perf_counter() - self._begun
        cells = [str(self._epoch), str(self._step)]
        cells += [f"{value:.4f}" for value in values.values()] + [f"{seconds:.1f}"]
        self.screen.say("".join(cell.rjust(width) for cell in cells))

    def _settings(self) -> dict:
        """Return what is known about the model, its compile() and the fit."""
        model = self.model
        return {
            "backend": keras_state.backend_of_keras(),
            "precision": keras_state.layers_policy().name,
            "model": type(model).__name__,
            "parameters": model.count_params(),
            "architecture_sha256": _sha256(
                lambda: keras.saving.serialize_keras_object(model)["config"]
            ),
            "optimizer": type(model.optimizer).__name__,
            **_numbers(model.optimizer),
            "loss": _name(getattr(model, "loss", None)),
            "jit_compile": bool(model.jit_compile),
            "run_eagerly": bool(model.run_eagerly),
            "steps_per_execution": model.steps_per_execution,
            "epochs": self.params.get("epochs"),
            "steps_per_epoch": self.params.get("steps"),
            "digest_every": self.every,
        }

    def _limits(self) -> list[str]:
        """Return what this `fit` does not promise."""
        set_up, found = fit.in_force(), list(_NEVER)
        if set_up is None:
            found.append(
                "any seed, thread count or deterministic operation: "
                "gpuzoo.repeatable() was not called"
            )
        else:
            found += [one for one in set_up.not_promised if one not in found]
        if self.model.steps_per_execution > 1:
            found.append(
                f"the step of a difference, to less than "
                f"{self.model.steps_per_execution} (steps_per_execution)"
            )
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and int(optimizer.iterations):
            found.append(
                "how the model was trained before: its optimizer has already done steps"
            )
        return found


class _Last(keras.callbacks.Callback):
    """Call a function when every other callback has ended."""

    def __init__(self, finish):
        super().__init__()
        self._finish = finish

    def on_train_end(self, logs=None) -> None:
        self._finish()


def _callbacks_of_fit() -> list | None:
    """Return the list of callbacks that a fit is calling, which Keras does not show to
    them; None without a fit."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return caller.callbacks
        frame = frame.f_back
    return None


def _number(value) -> Any:
    """Return a metric as JSON holds it: a float, a list of them, or text."""
    if value is None or isinstance(value, str):
        return value
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value)).astype(float)
    except (TypeError, ValueError):
        return str(value)
    return float(array) if array.ndim == 0 else array.tolist()


def _values(variables: dict) -> dict[str, np.ndarray]:
    read = keras.ops.convert_to_numpy
    return {name: np.array(read(one)) for name, one in variables.items()}


def _sha256(make) -> str | None:
    """Return the digest of a config, None if there is none that JSON can hold."""
    try:
        text = json.dumps(make(), sort_keys=True)
    except Exception:  # a user's get_config() may raise anything
        return None
    text = re.sub(r'"shared_object_id": \d+', "", text)  # an address of the process
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(optimizer) -> dict:
    """Return the numbers of an optimizer's config, such as its learning rate."""
    try:
        config = optimizer.get_config()
    except Exception:  # a user's own, which may raise anything
        return {}
    plain = bool | int | float
    return {
        f"optimizer.{name}": value
        for name, value in config.items()
        if isinstance(value, plain)
    }


def _name(loss) -> str | None:
    if loss is None or isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", type(loss).__name__)
