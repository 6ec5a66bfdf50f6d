"""`gpuzoo compress`: smaller forms of a trained run."""

import dataclasses
from typing import Literal

from gpuzoo.cli.parsing import Common, Flag, Output, Word
from gpuzoo.cli.tables import add_row, show, table


@dataclasses.dataclass(frozen=True)
class Compress:
    """Make smaller and faster variants of a trained run, and compare size, latency and
    accuracy. Default: --int8 --width 0.5 --sparsity 0.8.

    If it is interrupted, run the same command again. Exit codes: 0 done, 1 a variant
    loses more than --max-loss.
    """

    run: Word
    """The run folder."""
    int8: Flag = False
    """Quantize the run and the other variants to 8 bits."""
    width: tuple[float, ...] = ()
    """Structured pruning, then fine-tuning: fraction of channels to keep, e.g. 0.5."""
    sparsity: tuple[float, ...] = ()
    """Magnitude pruning, then fine-tuning: fraction of zeros, e.g. 0.8."""
    student: str = ""
    """Distill the run into this model of the catalogue."""
    student_options: tuple[str, ...] = ()
    """Options of the student as key=value."""
    epochs: int | None = None
    """Epochs of each training; default: half of the run's, at least 5; of a student
    twice as many as the run's, at least 8."""
    learning_rate: float | None = None
    """Peak learning rate; default: that of the run."""
    to: Literal["default", "litert", "onnx", "openvino"] = "default"
    """Runtime; default: litert, for sounds onnx."""
    max_loss: float = 1.0
    """Accuracy in points that a variant may lose; of an error, growth in percent."""
    out: str | None = None
    """Folder for all variants; default: RUN-compressed."""
    allow_drift: Flag = False
    """Continue although the code of the model has changed since the training."""
    trust_code: Flag = False
    """Execute the run's own code, if its model is defined in a user's file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.compress import Forms, compress

        forms = Forms(
            self.int8, self.width, self.sparsity, self.student, self.student_options
        )
        found = compress(
            self.run, forms, out=self.out, to="" if self.to == "default" else self.to,
            epochs=self.epochs, learning_rate=self.learning_rate,
            max_loss=self.max_loss, allow_drift=self.allow_drift,
            trust_code=self.trust_code, quiet=self.output.quiet, note=self.output.note,
        )  # fmt: skip
        if not self.output.quiet:
            _print(found)
        self.output.last_line(found)
        return int(bool(found["failures"]))


def _print(found: dict) -> None:
    metric = found["metric"]
    last = "percent\nmore" if metric == "error" else "points\nlost"
    heads = ("file", "times\nsmaller", "file in\ngzip", "times \nsmaller", "latency",
             "times\nfaster", metric, last)  # fmt: skip
    made = table("variant", *heads, right=heads)
    for row in found["forms"]:
        add_row(made, *cells(row, metric))
    show(made)
    for name, why in found["left_out"].items():
        show(f"left out: {name}: {why}")
    run = (
        "-" if found["value_of_run"] is None else _value(found["value_of_run"], metric)
    )
    show(
        f"{metric}: of the file in {found['runtime']}, {found['examples']} test "
        f"examples; lost: of the run's {run} in {found['precision']} (files compute in "
        "float32 or int8, so the original differs a little, too)",
        f"latency: of {found['latency']['of']}",
    )
    if any(row["kind"] == "sparsity" for row in found["forms"]):
        show(
            "sparse: zeros make the file smaller in gzip only, and no runtime here "
            "skips them: it is not faster"
        )
    show(*(f"NO: {line}" for line in found["failures"]))
    show(f"{found['folder']}/ (compress.json, frontier.png, a folder for each variant)")


def cells(row: dict, metric: str) -> list[str]:
    """Return the texts of a row of the table."""
    return [
        row["name"],
        f"{row['bytes'] / 1e3:,.0f} kB", f"{row['times_smaller']:.2f}",
        f"{row['gzip_bytes'] / 1e3:,.0f} kB", f"{row['times_smaller_gzip']:.2f}",
        f"{row['latency_us']:,.1f} us", f"{row['times_faster']:.2f}",
        _value(row["value"], metric),
        f"{row['lost']:.2f}",
    ]  # fmt: skip


def _value(value: float, metric: str) -> str:
    return f"{value:.5g}" if metric == "error" else f"{value:.2%}"
