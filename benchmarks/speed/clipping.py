"""Measure whether recurrent networks, a GAN and a vision transformer gain by clipping.

    python benchmarks/speed/clipping.py --data-dir DIR  # a prepared TFDS folder
    python benchmarks/speed/clipping.py --data-dir DIR --cases lstm gru --seeds 5

Trains each recipe without clipping, with clip_norm at --norms and with clip_value at
--values, --seeds seeds each, none of which is reported anywhere, and compares a figure
of the training examples that are held out for validation: most cases are shorter than
the recipe, or of less data. Compared is the median of the differences within one seed.
Nothing is timed, so that other work may share the machine.

Writes benchmarks/records/clipping.json after each recipe, beside the recipes that it
has already.
"""

import argparse
import json
import pathlib
import tempfile
import time

RECORD = pathlib.Path(__file__).resolve().parent.parent / "records" / "clipping.json"
# Name -> recipe, its settings, and the figure that is compared.
CASES = {
    "lstm": ("mnist_lstm", {"epochs": 2, "validation": 0.1}, "accuracy"),
    "lstm_whole": ("mnist_lstm", {"validation": 0.1}, "accuracy"),
    "gru": ("mnist_gru", {"epochs": 2, "validation": 0.1}, "accuracy"),
    "lstm_forecaster": ("forecast", {"epochs": 10, "validation": 0.1}, "loss"),
    "gan": ("mnist_gan", {"epochs": 1, "validation": 0.6}, "frechet"),
    "gan_whole": ("mnist_gan", {"validation": 0.1}, "frechet"),
    "vit_tiny": ("mnist", {
        "data": "digits", "model": "vit_tiny", "model_options": ("depth=3",),
        "epochs": 10, "eval_every": 10, "batch_size": 64, "learning_rate": 0.001,
        "validation": 0.3,
    }, "accuracy"),
}  # fmt: skip
COMPUTED = ("digits", "mackey_glass")  # need no folder


def figure(recipe: str, settings: dict, name: str) -> float:
    """Train once; return the figure of the last evaluation on validation data."""
    import gpuzoo

    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        gpuzoo.train(recipe, out=str(out), quiet=True, **settings)
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return [row[name] for row in rows if row["split"] == "val"][-1]


def measure(case: str, args: argparse.Namespace) -> dict:
    import gpuzoo
    from gpuzoo.bench.turns import spread

    recipe, settings, name = CASES[case]
    data = settings.get("data", gpuzoo.load_recipe(recipe).data)
    place = {} if data in COMPUTED else {"data_dir": args.data_dir}
    clips = [{}, *({"clip_norm": norm} for norm in args.norms)]
    clips += [{"clip_value": value} for value in args.values]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    values: dict[str, list[float]] = {}
    for clip in clips:
        key = " ".join(f"{k} {v:g}" for k, v in clip.items()) or "off"
        values[key] = [
            figure(recipe, {**settings, **clip, **place, "seed": seed}, name)
            for seed in seeds
        ]
        print(case, key, name, values[key], flush=True)
    off, *others = values
    return {
        "recipe": recipe,
        "settings": settings,
        "seeds": list(seeds),
        "figure": f"val {name}",
        "date": time.strftime("%Y-%m-%d"),
        "values": values,
        "difference": {
            clip: spread([
                b - a for a, b in zip(values[off], values[clip], strict=True)
            ])
            for clip in others
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--norms", type=float, nargs="*", default=[1.0])
    parser.add_argument("--values", type=float, nargs="*", default=[0.01])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()

    from gpuzoo.files import write_atomically
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    record = {"what": "clip_norm and clip_value against none", "cases": {}}
    if RECORD.exists():
        record = json.loads(RECORD.read_text())
    record |= {
        "command": "python benchmarks/speed/clipping.py --data-dir DIR",
        "environment": environment(),
    }
    for case in args.cases:
        record["cases"][case] = {**measure(case, args), "code_sha256": code_sha256()}
        write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
