"""The code of a run is what it imports, its inputs what its model's file reads."""

import ast
import importlib.util
import pathlib
import py_compile
import shutil
import sys
import zipfile

import pytest
from conftest import ROOT
from small import RECIPE, train

import gpuzoo
from gpuzoo.catalogue import owners
from gpuzoo.runs import code, drift
from gpuzoo.tasks import distill
from gpuzoo.training.build import build_and_note

# Users do not close their files.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
OWN = '''
import importlib, pathlib, sys
import keras, gpuzoo
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "lib"))
IMPORT

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (14, 14, 1), num_classes: int = 2):
    """Mine."""
    BODY
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="out")(x))
'''


@pytest.fixture(autouse=True)
def path_of_python(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def built(tmp_path, dataset, runtime):
    """Write an own.py, build its model, and give its code and inputs."""

    notes = []

    def build(imports="", body="", name="own.py"):
        text = OWN.replace("IMPORT", imports).replace("BODY", body)
        (tmp_path / name).write_text(text)
        recipe = RECIPE.override(model=f"{tmp_path / name}:net", model_options=())
        _, modules, inputs = build_and_note(recipe, dataset, "tensorflow", notes.append)
        ours = {n: d for n, d in modules.items() if not n.startswith("gpuzoo.")}
        return ours, inputs

    build.notes = notes
    return build


def write(path: pathlib.Path, text: str = "UNITS = 1\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_only_what_is_said_to_python_counts():
    one = b'"""Doc."""\ndef f(x):\n    "Doc."\n    return x  # why\n'
    same = b"def f(x):\n\n    return (x)\n"
    assert code.syntax_sha256(one) == code.syntax_sha256(same)
    assert code.syntax_sha256(one) != code.syntax_sha256(one.replace(b"return x", b"x"))
    read = b"UNITS = int(__doc__)"
    assert code.syntax_sha256(b"'8'\n" + read) != code.syntax_sha256(b"'9'\n" + read)


FIELDS = """
'''Module.'''
import dataclasses
@dataclasses.dataclass
class One:
    '''Class.'''
    size: int = 3
    '''Field.'''
    @property
    def twice(self):
        '''Function.'''
        if self.size:
            '''Aside.'''
            return 2 * self.size
WORD
"""
WORDS = ("Module.", "Class.", "Field.", "Function.", "Aside.")


@pytest.mark.parametrize(("reads", "those"), [
    ("", ""), ("One.__doc__ = 'x'", ""),
    ("HERE = __doc__", "Module. Class."), ("HERE = One.__doc__", "Class."),
    ("HERE = One().__doc__", "Module. Class. Function."),
    ("import inspect; HERE = inspect.getdoc(One)", "Module. Class. Function."),
    ("from inspect import getdoc", "Module. Class. Function."),
    ("HERE = getattr(One, '__doc__')", "Module. Class. Function."),
    ("print(f'{__doc__}')", "Module. Class."),
])  # fmt: skip
def test_only_docstrings_that_are_read_count(reads, those):
    source = FIELDS.replace("WORD", reads)
    for word in WORDS:
        other = source.replace(word, "Another text.").encode()
        assert other != source.encode()
        same = code.syntax_sha256(source.encode()) == code.syntax_sha256(other)
        assert same == (word not in those), word
        assert code.syntax_sha256(source.encode(), ours=True) == code.syntax_sha256(
            other, ours=True
        )
    code_changed = source.replace("size: int = 3", "size: int = 4").encode()
    for ours in (False, True):
        digests = {
            code.syntax_sha256(one, ours=ours)
            for one in (source.encode(), code_changed)
        }
        assert len(digests) == 2


def test_no_docstring_of_gpuzoos_changes_an_old_run():
    """The docstrings of each of its modules, and the texts below fields; and none of
    them computes with one, but for what help() and --help show."""
    reading = []
    for top in ("gpuzoo", "models"):
        for path in sorted((ROOT / top).rglob("*.py")):
            source = path.read_bytes()
            tree = ast.parse(source)
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    if isinstance(node.value.value, str):
                        node.value.value += " And more."
                if isinstance(node, ast.Attribute) and node.attr == "__doc__":
                    reading.append(path.name)
            edited = ast.unparse(tree).encode()
            digests = [code.syntax_sha256(one, ours=True) for one in (source, edited)]
            assert digests[0] == digests[1], path
    assert set(reading) == {"app.py", "recipe.py"}


@pytest.mark.parametrize("imports", [
    'importlib.import_module("aid")', "import aid", "import pack.aid", "import spaced.aid",
    'AID = __import__("aid")', "from pack import aid",
    "import pack.through", "import wave", "import zipped", "import compiled",
])  # fmt: skip
def test_whatever_is_imported_counts_and_is_named(imports, built, tmp_path):
    lib = tmp_path / "lib"
    (lib / "other-1.0.dist-info").mkdir(
        parents=True
    )  # makes no package of its neighbours
    (lib / "other-1.0.dist-info" / "RECORD").write_text("other.py,,\n")

    def spread(text):
        for name in ("aid", "pack/__init__", "pack/aid", "spaced/aid", "wave"):
            write(lib / f"{name}.py", text)
        write(lib / "pack" / "through.py", "from . import aid")
        write(lib / "source.py", text)
        py_compile.compile(lib / "source.py", lib / "compiled.pyc")
        (lib / "source.py").unlink()
        with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
            archive.writestr("zipped.py", text)

    spread("UNITS = 1\n")
    imports = f'sys.path.append(str(HERE / "archive.zip")); {imports}'
    kept = sys.modules.pop("wave", None)  # as where Python's own was not needed yet
    try:
        before, _ = built(imports)
        assert len(before) > 1, before
        assert built(imports)[0] == before  # though all is imported already
        spread("UNITS = 1  # a word\n")
        if "compiled" not in imports and "zipped" not in imports:
            assert built(imports)[0] == before
        spread("UNITS = 2\n")
        importlib.invalidate_caches()
        after, _ = built(imports)
    finally:
        if kept:
            sys.modules["wave"] = kept
    changed = [name for name in before if after[name] != before[name]]
    assert changed and "own.py" not in changed and set(before) == set(after)


def test_what_the_process_imported_before_does_not_matter(built, tmp_path):
    write(tmp_path / "lib" / "aid.py")
    write(tmp_path / "lib" / "unused.py")
    alone, _ = built("import aid")
    sys.path.insert(0, str(tmp_path / "lib"))
    for name in ("aid", "unused"):
        importlib.import_module(name)
    unused = sys.modules["unused"]
    assert built("import aid")[0] == alone == dict.fromkeys(("aid", "own.py")) | alone
    assert sys.modules["unused"] is unused


def test_an_installed_package_is_no_code_of_the_user(built, tmp_path):
    """It lists the file; an editable one does not, and is the user's own project."""
    write(tmp_path / "lib" / "made" / "__init__.py")
    info = tmp_path / "lib" / "made-1.0.dist-info"
    write(info / "RECORD", "made-1.0.dist-info/METADATA,,\n")
    assert "made" in built("import made")[0]
    owners.is_installed.cache_clear()
    owners._records.cache_clear()
    write(info / "RECORD", "made/__init__.py,sha256=x,10\n")
    assert "made" not in built("import made")[0]


@pytest.mark.parametrize("read", [
    'open(HERE / "scale.txt").read()', '(HERE / "scale.txt").read_bytes()',
    'os.close(os.open(HERE / "scale.txt", os.O_RDONLY))',
    'np.loadtxt(HERE / "scale.txt")', 'np.memmap(HERE / "scale.txt", mode="r")',
    'exec((HERE / "scale.txt").read_text())',
    'list(pool.ThreadPool(1).map(np.loadtxt, [HERE / "scale.txt"]))',
])  # fmt: skip
def test_what_the_models_file_reads_is_an_input(read, built, tmp_path):
    imports = "import os; import numpy as np; from multiprocessing import pool"
    write(tmp_path / "scale.txt", "1.0\n")
    write(tmp_path / "own-2.py")
    _, inputs = built(imports, read)
    assert list(inputs) == ["scale.txt"]
    assert built(f"{imports}; {read}")[1] == inputs
    write(tmp_path / "scale.txt", "2.0\n")
    assert built(imports, read)[1] != inputs


def test_what_is_no_input(built, tmp_path):
    """Files that it writes, those of the machine, and what packages read for
    themselves."""
    body = (
        "import tempfile, matplotlib.font_manager, json\n"
        "    (HERE / 'log.txt').write_text('x'); (HERE / 'log.txt').read_text()\n"
        "    open('/proc/cpuinfo').read(); open(json.__file__).read()\n"
        "    with tempfile.NamedTemporaryFile('w+') as f: open(f.name).read()"
    )
    assert built("", body)[1] == {}


def test_inputs_tell_nothing_of_the_home(built, tmp_path, monkeypatch):
    home = tmp_path / "home"
    write(home / "secret" / "x.txt")
    monkeypatch.setenv("HOME", str(home))
    _, inputs = built("", f"open({str(home / 'secret' / 'x.txt')!r}).read()")
    assert [name for name in inputs] == ["home/secret/x.txt"]
    (tmp_path / "sub").mkdir()
    _, inputs = built(
        "", f"open({str(home / 'secret' / 'x.txt')!r}).read()", "sub/o.py"
    )
    assert list(inputs) == ["~/secret/x.txt"]


def test_a_pipe_is_refused_as_an_input(built, tmp_path):
    read = 'import os; os.close(os.open(HERE / "pipe", os.O_RDONLY | os.O_NONBLOCK))'
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(gpuzoo.GpuzooError, match="not a regular file: pipe"):
        built("", read)


def test_of_gpuzoo_only_what_the_run_goes_through(dataset, runtime):
    _, found, _ = build_and_note(RECIPE, dataset, "tensorflow")
    assert "gpuzoo.models.cnn" in found and "gpuzoo.engine.loop" in found
    for name in ("models.mlp", "cli", "repro.verify", "engine.backends.jax"):
        assert f"gpuzoo.{name}" not in found
    assert not any(name.startswith("gpuzoo.recipes") for name in found)
    gpuzoo.build("mlp")
    assert build_and_note(RECIPE, dataset, "tensorflow")[1] == found
    _, jax, _ = build_and_note(RECIPE, dataset, "jax")
    assert "gpuzoo.engine.backends.jax" in jax


def test_differences_name_the_module_and_the_file():
    one = {"code": {"a": "1", "b": "2"}, "inputs": {"x.txt": "3"}}
    other = {"code": {"a": "9", "c": "2"}, "inputs": {"x.txt": "missing"}}
    assert [str(d) for d in drift.code_differences(one, other)] == [
        "code.a: module changed",
        "code.b: module used by the run, but not here",
        "code.c: module not used by the run, but here",
        "inputs.x.txt: input missing",
    ]


def test_a_teacher_is_verified_whole(tmp_path, cli_here, dataset, runtime, npz):
    """Its record, its weights, its code and what that reads."""
    text = OWN.replace("IMPORT", "import aid").replace(
        "BODY", 'open(HERE / "scale.txt").read()'
    )
    write(tmp_path / "own.py", text)
    write(tmp_path / "lib" / "aid.py")
    write(tmp_path / "scale.txt", "1.0")
    done = cli_here("train", "mnist", "--data", npz, "--model", "own.py:net", "--epochs", 1,
               "--batch-size", 16, "--out", "teacher", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "teacher" / "run.json"
    run.write_text(run.read_text().replace("own.py:net", f"{tmp_path}/own.py:net"))
    recipe = RECIPE.override(
        task="distill", model="mlp", augment=(), model_options=("units=(8,)",),
        teacher=str(tmp_path / "teacher"),
    )  # fmt: skip
    with pytest.raises(gpuzoo.GpuzooError, match="has been changed since gpuzoo wrote"):
        distill.settle(recipe)
    import json

    from gpuzoo.runs.record import seal

    record = json.loads(run.read_text())
    run.write_text(json.dumps({**record, "seal": seal(record)}))
    recipe = distill.settle(recipe)
    _, modules, inputs = build_and_note(recipe, dataset, "tensorflow")
    own = {"teacher/own.py", "teacher/aid"}
    assert own <= set(modules) and list(inputs) == ["teacher/scale.txt"]
    train(recipe.override(epochs=1), dataset, runtime)
    for name, words in (
        ("own.py", "own.py"), ("lib/aid.py", "aid"), ("scale.txt", "scale.txt"),
    ):  # fmt: skip
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(kept + "\n0\n")
        with pytest.raises(gpuzoo.GpuzooError, match=f"was trained: {words}; restore"):
            train(recipe, dataset, runtime)
        (tmp_path / name).write_text(kept)
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(gpuzoo.GpuzooError, match="is not a run folder"):
        train(recipe, dataset, runtime)
