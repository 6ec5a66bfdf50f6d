"""`gpuzoo evaluate`."""

import dataclasses
from typing import Literal

from gpuzoo.cli.parsing import Common, Flag, Output, Word, chosen, without_1
from gpuzoo.runtime.options import Precision

# What `evaluate` returns besides the figures of the task.
_OTHERS = (
    "run_dir", "data", "examples", "metrics", "identical", "differences", "exit_code",
    "pictures", "interval",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run, on its own data or on other data.

    Exit codes: 0 done, 1 nothing has changed and yet the metrics differ from those of
    the run, 2 the run or the data cannot be used.
    """

    run: Word
    """The run folder."""
    data: str = ""
    """Other data: a dataset's name, a .npz or .csv file or a folder; their test split,
    or all of a folder or .npz file without one. Default: the data of the run."""
    data_dir: str | None = None
    """Prepared TFDS folder; default: that of the run."""
    out: str | None = None
    """New folder for evaluation.json, per_class.csv and the plots."""
    device: Literal["run", "auto", "cpu", "gpu"] = "run"
    """Device; run: as requested in the training."""
    precision: Literal["run"] | Precision = "run"
    """Keras dtype policy; run: that of the training."""
    allow_drift: Flag = False
    """Evaluate although the code of the model has changed."""
    trust_code: Flag = False
    """Execute the run's own code, if its model is defined in a user's file."""
    output: Common = Output()

    @without_1
    def __call__(self) -> int:
        from gpuzoo.deploy import evaluate

        note = self.output.note
        if self.out:
            evaluate.check_new(self.out)
        found = evaluate.evaluate(
            self.run, data=self.data, data_dir=self.data_dir, note=note,
            allow_drift=self.allow_drift, trust_code=self.trust_code,
            **chosen(device=self.device, precision=self.precision),
        )  # fmt: skip
        if self.out:
            evaluate.write(self.out, found)
            note(f"written to {self.out}/")
        summary = evaluate.summary_of(found)
        if not self.output.quiet:
            self._print(summary)
        self.output.last_line(summary)
        return summary["exit_code"]

    def _print(self, found: dict) -> None:
        from gpuzoo.cli.tables import add_row, show, table
        from gpuzoo.runs import evaluation

        rows = found.get("per_class", [])
        parts = [name for name in (rows or [{}])[0] if name not in ("name", "examples")]
        heads = ("class", "examples", *(name.replace("_", " ") for name in parts))
        made = table(*heads, right=heads[1:])
        means = {n: found[n] for n in evaluation.AVERAGES if n in found}
        every = {f"{name} mean": {"examples": "", **of} for name, of in means.items()}
        for name, row in [*((row["name"], row) for row in rows[:30]), *every.items()]:
            cells = [_text(row.get(part, "")) for part in parts]
            add_row(made, name, row["examples"], *cells)
        lines = [f"{len(rows) - 30} more classes (--json)"] * (len(rows) > 30)
        if "undefined" in found:
            own = {k: v for k, v in found.items() if k not in _OTHERS}
            single = {k: v for k, v in own.items() if not isinstance(v, dict | list)}
            lines += [f"{name} {_text(value)}" for name, value in single.items()]
        for name, why in found.get("undefined", {}).items():
            lines.append(f"{name} is not defined: {why}")
        for name, value in found["metrics"].items():
            lines.append(f"{name} {value:.6g}")
        if within := found["interval"]:
            lines.append(
                f"95 % interval of the {within['of']}: {within['low']:.4g} to "
                f"{within['high']:.4g} ({found['examples']} examples of "
                f"{found['data']})"
            )
        if found["identical"]:
            lines.append("identical to the run's own evaluation, to the bit")
        elif found["identical"] is not None:
            why = "; ".join(found["differences"]) or "and nothing has changed"
            lines.append(f"not identical to the run's own evaluation: {why}")
        show(*([made] if rows else []), *lines)


def _text(value) -> str:
    """Return a figure as text; integers count examples."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
