"""Gradient clipping: by the common norm, and by value."""

import dataclasses

import numpy as np
import pytest
from small import RECIPE, program, splits, two_classes

import gpuzoo
from gpuzoo.data.validate import make_dataset

DATA = make_dataset("light", "made up", splits(two_classes()))
WORDS = ["train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
         "units=(16,)", "--epochs", "3", "--device", "cpu", "--quiet"]  # fmt: skip


def gradients(runtime, **changes) -> dict[str, np.ndarray]:
    """The update of one step of plain SGD over its learning rate."""
    recipe = dataclasses.replace(
        RECIPE, model="mlp", model_options=("units=(8,)",), augment=(), epochs=1,
        optimizer="sgd", momentum=0.0, learning_rate=0.5, batch_size=80, **changes,
    )  # fmt: skip
    made = program(recipe, DATA, runtime)
    before = made.state.read(made.state.weights)
    made.train(0, 1)
    after = made.state.read(made.state.weights)
    return {name: (before[name] - after[name]) / 0.5 for name in before}


def norm(arrays: dict[str, np.ndarray]) -> float:
    return float(
        np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays.values()))
    )


def test_the_norm_of_all_gradients_together_is_limited(runtime):
    whole = gradients(runtime)
    limit = norm(whole) / 3
    clipped = gradients(runtime, clip_norm=limit)
    assert norm(clipped) == pytest.approx(limit, rel=1e-4)
    for name, one in clipped.items():  # the same direction
        assert one == pytest.approx(whole[name] / 3, rel=1e-3, abs=1e-6)
    loose = gradients(runtime, clip_norm=norm(whole) * 3)
    assert norm(loose) == pytest.approx(norm(whole), rel=1e-5)


def test_each_value_is_limited(runtime):
    whole = gradients(runtime)
    limit = max(np.abs(one).max() for one in whole.values()) / 4
    clipped = gradients(runtime, clip_value=float(limit))
    for name, one in clipped.items():
        assert one == pytest.approx(np.clip(whole[name], -limit, limit), abs=1e-5)


def test_both_are_refused(runtime):
    with pytest.raises(gpuzoo.GpuzooError, match="only one of them"):
        gradients(runtime, clip_norm=1.0, clip_value=1.0)


@pytest.mark.parametrize("mode", [("tensorflow", "mixed_float16"), ("jax", "float32")])
def test_clipped_runs_learn_and_repeat(mode, cli_on):
    """At float16 the gradients are a thousand times larger before the loss scale is
    taken out: clipped there, nothing would be learned."""
    cli = cli_on(*mode)
    done = cli(*WORDS, "--clip-norm", "0.5", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.json["test_accuracy"] > 0.5
    plain = cli(*WORDS, "--out", "plain")
    assert plain.json["weights_sha256"] != done.json["weights_sha256"]
    again = cli("verify", "run")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_every_optimizer_clips(optimizer, runtime):
    """After one update of a norm that rounds to nothing, only weight decay moves."""
    recipe = dataclasses.replace(
        RECIPE, model="mlp", model_options=("units=(8,)",), augment=(), epochs=1,
        batch_size=80, optimizer=optimizer,
    )  # fmt: skip
    found = []
    for clip in (0.0, 1e-30):
        made = program(dataclasses.replace(recipe, clip_norm=clip), DATA, runtime)
        before = made.state.read(made.state.weights)
        made.train(0, 1)
        after = made.state.read(made.state.weights)
        found.append(norm({name: after[name] - before[name] for name in before}))
    assert found[0] > 0 and found[1] < found[0] * 1e-6
