"""What is not gpuzoo's own is never removed, written over or written through."""

import ast
import json
import os
import pathlib
import shutil
import signal
import time

import PIL.Image
import pytest
from conftest import ROOT
from small import splits
from test_resume import HALF, killed_after_a_checkpoint, start

from gpuzoo import files
from gpuzoo.bench import bench
from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.data import cache
from gpuzoo.data.validate import make_dataset
from gpuzoo.files import (
    MARKER,
    Folder,
    make_temporary_folder,
    remove_own_folder,
    write_atomically,
)
from gpuzoo.report import plots
from gpuzoo.repro.verify import changed_files
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


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """A run that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("dead")
    killed_after_a_checkpoint(WORDS, folder)
    return folder / "run"


@pytest.fixture
def killed(dead, tmp_path):
    """A copy of it, in the working directory of the test."""
    return shutil.copytree(dead, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, never killed."""
    folder = tmp_path_factory.mktemp("whole")
    process = start([*WORDS, "--out", "run"], folder)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder / "run"


def test_files_of_the_users_in_a_run_folder_outlive_every_verb(killed, whole, cli_here):
    run = killed
    mine = furnish(run) | furnish(run / "checkpoints")
    mine |= furnish(run / "samples", [*HIDDEN, "epoch-001.png", "epoch-mine.png"])
    # Names of checkpoints, which sort before and after the run's own.
    steps = [f"step-{n:09d}.safetensors" for n in (1, 999_999_999)]
    mine |= furnish(run / "checkpoints", steps)
    (run / HALF).touch()
    resumed = cli_here("resume", "run", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert_untouched(mine)
    assert not (run / HALF).exists()
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {*HIDDEN, *steps}  # and none of the run's
    assert resumed.json["weights_sha256"] == read_run(whole)["weights_sha256"]
    for words in (["resume", "run"], ["verify", "run"], ["diff", "run", whole]):
        assert cli_here(*words).returncode == 0, words
    assert_untouched(mine)


@pytest.mark.parametrize("behind", ["folder", "file"])
def test_checkpoints_behind_a_link_are_not_the_runs(behind, killed, tmp_path, cli_here):
    checkpoints, away = killed / "checkpoints", tmp_path / "away"
    if behind == "folder":
        checkpoints.rename(away)
        checkpoints.symlink_to(away)
    else:
        away.mkdir()
        for path in checkpoints.iterdir():
            path.rename(away / path.name)
            path.symlink_to(away / path.name)
    before = {path: path.read_bytes() for path in away.iterdir()}
    done = cli_here("resume", "run")
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


def kept(folder) -> dict[str, str]:
    """What has been set aside: new name -> content."""
    return {path.name: path.read_text() for path in folder.rglob("*.kept-*")}


def test_names_of_outputs_that_were_taken_while_it_was_dead(
    killed, whole, tmp_path, cli_here
):
    run = killed
    names = ["weights.safetensors", "curves.png", "confusion.png", "digests.jsonl"]
    furnish(run, names)
    (tmp_path / "mine").write_text("mine: mistakes.png")
    (run / "curves.kept-1.png").write_text("an older one")
    resumed = cli_here("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert kept(run) == {
        "weights.kept-1.safetensors": "mine: weights.safetensors",
        "curves.kept-1.png": "an older one", "curves.kept-2.png": "mine: curves.png",
        "confusion.kept-1.png": "mine: confusion.png",
        "digests.kept-1.jsonl": "mine: digests.jsonl",
    }  # fmt: skip
    told = "weights.safetensors was not written by this run; it is kept as weights.kept-1.safetens"
    assert told in resumed.stderr
    assert cli_here("diff", "run", whole).json["verdict"] == "identical"


# --- a run can always be ended ------------------------------------------------------


def test_pictures_never_stand_in_the_way_of_the_end(tmp_path, cli_here):
    """Folders in their places, and samples that is a link."""
    words = ["train", "mnist_gan", "--data", "digits", "--epochs", "12", "--batch-size",
             "256", "--eval-every", "1", "--model-options", "filters=(4,8)",
             "--checkpoint-every", "4", "--device", "cpu", "--precision", "float32",
             "--quiet"]  # fmt: skip
    run = tmp_path / "run"
    process = start([*words, "--out", "run"], tmp_path)
    deadline = time.monotonic() + 300
    while not (run / "samples").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (run / "curves.png").mkdir()
    (run / "samples").rename(tmp_path / "away")
    (run / "samples").symlink_to(tmp_path / "away")
    before = {path: path.read_bytes() for path in (tmp_path / "away").iterdir()}
    done = cli_here("resume", "run")
    assert done.returncode == 0, done.stderr
    assert "link" in done.stderr and "could not be drawn" in done.stderr
    assert read_run(run)["state"] == "finished" and read_run(run)["not_drawn"]
    assert {p: p.read_bytes() for p in (tmp_path / "away").iterdir()} == before
    assert cli_here("verify", "run", "--quick").returncode == 0


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
