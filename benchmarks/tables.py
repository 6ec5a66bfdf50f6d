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
# Figure -> what it is told as: times what, digits after the point, unit.
UNITS = {
    "accuracy": (100, 2, " %"),
    "loss": (1, 2, " nats per image"),
    "error": (1, 4, " per pixel, squared"),
    "kl": (1, 2, " nats per image"),
}


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


def recipe_head(record: dict) -> str:
    """The head of a recipe from a record of benchmarks/recipe_figures.py."""
    lines = []
    for key, figure in record.items():
        if key.startswith("test_"):
            name = key.removeprefix("test_")
            scale, digits, unit = UNITS[name]
            value = f"{scale * figure['mean']:.{digits}f}"
            if figure["std"] is not None:
                value += f" ± {scale * figure['std']:.{digits}f}"
            lines.append(f"    {'test ' + name:<15}{value}{unit} (n = {figure['n']})")
    return "\n".join(
        [
            *lines,
            f"    training       {record['train_seconds']['mean']:.0f} s, "
            f"{record['process_seconds']['mean']:.0f} s for the whole process",
            f"    on             {record['threads']} threads of an "
            f"{record['environment']['cpu']} CPU, {record['date']}",
            "    measured by    benchmarks/recipe_figures.py",
        ]
    )


def recipe_heads() -> dict[pathlib.Path, str]:
    """Recipe -> its text with the head that its own record gives."""
    found = {}
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        name = record.get("recipe")
        if name == path.stem and not record["options"]:
            recipe = ROOT / "recipes" / f"train_{name}.py"
            command = f"    python recipes/{recipe.name}\n"
            closing = "\nThe figures are written here"
            found[recipe] = replace(recipe, command, closing, recipe_head(record))
    return found


def replace(path: pathlib.Path, opening: str, closing: str, text: str) -> str:
    """The file's text with what stands between two markers replaced."""
    pattern = re.compile(f"({re.escape(opening)}\n).*?(\n{re.escape(closing)})", re.S)
    old = path.read_text()
    if not pattern.search(old):
        sys.exit(f"{path.name} lacks {opening!r} ... {closing!r}")
    return pattern.sub(lambda found: found[1] + text + found[2], old)


def main() -> None:
    record = json.loads((RECORDS / "mnist_to_99.json").read_text())
    readme, recipe = ROOT / "README.md", ROOT / "recipes" / "train_mnist.py"
    wanted = {
        readme: replace(
            readme, "<!-- figures -->", "<!-- /figures -->", readme_table(record)
        ),
        recipe: replace(
            recipe,
            "    python recipes/train_mnist.py\n",
            "\nThe figures are written here",
            recipe_claim(record),
        ),
        **recipe_heads(),
    }
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    if "--check" in sys.argv and stale:
        sys.exit(f"not up to date: {', '.join(path.name for path in stale)}")
    for path in stale:
        path.write_text(wanted[path])


if __name__ == "__main__":
    main()
