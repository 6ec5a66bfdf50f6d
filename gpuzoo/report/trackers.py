"""Trackers: CSV, TensorBoard, Weights & Biases, MLflow, Trackio.

Each is fed by the events of a run (gpuzoo/events.py) and connects to no other machine
unless its own settings say so. A run that was killed repeats the steps after its last
checkpoint: what a tracker already has is read back when it is opened, and is not logged
twice; what it lacks of the rows before the checkpoint is logged then.
"""

import contextlib
import csv
import dataclasses
import importlib
import io
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from gpuzoo import events, files
from gpuzoo.errors import GpuzooError, nearest
from gpuzoo.home import without_home

FOLDER = "tracking"
"""Sub-folder of a run folder for the files of CSV, TensorBoard and Weights & Biases."""
Name = Literal["csv", "mlflow", "tensorboard", "trackio", "wandb"]
PROJECT = "gpuzoo"
Key = tuple[str, int]
"""Name of a metric, train/loss, and step."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and for which run a tracker logs."""

    folder: pathlib.Path
    """The run folder."""
    started: events.Started

    @property
    def name(self) -> str:
        """A name of the run that no other run has."""
        return f"{self.folder.name}-{self.started.run_id[:8]}"

    def sub(self) -> pathlib.Path:
        """Return the folder for the files of trackers, created if missing."""
        path = self.folder / FOLDER
        path.mkdir(exist_ok=True)
        if path.is_symlink():
            raise OSError(f"{path} is a link; gpuzoo does not write through links")
        return path


class Tracker:
    """Base class: opened for one run.

    Attributes:
        module: what must be importable.
        have: the values that it already has.
        where: where it logs, for the user.
    """

    module: ClassVar[str] = ""
    have: set[Key]
    where: str

    @classmethod
    def prepare(cls) -> None:
        """Set what must be set before the module is imported."""

    def __init__(self, place: Place): ...

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None: ...

    def end(self, state: str) -> None:
        """Close it; `state`: finished, stopped or failed."""


class Csv(Tracker):
    """tracking/metrics.csv: one line for each value."""

    HEAD = "epoch,step,metric,value\n"

    def __init__(self, place: Place):
        path = place.sub() / "metrics.csv"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self.file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        there = self.file.read()
        if not self.HEAD.encode().startswith(there[: len(self.HEAD)]):
            self.file.close()
            raise OSError(f"{path} is not a file of gpuzoo; rename it")
        whole = there[: there.rfind(b"\n") + 1]  # without the line that a kill cut
        self.file.truncate(len(whole))
        if not whole:
            self.file.write(self.HEAD.encode())
        rows = list(csv.reader(whole.decode().splitlines()))[1:]
        self.have = {(row[2], int(row[1])) for row in rows}
        self.where = f"{path}"

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        text = io.StringIO()
        rows = ((epoch, step, name, value) for name, value in values.items())
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.file.write(text.getvalue().encode())

    def end(self, state: str) -> None:
        self.file.close()


class TensorBoard(Tracker):
    """Event files, one per process; written without TensorFlow, so that the backend of
    the run makes no difference."""

    module = "tensorboard"

    def __init__(self, place: Place):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder = place.sub()
        self.where = f"{folder} (tensorboard --logdir {folder.parent.parent})"
        names = sorted(folder.glob("events.out.tfevents.*"))
        self.have = {key for name in names for key in self._read(name)}
        # The files of a run are read in the order of their names.
        now = int(time.time())
        last = int(names[-1].name.split(".")[3]) if names else 0
        name = f"events.out.tfevents.{max(now, last + 1)}.{place.started.run_id[:8]}"
        self.file = open(folder / name, "xb", buffering=0)
        self._writer = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")

    def _write(self, **fields) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())

    def _read(self, path: pathlib.Path) -> Iterable[Key]:
        from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

        reader = pywrap_tensorflow.PyRecordReader_New(str(path))
        with contextlib.suppress(errors.OutOfRangeError, errors.DataLossError):
            while True:
                reader.GetNext()
                event = self._event.FromString(reader.record())
                yield from ((value.tag, event.step) for value in event.summary.value)

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        made = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._write(step=step, summary=self._summary(value=made))

    def end(self, state: str) -> None:
        self.file.close()


