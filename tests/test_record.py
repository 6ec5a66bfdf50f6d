"""What a record says of paths, code and pictures, and what is made of it again."""

import json
import pwd
import shutil

import numpy as np
import pytest
from small import two_classes
from test_resume import start
from test_verify import edit_record, leave_order_out

import gpuzoo
from gpuzoo import files
from gpuzoo.home import redact, unredact
from gpuzoo.runs import divergence
from gpuzoo.runs.record import read_run, seal

HELPER = "ACTIVATION = 'relu'\n"
OWN = '''
import pathlib, keras, gpuzoo
from helper import ACTIVATION

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2, file: str = "scale.txt"):
    """Mine."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Rescaling(float(pathlib.Path(file).read_text()), name="scale")(inputs)
    x = keras.layers.Dense(8, ACTIVATION, name="dense")(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))
'''
WORDS = [
    "train", "mnist", "--model", "own.py:net", "--epochs", "4", "--batch-size", "16",
    "--device", "cpu", "--precision", "float32", "--threads", "2", "--digest-every",
    "5", "--quiet",
]  # fmt: skip


def furnish(folder):
    """What WORDS need."""
    np.savez(folder / "tiny.npz", **two_classes())
    (folder / "own.py").write_text(OWN)
    (folder / "helper.py").write_text(HELPER)
    (folder / "scale.txt").write_text("1.0")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a run of 20 steps, and all that it takes."""
    folder = tmp_path_factory.mktemp("original")
    furnish(folder)
    process = start([*WORDS, "--data", "tiny.npz", "--out", "run"], folder)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder


@pytest.fixture
def place(original, tmp_path):
    """A copy of that folder, in which commands run."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- paths --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/jane/x.npz", "~/x.npz"),
        ("/home/jane", "~"),
        ("--data=/home/jane/x.npz", "--data=~/x.npz"),
        ("weights=/home/jane/x.h5", "weights=~/x.h5"),
        ("weights='/home/jane/x.h5'", "weights='~/x.h5'"),
        ("/mnt/home/jane/x.npz", None),
        ("/home/janet/x.npz", None),
        ("data/home/jane/x", None),
        ("/mnt/a=/home/jane/x", None),
        ("1e-3", None),
        ("weights=file:///home/jane/x.h5", "weights=file://~/x.h5"),
        ("file://localhost/home/jane/x", "file://localhost~/x"),
        ("at=sftp://host/home/jane", "at=sftp://host~"),
        ("both=[/home/jane/a, /home/jane/b]", "both=[~/a, ~/b]"),
        ("path=/usr/lib:/home/jane/lib:/opt", "path=/usr/lib:~/lib:/opt"),
        ("x=('file:///home/jane/a','b')", "x=('file://~/a','b')"),
        ("https://example.org/home/janet/x", None),
    ],
)
def test_the_home_is_left_out_where_a_path_begins_with_it(path, told, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    assert redact(path) == (told or path)
    assert unredact(redact(path)) == path


@pytest.mark.parametrize(
    ("folder", "path", "told"),
    [
        ("home", "jane/m.py:net", "~/m.py:net"),
        ("home", "../home/jane/r3", "~/r3"),
        ("home", "--out=../home/jane/r3", "--out=~/r3"),
        ("home", "weights='jane/x.h5'", "weights='~/x.h5'"),
        ("home", "both=(jane/a, 'jane/b')", "both=(~/a, '~/b')"),
        ("home", "file=file://jane/a", "file=file://~/a"),
        ("", "home/jane/x", "~/x"),
        ("home/jane/work", "../../jane/x", "~/x"),
        ("home/jane/work", "../x.npz", None),
        ("home/jane/work", "jane/x.npz", None),
        ("home/jane", "data/x.npz", None),
        ("home", "jane", None),  # may be a recipe
        ("home", "janet/x", None),
        ("home", "a/jane/x", None),
    ],
)
def test_a_relative_path_through_the_home(folder, path, told, tmp_path, monkeypatch):
    home = tmp_path / "home/jane"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / folder)
    assert redact(path) == (told or path)
    if told:  # and is found again from anywhere
        monkeypatch.chdir("/")
        assert unredact(told) == told.replace("~", str(home))


def test_a_run_started_beside_the_home(cli, tmp_path):
    """Neither its record nor anything else tells the name of the user, and it is
    verified from another folder."""
    home = tmp_path / "jane.doe"
    home.mkdir()
    furnish(home)
    env = {"HOME": str(home)}
    words = [*WORDS, "--model", "jane.doe/own.py:net", "--data", "jane.doe/tiny.npz"]
    words += ["--model-options", "file=jane.doe/scale.txt", "--fast-dev-run"]
    done = cli(*words, "--out", f"../{tmp_path.name}/jane.doe/run", env=env)
    assert done.returncode == 0, done.stderr
    for path in (home / "run").rglob("*"):
        assert path.is_dir() or b"jane.doe" not in path.read_bytes(), path
    assert "jane.doe" not in done.stdout
    assert read_run(home / "run")["recipe"]["model"] == "~/own.py:net"


