"""Model objects with frozen layers and weights."""

import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, environment
from small import arrays, backbone, net

import gpuzoo
from gpuzoo.catalogue import architecture
from gpuzoo.runs import record

L = keras.layers


def frozen(how: str):
    """A model of which a part is frozen, in one of the ways of keras.io's guides."""
    base, image = backbone(), keras.Input((14, 14, 1))
    if how == "flat":
        for layer in base.layers[:-1]:
            layer.trainable = False
        return keras.Model(base.input, L.Dense(2)(base.output))
    if how == "one weight":
        model = net(L.Dense(3))
        model.layers[-1].kernel.trainable = False
        return model
    base.trainable = False
    if how == "unfrozen at its end":
        for layer in base.layers[-3:]:
            layer.trainable = True
    elif how == "statistics":  # of a normalization that computes as when it trains
        base.layers[2].trainable = True
        base.layers[2].gamma.trainable = base.layers[2].beta.trainable = False
    elif how == "sequential":
        return keras.Sequential([image, base, L.Dropout(0.2), L.Dense(2)])
    inside = {"training": False} if how == "nested" else {}
    return keras.Model(image, L.Dense(2)(base(image, **inside)))


FROZEN = (
    "nested", "flat", "sequential", "unfrozen at its end", "statistics", "one weight",
)  # fmt: skip


@pytest.mark.parametrize("how", FROZEN)
def test_what_is_frozen_stays_and_the_rest_is_trained_as_by_keras(how, train, npz):
    keras.utils.set_random_seed(3)
    model = frozen(how)
    images = np.load(npz)["x_train"] / 255
    model.compile(
        keras.optimizers.SGD(0.1, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = arrays(model)
    trained = {id(weight) for weight in model.trainable_weights}
    assert 0 < len(trained) < len(before)
    train(model, epochs=4, batch_size=80)
    after = arrays(model)
    for weight, old, new in zip(model.weights, before, after, strict=True):
        if id(weight) in trained:
            assert not np.array_equal(old, new), weight.path
        elif "moving" not in weight.path:
            assert np.array_equal(old, new), weight.path
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"
    model.set_weights(before)
    if how == "sequential":  # whose dropout draws elsewhere in Keras
        return
    model.fit(images, np.load(npz)["y_train"], batch_size=80, epochs=4, verbose=0)
    for one, other in zip(arrays(model), after, strict=True):
        assert np.allclose(one, other, atol=2e-5)


KILLED = """
import sys; sys.path.insert(0, {tests!r})
import gpuzoo
gpuzoo.configure(precision="float32", device="cpu", threads=2)
import keras, test_frozen as mine
keras.utils.set_random_seed(3)
model = mine.frozen("sequential")
model.layers[-1].kernel.trainable = False
optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
optimizer.exclude_from_weight_decay(var_names=["bias"])
model.compile(optimizer)
gpuzoo.train(model, data={data!r}, out=sys.argv[1], epochs=int(sys.argv[2]),
             batch_size=16, checkpoint_every=20, quiet=True)
"""


def test_a_killed_run_with_a_frozen_backbone_ends_with_the_same_bits(npz, tmp_path):
    file = tmp_path / "script.py"
    file.write_text(KILLED.format(tests=str(ROOT / "tests"), data=str(npz)))
    process = subprocess.Popen(
        [sys.executable, file, "killed", "150"], cwd=tmp_path, env=environment(tmp_path)
    )
    until, saved = time.monotonic() + 120, tmp_path / "killed" / "checkpoints"
    while not list(saved.glob("step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert record.read_run(tmp_path / "killed")["state"] == "running"
    told = gpuzoo.resume(tmp_path / "killed", quiet=True)
    subprocess.run(
        [sys.executable, file, "whole", "150"],
        cwd=tmp_path, env=environment(tmp_path), check=True,
    )  # fmt: skip
    whole = record.read_run(tmp_path / "whole")
    assert told["weights_sha256"] == whole["weights_sha256"]
    begun, ended = (
        safetensors.numpy.load_file(tmp_path / "whole" / f"{name}.safetensors")
        for name in ("initial_weights", "weights")
    )
    moved = {name for name in begun if not np.array_equal(begun[name], ended[name])}
    assert len(moved) == 1 and moved.pop().endswith("dense/bias")


def test_a_frozen_weight_is_not_drawn_anew_and_nothing_to_train_is_refused(train):
    model = frozen("one weight")
    with pytest.raises(gpuzoo.GpuzooError, match="kernel of layer 'dense.* is frozen"):
        train(model, fresh=True)
    model.layers[-1].keeps_weights = True
    before = np.array(model.layers[-1].kernel)
    train(model, fresh=True)
    assert np.array_equal(before, model.layers[-1].kernel)
    model.trainable = False
    with pytest.raises(gpuzoo.GpuzooError, match="model .* has no trainable weights"):
        train(model)


def test_a_description_that_freezes_what_is_not_there_is_refused():
    parts = json.loads(architecture.describe(frozen("one weight")))
    assert parts["trainable"] == {"weights": [[2, False]]}
    for flags in (
        {"weights": [[9, False]]},
        {"layers": [0]},
        {"layers": {"a": 1}},
        [1],
    ):
        text = json.dumps({**parts, "trainable": flags})
        with pytest.raises(gpuzoo.GpuzooError, match="trainable must hold"):
            architecture.rebuild(text)
