"""Child process of `gpuzoo compile`: one recipe, compiled for one card after another,
and for so many of each.

It answers once per card. The compiler may end the process.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpuzoo import workers
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import GpuzooError
from gpuzoo.gpus import predict
from gpuzoo.gpus.cards import Card
from gpuzoo.runtime.configure import configure
from gpuzoo.runtime.options import Options, Runtime
from gpuzoo.training import failures
from gpuzoo.training.session import make_session

if TYPE_CHECKING:
    from gpuzoo.engine.program import Session


def _compile_all(request: dict) -> Iterator[dict]:
    options, recipe = Options(**request["options"]), Recipe(**request["recipe"])
    # The session is that of a CPU; what depends on the device is compiled for a card.
    runtime = configure(options, seed=recipe.seed, quiet=True)
    from gpuzoo.engine.plan import shards_of

    try:
        session = make_session(recipe, runtime, _note)
        for devices in {devices for _, devices in request["jobs"]}:
            steps = getattr(session.model, "critic_steps", 1)
            shards_of(recipe, _on(runtime, devices), steps)
    except GpuzooError as error:  # nothing that a card is to blame for
        yield {"error": str(error), "exit_code": error.exit_code}
        return
    for name, devices in request["jobs"]:
        card = Card(**request["cards"][name])
        try:
            with _kept(request["kernels"], name) as kernels:
                answer = _compile(session, card, devices, request["cudnn"], kernels)
            yield answer
        except Exception as error:  # of XLA or of the user's model, too
            yield {"error": workers.one_line(error)}


@contextlib.contextmanager
def _kept(folder: str, card: str) -> Iterator[str]:
    """Return the file for the kernels of a card, of this process alone; it is kept if
    the block ends well, as the compiler may write a part of it and end."""
    name = hashlib.sha256(card.encode()).hexdigest()
    kept, busy = pathlib.Path(folder, name), pathlib.Path(folder, f"{name}.busy")
    busy.unlink(missing_ok=True)
    if kept.exists():
        kept.rename(busy)
    yield str(busy)
    if busy.exists():
        busy.rename(kept)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _on(runtime: Runtime, devices: int) -> Runtime:
    return dataclasses.replace(runtime, device="gpu", threads=0, devices=devices)


def _compile(
    session: "Session", card: Card, devices: int, cudnn: str, kernels: str
) -> dict:
    runtime = _on(session.runtime, devices)
    runtime = dataclasses.replace(runtime, device_name=card.name)
    from gpuzoo.engine.backends.ahead import AheadBackend
    from gpuzoo.engine.program import Program
    from gpuzoo.runtime.keras_state import whole_tracebacks

    backend = AheadBackend(
        runtime, card.target(cudnn), card.capability, card.usable_bytes, kernels
    )
    try:
        with whole_tracebacks():
            Program(dataclasses.replace(session, runtime=runtime), backend)
    except GpuzooError:
        raise
    except Exception as error:
        if "ptxas too old" in str(error):  # also said of cards that are too old for it
            raise GpuzooError(
                "NVIDIA's compiler in the installed packages does not compile for "
                f"compute capability {card.compute_capability}"
            ) from error
        which = ("training", "evaluation")[min(1, len(backend.compiled))]
        made = session.recipe
        line = failures.in_model(error, made.model_name, file_of(made.model))
        line = line or workers.one_line(error)
        raise GpuzooError(f"the {which} step: {line}") from error
    programs = {
        name: predict.of_step(one, card, runtime.precision, runtime.level)
        for name, one in zip(("train", "evaluate"), backend.compiled, strict=True)
    }
    return {
        "data": session.dataset.as_record(),
        "programs": programs,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "keras")
        },
    }


if __name__ == "__main__":
    workers.serve(_compile_all)
