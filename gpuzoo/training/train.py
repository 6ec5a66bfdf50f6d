"""Train: set up, train, record, draw plots."""

import dataclasses
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.catalogue.registry import in_no_file, model_info
from gpuzoo.data import balance, from_python
from gpuzoo.errors import GpuzooError, nearest
from gpuzoo.home import redact
from gpuzoo.report.notebook import Run
from gpuzoo.report.progress import Screen
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runtime import configure as runtimes
from gpuzoo.runtime.options import Options
from gpuzoo.training import autotune, initial, together, watching
from gpuzoo.training.failures import raise_readably
from gpuzoo.training.interrupts import Interrupts
from gpuzoo.training.job import Job, carry_out
from gpuzoo.training.session import open_session
from gpuzoo.training.watching import OnEvent

if TYPE_CHECKING:
    import keras


def train(
    recipe: "Recipe | str | keras.Model",
    *,
    init: str | pathlib.Path | None = None,
    out: str | None = None,
    options: Options | None = None,
    fast_dev_run: bool = False,
    fresh: bool = False,
    on_event: OnEvent | None = None,
    track: str | Iterable[str] = (),
    quiet: bool = False,
    **changes,
) -> Run:
    """Train a recipe into a new run folder.

    Args:
        recipe: a Recipe, the name of one (`gpuzoo.list_recipes()`), or your own
            keras.Model, functional or Sequential, with the outputs that its task needs:
            for classification logits. Training starts from its current weights, which
            are kept in the run folder, and leaves the trained ones in it. If it is
            compiled, its optimizer and loss are used; they must be Keras's own. Fields
            named in `changes` take precedence. The state of an optimizer that has
            trained before is not carried over.
        init: folder of a finished or stopped run whose weights the training starts
            from. The model is that of the run, unless `recipe` is a Recipe or `changes`
            name a model: then the weights must match it by name, shape and dtype.
        out: the run folder; default: the next free runs/<recipe>-<data>-<number>.
        options: runtime options; its fields may also be named. Default: those of
            `gpuzoo.configure`.
        fast_dev_run: do two steps of everything, to see whether all of it works.
        fresh: initialise the weights of a model object from the seed, as those of a
            recipe's model always are.
        on_event: called with each event of the training, see `gpuzoo.events`. If it
            raises, the run stops as by Ctrl-C, with a checkpoint, and what it has
            raised is raised again; `resume` continues the run.
        track: csv, tensorboard, wandb, mlflow, trackio, or several of them; `resume`
            goes on with them.
        quiet: print nothing.
        **changes: other values for fields of the recipe or of the options, for example
            `epochs=3, precision="float32"`. `data` may also be arrays, `(x, y)`, or an
            iterable of bounded size of such pairs (tf.data.Dataset, DataLoader); then
            `validation=(x, y)` and `test=(x, y)` may be, too; or a data frame or a dict
            of columns, with `target` as the name of one. They are written to a
            .npz file, for `verify`, `resume` and all other commands: `keep_data` names
            it, by default it is in the cache.

    Returns:
        What the command line prints as its last line: `state` (finished, stopped),
        `recipe`, `model`, `data`, `backend`, `device`, `precision`, `xla`,
        `deterministic`, `seed`, `epochs`, `steps`, the metrics of the weights kept
        (`test_loss`, `test_accuracy`, ... by the task, `val_loss`, ... if there are
        validation data), `evaluation` (further figures of the test examples: `auc`,
        `macro_f1`, `r2`, ... by the task, None where one is not defined), `best` (with
        early_stopping or keep=best: `epoch`, `step`, `monitor` and `value` of the best
        evaluation, `kept`, whether its weights are kept, `stopped_early`), `sparsity`
        (zeros of all kernels, a fraction, if the recipe prunes them),
        `compile_seconds`, `train_seconds`, `wall_seconds`, `peak_memory_bytes`,
        `peak_device_bytes` (None on a CPU), `weights_sha256` and `run_dir`, the run
        folder. It is a dict; its `show()` shows the curves and pictures of the run in
        a notebook.

    Raises:
        GpuzooError: names what is wrong and the remedy; nothing half-written is left.
        Diverged: the loss is not finite; the last good weights are in the run folder.
    """
    begun, model, described = time.perf_counter(), None, None
    if not isinstance(recipe, Recipe | str):
        model = recipe
        if "model" in changes:
            raise GpuzooError(
                f"train() got a model object and model={changes['model']!r:.60}; leave "
                "one out"
            )
        if init is not None:
            raise GpuzooError(
                "train() got a model object, which starts from its own weights, and "
                f"init={str(init)!r}; leave one out"
            )
        recipe, described = architecture.recipe_for(model)
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
        if init is not None and not {"model", "model_options"} & changes.keys():
            recipe = initial.with_model_of(init, recipe)
    recipe, options = resolve(recipe, options, changes)
    model_info(recipe.model)
    brought = None
    if init is not None:
        if fresh:
            raise GpuzooError("train() got fresh=True and init; leave one out")
        options, brought = initial.given_by(init, recipe, options)
        described = brought.architecture
    if model is not None:
        from gpuzoo.engine import model_objects

        brought = model_objects.take(model, described, recipe, changes, fresh)
    track = watching.check(on_event, track)
    with together.telling(options.distributed):
        if together.follows(options, recipe):
            session = open_session(
                recipe, options, lambda text: None, given=brought, fast=fast_dev_run
            )
            return together.follow(session)
        run = train_new(
            recipe, options, brought, begun, source=init, out=out, fast=fast_dev_run,
            watched=(on_event, track), quiet=quiet, model=model,
        )  # fmt: skip
        return together.end(options.distributed, run)


