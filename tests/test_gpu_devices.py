"""`gpuzoo compile --devices`: batches in shards, and kernels that programs share."""

import copy
import dataclasses

import pytest
from conftest import needs_jax
from test_gpus import PROGRAMS, needs_compiler

from gpuzoo.engine.backends.compiled import Compiled, Exchange, Part
from gpuzoo.gpus import cards, compile, predict, program_text

NOTHING = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0)


# --- a step of several programs -------------------------------------------------------


def of_step(*parts: Part, exchanges=()) -> dict:
    step = Compiled(parts, NOTHING, 1e6, exchanges)
    return predict.of_step(step, cards.load("h200"), "float32", "repeatable")


def test_each_program_counts_as_often_as_it_runs():
    first, shard = (
        Part("weights", PROGRAMS["embedding"]), Part("shard", PROGRAMS["convolution"]),
    )  # fmt: skip
    alone = [of_step(first)["kernels"], of_step(shard)["kernels"]]
    found = of_step(first, dataclasses.replace(shard, times=4))
    assert found["kernels"] == alone[0] + 4 * alone[1]
    assert found["kernels_by_kind"]["__cudnn$convBackwardFilter"] == 4
    assert [one["operation"] for one in found["may_not_repeat"]] == ["scatter"]
    assert found["least_seconds_by"]["launches"] == pytest.approx(
        1e-6 * found["kernels"]
    )


def test_a_loop_of_a_shard_is_not_the_loop_over_steps():
    """All kernels of the program count, not those of its last loop alone."""
    module = program_text.parse(PROGRAMS["loop"])
    whole = sum(program_text.count(module, module.entry).values())
    found = of_step(
        Part("weights", PROGRAMS["embedding"]), Part("shard", PROGRAMS["loop"])
    )
    alone = of_step(Part("weights", PROGRAMS["embedding"]))["kernels"]
    assert found["kernels"] == alone + whole > alone + 75


def test_the_digest_of_a_shard_is_that_of_its_programs():
    shard = Part("shard", PROGRAMS["convolution"], 8)
    others = [Part("sum", PROGRAMS["embedding"]), Part("mean", PROGRAMS["loop"])]
    eight = of_step(shard, *others)
    four = of_step(dataclasses.replace(shard, times=4), *reversed(others))
    assert four["shard_sha256"] == eight["shard_sha256"]
    assert four["program_sha256"] != eight["program_sha256"]
    odd = dataclasses.replace(shard, text=shard.text.replace("[8,14", "[9,14"))
    assert of_step(odd, *others)["shard_sha256"] != eight["shard_sha256"]


def test_a_shard_that_depends_on_the_number_of_devices_is_a_failure():
    parts = Part("shard", PROGRAMS["convolution"]), Part("sum", PROGRAMS["loop"])
    told = Exchange(24, PROGRAMS["embedding"])
    row = {"card": "h200", "precision": "float32", "level": "repeatable", "error": None,
           "fits": True, "programs": {"train": of_step(*parts, exchanges=(told,))}}  # fmt: skip
    assert row["programs"]["train"]["exchanges"][0]["received_bytes"] == 24
    rows = [{**copy.deepcopy(row), "devices": count} for count in (1, 2)]
    record = {"recipe": {"elastic": True}, "rows": rows}
    assert compile.failures(record) == []
    rows[1]["programs"]["train"]["shard_sha256"] = "another"
    (line,) = compile.failures(record)
    assert line.startswith("h200, float32, repeatable: the program of a shard depends")
    record["recipe"]["elastic"] = False  # then it does by what it is
    assert compile.failures(record) == []


# --- the real compiler ----------------------------------------------------------------

WORDS = ("compile", "mnist", "--data", "digits", "--batch-size", "64", "--for", "h200")


@needs_jax
@needs_compiler
def test_a_shard_is_the_same_program_on_any_number_of_devices(cli):
    done = cli(*WORDS, "--elastic", "--devices", "1,2", "4", "8", "--precision", "auto")
    assert done.returncode == 0, done.stderr
    steps = {row["devices"]: row["programs"]["train"] for row in done.json["rows"]}
    assert list(steps) == [1, 2, 4, 8]
    assert len({one["shard_sha256"] for one in steps.values()}) == 1
    assert len({one["program_sha256"] for one in steps.values()}) == 4
    sums = {"weights": 1, "sum": 1, "mean": 1}
    for count, one in steps.items():
        times = {part["name"]: part["times"] for part in one["parts"]}
        assert times == {**sums, "shard": 8 // count}
        assert one["may_not_repeat"] == []
        gradients = 4 * 108_874  # of the parameters of cnn, in float32
        received = [each["received_bytes"] for each in one["exchanges"]]
        expected = [(count - 1) * gradients, (count - 1) * 8]  # and two metrics
        assert received == (expected if count > 1 else [])
        for each in one["exchanges"]:
            assert any(kind.startswith("all-gather") for kind in each["collectives"])
    assert "8 devices: each receives 3.0 MB a step" in done.stdout


@needs_jax
@needs_compiler
def test_data_parallel_steps_and_what_they_refuse(cli):
    """Without elastic a batch has as many shards as devices."""
    words = (*WORDS, "--model", "lstm", "--precision", "float32")
    done = cli(*words, "--devices", "1,2")
    assert done.returncode == 0, done.stderr
    whole, half = (row["programs"]["train"] for row in done.json["rows"])
    assert "parts" not in whole and {one["times"] for one in half["parts"]} == {1}
    # All rounds of the recurrence, half of the examples; the update is computed by both.
    assert 0.5 <= half["flops"] / whole["flops"] < 0.6
    for odd, says in (
        (("--elastic", "--devices", "3"), "devices=3 must divide shards=8"),
        (("--devices", "3"), "batch_size 64 must be a multiple of 3, for devices=3"),
        (("--devices", "2", "--accumulate", "2"), "cannot be combined with devices=2"),
    ):
        done = cli(*words, *odd)
        assert done.returncode == 2 and says in done.stderr


@needs_jax
@needs_compiler
def test_kernels_that_are_kept_change_no_program(cli):
    words = (*WORDS, "--model", "mlp", "--precision", "float32")
    both = cli(*words, "--level", "fast", "repeatable").json["rows"]
    (alone,) = cli(*words).json["rows"]
    assert [row["level"] for row in both] == ["fast", "repeatable"]
    assert both[1]["programs"] == alone["programs"]


@needs_jax
def test_kernels_of_a_process_that_ended_are_not_used(tmp_path):
    from gpuzoo.gpus.worker import _kept

    with pytest.raises(RuntimeError), _kept(str(tmp_path), "h200") as path:
        (tmp_path / path).write_text("half a kern")
        raise RuntimeError
    for text in ("two", "three"):
        with _kept(str(tmp_path), "h200") as path:
            file = tmp_path / path
            before = file.read_text() if file.exists() else None
            assert before == (None if text == "two" else "two")
            file.write_text(text)
    with _kept(str(tmp_path), "t4") as path:
        assert not (tmp_path / path).exists()


@pytest.mark.parametrize("count", ["0", "-1", "two", "1,1025"])
def test_numbers_of_devices(cli_here, count):
    done = cli_here("compile", "mnist", "--for", "h200", "--devices", count)
    assert done.returncode == 2 and "must be in 1..1024" in done.stderr
