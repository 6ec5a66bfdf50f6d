"""No sentence in the README that is not true: its commands and code are executed."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT, environment

README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.S)[1]


def with_path(tmp_path) -> dict:
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**environment(tmp_path), "PATH": path}


@pytest.mark.parametrize("command", block("commands").splitlines())
def test_commands(command, tmp_path):
    done = subprocess.run(
        ["bash", "-euc", command], cwd=tmp_path, env=with_path(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("{")


def test_first_training_without_network(tmp_path, no_network):
    """The README's own line, where there is neither network nor data."""
    words = block("train").split()
    assert words[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, ROOT / words[1]], cwd=tmp_path, capture_output=True, text=True,
        env={**with_path(tmp_path), **no_network}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stderr.splitlines()[0]
    assert "digits" in done.stderr.splitlines()[-2]


def test_proof(tmp_path):
    """The commands that show the promise, in one folder, one after another."""
    done = subprocess.run(
        ["bash", "-euc", block("proof")], cwd=tmp_path, env=with_path(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("{")]
    words = [json.loads(line) for line in told]
    verdicts = [word.get("verdict", word.get("state")) for word in words]
    assert verdicts == [
        "finished",
        "identical",
        "finished",
        "differs",
        "differs",
        "finished",
    ]


def test_python_code(tmp_path):
    code = block("python")
    assert len(code.strip().splitlines()) <= 12
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=with_path(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured, recorded = done.stdout.splitlines()[-1].split()
    # float32 on the host here, 16 bits in the run where the machine has them.
    assert abs(float(measured) - float(recorded)) < 0.01


def test_code_of_a_new_model(tmp_path, runtime):
    import gpuzoo

    code = re.search(r"## Add a model.*?```python\n(.*?)```", README, re.S)[1]
    (tmp_path / "linear.py").write_text(code)
    runpy.run_path(str(tmp_path / "linear.py"), run_name="linear")
    assert gpuzoo.build("linear").count_params() == 7850


def test_figures_come_from_the_records():
    script = ROOT / "benchmarks" / "tables.py"
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


def test_every_model_is_named():
    from gpuzoo import registry

    assert set(registry._shipped()) <= set(re.findall(r"`(\w+)`", README))


def test_links_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
