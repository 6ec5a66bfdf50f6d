"""Events of a training and trackers: they see every row once, and change no bit."""

import importlib.util
import json
import signal
import struct
import subprocess
import sys

import pytest
from conftest import environment, needs_tensorflow

import gpuzoo
from gpuzoo import events
from gpuzoo.report import trackers
from gpuzoo.runs.record import read_run

INSTALLED = [
    name
    for name, kind in trackers.KINDS.items()
    if not kind.module or importlib.util.find_spec(kind.module)
]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow
ROWS = [
    kind(split=split, epoch=1 + step // 4, step=step, metrics={"loss": 1 / step})
    for step in range(1, 9)
    for kind, split in ((events.Logged, "train"), (events.Evaluated, "test"))
]
STARTED = events.Started(
    run_dir="run", run_id="0123456789abcdef" * 2, recipe={"epochs": 2, "data": "x"},
    parameters=1, epochs=2, steps=8, batch_size=1, step=0,
)  # fmt: skip
# Feeds rows 0 to `last` to a tracker, those before `first` as of the checkpoint; then it
# dies or ends.
FEED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, sys.argv[6])
from test_tracking import ROWS, STARTED
from gpuzoo import events
from gpuzoo.report import trackers

name, first, last, ends = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
said = []
made = trackers.Trackers(trackers.check(name), pathlib.Path(sys.argv[5]), said.append)
made(STARTED)
made.before(ROWS[:first])
for row in ROWS[first:last]:
    made(events.Progress(step=row.step, seconds=1.0))
    made(row)
if ends == "dies":
    time.sleep(0.7)  # longer than Trackio waits: it has written all of it
    os.kill(os.getpid(), signal.SIGKILL)
