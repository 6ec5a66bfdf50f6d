"""What comes from elsewhere and would move bits: another run's checkpoints, Keras's
settings file, another order of sets, a helper module in a folder of its own."""

import json
import shutil

from test_resume import killed_after_a_checkpoint

from gpuzoo.runs import record

TRAIN = ["train", "mnist", "--data", "digits", "--device", "cpu", "--threads", "2",
         "--model", "mlp", "--checkpoint-every", "10"]  # fmt: skip
OTHER = {
    "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first",
    "backend": "tensorflow",
}  # fmt: skip

# Three layers side by side, in the order of a set.
SET = """
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (8, 8, 1), num_classes: int = 10):
    "Mine."
    inputs = keras.Input(input_shape)
    flat = keras.layers.Flatten()(inputs)
    sides = [keras.layers.Dense(16, activation=name, name=name)(flat)
             for name in {"relu", "tanh", "gelu"}]
    x = keras.layers.Concatenate()(sides)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="out")(x))
"""
HELPED = """
import pathlib, sys
sys.path.insert(0, str(pathlib.Path(__file__).parent / "FOLDER"))
import helper
""" + SET.replace("Dense(16", "Dense(helper.UNITS")


def test_another_runs_checkpoints_are_passed_over(tmp_path, cli_here):
    for seed in ("0", "1"):
        words = [*TRAIN, "--epochs", "400", "--seed", seed, "--precision", "float32"]
        killed_after_a_checkpoint(words, tmp_path)
        (tmp_path / "run").rename(tmp_path / seed)
    own = tmp_path / "0" / "checkpoints"
    shutil.copytree(tmp_path / "1" / "checkpoints", own, dirs_exist_ok=True)
    for path in own.iterdir():  # newer than its own
        if not (tmp_path / "1" / "checkpoints" / path.name).exists():
            path.unlink()
    done = cli_here("resume", "0")
    assert done.returncode == 2 and "its checkpoints are missing" in done.stderr
    assert "is damaged, a link or of another run" in done.stderr


