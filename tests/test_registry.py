"""The catalogue: names, options, a user's own models, weights from a file."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, environment, needs_tensorflow

import gpuzoo
from gpuzoo.catalogue import architecture, keras_applications
from gpuzoo.home import redact
from gpuzoo.weights import weights_bytes

MODELS = gpuzoo.list_models()
CLASSIFIERS = gpuzoo.list_models(task="classify")
AUTOENCODERS = gpuzoo.list_models(task="autoencode")

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_typo_in_an_option_is_a_type_error(name):
    with pytest.raises(TypeError, match="no option 'num_clases'; nearest: num_classes"):
        gpuzoo.build(name, num_clases=3)
    with pytest.raises(TypeError, match="num_classes.*'ten'"):
        gpuzoo.build(name, num_classes="ten")


@pytest.mark.parametrize(
    ("word", "field"),
    [("lr", "learning_rate"), ("wd", "weight_decay"), ("bs", "batch_size"),
     ("max-epochs", "epochs"), ("steps_per_epoch", "epochs, batch_size"),
     ("random_state", "seed"), ("beta1", "beta_1"), ("ema", "ema_decay"),
     ("arch", "model"), ("dataset", "data"), ("optim", "optimizer"), ("amp", "precision"),
     ("jit_compile", "xla"), ("deterministic", "level"), ("n_jobs", "threads"),
     ("save_dir", "out"), ("verbose", "quiet"), ("gpus", "devices"),
     ("validation_split", "validation"), ("patience", "early_stopping"),
     ("max_grad_norm", "clip_norm"), ("warm_start", "init"), ("eps", "optimizer_options"),
     ("accumulation_steps", "accumulate"), ("class_weights", "class_weight")],
)  # fmt: skip
def test_words_of_other_libraries(word, field):
    with pytest.raises(gpuzoo.GpuzooError, match=f"nearest: {field}$"):
        gpuzoo.train("mnist", **{word: 1})


@pytest.mark.parametrize(
    ("word", "why"),
    [("test_split", "test set"), ("callbacks", "curves"), ("num_workers", "memory"),
     ("sample_weight", "same weight"),
     ("loss", "task")],
)  # fmt: skip
def test_what_there_is_not(word, why):
    with pytest.raises(gpuzoo.GpuzooError, match=f"there is none: .*{why}"):
        gpuzoo.train("mnist", **{word: 1})


def test_the_fields_of_a_recipe_stand_in_its_help():
    import pydoc

    from gpuzoo.catalogue.recipe import Recipe

    text = pydoc.plain(pydoc.render_doc(Recipe))
    assert "epochs: Passes over the training examples." in text
    for field in dataclasses.fields(Recipe):
        assert f"    {field.name}: " in Recipe.__doc__, field.name


def test_every_word_leads_to_a_field_and_is_none_itself():
    from gpuzoo import errors
    from gpuzoo.catalogue.recipe import Recipe
    from gpuzoo.runtime.options import Options

    fields = {f.name for kind in (Recipe, Options) for f in dataclasses.fields(kind)}
    fields |= {"out", "quiet", "fast_dev_run", "init", "track"}  # of train() itself
    led = {field for fields in errors._SAME for field in fields.split(", ")}
    assert led <= fields
    words = " ".join([*errors._SAME.values(), *errors._NONE.values()]).split()
    ours = fields - {"device", "backend"}
    assert len(words) == len(set(words)) and not ours & set(words)


def test_unknown_model_names_the_nearest():
    with pytest.raises(
        gpuzoo.GpuzooError, match="no model named 'cn'; nearest: tcn, cnn"
    ):
        gpuzoo.build("cn")


def test_list_models_filters():
    assert gpuzoo.list_models("conv*") == ["conv3d_small", "conv_lstm", "convmixer"]
    assert gpuzoo.list_models("*mlp", task="classify") == ["mlp"]
    assert set(MODELS) >= {*CLASSIFIERS, *AUTOENCODERS}
    assert "vae" in AUTOENCODERS and "vae" not in CLASSIFIERS
    assert gpuzoo.list_models("keras/*") == keras_applications.names()
    assert "keras/resnet50" in gpuzoo.list_models("keras/res*", task="classify")
    assert gpuzoo.list_models("keras/*", task="forecast") == []
    assert not [name for name in MODELS if name.startswith("keras/")]
    with pytest.raises(gpuzoo.GpuzooError, match="task must be one of"):
        gpuzoo.list_models(task="clasify")


def test_register_takes_a_users_model_and_refuses_a_bad_one():
    def shallow(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        """A line."""
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, keras.layers.Dense(num_classes)(inputs))

    gpuzoo.register(task="classify", reference="here")(shallow)
    assert "shallow" in gpuzoo.list_models()
    assert gpuzoo.build("shallow", num_classes=3).output_shape == (None, 3)

    def mlp(*, num_classes: int = 2): ...

    with pytest.raises(gpuzoo.GpuzooError, match="named 'mlp' (ships|already exists)"):
        gpuzoo.register(task="classify", reference="here")(mlp)

    def loose(**options): ...

    with pytest.raises(gpuzoo.GpuzooError, match="keyword-only, typed"):
        gpuzoo.register(task="classify", reference="here")(loose)


@pytest.mark.parametrize("damage", ["name", "shape", "dtype", "bytes", "sha256"])
def test_weights_load_strictly(damage, tmp_path):
    model = gpuzoo.build("mlp")
    weights = {v.path: v.numpy() for v in model.weights}
    path, wanted = tmp_path / "weights.safetensors", None
    if damage == "name":
        weights["other/kernel"] = weights.pop("logits/kernel")
    elif damage == "shape":
        weights["logits/bias"] = weights["logits/bias"][:-1]
    elif damage == "dtype":
        weights["logits/bias"] = weights["logits/bias"].astype("float16")
    content = weights_bytes(weights)
    path.write_bytes(content[:-7] if damage == "bytes" else content)
    if damage == "sha256":
        wanted = "0" * 64
    before = [v.numpy() for v in model.weights]
    with pytest.raises(gpuzoo.GpuzooError, match="weights.safetensors"):
        gpuzoo.load_weights(model, path, sha256=wanted)
    after = [v.numpy() for v in model.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_catalogue_read_from_source_equals_the_registered_one():
    """`list` and `info` parse the files; importing them must say the same."""
    from gpuzoo.catalogue import registry

    for name in MODELS:
        registry._builder(gpuzoo.model_info(name))
        read, registered = registry._shipped()[name], registry._registered[name][0]
        assert json.dumps(read.options) == json.dumps(registered.options)
        for field in ("name", "task", "reference", "parameters", "doc", "module"):
            assert getattr(read, field) == getattr(registered, field)


OWN = '''
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2, width: int = 8):
    """Mine."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Dense(width, "relu", name="dense")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))
