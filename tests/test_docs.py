"""The site: it builds without a warning, its links lead somewhere, its code runs."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, environment

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", ROOT / "docs", tmp_path / "site"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").rglob("*.html")}
    assert {path.stem for path in PAGES} <= pages


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_python_of_the_tutorial(cli, tmp_path):
    """With the run that the tutorial begins with, in fewer epochs."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    (words,) = re.findall(r"gpuzoo (train mnist .* --out first)", tutorial)
    done = cli(*words.split(), "--epochs", "2")
    assert done.returncode == 0, done.stderr
    run_python(python_blocks("tutorial.md"), tmp_path)


def test_python_of_a_models_page(tmp_path):
    run_python(python_blocks("howto/own-model.md"), tmp_path)


def run_python(blocks: list[str], tmp_path) -> None:
    (code,) = blocks
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
