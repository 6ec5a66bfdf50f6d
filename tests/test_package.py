"""The house itself: what is installed, who imports whom, what importing costs."""

import ast
import configparser
import graphlib
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
import slow
from conftest import ROOT

import gpuzoo

SOURCES = [
    path
    for top in ("gpuzoo", "models", "recipes")
    for path in sorted((ROOT / top).rglob("*.py"))
]
# From the left to the right: a folder may import what stands to its right, and itself.
ORDER = [
    ["__init__", "__main__", "callbacks", "recipes"],
    ["cli"],
    ["deploy"],
    ["repro", "bench", "gpus"],
    ["doctor"],
    ["training"],
    ["engine", "report"],
    ["tasks"],
    ["models"],
    ["runs"],
    ["data", "catalogue"],
    ["runtime"],
    ["elementary", "errors", "events", "files", "home", "keras_layers", "randomness", "weights",
     "workers"],
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
GROUND = set(ORDER[-1])


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "gpuzoo" else ("gpuzoo", *parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: pathlib.Path) -> set[str]:
    """Full names of what a file imports, wherever in it; of a name of a module, it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
    return found


def test_no_import_leads_to_the_left():
    for module, path in MODULES.items():
        here = folder_of(module)
        for name in imports(path):
            assert name.partition(".")[0] not in ("models", "recipes"), (
                f"{module} imports a second copy of the catalogue: {name}"
            )
            there = folder_of(name)
            if not name.startswith("gpuzoo") or here == there or there == "__init__":
                continue
            if here in GROUND and there in GROUND:
                continue
            assert RANK[here] < RANK[there], f"{module} imports {name}, to its left"


def test_no_imports_go_round_in_a_circle():
    arrows = {
        module: imports(path) & MODULES.keys() for module, path in MODULES.items()
    }
    # What a package's own __init__ offers is no arrow of its modules.
    arrows = {module: to - {"gpuzoo", module} for module, to in arrows.items()}
    assert list(graphlib.TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_knows_what_of_other_packages(path):
    parts = path.relative_to(ROOT).parts
    tops = {name.partition(".")[0] for name in imports(path)}
    if parts[0] == "models":
        known = {"gpuzoo", "keras", "math", "numpy", "typing"}
        if path.name == "_blocks.py":  # a gradient inside a model's loss
            known |= {"jax", "tensorflow"}
        assert tops <= known
    elif parts[:3] != ("gpuzoo", "engine", "backends"):
        for backend in {"tensorflow", "jax"} & tops:
            assert path.stem == backend


def test_only_the_command_line_ends_the_process():
    ends = {"sys.exit", "exit", "quit", "os._exit", "SystemExit"}
    for path in SOURCES:
        if path.parent.name == "cli" or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ends, path
            elif isinstance(node, ast.Raise) and node.exc:
                assert ast.unparse(node.exc) not in ends, path


LEFT_OF_THE_SEAM = (
    "gpuzoo.cli.app", "gpuzoo.cli.listing", "gpuzoo.cli.machine", "gpuzoo.cli.runs",
    "gpuzoo.training.train", "gpuzoo.repro.verify",
    "gpuzoo.repro.diff", "gpuzoo.bench.bench", "gpuzoo.bench.worker", "gpuzoo.doctor",
    "gpuzoo.cli.compiling", "gpuzoo.gpus.compile", "gpuzoo.gpus.worker",
    "gpuzoo.cli.protect", "gpuzoo.deploy.signing", "gpuzoo.deploy.encryption",
    "gpuzoo.cli.serve", "gpuzoo.deploy.serve.export", "gpuzoo.deploy.serve.sandbox",
    "gpuzoo.deploy.serve.server",
    "gpuzoo.runs.folder", "gpuzoo.data.sources", "gpuzoo.catalogue.registry",
)  # fmt: skip


def test_what_is_imported_before_a_backend_is_chosen_imports_no_keras():
    heavy = ("keras", "tensorflow", "jax", "matplotlib")
    code = f"import sys, {', '.join(LEFT_OF_THE_SEAM)}; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


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
    pages = {
        f"gpuzoo/report/{name}.html" for name in ("base", "compare", "parts", "run")
    }
    assert {"gpuzoo/py.typed", "gpuzoo/runs/run.schema.json", *pages} <= names


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
        # what stands before a recorded run's backend is chosen
        "import gpuzoo.training.train, gpuzoo.training.finish, gpuzoo.engine.checkpoint",
        "import gpuzoo.training.session, gpuzoo.repro.verify, gpuzoo.repro.diff",
        "from gpuzoo.deploy import compress, evaluate, export, robustness, trained; "
        "import gpuzoo.report.page, gpuzoo.report.compare, gpuzoo.training.sweep",
    ],
)
def test_looking_around_loads_no_backend(code):
    check = "import sys; assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True)


def test_type_checkers_see_every_public_name_where_it_stands():
    """The imports under TYPE_CHECKING are those that are done on first use."""
    tree = ast.parse((ROOT / "gpuzoo" / "__init__.py").read_text())
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    (block,) = (one for one in blocks if ast.unparse(one.test) == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == gpuzoo._WHERE


def test_public_names_all_load():
    code = "import gpuzoo; [getattr(gpuzoo, name) for name in gpuzoo.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_test_that_is_called_slow_is_there():
    for name in slow.SLOW:
        file, _, rest = name.partition("::")
        assert f"def {rest.partition('[')[0]}" in (ROOT / file).read_text(), name