def train_new(
    recipe: Recipe, options: Options, brought, begun: float, *, source, out, fast=False,
    watched: tuple, quiet: bool, model=None, first_lines=lambda session: (),
) -> Run:  # fmt: skip
    """Train into a new run folder.

    Args:
        brought: what the training starts with, besides the recipe (`Given`), or None.
        source: the run that it is from.
        watched: `on_event` and `track`.
        model: the user's model object, which gets the trained weights.
        first_lines: the session -> lines for the user.
    """
    described = brought.architecture if brought else None
    screen = Screen(quiet)
    with Interrupts() as interrupts:
        folder = RunFolder.create(
            out,
            _name(recipe),
            brought.files() if brought else {},
            recipe=recipe.as_record(),
            options=dataclasses.asdict(options),
            fast_dev_run=fast,
            **({"track": list(watched[1])} if watched[1] else {}),
            **(brought.as_record() if brought else {}),
        )
        with folder:
            folder.say = lambda text: screen.say(text, "yellow")
            try:
                autotune.tune(recipe, options, described, screen.say)
                session = open_session(
                    recipe, options, lambda text: screen.say(text, "yellow"),
                    given=brought, fast=fast,
                )  # fmt: skip
                _check_room(folder, session)
                folder.clear_trail()
                folder.update(**of_session(session))
                interrupts.end_if_asked()
                say_start(screen, session)
                for line in first_lines(session):
                    screen.say(line)
                changed = source and initial.changed_code(source, session)
                for name in changed or ():
                    screen.say(f"Note: {name} has changed since {source} was trained.",
                               "yellow")  # fmt: skip
                if in_no_file(recipe.model):
                    screen.say(
                        f"Note: model {recipe.model} is defined in this process, "
                        "not in a file: the run cannot be verified or resumed "
                        "elsewhere; give path.py:function for that.", "yellow",
                    )  # fmt: skip
            except BaseException as error:
                folder.discard()
                raise_readably(folder, error, begun=False)
            job = Job(session, folder, screen, begun, watched[0], model)
            return carry_out(job, interrupts, None)


