"""Open a session for training, from a recipe or a recorded run.

Only here the runtime is configured, the data are loaded and the model is built. Modules
that import Keras are imported inside functions, after the backend has been chosen.
"""

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data import balance
from gpuzoo.errors import GpuzooError
from gpuzoo.runs import code, drift
from gpuzoo.runs.record import options_of, recipe_of
from gpuzoo.runtime import portable
from gpuzoo.runtime.configure import configure, in_force
from gpuzoo.runtime.environment import environment, is_installed
from gpuzoo.runtime.options import Options, Runtime
from gpuzoo.training import failures

if TYPE_CHECKING:
    from gpuzoo.engine.program import Session


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded run as a session in this process, and what has changed since."""

    session: "Session"
    """Without a model if other data or missing inputs prevent building it."""
    differences: list[drift.Difference]
    """Fields of the environment and of the code that differ."""
    other_data: list[drift.Difference]
    """Fields of the data that differ."""
    processor: drift.Difference | None = None
    """The names of the CPUs, if the run was trained on another one."""
    findings: tuple[str, ...] = ()
    """Remarks on the model, just built, and on its inputs."""
    elsewhere: bool = False
    """Whether the data are from another place than the run's."""


def open_session(
    recipe: Recipe, options: Options, note, *, given=None, fast: bool = False
) -> "Session":
    """Configure this process, load the data of a recipe and build its model.

    Args:
        note: called with lines for the user.
        given: what a model object, or the run to start from, adds to the recipe.

    Raises:
        GpuzooError: what is wrong with the recipe, the machine, the data or the model.
    """
    options = with_threads(options, recipe)
    runtime = configure(options, seed=recipe.seed, quiet=True)
    return make_session(recipe, runtime, note, given=given, fast=fast)


def make_session(
    recipe: Recipe, runtime: Runtime, note, *, given=None, fast: bool = False
) -> "Session":
    """Do the same in a configured process."""
    from gpuzoo import tasks
    from gpuzoo.engine import choice, compile_config, model_objects
    from gpuzoo.engine.plan import make_plan, shards_of
    from gpuzoo.engine.program import Session
    from gpuzoo.runtime.keras_state import SLACK_BYTES, at_most
    from gpuzoo.tasks import augment
    from gpuzoo.training import build

    build.check_recipe(recipe)
    recipe = tasks.load(recipe.task).settle(recipe)
    dataset = build.load_data_of(recipe, note)
    recipe = tasks.load(recipe.task).of_data(recipe, dataset)
    choice.check_data(recipe, dataset)
    balance.class_weights(recipe.class_weight, dataset)
    first = given.step if given else 0
    make_plan(recipe, dataset.count("train"), 0, fast, first)
    shards_of(recipe, runtime)
    if dataset.field == "image":
        augment.check(recipe.augment, dataset.input_shape)
    given = given or model_objects.Given()
    room = None
    if given.most is not None:
        source = given.init or given.parent
        fault = f"run {source['run']}: the model does not fit its weights"
        room = at_most(given.most + SLACK_BYTES, fault)
    with failures.readable(recipe):
        model, modules, inputs = build.build_and_note(
            recipe, dataset, runtime.backend, note, given.architecture, room
        )
    if given.architecture:
        architecture.check_precision(model, runtime.precision)
    compile_config.loss_of(given.loss, recipe, model)
    given = given.with_findings(findings_of(model, recipe, dataset, given))
    return Session(recipe, runtime, dataset, model, given, fast, modules, inputs)


def open_recorded(
    record: dict,
    folder: pathlib.Path,
    note=lambda text: None,
    *,
    allow_drift: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
    devices: int | None = None,
    distributed: bool = False,
) -> Recorded:
    """Configure this process, load the data and build the model by the record of a run.

    Args:
        devices: their number here, if not that of the run.
        distributed: several processes do it together.
        data, data_dir: where the same data are here, if not where the run had them; the
            name and the place are then no difference, the fingerprint is.

    Raises:
        GpuzooError: the machine, the data or the initial weights are unavailable; or,
            unless `allow_drift`, the backend of the run is not installed.
    """
    if not allow_drift:
        _check_installed(record)
    recipe = recipe_of(record)
    with portable.expected(record["options"].get("level")):
        found = environment()
    named = {k: v for k, v in (("data", data), ("data_dir", data_dir)) if v is not None}
    if named:
        recipe = recipe.override(**{"data_dir": None, **named})
    processor = drift.other_processor(record, {"environment": found})
    set_onednn(record)
    options = _options_here(record, processor is not None)
    options = with_devices(options, record, devices, distributed)
    options = with_threads(options, recipe)
    runtime = configure(options, seed=recipe.seed, quiet=True)
    from gpuzoo import tasks
    from gpuzoo.engine import model_objects
    from gpuzoo.engine.program import Session
    from gpuzoo.training import build

    # Again: the run may have been killed before that was recorded.
    recipe = tasks.load(recipe.task).settle(recipe)
    fingerprint = (record["data"] or {}).get("fingerprint")
    dataset = build.load_data_of(recipe, note, fingerprint)
    recipe = tasks.load(recipe.task).of_data(recipe, dataset)
    here = {"environment": found, "runtime": runtime.as_record(), "code": None}
    differences = drift.environment_differences(record, here)
    other_data = [
        one for one in drift.data_differences(record["data"], dataset.as_record())
        if not (named and one.field == "data.name")
    ]  # fmt: skip
    given = model_objects.recorded(folder, record)
    model, modules, inputs = None, {}, {}
    if unreadable := code.unreadable_inputs(record):
        differences += [
            drift.Difference(f"inputs.{name}", record["inputs"][name], why, why)
            for name, why in unreadable.items()
        ]
    elif not other_data:
        model, modules, inputs = _build_again(
            record, recipe, dataset, runtime.backend, note, given.architecture
        )
        now, inputs_now = code.found_again(record, modules, inputs)
        now = {"code": now, "inputs": inputs_now}
        differences += drift.code_differences(record, now)
    findings = findings_of(model, recipe, dataset, given) if model is not None else ()
    if record["runtime"] is None:  # killed during set-up
        given = given.with_findings(findings)
    fast = record["fast_dev_run"]
    session = Session(recipe, runtime, dataset, model, given, fast, modules, inputs)
    return Recorded(session, differences, other_data, processor, findings, bool(named))


