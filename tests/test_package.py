"""The house itself: what is installed, who imports whom, what importing costs."""

import ast
import configparser
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT

import gpuzoo

SOURCES = [
    path
    for top in ("gpuzoo", "models", "recipes")
    for path in sorted((ROOT / top).rglob("*.py"))
]
# Package -> what it may import of gpuzoo, at the top of a file or inside a function.
# A name allows itself and, without a dot, everything below it.
FLOOR = {
    "digests",
    "errors",
    "files",
    "machine",
    "registry",
    "recipe",
    "runtime",
    "randomness",
}
ARROWS = {
    "digests": set(),
    "errors": set(),
    "files": {"errors"},
    "machine": set(),
    "process": set(),
    "randomness": set(),
    "own_model": {"errors", "recipe"},
    "applications": {"errors", "files"},
    "registry": {"applications", "errors", "files", "own_model", "user_files"},
    "user_files": set(),
    "recipe": {"errors", "registry"},
    "runtime": {"errors", "machine", "start"},
    "start": {"errors", "files", "machine", "process", "runtime"},
    "autotune": FLOOR | {"data", "engine", "start", "tasks"},
    "data": FLOOR | {"data"},
    "tasks": FLOOR | {"data", "tasks", "deploy.artifact"},
    "engine": FLOOR | {"data", "tasks", "engine", "own_model", "deploy.artifact"},
    "evidence": FLOOR | {"data", "tasks", "engine", "evidence"},
    "deploy": FLOOR | {"data", "tasks", "engine", "deploy"},
    "outcome": FLOOR | {"tasks", "engine", "evidence", "deploy"},
    "training": FLOOR
    | {
        "autotune",
        "own_model",
        "data",
        "tasks",
        "engine",
        "evidence",
        "deploy",
        "outcome",
    },
    "arguments": {"errors"},
    "catalogue": FLOOR | {"applications", "arguments", "diagram"},
    "diagram": set(),
    "commands": {"arguments", "training", "evidence"},
    "cli": FLOOR
    | {
        "arguments",
        "catalogue",
        "commands",
        "process",
        "training",
        "evidence.bench",
        "",
    },
    "__main__": {"cli", "process"},
    "__init__": {place.removeprefix("gpuzoo.") for place in gpuzoo._WHERE.values()},
    "models": {"registry", "runtime", "models"},
    "recipes": {"recipe", "cli"},
}


def _imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module in ("gpuzoo", "gpuzoo.engine", "gpuzoo.data"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    parts = path.relative_to(ROOT).parts
    room = parts[0] if parts[0] != "gpuzoo" else parts[1].removesuffix(".py")
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top not in ("models", "recipes"), f"{path} imports a second copy: {name}"
        if top == "gpuzoo":
            goal = rest.partition(".")[0]
            goal = "" if goal == "__version__" else goal
            allowed = goal in ARROWS[room] or rest in ARROWS[room]
            assert allowed, f"{room} must not import gpuzoo.{rest}"
        elif room == "models":
            known = {"keras", "math", "numpy", "typing"}
            if path.name == "_blocks.py":  # a gradient inside a model's loss
                known |= {"jax", "tensorflow"}
            assert top in known, f"{path}: a model file must not import {top}"
        elif top in ("tensorflow", "jax"):
            allowed = {
                "engine/backends/tensorflow.py",
                "engine/backends/jax.py",
                "start.py",
            }
            allowed.add("engine/backends/compile_cache.py")  # what JAX alone keeps
            assert "/".join(parts[1:]) in allowed, f"{path} knows a backend: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 500


def test_every_package_is_named():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = set(config["options"]["packages"].split())
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES}
    folders = {f if f.startswith("gpuzoo") else f"gpuzoo.{f}" for f in folders}
    assert named == folders


def test_the_wheel_holds_every_module_and_no_other_name(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, "."],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gpuzoo"}
    for path in SOURCES:
        inside = str(path.relative_to(ROOT))
        if not inside.startswith("gpuzoo"):
            inside = f"gpuzoo/{inside}"
        assert inside in names
    assert {"gpuzoo/py.typed", "gpuzoo/evidence/run.schema.json"} <= names


def test_a_folder_called_gpuzoo_does_not_hide_an_editable_install(tmp_path):
    """A checkout in the current folder, or any folder of that name."""
    tree = tmp_path / "gpuzoo"
    left_out = shutil.ignore_patterns(
        ".*", "__pycache__", "tests", "benchmarks", "docs"
    )
    shutil.copytree(ROOT, tree, ignore=left_out)
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    ask = "import site; print(site.getsitepackages()[0])"
    place = subprocess.run(
        [python, "-c", ask], check=True, capture_output=True, text=True
    )
    others = [path for path in sys.path if path.endswith("-packages")]
    (pathlib.Path(place.stdout.strip()) / "others.pth").write_text("\n".join(others))
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--ignore-installed", "-e", tree], cwd=tree, check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "elsewhere" / "gpuzoo" / "notes").mkdir(parents=True)
    code = "import gpuzoo; print(gpuzoo.__file__, gpuzoo.list_models('cnn'))"
    for folder in (tmp_path, tree, tmp_path / "elsewhere"):
        done = subprocess.run(
            [python, "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        told = f"{tree}/gpuzoo/__init__.py ['cnn']\n"
        assert done.stdout == told, (folder, done.stderr)


@pytest.mark.parametrize(
    "code",
    [
        "import gpuzoo",
        "import gpuzoo; gpuzoo.list_models(); gpuzoo.model_info('cnn')",
        "import gpuzoo; gpuzoo.load_recipe('mnist'); dir(gpuzoo)",
        "import gpuzoo.cli",
    ],
)
def test_looking_around_loads_no_backend(code):
    check = "import sys; assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True)


def test_type_checkers_see_every_public_name_where_it_stands():
    """The imports under TYPE_CHECKING are those that are done on first use."""
    tree = ast.parse((ROOT / "gpuzoo" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == gpuzoo._WHERE


def test_public_names_all_load():
    code = "import gpuzoo; [getattr(gpuzoo, name) for name in gpuzoo.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True)
