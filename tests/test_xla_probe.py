"""Whether XLA compiles for a GPU is tried in a process that may die of it."""

import dataclasses
import functools

import pytest

import gpuzoo
from gpuzoo import doctor
from gpuzoo.runtime import xla_probe
from gpuzoo.runtime.startup import choose_xla

NOWHERE = "/GPU:99"  # no machine of ours has it: the child fails
# What Python runs first in every process that finds it; it ends the one that compiles
# as XLA's own check does.
_ABORT = """
import os, sys
if any("jit_compile" in word for word in sys.orig_argv):
    os.write(2, b"F0000 asm_compiler.cc:122] Check failed: no code for sm_120\\n")
    os.{how}
"""


@pytest.fixture
def dying(tmp_path, monkeypatch, own_cache):
    """A function that makes every compiling child die in a way, or of none any more."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    (tmp_path / "first").mkdir()

    def set_up(how: str) -> None:
        code = _ABORT.format(how=how) if how else ""
        (tmp_path / "first" / "sitecustomize.py").write_text(code)

    return set_up


def test_a_child_that_dies_turns_xla_off_and_is_tried_once(dying, tmp_path):
    probe = functools.partial(xla_probe.known_failure, "RTX 5090", (12, 0), "/CPU:0")
    dying("abort()")
    xla, why = choose_xla("auto", "RTX 5090", probe)
    assert not xla and "SIGABRT" in why and "no code for sm_120" in why
    with pytest.raises(gpuzoo.GpuzooError, match="xla on.*RTX 5090.*--xla off"):
        choose_xla("on", "RTX 5090", probe)
    assert choose_xla("off", "RTX 5090", probe) == (False, "requested")
    (kept,) = (tmp_path / "cache" / "xla").iterdir()
    dying("")
    assert "SIGABRT" in probe()  # known, not tried again
    kept.write_text("{damaged")
    assert choose_xla("auto", "RTX 5090", probe)[0]  # tried again
    assert kept.read_text() == "{damaged"  # it may be anybody's
    kept.unlink()
    assert probe() == ""
    dying("abort()")
    assert probe() == ""
    other = functools.partial(xla_probe.known_failure, "RTX 5080", (12, 0), "/CPU:0")
    assert "SIGABRT" in other()


@pytest.mark.parametrize("how", ["_exit(3)", "kill(os.getpid(), 9)", "_exit(0)"])
def test_what_may_pass_is_not_kept(how, dying, tmp_path):
    """An error, a kill from outside, and an end without a result."""
    dying(how)
    assert xla_probe.known_failure("RTX 5090", (12, 0), "/CPU:0")
    assert not (tmp_path / "cache" / "xla").exists()


def test_flags_that_are_changed_are_tried_anew(dying, monkeypatch):
    probe = functools.partial(xla_probe.known_failure, "T4", (7, 5), "/CPU:0")
    dying("abort()")
    assert probe()
    dying("_exit(1)")
    pinned = "--xla_gpu_load_autotune_results_from=a.txt"
    monkeypatch.setenv("XLA_FLAGS", pinned)
    assert "SIGABRT" in probe()
    monkeypatch.setenv("XLA_FLAGS", f"{pinned} --xla_dump_max_hlo_modules=1")
    assert "SIGABRT" not in probe()


def test_a_device_that_cannot_compile_is_named_everywhere(runtime, own_cache):
    """A real child on a device that is not there: the first line and doctor say it."""
    finding = doctor._compiles(NOWHERE)
    assert not finding.ok and "GPU:99" in finding.what
    assert "--backend jax" in finding.remedy
    probe = functools.partial(xla_probe.known_failure, "H1", (9, 0), NOWHERE)
    xla, why = choose_xla("auto", "H1", probe)
    assert not xla and "GPU:99" in why
    there = dataclasses.replace(
        runtime, device="gpu", device_name="H1", xla=xla, reasons={"xla": why}
    )
    assert "XLA off" in there.line() and why in there.line()
    asked = dataclasses.replace(there, reasons={"xla": "requested"})
    assert "GPU:99" not in asked.line()
    assert doctor._compiles("/CPU:0") == doctor.Finding(
        "tensorflow XLA", True, "compiles"
    )
