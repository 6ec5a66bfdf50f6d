"""The end of a training: weights, plots, record and summary."""

import contextlib
import hashlib
import pathlib
import time

from gpuzoo import tasks
from gpuzoo.engine import checkpoint
from gpuzoo.errors import GpuzooError
from gpuzoo.home import redact
from gpuzoo.report.notebook import Run
from gpuzoo.runs import evaluation
from gpuzoo.runs.derived import DERIVED, REPORT
from gpuzoo.runs.folder import SIGNATURE, TRAIL, RunFolder, write_weights
from gpuzoo.runs.record import RESTORE, private, recipe_of
from gpuzoo.training import continuing
from gpuzoo.training.failures import NO_ROOM


def finish(job, result) -> None:
    """Write the weights, the plots and the final record."""
    from gpuzoo.engine.timing import peak_memory_bytes

    folder, recipe = job.folder, job.session.recipe
    weights_sha256 = write_weights(folder, result.weights)
    if result.state == "finished" and recipe.keep_state == "on":
        folder.write_file(continuing.STATE, continuing.state_bytes(result))
    folder.keep_trail()
    if not_drawn := _draw(job, result):
        job.screen.say(f"The plots could not be drawn: {not_drawn}", "yellow")
    figures, more = evaluation.parts(result.evaluation)
    if more:
        folder.write_file(evaluation.FILE, more)
    kept = _kept_of(job, result) if recipe.keep_checkpoints else []
    wall = round(time.perf_counter() - job.begun, 4)
    job.folder.update(
        state=result.state,
        steps=result.steps,
        epochs=result.epochs,
        parameters=result.parameters,
        **({"sparsity": result.sparsity} if result.sparsity else {}),
        **({"reductions": result.reductions} if recipe.reduces else {}),
        metrics=result.metrics,
        **({"evaluation": figures} if figures else {}),
        best=result.best,
        seconds={**result.seconds, "wall": wall},
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_bytes=result.device_bytes,
        weights_sha256=weights_sha256,
        not_drawn=not_drawn,
        trail=result.trail,
        **({"checkpoints": kept} if kept else {}),
        files=_hash_files(folder, [one["file"] for one in kept]),
    )
    if result.state == "finished":
        # Last: a kill before the record is written must not cost all steps.
        remove_checkpoints(job.folder)
    write_report(folder, job.screen.say)


def _draw(job, result) -> str | None:
    """Draw the plots; return what could not be drawn, which costs no weights."""
    from gpuzoo.report import plots

    folder, recipe, dataset = job.folder, job.session.recipe, job.session.dataset
    kind = tasks.load(recipe.task)
    title = f"{recipe.name}: {redact(recipe.model_name)} on {dataset.name}"
    try:
        plots.draw_all(
            folder,
            kind.pictures,
            f"{title}, seed {recipe.seed}",
            folder.metrics(),
            dataset,
            result.outputs,
            kind.only_in_training(recipe),
        )
        left_out = plots.animate(folder, folder.sheets(), "samples.gif")
    except GpuzooError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        return private(f"{type(error).__name__}: {error}")
    if left_out:
        return f"{', '.join(left_out)}: unreadable, left out of samples.gif"
    return None


def write_report(folder: RunFolder, say) -> None:
    """Write report.html; if it cannot be written, say so: the run is complete."""
    from gpuzoo.report import page

    try:
        page.write(folder)
    except Exception as error:
        what = private(f"{type(error).__name__}: {error}")
        say(f"{REPORT} could not be written: {what}; gpuzoo report RUN does it later")


def check_results(folder: RunFolder) -> None:
    """Check the weights and the trail of a finished run against its record.

    Raises:
        GpuzooError: one of them is missing, is not a regular file or has been changed.
    """
    for name in ("weights.safetensors", *TRAIL):
        try:
            found = hashlib.sha256(folder.read_file(name)).hexdigest()
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
        else:
            fault = "has been changed since the run finished"
            if found == folder.record["files"][name]:
                continue
        raise GpuzooError(f"{folder.path / name} {fault}; {RESTORE}")


