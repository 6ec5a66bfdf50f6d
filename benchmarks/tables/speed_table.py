"""The comparisons of docs/results.md, from the records of speed.py, cifar_to_75.py and
cifar_beside_torch.py."""

import statistics

JPEG = "cifar10 (jpeg)"
"""The data that every figure of CIFAR-10 was taken on."""


def speed_text(record: dict, machine: str) -> str:
    """Return the speed of gpuzoo relative to its peers on one machine."""
    # Rows may be of different days; an older record has these once for all rows.
    rows = {work: {**record, **row} for work, row in record["work"].items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row["peers"]))
    names.remove("gpuzoo")
    lines = [
        "| network, batch | gpuzoo, images per second | "
        + " | ".join(f"times {name}" for name in names)
        + " |",
        "|" + "---|" * (2 + len(names)),
    ]
    for work, row in rows.items():
        ours = row["peers"]["gpuzoo"]["examples_per_second"]["median"]
        cells = [f"{work}, {row['batch']}", f"{ours:,.0f}"]
        cells += [times(row["peers"].get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")

    def told(key: str) -> list:
        return sorted({row[key] for row in rows.values() if row.get(key)})

    days = told("date")
    versions = [
        f"{name} {' and '.join(told(key))}"
        for name, key in (("PyTorch", "torch"), ("Flax", "flax"))
        if told(key)
    ]
    return "\n".join(
        [
            *lines,
            "",
            "Training steps on MNIST: how many times as fast gpuzoo is, with "
            f"determinism on; {' to '.join(map(str, ends(told('rounds'))))} rounds "
            "in which all alternated every second or so, medians and their 95 % "
            f"intervals; {', '.join([machine, *versions])}, {' to '.join(ends(days))} "
            "(`benchmarks/speed/speed.py`).",
        ]
    )


def overhead_text(record: dict) -> str:
    """Return the host time per step, compared with stock Keras."""
    told = [
        f"{steps['gpuzoo']['milliseconds']['median']:.2f} ms on {name} (Keras's "
        f"`fit`: {steps['keras']['milliseconds']['median']:.2f} ms)"
        for name, steps in record["steps"].items()
    ]
    return (
        f"CPU time of a step of a tiny model: {' and '.join(told)} "
        f"({record['rounds']} rounds, {record['date']}, "
        "`benchmarks/speed/overhead.py`)."
    )


def cifar_text(beside: dict, to_75: dict | None, machine: str) -> str:
    """Return CIFAR-10 compared with PyTorch and, if measured, stock Keras."""
    ours, theirs = (
        f"{100 * beside[name]['test_accuracy']['mean']:.2f} ± "
        f"{100 * beside[name]['test_accuracy']['std']:.2f} %"
        for name in ("gpuzoo", "torch")
    )
    apart = beside["points_of_accuracy_more"]
    lines = [
        f"On {JPEG} the recipe `cifar10` reaches {ours}, the same network and "
        f"training in PyTorch {theirs}: {apart['mean']:+.2f} points (95 % interval "
        f"{apart['low']:+.2f} to {apart['high']:+.2f}, n = "
        f"{beside['gpuzoo']['test_accuracy']['n']} each, {machine}, {beside['date']}, "
        "`benchmarks/speed/cifar_beside_torch.py`)."
    ]
    if to_75:
        short, stock = to_75["short"], to_75["stock_keras"]["train_seconds"]
        told = (
            f"{to_75['ratio']:.1f} times as long"
            if to_75["reached"]
            else "which not all of the runs reached"
        )
        runs = to_75["stock_keras"]["runs"]
        epochs = [row["seconds"] for run in runs for row in run["trail"]]
        at_best = stock["mean"] * min(epochs) / statistics.mean(epochs)
        lines.append(
            "In one epoch `cifar10_fast`, with more filters, reaches "
            f"{100 * short['test_accuracy']['mean']:.1f} % "
            f"(the worst of {short['test_accuracy']['n']} runs "
            f"{100 * short['test_accuracy']['min']:.1f} %) in "
            f"{short['train_seconds']['mean']:.0f} s; plain Keras `fit`, with the "
            f"small convnet of the Keras examples, needed {stock['mean']:.0f} s (n = "
            f"{stock['n']}) to {100 * to_75['goal']:.1f} %: {told} "
            f"({to_75['date']}, `benchmarks/speed/cifar_to_75.py`). Its epochs took "
            f"{min(epochs):.0f} to {max(epochs):.0f} s; if all had been as fast as the "
            f"fastest, {at_best / short['train_seconds']['mean']:.1f} times as long."
        )
    return " ".join(lines)


def times(peer: dict | None) -> str:
    """Return a cell; a peer may lack the network."""
    if peer is None:
        return "–"
    if over := peer.get("gpuzoo_over_it"):
        return f"{over['median']:.2f} ({over['low']:.2f} to {over['high']:.2f})"
    return "failed"


def ends(values: list) -> list:
    """Return the first and the last, once if they are equal."""
    return values[:: len(values) - 1 or 1]
