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
    """Compile a recipe for GPUs that this machine does not have: memory, kernels, what
    may not repeat. All of it is predicted; needs gpuzoo[gpu-compile].

    Exit codes: 0 all is well, 1 for a card it does not compile, does not fit or may not
    repeat.
    """

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    cards: Annotated[str, tyro.conf.arg(name="for")] = "h200,a100,rtx4090,rtx5090,t4"
    """Cards, by name or path of a .json file, separated by commas."""
    precision: tuple[Precision, ...] = ("auto",)
    """Dtype policies; auto: what a training on the card would choose."""
    level: tuple[Literal["fast", "repeatable"], ...] = ("repeatable",)
    """Levels, as of gpuzoo train."""
    out: str | None = None
    """Also write the record to this file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.gpus.compile import compile_for, failures, remarks

        names = list(dict.fromkeys(one.strip() for one in self.cards.split(",")))
        for field in ("precision", "level"):
            if not getattr(self, field):
                raise GpuzooError(f"{field} must name at least one value")
        if self.out and os.path.lexists(expand(self.out)):
            raise GpuzooError(f"--out {self.out!r} exists; name another file")
        found = compile_for(
            self.recipe, names, self.precision, self.level, self.output.note
        )
        lines = failures(found)
        if not self.output.quiet:
            _print(found, [*lines, *remarks(found)])
        if self.out:
            text = json.dumps(found, indent=1) + "\n"
            write_atomically(expand(self.out), text.encode(), replace=False)
        self.output.last_line({**found, "failures": lines})
        return int(bool(lines))


def _print(found: dict, lines: list[str]) -> None:
    heads = ("memory", "kernels", "library\ncalls", "GFLOP", "MB", "least\ntime")
    columns = ("card", "precision", "level", "step", *heads, "bound by")
    made = table(*columns, "may not\nrepeat", right=heads)
    for row in found["rows"]:
        first = (row["card"], row["precision"].removeprefix("mixed_"), row["level"])
        if row["error"]:
            add_row(made, *first, "does not compile")
            continue
        used, whole = row["memory_bytes"] / 1e9, row["card_memory_bytes"] / 1e9
        memory = f"{used:.2f} of {whole:.0f} GB"
        for step, one in row["programs"].items():
            kinds = one["kernels_by_kind"]
            add_row(
                made, *first, step, memory, one["kernels"],
                sum(n for kind, n in kinds.items() if kind.startswith("__")),
                f"{one['flops'] / 1e9:.2f}", f"{one['bytes'] / 1e6:.0f}",
                f"{1e6 * one['least_seconds']:.0f} us", one["bound_by"],
                sum(each["count"] for each in one["may_not_repeat"]) or "-",
            )  # fmt: skip
    show("PREDICTED by JAX's compiler, without a GPU; nothing here was measured.", made)
    show(*(f"Assumed: {line}." for line in found["assumptions"]))
    if any(row["emulated"] for row in found["rows"]):
        show("A precision that the card lacks is computed in float32 (T4: bfloat16).")
    show(*lines)
