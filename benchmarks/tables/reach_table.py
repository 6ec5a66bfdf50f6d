"""The section on repeatability of docs/results.md, from the records of price.py,
repeatable.py, drift.py and chaos.py; `machine` describes the machine of a record."""


def ratio(figure: dict) -> str:
    low, high = figure["interval"]
    return f"{figure['median']:.3f} ({low:.3f} to {high:.3f})"


def price_rows(price: dict, machine) -> list[str]:
    costs, trail = price["seconds_with_over_without"], price["trail"]
    return [
        "| seconds of training, with / without | median (its 95 % interval) |",
        "|---|---|",
        *(f"| {what} | {ratio(figure)} |" for what, figure in costs.items()),
        "",
        "Of the seconds of training, "
        + " and ".join(
            f"a {what} every 100 steps takes {figure['median']:.1%}"
            for what, figure in trail["part_of_training"].items()
        )
        + f" ({trail['precision']}, {trail['parameters']:,} weights).",
        "",
        f"Recipe `mnist`, {price['generations'] * price['turns']} rounds in which the "
        f"modes alternated every second or so, {price['generations']} processes each, "
        f"{machine(price)}, {price['date']} (`benchmarks/repeatability/price.py`).",
        "",
    ]


def repeated_text(record: dict, where: str) -> str:
    """Return how many models gave equal bits in how many modes, and which did not."""
    modes = record["modes"]
    models = {name for results in modes.values() for name in results}
    verdicts: dict[str, list[str]] = {}
    for mode, results in modes.items():
        for name, result in results.items():
            verdicts.setdefault(result["verdict"], []).append(f"{name} ({mode})")
    told = [
        f"{verdict}: {', '.join(cases)}"
        for verdict, cases in sorted(verdicts.items())
        if verdict != "equal"
    ]
    which = f"{len(models)} models"
    if len(models) < 20:
        which += f" ({', '.join(sorted(models))})"
    equal, cases = len(verdicts.get("equal", [])), sum(map(len, verdicts.values()))
    narrowed = ", large models narrowed" * record["small"]
    return (
        f"Trained twice in fresh processes, {record['steps']} steps of "
        f"{record['batch']} examples on each of {len(modes)} combinations of backend, "
        f"precision and XLA, {which} gave equal bits in {equal} of {cases} cases"
        + (f"; {'; '.join(told)}" if told else "")
        + f" ({where}{narrowed}, {record['date']}, "
        "`benchmarks/repeatability/repeatable.py`)."
    )


def reach_text(
    price: dict | None, repeated: list[dict], drift: dict, chaos: dict, machine
) -> str:
    """Return the cost of repeatability, how it was tested, and its limits."""
    lines = price_rows(price, machine) if price else []
    for record in repeated:
        lines += [repeated_text(record, machine(record)), ""]
    apart = drift["tensorflow against jax"]
    seeds = drift["one seed against another"]
    losses = apart["relative_loss_difference"]
    total = chaos["total"]
    lines += [
        f"Of {total['runs']} runs that were killed {total['kills']} times, at random "
        "moments and in the middle of writes, flushes and renames, in "
        f"{len(chaos['modes'])} combinations of task, backend, precision and XLA, "
        f"{total['different']} ended with other bits and {total['lost']} were lost "
        "(`benchmarks/repeatability/chaos.py`).",
        "",
        "With one seed, TensorFlow and JAX start from the same weights and see the "
        "same examples, but their arithmetic differs in the last bits. In float32 the "
        "losses of recipe `mnist` first differ at step "
        f"{apart['first_step_with_other_bits']} and are {losses['20']:.0e} apart "
        "(relative) at step 20, "
        f"{losses['100']:.0e} at step 100, {losses['468']:.0e} at step 468, and the "
        f"final weights by {apart['weights_relative_distance']:.0%} (two seeds: "
        f"{seeds['weights_relative_distance']:.0%}); test accuracy "
        f"{apart['test_accuracy'][0]:.2%} and {apart['test_accuracy'][1]:.2%} "
        "(`benchmarks/repeatability/drift.py`).",
    ]
    return "\n".join(lines)
