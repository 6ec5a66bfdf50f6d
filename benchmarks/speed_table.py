"""The table of README.md beside the peers, of the record of speed.py."""


def speed_text(record: dict, machine: str) -> str:
    """How many times as fast as its peers gpuzoo trains."""
    # Rows may be of different days; an older record tells these once for all rows.
    rows = {work: {**record, **row} for work, row in record["work"].items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row["peers"]))
    names.remove("gpuzoo")
    lines = [
        "| network, batch | gpuzoo, images a second | "
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
            "How many times as fast gpuzoo, repeatable to the bit, does steps of "
            f"training on MNIST; {' to '.join(map(str, ends(told('rounds'))))} rounds "
            "in which all took turns of about a second, medians and their 95 % "
            f"intervals; {', '.join([machine, *versions])}, {' to '.join(ends(days))} "
            "(`benchmarks/speed.py`).",
        ]
    )


def times(peer: dict | None) -> str:
    """A cell; a peer may have no such network."""
    if peer is None:
        return "–"
    if over := peer.get("gpuzoo_over_it"):
        return f"{over['median']:.2f} ({over['low']:.2f} to {over['high']:.2f})"
    return "failed"


def ends(values: list) -> list:
    """The first and the last, once if they are the same."""
    return values[:: len(values) - 1 or 1]
