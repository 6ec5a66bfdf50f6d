"""`gpuzoo.callbacks.Trail`: the trail and the record of an ordinary Keras `fit`."""

import hashlib
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
    "a re-run by gpuzoo verify",
)


class Trail(keras.callbacks.Callback):
    """Write digests of the weights, the losses and the record of a `fit` into a folder.

    `gpuzoo diff A B` finds the first step at which two of them differ. Before the first
    step, every so many steps and at the end, the digests of all weights and of the
    optimizer are written; the loss of every step is: as Keras reports it, the mean
    since the epoch began. It changes nothing in the training.

    Args:
        folder: a new folder, or an empty one.
        every: steps between two digests. Each copies the weights to the host.
        quiet: do not print a row after each epoch to standard error.

    Raises:
        GpuzooError: the folder is not empty or cannot be written, or `every` is not a
            whole number, 1 or more.
    """

    def __init__(
        self, folder: str | pathlib.Path, every: int = 100, *, quiet: bool = False
    ):
        super().__init__()
        if type(every) is not int or every < 1:
            raise GpuzooError(f"every must be a whole number, 1 or more: {every!r}")
        self.every, self.screen = every, Screen(quiet)
        self._path, self._heads = folder, ()
        self._folder: Any = None  # of a fit that has begun
        self._metrics: dict[str, float] = {}
        self._step = self._epoch = self._seen = self._digested = 0
        self._losses: list[float] = []

    def on_train_begin(self, logs=None) -> None:
        if self._folder is not None:
            raise GpuzooError(
                f"Trail({str(self._path)!r}) is the trail of one fit already; make a "
                "new one for each"
            )
        self._begun = time.perf_counter()
        self._folder = FitFolder(
            self._path,
            settings=self._settings(),
            runtime=(now := configure.in_force()) and now.as_record(),
            not_promised=self._limits(),
        )
        self._digest()

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._epoch, self._seen = epoch + 1, 0

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        done = batch + 1 - self._seen  # several, with steps_per_execution
        self._seen, self._step = batch + 1, self._step + done
        self._losses += [float((logs or {}).get("loss", 0.0))] * done
        if self._step // self.every > self._digested // self.every:
            self._digest()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        logs = {name: float(value) for name, value in (logs or {}).items()}
        values = {n: v for n, v in logs.items() if n != "learning_rate"}
        split = {
            "train": {n: v for n, v in values.items() if not n.startswith("val_")},
            "val": {n[4:]: v for n, v in values.items() if n.startswith("val_")},
        }
        for name, metrics in split.items():
            if metrics:
                row = {"split": name, "epoch": self._epoch, "step": self._step}
                self._folder.append("metrics.jsonl", {**row, **metrics})
        self._print_row(values)
        self._metrics = values

    def on_train_end(self, logs=None) -> None:
        if self._step != self._digested:
            self._digest()
        weights = _values(by_name(self.model.weights))
        sha256 = write_weights(self._folder, weights)
        self._folder.update(
            state="finished", steps=self._step, metrics=self._metrics,
            weights_sha256=sha256, files=self._folder.digests(),
        )  # fmt: skip
        self._folder.close()

    def _digest(self) -> None:
        """Write a row of digests, as those of a run."""
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
            "step": self._step, "losses": losses.tobytes().hex(),
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
            found.append("how the model was trained before: it does not start afresh")
        return found


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
