"""The notebooks: generated from their scripts, and executed."""

import pathlib

import pytest
from conftest import ROOT

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


# In the kernel, before the notebook: that it learns is what the recipes' own tests and
# figures are about.
SHORT = """
import gpuzoo

def short(recipe, *, train=gpuzoo.train, **how):
    usual = getattr(recipe, "epochs", None) or gpuzoo.load_recipe(recipe).epochs
    return train(recipe, **{**how, "epochs": min(2, how.get("epochs", usual))})

gpuzoo.train = short
"""


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
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORT))
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = str(notebook.cells)
    assert "'identical'" in text and "image/png" in text


IN_A_KERNEL = [
    """import os, signal
import gpuzoo
from gpuzoo import events
how = {"data": "digits", "model": "mlp", "epochs": 3, "track": "csv"}
run = gpuzoo.train("mnist", **how, out="one")""",
    "run.show()\ngpuzoo.load('one').show()",
    """def interrupt(event):
    if isinstance(event, events.Evaluated) and event.epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)
stopped = gpuzoo.train("mnist", **how, out="two", on_event=interrupt)
assert stopped["state"] == "stopped" and os.listdir("two/checkpoints")""",
    """def twice(event):
    if isinstance(event, events.Evaluated):
        os.kill(os.getpid(), signal.SIGINT)
try:
    gpuzoo.resume("two", on_event=twice)
except KeyboardInterrupt:
    print("the kernel lives")
again = gpuzoo.resume("two", quiet=True)
assert again["weights_sha256"] == run["weights_sha256"]""",
]


def test_a_training_in_a_notebook(tmp_path, monkeypatch):
    """Its progress is one output, an interrupt stops it cleanly, and show() shows it."""
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in IN_A_KERNEL]
    )
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    shown = [
        [one.data for one in cell.outputs if one.output_type == "display_data"]
        for cell in notebook.cells
    ]
    (trained,), pictures, (stopped,), (resumed,) = shown
    assert "test accuracy" in trained["text/plain"] and "█" not in trained["text/plain"]
    assert trained["text/html"].count("3     ") and "<span" in trained["text/html"]
    assert len(pictures) == 6 and all("image/png" in one for one in pictures)
    assert "to continue: gpuzoo resume two" in stopped["text/plain"]
    assert "Resuming after step" in resumed["text/plain"]
    assert "the kernel lives" in str(notebook.cells[3].outputs)
