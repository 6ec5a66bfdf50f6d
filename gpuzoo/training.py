"""One training from end to end: set up, train, record, draw."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import threading
import time
from typing import NoReturn

from gpuzoo import runtime as runtimes
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.recipe import Recipe, load_recipe
from gpuzoo.registry import model_info, nearest


def train(
    recipe: Recipe | str,
    *,
    out: str | None = None,
    options: runtimes.Options | None = None,
    fast_dev_run: bool = False,
    quiet: bool = False,
    **changes,
) -> dict:
    """Train a recipe into a run folder of its own.

    Args:
        recipe: a Recipe, or the name of one (`gpuzoo.list_recipes()`).
        out: the run folder; default: the next free runs/<recipe>-<number>.
        options: what is asked of the machine; its fields may also be named.
        fast_dev_run: two steps of everything, to see whether all of it works.
        quiet: print nothing.
        **changes: other values for fields of the recipe or of the options, for example
            `epochs=3, precision="float32"`.

    Returns:
        The summary that the command line prints as its last line.

    Raises:
        GpuzooError: what is wrong and the remedy; nothing half-written is left.
        Diverged: the loss is not finite; the last good weights are in the run folder.
    """
    begun = time.perf_counter()
    recipe, options = _resolve(recipe, options, changes)
    model_info(recipe.model)

    from gpuzoo.evidence.progress import Screen
    from gpuzoo.evidence.record import RunFolder

    folder = RunFolder.create(out, recipe.name)
    screen = Screen(quiet)
    try:
        folder.start(
            recipe=_redacted(recipe.as_record()),
            options=dataclasses.asdict(options),
            fast_dev_run=fast_dev_run,
        )
        runtime, dataset = _set_up(recipe, options, folder, screen, fast_dev_run)
    except BaseException as error:
        folder.discard()
        _raise_readably(folder, error)
    with _interrupts() as interrupted:
        try:
            result = _run(recipe, dataset, runtime, folder, screen, interrupted,
                          fast_dev_run)  # fmt: skip
            return _finish(recipe, dataset, runtime, folder, screen, result, begun)
        except BaseException as error:
            screen.stop()
            _record_failure(folder, error)
            _raise_readably(folder, error)


def _resolve(recipe, options, changes):
    """The recipe and the options, with the changes in the one or the other."""
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    options = options or runtimes.Options()
    runtime_fields = {field.name for field in dataclasses.fields(options)}
    recipe_fields = {field.name for field in dataclasses.fields(recipe)}
    for key in changes:
        if key not in runtime_fields | recipe_fields:
            known = runtime_fields | recipe_fields
            raise GpuzooError(f"train() has no {key!r}; {nearest(key, known)}")
    asked = {k: v for k, v in changes.items() if k in runtime_fields}
    rest = {k: v for k, v in changes.items() if k not in runtime_fields}
    return recipe.override(**rest), dataclasses.replace(options, **asked)


def _set_up(recipe, options, folder, screen, fast):
    """What has to be there before training: the runtime, the data, room on the disk."""
    runtime = runtimes.configure(options, seed=recipe.seed)

    from gpuzoo.data.sources import load_data
    from gpuzoo.engine.loop import build_model, check_recipe, make_plan

    check_recipe(recipe)
    dataset = load_data(
        recipe.data,
        data_dir=recipe.data_dir,
        fallback=recipe.fallback,
        image_size=recipe.image_size,
        note=lambda text: screen.say(text, "yellow"),
    )
    make_plan(recipe, len(dataset.train["label"]), 0, fast)
    weights_bytes = 4 * build_model(recipe, dataset).count_params()
    # Weights, record, trail and pictures, and as much again to write them beside.
    needed, free = 2 * weights_bytes + 4_000_000, shutil.disk_usage(folder.path).free
    if free < needed:
        raise GpuzooError(
            f"output folder {folder.path}: {free / 1e6:.1f} MB free, about "
            f"{needed / 1e6:.1f} MB needed; free some or name another with --out"
        )
    folder.update(data=dataset.as_record(), runtime=runtime.as_record())
    screen.say(
        f"{runtime.line()} · data {dataset.name} ({dataset.source}; "
        f"{len(dataset.train['label']):,} to train, {len(dataset.test['label']):,} to "
        "test)",
        "bold",
    )
    for finding in dataset.findings:
        screen.say(f"Note: {finding}.", "yellow")
    return runtime, dataset


def _run(recipe, dataset, runtime, folder, screen, interrupted, fast):
    from gpuzoo.engine import loop

    def watch(event: str, row: dict) -> None:
        folder.watch(event, row)
        screen.watch(event, row)

    result = loop.run(
        recipe, dataset, runtime, watch=watch, stop=interrupted, fast=fast
    )
    screen.stop()
    return result


def _finish(recipe, dataset, runtime, folder, screen, result, begun) -> dict:
    """Write the weights, the pictures and the final record; returns the summary."""
    from gpuzoo.engine.timing import peak_memory_bytes
    from gpuzoo.evidence import plots
    from gpuzoo.evidence.record import redact

    weights_sha256 = _write_weights(folder, result.weights)
    lines = (folder.path / "metrics.jsonl").read_text("utf-8").splitlines()
    plots.draw_all(
        folder.path,
        f"{recipe.name}: {recipe.model} on {dataset.name}, seed {recipe.seed}",
        [json.loads(line) for line in lines],
        dataset,
        result.outputs,
    )
    folder.close()
    seconds = {**result.seconds, "wall": round(time.perf_counter() - begun, 4)}
    folder.update(
        state=result.state,
        steps=result.steps,
        epochs=result.epochs,
        parameters=result.parameters,
        metrics=result.metrics,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_bytes=result.device_bytes,
        weights_sha256=weights_sha256,
        files=_hash_files(folder.path),
    )
    summary = {
        "state": result.state,
        "recipe": recipe.name,
        "model": recipe.model,
        "data": dataset.name,
        "backend": runtime.backend,
        "device": runtime.device,
        "precision": runtime.precision,
        "xla": runtime.xla,
        "deterministic": runtime.deterministic,
        "seed": recipe.seed,
        "epochs": result.epochs,
        "steps": result.steps,
        **{key: round(value, 6) for key, value in result.metrics.items()},
        "compile_seconds": round(seconds["compile"], 3),
        "train_seconds": round(seconds["train"], 3),
        "wall_seconds": round(seconds["wall"], 3),
        "peak_memory_bytes": folder.record["peak_memory_bytes"],
        "peak_device_bytes": result.device_bytes,
        "weights_sha256": weights_sha256,
        "run_dir": redact(str(folder.path)),
    }
    _say_end(screen, recipe, dataset, summary)
    return summary


def _say_end(screen, recipe, dataset, summary) -> None:
    if summary["state"] == "stopped":
        screen.say(f"Stopped after step {summary['steps']}.", "bold yellow")
    data = dataset.name
    if recipe.fallback and recipe.data != dataset.name:
        data = f"{dataset.name}, not {recipe.data}, which was not to be had"
    memory = f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB of memory"
    if summary["peak_device_bytes"] is not None:
        memory += f", {summary['peak_device_bytes'] / 1e6:,.0f} MB of GPU memory"
    screen.say(
        f"test accuracy {summary['test_accuracy']:.2%} on {data} · "
        f"{summary['train_seconds']:.2f} s of training, "
        f"{summary['wall_seconds']:.1f} s in all, {memory}",
        "bold",
    )
    screen.say(
        f"weights {summary['weights_sha256'][:16]} · {summary['run_dir']}/ "
        "(run.json, weights.safetensors, curves.png, confusion.png, mistakes.png)"
    )


def _write_weights(folder, weights: dict) -> str:
    from gpuzoo.deploy.artifact import weights_bytes
    from gpuzoo.files import write_atomically

    content = weights_bytes(weights)
    write_atomically(folder.path / "weights.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def _record_failure(folder, error: BaseException) -> None:
    """Leave a record of what went wrong, and the last good weights if there are any."""
    folder.close()
    text = str(error) or type(error).__name__
    with contextlib.suppress(OSError):  # the disk may be what failed
        if isinstance(error, Diverged):
            _write_weights(folder, error.weights)
        folder.update(state="failed", error=text)


def _raise_readably(folder, error: BaseException) -> NoReturn:
    """A disk that fails is the user's to mend; everything else goes up as it is."""
    if isinstance(error, OSError):
        raise GpuzooError(
            f"output folder {folder.path}: {error.strerror or error}; free some room "
            "or name another folder with --out"
        ) from error
    raise error


def _hash_files(path: pathlib.Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.iterdir())
        if file.is_file() and file.name != "run.json"
    }


def _redacted(record: dict) -> dict:
    from gpuzoo.evidence.record import redact

    return {k: redact(v) if isinstance(v, str) else v for k, v in record.items()}


@contextlib.contextmanager
def _interrupts():
    """The first Ctrl-C (or SIGTERM) asks the loop to end; a second one kills it."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number, frame):
        if asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
