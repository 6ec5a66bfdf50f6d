"""What differs between two runs, or between a run and this machine."""

import dataclasses

from gpuzoo.errors import GpuzooError


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field that is not the same on both sides."""

    field: str
    recorded: object
    here: object

    def __str__(self) -> str:
        return f"{self.field}: {self.recorded!r} in the run, {self.here!r} here"


# Fields of the runtime that the bits of a run depend on.
_RUNTIME = (
    "backend", "device", "device_name", "precision", "xla", "deterministic", "threads",
    "tf32", "onednn", "autotune_sha256",
)  # fmt: skip


def environment_differences(record: dict, other: dict) -> list[Difference]:
    """Fields of two records, other than the recipe, that move bits and differ.

    Args:
        record: a run's record.
        other: the record of another run, or of this process (`environment`,
            `code_sha256`, `runtime`).
    """
    pairs = {}
    for name in ("system", "cpu", "cpu_isa", "driver"):
        pairs[name] = record["environment"][name], other["environment"][name]
    pairs["python"] = tuple(
        side["environment"]["python"].rpartition(".")[0] for side in (record, other)
    )
    for group in ("versions", "variables"):
        sides = record["environment"][group], other["environment"][group]
        for name in sorted({*sides[0], *sides[1]}):
            pairs[f"{group}.{name}"] = sides[0].get(name), sides[1].get(name)
    pairs["code_sha256"] = record["code_sha256"], other["code_sha256"]
    if record["runtime"] and other["runtime"]:
        for name in _RUNTIME:
            pairs[f"runtime.{name}"] = record["runtime"][name], other["runtime"][name]
        order = set_order(record), set_order(other)
        if all(order):  # else one had none that could be had again
            pairs["runtime.variables.PYTHONHASHSEED"] = order
    return [Difference(name, a, b) for name, (a, b) in pairs.items() if a != b]


def set_order(record: dict) -> str:
    """The PYTHONHASHSEED that a run had; empty if it had none that is fixed."""
    order = str(record["runtime"]["variables"].get("PYTHONHASHSEED", ""))
    return order if order.isdecimal() else ""


def data_differences(record: dict, other: dict) -> list[Difference]:
    """Fields of two records of data that differ (`Dataset.as_record()`)."""
    if record is None or other is None:
        return []
    names = ("name", "fingerprint", "train_examples", "test_examples", "input_shape")
    return [
        Difference(f"data.{name}", record[name], other[name])
        for name in names
        if record[name] != other[name]
    ]


def refuse(differences: list[Difference], what: str) -> None:
    """Raises GpuzooError that names every difference."""
    if differences:
        listed = "; ".join(str(difference) for difference in differences)
        raise GpuzooError(f"{what}: {listed}")