def test_without_a_home_nothing_is_left_out(monkeypatch):
    def unknown(number):
        raise KeyError(number)  # as of a user that the system does not know

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for path in ("/root/x.npz", "~/x.npz"):
        assert redact(path) == unredact(path) == path
    with pytest.raises(gpuzoo.GpuzooError, match="no home folder for that user"):
        files.expand("~/x.npz")


def test_the_home_of_nobody_is_one_line(cli_here):
    for words in (["verify"], ["verify", "--quick"], ["resume"], ["diff", "run"]):
        done = cli_here(*words, "~nosuch/run")
        assert done.returncode == 2 and "no home folder for that user" in done.stderr, (
            words
        )


def test_a_run_whose_paths_have_the_home_in_them(cli, tmp_path):
    home = tmp_path / "home"
    data = tmp_path / "mnt" / home.relative_to("/") / "tiny.npz"
    for folder in (home, data.parent):
        folder.mkdir(parents=True)
        furnish(folder)
    words = [*WORDS, "--model", home / "own.py:net", "--data", data, "--model-options"]
    env = {"HOME": str(home), "PYTHONPATH": str(home)}
    done = cli(*words, f"file={home / 'scale.txt'}", "--out", "run", env=env)
    assert done.returncode == 0, done.stderr
    recipe = read_run(tmp_path / "run")["recipe"]
    assert recipe["data"] == str(data) and recipe["model"] == "~/own.py:net"
    assert recipe["model_options"] == ["file=~/scale.txt"]
    done = cli("verify", "run", "--trust-code", env=env)
    assert done.returncode == 0, done.stderr


# --- doing it again -----------------------------------------------------------------


def test_a_run_that_diverges_when_done_again_differs(place, cli_here):
    leave_order_out(place / "run")
    assert cli_here("verify", "run", "--trust-code").returncode == 0
    (place / "scale.txt").write_text("1e38")
    for words in (["--quick"], ["--steps", "3"], []):
        done = cli_here("verify", "run", "--trust-code", *words)
        assert done.returncode == 2
        assert done.json["environment"] == ["inputs.scale.txt: input changed"]
        done = cli_here("verify", "run", "--trust-code", "--allow-drift", *words)
        assert done.returncode == 1 and done.json["verdict"] == "differs", done.stderr
        assert done.json["first_difference"]["step"] == 1
        assert done.json["weights"] == {}
        assert done.json["causes"][0].startswith("in the re-run, the loss became ")
        assert "inputs.scale.txt: input changed" in done.json["causes"]


def test_less_than_no_step_is_refused(place, cli_here):
    done = cli_here("verify", "run", "--steps", "-3")
    assert (
        done.returncode == 2 and "steps must be 0, for all, or more: -3" in done.stderr
    )


def test_a_trail_that_ends_too_early_differs_there(original):
    rows = divergence.read_digests(original / "run")
    assert divergence.count_losses(rows) == 20
    assert divergence.first_divergence(rows, rows[:2]) is None
    for pair in ((rows, rows[:2]), (rows[:2], rows)):
        assert divergence.first_divergence(*pair, 10) is None
        found = divergence.first_divergence(*pair, 11)
        assert (found.step, found.what) == (11, "missing loss")


