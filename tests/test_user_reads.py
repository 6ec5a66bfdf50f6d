"""What a user's own code reads is recorded, or said: files however they are opened,
environment variables, modules that are imported only where a step is traced."""

import importlib
import json
import os
import sqlite3
import sys

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file
from small import RECIPE

import gpuzoo
from gpuzoo.runs import code
from gpuzoo.training.build import build_and_note

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
OWN = '''
import importlib, os, pathlib, sqlite3, subprocess, sys
import keras, gpuzoo, h5py, numpy as np, safetensors
HERE = pathlib.Path(__file__).parent
IMPORTS

class Traced(keras.layers.Layer):
    def call(self, x, training=False):
        if training:
            CALL
        return x

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (14, 14, 1), num_classes: int = 2):
    """Mine."""
    inputs = keras.Input(input_shape)
    x = Traced()(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(num_classes, name="out")(x))
    BODY
    return model
'''


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


@pytest.fixture
def own(tmp_path):
    def write(body="pass", imports="", call="pass"):
        text = OWN.replace("IMPORTS", imports).replace("BODY", body)
        (tmp_path / "own.py").write_text(text.replace("CALL", call))
        return f"{tmp_path / 'own.py'}:net"

    return write


@pytest.fixture
def built(own, dataset, runtime):
    """Write own.py and build its model: code, inputs, and what was said."""

    def build(*texts, **named):
        recipe = RECIPE.override(model=own(*texts, **named), model_options=())
        said = []
        _, modules, inputs = build_and_note(recipe, dataset, "tensorflow", said.append)
        ours = {n: d for n, d in modules.items() if not n.startswith("gpuzoo.")}
        return ours, inputs, said

    return build


@pytest.mark.parametrize("read", [
    'open(HERE / "a.npy", "r+b").read()', 'open(HERE / "a.npy", "a+b").seek(0)',
    'np.memmap(HERE / "a.npy", dtype="u1").sum()',
    'np.load(HERE / "a.npy", mmap_mode="r+").sum()',
    'os.close(os.open(HERE / "a.npy", os.O_RDWR | os.O_CREAT))',
])  # fmt: skip
def test_a_file_that_could_be_written_and_is_not_is_an_input(read, built, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8))
    _, inputs, said = built(read)
    assert list(inputs) == ["a.npy"] and not said


@pytest.mark.parametrize("change, words", [
    ('m = np.load(HERE / "a.npy", mmap_mode="r+"); m[0] += 1; m.flush()', "changes"),
    ('np.save(HERE / "a.npy", np.load(HERE / "a.npy") + 1)', "changes"),
    ('np.load(HERE / "a.npy"); os.remove(HERE / "a.npy")', "removes"),
])  # fmt: skip
def test_a_file_that_is_read_and_changed_is_said(change, words, built, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8))
    _, inputs, said = built(change)
    assert not inputs
    assert said == [
        f"Note: model file own.py reads and then {words} a.npy; that is not recorded."
    ]


def test_a_file_that_is_only_written_is_no_input(built, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8))
    write = 'np.save(HERE / "a.npy", np.ones(3)); np.load(HERE / "a.npy")'
    _, inputs, said = built(f'{write}; open(HERE / "log", "a").write("x")')
    assert not inputs and not said


@pytest.mark.parametrize("read, name", [
    ('model.load_weights(HERE / "one.weights.h5")', "one.weights.h5"),
    ('model.load_weights(str(HERE / "one.weights.h5"))', "one.weights.h5"),
    ('h5py.File(HERE / "two.h5")["x"][...]', "two.h5"),
    ('h5py.File(HERE / "two.h5", "a")["x"][...]', "two.h5"),
    ('from h5py import File as F; F(name=HERE / "two.h5", mode="r")', "two.h5"),
    ('from safetensors.numpy import load_file; load_file(HERE / "w.safetensors")',
     "w.safetensors"),
    ('safetensors.safe_open(HERE / "w.safetensors", framework="np").keys()',
     "w.safetensors"),
    ('from safetensors import safe_open; safe_open(HERE / "w.safetensors", "np")',
     "w.safetensors"),
    ('import tensorflow as tf; tf.io.gfile.GFile(str(HERE / "t.txt")).read()', "t.txt"),
    ('import tensorflow as tf; tf.io.read_file(str(HERE / "t.txt"))', "t.txt"),
    ('sqlite3.connect(HERE / "d.db").execute("select * from t")', "d.db"),
])  # fmt: skip
def test_what_is_opened_without_python_is_an_input(
    read, name, built, own, dataset, tmp_path
):
    recipe = RECIPE.override(model=own(), model_options=())
    model, _, _ = build_and_note(recipe, dataset, "tensorflow")
    model.save_weights(tmp_path / "one.weights.h5")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["x"] = np.ones(3)
    save_file({"x": np.ones(3)}, tmp_path / "w.safetensors")
    (tmp_path / "t.txt").write_text("1")
    sqlite3.connect(tmp_path / "d.db").execute("create table t (x)")
    init, opens = h5py.File.__init__, importlib.import_module("safetensors").safe_open
    _, inputs, said = built(read)
    assert list(inputs) == [name] and not said
    assert h5py.File.__init__ is init  # nothing stays wrapped
    assert importlib.import_module("safetensors").safe_open is opens