def remove_checkpoints(folder: RunFolder, kept=()) -> None:
    """Remove the checkpoints of a finished run, of those that stay the files `kept`."""
    checkpoint.remove(folder.sub(checkpoint.FOLDER), folder.record.get("id", ""), kept)


def kept_checkpoints(folder: RunFolder) -> list[dict]:
    """Return what run.json lists of the checkpoints that stay."""
    inner = folder.sub(checkpoint.FOLDER)
    return checkpoint.kept_of(inner, folder.record.get("id", ""))


def _kept_of(job, result) -> list[dict]:
    """Return the checkpoints that stay, without those of steps after a stop, which a
    run had done before it was killed and resumed; say which are missing."""
    found = kept_checkpoints(job.folder)
    found = [one for one in found if one["step"] <= result.steps]
    there = {one["step"] for one in found}
    for step in result.kept:
        if step <= result.steps and step not in there:
            job.screen.say(
                f"The checkpoint of step {step} that keep_checkpoints wrote is missing "
                "or damaged: gpuzoo audit cannot use this run.", "yellow",
            )  # fmt: skip
    return found


def remove_run(path: str | pathlib.Path, state: str = "") -> list[str]:
    """Remove a run: its checkpoints, the files that it wrote, and its folder if nothing
    else is in it.

    Args:
        state: in which it was selected, as `gpuzoo runs` lists it: if it has another
            one by now, it is not removed.

    Returns:
        The names of what stays: files that were changed, or that the run did not write.

    Raises:
        GpuzooError: it is not a run folder, it is signed, it cannot be written, or
            another process is training in it.
    """
    with RunFolder.open(path) as folder:
        now = folder.record["state"].replace("running", "killed")  # it is locked by us
        if state and now != state.replace("running", "killed"):
            raise GpuzooError(f"{path} has changed from {state} to {now}")
        if folder.find(SIGNATURE):
            raise GpuzooError(
                f"{path} is signed: to remove it, remove {SIGNATURE} first"
            )
        try:
            # One that was changed after the run ended stays, as all its files do.
            known = folder.record.get("files", {})
            names = [one["file"] for one in kept_checkpoints(folder)]
            found = _hash(folder, names)
            own = [n for n in found if found[n] == known.get(n, found[n])]
            remove_checkpoints(folder, [pathlib.PurePath(name).name for name in own])
            return folder.remove_outputs()
        except OSError as error:
            raise GpuzooError(
                f"{path} cannot be removed: {error.strerror or error}"
            ) from None


def summary_of(folder: RunFolder) -> Run:
    """Return the summary of a record, the last line on stdout."""
    record = folder.record
    return Run({
        "state": record["state"],
        "recipe": record["recipe"]["name"],
        "model": redact(recipe_of(record).model_name),
        "data": record["data"]["name"],
        **{
            key: record["runtime"][key]
            for key in ("backend", "device", "precision", "xla", "deterministic")
        },
        "seed": record["recipe"]["seed"],
        "epochs": record["epochs"],
        "steps": record["steps"],
        **{key: round(value, 6) for key, value in record["metrics"].items()},
        **_figures(record),
        **({"sparsity": record["sparsity"]["total"]} if "sparsity" in record else {}),
        **{
            f"{phase}_seconds": round(record["seconds"][phase], 3)
            for phase in ("compile", "train", "wall")
        },
        **({"best": record["best"]} if record.get("best") else {}),
        "peak_memory_bytes": record["peak_memory_bytes"],
        "peak_device_bytes": record["peak_device_bytes"],
        "weights_sha256": record["weights_sha256"],
        "findings": [*record["data"]["findings"], *record.get("findings", [])],
        "run_dir": redact(str(folder.locate())),
    })  # fmt: skip


