"""Child process of `gpuzoo compile`: one recipe, compiled for one card.

    python -m gpuzoo.gpus.worker

It reads one JSON line and answers with one. The compiler may end the process.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.gpus import predict
from gpuzoo.gpus.cards import Card
from gpuzoo.runtime.configure import configure
from gpuzoo.runtime.options import Options
from gpuzoo.training.session import make_session


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    try:
        answer = _compile(
            Recipe(**request["recipe"]), Options(**request["options"]),
            Card(**request["card"]), request["cudnn"],
        )  # fmt: skip
    except GpuzooError as error:
        answer = {"error": str(error)}
    except Exception as error:  # of XLA, or of the user's model
        lines = [line for line in str(error).splitlines() if line.strip()]
        answer = {"error": f"{type(error).__name__}: {' '.join(lines[:2])[:400]}"}
    print(json.dumps(answer), file=answers, flush=True)


def _compile(recipe: Recipe, options: Options, card: Card, cudnn: str) -> dict:
    # The session is that of a CPU; what depends on the device is compiled for the card.
    runtime = configure(options, seed=recipe.seed, quiet=True)
    session = make_session(recipe, runtime, lambda text: print(text, file=sys.stderr))
    runtime = dataclasses.replace(
        runtime, device="gpu", device_name=card.name, threads=0
    )
    from gpuzoo.engine.backends.ahead import AheadBackend
    from gpuzoo.engine.program import Program

    backend = AheadBackend(
        runtime, card.target(cudnn), card.capability, card.usable_bytes
    )
    try:
        Program(dataclasses.replace(session, runtime=runtime), backend)
    except GpuzooError:
        raise
    except Exception as error:
        which = ("training", "evaluation")[min(1, len(backend.compiled))]
        line = " ".join(str(error).split())[:400]
        return {"error": f"the {which} step: {type(error).__name__}: {line}"}
    programs = {
        name: predict.of_program(
            one.text, one.memory, one.flops, card, runtime.precision, options.level
        )
        for name, one in zip(("train", "evaluate"), backend.compiled, strict=True)
    }
    return {
        "error": None,
        "data": session.dataset.as_record(),
        "programs": programs,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "keras")
        },
    }


if __name__ == "__main__":
    main()