def test_what_gpuzoo_and_others_open_meanwhile_is_no_input(built):
    _, inputs, said = built("import sqlite3; sqlite3.connect(':memory:')")
    assert not inputs and not said


@pytest.mark.parametrize("read", [
    'os.environ.get("SCALE_OF_X")', 'os.getenv("SCALE_OF_X", "1")',
    '"SCALE_OF_X" in os.environ', 'os.environ.setdefault("SCALE_OF_X", "2")',
])  # fmt: skip
def test_an_environment_variable_is_an_input(read, built, monkeypatch):
    monkeypatch.setenv("SCALE_OF_X", "1")
    _, one, said = built(read)
    record = {"recipe": {"model": "mlp"}}
    assert list(one) == ["$SCALE_OF_X"] and not said
    assert code.digest_of_input("$SCALE_OF_X", record) == one["$SCALE_OF_X"]
    monkeypatch.setenv("SCALE_OF_X", "3")
    assert code.digest_of_input("$SCALE_OF_X", record) != one["$SCALE_OF_X"]
    monkeypatch.delenv("SCALE_OF_X")
    _, unset, _ = built(read)
    assert unset != one


def test_variables_of_the_machine_are_no_inputs(built, monkeypatch):
    """Nor what a library reads on the user's behalf."""
    _, inputs, said = built(
        'os.environ.get("TF_CPP_MIN_LOG_LEVEL"); os.path.expanduser("~/x"); '
        'os.environ["LEFT"] = "1"; os.environ["HOME"]'
    )
    monkeypatch.delenv("LEFT")
    assert not inputs
    assert said == [
        "Note: model file own.py reads the environment variable HOME; that is not "
        "recorded."
    ]