def _figures(record: dict) -> dict:
    """Return those of the final evaluation that are single numbers, for the summary."""
    found = evaluation.flat(record.get("evaluation", {}))
    rounded = {k: v if v is None else round(v, 6) for k, v in found.items()}
    return {"evaluation": rounded} if rounded else {}


def say_end(job, summary: dict) -> None:
    """Say how a training ended."""
    screen, recipe = job.screen, job.session.recipe
    if summary["state"] == "stopped":
        screen.say(
            f"Stopped after step {summary['steps']}; to continue: "
            f"gpuzoo resume {summary['run_dir']}",
            "bold yellow",
        )
    data = job.session.dataset.name
    if recipe.fallback_data and recipe.data != data:
        data = f"{data} ({recipe.data} unavailable)"
    headline = _headline(screen, recipe, summary)
    if best := summary.get("best"):
        kept = "kept the weights" if best["kept"] else "kept the last weights; best"
        early = "Stopped early, " if best["stopped_early"] else ""
        screen.say(
            f"{early}{kept} of epoch {best['epoch']}: {best['monitor']} "
            f"{best['value']:.4f}"
        )
    if reductions := job.folder.record.get("reductions"):
        epochs = ", ".join(str(one["epoch"]) for one in reductions)
        screen.say(
            f"Learning rate multiplied by {recipe.plateau_factor:g} after epoch "
            f"{epochs}."
        )
    memory = f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB of memory"
    if summary["peak_device_bytes"] is not None:
        memory += f", {summary['peak_device_bytes'] / 1e6:,.0f} MB of GPU memory"
    figure = headline.text(summary[f"test_{headline.name}"])
    screen.say(
        f"test {headline.name} {figure} on {data} · "
        f"{summary['train_seconds']:.2f} s of training, "
        f"{summary['wall_seconds']:.1f} s total, {memory}",
        "bold",
    )
    if found := job.folder.record.get("sparsity"):
        zeros, size = map(sum, zip(*found["kernels"].values(), strict=True))
        screen.say(
            f"sparsity {found['total']:.1%}: {zeros:,} of {size:,} weights in "
            f"{len(found['kernels'])} kernels are zero"
        )
    files = job.folder.record["files"]
    pictures = [n for n in files if n.endswith((".png", ".gif")) and "/" not in n]
    screen.say(
        f"weights {summary['weights_sha256'][:16]} · {summary['run_dir']}/ "
        f"(run.json, weights.safetensors, {', '.join(pictures)})"
    )
    if job.folder.find(REPORT):
        screen.say(f"report: {summary['run_dir']}/{REPORT}")


def _headline(screen, recipe, summary: dict):
    """Return the metric of the last line; say why, if it is not the task's own."""
    kind = tasks.load(recipe.task)  # imports Keras: not before the backend is chosen
    if f"test_{kind.headline.name}" in summary:
        return kind.headline
    why = "It is not defined for the test examples"
    if kind.generates:
        why = (
            "It is measured by a classifier of handwritten digits (28x28, "
            "greyscale), which does not recognise these data"
        )
    screen.say(f"Note: no {kind.headline.name}. {why}.", "yellow")
    return kind.metrics[0]  # the loss


def _hash_files(folder: RunFolder, kept: list[str]) -> dict[str, str]:
    """Return file -> sha256 of a run, of its checkpoints those that stay; without
    links, pipes and temporary files."""
    names = [name for name in folder.names() if name not in ("run.json", *DERIVED)]
    with contextlib.suppress(OSError), folder.sub("samples").opened() as samples:
        names += [f"samples/{name}" for name in samples.names()]
    return _hash(folder, names + kept)


def _hash(folder: RunFolder, names: list[str]) -> dict[str, str]:
    """Return file -> sha256 of those that can be read."""
    found = {}
    for name in sorted(names, key=pathlib.PurePath):
        with contextlib.suppress(OSError):
            found[name] = hashlib.sha256(folder.read_file(name)).hexdigest()
    return found
