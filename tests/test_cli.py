"""The command line as a user meets it: in fresh processes, with its exit codes."""

import json
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REAL_DATA, ROOT, environment
from reference import known_digests

import gpuzoo
from gpuzoo.catalogue import recipes
from gpuzoo.cli import app
from gpuzoo.runs.record import read_run
from gpuzoo.runtime import bootstrap

KEYS = {
    "recipe", "model", "data", "backend", "device", "precision", "xla", "deterministic",
    "seed", "epochs", "test_loss", "train_seconds", "wall_seconds", "weights_sha256",
    "run_dir",
}  # fmt: skip
FILES = {
    "run.json", "metrics.jsonl", "digests.jsonl", "weights.safetensors", "curves.png",
    "report.html", "state.safetensors",
}  # fmt: skip
DRAWN = {"samples.png", "samples"}
PICTURES = {
    "digit_detection": {"detections.png"},
    "films": {"confusion.png", "film_mistakes.png"},
    "forecast": {"forecasts.png"},
    "mnist_autoencoder": {"reconstructions.png"},
    "mnist_conditional_gan": DRAWN,
    "mnist_diffusion": DRAWN,
    "mnist_gan": DRAWN,
    "mnist_vae": {"reconstructions.png", *DRAWN},
    "mnist_wgan": DRAWN,
    "glyphs": {"similarities.png", "worst_pairs.png"},
    "market": {"forecasts.png"},
    "moving_mnist": {"frames.png"},
    "next_move": {"confusion.png"},
    "shapes": {"detections.png"},
    "segmentation": {"segmentations.png", "confusion_of_pixels.png"},
    "speech": {"confusion.png"},
    "table": {"predicted_true.png", "residuals.png"},
    "text": {"confusion.png"},
    "tones": {"confusion.png"},
}  # of other recipes:
CLASSIFIED = {"confusion.png", "mistakes.png"}


def script_of(name: str):
    named = ROOT / "recipes" / f"{name}.py"
    return named if named.exists() else ROOT / "recipes" / f"train_{name}.py"


FRESH = ("mnist", "mnist_gan")
TOGETHER = [name for name in gpuzoo.list_recipes() if name not in FRESH]


def words_of(name: str) -> list[str]:
    words = ["--fast-dev-run", "--device", "cpu"]
    own = (
        "films", "forecast", "glyphs", "market", "next_move", "segmentation", "shapes",
        "speech", "table", "text", "tones",
    )  # fmt: skip
    return words + ([] if name in own else ["--data", "digits"])


def check_recipe(name: str, told: dict, folder: pathlib.Path) -> None:
    run = folder / told["run_dir"]
    wanted = FILES | PICTURES.get(name, CLASSIFIED)
    assert {path.name for path in run.iterdir()} == wanted, name
    record = read_run(run)
    assert record["state"] == "finished" and record["steps"] == 2, name
    assert record["weights_sha256"] == told["weights_sha256"]
    report = (run / "report.html").read_bytes()
    shown = {one for one in record["files"] if re.fullmatch(r"\w+\.(png|gif)", one)}
    assert report.count(b"<img ") == len(shown - {"curves.png"}), name
    assert report.count(b"<polyline ") >= 2, name
    missing = {"test_accuracy"} | ({"test_loss"} if name == "glyphs" else set())
    assert KEYS - missing <= set(told), name
    assert bool(record["recipe"]["teacher"]) == name.startswith("distill")
    assert record["recipe"]["name"] == name
    runtime, found = record["runtime"], record["weights_sha256"][:16]
    keys = ("first steps of recipes", runtime["precision"], name)
    known = known_digests(found, runtime["threads"], *keys)
    assert known == dict.fromkeys(known, found), name


@pytest.mark.parametrize("name", FRESH)
def test_recipe_runs_both_ways(name, cli, tmp_path):
    """`gpuzoo train X` and `python recipes/train_X.py` are one program."""
    script = cli(*words_of(name), program=(script_of(name),))
    named = cli("train", name, *words_of(name))
    for done in (script, named):
        assert done.returncode == 0, done.stderr
        check_recipe(name, done.json, tmp_path)
    assert script.json["run_dir"] != named.json["run_dir"]
    assert script.json["weights_sha256"] == named.json["weights_sha256"]


