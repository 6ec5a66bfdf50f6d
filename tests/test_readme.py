"""No sentence in the README that is not true: its commands and code are executed."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, environment

README = (ROOT / "README.md").read_text()
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -e "


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.S)[1]


def installed(tmp_path) -> dict:
    """The environment of a command; what the set-up made is .venv in its folder."""
    (tmp_path / ".venv").symlink_to(pathlib.Path(sys.executable).parent.parent)
    path = [p for p in os.environ["PATH"].split(os.pathsep) if "venv" not in p]
    return {**environment(tmp_path), "PATH": os.pathsep.join(path)}


@pytest.mark.parametrize("command", block("commands").splitlines())
def test_commands(command, tmp_path):
    done = subprocess.run(
        ["bash", "-euc", command], cwd=tmp_path, env=installed(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("{")


def test_first_training_without_network(tmp_path, no_network):
    """The README's own line, where there is neither network nor data."""
    words = block("train").split("&&")[-1].split()
    assert words[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, ROOT / words[1]], cwd=tmp_path, capture_output=True, text=True,
        env={**installed(tmp_path), **no_network}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stderr.splitlines()[0]
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("test accuracy"))
    assert "on digits" in line


def test_two_commands_do_all_the_set_up():
    """Each is one line, and CI begins with them as they are."""
    for name, installs in (("train", "."), ("test", '".[test]"')):
        (line,) = block(name).splitlines()
        assert line.startswith(f"{SET_UP}{installs} && .venv/bin/python ")
    assert 'for name in ("train", "test"):' in (ROOT / ".ci" / "run").read_text()


def test_proof(tmp_path):
    """The commands that show the promise, in one folder, one after another."""
    done = subprocess.run(
        ["bash", "-euc", block("proof")], cwd=tmp_path, env=installed(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("{")]
    words = [json.loads(line) for line in told]
    verdicts = [word.get("verdict", word.get("state")) for word in words]
    assert verdicts == [
        "finished", "identical", "finished", "differs", "differs",
        "finished", "finished", "identical",
    ]  # fmt: skip
    # It was killed on its way, after a checkpoint.
    step = int(re.search(r"Resuming after step (\d+)", done.stderr)[1])
    assert 100 <= step < 990 and step % 100 == 0


def test_python_code(tmp_path):
    code = block("python")
    assert len(code.strip().splitlines()) <= 12
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=installed(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured, recorded = done.stdout.splitlines()[-1].split()
    # float32 on the host here, 16 bits in the run where the machine has them.
    assert abs(float(measured) - float(recorded)) < 0.01


# What an installation does for a tree: models/ and recipes/ are parts of gpuzoo.
INSTALLED = """
import importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        where = {"gpuzoo": "gpuzoo", "gpuzoo.models": "models", "gpuzoo.recipes": "recipes"}
        if name in where:
            folder = "%s/" + where[name]
            return importlib.util.spec_from_file_location(
                name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.meta_path.insert(0, Finder)
"""


def test_code_of_a_new_model(tmp_path):
    """It is really added, in a copy of the tree, whose own tests then pass."""
    tree = tmp_path / "tree"
    for name in ("gpuzoo", "models", "recipes", "tests", "benchmarks", "docs"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=left_out)
    for name in ("README.md", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    code = re.search(r"## Add a model.*?```python\n(.*?)```", README, re.S)[1]
    (tree / "models" / "linear.py").write_text(code)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(INSTALLED % tree)
    asked = {**environment(tmp_path), "PYTHONPATH": str(tmp_path / "site")}
    words = "train mnist --data digits --model linear --fast-dev-run --quiet".split()
    done = subprocess.run(
        [sys.executable, "-m", "gpuzoo", *words], cwd=tmp_path, env=asked,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "linear"
    # Those that go through the catalogue; the others cannot know of a file in models/.
    chosen = "linear or (record and modes) or named or imports or packages"
    files = ("models", "catalogue", "every_model", "repeatable", "readme", "package")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen,
         *(f"tests/test_{name}.py" for name in files)],
        cwd=tree, env=asked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 8, done.stdout


def test_figures_come_from_the_records():
    script = ROOT / "benchmarks" / "tables" / "tables.py"
    subprocess.run([sys.executable, script, "--check"], check=True)


@pytest.mark.parametrize("name", ["gan", "conditional_gan", "wgan"])
def test_what_gans_draw_comes_as_near_as_their_recipes_say(name):
    """In every run of the record."""
    recipe = (ROOT / "recipes" / f"train_mnist_{name}.py").read_text()
    stated = re.search(
        r"half of the first epoch's, and to end below ([\d.]+)\.", recipe
    )
    record = json.loads((ROOT / f"benchmarks/records/mnist_{name}.json").read_text())
    for run in record["runs"]:
        told = [row["frechet"] for row in run["tests"]]
        assert told[-1] < told[0] / 2 and told[-1] < float(stated[1])


def models_named() -> set[str]:
    """The models of the README's table."""
    table = re.search(r"## Models\n\n(.*?)\n\n", README, re.S)[1]
    return set(re.findall(r"`(\w+)`", table))


def test_every_model_named_is_there():
    from gpuzoo.catalogue import registry

    assert models_named() <= set(registry._shipped()) and len(models_named()) >= 25


def test_links_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