'''


def test_a_model_of_a_file_is_built_by_its_short_name_too(tmp_path, monkeypatch):
    """As it was when the file was read last."""
    from gpuzoo.catalogue import registry

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    file = tmp_path / "short.py"
    file.write_text(OWN.replace("def net", "def briefly"))
    with pytest.raises(gpuzoo.GpuzooError, match="no model named 'briefly'"):
        gpuzoo.build("briefly")
    for width in (8, 12):
        file.write_text(file.read_text().replace("int = 8", f"int = {width}"))
        units = [
            gpuzoo.build(name).get_layer("dense").units
            for name in (f"{file}:briefly", "briefly")
        ]
        assert units == [width, width] and "briefly" in gpuzoo.list_models()


def test_a_users_own_file_may_be_written_in_many_ways(tmp_path):
    file, many = tmp_path / "many.py", OWN.replace("def net", "def many")
    file.write_text(f"""
from __future__ import annotations
import dataclasses
HOW = {{"twice": lambda number: lambda function: function}}
{many}
@HOW["twice"](2)
def other():
    return 1

@dataclasses.dataclass
class Sizes:
    width: int = 8
""")
    assert gpuzoo.build(f"{file}:many", width=9).get_layer("dense").units == 9
    file.write_text(many.replace('"here"', "HERE"))
    with pytest.raises(
        gpuzoo.GpuzooError, match="needs literal arguments.*reference=HERE"
    ):
        gpuzoo.model_info(f"{file}:many")


def test_weights_are_loaded_from_a_home(tmp_path, monkeypatch):
    """As the run folder is called in what train() returns."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = gpuzoo.build("mlp")
    content = weights_bytes({v.path: np.zeros(v.shape, "f4") for v in model.weights})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.safetensors").write_bytes(content)
    gpuzoo.load_weights(model, redact(str(tmp_path / "run")))
    assert not any(np.any(v) for v in model.weights)


def test_a_model_in_a_users_own_file(cli_here, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    words = ["train", "mnist", "--data", "digits", "--epochs", "1", "--device", "cpu",
             "--model-options", "width=12", "--quiet"]  # fmt: skip
    done = cli_here(*words, "--model", "own.py:net", "--out", "run")
    assert done.returncode == 0, done.stderr
    refused = cli_here("verify", "run")
    assert refused.returncode == 2 and "--trust-code" in refused.stderr
    assert cli_here("verify", "run", "--trust-code").returncode == 0
    assert cli_here("info", "own.py:net").returncode == 0
    model = gpuzoo.build(
        f"{file}:net", input_shape=(28, 28, 1), num_classes=10, width=12
    )
    gpuzoo.load_weights(model, tmp_path / "run", sha256=done.json["weights_sha256"])
    file.write_text(OWN.replace("relu", "tanh"))
    done = cli_here("verify", "run", "--trust-code")
    assert done.returncode == 2
    assert done.json["environment"] == ["code.own.py: module changed"]
    for text, name, words_told in (
        (OWN, "nte", "own.py has no model 'nte'; it has net"),
        ("x = 1", "net", "it has none; put @gpuzoo.register"),
        ("def", "net", "own.py cannot be read: invalid syntax"),
        (OWN.replace(": int = 8", ""), "net", "'width' of model 'net' must be"),
        (OWN.replace(', reference="here"', ""), "net", "net needs reference="),
    ):
        file.write_text(text)
        done = cli_here(*words, "--model", f"own.py:{name}")
        assert done.returncode == 2 and words_told in done.stderr, done.stderr
    done = cli_here(*words, "--model", "missing.py:net")
    assert done.returncode == 2 and "missing.py: No such file" in done.stderr


PROJECT = """
import gpuzoo
gpuzoo.configure(device="cpu", threads=2, precision="float32", quiet=True)
from models import {name}
print(gpuzoo.train("mnist", model="{name}", data="digits", fast_dev_run=True, quiet=True,
                   out="{name}")["state"])
"""


def test_a_project_has_files_with_any_names(cli, tmp_path):
    """models.py and recipes.py of the user's own, with helpers beside them, whichever
    way they are come to."""
    for name in ("models", "recipes"):
        text = OWN.replace("def net", f"def {name}_net").replace(
            "import keras", "import keras\nimport sidekick"
        )
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "sidekick.py").write_text("WIDTH = 8")
    (tmp_path / "train.py").write_text(PROJECT.format(name="models_net"))
    done = cli(program=("train.py",))
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr
    away = tmp_path / "away"
    away.mkdir()
    words = ["train", "mnist", "--data", "digits", "--fast-dev-run", "--quiet"]
    ways = {
        "script": ([str(pathlib.Path(sys.executable).with_name("gpuzoo")), *words]),
        "module": [sys.executable, "-m", "gpuzoo", *words],
        "recipe": [sys.executable, str(ROOT / "recipes/train_mnist.py"), *words[2:]],
    }
    for way, command in ways.items():
        done = subprocess.run(
            [*command, "--model", "../recipes.py:recipes_net", "--out", way],
            cwd=away, env=environment(tmp_path), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (way, done.stderr)


def test_helpers_of_one_name_in_two_folders(tmp_path, runtime):
    for name, units in (("a", 3), ("b", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sidekick.py").write_text(f"UNITS = {units}")
        (tmp_path / name / f"net_{name}.py").write_text(
            "import keras, gpuzoo\nfrom sidekick import UNITS\n"
            '@gpuzoo.register(task="classify", reference="x")\n'
            f"def net_{name}(*, input_shape: tuple = (4,), num_classes: int = 2):\n"
            "    import sidekick\n"
            "    image = keras.Input(input_shape)\n"
            "    x = keras.layers.Dense(UNITS)(image)\n"
            "    return keras.Model(image, keras.layers.Dense(sidekick.UNITS)(x))\n"
        )
    for name, units in (("a", 3), ("b", 5), ("a", 3)):
        model = gpuzoo.build(f"{tmp_path}/{name}/net_{name}.py:net_{name}")
        assert [layer.units for layer in model.layers[1:]] == [units, units]


OWN_OBJECT = """
import keras, numpy, gpuzoo, json, sys
gpuzoo.configure(device="cpu", threads=2, precision=sys.argv[1])
model = keras.Sequential([
    keras.Input((28, 28, 1)), keras.layers.Conv2D(4, 5, 2, activation="relu"),
    keras.layers.Dropout(0.1), keras.layers.Flatten(), keras.layers.Dense(10),
], name="mine")
before = [w.numpy() for w in model.weights]
run = gpuzoo.train(model, data="digits", epochs=6, learning_rate=0.01, out="run",
                   quiet=True)
test = gpuzoo.load_data("digits").test
right = (model.predict(test["image"] / 255, verbose=0).argmax(axis=1) == test["label"]).mean()
model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
loss = model.evaluate(test["image"] / 255, test["label"], verbose=0)
assert abs(right - run["test_accuracy"]) < 1e-6 and right > 0.85, (right, run)
assert abs(loss / run["test_loss"] - 1) < 1e-4, (loss, run)
assert run["model"] == "mine" and run["recipe"] == "mine"
print(json.dumps(run))
"""


@needs_tensorflow  # Keras, imported first, takes it
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_users_own_model_object(precision, cli, tmp_path):
    """It holds the trained weights in the end, and the run can be done again from its
    record alone, where that object is not there."""
    done = cli(precision, program=("-c", OWN_OBJECT))
    assert done.returncode == 0, done.stderr
    again = cli("verify", "run")
    assert again.json["verdict"] == "identical", again.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    described = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert described["config"]["name"] == "mine"
    # Keras, and with it TensorFlow, was imported before gpuzoo could say anything.
    assert ("slow without oneDNN" in done.stderr) == (not record["runtime"]["onednn"])


def _own(*layers):
    return keras.Sequential([keras.Input((14, 14, 1)), keras.layers.Flatten(), *layers])


@pytest.mark.parametrize(
    ("called", "name"), [("é_x", "x"), ("__", "own"), ("-a b_c", "ab_c"), ("猫", "own")]
)
def test_a_recipe_takes_a_name_from_any_model(called, name):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name=called)
    assert architecture.recipe_for(model)[0].name == name


class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def relu(x):
    return 2 * x


@keras.saving.register_keras_serializable()
def doubled(x):
    return 2 * x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            lambda: _own(Twice(), keras.layers.Dense(2)),
            "holds Twice, which is not part",
        ),
        (lambda: _own(keras.layers.Lambda(lambda x: x)), "holds a Lambda layer"),
        (
            lambda: _own(keras.layers.Dense(2, relu)),
            "function 'relu' that is not Keras's",
        ),
        (lambda: _own(keras.layers.Dense(2, doubled)), "holds .*doubled, which is not"),
        (lambda: keras.Sequential([keras.layers.Dense(2)]), "not built yet; start it"),
        (lambda: 7, "not int"),
        (lambda: _own(keras.layers.Dense(3)), r"puts out \(None, 3\), not"),
    ],
)
def test_own_models_that_cannot_be_trained(model, words, npz, tmp_path):
    with pytest.raises(gpuzoo.GpuzooError, match=words):
        gpuzoo.train(
            model(), data=str(npz), batch_size=16, out=tmp_path / "run", quiet=True
        )
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_of_a_model_object_is_a_short_line(npz, tmp_path):
    with pytest.raises(gpuzoo.GpuzooError) as told:
        gpuzoo.train(
            _own(keras.layers.Dense(2)),
            data=str(npz),
            model_options=("units=3",),
            out=tmp_path / "run",
        )
    assert "has no option 'units'" in str(told.value) and len(str(told.value)) < 200
