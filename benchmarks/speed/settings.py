"""Choose a setting of each recipe on validation data, and test it on other seeds.

    python benchmarks/speed/settings.py --data-dir DIR  # a prepared TFDS folder
    python benchmarks/speed/settings.py --data-dir DIR --recipes mnist_mlp cifar10_fast

The setting that a recipe depends on most, nearly always the learning rate, is compared
with two others on training examples that are held out (a tenth), with seeds that are
reported nowhere. The recipe's own value stays unless another is better with every seed.
What is chosen is then trained on all training examples and tested, with seeds that
nothing was chosen by. Nothing is timed, so that other work may share the machine.

Writes benchmarks/records/settings.json after each recipe, beside those that it has.
Exit code 1 if a value that is not the recipe's was chosen.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

from recipe_figures import run_json, write

NAME = "settings"
RECORD = pathlib.Path(__file__).resolve().parent.parent / "records" / f"{NAME}.json"
# Recipe -> field, values (the recipe's in the middle), and the figure that decides.
CASES = {
    "cifar10": ("learning_rate", (0.2, 0.3, 0.45), "accuracy"),
    "cifar10_fast": ("learning_rate", (0.027, 0.04, 0.06), "accuracy"),
    "cifar10_resnet": ("learning_rate", (0.13, 0.2, 0.3), "accuracy"),
    "digit_detection": ("learning_rate", (0.002, 0.003, 0.0045), "map50"),
    "distill_mnist": ("temperature", (2.0, 4.0, 8.0), "accuracy"),
    "forecast": ("learning_rate", (0.0025, 0.005, 0.01), "loss"),
    "mnist": ("learning_rate", (0.005, 0.01, 0.02), "accuracy"),
    "mnist_autoencoder": ("learning_rate", (0.0015, 0.003, 0.006), "error"),
    "mnist_best": ("learning_rate", (0.0055, 0.008, 0.012), "accuracy"),
    "mnist_gan": ("learning_rate", (0.002, 0.003, 0.0045), "frechet"),
    "mnist_gru": ("learning_rate", (0.002, 0.004, 0.008), "accuracy"),
    "mnist_lenet5": ("learning_rate", (0.005, 0.01, 0.02), "accuracy"),
    "mnist_lstm": ("learning_rate", (0.002, 0.004, 0.008), "accuracy"),
    "mnist_mlp": ("learning_rate", (0.0015, 0.003, 0.006), "accuracy"),
    "mnist_vae": ("learning_rate", (0.0015, 0.003, 0.006), "frechet"),
    "mnist_wgan": ("learning_rate", (0.0007, 0.001, 0.0015), "frechet"),
    "moving_mnist": ("learning_rate", (0.0015, 0.003, 0.006), "error"),
    "tones": ("learning_rate", (0.002, 0.004, 0.008), "accuracy"),
}
HIGHER = ("accuracy", "map50")
COMPUTED = ("forecast", "tones")  # need no folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--recipes", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--test-seeds", type=int, default=5)
    parser.add_argument("--first-test-seed", type=int, default=20)
    return parser.parse_args()


def trained(verb: str, recipe: str, *words: str) -> dict:
    """Run `gpuzoo sweep` or `gpuzoo train`; return what it prints for scripts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gpuzoo", verb, recipe, "--quiet", *words]
        return run_json([*command, "--out", f"{folder}/runs"])


def by_seed(found: dict, figure: str) -> dict[int, float]:
    if failed := [one["error"] for one in found["trials"] if one["error"]]:
        sys.exit(failed[0])
    return {one["seed"]: one["metrics"][figure] for one in found["trials"]}


def choose(values: dict, ours, higher: bool):
    """Return the best value by its mean, ours unless each seed prefers that."""
    sign = 1 if higher else -1
    best = max(values, key=lambda one: sign * statistics.mean(values[one]))
    pairs = zip(values[best], values[ours], strict=True)
    return best if all(sign * (a - b) > 0 for a, b in pairs) else ours


def measure(recipe: str, args: argparse.Namespace) -> dict:
    import gpuzoo

    field, candidates, figure = CASES[recipe]
    place = () if recipe in COMPUTED else ("--data-dir", args.data_dir)
    ours = getattr(gpuzoo.load_recipe(recipe), field)
    if ours not in candidates:
        sys.exit(f"{recipe}: {field} is {ours}, which is not compared: {candidates}")
    values = {}
    for value in candidates:
        found = trained(
            "sweep", recipe, *place, "--validation", "0.1", "--seeds", str(args.seeds),
            "--seed", str(args.first_seed), "--grid", f"{field}={value}",
        )  # fmt: skip
        values[value] = list(by_seed(found, f"val_{figure}").values())
        print(recipe, field, value, values[value], flush=True)
    chosen = choose(values, ours, figure in HIGHER)
    option = () if chosen == ours else (f"--{field.replace('_', '-')}", str(chosen))
    found = trained(
        "train", recipe, *place, *option, "--seeds", str(args.test_seeds),
        "--seed", str(args.first_test_seed),
    )  # fmt: skip
    tests = by_seed(found, f"test_{figure}")
    print(recipe, "chosen", chosen, "test", tests, flush=True)
    return {
        "field": field, "figure": figure, "recipe": ours, "chosen": chosen,
        "seeds": [*range(args.first_seed, args.first_seed + args.seeds)],
        "validation": {str(value): figures for value, figures in values.items()},
        "test_seeds": [*tests], "test": [*tests.values()],
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main() -> None:
    args = parse()

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    record = {"what": "settings compared on validation data", "recipes": {}}
    if RECORD.exists():
        record = json.loads(RECORD.read_text())
    record |= {
        "command": "python benchmarks/speed/settings.py --data-dir DIR",
        "environment": environment(),
    }
    for recipe in args.recipes:
        found = measure(recipe, args)
        record["recipes"][recipe] = {**found, "code_sha256": code_sha256()}
        write(NAME, record)
    rows = (record["recipes"][recipe] for recipe in args.recipes)
    sys.exit(any(row["chosen"] != row["recipe"] for row in rows))


if __name__ == "__main__":
    main()