class Wandb(Tracker):
    """Weights & Biases; offline unless WANDB_MODE says otherwise."""

    module = "wandb"

    @classmethod
    def prepare(cls) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_CACHE_DIR", str(files.root() / "wandb"))

    def __init__(self, place: Place):
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            mode=mode,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=place.started.run_id,
            name=place.folder.name,
            dir=os.environ.get("WANDB_DIR") or place.sub(),
            config=place.started.recipe,
            resume="allow",
            reinit="create_new",  # another run of this process is not touched
            settings=wandb.Settings(
                console="off", disable_git=True, disable_code=True, silent=True,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            ),
        )  # fmt: skip
        self.where = f"{pathlib.Path(self.run.dir).parent} (wandb sync FOLDER)"
        self.steps = 0
        if mode == "online":  # the server has all steps before this one
            self.where, self.steps = self.run.url, self.run.starting_step
        # Offline each process writes a folder of its own, with the whole run.
        self.have = set()

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        if step >= self.steps:
            self.run.log({"epoch": epoch, **values}, step=step)

    def end(self, state: str) -> None:
        self.run.finish(exit_code=int(state == "failed"))


class Mlflow(Tracker):
    """MLflow; in a database in gpuzoo's cache unless MLFLOW_TRACKING_URI or
    `mlflow.set_tracking_uri` names another."""

    module = "mlflow"
    STATES: ClassVar[dict[str, str]] = {
        "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED",
    }  # fmt: skip

    @classmethod
    def prepare(cls) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

    def __init__(self, place: Place):
        import mlflow

        folder = (files.root() / "mlflow").absolute()
        own = not mlflow.is_tracking_uri_set()
        uri = mlflow.get_tracking_uri()
        self._waiting: list = []
        if own:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.where = f"{uri} (mlflow ui --backend-store-uri URI)" if own else uri
        with self._alone(folder) if own else contextlib.nullcontext():
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            known = self.client.get_experiment_by_name(PROJECT)
            number = known.experiment_id if known else self.client.create_experiment(
                PROJECT, artifact_location=str(folder / "artifacts") if own else None
            )  # fmt: skip
        query = f"tags.`gpuzoo.id` = '{place.started.run_id}'"
        found = self.client.search_runs([number], query, max_results=1)
        self.have = set()
        if found:
            self.run = found[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            for name in found[0].data.metrics:
                rows = self.client.get_metric_history(self.run, name)
                self.have |= {(name, row.step) for row in rows}
        else:
            made = self.client.create_run(
                number, tags={"gpuzoo.id": place.started.run_id}, run_name=place.name
            )
            self.run = made.info.run_id
        params = {k: str(v)[:500] for k, v in place.started.recipe.items()}
        missing = params.keys() - (found[0].data.params if found else {}).keys()
        params = [mlflow.entities.Param(name, params[name]) for name in sorted(missing)]
        self.client.log_batch(self.run, params=params)

    @contextlib.contextmanager
    def _alone(self, folder: pathlib.Path):
        """Wait for another process that creates the tables of the database."""
        held, end = files.Folder(folder), time.monotonic() + 60
        try:
            while True:
                try:
                    held.lock()
                    break
                except GpuzooError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.1)
            yield
        finally:
            held.close()

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in values.items()]
        done = self.client.log_batch(self.run, metrics=rows, synchronous=False)
        self._waiting.append(done)  # written by a thread of MLflow

    def end(self, state: str) -> None:
        failed = None
        for one in self._waiting:
            try:
                one.wait()
            except Exception as error:  # the others are still written
                failed = error
        self.client.set_terminated(self.run, self.STATES[state])
        if failed:
            raise failed


