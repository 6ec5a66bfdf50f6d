"""`gpuzoo check`: look at a model before it is trained."""

import dataclasses
from typing import Literal

from gpuzoo.cli.parsing import Common, Output, Word
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.runtime.options import Precision


@dataclasses.dataclass(frozen=True)
class Check:
    """Compile one training step of a model, run it three times, time its layers, and
    name what is not repeatable, does not compile or is slow here, with the remedy.

    Exit codes: 0 fine, 1 a finding prevents a repeatable training, 2 usage error.
    """

    model: Word
    """A model of the catalogue, or path.py:function, which need not be registered."""
    model_options: tuple[str, ...] = ()
    """Options of the model, name=value."""
    shape: tuple[int, ...] = ()
    """Shape of an example, for a subclassed model: 28 28 1."""
    backends: tuple[Literal["tensorflow", "jax"], ...] = ()
    """Backends to check; default: all that are installed."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device, as for gpuzoo train."""
    precision: Precision = "auto"
    """Keras dtype policy, as for gpuzoo train."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile with XLA, as for gpuzoo train."""
    batch_size: int = 8
    """Examples per step."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.repro.check import check

        found = check(
            self.model, model_options=self.model_options, shape=self.shape,
            backends=self.backends, device=self.device, precision=self.precision,
            xla=self.xla, batch_size=self.batch_size, note=self.output.note,
        )  # fmt: skip
        if not self.output.quiet:
            self._print(found)
        self.output.last_line(found)
        return found["exit_code"]

    def _print(self, found: dict) -> None:
        made = table("backend", "finding", "layer", "what", "remedy")
        for row in found["findings"]:
            names = ("backend", "kind", "layer", "what", "remedy")
            add_row(made, *(row[name] for name in names))
        for one in found["backends"].values():
            if "runtime" not in one:
                continue
            rows = sorted(one["layers"], key=lambda r: -r["forward_backward_seconds"])
            slowest = ", ".join(
                f"{row['layer']} {1000 * row['forward_backward_seconds']:.1f} ms"
                for row in rows[:3]
            )
            if slowest:
                slowest = f"; slowest alone, forward and backward: {slowest}"
            step = "the step could not be done"
            if one["repeated"] is not None:
                step = "the step repeats" if one["repeated"] else "the step varies"
                step += f", {1000 * one['step_seconds']:.1f} ms"
            show(f"{one['runtime']}: {step}{slowest}")
        show(made if found["findings"] else "No finding.")