@pytest.mark.parametrize("act, words", [
    ('len(os.listdir(HERE / "many"))', "lists many"),
    ('sorted((HERE / "many").glob("*.txt"))', "lists many"),
    ('subprocess.run(["true"])', "starts a program"),
    ('os.system("true")', "starts a program"),
    ('os.environ.copy()', "reads all environment variables"),
    ('import socket; socket.socket().connect_ex(("127.0.0.1", 9))',
     "uses the network"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_said(act, words, built, tmp_path):
    (tmp_path / "many").mkdir()
    _, inputs, said = built(act)
    assert f"Note: model file own.py {words}; that is not recorded." in said
    assert not inputs


def test_modules_that_are_named_and_not_imported_yet_count(built, tmp_path):
    (tmp_path / "pack").mkdir()
    for name in ("pack/__init__", "pack/deep", "late", "later"):
        (tmp_path / f"{name}.py").write_text("UNITS = 1\n")
    (tmp_path / "late.py").write_text("def f():\n    from pack import deep\n")
    found, _, _ = built(call="import late, sqlite3, no_such_module")
    assert set(found) == {"own.py", "late", "pack", "pack.deep"}
    (tmp_path / "pack" / "deep.py").write_text("UNITS = 2\n")
    changed, _, _ = built(call="import late, sqlite3, no_such_module")
    assert [n for n in found if found[n] != changed[n]] == ["pack.deep"]
    # Nothing of it was imported. Another test may have left a package of that name.
    ours = [sys.modules[name] for name in ("late", "pack") if name in sys.modules]
    assert not [m for m in ours if str(m.__file__).startswith(str(tmp_path))]


def test_a_package_of_another_folder_of_that_name_does_not_count(built, tmp_path):
    """The process imported it before, for another project."""
    other = tmp_path / "other" / "bundle"
    other.mkdir(parents=True)
    (tmp_path / "bundle").mkdir()
    (other / "__init__.py").write_text("from . import stranger\n")
    (other / "stranger.py").write_text("UNITS = 3\n")
    for name in ("bundle/__init__", "bundle/deep"):
        (tmp_path / f"{name}.py").write_text("UNITS = 1\n")
    sys.path.insert(0, str(tmp_path / "other"))
    try:
        stranger = importlib.import_module("bundle")
        found, _, _ = built(call="from bundle import deep")
        assert set(found) == {"own.py", "bundle", "bundle.deep"}
        assert sys.modules["bundle"] is stranger
    finally:
        for name in ("bundle", "bundle.stranger"):
            sys.modules.pop(name, None)


CALL = (
    'm = importlib.import_module("la" + "te"); '
    'x = x * m.SCALE * float(open(HERE / "scale.txt").read())'
)


@pytest.fixture
def traced(own, tmp_path, npz, monkeypatch, runtime):
    """Train a model whose layer imports and reads only where its step is traced."""
    (tmp_path / "scale.txt").write_text("1.0")
    (tmp_path / "late.py").write_text("SCALE = 1.0\n")
    monkeypatch.chdir(tmp_path)

    def train(out):
        gpuzoo.train(
            "mnist", model=own(call=CALL), data=str(npz), epochs=1, batch_size=16,
            out=str(tmp_path / out), quiet=True, device="cpu", precision="float32",
            threads=2,
        )  # fmt: skip
        return json.loads((tmp_path / out / "run.json").read_text())

    return train


def test_what_is_used_only_in_the_traced_step_is_recorded(traced, tmp_path, npz):
    one = traced("one")
    assert "late" in one["code"] and "scale.txt" in one["inputs"]
    # In the same process, edited: what is recorded is what runs.
    (tmp_path / "late.py").write_text("SCALE = 2.0\n")
    two = traced("two")
    assert one["code"]["late"] != two["code"]["late"]
    assert one["weights_sha256"] != two["weights_sha256"]
    (tmp_path / "late.py").write_text("SCALE = 1.0\n")
    assert traced("again")["weights_sha256"] == one["weights_sha256"]


@pytest.mark.parametrize("name, text", [
    ("late.py", "SCALE = 3.0\n"), ("scale.txt", "3.0"),
])  # fmt: skip
def test_verify_names_what_the_traced_step_uses(traced, tmp_path, name, text, cli_here):
    traced("run")
    done = cli_here("verify", "run", "--trust-code")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / name).write_text(text)
    done = cli_here("verify", "run", "--trust-code")
    assert done.returncode == 2
    assert name.removesuffix(".py") in done.stdout + done.stderr


@pytest.mark.parametrize("imports", [
    "import aside", "from aside import UNITS", "import through",
    'aside = importlib.import_module("aside")',
])  # fmt: skip
def test_a_module_of_elsewhere_is_imported_anew(imports, built, tmp_path):
    """Neither beside the model's file nor in the current folder, and imported before by
    somebody else."""
    lib = tmp_path.parent / f"{tmp_path.name}-lib"
    lib.mkdir()
    (lib / "through.py").write_text("import aside\n")
    (lib / "aside.py").write_text("UNITS = 1\n")
    sys.path.insert(0, str(lib))
    told = "import through" in imports and "through.aside.UNITS"
    told = told or ("UNITS" if "UNITS" in imports else "aside.UNITS")
    body = f"model.units = {told}"
    try:
        importlib.import_module("through")
        first = sys.modules["aside"]
        (lib / "aside.py").write_text("UNITS = 22\n")
        found, _, _ = built(f"{body}; assert model.units == 22", imports)
        assert "aside" in found and sys.modules["aside"] is not first
        (lib / "aside.py").write_text("UNITS = 333\n")
        again, _, _ = built(f"{body}; assert model.units == 333", imports)
        assert again["aside"] != found["aside"]
    finally:
        for name in ("aside", "through"):
            sys.modules.pop(name, None)


def test_a_module_that_is_not_imported_anew_and_edited_is_refused(built, tmp_path):
    lib = tmp_path.parent / f"{tmp_path.name}-lib"
    lib.mkdir()
    (lib / "apart.py").write_text("class Layer:\n    UNITS = 1\n")
    sys.path.insert(0, str(lib))
    try:
        importlib.import_module("apart")
        imports = 'Layer = sys.modules["".join(["ap", "art"])].Layer'
        assert "apart" in built(imports=imports)[0]
        (lib / "apart.py").write_text("class Layer:\n    UNITS = 2\n")
        with pytest.raises(gpuzoo.GpuzooError, match="apart has been edited since"):
            built(imports=imports)
    finally:
        sys.modules.pop("apart", None)


def test_a_module_loaded_by_its_path_counts_also_when_it_is_compiled(built, tmp_path):
    (tmp_path / "noreg.py").write_text("UNITS = 1\n")
    imports = (
        "from importlib import util\n"
        'spec = util.spec_from_file_location("noreg", HERE / "noreg.py")\n'
        "noreg = util.module_from_spec(spec); spec.loader.exec_module(noreg)"
    )
    before = os.stat(tmp_path / "noreg.py").st_mtime - 100
    os.utime(tmp_path / "noreg.py", (before, before))
    _, one, _ = built(imports=imports)
    assert list((tmp_path / "__pycache__").glob("noreg*.pyc"))
    _, two, _ = built(imports=imports)
    assert list(one) == ["noreg.py"] and one == two
    (tmp_path / "noreg.py").write_text("UNITS = 22\n")
    _, three, _ = built(imports=imports)
    assert three != two
