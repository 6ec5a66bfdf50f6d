"""benchmarks/repeatability/layers.py, the walk over every layer of Keras: its table is whole, it
finds what does not repeat, and the page of the docs says what its record says."""

import copy
import json
import sys

import keras
import pytest
from conftest import ROOT

RECORD = ROOT / "benchmarks" / "records" / "layers.json"


@pytest.fixture
def walk(monkeypatch, runtime):
    """The two modules, in a process that is set up."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "repeatability")
    import layer_table
    import layers

    yield layers, layer_table
    for name in ("layers", "layer_table"):
        del sys.modules[name]


def test_every_layer_of_keras_has_a_line(walk):
    _, table = walk
    assert [name for name in table.known() if table.entry(name) is None] == []
    classes = {
        name
        for name, one in vars(keras.layers).items()
        if isinstance(one, type) and issubclass(one, keras.Layer)
    }
    reached = {getattr(keras.layers, n) for n in table.known() if ":" not in n}
    missing = {n for n in classes - {*table.LEFT_OUT}
               if getattr(keras.layers, n) not in reached}  # fmt: skip
    assert not missing and classes >= {*table.LEFT_OUT}


def test_a_layer_without_a_line_is_found(walk, monkeypatch):
    """Also a new one that takes an argument that nobody has chosen a value for."""
    _, table = walk

    class NewPooling2D(keras.Layer):
        def __init__(self, method, **kwargs):
            super().__init__(**kwargs)

    monkeypatch.setattr(keras.layers, "NewPooling2D", NewPooling2D, raising=False)
    assert "NewPooling2D" in table.known() and table.entry("NewPooling2D") is None


@pytest.mark.parametrize(
    "arrangement", ["alone", "shared", "siamese", "parallel", "together"]
)
@pytest.mark.parametrize(
    "name", ["Equalization", "GroupQueryAttention", "HashedCrossing", "IntegerLookup",
             "Activation:glu", "Activation:threshold", "ConvLSTM3D", "Cropping3D", "EinsumDense", "Dot", "RNN"],
)  # fmt: skip
def test_models_of_the_table(name, arrangement, walk):
    """Those that take something of their own."""
    _, table = walk
    model = table.build(name, arrangement, (table.SIDE, table.SIDE, 3), 3)
    assert model.output_shape == (None, 3)


def test_the_walk_trains_goes_on_and_fails(cli, tmp_path):
    """A layer that repeats, and a name that Keras has and the table has not."""
    out = tmp_path / "layers.json"
    words = ["--backends", "tensorflow", "--precisions", "float32", "--xla", "off",
             "--arrangements", "shared", "--trainings", "2", "--fresh", "1",
             "--out", out]  # fmt: skip
    program = (ROOT / "benchmarks" / "repeatability" / "layers.py",)
    done = cli(*words, "--layers", "Dense", program=program)
    assert done.returncode == 0, done.stderr + done.stdout
    record = json.loads(out.read_text())
    told = record["modes"]["tensorflow float32 XLA off"]["Dense"]["shared"]
    assert told["verdict"] == "equal" and told["trainings"] == 3
    done = cli(*words, "--layers", "Dense", "TextVectorization", program=program)
    assert done.returncode == 1 and "no line in layer_table.py" in done.stdout
    again = json.loads(out.read_text())
    assert again["modes"] == record["modes"]
    assert again["no_entry"] == ["TextVectorization"]


def test_what_differs_is_judged(walk):
    layers, _ = walk
    rows = [{"digests": ["a" * 64] * 6 + ["b" * 64] * 2}, {"digests": ["a" * 64]}]
    told = layers.judge(rows)
    assert told["verdict"] == "differs" and told["kinds"] == [7, 2]
    assert layers.judge(rows[1:])["verdict"] == "equal"
    refused = layers.judge([*rows, {"refused": "why"}])
    assert refused == {"verdict": "refused", "message": "why"}


def test_the_page_says_what_the_record_says(walk):
    layers, _ = walk
    record = json.loads(RECORD.read_text())
    assert layers.PAGE.read_text() == layers.page(record)
    planted = copy.deepcopy(record)
    for mode in planted["modes"].values():
        for told in mode.values():
            for one in told.values():
                one |= {"verdict": "differs", "kinds": [7, 3]}
    assert "kinds of weights: [7, 3]" in layers.page(planted)