made.end("finished")
assert len(said) == 1 and "tracking: " in said[0], said
"""


def rows_of_metrics(text: str) -> list:
    """The values in metrics.jsonl: (split/name, step, value)."""
    rows = map(json.loads, text.splitlines())
    return sorted(
        (f"{row['split']}/{name}", row["step"], pytest.approx(value))
        for row in rows
        for name, value in row.items()
        if name not in ("split", "epoch", "step")
    )


def of_csv(run, cache):
    lines = (run / "tracking" / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,metric,value"
    cells = [line.split(",") for line in lines[1:]]
    return [(name, int(step), float(value)) for _, step, name, value in cells]


def of_tensorboard(run, cache):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tracking"), purge_orphaned_data=False)
    found.Reload()
    names = found.Tags()["scalars"]
    return [(n, row.step, row.value) for n in names for row in found.Scalars(n)]


def of_wandb(run, cache):
    """The last offline folder has the whole run, in the format of a LevelDB log."""
    from wandb.proto import wandb_internal_pb2 as proto

    file = sorted(run.glob("tracking/wandb/offline-run-*/*.wandb"))[-1]
    content, at, part, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part, at = part + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, part = proto.Record.FromString(part), b""
            values = {
                (one.key or one.nested_key[0]): json.loads(one.value_json)
                for one in record.history.item
            }
            found += [
                (name, record.history.step.num, value)
                for name, value in values.items()
                if "/" in name
            ]
    return found


def of_mlflow(run, cache):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{cache / 'mlflow' / 'mlflow.db'}")
    number = client.get_experiment_by_name("gpuzoo").experiment_id
    (one,) = [r for r in client.search_runs([number]) if r.data.params["data"] != "y"]
    assert one.info.status == "FINISHED" and one.data.params["epochs"]
    return [
        (name, row.step, row.value)
        for name in one.data.metrics
        for row in client.get_metric_history(one.info.run_id, name)
    ]


def of_trackio(run, cache):
    import sqlite3

    with sqlite3.connect(cache / "trackio" / "gpuzoo.db") as file:
        rows = file.execute("select step, metrics from metrics").fetchall()
    return [(n, step, v) for step, text in rows for n, v in json.loads(text).items()]


def feed(name, first, last, ends, run, tmp_path):
    run.mkdir(exist_ok=True)
    words = [name, str(first), str(last), ends, str(run), __file__.rpartition("/")[0]]
    done = subprocess.run(
        [sys.executable, "-c", FEED, *words], env=environment(tmp_path), timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if ends == "dies" else 0), done.stderr
    assert done.stdout == ""  # the last line of a command is JSON


@pytest.mark.parametrize("name", INSTALLED)
def test_killed_a_tracker_has_every_row_once(name, tmp_path):
    """Killed twice, once before the checkpoint that it is resumed from is complete."""
    run = tmp_path / "run"
    feed(name, 0, 7, "dies", run, tmp_path)
    for path in (run / "tracking").glob("*.*"):  # what a kill cuts
        if name in ("csv", "tensorboard"):
            path.write_bytes(path.read_bytes()[:-3])
    feed(name, 4, 12, "dies", run, tmp_path)
    feed(name, 10, len(ROWS), "ends", run, tmp_path)
    found = globals()[f"of_{name}"](run, tmp_path / "cache")
    wanted = [
        (f"{row.split}/{n}", row.step, pytest.approx(value))
        for row in ROWS
        for n, value in row.metrics.items()
    ]
    assert sorted(found) == sorted(wanted, key=lambda row: row[:2])


@needs_tensorflow
def test_watching_changes_no_bit_and_a_hook_may_stop_the_run(
    train, tmp_path, own_cache
):
    import small

    summary = train(small.net(), log_every=2, epochs=2, fresh=True)
    seen: list[events.Event] = []

    class Enough(Exception):
        pass

    def on_event(event):
        seen.append(event)
        if isinstance(event, events.Started):
            event.recipe["epochs"] = 99  # of a copy
        if isinstance(event, events.Logged) and event.step == 6:
            raise Enough("seen enough")

    how = {"log_every": 2, "epochs": 2, "fresh": True, "checkpoint_every": 4}
    with pytest.raises(Enough, match="seen enough"):
        train(small.net(), on_event=on_event, track=INSTALLED, **how)
    run = train.folder()
    kinds = [type(event).__name__ for event in seen]
    assert kinds[0] == "Started" and kinds.count("CheckpointSaved") == 1
    assert kinds[-1] == "Logged"  # it is not called after it has raised
    record = read_run(run)
    assert record["state"] == "stopped" and record["track"] == INSTALLED
    assert record["recipe"]["epochs"] == 2
    again: list[events.Event] = []
    resumed = gpuzoo.resume(run, quiet=True, on_event=again.append)
    assert resumed["weights_sha256"] == summary["weights_sha256"]
    assert again[0].step == record["steps"] and again[-1].summary == resumed
    whole = rows_of_metrics((run / "metrics.jsonl").read_text())
    for name in INSTALLED:
        assert sorted(globals()[f"of_{name}"](run, tmp_path / "cache")) == whole, name


@needs_tensorflow
def test_a_stop_in_the_epoch_that_early_stopping_ends(train, own_cache):
    """The run has finished: trackers have all rows, a model object its weights."""
    import small

    progress: list[int] = []
    how = {"epochs": 6, "fresh": True, "early_stopping": 1, "min_delta": 1e9,
           "validation": 0.2}  # fmt: skip

    def count(event):
        if isinstance(event, events.Progress):
            progress.append(event.step)

    def stop(event):
        if isinstance(event, events.Progress) and event.step == progress[-1]:
            raise RuntimeError("enough")

    one, other = small.net(), small.net()
    summary = train(one, on_event=count, **how)
    assert summary["best"]["stopped_early"]
    with pytest.raises(RuntimeError, match="enough"):
        train(other, on_event=stop, track="csv", **how)
    run = train.folder()
    assert read_run(run)["weights_sha256"] == summary["weights_sha256"]
    rows = rows_of_metrics((run / "metrics.jsonl").read_text())
    assert sorted(of_csv(run, None)) == rows and ("test/loss", progress[-1]) in [
        row[:2] for row in rows
    ]
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        assert (mine.numpy() == theirs.numpy()).all()


def test_a_missing_package_is_named_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(gpuzoo.GpuzooError, match="track wandb.* pip install wandb"):
        gpuzoo.train("mnist", out=tmp_path / "run", track=("csv", "wandb"))
    with pytest.raises(gpuzoo.GpuzooError, match="no tracker named 'tensorbord'; near"):
        gpuzoo.train("mnist", out=tmp_path / "run", track="tensorbord")
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_fails_is_given_up(tmp_path):
    (tmp_path / "tracking").mkdir()
    mine = tmp_path / "tracking" / "metrics.csv"
    mine.write_text("mine\n")
    said: list[str] = []
    made = trackers.Trackers(("csv",), tmp_path, said.append)
    for event in (STARTED, events.Progress(step=1, seconds=1.0), *ROWS[:2]):
        made(event)
    assert len(said) == 1 and "not a file of gpuzoo" in said[0]
    assert mine.read_text() == "mine\n"
