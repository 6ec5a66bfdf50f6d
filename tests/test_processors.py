"""Runs from another processor: verified and resumed by its class, not by its name."""

import json
import shutil
import typing

import pytest
from test_resume import start
from test_verify import WORDS, edit_record, write_digests

from gpuzoo.doctor import examine
from gpuzoo.repro import replay
from gpuzoo.repro import verify as verifying
from gpuzoo.runs import divergence, drift
from gpuzoo.runs.record import read_run
from gpuzoo.runtime import environment, portable
from gpuzoo.runtime.options import Options
from gpuzoo.runtime.processors import class_from, classes_of

HERE, ELSEWHERE = environment.cpu_model(), "AMD EPYC 0000 (cpu family 99, model 9)"
TRAIN = ["train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
         "units=(8,)", *WORDS]  # fmt: skip
OTHER_CLASS = "Nobody avx512f"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of this machine, of a tiny network."""
    folder = tmp_path_factory.mktemp("original")
    process = start([*TRAIN, "--epochs", "1", "--out", "run"], folder)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder / "run"


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def made_on(run, cpu, cpu_class=None, **runtime) -> None:
    """Let the record say that the run was made on another processor."""
    record = json.loads((run / "run.json").read_text())
    there = {**record["environment"], "cpu": cpu}
    there["cpu_class"] = cpu_class or environment.cpu_class()
    named = {"device_name": cpu, **runtime}
    edit_record(run, environment=there, runtime={**record["runtime"], **named})


def with_another_loss(run) -> None:
    """Change a bit of a loss, as another processor might, and seal it again."""
    rows = divergence.read_digests(run)
    rows[0]["losses"] = (
        f"{int(rows[0]['losses'][:2], 16) ^ 1:02x}" + rows[0]["losses"][2:]
    )
    write_digests(run, rows)
    edit_record(run)


# --- verify -------------------------------------------------------------------------


def test_the_same_bits_on_another_processor_of_the_class(run, cli_here):
    made_on(run, ELSEWHERE)
    done = cli_here("verify", run)
    assert done.returncode == 0, done.stderr
    where = f"identical, on another processor ({HERE}, recorded on {ELSEWHERE})"
    assert where in done.stderr
    assert done.json["processor"] == {"recorded": ELSEWHERE, "here": HERE}
    assert done.json["environment"] == []
    assert f"trained on {ELSEWHERE}" in (run / "report.html").read_text()


def test_other_bits_on_another_processor_are_not_held_against_the_run(run, cli_here):
    made_on(run, ELSEWHERE)
    with_another_loss(run)
    done = cli_here("verify", run)
    assert done.returncode == 2 and done.json["verdict"] == "cannot compare"
    first = done.json["causes"][0]
    assert (
        first.startswith("another processor") and HERE in first and ELSEWHERE in first
    )
    assert done.json["first_difference"]["step"] == 1
    (row,) = [r for r in done.json["compared"] if r["name"] == "test_accuracy"]
    assert row["recorded"] == row["here"]
    assert "figures only: test_accuracy" in done.stderr
    assert "is no proof" in (run / "report.html").read_text()
    made_on(run, HERE)
    again = cli_here("verify", run)
    assert again.returncode == 1 and again.json["processor"] is None


def test_of_another_class_only_the_figures_are_compared(run, cli_here):
    made_on(run, ELSEWHERE, OTHER_CLASS)
    identical = cli_here("verify", run)
    assert identical.returncode == 0 and "on another processor" in identical.stderr
    (told,) = identical.json["environment"]
    assert told.startswith(f"cpu_class: {OTHER_CLASS!r} in the run")
    with_another_loss(run)
    for words in ([], ["--allow-drift"]):
        done = cli_here("verify", run, *words)
        assert done.returncode == 2 and done.json["verdict"] == "other class"
        assert "only metrics can agree" in done.json["causes"][0]
        assert ELSEWHERE in done.json["causes"][0] and HERE in done.json["causes"][0]
        assert done.json["compared"] and "figures only: test_loss" in done.stderr


def test_what_no_processor_changes_differs_all_the_same(run, cli_here):
    """A changed file, a command that was not, a count of parameters."""
    made_on(run, ELSEWHERE, OTHER_CLASS)
    with_another_loss(run)
    kept = json.loads((run / "run.json").read_text())
    for change in ({"command": ["gpuzoo"]}, {"parameters": 7}):
        edit_record(run, **{**kept, **change})
        done = cli_here("verify", run)
        assert done.returncode == 1 and done.json["verdict"] == "differs"
    edit_record(run, **kept)
    (run / "curves.png").write_bytes(b"x")
    done = cli_here("verify", run)
    assert done.returncode == 1 and done.json["changed_files"] == ["curves.png"]


def test_anything_else_that_differs_is_not_compared(run, cli):
    made_on(run, ELSEWHERE, OTHER_CLASS)
    done = cli("verify", run, env={"TF_ENABLE_ONEDNN_OPTS": "0"})
    assert done.returncode == 2 and done.json["verdict"] == "cannot compare"
    assert done.json["steps"] == 0 and len(done.json["environment"]) == 3


def test_precision_and_threads_that_were_chosen_there_are_those_of_the_re_run(
    cli, tmp_path
):
    chosen = ["--precision", "auto", "--threads", "0", "--epochs", "1"]
    assert cli(*TRAIN, *chosen, "--out", "run").returncode == 0
    run = tmp_path / "run"
    honest = cli("verify", run)
    assert honest.returncode == 0, honest.stderr
    # Another one than auto takes on this processor.
    here = json.loads((run / "run.json").read_text())["runtime"]["precision"]
    other = "float32" if here == "mixed_bfloat16" else "mixed_bfloat16"
    made_on(run, ELSEWHERE, precision=other, threads=3)
    done = cli("verify", run)
    assert other in done.stderr and "3 threads" in done.stderr
    assert done.json["environment"] == [] and done.json["verdict"] == "cannot compare"


@pytest.mark.parametrize("level", ["repeatable", "portable"])
def test_level_portable_promises_the_bits(level, run):
    """The verdict on bits that differ on another processor of the class."""
    made_on(run, ELSEWHERE)
    record = read_run(run)
    record["runtime"]["level"] = level
    here = {"environment": environment.environment(), "runtime": record["runtime"]}

    class Opened:
        processor = drift.other_processor(record, here)
        differences = drift.environment_differences(
            record, {**here, "code": None, "inputs": {}}
        )

    verdict = {"figures": [], "causes": []}
    word = verifying._of_processors(verdict, Opened, record)
    assert word == ("differs" if level == "portable" else "cannot compare")
    assert HERE in verdict["causes"][0] and ELSEWHERE in verdict["causes"][0]


# --- resume -------------------------------------------------------------------------


STOPS = """
import sys
import gpuzoo

