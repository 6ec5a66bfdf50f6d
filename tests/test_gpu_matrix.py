"""The page of every model, compiled for GPUs: what its record says."""

import importlib.util
import json

import pytest
from conftest import ROOT

from gpuzoo import list_models, tasks
from gpuzoo.catalogue import registry


@pytest.fixture
def matrix(runtime, monkeypatch):
    """benchmarks/repeatability/gpu_matrix.py, with the models of the catalogue only."""
    monkeypatch.setattr(registry, "_registered", {})
    folder = ROOT / "benchmarks" / "repeatability"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("matrix", folder / "gpu_matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_matrix_says_what_the_record_says(matrix):
    record = json.loads(matrix.RECORD.read_text())
    assert matrix.PAGE.read_text() == matrix.page(record)
    of_gpuzoo = [row for row in record["rows"] if row["level"] != "exclude"]
    assert not matrix.faults(of_gpuzoo), "say it in docs/howto/compile.md"


def test_the_page_of_a_matrix(matrix):
    """Of rows that compile, fit and repeat, and of others."""
    step = {"kernels": {"fusion (loop)": 3, "__cudnn$convForward": 1}, "bytes": 2e6,
            "flops": 1e9, "least_us": 4.0, "bound_by": "launches", "sha256": "0"}  # fmt: skip
    odd = {"operation": "scatter", "layer": "net/embedding", "count": 1}
    row = {"precision": "mixed_bfloat16", "error": None, "memory_bytes": 1, "code": "c"}
    rows = [
        {**row, "model": "net", "card": "h200", "level": level, "fits": level == "fast",
         "programs": {"train": {**step, "may_not_repeat": [odd], "sha256": level,
                                "bytes": bytes_, "kernels": step["kernels"] | more}}}
        for level, bytes_, more in (("repeatable", 3e6, {"fusion (loop)": 3}),
                                    ("fast", 2e6, {"fusion (loop)": 2, "scatter": 1}))
    ]  # fmt: skip
    rows.append({**row, "model": "net", "card": "a100", "level": "repeatable",
                 "error": "unknown"})  # fmt: skip
    page = matrix.page({"rows": rows, "versions": {"jax": "1"}, "batch": 128,
                        "date": "today"})  # fmt: skip
    for line in (
        "| repeatable | mixed_bfloat16 | 2 | 1 | 1 | 1 |",
        "| fast | mixed_bfloat16 | 1 | 0 | 0 | 1 |",
        "- net mixed_bfloat16 repeatable h200: does not fit",
        "- net mixed_bfloat16 repeatable a100: unknown",
        "- net mixed_bfloat16 repeatable h200, train: scatter of net/embedding may not "
        "repeat",
        "- exclude, mixed_bfloat16: all",
        "| net | 4, 4 us (launches), does not fit, may not repeat | does not compile |",
        "| repeatable / fast | mixed_bfloat16 | 1 | 0 | 1.00 (1.00 to 1.00) | "
        "1.50 (1.50 to 1.50) |",
        "| net | 4 | 4 |  | 3 | 2 |  | `scatter` |",
        "| net | fusion (loop) +1, scatter -1 |  |",
    ):
        assert line in page.splitlines()


def test_every_model_has_data_of_its_task(matrix):
    """And a recipe that the task takes: tables and sounds are not shifted."""
    for model in list_models():
        recipe = matrix.recipe_of(model)
        tasks.load(recipe.task).check_recipe(recipe)
        assert (recipe.data == "digits") == (recipe.task not in matrix.DATA)
        assert tasks.load(recipe.task).takes in ("image", "") or not recipe.augment


def test_the_program_of_a_shard_is_the_same_for_any_number_of_cards(matrix):
    import gpu_devices

    models = json.loads(gpu_devices.RECORD.read_text())["models"]
    assert {"cnn", "resnet20", "lstm", "gan"} <= models.keys()
    assert not {name for name, one in models.items() if gpu_devices.fault(one)}
    rows = {"devices": [
        {"shard_sha256": sha, "may_not_repeat": [], "devices": count}
        for count, sha in ((1, "a"), (2, "b"))
    ]}  # fmt: skip
    assert "depends on the number" in gpu_devices.fault(rows)