@pytest.mark.parametrize("names", [TOGETHER[part::4] for part in range(4)], ids="abcd")
def test_every_other_recipe_runs(names, cli_several, tmp_path):
    """Its file, as a script."""
    commands = [[script_of(name), *words_of(name)] for name in names]
    if "distill_cifar10" in names:  # its teacher is a run of the user's
        commands[names.index("distill_cifar10")] += ["--teacher", "taught"]
        teacher = [script_of("mnist"), *words_of("mnist"), "--out", "taught"]
        commands, names = [teacher, *commands], ["mnist", *names]
    results = cli_several(*commands)
    for name, done in zip(names, results, strict=True):
        assert done.returncode == 0, (name, done.stderr)
        check_recipe(name, done.json, tmp_path)


@pytest.mark.parametrize("name", gpuzoo.list_recipes())
def test_help_shows_every_field_and_its_meaning(name, cli, help_here):
    if name in FRESH:
        named = cli("train", name, "--help")
        script = cli("--help", program=(script_of(name),))
        assert named.returncode == script.returncode == 0
        named, script = named.stdout, script.stdout
    else:
        named, script = help_here("train", name), help_here(script_of(name))
    for text in (named, script):
        words = "model-options label-smoothing precision out threads"
        for field in words.split():
            assert f"--{field}" in text
        assert "Fraction of the target spread evenly over all classes" in text
    assert named.splitlines()[2:] == script.splitlines()[2:]


@pytest.fixture
def help_here(monkeypatch, capsys):
    """The help of a verb or of a script, made in this process."""
    monkeypatch.setattr(bootstrap, "ours", bootstrap.ours)  # to be restored
    monkeypatch.setenv("COLUMNS", "200")

    def text(*words) -> str:
        script = words[0] != "train"
        monkeypatch.setattr(sys, "argv", [*map(str, words), "--help"])
        with pytest.raises(SystemExit) as ended:
            if script:
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                app.main(sys.argv)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return text


def test_without_network_and_data_the_digits_are_learned(cli, no_network, tmp_path):
    done = cli("train", "mnist", env=no_network)
    assert done.returncode == 0, done.stderr
    assert done.json["data"] == "digits" and done.json["test_accuracy"] >= 0.97
    lines = done.stderr.splitlines()
    assert "no network" in lines[0] and "Training on digits instead" in lines[0]
    assert sum("digits" in line for line in lines) >= 2
    assert "on digits (mnist unavailable)" in done.stderr
    assert read_run(tmp_path / done.json["run_dir"])["data"]["name"] == "digits"


def test_a_dataset_that_was_named_is_never_replaced(cli, no_network):
    done = cli("train", "mnist", "--data", "mnist", env=no_network)
    assert done.returncode == 2 and "no network" in done.stderr
    assert "--data-dir" in done.stderr


