"""Write the measured figures into README.md and the heads of the recipes.

python benchmarks/tables.py           # rewrite them from benchmarks/records/
python benchmarks/tables.py --check   # exit 1 if they are not up to date
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"


def percent(figure: dict) -> str:
    return f"{100 * figure['mean']:.2f} ± {100 * figure['std']:.2f} %"


def machine(record: dict) -> str:
    threads = record["threads"]
    versions = record["environment"]["versions"]
    return (
        f"{threads} threads of an {record['environment']['cpu']} CPU, "
        f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}"
    )


def readme_table(record: dict) -> str:
    stock, ratio = record["stock_keras"], record["ratio"]
    lines = [
        "| command | model, data | test accuracy | training | whole process |",
        "|---|---|---|---|---|",
    ]
    for key, options in (("train_mnist", []), ("longer", record["longer"]["options"])):
        rows = record[key]
        command = " ".join(["python recipes/train_mnist.py", *options])
        lines.append(
            f"| `{command}` | cnn, MNIST | {percent(rows['test_accuracy'])} | "
            f"{rows['train_seconds']['mean']:.1f} s | "
            f"{rows['process_seconds']['mean']:.1f} s |"
        )
    to_99 = stock["train_seconds_to_99"]
    lines += [
        "",
        f"Mean ± standard deviation over {record['train_mnist']['test_accuracy']['n']} "
        f"seeds, {machine(record)}, {record['date']}. Training leaves out tracing and "
        f"compiling ({record['train_mnist']['compile_seconds']['mean']:.1f} s). Plain "
        "Keras `fit` on the same cores, with the well-known simple convnet, needed "
        f"{to_99['mean']:.0f} s (n = {to_99['n']}, {to_99['min']:.0f} to "
        f"{to_99['max']:.0f} s) to reach 99.0 % for the first time: "
        f"{ratio['training']:.0f} times as long, {ratio['training_and_compiling']:.0f} "
        "times with compiling counted. Measured by `benchmarks/mnist_to_99.py`.",
    ]
    return "\n".join(lines)


def recipe_claim(record: dict) -> str:
    mine = record["train_mnist"]
    return "\n".join(
        [
            f"    test accuracy  {percent(mine['test_accuracy'])} "
            f"(n = {mine['test_accuracy']['n']})",
            f"    training       {mine['train_seconds']['mean']:.1f} s, "
            f"{mine['process_seconds']['mean']:.1f} s for the whole process",
            f"    on             {record['threads']} threads of an "
            f"{record['environment']['cpu']} CPU, {record['date']}",
            "    measured by    benchmarks/mnist_to_99.py",
        ]
    )


def ratio(figure: dict) -> str:
    low, high = figure["quartiles"]
    return f"{figure['median']:.2f} ({low:.2f} to {high:.2f})"


def price_text(price: dict, drift: dict, chaos: dict) -> str:
    """What repeatability costs, how it was tried, and where it ends."""
    costs, trail = price["seconds_with_over_without"], price["trail"]
    lines = [
        "| seconds of training, with / without | median (quartiles) |",
        "|---|---|",
        *(f"| {what} | {ratio(figure)} |" for what, figure in costs.items()),
        *(
            f"| {what} every 100 steps, {trail['precision']} | {ratio(figure)} |"
            for what, figure in trail["seconds_with_over_without"].items()
        ),
    ]
    apart = drift["tensorflow against jax"]
    seeds = drift["one seed against another"]
    losses = apart["relative_loss_difference"]
    total = chaos["total"]
    lines += [
        "",
        f"Recipe `mnist`, n = {price['rounds']} rounds in which the modes took turns, "
        f"{machine(price)}, {price['date']} (`benchmarks/price.py`).",
        "",
        f"Killed {total['kills']} times at random instants and inside of writes, "
        f"flushes and renames, in {len(chaos['modes'])} combinations of backend, "
        f"precision and XLA, {total['runs']} runs ended with {total['different']} "
        f"other bits; {total['lost']} were lost (`benchmarks/chaos.py`).",
        "",
        "With one seed, TensorFlow and JAX start from the same weights and see the "
        "same examples, but their arithmetic differs in the last bits. In float32 the "
        f"losses of recipe `mnist` part at step {apart['first_step_with_other_bits']} "
        f"and are {losses['20']:.0e} apart (relative) at step 20, "
        f"{losses['100']:.0e} at step 100, {losses['468']:.0e} at step 468, and the "
        f"weights at the end {apart['weights_relative_distance']:.0%} (two seeds: "
        f"{seeds['weights_relative_distance']:.0%}); test accuracy "
        f"{apart['test_accuracy'][0]:.2%} and {apart['test_accuracy'][1]:.2%} "
        "(`benchmarks/drift.py`).",
    ]
    return "\n".join(lines)


def replace(old: str, opening: str, closing: str, text: str) -> str:
    """A text with what stands between two markers replaced."""
    pattern = re.compile(f"({re.escape(opening)}\n).*?(\n{re.escape(closing)})", re.S)
    if not pattern.search(old):
        sys.exit(f"{opening!r} ... {closing!r} is missing")
    return pattern.sub(lambda found: found[1] + text + found[2], old)


def main() -> None:
    record = json.loads((RECORDS / "mnist_to_99.json").read_text())
    readme, recipe = ROOT / "README.md", ROOT / "recipes" / "train_mnist.py"
    parts = [
        json.loads((RECORDS / f"{name}.json").read_text())
        for name in ("price", "drift", "chaos")
    ]
    text = replace(
        readme.read_text(),
        "<!-- figures -->",
        "<!-- /figures -->",
        readme_table(record),
    )
    wanted = {
        readme: replace(text, "<!-- price -->", "<!-- /price -->", price_text(*parts)),
        recipe: replace(
            recipe.read_text(),
            "    python recipes/train_mnist.py\n",
            "\nThe figures are written here",
            recipe_claim(record),
        ),
    }
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    if "--check" in sys.argv and stale:
        sys.exit(f"not up to date: {', '.join(path.name for path in stale)}")
    for path in stale:
        path.write_text(wanted[path])


if __name__ == "__main__":
    main()
