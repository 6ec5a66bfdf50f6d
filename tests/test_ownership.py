"""What is not gpuzoo's own is never removed, written over or written through."""

import ast
import hashlib
import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from small import splits
from test_resume import HALF, killed_after_a_checkpoint, start

import gpuzoo
from gpuzoo import files
from gpuzoo.bench import bench
from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.data import cache
from gpuzoo.data.validate import make_dataset
from gpuzoo.engine import checkpoint
from gpuzoo.files import (
    MARKER,
    Folder,
    make_temporary_folder,
    read_inside,
    remove_own_folder,
    write_atomically,
)
from gpuzoo.report import plots
from gpuzoo.repro.verify import changed_files
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runs.record import read_run

WORDS = [
    "train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
    "units=(8,)", "--device", "cpu", "--precision", "float32", "--threads", "2",
    "--epochs", "150", "--eval-every", "150", "--checkpoint-every", "20",
    "--digest-every", "100", "--quiet",
]  # fmt: skip
FIELDS = {
    "recipe": load_recipe("mnist").as_record(),
    "options": {},
    "fast_dev_run": False,
}
HIDDEN = (".notes.123", ".run.json.7", ".gpuzoo-tmp-mine", ".writing-half", "notes.txt")


@pytest.fixture
def run(tmp_path):
    """A folder that a run has just made."""
    with RunFolder.create(str(tmp_path / "run"), "any", **FIELDS) as folder:
        yield folder


