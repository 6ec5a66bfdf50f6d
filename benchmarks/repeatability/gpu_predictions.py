"""Ask a real GPU whether the predictions of `gpuzoo compile` hold for it.

    python benchmarks/repeatability/gpu_predictions.py --data mnist.npz
    python benchmarks/repeatability/gpu_predictions.py --card mine.json

For each recipe: `gpuzoo compile` predicts the training step for the card, in a process
that sees a CPU only. Another process compiles the same step on the GPU, trains some
steps and reports what the prediction was about: the digest of the optimized program,
its kernels and library calls, the memory, the seconds of a step against the least time.

Writes benchmarks/records/gpu_predictions.json (--out) after each recipe. Exit code 1 if
a program differs from the predicted one, or took less than its least time or more than
FACTOR times that.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
# A bound is no estimate: how far above it a step may be before it explains nothing.
FACTOR = 10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", metavar="NAME",
                        default=("mnist", "mnist_lstm", "mnist_gan"))  # fmt: skip
    parser.add_argument("--data", default="digits")
    parser.add_argument("--card", default="h200", help="the GPU that is here")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu",
                        help="cpu: try the script, without a GPU")  # fmt: skip
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "records" / "gpu_predictions.json"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- on the GPU, in a process of its own ----------------------------------------------


def observe(job: dict) -> dict:
    """Compile the steps of a recipe on the device and train; return what was found."""
    import gpuzoo
    from gpuzoo.gpus import cards, predict
    from gpuzoo.runtime.options import Options
    from gpuzoo.training.session import open_session

    recipe = gpuzoo.load_recipe(job["recipe"]).override(data=job["data"])
    options = Options(backend="jax", device=job["device"], precision=job["precision"])
    session = open_session(recipe, options, lambda text: print(text, file=sys.stderr))
    from gpuzoo.engine.program import Program

    backend = watching(session.runtime)
    program = Program(session, backend)
    one = backend.made[0]
    found = predict.of_program(
        one.as_text(), sizes(one.memory_analysis()), 0.0, cards.load(job["card"]),
        session.runtime.precision, "repeatable",
    )  # fmt: skip
    return {
        "device": session.runtime.device_name,
        "program_sha256": found["program_sha256"],
        "kernels_by_kind": found["kernels_by_kind"],
        "memory_bytes": predict.memory_of({"train": found}),
        "peak_bytes": backend.peak_device_bytes(),
        "step_seconds": seconds_of_a_step(program, job["steps"]),
    }


def watching(runtime):
    """Return a backend that keeps the programs that it has compiled, in `made`."""
    from gpuzoo.engine.backends.jax import JaxBackend

    class Watching(JaxBackend):
        def __init__(self, runtime):
            super().__init__(runtime)
            self.made = []

        def program(self, body, feed, variables):
            program, step, most = super().program(body, feed, variables)
            made = []

            def call(*given):
                if not made:
                    made.append(program.lower(*given).compile())
                    self.made.append(made[0])
                return made[0](*given)

            return call, step, most

    return Watching(runtime)


def sizes(stats) -> dict[str, int]:
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    return {kind: getattr(stats, f"{kind}_size_in_bytes") for kind in kinds}


def seconds_of_a_step(program, steps: int) -> float:
    """Return the seconds of a step, after as many steps that were not timed."""
    from gpuzoo.engine.plan import segments

    most = min(steps, program.plan.steps_per_epoch, program.most_steps or steps)
    recipe = program.session.recipe.override(
        log_every=most, digest_every=most, checkpoint_every=0
    )
    parts = segments(program.plan, recipe, 0, most=program.most_steps)
    done = counted = 0
    before = None
    for first, last, _ in program.train_parts(parts):
        done += last - first
        if before is None:  # the first part warms up
            before, counted = program.clock.seconds["train"], done
        elif done - counted >= steps:
            break
    if done == counted:
        sys.exit("the recipe is too short: it has one segment; give more --data")
    return (program.clock.seconds["train"] - before) / (done - counted)


# --- predicted beside observed --------------------------------------------------------


def beside(recipe: str, args) -> dict:
    """Return the prediction for a recipe and what the GPU says to it."""
    import gpuzoo
    from gpuzoo.gpus.compile import compile_for

    given = gpuzoo.load_recipe(recipe).override(data=args.data)
    (row,) = compile_for(given, [args.card])["rows"]
    if row["error"]:
        return {"error": row["error"]}
    step = row["programs"]["train"]
    job = {
        "recipe": recipe, "data": args.data, "device": args.device,
        "precision": row["precision"], "card": args.card, "steps": args.steps,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"error": f"the training ended with code {done.returncode}"}
    seen = json.loads(done.stdout.splitlines()[-1])
    factor = seen["step_seconds"] / step["least_seconds"]
    same = seen["program_sha256"] == step["program_sha256"]
    kept = ("program_sha256", "kernels_by_kind", "least_seconds", "bound_by")
    return {
        "error": None,
        "precision": row["precision"],
        "predicted": {name: step[name] for name in kept}
        | {"memory_bytes": row["memory_bytes"]},
        "observed": seen,
        "same_program": same,
        "same_calls": calls(step) == calls(seen),
        "times_the_bound": factor,
        "holds": same and 1 <= factor <= FACTOR,
    }


def calls(found: dict) -> dict[str, int]:
    kinds = found["kernels_by_kind"]
    return {kind: n for kind, n in kinds.items() if kind.startswith("__")}


def main() -> None:
    args = parse()
    if args.worker:
        return print(json.dumps(observe(json.loads(args.worker))))

    from gpuzoo.files import write_atomically
    from gpuzoo.runtime.environment import environment

    record = {
        "what": "predictions of gpuzoo compile beside what the GPU did",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "card": args.card,
        "device": args.device,
        "recipes": {},
    }
    for recipe in args.recipes:
        row = record["recipes"][recipe] = beside(recipe, args)
        record["device"] = row.get("observed", record)["device"]
        write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
    rows = record["recipes"].values()
    sys.exit(not all(not row["error"] and row["holds"] for row in rows))


if __name__ == "__main__":
    main()
