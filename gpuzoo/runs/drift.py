"""Differences between two runs, or between a run and this machine."""

import dataclasses

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.portable import without_effect
from gpuzoo.runtime.processors import PORTABLE, classes_of


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field that differs."""

    field: str
    recorded: object
    here: object
    said: str = ""
    """Text shown instead of the two values, if these are long."""

    def __str__(self) -> str:
        if self.said:
            return f"{self.field}: {self.said}"
        return f"{self.field}: {self.recorded!r} in the run, {self.here!r} here"


# Fields of the runtime that results depend on, to the bit.
_RUNTIME = (
    "backend", "device", "precision", "xla", "deterministic", "threads", "tf32",
    "onednn", "autotune_sha256",
)  # fmt: skip
CPU_CLASS = "cpu_class"


def environment_differences(record: dict, other: dict) -> list[Difference]:
    """Return fields of two records that differ and affect results, the recipe excepted.

    Args:
        record: a run's record.
        other: the record of another run, or of this process (`environment`,
            `code`, `inputs`, `runtime`).
    """
    pairs = {}
    for name in ("system", "driver"):
        pairs[name] = record["environment"][name], other["environment"][name]
    libraries = record["environment"].get("libc"), other["environment"].get("libc")
    if all(libraries):  # older records have none
        pairs["libc"] = libraries
    pairs["python"] = tuple(
        side["environment"]["python"].rpartition(".")[0] for side in (record, other)
    )
    for group in ("versions", "variables"):
        sides = record["environment"][group], other["environment"][group]
        for name in sorted({*sides[0], *sides[1]}):
            pairs[f"{group}.{name}"] = sides[0].get(name), sides[1].get(name)
    if record["runtime"] and other["runtime"]:
        sides = record["runtime"], other["runtime"]
        for name in _RUNTIME:
            pairs[f"runtime.{name}"] = sides[0][name], sides[1][name]
        counts = [side.get("model_devices", 1) for side in sides]
        pairs["runtime.model_devices"] = tuple(counts)  # older records have none
        if not _elastic(record):
            counts = sides[0].get("devices", 1), sides[1].get("devices", 1)
            pairs["runtime.devices"] = counts  # older records have none
        if "gpu" in (sides[0]["device"], sides[1]["device"]):
            name = "device_name"  # a CPU's is in the environment
            pairs[f"runtime.{name}"] = sides[0][name], sides[1][name]
        if PORTABLE in (sides[0]["level"], sides[1]["level"]):
            pairs["runtime.level"] = sides[0]["level"], sides[1]["level"]
        order = set_order(record), set_order(other)
        if all(order):  # else the order of one of them cannot be reproduced
            pairs["runtime.variables.PYTHONHASHSEED"] = order
    both = bool(record["runtime"] and other["runtime"]) and all(
        side["runtime"]["level"] == PORTABLE for side in (record, other)
    )
    found = [
        Difference(name, a, b)
        for name, (a, b) in pairs.items()
        if a != b and not (both and without_effect(name, other["runtime"]["backend"]))
    ]
    classes = classes_of(record, other)
    if classes[0] != classes[1]:
        found.insert(0, Difference(CPU_CLASS, *classes))
    return found + code_differences(record, other)


def other_processor(record: dict, other: dict) -> Difference | None:
    """Return the names of the CPUs of two records if these are not the same. Within a
    class their results are expected to be the same to the bit, which only level
    portable promises."""
    names = [one["environment"]["cpu"] for one in (record, other)]
    sets = [set(one["environment"]["cpu_isa"]) for one in (record, other)]
    if names[0] == names[1]:
        if sets[0] == sets[1]:
            return None
        # Of one name, but a hypervisor or a kernel hides some of it.
        more = sets[0] - sets[1], sets[1] - sets[0]
        names = [
            " ".join([name, *(f"+{one}" for one in sorted(few))])
            for name, few in zip(names, more, strict=True)
        ]
    return Difference("cpu", *names)


def _elastic(record: dict) -> bool:
    """Whether a run promises the same bits on any number of devices."""
    return record.get("recipe", {}).get("elastic", False)


def promises(record: dict) -> bool:
    """Whether a run promises the same bits on another processor of its class."""
    level = (record["runtime"] or record["options"]).get("level")
    return level == PORTABLE


def code_differences(record: dict, other: dict) -> list[Difference]:
    """Return modules, and inputs of the user's code, that differ."""
    found = []
    if record["code"] is None or other["code"] is None:
        return found  # killed before its model was built
    for part, what in (("code", "module"), ("inputs", "input")):
        one, two = record[part], other[part]
        found += [
            Difference(
                f"{part}.{name}", one.get(name), two.get(name),
                f"{what} {_happened(one.get(name), two.get(name))}",
            )
            for name in sorted({*one, *two})
            if one.get(name) != two.get(name)
        ]  # fmt: skip
    return found


def _happened(recorded: str | None, here: str | None) -> str:
    """Describe the difference of two digests, or of a digest and why there is none."""
    if recorded is None:
        return "not used by the run, but here"
    if here is None:
        return "used by the run, but not here"
    return here if " " in here or here == "missing" else "changed"


def set_order(record: dict) -> str:
    """Return the PYTHONHASHSEED of a run; empty if it was not fixed."""
    order = str(record["runtime"]["variables"].get("PYTHONHASHSEED", ""))
    return order if order.isdecimal() else ""


def data_differences(record: dict, other: dict) -> list[Difference]:
    """Return fields of two data records that differ (`Dataset.as_record()`)."""
    if record is None or other is None:
        return []
    found = []
    if record["classes"] != other["classes"]:
        sides = record["classes"], other["classes"]
        found.append(Difference("data.classes", *sides, _changed_classes(*sides)))
    names = (
        "name", "fingerprint", "train_examples", "val_examples", "test_examples",
        "input_shape",
    )  # fmt: skip
    return found + [
        Difference(f"data.{name}", record.get(name), other.get(name))
        for name in names
        if record.get(name) != other.get(name)
    ]


def _changed_classes(recorded: list[str], here: list[str]) -> str:
    """Describe a change of classes: class 'cow' added."""
    added = [name for name in here if name not in set(recorded)]
    removed = [name for name in recorded if name not in set(here)]
    if not added and not removed:
        pairs = zip(recorded, here, strict=False)
        place = next(i for i, (one, other) in enumerate(pairs) if one != other)
        return (
            f"in another order: class {place} is {here[place]!r}, was "
            f"{recorded[place]!r}"
        )
    if len(added) == len(removed) == 1 and len(recorded) == len(here):
        return f"class {removed[0]!r} renamed to {added[0]!r}"
    parts = [(added, "added"), (removed, "removed")]
    return " and ".join(_counted(names, what) for names, what in parts if names)


def _counted(names: list[str], what: str) -> str:
    listed = ", ".join(map(repr, names[:3])) + ", ..." * (len(names) > 3)
    if len(names) == 1:
        return f"class {listed} {what}"
    return f"{len(names)} classes {what} ({listed})"


def refuse(differences: list[Difference], what: str) -> None:
    """Raise GpuzooError naming every difference, if there are any."""
    if differences:
        listed = "; ".join(str(difference) for difference in differences)
        raise GpuzooError(f"{what}: {listed}")
