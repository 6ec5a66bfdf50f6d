"""What is recorded of the machine: versions, and variables that move bits."""

import importlib.metadata
import json
import sys

import pytest
from test_resume import killed_after_a_checkpoint, start

import gpuzoo
from gpuzoo.runtime import environment
from gpuzoo.runtime.options import Options


def test_of_two_versions_in_the_path_the_first_counts(monkeypatch, tmp_path):
    found = environment.versions()
    assert {"keras", "numpy", "ml-dtypes"} <= found.keys()
    for name, version in (("keras", "0.0.1"), ("tensorflow_cpu", "0.0.2")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert environment.versions() == {**found, "tensorflow-cpu": "0.0.2"}
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert environment.versions()["keras"] == "0.0.1"


def test_which_variables_are_watched(monkeypatch):
    moving = ("JAX_THREEFRY_PARTITIONABLE", "JAX_DEFAULT_PRNG_IMPL", "JAX_ENABLE_X64",
              "JAX_DEFAULT_MATMUL_PRECISION", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA",
              "DNNL_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE")  # fmt: skip
    harmless = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE",
                "JAX_PLATFORMS", "DNNL_VERBOSE", "ONEDNN_VERBOSE")  # fmt: skip
    before = environment.moving_variables()
    for name in (*moving, *harmless):
        monkeypatch.setenv(name, "1")
    assert environment.moving_variables() == {**before, **dict.fromkeys(moving, "1")}


def test_level_strict_refuses_them(npz, cli):
    for name in ("JAX_THREEFRY_PARTITIONABLE", "DNNL_MAX_CPU_ISA"):
        done = cli(
            "train", "mnist", "--data", npz, "--level", "strict", env={name: "0"}
        )
        assert done.returncode == 2 and f"refuses {name}=0" in done.stderr


def test_another_random_generator_of_jax_is_refused(tmp_path):
    pytest.importorskip("jax")
    words = ["train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
             "units=(16,)", "dropout=0.3", "--epochs", "50000", "--checkpoint-every",
             "20", "--backend", "jax", "--device", "cpu"]  # fmt: skip
    killed_after_a_checkpoint(words, tmp_path)
    env = {"JAX_THREEFRY_PARTITIONABLE": "0"}
    process = start(["resume", "run"], tmp_path, env=env)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2, stderr
    assert "JAX_THREEFRY_PARTITIONABLE: None in the run, '0' here" in stderr


def test_options_that_ask_for_what_is_in_force_are_taken(runtime):
    """As `gpuzoo resume` of a run whose options left a setting to gpuzoo."""
    here = {"device": "cpu", "precision": "float32", "threads": 2}
    same = ({}, here, {"backend": runtime.backend}, {"xla": "off"}, {"threads": 0})
    for named in same:
        assert gpuzoo.configure(**named, quiet=True).line() == runtime.line()
    others = (
        {"precision": "mixed_bfloat16"}, {"threads": 1}, {"xla": "on"},
        {"level": "strict"}, {"backend": "jax"},
    )  # fmt: skip
    for named in others:
        with pytest.raises(gpuzoo.GpuzooError, match="is already set up as"):
            gpuzoo.configure(**named, quiet=True)


def test_names_of_packages_are_those_of_their_metadata():
    """Read from a line, as all of the metadata takes a tenth of a second."""
    found = environment.versions()
    for name, version in found.items():
        assert importlib.metadata.version(name) == version, name
    assert {"gpuzoo", "keras", "numpy"} <= found.keys()


def test_a_run_records_the_options_of_its_process(runtime, npz, tmp_path, own_cache):
    """Asked for "auto", where another process might choose otherwise."""
    gpuzoo.train("mnist", data=str(npz), model="mlp", epochs=1, batch_size=16,
                 options=Options(), out=str(tmp_path / "run"), quiet=True)  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["precision"] == "float32"
    assert record["options"]["device"] == "cpu" and record["options"]["threads"] == 2
