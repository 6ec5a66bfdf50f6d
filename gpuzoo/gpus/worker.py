"""Child process of `gpuzoo compile`: one recipe, compiled for one card.

The compiler may end the process.
"""

import dataclasses
import importlib.metadata
import sys

from gpuzoo import workers
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import GpuzooError
from gpuzoo.gpus import predict
from gpuzoo.gpus.cards import Card
from gpuzoo.runtime.configure import configure
from gpuzoo.runtime.options import Options
from gpuzoo.training import failures
from gpuzoo.training.session import make_session


def _compile(request: dict):
    recipe, options = Recipe(**request["recipe"]), Options(**request["options"])
    card = Card(**request["card"])
    # The session is that of a CPU; what depends on the device is compiled for the card.
    runtime = configure(options, seed=recipe.seed, quiet=True)
    session = make_session(recipe, runtime, lambda text: print(text, file=sys.stderr))
    runtime = dataclasses.replace(
        runtime, device="gpu", device_name=card.name, threads=0
    )
    from gpuzoo.engine.backends.ahead import AheadBackend
    from gpuzoo.engine.program import Program
    from gpuzoo.runtime.keras_state import whole_tracebacks

    backend = AheadBackend(
        runtime, card.target(request["cudnn"]), card.capability, card.usable_bytes
    )
    try:
        with whole_tracebacks():
            Program(dataclasses.replace(session, runtime=runtime), backend)
    except GpuzooError:
        raise
    except Exception as error:
        which = ("training", "evaluation")[min(1, len(backend.compiled))]
        file = file_of(recipe.model)
        line = failures.in_model(error, recipe.model_name, file)
        line = line or f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise GpuzooError(f"the {which} step: {line}") from error
    programs = {
        name: predict.of_program(
            one.text, one.memory, one.flops, card, runtime.precision, options.level
        )
        for name, one in zip(("train", "evaluate"), backend.compiled, strict=True)
    }
    yield {
        "data": session.dataset.as_record(),
        "programs": programs,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "keras")
        },
    }


if __name__ == "__main__":
    workers.serve(_compile)
