"""What `verify` says of a run that was trained on another processor."""

from gpuzoo.runs import drift

# Of the figures of run.json that `verify` finds out again: those that are the same on
# every processor (and all that begin with data/).
_SAME_EVERYWHERE = {
    "id", "parameters", "findings", "weights", "init", "class_weights", "runtime/seed",
    "runtime/level",
}  # fmt: skip


def names_of(opened) -> dict | None:
    """Return the names of the CPU of the run and of this one; None if they are the
    same."""
    if opened.processor is None:
        return None
    return {"recorded": opened.processor.recorded, "here": opened.processor.here}


def is_other_class(opened) -> bool:
    """Whether the class of this CPU is another than that of the run."""
    return any(one.field == drift.CPU_CLASS for one in opened.differences)


def only_class(opened) -> bool:
    """Whether nothing but the class of the CPU differs."""
    return is_other_class(opened) and len(opened.differences) == 1


def prevent(opened, allow_drift: bool) -> bool:
    """Whether differences prevent a comparison: any but that of the class of the CPU,
    unless they are allowed."""
    return bool(opened.differences) and not allow_drift and not only_class(opened)


def does_not_depend(told: str) -> bool:
    """Whether a line of `figures` is about something that no processor changes."""
    name = told.partition(":")[0]
    return name in _SAME_EVERYWHERE or name.startswith("data/")


def cause(opened, recorded: dict) -> str:
    """Describe the other processor as the likely cause of bits that differ."""
    names = f"{opened.processor.here}, recorded on {opened.processor.recorded}"
    if is_other_class(opened):
        return f"a processor of another class ({names}): only metrics can agree"
    if drift.promises(recorded):
        return f"another processor ({names}), though level portable promises the bits"
    return (
        f"another processor ({names}): of its class, but the same bits are promised "
        "there at level portable only"
    )


def figures_of(recorded: dict, result) -> list[dict]:
    """Return the metrics of the run and of the re-run beside each other."""
    here = dict(result.metrics)
    return [
        {"name": name, "recorded": value, "here": here[name]}
        for name, value in recorded["metrics"].items()
        if name in here
    ]
