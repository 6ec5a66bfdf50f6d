"""`gpuzoo export`: a trained run as files for other runtimes."""

import dataclasses
from typing import Annotated

import tyro

from gpuzoo.cli.parsing import Common, Flag, Output, Word
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.deploy.export import Bounds


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a trained run to SavedModel, ONNX, LiteRT, OpenVINO or StableHLO, and
    check each file in its own runtime on the whole test set: gpuzoo export RUN --to
    onnx,litert.

    Exit codes: 0 done, 1 predictions change beyond the bounds, and nothing was written.
    """

    run: Word
    """The run folder."""
    formats: Annotated[tuple[str, ...], tyro.conf.arg(name="to")] = ("onnx",)
    """saved_model, onnx, litert, openvino, stablehlo, separated by commas or spaces."""
    out: str | None = None
    """Output folder; default: RUN-export, with --int8 RUN-export-int8."""
    int8: Flag = False
    """Post-training quantization to 8 bits (litert, onnx)."""
    calibration: int = 300
    """With --int8: number of training examples for the calibration."""
    generate: Flag = False
    """Export the decoder of a model that also takes images (VAE)."""
    bounds: tyro.conf.OmitArgPrefixes[Bounds] = Bounds()
    allow_drift: Flag = False
    """Export although the code of the model has changed since the training."""
    trust_code: Flag = False
    """Execute the run's own code, if its model is defined in a user's file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.export import export

        names = [name.strip() for one in self.formats for name in one.split(",")]
        found = export(
            self.run, tuple(name for name in names if name), out=self.out,
            generate=self.generate, int8=self.int8, calibration=self.calibration,
            bounds=self.bounds, allow_drift=self.allow_drift,
            trust_code=self.trust_code, note=self.output.note,
        )  # fmt: skip
        if not self.output.quiet:
            _print(found)
        self.output.last_line(found)
        return int(bool(found["failures"]))


def _print(found: dict) -> None:
    heads = ("size", "largest\ndifference", "changed\npredictions", "run", "file",
             "latency")  # fmt: skip
    first = next(iter(found["formats"].values()))["parity"]
    what = first["metric"]["name"] if first["metric"] else ""
    run = "of the run" if first["compared_with"] == "run" else "in float32"
    made = table("format", *heads[:3], f"{what}\n{run}", f"{what}\nof the file",
                 "one\nexample", right=heads)  # fmt: skip
    for column in made.columns[1:]:
        column.justify = "right"
    for kind, entry in found["formats"].items():
        parity = entry["parity"]
        metric = parity["metric"] or {}
        add_row(
            made, kind + (" int8" if entry["quantized"] else ""),
            f"{entry['bytes'] / 1e3:,.0f} kB", _number(parity["largest_difference"]),
            f"{parity['changed_predictions']} of {parity['examples']}",
            *(_value(metric, side) for side in ("run", "artefact")),
            f"{parity['latency_us']['batch_1']:,.0f} us",
        )  # fmt: skip
    lines = [
        f"{side}: {one['name']}, {one['dtype']} {_shape(one)}, {one['meaning']}"
        for side in ("input", "output")
        for one in found[f"{side}s"]
    ]
    if found["inside"]:
        lines.append(f"inside the file: {'; '.join(found['inside'])}")
    show(made, *lines)
    if found["failures"]:
        show(*(f"NO: {line}" for line in found["failures"]), "Nothing was written.")
    else:
        show(f"{found['folder']}/ ({', '.join(_names(found))}, export.json)")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _value(metric: dict, side: str) -> str:
    if not metric or metric[side] is None:
        return "-"
    percent = metric["name"] != "error"
    return f"{metric[side]:.2%}" if percent else f"{metric[side]:.5g}"


def _shape(one: dict) -> str:
    sizes = ["batch", *map(str, one["shape"][1:])]
    return f"({', '.join(sizes)})"


def _names(found: dict) -> list[str]:
    """Return the files, of a folder its name."""
    files = []
    for entry in found["formats"].values():
        files += entry["files"] if len(entry["files"]) <= 2 else [entry["file"]]
    return files