def _check_installed(record: dict) -> None:
    """Raise GpuzooError unless the backend of a run is installed."""
    backend = (record["runtime"] or {}).get("backend")
    if backend and not is_installed(backend):
        raise GpuzooError(
            f"the run was trained on {backend}, which is not installed; run: pip "
            f"install 'gpuzoo[{backend}]'"
        )


def _options_here(record: dict, elsewhere: bool) -> Options:
    """Return the options of a run; of one from another processor with the precision and
    the threads that were chosen there."""
    options, runtime = options_of(record), record["runtime"]
    if not elsewhere or runtime is None or runtime["device"] != "cpu":
        return options
    chosen = {name: runtime[name] for name in ("precision", "threads")}
    return dataclasses.replace(options, **chosen)


def with_devices(
    options: Options, record: dict, devices: int | None, distributed: bool
) -> Options:
    """Return the options of a run on other devices: by default on as many as it had, of
    this process if it trains alone."""
    if devices is None and options.distributed and not distributed:
        elastic = record["recipe"].get("elastic", False)
        devices = 1 if elastic else (record["runtime"] or {}).get("devices")
    if devices is None:
        devices = options.devices
    return dataclasses.replace(options, devices=devices, distributed=distributed)


def with_threads(options: Options, recipe: Recipe) -> Options:
    """Return the options of an elastic recipe with as many threads as shards, unless a
    number is given: on a CPU the bits depend on it, and JAX starts as many threads as
    it has virtual devices."""
    if not recipe.elastic or options.threads or in_force():
        return options
    return dataclasses.replace(options, threads=recipe.shards)


def set_onednn(record: dict) -> None:
    """Let TensorFlow use oneDNN only if the run did: TensorFlow may have been imported
    before gpuzoo could turn it on. To be called before `configure`."""
    if record["runtime"] and record["runtime"]["onednn"] is False:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def findings_of(model, recipe: Recipe, dataset, given) -> tuple[str, ...]:
    """Return what a user should know of a model, just built, of its inputs and of the
    classes."""
    from gpuzoo import tasks
    from gpuzoo.engine import model_objects, scaling

    found = ()
    if given.architecture is None:
        found = model_objects.not_used(model, recipe)
    if given.content is not None:  # the statistics of a Normalization are weights
        model_objects.put_back(model, given)
    found = (*found, *scaling.findings(model, dataset))
    if "class_weight" in tasks.load(recipe.task).uses and not recipe.class_weight:
        found = (*found, *balance.findings(dataset))
    return found


def own_files(record: dict) -> list[str]:
    """Return path.py:function of the user code that re-running executes."""
    return code.models_files(record["recipe"])


def check_trust(path: pathlib.Path, files: list[str], trusted: bool, note) -> None:
    """Refuse to execute the user code of a recorded run unless it is trusted.

    Args:
        files: path.py:function of the user code (`own_files`).

    Raises:
        GpuzooError: there are such files, and it is not trusted.
    """
    named = " and ".join(files)
    if named and not trusted:
        raise GpuzooError(
            f"{path} has user code, {named}, which would be executed with your "
            "permissions; review it, then add --trust-code (Python: trust_code=True)"
        )
    if named:
        note(f"Executing the run's own code: {named}.")


def _build_again(record: dict, *parts) -> tuple:
    from gpuzoo.training import build

    try:
        return build.build_and_note(*parts)
    except GpuzooError:
        raise
    except Exception as error:
        if not (files := own_files(record)):
            raise
        line = " ".join(str(error).split())[:300]
        raise GpuzooError(
            f"model {' or '.join(files)} of the run cannot be built here: "
            f"{type(error).__name__}: {line}"
        ) from error