def furnish(folder, names=HIDDEN) -> dict:
    """Files of the user's; path -> content."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(f"mine: {name}")
    return {folder / name: f"mine: {name}" for name in names}


def assert_untouched(files: dict) -> None:
    for path, content in files.items():
        assert path.read_text() == content, path


# --- a run and all that is done with it ---------------------------------------------


def test_files_of_the_users_in_a_run_folder_outlive_every_verb(tmp_path, cli):
    killed_after_a_checkpoint(WORDS, tmp_path)
    run = tmp_path / "run"
    mine = furnish(run) | furnish(run / "checkpoints")
    mine |= furnish(run / "samples", [*HIDDEN, "epoch-001.png", "epoch-mine.png"])
    # Names of checkpoints, which sort before and after the run's own.
    steps = [f"step-{n:09d}.safetensors" for n in (1, 999_999_999)]
    mine |= furnish(run / "checkpoints", steps)
    (run / HALF).touch()
    resumed = cli("resume", "run", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert_untouched(mine)
    assert not (run / HALF).exists()
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {*HIDDEN, *steps}  # and none of the run's
    whole = cli(*WORDS, "--out", "whole")
    assert resumed.json["weights_sha256"] == whole.json["weights_sha256"]
    for words in (["resume", "run"], ["verify", "run"], ["diff", "run", "whole"]):
        assert cli(*words).returncode == 0, words
    assert_untouched(mine)


@pytest.mark.parametrize("behind", ["folder", "file"])
def test_checkpoints_behind_a_link_are_not_the_runs(behind, tmp_path, cli):
    killed_after_a_checkpoint([*WORDS, "--epochs", "5000"], tmp_path)
    checkpoints, away = tmp_path / "run/checkpoints", tmp_path / "away"
    if behind == "folder":
        checkpoints.rename(away)
        checkpoints.symlink_to(away)
    else:
        away.mkdir()
        for path in checkpoints.iterdir():
            path.rename(away / path.name)
            path.symlink_to(away / path.name)
    before = {path: path.read_bytes() for path in away.iterdir()}
    done = cli("resume", "run")
    assert done.returncode == 2 and "a link or of another" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in away.iterdir()} == before


def test_two_runs_and_one_name(tmp_path):
    """A run whose folder is renamed goes on in it, and never in the one of a second
    run that takes the name."""
    first = start([*WORDS, "--epochs", "1500", "--out", "run"], tmp_path)
    run, moved = tmp_path / "run", tmp_path / "moved"
    deadline = time.monotonic() + 120
    while not (run / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.rename(moved)
    second = start([*WORDS, "--seed", "1", "--epochs", "30", "--out", "run"], tmp_path)
    ends = []
    for process in (second, first):
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        ends.append(json.loads(stdout.splitlines()[-1]))
    for folder, seed, end in ((run, 1, ends[0]), (moved, 0, ends[1])):
        record = read_run(folder)
        assert record["recipe"]["seed"] == seed and record["state"] == "finished"
        assert record["weights_sha256"] == end["weights_sha256"]
        assert changed_files(folder, record) == []
        assert not (folder / "checkpoints").exists()
    assert ends[1]["run_dir"] == str(moved)


def test_a_folder_that_is_removed_ends_the_run_in_a_line(tmp_path):
    process = start([*WORDS, "--epochs", "5000", "--out", "run"], tmp_path)
    run = tmp_path / "run"
    deadline = time.monotonic() + 120
    while not (run / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.rename(tmp_path / "trash")
    other = furnish(run)
    while (tmp_path / "trash").exists():  # the run goes on writing into it
        shutil.rmtree(tmp_path / "trash", ignore_errors=True)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2 and "was removed during the run" in stderr, stderr
    assert_untouched(other)
    assert len(list(run.iterdir())) == len(other)


def test_another_runs_record_in_the_folder_stops_every_writing(run, tmp_path):
    with RunFolder.create(str(tmp_path / "other"), "any", **FIELDS) as other:
        record = (other.path / "run.json").read_bytes()
    run.watch("train", {"epoch": 1, "step": 1, "loss": 1.0})
    (run.path / "run.json").write_bytes(record)
    row = {"epoch": 1, "step": 2, "images": np.zeros((2, 4, 4, 1), np.uint8)}
    save = checkpoint.Checkpoint(1, {"state/a": np.ones(3)}, [], {}, run.record["id"])
    before = {path: path.read_bytes() for path in run.path.rglob("*")}
    for write in (
        lambda: run.watch("train", {"epoch": 1, "step": 2}),
        lambda: run.update(state="failed", error="none"),
        lambda: run.write_file("weights.safetensors", b""),
        lambda: plots.save_sheet(run, row),
        lambda: checkpoint.save(run.sub("checkpoints"), save),
        lambda: run.restore([]),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match="holds another run now"):
            write()
    run.discard()
    assert {path: path.read_bytes() for path in tmp_path.glob("run/**/*")} == before


# --- links --------------------------------------------------------------------------


def test_nothing_is_written_through_a_link(tmp_path, cli):
    """Symbolic links to every file that a run writes, and a hard-linked copy of it."""
    process = start([*WORDS, "--epochs", "5000", "--out", "run"], tmp_path)
    run, backup = tmp_path / "run", tmp_path / "backup"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert os.system(f"cp -al {run} {backup}") == 0
    names = [path.name for path in run.iterdir() if path.suffix == ".png"]
    before = {p: p.read_bytes() for p in backup.rglob("*") if p.is_file()}
    mine = furnish(tmp_path / "mine", [*names, "samples.gif"])
    for name in [*names, "samples.gif"]:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / "mine" / name)
    process = start(["resume", "run", "--quiet"], tmp_path)
    while "resumed" not in read_run(run) and time.monotonic() < deadline + 120:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert_untouched(mine)
    assert {p: p.read_bytes() for p in backup.rglob("*") if p.is_file()} == before
    assert read_run(run)["steps"] > read_run(backup)["steps"]
    assert not any((run / name).is_symlink() for name in names)


@pytest.mark.parametrize("way", ["hard", "moved", "gone", "link"])
def test_a_row_goes_into_a_file_of_the_runs_alone(way, run, tmp_path):
    rows = [{"epoch": 1, "step": step} for step in range(3)]
    run.watch("train", rows[0])
    file, other = run.path / "metrics.jsonl", tmp_path / "other"
    if way == "hard":
        os.link(file, other)
    elif way == "gone":
        file.unlink()
    else:
        file.rename(other)
    if way == "link":
        file.symlink_to(other)
    before = other.read_bytes() if other.exists() else b""
    for row in rows[1:]:
        run.watch("train", row)
    assert run.metrics() == [{"split": "train", **row} for row in rows]
    assert file.stat().st_nlink == 1 and not file.is_symlink()
    assert (other.read_bytes() if other.exists() else b"") == before


def test_what_is_there_before_a_run_writes_is_not_appended_to(run, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine\n")
    for name, make in (("metrics.jsonl", os.link), ("digests.jsonl", os.symlink)):
        make(mine, run.path / name)
    run.watch("train", {"epoch": 1, "step": 1})
    run.watch("digest", {"step": 1})
    assert mine.read_text() == "mine\n" and len(run.metrics()) == 1


def kept(folder) -> dict[str, str]:
    """What has been set aside: new name -> content."""
    return {path.name: path.read_text() for path in folder.rglob("*.kept-*")}


def test_names_of_outputs_that_were_taken_while_it_was_dead(tmp_path, cli):
    killed_after_a_checkpoint(WORDS, tmp_path)
    run = tmp_path / "run"
    names = ["weights.safetensors", "curves.png", "confusion.png", "digests.jsonl"]
    furnish(run, names)
    (tmp_path / "mine").write_text("mine: mistakes.png")
    (run / "curves.kept-1.png").write_text("an older one")
    resumed = cli("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert kept(run) == {
        "weights.kept-1.safetensors": "mine: weights.safetensors",
        "curves.kept-1.png": "an older one", "curves.kept-2.png": "mine: curves.png",
        "confusion.kept-1.png": "mine: confusion.png",
        "digests.kept-1.jsonl": "mine: digests.jsonl",
    }  # fmt: skip
    told = (
        "weights.safetensors is not this run's; it is kept as weights.kept-1.safetens"
    )
    assert told in resumed.stderr
    whole = cli(*WORDS, "--out", "whole")
    assert resumed.json["weights_sha256"] == whole.json["weights_sha256"]
    assert cli("diff", "run", "whole").json["verdict"] == "identical"


ROWS = [["train", {"epoch": 1, "step": n, "loss": 0.5}] for n in range(4)]


def reopened(run) -> RunFolder:
    """As after a kill: another process knows what the record says, and no more."""
    run.close()
    return RunFolder.open(run.path)


@pytest.mark.parametrize("written", [0, 1, 3, 4])
@pytest.mark.parametrize("saved", [0, 2])
@pytest.mark.parametrize("half", ["", '{"split": "tr', '{"spl'])
def test_rows_of_its_own_are_no_strangers(written, saved, half, run):
    for event, row in ROWS[:written]:
        run.watch(event, row)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(half)
    with reopened(run) as again:
        again.restore(ROWS[:saved])
        assert kept(run.path) == {}
        for event, row in ROWS[saved:]:
            again.watch(event, row)
        assert len(again.metrics()) == 4


@pytest.mark.parametrize("saved", [0, 2])
@pytest.mark.parametrize("text", [
    "mine", '{"split": "train"}\n', "[1]\n", '{"a": 1}\n', "\n\n", "\0", '{"epoch',
])  # fmt: skip
def test_rows_that_are_not_its_own_are_kept(text, saved, run):
    for event, row in ROWS[:3]:
        run.watch(event, row)
    (run.path / "metrics.jsonl").write_text(text)
    with reopened(run) as again:
        again.restore(ROWS[:saved])
        for event, row in ROWS[saved:]:
            again.watch(event, row)
        assert kept(run.path) == {"metrics.kept-1.jsonl": text}
        assert len(again.metrics()) == 4


def test_rows_of_another_run_are_kept(run):
    other = "".join(
        json.dumps({"split": event, **row, "loss": 0.25}) + "\n" for event, row in ROWS
    )
    (run.path / "metrics.jsonl").write_text(other)
    run.clear_trail()  # its set-up has ended
    run.watch(*ROWS[0])
    assert kept(run.path) == {"metrics.kept-1.jsonl": other}
    (run.path / "metrics.jsonl").write_text(other)
    with reopened(run) as again:
        again.restore(ROWS[:2])
    assert kept(run.path) == {f"metrics.kept-{n}.jsonl": other for n in (1, 2)}


def test_what_a_run_wrote_itself_it_writes_again(run):
    """Before its record told so (the same bytes), and after (by its digest)."""
    run.write_file("curves.png", b"one")
    with reopened(run) as again:
        again.write_file("curves.png", b"one")
        again.write_file("curves.png", b"two")  # by the same process
        digest = hashlib.sha256(b"two").hexdigest()
        again.update(files={"curves.png": digest})
        with reopened(again) as third:
            third.write_file("curves.png", b"three")
            assert kept(run.path) == {}
    (run.path / "curves.png").write_text("mine")
    with reopened(third) as fourth:
        fourth.write_file("curves.png", b"four")
        (run.path / "mine").write_text("mine, too")
        (run.path / "samples.gif").symlink_to("mine")
        fourth.write_file("samples.gif", b"gif")
    assert kept(run.path) == {
        "curves.kept-1.png": "mine", "samples.kept-1.gif": "mine, too",
    }  # fmt: skip
    assert (run.path / "samples.gif").read_bytes() == b"gif"
    assert (run.path / "mine").read_text() == "mine, too"


def test_first_weights_of_the_users_outlive_a_run_that_never_began(tmp_path):
    name, out = "initial_weights.safetensors", str(tmp_path / "run")
    for own in (True, False):
        with RunFolder.create(out, "any", {name: b"first"}, **FIELDS) as folder:
            if not own:
                (folder.path / name).write_text("mine")
            folder.discard()
        assert (tmp_path / "run" / name).exists() != own


# --- a run can always be ended ------------------------------------------------------


def drawn(run, epochs=4) -> None:
    for epoch in range(1, epochs + 1):
        run.watch("test", {"epoch": epoch, "step": epoch})
        images = np.full((3, 8, 8, 1), 40 * epoch, np.uint8)
        plots.save_sheet(run, {"epoch": epoch, "images": images})


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pipe", "folder", "link"])
def test_a_sheet_that_cannot_be_read_is_left_out(damage, run, tmp_path):
    drawn(run)
    (run.path / "samples/epoch-900.png").write_text("the user's")
    sheet = run.path / "samples/epoch-002.png"
    content = sheet.read_bytes()
    sheet.unlink()
    if damage == "pipe":
        os.mkfifo(sheet)
    elif damage == "folder":
        sheet.mkdir()
    elif damage == "link":
        sheet.symlink_to(run.path / "samples/epoch-001.png")
    else:
        sheet.write_bytes({"cut": content[:-30], "empty": b""}.get(damage, b"text"))
    left_out = plots.animate(run, run.sheets(), "samples.gif")
    assert left_out == ["samples/epoch-002.png"]
    with PIL.Image.open(run.path / "samples.gif") as gif:
        assert gif.n_frames == 3


def test_pictures_never_stand_in_the_way_of_the_end(tmp_path, cli):
    """Folders in their places, and samples that is a link."""
    words = ["train", "mnist_gan", "--data", "digits", "--epochs", "40", "--batch-size",
             "256", "--eval-every", "1", "--model-options", "filters=(4,8)",
             "--checkpoint-every", "4", "--device", "cpu", "--quiet"]  # fmt: skip
    run = tmp_path / "run"
    process = start([*words, "--out", "run"], tmp_path)
    deadline = time.monotonic() + 120
    while not (run / "samples").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (run / "curves.png").mkdir()
    (run / "samples").rename(tmp_path / "away")
    (run / "samples").symlink_to(tmp_path / "away")
    before = {path: path.read_bytes() for path in (tmp_path / "away").iterdir()}
    done = cli("resume", "run")
    assert done.returncode == 0, done.stderr
    assert "link" in done.stderr and "could not be drawn" in done.stderr
    assert read_run(run)["state"] == "finished" and read_run(run)["not_drawn"]
    assert {p: p.read_bytes() for p in (tmp_path / "away").iterdir()} == before
    assert cli("verify", "run", "--quick").returncode == 0


def test_sheets_are_those_that_the_trail_tells_of(run):
    drawn(run)
    mine = furnish(run.path / "samples", ["epoch-900.png", "epoch-mine.png"])
    run.restore([["test", {"epoch": 1, "step": 1}], ["test", {"epoch": 2, "step": 2}]])
    assert_untouched(mine)
    assert run.sheets() == ["samples/epoch-001.png", "samples/epoch-002.png"]
    run.watch("test", {"epoch": 3, "step": 3})
    assert [row["epoch"] for row in run.metrics()] == [1, 2, 3]


@pytest.fixture
def quick():
    """Hanging is failing."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(250)
    yield
    signal.alarm(0)


