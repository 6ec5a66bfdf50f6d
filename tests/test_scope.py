"""Columns of tests/reference_digests.json: models of the catalogue, in every mode."""

import os

import pytest
import reference
from conftest import ROOT, environment, skip_without

FOLDER = ROOT / "benchmarks" / "repeatability"
LEVELS = ("repeatable", "portable")
# A recurrent, a convolutional, a dense and a normalising network, for a minute;
# benchmarks/repeatability/scope.py takes all models.
FEW = ["gru", "lenet5", "mlp", "resnet8"]
# Begins with the processor's approximation of 1/sqrt, which a class has not been shown
# to share: compared with this very processor, except at level portable.
NORMALISING = {"resnet8"}
CHECKED = {"tensorflow": "off", "jax": "on"}


@pytest.fixture
def scope(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import scope

    return scope


def known(scope, mode: dict, name: str) -> dict[str, str]:
    """The digests of a model by the names of the processors, of this machine's class."""
    experiment, found = scope.experiment_of(scope.STEPS, scope.BATCH), {}
    columns = reference.comparable(scope.THREADS, mode["precision"], mode["level"])
    if mode["level"] != "portable" and name in NORMALISING:
        here = reference.this_machine(scope.THREADS)["cpu"]
        columns = [column for column in columns if column["cpu"] == here]
    for number, column in enumerate(columns, start=1):
        digests = scope.digests_of([column], name, scope.name_of(mode), experiment)
        if digests:
            found[f"{number}: {column['cpu']}"] = digests[1]
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("backend", CHECKED)
def test_a_few_models_have_the_bits_of_every_column_of_the_class(
    backend, level, scope, monkeypatch, tmp_path
):
    skip_without(backend)
    mode = {
        "backend": backend, "precision": "float32", "xla": CHECKED[backend],
        "level": level,
    }  # fmt: skip
    wanted = {name: known(scope, mode, name) for name in FEW}
    models = [name for name in FEW if wanted[name]]
    if not models:
        pytest.skip("no column of this class of machine")
    clean = environment(tmp_path)  # nothing of this process, which is configured
    for name in set(os.environ) - set(clean):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GPUZOO_CACHE", clean["GPUZOO_CACHE"])
    found = {}
    steps = scope.STEPS, scope.BATCH
    scope.measure(
        models,
        mode,
        *steps,
        lambda name, digest, why: found.update({name: digest or why}),
    )
    for name in models:
        assert wanted[name] == dict.fromkeys(wanted[name], found[name]), name


def test_at_level_portable_all_columns_are_equal(scope):
    every = reference.columns()
    for mode in scope.modes_of(every):
        if mode.endswith("level portable"):
            assert all(same for _, _, same in scope.pairs(every, mode)), mode


def test_the_table_is_that_of_the_columns(scope):
    assert scope.matrix_text(reference.columns()) in scope.PAGE.read_text()


def test_a_cell_says_which_columns_agree(scope):
    def column(digest, steps="12 steps of 80"):
        return {"models": {steps: {"modes": {"m": {"mlp": digest}}}}}

    assert scope.cell([column("a"), column("b"), column("b")], "mlp", "m") == "1 ≠ 2=3"
    assert scope.cell([column("a"), column("a")], "mlp", "m") == "1=2"
    assert scope.cell([column("a"), column("a", "24 steps of 40")], "mlp", "m") == ""
    assert list(scope.pairs([column("a"), column("b")], "m")) == [(1, 2, False)]


def test_comparable_columns_are_of_the_class(monkeypatch):
    """In float16 the units of this machine count, in float32 they do not."""
    here = reference.this_machine(2)
    near = {**here, "cpu": "another", "digests": {}}
    units = {**near, "cpu_class": f"{here['cpu_class']} avx_ne_convert"}
    vendor = {**near, "cpu_class": f"Nobody {here['cpu_class'].partition(' ')[2]}"}
    threads = {**near, "threads": 3}
    monkeypatch.setattr(reference, "columns", lambda: [near, units, vendor, threads])
    assert reference.comparable(2, "float32") == [near, units]
    assert reference.comparable(2, "mixed_float16") == [near]
    assert reference.comparable(2, "float32", "portable") == [near, units, vendor]
    moved = {**near, "variables": {**near["variables"], "OPENBLAS_CORETYPE": "x"}}
    monkeypatch.setattr(reference, "columns", lambda: [near, moved])
    assert reference.comparable(2, "float32") == [near]
    assert reference.comparable(2, "float32", "portable") == [near, moved]