def test_keras_settings_file_moves_no_bit(tmp_path, cli):
    convolutions = TRAIN[: TRAIN.index("--model")]  # whose images have a format
    plain = cli(*convolutions, "--fast-dev-run")
    for name in (".keras/keras.json", "home/keras.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(OTHER))
    homes = {"HOME": str(tmp_path), "KERAS_HOME": str(tmp_path / "home")}
    for words in (convolutions, [*convolutions, "--backend", "jax"]):
        done = cli(*words, "--fast-dev-run", env=homes)
        assert done.returncode == 0, done.stderr
        if done.json["backend"] == "tensorflow":
            assert done.json["weights_sha256"] == plain.json["weights_sha256"]


def test_the_order_of_sets_is_that_of_the_run(tmp_path, cli):
    (tmp_path / "mine.py").write_text(SET)
    words = [*TRAIN, "--model", "mine.py:net", "--epochs", "150"]
    odd = {"PYTHONHASHSEED": "3"}
    whole = cli(*words, "--out", "whole", env=odd)
    assert whole.returncode == 0, whole.stderr
    killed_after_a_checkpoint(words, tmp_path, env=odd)
    refused = cli("resume", "run", env={"PYTHONHASHSEED": "4"})
    assert refused.returncode == 2
    assert "PYTHONHASHSEED: '3' in the run, '4' here" in refused.stderr
    done = cli("resume", "run")
    assert done.json["weights_sha256"] == whole.json["weights_sha256"], done.stderr
    words = ["verify", "whole", "--steps", "20", "--trust-code"]
    assert cli(*words).json["verdict"] == "identical"


def test_helpers_in_a_folder_that_the_file_names_are_code_of_the_run(
    tmp_path, cli_here
):
    (tmp_path / "mine.py").write_text(HELPED.replace("FOLDER", "lib"))
    (tmp_path / "lib").mkdir()
    helper = tmp_path / "lib" / "helper.py"
    helper.write_text("UNITS = 16\n")
    words = [*TRAIN, "--model", "mine.py:net", "--epochs", "1", "--out"]
    assert cli_here(*words, "run").returncode == 0
    assert cli_here("verify", "run", "--trust-code").json["verdict"] == "identical"
    helper.write_text("UNITS = 17\n")
    assert cli_here("verify", "run", "--trust-code").json["verdict"] == "cannot compare"


def test_helpers_count_wherever_they_lie(tmp_path, cli_here):
    own, far = tmp_path / "own", tmp_path / "far"
    for folder in (own, far):
        folder.mkdir()
    (own / "mine.py").write_text(HELPED.replace("FOLDER", "../far"))
    (far / "helper.py").write_text("UNITS = 16\n")
    words = [*TRAIN, "--model", "own/mine.py:net", "--epochs", "1", "--out", "run"]
    assert cli_here(*words).returncode == 0
    (far / "helper.py").write_text("UNITS = 17\n")
    done = cli_here("verify", "run", "--trust-code")
    assert done.returncode == 2
    assert done.json["environment"] == ["code.helper: module changed"]


def test_a_forged_figure_is_named(tmp_path, cli_here):
    """Even if all digests are made anew."""
    words = [*TRAIN, "--precision", "float32", "--epochs", "1", "--out", "run"]
    assert cli_here(*words).returncode == 0
    file = tmp_path / "run" / "run.json"
    told = json.loads(file.read_text())
    told["metrics"]["test_accuracy"] = 0.999
    told["seal"] = record.seal(told)
    file.write_text(json.dumps(told))
    done = cli_here("verify", "run")
    assert done.returncode == 1 and done.json["changed_files"] == []
    assert done.json["causes"][0].startswith("test_accuracy: 0.999 in the run, 0.")
    file = tmp_path / "run" / "digests.jsonl"
    for old, new in (('"losses": "', '"losses": "g'), ('"weights"', '"weighty"')):
        good = file.read_text()
        file.write_text(good.replace(old, new, 1))
        done = cli_here("verify", "run")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.json["changed_files"] == ["digests.jsonl"]
        file.write_text(good)


def test_helpers_are_found_beside_a_linked_file_and_among_namesakes(tmp_path, cli_here):
    """One of the name stands in the folder of the process, one in another folder."""
    real, link = tmp_path / "real", tmp_path / "link"
    for folder in (real / "lib", real / "also", link):
        folder.mkdir(parents=True)
        (folder / "helper.py").write_text("UNITS = 8\n")
    (tmp_path / "helper.py").write_text("UNITS = 9\n")
    (real / "mine.py").write_text(HELPED.replace(
        'pathlib.Path(__file__).parent / "FOLDER"',
        'pathlib.Path(__file__).resolve().parent / "lib"',
    ))  # fmt: skip
    (link / "mine.py").symlink_to(real / "mine.py")
    words = [*TRAIN, "--model", "link/mine.py:net", "--epochs", "1", "--out", "run"]
    done = cli_here(*words)
    assert done.returncode == 0, done.stderr
    (real / "lib" / "helper.py").write_text("UNITS = 10\n")
    assert cli_here("verify", "run", "--trust-code").json["verdict"] == "cannot compare"


def test_a_run_of_the_command_line_is_verified_from_python(tmp_path, cli):
    """Where no order of sets is fixed."""
    assert cli(*TRAIN, "--epochs", "1", "--out", "run").returncode == 0
    script = "import gpuzoo; print(gpuzoo.verify('run')['verdict'])"
    done = cli(program=("-c", script), env={"PYTHONHASHSEED": "random"})
    assert done.stdout.splitlines()[-1] == "identical", done.stderr


def test_a_model_of_no_file_is_trained_with_a_word(tmp_path, cli):
    script = SET.replace("def net(", "def lone(") + (
        "gpuzoo.train('mnist', model='lone', data='digits', out='run',"
        " fast_dev_run=True)\n"
    )
    done = cli(program=("-c", script))
    assert done.returncode == 0, done.stderr
    assert "Note: model lone is defined in this process, not in a file" in done.stderr
    again = cli("verify", "run")
    assert again.returncode == 2 and "no model named 'lone'" in again.stderr