def _name(recipe: Recipe) -> str:
    """Return the name of a run folder: the recipe, and data if not its default."""
    kept = from_python.is_kept(recipe.data)
    data = "arrays" if kept else pathlib.PurePath(recipe.data).stem
    data = re.sub(r"[^A-Za-z0-9_-]+", "-", data).strip("-")[:40]
    named = not data or data in recipe.name
    return recipe.name if named else f"{recipe.name}-{data}"


def resolve(recipe, options, changes):
    """Return the recipe and the options, with the changes applied."""
    changes = _with_arrays(changes)
    options = options or runtimes.options_in_force() or Options()
    runtime_fields = {field.name for field in dataclasses.fields(options)}
    recipe_fields = {field.name for field in dataclasses.fields(recipe)}
    for key in changes:
        if key not in runtime_fields | recipe_fields:
            known = runtime_fields | recipe_fields
            raise GpuzooError(f"train() has no {key!r}; {nearest(key, known)}")
    runtime = {k: v for k, v in changes.items() if k in runtime_fields}
    rest = {k: v for k, v in changes.items() if k not in runtime_fields}
    options = dataclasses.replace(options, **runtime)
    return recipe.override(**rest), runtimes.as_in_force(options)


def _with_arrays(changes: dict) -> dict:
    """Return the changes with the path of a file in place of arrays."""
    changes = dict(changes)
    test, keep = changes.pop("test", None), changes.pop("keep_data", None)
    held, data = changes.get("validation"), changes.get("data")
    if held is not None and not isinstance(held, int | float):
        del changes["validation"]
    else:
        held = None
    if data is None or isinstance(data, str | os.PathLike):
        if held is not None or test is not None or keep is not None:
            raise GpuzooError(
                "validation=(x, y), test=(x, y) and keep_data belong to arrays as "
                f"data=(x, y), and data is {data!r}; leave them out"
            )
        return changes
    return {**changes, "data": str(from_python.as_file(data, held, test, keep))}


def _check_room(folder, session) -> None:
    """Raise GpuzooError if the disk has no room for a run: two checkpoints with up to
    three numbers per weight (four with the best weights), those that stay and one being
    written, the weights, the record, the trail and the plots."""
    recipe = session.recipe
    each = 4 if recipe.keep == "best" else 3
    numbers = each * (3 + recipe.keep_checkpoints) + 3
    needed = numbers * 4 * session.model.count_params() + 4_000_000
    free = shutil.disk_usage(folder.locate()).free
    if free < needed:
        raise GpuzooError(
            f"output folder {folder.path}: {free / 1e6:.1f} MB free, about "
            f"{needed / 1e6:.1f} MB needed; free some, or name another with --out"
        )


def of_session(session) -> dict:
    """Return the fields of a record that are known once a session is open."""
    weights = balance.class_weights(session.recipe.class_weight, session.dataset)
    return {
        "recipe": session.recipe.as_record(),
        "data": session.dataset.as_record(),
        "runtime": session.runtime.as_record(),
        **session.given.as_record(),
        **({"class_weights": weights} if weights else {}),
        "code": session.code,
        "inputs": session.inputs,
    }


def say_start(screen, session) -> None:
    """Print the runtime, the data and the initial state."""
    from gpuzoo.engine import model_objects

    dataset, given = session.dataset, session.given
    uses = {"train": "train", "val": "validate", "test": "test"}
    counts = [f"{count:,} to {uses[name]}" for name, count in dataset.counts.items()]
    screen.say(
        f"{session.runtime.line()} · data {dataset.name} ({dataset.source}; "
        f"{', '.join(counts)})",
        "bold",
    )
    if from_python.is_kept(session.recipe.data):
        screen.say(
            f"The arrays are in {redact(session.recipe.data)}, for verify and resume; "
            "gpuzoo does not remove it."
        )
    for finding in dataset.findings:
        screen.say(f"Note: {finding}.", "yellow")
    screen.say(model_objects.line(given, session.recipe))
    for finding in given.findings:
        screen.say(f"Note: {finding}.", "yellow")
