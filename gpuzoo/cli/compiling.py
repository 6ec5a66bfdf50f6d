"""`gpuzoo compile`: what a recipe would be on a GPU that this machine does not have."""

import dataclasses
import json
import os
from typing import Annotated, Literal

import tyro

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.cli.parsing import Common, Output
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, write_atomically
from gpuzoo.runtime.options import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Compile a recipe, as --backend jax would, for GPUs that this machine does not
    have: memory, kernels, what may not repeat. Predicted; needs gpuzoo[gpu-compile].

    Options of its own (`gpuzoo compile mnist --help`): --for, --precision, --level,
    --devices, --out.

    Exit codes: 0 all is well, 1 the recipe does not compile for a card, does not fit
    or, at level repeatable, may not repeat.
    """

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    cards: Annotated[tuple[str, ...], tyro.conf.arg(name="for")] = (
        "h200", "a100", "rtx4090", "rtx5090", "t4",
    )  # fmt: skip
    """GPUs, by name or path of a .json file, separated by commas or spaces."""
    precision: tuple[Precision, ...] = ("auto",)
    """Dtype policies; auto: what a training on the card would choose."""
    level: tuple[Literal["fast", "repeatable"], ...] = ("repeatable",)
    """repeatable: with deterministic operations; fast: without."""
    devices: tuple[str, ...] = ("1",)
    """How many cards train together, by commas or spaces: what one of them does."""
    out: str | None = None
    """Also write the record to this file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.gpus.compile import compile_for, failures, remarks

        names, devices = _listed(self.cards), _numbers(_listed(self.devices))
        for field, given in (
            ("for", names), ("precision", self.precision), ("level", self.level),
            ("devices", devices),
        ):  # fmt: skip
            if not given:
                raise GpuzooError(f"--{field} must name at least one value")
        if self.out and os.path.lexists(expand(self.out)):
            raise GpuzooError(f"--out {self.out!r} exists; name another file")
        if self.out and not expand(self.out).parent.is_dir():
            raise GpuzooError(f"--out {self.out!r}: there is no such folder")
        found = compile_for(
            self.recipe, names, self.precision, self.level, self.output.note,
            devices=devices,
        )  # fmt: skip
        lines = failures(found)
        if not self.output.quiet:
            _print(found, [*lines, *remarks(found)])
        found["failures"] = lines
        if self.out:
            text = json.dumps(found, indent=1) + "\n"
            write_atomically(expand(self.out), text.encode(), replace=False)
        self.output.last_line(found)
        return int(bool(lines))


def _listed(given: tuple[str, ...]) -> list[str]:
    """Return the values of an option that are separated by commas or spaces."""
    values = [value.strip() for one in given for value in one.split(",")]
    return list(dict.fromkeys(value for value in values if value))


def _numbers(given: list[str]) -> tuple[int, ...]:
    for one in given:
        if not (one.isascii() and one.isdecimal() and 1 <= int(one) <= 1024):
            raise GpuzooError(f"--devices {one!r} must be in 1..1024, such as 1,2,4,8")
    return tuple(dict.fromkeys(map(int, given)))


def _print(found: dict, lines: list[str]) -> None:
    """Print the rows as a table, a column for what differs between them; then what is
    wrong, and what was assumed."""
    rows = found["rows"]
    varied = [
        name
        for name in ("card", "precision", "level", "devices")
        if name == "card" or len({row[name] for row in rows}) > 1
    ]
    heads = ("memory", "kernels", "library\ncalls", "GFLOP", "MB", "least\ntime")
    made = table(*varied, "step", *heads, "bound by", "may not\nrepeat", right=heads)
    for row in rows:
        first = [str(row[name]).removeprefix("mixed_") for name in varied]
        if row["error"]:
            add_row(made, *first, "does not compile")
            continue
        memory = f"{_size(row['memory_bytes'])} of {_size(row['usable_bytes'])}"
        for step, one in row["programs"].items():
            kinds = one["kernels_by_kind"]
            add_row(
                made, *first, step, memory, one["kernels"],
                sum(n for kind, n in kinds.items() if kind.startswith("__")),
                f"{one['flops'] / 1e9:,.2f}", f"{one['bytes'] / 1e6:,.0f}",
                _time(one["least_seconds"]), one["bound_by"],
                sum(each["count"] for each in one["may_not_repeat"]) or "-",
            )  # fmt: skip
            first, memory = [""] * len(first), ""
    show("PREDICTED by JAX's compiler for trainings with --backend jax, without a GPU;",
         "nothing here was measured.", made)  # fmt: skip
    if any(row["emulated"] for row in rows):
        show("A precision that the card lacks is computed in float32 (T4: bfloat16).")
    show(*_exchanged(rows), *lines)
    wrong = {line.partition(",")[0] for line in lines}
    good = [
        name for name in dict.fromkeys(r["card"] for r in rows) if name not in wrong
    ]
    if good:
        show(f"Compiles, fits, nothing found that may not repeat: {', '.join(good)}")
    if not all(row["error"] for row in rows):
        show(*(f"Assumed: {line}." for line in found["assumptions"]))


def _exchanged(rows: list[dict]) -> list[str]:
    """Return a line for each number of devices that exchange arrays."""
    lines = {}
    for row in rows:
        if row["devices"] > 1 and row["error"] is None:
            found = row["programs"]["train"]["exchanges"]
            size = _size(sum(one["received_bytes"] for one in found))
            names = sorted(
                {
                    kind.removesuffix("-start")
                    for one in found
                    for kind in one["collectives"]
                }
            )
            lines[row["devices"]] = (
                f"{row['devices']} devices: each receives {size} a step, in "
                f"{len(found)} exchange{'s' * (len(found) > 1)} (copies; "
                f"{', '.join(names)} between processes)."
            )
    return list(lines.values())


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us" if seconds < 0.01 else f"{1e3 * seconds:,.0f} ms"
