"""A planted difference is found by verify or diff, and named."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from small import two_classes
from test_resume import start

import gpuzoo
from gpuzoo.repro import causes
from gpuzoo.runs import chain, divergence
from gpuzoo.runs.record import seal

WORDS = ["--epochs", "12", "--batch-size", "8", "--device", "cpu", "--threads", "2",
         "--precision", "float32", "--digest-every", "20", "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of 120 steps on a dataset of the user's own, and the dataset."""
    folder = tmp_path_factory.mktemp("original")
    np.savez(folder / "tiny.npz", **two_classes())
    words = ["train", "mnist", "--data", folder / "tiny.npz", *WORDS, "--out", "run"]
    process = start(words, folder)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder


@pytest.fixture
def npz(original):
    """The dataset of the run; whatever a test does to it is undone."""
    path = original / "tiny.npz"
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@pytest.fixture
def run(original, tmp_path):
    """A copy of the run, to be spoiled."""
    shutil.copytree(original / "run", tmp_path / "run")
    return tmp_path / "run"


def edit_record(run, **fields):
    """Change the record as somebody would who also renews its seal."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    record.update(fields)
    record["files"] = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in record["files"]
    }
    record["weights_sha256"] = record["files"]["weights.safetensors"]
    record["seal"] = seal(record)
    path.write_text(json.dumps(record))


def write_digests(run, rows):
    """Write rows of digests.jsonl, with a chain that holds."""
    before, text = chain.START, ""
    for row in rows:
        row = chain.chained(chain.without(row), before)
        before, text = row["chain"], f"{text}{json.dumps(row)}\n"
    (run / "digests.jsonl").write_text(text)


def leave_order_out(run) -> None:
    """Take the order of sets out of the record of a run."""
    runtime = json.loads((run / "run.json").read_text())["runtime"]
    runtime["variables"].pop("PYTHONHASHSEED", None)
    edit_record(run, runtime=runtime)


def test_an_honest_run_is_identical(run, cli_here):
    done = cli_here("verify", run)
    assert done.returncode == 0, done.stderr
    assert done.json["verdict"] == "identical" and done.json["steps"] == 120


def test_the_first_steps_of_an_honest_run_are_identical(here, cli_here):
    for words, steps in ((["--quick"], 20), (["--steps", "33"], 33)):
        done = cli_here("verify", here, *words)
        assert done.returncode == 0 and done.json["steps"] == steps, done.stderr


def test_one_ulp_in_one_weight_is_named(here, cli_here):
    path = here / "weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    kernel = weights["conv_2/kernel"].reshape(-1)
    kernel[17] = np.nextafter(kernel[17], np.float32(9))
    path.write_bytes(safetensors.numpy.save(weights))
    plain = cli_here("verify", here)
    edit_record(here)
    forged = cli_here("verify", here)
    assert plain.returncode == forged.returncode == 1
    assert plain.json["changed_files"] == ["weights.safetensors"]
    assert forged.json["changed_files"] == []
    for done in (plain, forged):
        assert done.json["weights"] == {"conv_2/kernel": 1}
        assert done.json["first_difference"] is None
    assert "conv_2/kernel differs by 1 ulp" in forged.stderr


def test_one_bit_in_one_loss_is_named_by_its_step(here, cli_here):
    rows = divergence.read_digests(here)
    losses = rows[2]["losses"]
    bit = f"{int(losses[8 * 4 : 8 * 4 + 2], 16) ^ 1:02x}"
    rows[2]["losses"] = losses[: 8 * 4] + bit + losses[8 * 4 + 2 :]
    write_digests(here, rows)
    edit_record(here)
    done = cli_here("verify", here)
    assert done.returncode == 1
    assert done.json["first_difference"]["step"] == 45
    assert done.json["first_difference"]["what"] == "loss"
    assert "first difference: loss of step 45" in done.stderr


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "digests.jsonl", "curves.png", "confusion.png"]
)
def test_a_changed_file_is_named(name, here, cli_here):
    path = here / name
    path.write_bytes(path.read_bytes() + b"\n")
    done = cli_here("verify", here)
    assert done.returncode == 1 and done.json["changed_files"] == [name]
    assert done.json["causes"][0].endswith(name)


def test_a_changed_record_is_named(here, cli_here):
    path = here / "run.json"
    path.write_text(
        path.read_text().replace('"test_accuracy": 1.0', '"test_accuracy": 0.5')
    )
    done = cli_here("verify", here)
    assert done.returncode == 1 and done.json["changed_files"] == ["run.json"]
    path.unlink()
    done = cli_here("verify", here)
    assert done.returncode == 2 and "is not a run folder" in done.stderr


def test_one_pixel_is_named(here, cli_here, npz, arrays):
    arrays["x_train"][5, 3, 3, 0] ^= 1
    np.savez(npz, **arrays)
    done = cli_here("verify", here)
    assert done.returncode == 2 and done.json["verdict"] == "cannot compare"
    assert [field.partition(":")[0] for field in done.json["environment"]] == [
        "data.fingerprint"
    ]
    again = cli_here("train", "mnist", "--data", npz, *WORDS, "--out", "other")
    assert again.returncode == 0
    found = cli_here("diff", here, "other").json
    assert [row[0] for row in found["data"]] == ["data.fingerprint"]
    assert found["verdict"] == "differs" and found["settings"] == []


def test_one_flag_is_named(run, cli):
    done = cli("verify", run, env={"TF_ENABLE_ONEDNN_OPTS": "0"})
    assert done.returncode == 2
    flag, effect = done.json["environment"]
    assert flag.startswith("variables.TF_ENABLE_ONEDNN_OPTS")
    assert effect.startswith("runtime.onednn: True in the run, False here")
    drifted = cli("verify", run, "--allow-drift", env={"TF_ENABLE_ONEDNN_OPTS": "0"})
    assert drifted.returncode in (0, 1)
    if drifted.returncode == 1:
        assert "TF_ENABLE_ONEDNN_OPTS" in drifted.json["causes"][0]


def test_one_thread_and_another_seed_are_named(run, cli, npz):
    for changes, field in ((["--threads", "1"], "threads"), (["--seed", "3"], "seed")):
        done = cli("train", "mnist", "--data", npz, *WORDS, *changes, "--out", field)
        assert done.returncode == 0, done.stderr
        found = cli("diff", run, field)
        assert [row[0] for row in found.json["settings"]] == [field]
    assert found.returncode == 1
    assert found.json["first_difference"]["step"] == 1
    assert "conv_1/kernel" in found.json["first_difference"]["variables"]


def test_replay_names_what_is_computed_differently_first(
    run, cli_here, arrays, tmp_path
):
    words = ["train", "mnist", *WORDS]
    arrays["x_train"][5, 3, 3, 0] ^= 1
    np.savez(tmp_path / "pixel.npz", **arrays)
    assert cli_here(*words, "--data", "pixel.npz", "--out", "pixel").returncode == 0
    done = cli_here("diff", run, "pixel", "--replay")
    found = done.json["replay"]
    assert found["where"] == "input of the model" and found["differing"] == 1
    assert found["step"] == done.json["first_difference"]["step"] <= 10
    assert found["replayed"] == [True, True] and found["drift"] == [[], []]
    assert "replay: first difference in input of the model of step" in done.stdout


def test_replay_names_the_layer(run, cli, npz):
    """XLA on one side: the arithmetic differs, and nothing before it."""
    done = cli("train", "mnist", "--data", npz, *WORDS, "--xla", "on", "--out", "xla")
    assert done.returncode == 0, done.stderr
    found = cli("diff", run, "xla", "--replay").json["replay"]
    assert found["where"].startswith(("output of conv_1", "output of conv_2"))
    assert 0 < found["largest"] < 1e-4 and found["replayed"] == [True, True]


def test_diff_of_a_copy_is_identical(run, cli_here, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    done = cli_here("diff", run, "copy")
    assert done.returncode == 0 and done.json["verdict"] == "identical"
    assert cli_here("diff", run, "nowhere").returncode == 2


@pytest.mark.parametrize("verb", ["verify", "resume"])
def test_a_record_of_another_version_is_named(verb, run, cli_here):
    """Its recipe may have other fields, which are no damage."""
    edit_record(run, schema=1, recipe={"name": "x", "average": 0.9})
    done = cli_here(verb, run)
    assert (
        done.returncode == 2 and "has record format 1, and this version" in done.stderr
    )


def test_a_run_that_never_ended_cannot_be_verified(run, cli_here):
    edit_record(run, state="running")
    done = cli_here("verify", run)
    assert done.returncode == 2 and "gpuzoo resume finishes it" in done.stderr


def test_a_stopped_run_is_verified_as_far_as_it_went(cli_here, npz, monkeypatch):
    from gpuzoo.engine import loop

    calls, real = iter([False] * 3 + [True] * 9), loop.run
    with monkeypatch.context() as patch:
        stop = {"stop": lambda: next(calls)}
        patch.setattr(loop, "run", lambda *a, **k: real(*a, **{**k, **stop}))
        gpuzoo.train(
            "mnist", data=str(npz), epochs=12, batch_size=8, digest_every=20,
            log_every=7, out="stopped",
        )  # fmt: skip
    found = cli_here("verify", "stopped")
    assert found.returncode == 0, found.stderr
    assert 0 < found.json["steps"] < 120


def test_ulp_distance():
    one = np.array([1.0, -0.0, 5e-45], np.float32)
    assert divergence.ulp_distance(one, one) == 0
    assert divergence.ulp_distance(one, np.nextafter(one, np.float32(2))) == 1
    tiny = np.array([1e-45, -1e-45], np.float32)
    assert divergence.ulp_distance(tiny[:1], tiny[1:]) == 2


def test_what_follows_from_the_run_is_computed_again(here, cli_here):
    """A row of an earlier epoch, fields of the record, a note in the weights' file."""
    rows = divergence.read_metrics(here)
    number = next(i for i, row in enumerate(rows) if row["split"] == "test")
    rows[number]["loss"] += 1e-9
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (here / "metrics.jsonl").write_text(text)
    path = here / "weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    path.write_bytes(safetensors.numpy.save(weights, metadata={"note": "mine"}))
    edit_record(here, epochs=11, parameters=7)
    done = cli_here("verify", here)
    assert done.returncode == 1 and done.json["changed_files"] == []
    assert done.json["weights"] == {} and done.json["first_difference"] is None
    (row,) = done.json["rows"]
    told = f"metrics.jsonl: test row of step {rows[number]['step']}: loss"
    assert row.startswith(told)
    named = [told.partition(":")[0] for told in done.json["figures"]]
    assert named == ["epochs", "parameters", "weights_sha256"]