how = {"device": "cpu", "threads": 2, "precision": "float32", "level": sys.argv[1]}
gpuzoo.configure(**how, quiet=True)
from gpuzoo.engine import loop

asked, real = iter([False] * 3 + [True] * 9), loop.run
loop.run = lambda *a, **k: real(*a, **{**k, "stop": lambda: next(asked)})
gpuzoo.train(
    "mnist", data="digits", model="mlp", model_options=("units=(8,)",), epochs=2,
    batch_size=8, digest_every=20, log_every=7, out="run", quiet=True, **how,
)
"""


@pytest.fixture
def stopped(cli, tmp_path):
    """Make a run of the tiny network stop after some steps."""

    def stop(level):
        if level not in typing.get_args(typing.get_type_hints(Options)["level"]):
            pytest.skip(f"there is no level {level}")
        done = cli(level, program=("-c", STOPS))
        assert done.returncode == 0, done.stderr
        run = tmp_path / "run"
        assert read_run(run)["state"] == "stopped"
        return run

    return stop


def test_resume_on_another_processor_is_refused(stopped, cli_here):
    run = stopped("repeatable")
    for cpu_class in (OTHER_CLASS, None):
        made_on(run, ELSEWHERE, cpu_class)
        refused = cli_here("resume", run)
        assert refused.returncode == 2
        assert ELSEWHERE in refused.stderr and HERE in refused.stderr
        assert "level portable" in refused.stderr and "--allow-drift" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    done = cli_here("resume", run, "--allow-drift")
    assert done.returncode == 0, done.stderr
    (drifted,) = read_run(run)["resumed"][0]["drift"]
    assert drifted.startswith("cpu: ")
    made_on(run, HERE)
    with_another_loss(run)
    done = cli_here("verify", run)
    assert done.returncode == 1 and ELSEWHERE in done.json["causes"][0]


def test_at_level_portable_it_goes_on_and_is_verified(stopped, cli_on):
    run = stopped("portable")
    made_on(run, ELSEWHERE, OTHER_CLASS)
    done = cli_on(level="portable")("resume", run)
    assert done.returncode == 0, done.stderr
    assert "Resuming on another processor" in done.stderr
    same = cli_on(level="portable")("verify", run)
    assert same.returncode == 0 and "on another processor" in same.stderr, same.stderr
    with_another_loss(run)
    other = cli_on(level="portable")("verify", run)
    assert other.returncode == 1 and other.json["verdict"] == "differs"
    assert "level portable promises" in other.json["causes"][0]


# --- classes ------------------------------------------------------------------------

INTEL = {"cpu": "Intel(R) Xeon(R)", "cpu_isa": ["sse4_2", "avx2", "avx512f"]}
SAPPHIRE = {**INTEL, "cpu_isa": [*INTEL["cpu_isa"], "avx512_bf16", "avx512_fp16"]}
AMD = {"cpu": "AMD EPYC", "cpu_isa": ["sse4_2", "avx2", "avx512f", "avx512_vnni"]}


def classes(one, other, **runtime):
    known = {"level": "repeatable", "precision": "float32", "variables": {}, **runtime}
    pair = [{"environment": side, "runtime": known} for side in (one, other)]
    return classes_of(*pair)


def test_classes():
    assert class_from("GenuineIntel", SAPPHIRE["cpu_isa"]) == (
        "Intel avx512f avx512_bf16 avx512_fp16"
    )
    assert class_from("0x41", ["asimd"]) == "0x41 asimd"
    assert classes(INTEL, SAPPHIRE) == ["Intel avx512f"] * 2
    assert classes(INTEL, SAPPHIRE, precision="mixed_bfloat16") == [
        "Intel avx512f", "Intel avx512f avx512_bf16",
    ]  # fmt: skip
    assert classes(INTEL, SAPPHIRE, precision="mixed_float16")[1].endswith("fp16")
    assert classes(INTEL, AMD) == ["Intel avx512f", "AMD avx512f"]
    killed = [{"environment": side, "runtime": None} for side in (INTEL, SAPPHIRE)]
    assert len(set(classes_of(*killed))) == 2
    held = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    same = classes(INTEL, AMD, level="portable", variables=held)
    assert same == ["portable ONEDNN_MAX_CPU_ISA=AVX2"] * 2


def differing(level, **there):
    """Names of the differences of two records of this machine."""
    here = environment.environment()
    runtime = {"backend": "tensorflow", "device": "cpu", "level": level, "variables": {},
               **dict.fromkeys(drift._RUNTIME[2:])}  # fmt: skip
    pair = [
        {"environment": side, "runtime": runtime, "code": None, "inputs": {}}
        for side in ({**here, **there}, here)
    ]
    return [one.field for one in drift.environment_differences(*pair)]


def test_what_level_portable_does_not_read_is_no_difference():
    there = {
        "driver": "NVIDIA 1.2",
        "versions": {**environment.versions(), "nvidia-cublas-cu12": "1", "jax": "0",
                     "jaxlib": "0", "jax-cuda12-plugin": "0"},
        "variables": {**environment.moving_variables(), "OPENBLAS_CORETYPE": "Haswell",
                      "NPY_DISABLE_CPU_FEATURES": "AVX2"},
    }  # fmt: skip
    assert differing("portable", **there) == []
    assert len(differing("repeatable", **there)) == 7
    for name in ("numpy", "tensorflow", "keras", "ml-dtypes"):
        versions = {**environment.versions(), name: "0"}
        assert differing("portable", versions=versions) == [f"versions.{name}"]
    variables = {**environment.moving_variables(), "TF_DISABLE_MKL": "1"}
    assert differing("portable", variables=variables) == ["variables.TF_DISABLE_MKL"]


def test_a_replay_is_not_held_to_what_this_process_holds_itself_to(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    run = {"runtime": None, "environment": {"variables": {}}}
    with portable.expected("portable"):
        assert "ONEDNN_MAX_CPU_ISA" not in environment.moving_variables()
        assert "ONEDNN_MAX_CPU_ISA" not in replay.variables_for(run)
        run["environment"]["variables"] = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # the user's
        assert replay.variables_for(run)["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "ONEDNN_MAX_CPU_ISA" in environment.moving_variables()


@pytest.mark.parametrize("level", ["repeatable", "portable"])
def test_the_c_library_is_compared_if_both_have_it(level):
    assert differing(level, libc="glibc 1.0") == ["libc"]
    assert differing(level, libc="") == []


def test_a_processor_of_the_same_name_may_lack_something():
    pair = [{"environment": side} for side in (INTEL, SAPPHIRE)]
    assert drift.other_processor(*pair[:1] * 2) is None
    told = drift.other_processor(*pair)
    assert told.recorded == INTEL["cpu"]
    assert told.here == f"{INTEL['cpu']} +avx512_bf16 +avx512_fp16"


def test_a_recorded_class_counts_more_than_the_name():
    """The name is the hypervisor's; the vendor is asked of the processor."""
    named = {**INTEL, "cpu": "QEMU Virtual CPU", "cpu_class": "Intel avx512f"}
    assert classes(INTEL, named) == ["Intel avx512f"] * 2


def test_the_class_of_this_machine_is_shown_and_recorded(run):
    (told,) = [finding for finding in examine(quick=True) if finding.name == "cpu"]
    assert told.what.endswith(f"class {environment.cpu_class()}")
    assert read_run(run)["environment"]["cpu_class"] == environment.cpu_class()
