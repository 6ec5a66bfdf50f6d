"""A training of recipe `mnist` that goes on for one turn whenever it is told to.

    python benchmarks/in_turns.py --data part.npz --steps 25 --precision float32

For price.py, which lets several of these take turns. It prints the seconds of training
that a turn of `--steps` steps has taken and waits for a line: `go`, or anything else to
end, upon which it prints the digest of its weights.
"""

import argparse
import sys

NEVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, required=True)
    args, rest = parser.parse_known_args()

    import gpuzoo
    from gpuzoo import autotune
    from gpuzoo.recipe import load_recipe

    keys = [word.removeprefix("--") for word in rest[::2]]
    options = gpuzoo.runtime.Options(**dict(zip(keys, rest[1::2], strict=True)))
    recipe = load_recipe("mnist").override(
        data=args.data, epochs=10_000, log_every=args.steps, eval_every=NEVER,
        digest_every=NEVER, checkpoint_every=0,
    )  # fmt: skip
    autotune.tune(recipe, options, lambda text: print(text, file=sys.stderr))
    runtime = gpuzoo.configure(options, seed=recipe.seed, quiet=True)

    from gpuzoo.digests import digest_all
    from gpuzoo.engine import loop

    seconds = [0.0]

    def watch(event: str, row: dict) -> None:
        if event == "progress":
            seconds.append(row["seconds"])

    def stop() -> bool:
        print(seconds[-1] - seconds[-2], flush=True)
        return sys.stdin.readline() != "go\n"

    data = gpuzoo.load_data(args.data)
    result = loop.run(recipe, data, runtime, watch=watch, stop=stop)
    print(digest_all(result.weights), flush=True)


if __name__ == "__main__":
    main()