def test_rows_that_were_added_or_left_out_are_named():
    rows = [{"split": "train", "step": step, "loss": 0.5} for step in (2, 4, 6)]
    assert divergence.other_rows(rows, rows, 6, True) == []
    assert divergence.other_rows(rows[:2], rows, 6, True) == [(None, rows[2])]
    twice = [*rows[:2], rows[0]]
    assert divergence.other_rows(twice, rows[:2], 6, True) == [(None, None)]
    ends_there = {"split": "test", "step": 4, "loss": 0.4}
    assert divergence.other_rows(rows, [*rows[:2], ends_there], 4, False) == []
    assert divergence.other_rows(rows[1:], rows[:2], 4, False) == [(None, rows[0])]


DEEP = "[" * 100_000


def test_a_damaged_record_is_one_line(run, cli_here):
    path = run / "run.json"
    good, many = path.read_text(), '{"a":' * 900 + "1" + "}" * 900
    twice = good.replace('"steps": 120', '"steps": 120,\n "steps": 120', 1)
    for text, told in (
        (twice, "it has the key 'steps' twice"),
        (DEEP, "it is nested too deeply"),
        (good.replace('"options": {', f'"options": {{"a": {many},', 1), "argument 'a'"),
        (good[:-40], "run.json is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(gpuzoo.GpuzooError, match=told):
            gpuzoo.verify(run)
    for words in (["verify", run], ["verify", run, "--quick"], ["diff", run, run]):
        done = cli_here(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    path.write_text(DEEP)
    done = cli_here("verify", run, "--debug")
    assert done.returncode == 2 and "nested too deeply" in done.stderr


@pytest.mark.parametrize("name", ["digests.jsonl", "metrics.jsonl"])
def test_damaged_rows_are_no_traceback(name, run):
    kept = (run / name).read_text()
    for text in (kept.replace('{"', '{"step": 1, "', 1), DEEP, "[]\n", "\x00"):
        (run / name).write_text(text)
        assert gpuzoo.verify(run)["changed_files"] == [name]


def test_what_happened_to_a_file_is_said(tmp_path):
    (tmp_path / "there").write_text("x")
    (tmp_path / "folder").mkdir()
    told = causes.of_changed_files(tmp_path, ["there", "gone", "folder", "there/in"])
    assert told == [
        "changed since the run ended: there",
        "missing since the run ended: gone, there/in",
        "no longer a regular file: folder",
    ]


DRAWS = """
import keras, gpuzoo
import numpy as np

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple = (14, 14, 1), num_classes: int = 2):
    "Mine."
    inputs = keras.Input(input_shape)
    x = keras.layers.Rescaling(np.random.default_rng().uniform(1, 2), name="odd")(inputs)
    x = keras.layers.Dense(num_classes)(keras.layers.Flatten()(x))
    return keras.Model(inputs, x)
"""


def test_a_model_that_draws_at_random_is_named(cli_here, npz, tmp_path):
    (tmp_path / "own.py").write_text(DRAWS)
    words = ["train", "mnist", "--data", npz, *WORDS, "--model", "own.py:net"]
    assert cli_here(*words, "--epochs", "1", "--out", "run").returncode == 0
    done = cli_here("verify", "run", "--trust-code")
    assert done.returncode == 1
    cause = done.json["causes"][0]
    assert "does not return the same model twice: odd differs" in cause
    assert "own.py, line 9: np.random.default_rng" in cause


# --- what is computed again, in this process ------------------------------------------


@pytest.fixture
def here(run, runtime, npz, monkeypatch):
    """The run, to be verified in this process, whose order of sets is another."""
    leave_order_out(run)
    return run


def add_rows(run, name, rows):
    with open(run / name, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
def test_a_row_after_the_last_step_differs(name, here, tmp_path):
    """Of a step that never was, and one more of the last step."""
    shutil.copytree(here, tmp_path / "honest")
    last = json.loads((here / name).read_text().splitlines()[-1])
    later = {**last, "step": last["step"] + 7}
    if "losses" in last:
        later["losses"] = ""  # as many losses as before
    if "losses" in last:
        write_digests(here, [*divergence.read_digests(here), later])
    else:
        add_rows(here, name, [later])
    edit_record(here)
    found = gpuzoo.verify(here)
    assert found["exit_code"] == 1 and found["changed_files"] == []
    assert found["rows"] and f"row of step {later['step']}" in found["rows"][0]
    found = gpuzoo.diff(tmp_path / "honest", here)
    assert found["exit_code"] == 1 and "only in the second run" in found["rows"][0]
    found = gpuzoo.diff(here, tmp_path / "honest")
    assert found["exit_code"] == 1 and "only in the first run" in found["rows"][0]


def test_a_figure_of_metrics_differs_in_diff(here, tmp_path):
    shutil.copytree(here, tmp_path / "honest")
    rows = divergence.read_metrics(here)
    rows[3]["loss"] = np.nextafter(rows[3]["loss"], 9)
    (here / "metrics.jsonl").write_text("")
    add_rows(here, "metrics.jsonl", rows)
    edit_record(here)
    found = gpuzoo.diff(tmp_path / "honest", here)
    assert found["exit_code"] == 1 and found["rows"][0].endswith("differs in loss")
    assert gpuzoo.diff(here, here)["verdict"] == "identical"


def test_what_the_record_says_of_the_run_is_found_out_again(here):
    record = json.loads((here / "run.json").read_text())
    for change, named in (
        ({"weights": "as given"}, "weights"),
        ({"weights": "drawn somehow"}, "weights"),
        ({"findings": ["all is well"]}, "findings"),
        ({"data": {**record["data"], "source": "a good place"}}, "data/source"),
        ({"data": {**record["data"], "findings": ["none"]}}, "data/findings"),
        ({"runtime": {**record["runtime"], "level": "strict"}}, "runtime/level"),
        (
            {"runtime": {**record["runtime"], "reasons": {"xla": "the moon"}}},
            "runtime/reasons",
        ),
        ({"recipe": {**record["recipe"], "name": "cifar10"}}, "id"),
        ({"command": ["gpuzoo", "train", "cifar10"]}, "id"),
        ({"started": "2020-02-02T02:02:02+00:00"}, "id"),
        ({"command": ["gpuzoo"], "id": record["id"][:16]}, "id"),
    ):
        edit_record(here, **{**record, **change})
        found = gpuzoo.verify(here)
        named_ = [told.partition(":")[0] for told in found["figures"]]
        assert (named_, found["exit_code"]) == ([named], 1), found
    edit_record(here, **record)
    assert gpuzoo.verify(here)["verdict"] == "identical"


def spoil(path, way):
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "link":
        path.symlink_to("elsewhere")


@pytest.mark.parametrize(("name", "way"), [
    ("weights.safetensors", "gone"), ("weights.safetensors", "pipe"),
    ("metrics.jsonl", "folder"), ("digests.jsonl", "pipe"), ("curves.png", "gone"),
    ("confusion.png", "link"),
])  # fmt: skip
def test_what_cannot_be_read_is_not_compared(name, way, here):
    spoil(here / name, way)
    found = gpuzoo.verify(here)
    assert (found["verdict"], found["exit_code"]) == ("cannot compare", 2)
    assert found["changed_files"] == [name] and name in found["causes"][0]
    # A bit that differs weighs more than one that was not compared.
    other = "confusion.png" if name == "curves.png" else "curves.png"
    with open(here / other, "ab") as file:
        file.write(b"x")
    found = gpuzoo.verify(here)
    assert (found["verdict"], found["exit_code"]) == ("differs", 1)
    assert set(found["changed_files"]) == {name, other}


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "metrics.jsonl", "digests.jsonl"]
)
def test_a_finished_run_without_its_results_is_not_resumed(name, run):
    content = (run / name).read_bytes()
    told = gpuzoo.resume(run, quiet=True)
    assert told["state"] == "finished"
    for way, words in (
        ("gone", "cannot be read: No such file"),
        ("pipe", "cannot be read: it is not a regular file"),
        ("folder", "cannot be read: "),
        ("link", "cannot be read: "),
        ("row", "has been changed since the run finished"),
    ):
        spoil(run / name, way)
        if way == "row":
            (run / name).write_bytes(content + b"{}\n")
        with pytest.raises(
            gpuzoo.GpuzooError, match=f"{name} {words}.*restore it"
        ) as e:
            gpuzoo.resume(run, quiet=True)
        assert "\n" not in str(e.value)
        if (run / name).is_dir():
            (run / name).rmdir()
        else:
            (run / name).unlink(missing_ok=True)
        (run / name).write_bytes(content)
    (run / "curves.png").unlink()  # no reason to withhold the weights
    assert gpuzoo.resume(run, quiet=True) == told


@pytest.mark.parametrize("way", ["gone", "folder", "pipe"])
def test_diff_of_weights_that_cannot_be_read(way, run, tmp_path):
    shutil.copytree(run, tmp_path / "honest")
    spoil(run / "weights.safetensors", way)
    with pytest.raises(gpuzoo.GpuzooError, match="cannot be read: [A-Za-z]") as found:
        gpuzoo.diff(tmp_path / "honest", run)
    assert "None" not in str(found.value)