@pytest.mark.skipif(REAL_DATA is None, reason="GPUZOO_TEST_DATA names no TFDS folder")
def test_real_mnist_to_99_percent(cli):
    done = cli("train", "mnist", "--data-dir", REAL_DATA, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.json["data"] == "mnist" and done.json["test_accuracy"] >= 0.988
    assert done.json["peak_memory_bytes"] < 1.5e9


# --- repeatable ---------------------------------------------------------------------


def test_fresh_processes_give_the_same_bits(cli, tmp_path):
    """Whatever is watched and however it is shown; another seed is the control."""
    base = ["train", "mnist", "--data", "digits", "--epochs", "4", "--device", "cpu",
            "--threads", "2", "--augment", "translate:1",
            "--model-options", "dropout=0.3"]  # fmt: skip
    plain = cli(*base)
    watched = cli(*base, "--log-every", 7, "--eval-every", 3, "--digest-every", 11,
                  "--checkpoint-every", 0, "--quiet",
                  env={"FORCE_COLOR": "1", "PYTHONHASHSEED": "5"})  # fmt: skip
    control = cli(*base, "--seed", 1)
    digests = [done.json["weights_sha256"] for done in (plain, watched, control)]
    assert digests[0] == digests[1] != digests[2]
    assert plain.json["test_loss"] == watched.json["test_loss"]
    trail = (tmp_path / plain.json["run_dir"] / "digests.jsonl").read_text()
    assert json.loads(trail.splitlines()[-1])["step"] == plain.json["steps"]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_xla_and_determinism_at_once(precision, cli, tmp_path):
    """What stock Keras turns off: both in force, and equal bits in fresh processes."""
    words = ["train", "mnist", "--data", "digits", "--epochs", "1", "--xla", "on",
             "--precision", precision, "--device", "cpu", "--model-options",
             "filters=(2,4)", "kernel_sizes=(3,3)", "dense=16"]  # fmt: skip
    first, second = cli(*words), cli(*words)
    assert first.returncode == 0, first.stderr
    assert first.json["xla"] is True and first.json["deterministic"] is True
    assert first.json["precision"] == precision
    assert first.json["weights_sha256"] == second.json["weights_sha256"]


# --- errors -------------------------------------------------------------------------

QUICK = {
    "command": (["trian"], "no command named 'trian'; nearest: train"),
    "option as command": (["--quiet", "list"], "no command named '--quiet'"),
    "recipe": (["train", "mnits"], "no recipe named 'mnits'; nearest: mnist"),
    "recipe of bench": (["bench", "mnits"], "no recipe named 'mnits'; nearest: mnist"),
    "option before recipe": (["train", "--epochs", "3", "mnist"], "the recipe comes first: gpuzoo train RECIPE --epochs"),
    "no run": (["verify"], "RUN The run folder"),
    "two runs": (["resume", "a", "b"], "unknown: b; see gpuzoo resume --help$"),
    "option of verify": (["verify", "a", "--stepps", "3"], "--steps"),
    "model as recipe": (["bench", "gru"], "a model; recipes that train it: mnist_gru; or use"),
    "model": (["train", "mnist", "--model", "cmn"], "no model named 'cmn'; nearest: .*cnn"),
    "file": (["train", "mnist", "--model", "mine.py"], "name its function too: mine.py:function"),
    "info": (["info", "mlpp"], "no model named 'mlpp'; nearest: mlp"),
    "task": (["list", "--task", "x"], "task must be one of"),
    "option": (["train", "mnist", "--epoch", "3"], "--epochs"),
    "value type": (["train", "mnist", "--epochs", "many"], "error: --epochs: must be an integer: 'many'; see gpuzoo train mnist --help$"),
    "value": (["train", "mnist", "--epochs", "0"], "error: epochs .* at least 1: 0; see gpuzoo train mnist --help$"),
    "name": (["train", "mnist", "--name", "../x"], "letters, digits"),
    "rate": (["train", "mnist", "--learning-rate", "nan"], "positive number: nan"),
    "choice": (["train", "mnist", "--precision", "int3"], "--precision"),
    "device": (["train", "mnist", "--device", "tpu"], "--device"),
    "folder taken": (["train", "mnist", "--out", "."], "exists and is not an empty folder"),
    "folder is a file": (["train", "mnist", "--out", "file/run"], "cannot be written"),
}  # fmt: skip
SLOW = {
    "gpu": (["--device", "gpu"], "device gpu was requested, but"),
    "threads": (["--threads", "-1"], r"threads must be in 0\.\.1024: -1"),
    "model shape": (["--model-options", "num_classes=5"], "cannot set num_classes"),
    "translate": (["--data", "digits", "--augment", "translate:28"], "leaves nothing of images of 28x28"),
    "unused field": (["--momentum", "0.5"], "momentum is used by sgd, muon, not by the optimizer adam"),
    "steps": (["--data", "digits", "--epochs", "9999999"], "8000000 is the most"),
    "odd data name": (["--data", "fashion-mnist"], "no dataset named 'fashion-mnist'"),
    "no such home": (["--data-dir", "~nosuch/x"], "no home folder for that user"),
    "parents": (["--out", "a/b/c", "--data", "none.npz"], "there is no such file"),
    "model option": (["--model-options", "dens=3"], "no option 'dens'; nearest: dense"),
    "model json": (["--data", "digits", "--model", "{nope"], "no model named '{nope'"),
    "model json text": (["--data", "digits", "--model", '{"config": {"name": "a"}}'], "check its path"),
    "model value": (["--model-options", "dense=x"], "option 'dense'.*'x'"),
    "model syntax": (["--model-options", "dense"], "must look like key=value: 'dense'"),
    "augment": (["--augment", "tranlsate:2"], "unknown augmentation 'tranlsate'; nearest: translate"),
    "batch": (["--data", "digits", "--batch-size", "5000"], "larger than the 1438"),
    "data file": (["--data", "none.npz"], "data 'none.npz': there is no such file"),
    "data folder": (["--data", "none/"], "there is no such folder"),
    "data is a picture": (["--data", __file__], "it is a file; expected a .npz or .csv file"),
    "data name": (["--data", "mnits"], "no dataset named 'mnits'"),
    "data dir": (["--data-dir", "none"], "--data-dir 'none': there is no such folder"),
    "strict": (["--level", "strict"], "strict refuses XLA_FLAGS=--xla_x"),
}  # fmt: skip


def check_error(done, message, folder: pathlib.Path, before: set):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gpuzoo: error: "), done.stderr
    assert __import__("re").search(message, lines[0]), lines[0]
    assert done.stdout == ""
    assert {path.name for path in folder.iterdir()} - {"cache"} == before


@pytest.mark.parametrize("name", QUICK)
def test_wrong_use_is_one_line(name, cli_here, tmp_path):
    (tmp_path / "file").write_text("x")
    words, message = QUICK[name]
    check_error(cli_here(*words), message, tmp_path, {"file"})


@pytest.mark.parametrize("name", SLOW)
def test_bad_settings_are_one_line_and_leave_nothing(name, cli, tmp_path, no_network):
    words, message = SLOW[name]
    if name == "gpu" and gpu_is_there():
        pytest.skip("there is a GPU")
    env = {**no_network, "CUDA_VISIBLE_DEVICES": ""}
    if name == "strict":
        env["XLA_FLAGS"] = "--xla_x"
    check_error(cli("train", "mnist", *words, env=env), message, tmp_path, set())


def gpu_is_there() -> bool:
    return pathlib.Path("/proc/driver/nvidia/version").exists()


def test_debug_shows_the_traceback(cli):
    done = cli("train", "mnist", "--model", "cmn", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_no_words_print_the_help(cli):
    done = cli()
    assert done.returncode == 2 and not done.stderr
    asked = cli("--help")
    assert asked.returncode == 0 and asked.stdout == done.stdout
    lines = [line for line in done.stdout.splitlines() if "•" in line]
    assert [line.split()[2] for line in lines] == [
        "list", "info", "train", "resume", "launch", "sweep", "runs", "verify", "audit", "report",
        "compare", "diff", "evaluate", "predict", "export", "compress",
        "robustness", "serve", "check", "bench", "compile", "doctor", "new-key", "sign",
        "check-signature", "encrypt", "decrypt",
    ]  # fmt: skip
    assert all(len(line.split()) > 5 for line in lines)  # each with its meaning


@pytest.mark.parametrize("verb", ["train", "sweep", "bench"])
def test_help_of_a_command_shows_every_recipe_and_what_it_is(verb, cli_here):
    done = cli_here(verb, "--help")
    assert done.returncode == 0 and cli_here(verb).returncode == 2
    text = " ".join(done.stdout.replace("│", " ").split())
    for name in gpuzoo.list_recipes():
        module = recipes.module_of(name)
        assert f"• {name} {module.__doc__.partition(chr(10))[0]}" in text


def test_help_needs_no_catalogue():
    """`gpuzoo --help` answers at once."""
    code = (
        "import sys, contextlib; from gpuzoo.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print([m for m in ('numpy', 'rich', 'typeguard', 'gpuzoo.catalogue') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_users_own_npz_trains(cli_here, npz, tmp_path):
    done = cli_here(
        "train", "mnist", "--data", npz, "--batch-size", "16", "--epochs", "6"
    )
    assert done.returncode == 0, done.stderr
    assert done.json["data"] == "tiny" and done.json["test_accuracy"] > 0.9


def test_diverging_is_exit_code_1_and_recorded(cli_here, tmp_path):
    done = cli_here("train", "mnist", "--data", "digits", "--learning-rate", "1e30",
               "--optimizer", "sgd", "--digest-every", "1")  # fmt: skip
    assert done.returncode == 1 and "the weights of step" in done.stderr
    run = tmp_path / "runs" / "mnist-digits-001"
    record = read_run(run)
    assert record["state"] == "diverged" and "step" in record["error"]
    assert (run / "weights.safetensors").exists()
    assert done.json["state"] == "diverged" and done.json["error"] == record["error"]
    assert done.json["diagnosis"]["cause"] == "learning rate" and done.json["run_dir"]
    assert f"gpuzoo: error: {record['error']}\n" in done.stderr


@pytest.mark.parametrize("limit", [1_000, 300_000])
def test_a_full_disk_is_one_line_and_leaves_no_half(limit, cli, tmp_path):
    """Writing fails at the record, or only at the weights."""
    done = cli("train", "mnist", "--data", "digits", "--epochs", "1", file_bytes=limit)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "gpuzoo: error: output folder" in last and "--out" in last
    run = tmp_path / "runs" / "mnist-digits-001"
    if limit == 1_000:
        assert not run.exists()
    else:
        assert "gpuzoo resume" in last
        names = {path.name for path in run.iterdir()}
        assert names == {"run.json", "metrics.jsonl", "digests.jsonl"}
        again = cli("resume", run)
        assert again.returncode == 0 and read_run(run)["state"] == "finished"


@pytest.mark.parametrize("where", ["2>&1 | head -1", "2>/dev/full", "2>&-", "| true"])
def test_a_terminal_that_goes_away_stops_no_run(where, cli, tmp_path):
    words = "train mnist --model mlp --data digits --epochs 2"
    command = f"{sys.executable} -m gpuzoo {words} {where}"
    subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, check=False
    )
    assert read_run(tmp_path / "runs" / "mnist-digits-001")["state"] == "finished"


def test_a_full_stdout_is_one_line(cli, tmp_path):
    command = f"{sys.executable} -m gpuzoo list > /dev/full"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_setting_up_leaves_nothing(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", "train", "mnist", "--data", "digits"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while (
        not (tmp_path / "runs/mnist-digits-001").exists()
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == "gpuzoo: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_names_that_look_like_formulas_and_odd_channels(cli_here, tmp_path):
    rng = np.random.default_rng(0)
    names = np.array(["$x_{", "caf\u00e9 \u732b"])[np.arange(60) % 2]
    np.savez(tmp_path / "odd.npz", x=rng.random((60, 12, 12, 2)), y=names)
    done = cli_here(
        "train", "mnist", "--data", "odd.npz", "--fast-dev-run", "--batch-size", "8"
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_ctrl_c_ends_cleanly(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", "train", "mnist", "--data", "digits",
         "--epochs", "100000", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environment(tmp_path),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Stopped after step" in stderr and "Traceback" not in stderr
    summary = json.loads(stdout.splitlines()[-1])
    record = read_run(out)
    assert summary["state"] == record["state"] == "stopped"
    assert {path.name for path in out.iterdir()} == (
        FILES | CLASSIFIED | {"checkpoints"}
    ) - {"state.safetensors"}


def test_train_takes_what_was_configured(cli, tmp_path):
    code = (
        "import gpuzoo; r = gpuzoo.configure(precision='float32', threads=1);"
        "gpuzoo.train('mnist', data='digits', fast_dev_run=True, quiet=True, out='run')"
    )
    done = cli(program=("-c", code))
    assert done.returncode == 0, done.stderr
    assert "float32" in done.stderr and len(done.stderr.splitlines()) == 1
    runtime = read_run(tmp_path / "run")["runtime"]
    assert (runtime["precision"], runtime["threads"]) == ("float32", 1)


def test_record_tells_no_home_and_no_environment(cli, tmp_path, monkeypatch):
    home = tmp_path / "home" / "jane.doe"
    home.mkdir(parents=True)
    path, rng = home / "mine.npz", np.random.default_rng(0)
    np.savez(path, x=rng.random((60, 12, 12)), y=np.arange(60) % 2)
    env = {"HOME": str(home), "SECRET_TOKEN": "hunter2"}
    done = cli("train", "mnist", "--data", path, "--fast-dev-run", "--batch-size", "8",
               env=env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / done.json["run_dir"] / "run.json").read_text()
    assert "jane.doe" not in text and "hunter2" not in text
    assert json.loads(text)["recipe"]["data"] == "~/mine.npz"


def test_the_table_of_exit_codes_has_each_of_them():
    from gpuzoo.errors import ExitCode

    page = pathlib.Path(__file__).parent.parent / "docs" / "howto" / "scripts.md"
    rows = [
        line.split("|")[1].strip()
        for line in page.read_text().splitlines()
        if line.startswith("| ")
    ]
    assert rows[1:] == [str(code.value) for code in ExitCode]