class Trackio(Tracker):
    """Trackio; in gpuzoo's cache unless TRACKIO_DIR, TRACKIO_SPACE_ID or
    TRACKIO_SERVER_URL name another place."""

    module = "trackio"

    @classmethod
    def prepare(cls) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(files.root() / "trackio"))

    def __init__(self, place: Place):
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        self._trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                PROJECT, name=place.name, resume="allow", config=place.started.recipe,
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        self.where = f"{TRACKIO_DIR} (trackio show --project {PROJECT})"
        self.have = {
            (name, row["step"])
            for row in SQLiteStorage.get_logs(PROJECT, place.name)
            for name in row
        }

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def end(self, state: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()


KINDS: dict[str, type[Tracker]] = {
    "csv": Csv, "mlflow": Mlflow, "tensorboard": TensorBoard, "trackio": Trackio,
    "wandb": Wandb,
}  # fmt: skip


def check(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of trackers, each once, with their packages imported.

    Raises:
        GpuzooError: a name is unknown, or its package cannot be imported.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in names:
        if name not in KINDS:
            raise GpuzooError(
                f"track: no tracker named {name!r}; {nearest(name, KINDS)}"
            )
        if not (kind := KINDS[name]).module:
            continue
        try:
            kind.prepare()
            importlib.import_module(kind.module)
        except Exception as error:
            why = "is not installed"
            if not isinstance(error, ModuleNotFoundError) or error.name != kind.module:
                why = f"cannot be imported ({type(error).__name__}: {error})"
            raise GpuzooError(
                f"track {name}: the package {kind.module} {why}; run: pip install "
                f"{kind.module}, or leave it out (resume: --track without a name)"
            ) from error
    return names


class Trackers:
    """The trackers of one run, opened with its first step.

    A tracker that fails is given up, with a line for the user: the training goes on.
    """

    def __init__(self, names: tuple[str, ...], folder: pathlib.Path, say: Callable):
        self.names, self.folder, self.say = names, folder, say
        self._open: dict[str, Tracker] = {}
        self._started: events.Started | None = None
        self._before: list[events.Logged | events.Evaluated] = []

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Started):
            self._started = event
        elif isinstance(event, events.Logged | events.Evaluated):
            self._row(event)
        elif isinstance(event, events.Progress):
            self._open_all()

    def end(self, state: str) -> None:
        """Close all; `state`: finished, stopped or failed."""
        if state != "failed":
            self._open_all()  # resumed after its last step
        for name in list(self._open):
            self._try(name, self._end, state)

    def before(self, rows: Iterable[events.Logged | events.Evaluated]) -> None:
        """Take the rows of a resumed run up to its checkpoint."""
        self._before = list(rows)

    def _open_all(self) -> None:
        """Open them, once: a run without a first step leaves nothing behind."""
        if started := self._started:
            self._started = None
            for name in self.names:
                self._try(name, self._begin, started)
            for row in self._before:
                self._row(row)
            self._before = []

    def _begin(self, name: str, started: events.Started) -> None:
        made = self._open[name] = KINDS[name](Place(self.folder, started))
        self.say(f"tracking: {name}, {without_home(made.where)}")

    def _row(self, event: events.Logged | events.Evaluated) -> None:
        if self._started:
            self._before.append(event)
        for name in list(self._open):
            self._try(name, self._log, event)

    def _log(self, name: str, event: events.Logged | events.Evaluated) -> None:
        tracker = self._open[name]
        values = {
            f"{event.split}/{metric}": value
            for metric, value in event.metrics.items()
            if (f"{event.split}/{metric}", event.step) not in tracker.have
        }
        if values:
            tracker.log(event.step, event.epoch, values)

    def _end(self, name: str, state: str) -> None:
        self._open.pop(name).end(state)

    def _try(self, name: str, call: Callable, given) -> None:
        try:
            call(name, given)
        except Exception as error:
            self._open.pop(name, None)
            line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.say(
                f"Tracking with {name} failed: {line}; the training continues without."
            )
