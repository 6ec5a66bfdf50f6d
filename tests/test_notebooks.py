"""The notebooks: generated from their scripts, and executed."""

import pathlib

import pytest
from conftest import ROOT

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


def cells(notebook) -> list:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_generated_from_its_script(script):
    """python docs/make/notebooks.py writes it, or jupytext, without outputs."""
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(script))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs(script: pathlib.Path, tmp_path, no_network, monkeypatch):
    if script.stem == "transfer":
        pytest.importorskip("keras_hub")
    for name, value in {**no_network, "GPUZOO_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    notebook = jupytext.read(script)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = str(notebook.cells)
    assert "'identical'" in text and "image/png" in text