def test_only_regular_files_inside_of_a_run_are_read(run, tmp_path, quick):
    (tmp_path / "secret").write_text("x")
    os.mkfifo(run.path / "pipe")
    (run.path / "zero").symlink_to("/dev/zero")
    (run.path / "out").symlink_to(tmp_path)
    (run.path / "good").mkdir()
    (run.path / "good/file").write_text("x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    names = [
        "pipe", "zero", "/dev/zero", "../secret", "out/secret", "good", "good/../../"
        "secret", str(tmp_path / "secret"), "", ".", "..", "good//file", "a\0b", "nil",
        "good/file/more", "./good/file",
    ]  # fmt: skip
    recorded = {
        "seal": "", "weights_sha256": None,
        "files": dict.fromkeys([*names, "good/file"], digest),
    }  # fmt: skip
    assert changed_files(run.path, recorded) == ["run.json", *names]
    assert read_inside(run.path, "good/file") == b"x"


@pytest.mark.parametrize("name", ["run.json", "digests.jsonl", "weights.safetensors"])
def test_verify_of_pipes_ends(name, run, quick, cli):
    for file in ("digests.jsonl", "weights.safetensors"):
        run.write_file(file, b"")
    run.close()
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    for words in (["verify", run.path], ["diff", run.path, run.path]):
        done = cli(*words, timeout=240)
        assert done.returncode == 2 and "Traceback" not in done.stderr


