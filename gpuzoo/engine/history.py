"""Events of a run: log rows, digests, evaluations; and their history."""

from collections.abc import Callable

import numpy as np

from gpuzoo.data.dataset import Arrays
from gpuzoo.errors import GpuzooError
from gpuzoo.runs import chain
from gpuzoo.weights import digest, digest_all

# A callback that gets (event, row). It may print and write but not change the run.
# Events: "start", "progress", "checkpoint", "samples", "stopping", and those of the
# history, "train", "val", "test", "digest".
Watcher = Callable[[str, dict], None]


class Journal:
    """Collects the results of steps and turns them into rows.

    It holds what a checkpoint needs besides the variables: the results since the last
    log row and since the last digest, and every row so far.
    """

    def __init__(self, watch: Watcher):
        self.watch = watch
        self.history: list = []
        self.logged: list[Arrays] = []  # results since the last log row
        self.losses: list[np.ndarray] = []  # losses since the last digest
        self._chain = chain.START

    def add(self, results: Arrays) -> None:
        """Add the results of some steps, each an array of shape (steps,)."""
        self.logged.append(results)
        self.losses.append(results["loss"])

    def log(self, epoch: int, step: int) -> None:
        """Emit a row of means over the steps since the last one."""
        means = {
            name: float(
                np.mean(np.concatenate([r[name] for r in self.logged]), dtype=float)
            )
            for name in sorted(self.logged[0])
        }
        self.logged = []
        self._emit("train", {"epoch": epoch, "step": step, **means})

    def digest(self, step: int, weights: Arrays, others: Arrays) -> None:
        """Emit a row of digests, to compare runs bit for bit."""
        losses = np.concatenate(self.losses).astype("<f4")
        self.losses = []
        row = {
            "step": step,
            "losses": losses.tobytes().hex(),  # the bits of every step
            "weights": digest_all(weights),
            "optimizer": digest_all(others),
            "variables": {name: digest(a)[:8] for name, a in weights.items()},
        }
        row = chain.chained(row, self._chain)
        self._chain = row["chain"]
        self._emit("digest", row)

    def evaluation(self, split: str, epoch: int, step: int, metrics: dict) -> None:
        """Emit a row of the metrics of an evaluation, of split val or test."""
        self._emit(split, {"epoch": epoch, "step": step, **metrics})

    def pending(self) -> Arrays:
        """Return what is collected but not emitted yet, for a checkpoint."""
        arrays = {
            f"journal/log/{name}": np.concatenate([r[name] for r in self.logged])
            for name in (self.logged[0] if self.logged else ())
        }
        if self.losses:
            arrays["journal/losses"] = np.concatenate(self.losses)
        return arrays

    def restore(self, history: list, arrays: Arrays) -> None:
        """Continue from a checkpoint; nothing is emitted again."""
        self.history = list(history)
        if rows := self.digests():
            if "chain" not in rows[-1]:
                raise GpuzooError(
                    "an earlier version of gpuzoo wrote the checkpoint: its digests "
                    "have no chain; train the run again"
                )
            self._chain = rows[-1]["chain"]
        log = {
            name.removeprefix("journal/log/"): array
            for name, array in arrays.items()
            if name.startswith("journal/log/")
        }
        self.logged = [log] if log else []
        losses = arrays.get("journal/losses")
        self.losses = [] if losses is None else [losses]

    def digests(self) -> list[dict]:
        """Return the rows of digests so far."""
        return [row for event, row in self.history if event == "digest"]

    def _emit(self, event: str, row: dict) -> None:
        self.history.append([event, row])
        self.watch(event, row)
