"""`gpuzoo check`: faults are named before a training, with the layer and the remedy."""

import pytest
from conftest import skip_without

from gpuzoo.repro import check_worker
from gpuzoo.repro.check import NO_COMPILE, NOT_REPEATABLE, NOTE, SLOW

FILE = """
import random
import keras

class Draws(keras.layers.Layer):
    def call(self, x):
        return x * random.random()

class Breaks(keras.layers.Layer):
    def call(self, x, training=False):
        return -x if training and float(x[0, 0, 0, 0]) > 0 else x

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)
    def call(self, x):
        return self.dense(self.flat(x))

def net(kind: str = "fine"):
    if kind == "subclassed":
        return Net()
    inputs = keras.Input((14, 14, 1))
    x = keras.layers.MaxPooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    if kind == "float64":
        x = keras.layers.Activation("relu", dtype="float64", name="wide")(x)
    if kind in ("both", "draws"):
        x = Draws(name="draws")(x)
    if kind in ("both", "breaks"):
        x = Breaks(name="breaks")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def looked_at(file, runtime, kind, shape=()):
    request = {"model": f"{file}:net", "model_options": [f"kind={kind}"],
               "shape": list(shape), "batch_size": 4}  # fmt: skip
    return check_worker._Check(request, runtime).result


def of(result, *kinds):
    return [row for row in result["findings"] if row["kind"] in kinds]


def test_what_is_fine_repeats(file, runtime):
    for kind, shape in (("fine", ()), ("subclassed", (14, 14, 1))):
        found = looked_at(file, runtime, kind, shape)
        assert found["repeated"] and found["step_seconds"] > 0
        assert not of(found, NOT_REPEATABLE, NO_COMPILE)
        assert {"Dense", "Flatten"} <= {row["kind"] for row in found["layers"]}
    (told,) = of(looked_at(file, runtime, "subclassed"), NO_COMPILE)
    assert told["remedy"] == "name it: --shape 28 28 1"


def test_every_faulty_layer_is_named_with_the_remedy(file, runtime):
    found = looked_at(file, runtime, "both")
    assert found["repeated"] is None
    (draws,), (breaks,) = of(found, NOT_REPEATABLE), of(found, NO_COMPILE)
    assert draws["layer"] == "draws (Draws)" and "SeedGenerator" in draws["remedy"]
    assert breaks["layer"] == "breaks (Breaks)" and "keras.ops" in breaks["remedy"]
    (where,) = of(found, NOTE)
    assert "mine.py, line 7: random.random" in where["what"]
    wide = of(looked_at(file, runtime, "float64"), SLOW)
    assert {row["layer"] for row in wide} >= {"wide (Activation)"}


def test_a_step_that_varies_is_found(file, runtime, monkeypatch):
    """With a backend that adds something else each time, as a faulty kernel would."""
    numbers = iter(range(100))

    class Varying(type(check_worker.engine_backend(runtime))):
        def apply(self, optimizer, gradients, variables):
            gradients = [one + 0.001 * next(numbers) for one in gradients]
            super().apply(optimizer, gradients, variables)

    monkeypatch.setattr(check_worker, "engine_backend", Varying)
    found = looked_at(file, runtime, "fine")
    assert found["repeated"] is False
    (told,) = of(found, NOT_REPEATABLE)
    assert "conv2d/kernel" in told["what"]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_verb(backend, file, cli_here):
    skip_without(backend)
    words = ("check", f"{file}:net", "--backends", backend, "--device", "cpu")
    done = cli_here(*words, "--model-options", "kind=draws", "--json")
    assert done.returncode == 1, done.stderr
    rows = [row for row in done.json["findings"] if row["kind"] == NOT_REPEATABLE]
    assert [row["layer"] for row in rows] == ["draws (Draws)"]
    assert "not repeatable" in done.stdout and backend in done.json["backends"]


def test_wrong_use_is_one_line(file, cli_here):
    for words in (("nothing",), (f"{file}x:net",), (f"{file}:net", "--batch-size", "0"),
                  ("mlp", "--shape", "0")):  # fmt: skip
        done = cli_here("check", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