# --- folders that many share --------------------------------------------------------


@pytest.fixture
def data(arrays, own_cache):
    return make_dataset("mine", "somewhere", splits(arrays))


def test_what_is_no_entry_of_the_cache_stays(data):
    parent = files.root() / "data" / "mine"
    mine = {}
    for name in ("3.0.1", "key", ".hidden"):
        (parent / name).mkdir(parents=True)
        mine |= furnish(parent / name, ["features.json", "manifest.json", HALF])
        (parent / name / "deep").mkdir()
        mine |= furnish(parent / name / "deep")
    (parent / "file").write_text("mine")
    (parent / "dangling").symlink_to("nowhere")
    os.mkfifo(parent / "pipe")
    old = time.time() - 1e6
    for path in mine:
        os.utime(path, (old, old))
    assert cache.load("mine") is None and cache.load("mine", "key") is None
    with pytest.raises(OSError, match="not a gpuzoo cache entry"):
        cache.store(data, "key")
    cache.store(data, "other")
    assert cache.load("mine").fingerprint == data.fingerprint
    assert_untouched(mine)
    assert (parent / "file").exists() and (parent / "dangling").is_symlink()


@pytest.mark.parametrize("name", ["manifest.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "link"])
def test_a_damaged_entry_is_mended_and_its_company_stays(name, damage, data, tmp_path):
    cache.store(data, "key")
    entry = files.root() / "data" / "mine" / "key"
    mine = furnish(entry)
    path, outside = entry / name, tmp_path / "outside"
    content = path.read_bytes()[:100]
    path.unlink()
    if damage == "cut":
        path.write_bytes(content)
    elif damage == "link":
        outside.write_bytes(content)
        path.symlink_to(outside)
    assert cache.load("mine", "key") is None
    cache.store(data, "key")
    assert cache.load("mine", "key").fingerprint == data.fingerprint
    assert_untouched(mine)
    if damage == "link":
        assert outside.read_bytes() == content


def test_a_folder_of_ours_is_removed_as_far_as_it_is_ours(tmp_path):
    import re

    ours = re.compile("program-.")
    own = make_temporary_folder(tmp_path)
    furnish(own, ["program-1", "program-2", HALF])
    remove_own_folder(own, ours)
    assert not own.exists()
    shared = make_temporary_folder(tmp_path)
    furnish(shared, ["program-1"])
    mine = furnish(shared)
    foreign = tmp_path / HALF
    mine |= furnish(foreign, ["program-1"])  # our name, and not our marker
    link = tmp_path / "link"
    link.symlink_to(shared)
    for path in (link, shared, foreign):
        remove_own_folder(path, ours)
    assert_untouched(mine)
    assert (shared / MARKER).exists() and not (shared / "program-1").exists()


def test_a_record_of_a_bench_is_written_beside_a_strangers(tmp_path, monkeypatch):
    class Figure:
        def savefig(self, file, **_):
            PIL.Image.new("L", (2, 2)).save(file, "png")
            file.write(b"gpuzoo bench")  # as matplotlib writes what it is given

    found = {
        "recipe": {"name": "a"}, "runtime": {"device_name": "b"},
        "environment": {"versions": {}}, "modes": [], "conclusion": {},
    }  # fmt: skip
    monkeypatch.setattr(plots, "speeds", lambda found: Figure())
    mine = furnish(tmp_path, ["a-b.json", "a-b-2.png"])
    names = [pathlib.Path(bench.save(found, str(tmp_path))).name for _ in range(2)]
    assert names == ["a-b-3.json"] * 2  # its own it writes over
    assert_untouched(mine)


def test_an_empty_folder_of_the_users_is_not_taken_for_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/any-001").mkdir(parents=True)
    with RunFolder.create(None, "any", **FIELDS) as folder:
        assert folder.path.name == "any-002"
        mine = furnish(folder.path)
        folder.discard()
    assert_untouched(mine)
    assert {path.name for path in folder.path.iterdir()} == set(HIDDEN)
    assert not list((tmp_path / "runs/any-001").iterdir())


def test_what_is_discarded_after_a_rename(tmp_path):
    with RunFolder.create(str(tmp_path / "run"), "any", **FIELDS) as folder:
        folder.path.rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        folder.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    mine = furnish(tmp_path / "mine", ["one", "two"])
    os.symlink(tmp_path / "mine/one", tmp_path / "one")
    os.link(tmp_path / "mine/two", tmp_path / "two")
    for name in ("one", "two"):
        write_atomically(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
    write_atomically(tmp_path / "one", b"newer", replace=False)
    assert (tmp_path / "one").read_bytes() == b"new"
    assert_untouched(mine)
    folder = Folder(tmp_path)
    os.symlink(tmp_path / "mine", tmp_path / "sub")
    with pytest.raises(OSError, match="does not write through links"):
        folder.write_file("sub/file", b"")
    folder.close()
    assert not (tmp_path / "mine/file").exists()


def test_a_checkpoint_is_written_beside_a_strangers(tmp_path):
    """And the strangers' do not count as the ones that are kept."""

    def save(step, run="a"):
        arrays = {"state/a": np.full(3, step)}
        checkpoint.save(
            tmp_path / "c", checkpoint.Checkpoint(step, arrays, [], {}, run)
        )

    save(3, "b")
    mine = furnish(tmp_path / "c", ["step-000000009.safetensors"])
    theirs = (tmp_path / "c/step-000000003.safetensors").read_bytes()
    for step in (1, 2, 3, 3):
        save(step)
    assert_untouched(mine)
    assert (tmp_path / "c/step-000000003.safetensors").read_bytes() == theirs
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {
        "step-000000002.safetensors", "step-000000003.safetensors",
        "step-000000003-2.safetensors", "step-000000009.safetensors",
    }  # fmt: skip
    found, passed = checkpoint.load(tmp_path / "c", "a")
    assert found.step == 3 and found.run == "a"
    names = ("step-000000009.safetensors", "step-000000003.safetensors")
    assert passed == list(names)
    folder = Folder(tmp_path)
    checkpoint.remove(folder.sub("c"), "a")
    folder.close()
    assert len(list((tmp_path / "c").iterdir())) == 2


# --- the list -----------------------------------------------------------------------

CHANGES = {
    "NamedTemporaryFile", "TemporaryDirectory", "copy2", "copyfile", "copytree",
    "hardlink_to", "link", "make_temporary_folder", "makedirs", "mkdir", "mkdtemp",
    "mkstemp", "new_file", "remove_abandoned", "remove_file", "remove_if_empty",
    "remove_own_folder", "remove_temporary", "removedirs", "rename", "renames", "rmdir",
    "rmtree", "save_file", "savefig", "savez", "symlink", "symlink_to", "touch",
    "truncate", "unlink", "write_atomically", "write_bytes", "write_file", "write_text",
}  # fmt: skip
OF_MODULES = {
    ("np", "save"), ("os", "open"), ("os", "remove"), ("os", "replace"),
    ("shutil", "copy"),
    ("shutil", "move"),
}  # fmt: skip


def changing(tree) -> set[str]:
    """Names in a module that remove, rename, make or write files."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in CHANGES or (of, node.attr) in OF_MODULES:
                found.add(node.attr)
        elif isinstance(node, ast.Name) and node.id in CHANGES:
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {name.name for name in node.names} & CHANGES
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            words = [
                *node.args[:2],
                *(k.value for k in node.keywords if k.arg == "mode"),
            ]
            modes = [w.value for w in words if isinstance(w, ast.Constant)]
            if name == "open" and any(
                isinstance(mode, str) and len(mode) < 4 and set(mode) & set("wax+")
                for mode in modes
            ):
                found.add("open")
    return found


def test_every_place_that_removes_or_writes_is_in_the_list():
    """CONTRIBUTING.md, "What gpuzoo may delete or overwrite", names each with its calls."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## What gpuzoo may delete or overwrite")[2]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line[:3] == "| `"]
    listed: dict[str, set] = {}
    for place, calls, *rest in rows:
        assert all(cell.strip() for cell in rest) and len(rest) == 2, place
        module = place.split("`")[1]
        listed.setdefault(module, set()).update(calls.replace("`", "").split())
    found = {}
    for top in ("gpuzoo", "models", "recipes"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if calls := changing(ast.parse(path.read_text())):
                found[str(path.relative_to(ROOT))] = calls
    assert found == {name: calls - {"-"} for name, calls in listed.items()}


def test_the_search_finds_what_removes():
    for line in (
        "import shutil; shutil.rmtree(x)", "from os import unlink", "p.unlink()",
        "atexit.register(shutil.rmtree, x)", "open(p, 'w')", "p.open('ab')",
        "os.replace(a, b)", "open(p, mode='r+b')",
    ):  # fmt: skip
        assert changing(ast.parse(line)), line
    for line in ("text.replace(a, b)", "open(p)", "open(p, 'rb')", "d.replace(r, a=1)"):
        assert not changing(ast.parse(line)), line
