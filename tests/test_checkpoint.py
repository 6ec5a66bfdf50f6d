"""Checkpoints: going on from any of them gives the same bits; damage is noticed."""

import dataclasses

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.engine import checkpoint


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_going_on_from_any_checkpoint_gives_the_same_bits(
    precision, optimizer, dataset, runtime, tmp_path
):
    """Also from between two log lines, and after being stopped twice."""
    recipe = RECIPE.override(
        checkpoint_every=3, log_every=4, digest_every=5, optimizer=optimizer
    )
    runtime = dataclasses.replace(runtime, precision=precision)
    keras.config.set_dtype_policy(precision)
    try:
        whole, rows = train(recipe, dataset, runtime)
        told = [row for row in rows if row[0] in ("train", "test", "digest")]
        checkpoints = tmp_path / "checkpoints"
        stops = 0
        start = None
        while True:
            counter = iter([False, True] + [True] * 99)
            part, part_rows = train(
                recipe, dataset, runtime, folder=checkpoints, resume=start,
                stop=lambda counter=counter: next(counter),
            )  # fmt: skip
            if part.state == "finished":
                break
            stops += 1
            start, damaged = checkpoint.load(checkpoints)
            assert start.step == part.steps and damaged == []
    finally:
        keras.config.set_dtype_policy("float32")
    assert stops >= 3
    assert same(whole, part) and whole.metrics == part.metrics
    history = start.history + [
        list(row) for row in part_rows if row[0] in ("train", "test", "digest")
    ]
    assert history == [list(row) for row in told]


def test_only_the_last_two_checkpoints_are_kept(dataset, runtime, tmp_path):
    train(RECIPE.override(checkpoint_every=2), dataset, runtime, folder=tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["step-000000012.safetensors", "step-000000014.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flip weights", "flip facts"])
def test_a_damaged_checkpoint_is_passed_over(damage, dataset, runtime, tmp_path):
    folder = tmp_path / "c"
    recipe = RECIPE.override(checkpoint_every=2)
    whole, _ = train(recipe, dataset, runtime, folder=folder)
    newest = folder / "step-000000014.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[:-1])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        where = -3 if damage == "flip weights" else content.find(b"\x78\x01") + 9
        content[where] ^= 1
        newest.write_bytes(content)
    (folder / ".gpuzoo-tmp-0123456789abcdef").write_bytes(b"half")
    start, damaged = checkpoint.load(folder)
    assert start.step == 12 and damaged == [newest.name]
    assert not list(folder.glob(".*"))
    resumed, _ = train(recipe, dataset, runtime, folder=folder, resume=start)
    assert same(whole, resumed)


def test_a_checkpoint_of_another_model_is_refused(dataset, runtime, tmp_path):
    train(RECIPE.override(checkpoint_every=2), dataset, runtime, folder=tmp_path / "c")
    start, _ = checkpoint.load(tmp_path / "c")
    other = RECIPE.override(model_options=("dropout=0.2", "dense=17"))
    with pytest.raises(gpuzoo.GpuzooError, match="state 'dense/bias' is"):
        train(other, dataset, runtime, resume=start)


def test_a_history_of_any_length_is_kept(tmp_path):
    """Half a million rows, 200 MB as text."""
    row = ["digest", {"step": 100, "losses": "0" * 300, "weights": "f" * 64}]
    long = checkpoint.Checkpoint(7, {"state/a": np.ones(3)}, [row] * 500_000, {})
    checkpoint.save(tmp_path / "c", long)
    found, damaged = checkpoint.load(tmp_path / "c")
    assert found.history == long.history and found.step == 7 and damaged == []