def cut(run, rows, state="running"):
    """Make a run what it was when it had told so many digests."""
    kept = divergence.read_digests(run)[:rows]
    (run / "digests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (run / "weights.safetensors").unlink()
    record = read_run(run)
    for name in ("steps", "epochs", "parameters", "seconds", "weights_sha256", "files"):
        del record[name]
    record.update(state=state, finished=None)
    record["seal"] = seal(record)
    (run / "run.json").write_text(json.dumps(record))


def test_diff_of_runs_that_have_not_ended(place, cli_here):
    for name, rows in (("long", 3), ("short", 2), ("other", 2)):
        shutil.copytree(place / "run", place / name)
        cut(place / name, rows)
    for pair, steps in ((("long", "short"), 10), (("short", "run"), 10)):
        done = cli_here("diff", *pair)
        assert done.returncode == 1, done.stdout
        assert done.json["verdict"] == "equal as far as both go"
        assert done.json["compared"] == steps
        assert f"equal as far as both go, {steps} steps compared" in done.stdout
    done = cli_here("diff", "short", "other")
    assert done.returncode == 0 and done.json["verdict"] == "identical"


# --- the code -----------------------------------------------------------------------


def test_a_file_that_is_edited_between_two_trainings(cli, tmp_path):
    furnish(tmp_path)
    script = (
        "import gpuzoo, pathlib\n"
        "gpuzoo.configure(device='cpu', precision='float32', threads=2)\n"
        "def train(out):\n"
        "    gpuzoo.train('mnist', model='own.py:net', data='tiny.npz', batch_size=16,"
        " out=out, fast_dev_run=True, quiet=True)\n"
        "train('one'); train('two')\n"
        "own = pathlib.Path('own.py')\n"
        "own.write_text(own.read_text().replace('Dense(8', 'Dense(9'))\n"
        "train('three')\n"
    )
    done = cli(program=("-c", script))
    assert done.returncode == 0, done.stderr
    one, two, three = (
        read_run(tmp_path / name)["code"] for name in ("one", "two", "three")
    )
    assert one == two
    assert [name for name in one if one[name] != three[name]] == ["own.py"]


def test_a_model_file_that_is_gone_is_named(place, cli_here):
    (place / "own.py").unlink()
    shutil.copytree(place / "run", place / "killed")
    edit_record(place / "killed", state="running")
    for words in (["verify", "run", "--trust-code"], ["resume", "killed"]):
        done = cli_here(*words)
        assert done.returncode == 2 and "model file own.py: No such file" in done.stderr
        assert "restore the file" in done.stderr and "room" not in done.stderr


def test_the_runs_own_code_is_executed_only_if_one_says_so(place, cli_here):
    own = place / "own.py"
    own.write_text(OWN + "\npathlib.Path('executed').touch()\nraise SystemExit(0)\n")
    for words in (["verify", "run"], ["verify", "run", "--quick"]):
        done = cli_here(*words)
        assert done.returncode == 2 and "has user code, own.py:net" in done.stderr
        assert not (place / "executed").exists()
    done = cli_here("verify", "run", "--trust-code")
    assert done.returncode == 2 and (place / "executed").exists(), done.stderr
    assert "Executing the run's own code: own.py:net" in done.stderr
    with pytest.raises(gpuzoo.GpuzooError, match="trust_code=True"):
        gpuzoo.verify(place / "run")


# --- pictures -----------------------------------------------------------------------

STOPPED_AT = """
import signal, sys
from gpuzoo.cli import main
from gpuzoo.runs.folder import RunFolder

watch = RunFolder.watch

def and_stop(self, event, row):
    watch(self, event, row)
    if event == "train" and row["step"] == {step}:
        signal.raise_signal(signal.SIGINT)

RunFolder.watch = and_stop
main(sys.argv[1:])
"""
DRAWING = [
    "train", "mnist_gan", "--data", "digits", "--epochs", "4", "--eval-every", "2",
    "--batch-size", "256", "--log-every", "1", "--model-options", "filters=(4,8)",
    "--device", "cpu", "--precision", "float32", "--threads", "2", "--quiet",
]  # fmt: skip


def contents(run) -> dict:
    """The files of a run, but the record and the report, which shows it."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in ("run.json", "report.html")
    }


def test_a_drawing_run_that_was_stopped_leaves_no_sheet_of_its_own(cli, tmp_path):
    env = {"PYTHONHASHSEED": "0"}
    assert cli(*DRAWING, "--out", "whole", env=env).returncode == 0
    whole = contents(tmp_path / "whole")
    sheets = [name for name in whole if name.startswith("samples/")]
    assert sorted(sheets) == ["samples/epoch-002.png", "samples/epoch-004.png"]
    each = read_run(tmp_path / "whole")["steps"] // 4
    words = [*DRAWING, "--out", "run"]
    for epoch in (1, 3):
        code = STOPPED_AT.format(step=(epoch - 1) * each + 1)
        done = cli(*words, program=("-c", code), env=env)
        assert done.returncode == 130 and done.json["epochs"] == epoch - 1, done.stderr
        assert (tmp_path / f"run/samples/epoch-{epoch:03d}.png").exists()
        words = ["resume", "run"]
    assert cli(*words, env=env).returncode == 0
    assert contents(tmp_path / "run") == whole


def test_pictures_do_not_follow_the_users_settings(place, cli):
    (place / "matplotlibrc").write_text("font.size: 30\ntext.usetex: True\n")
    env = {"MATPLOTLIBRC": str(place), "MPLBACKEND": "bogus"}
    done = cli(*WORDS, "--data", "tiny.npz", "--out", "other", env=env)
    assert done.returncode == 0, done.stderr
    assert contents(place / "other") == contents(place / "run")


def test_tall_images_make_a_sheet_of_some_size(runtime, tmp_path):
    from gpuzoo.data.validate import make_dataset
    from gpuzoo.report import plots
    from gpuzoo.tasks import load

    tall = np.zeros((24, 6000, 4, 1), np.uint8)
    part = {"image": tall, "label": np.arange(24) % 2}
    dataset = make_dataset("tall", "made up", {"train": part, "test": part})
    rows = [{"split": "test", "epoch": 1, "step": 1, "loss": 1.0}]
    outputs = {"reconstruction": tall}
    plots.draw_all(tmp_path, load("autoencode").pictures, "T", rows, dataset, outputs)
    import PIL.Image

    with PIL.Image.open(tmp_path / "reconstructions.png") as sheet:
        assert sheet.height == plots.TALLEST * 110
