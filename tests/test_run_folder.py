"""A run's folder: it reads, writes over and removes what is its own, and nothing else."""

import hashlib
import json
import os
import signal

import numpy as np
import PIL.Image
import pytest
from test_ownership import FIELDS, HIDDEN, assert_untouched, furnish, kept

import gpuzoo
from gpuzoo.engine import checkpoint
from gpuzoo.files import Folder, read_inside
from gpuzoo.report import plots
from gpuzoo.repro.verify import changed_files
from gpuzoo.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """A folder that a run has just made."""
    with RunFolder.create(str(tmp_path / "run"), "any", **FIELDS) as folder:
        yield folder


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
