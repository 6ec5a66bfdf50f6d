"""The tables of `gpuzoo list`, the card and the diagram of `gpuzoo info`."""

import keras
import pytest

import gpuzoo
from gpuzoo.cli import diagram

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.mark.parametrize("words", [["extra"], ["x*y"], ["cnn", "--task", "detect"]])
def test_a_pattern_that_matches_nothing_is_an_error(words, cli):
    done = cli("list", *words)
    assert done.returncode == 2 and not done.stdout
    assert f"no model and no recipe matches {words[0]!r}" in done.stderr


def test_list_says_what_a_model_reaches_and_in_what_time(cli):
    done = cli("list", "c*")
    models = {model["name"]: model for model in done.json["models"]}
    assert list(models) == ["cnn", "conditional_gan", "conv_lstm", "convmixer"]
    assert models["convmixer"]["recipe"] is None
    assert (best := models["cnn"]["recipe"]) in ("mnist", "mnist_fast")
    figures = done.json["figures"][best]
    assert 0.98 < float(figures["test accuracy"].split()[0]) / 100 < 1
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("cnn "))
    told = [figures["test accuracy"] + f" accuracy, {best}", figures["training"]]
    assert all(text in row for text in ["classify", "108,874", *told])
    taught = done.json["figures"]["distill_cifar10"]
    assert taught["gain"] in done.stdout and taught["without it"] in done.stdout
    assert "on cifar10 (jpeg)" in done.stdout
    # Which machine each figure is of, where there are several.
    machines = {
        told["on"].rpartition(", ")[0] for told in done.json["figures"].values()
    }
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured")]
    assert {line.partition(": ")[2] for line in lines} == machines
    assert ("measured (all others): " in done.stdout) == (len(machines) > 1)


def test_list_takes_the_best_recipe_of_a_model(cli):
    done = cli("list", "speednet")
    recipes = {
        recipe: one["test accuracy"] for recipe, one in done.json["figures"].items()
    }
    assert set(recipes) == {"cifar10", "cifar10_fast", "mnist_best"}
    assert done.json["models"][0]["recipe"] == max(recipes, key=recipes.get)


def test_list_filters_the_recipes(cli):
    assert set(cli("list", "--task", "forecast").json["recipes"]) == {"forecast"}
    assert set(cli("list", "c*", "--task", "video_prediction").json["recipes"]) == {
        "moving_mnist"
    }
    done = cli("list", "mnist_m*")
    assert done.json["recipes"] == ["mnist_mlp"] and done.json["models"] == []
    assert len(cli("list").json["recipes"]) == len(gpuzoo.list_recipes())
    done = cli("list", "keras/mobilenet*")
    names = [model["name"] for model in done.json["models"]]
    assert "keras/mobilenet_v2" in names and done.json["recipes"] == ["finetune"]
    assert "not measured yet" in done.stdout


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_no_line_is_wider_than_the_terminal(columns, cli, monkeypatch):
    *lines, _ = cli("list", env={"COLUMNS": str(columns)}).stdout.splitlines()
    assert len(lines) > 40 and max(map(len, lines)) <= columns
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = diagram.draw(gpuzoo.build("resnet20")).splitlines()
    assert len(lines) > 20 and max(map(len, lines)) <= columns


OWN = """
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (6, 6, 1), num_classes: int = 2):
    "Mine."
    return keras.Sequential([
        keras.Input(input_shape), keras.layers.Flatten(),
        keras.layers.Dense(num_classes, name="mine"),
    ])

@gpuzoo.register(task="classify", reference="here")
def broken(*, num_classes: int = 2):
    "Not mine."
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("cnn", ["differs", "dense: int = 128", "gpuzoo train mnist: test accuracy",
                 "conv_1", "12x12x16", "Conv2D 5x5", "parameters: 108,874"]),
        ("gan", ["generator:", "discriminator:", "score", "parameters: 463,141"]),
        ("diffusion", ["denoiser:", "time_dense"]),
        ("vae", ["vae:", "decoder:", "log_variance", "decoder_dense_1"]),
        ("keras/mobilenet_v3_small", ["expanded_conv", "logits", "parameters: 9"]),
        ("keras/hub", ["not drawn: preset of keras/hub must be a folder"]),
        ("own.py:net", ["Mine.", "mine", "parameters: 74"]),
    ],
)  # fmt: skip
def test_info_shows_the_card_and_the_diagram(model, told, cli, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    card = cli("info", model)
    assert card.returncode == 0, card.stderr
    assert all(text in card.stdout for text in told), card.stdout
    counted = f"parameters: {card.json['parameters'] or 0:,}"
    assert (counted in card.stdout) == (model != "keras/hub")


def test_info_of_a_model_that_cannot_be_built(cli, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    card = cli("info", "own.py:broken")
    assert card.returncode == 2 and "cannot be built: division by zero" in card.stderr


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("cnn", ["conv_1 (Conv2D)", "(None, 24, 24, 16)", "logits"]),
        ("gan", ['"generator"', '"discriminator"', "score"]),
        ("vae", ["mean", "Connected to", "decoder (Functional)"]),
    ],
)
def test_info_shows_the_layers(cli, model, told):
    card = cli("info", model, "--layers")
    assert card.returncode == 0 and all(text in card.stdout for text in told)


@pytest.mark.parametrize("name", gpuzoo.list_models())
def test_a_diagram_holds_every_weight_and_every_layer(name):
    model = gpuzoo.build(name)
    networks = list(diagram.networks_of(model))
    outer = [model] if model in networks else networks
    assert sum(network.count_params() for network in outer) == model.count_params()
    for network in networks:
        blocks = diagram.blocks_of(network)
        counts = [block.parameters * block.group[2] for block in blocks]
        assert sum(counts) == network.count_params()
        layers = sum(len(block.kinds) * block.group[2] for block in blocks)
        assert layers == len(network.operations)
        text = diagram.draw(network)
        assert text.count("●") == len(blocks)
        assert all(block.name in text for block in blocks)


DRAWN = """
          name   puts out  parameters  made of
●         in     8                     InputLayer
●         stem   8                 72  Dense relu
├─●  3x ┌ a_1    8                 72  Dense, ReLU
│ ●     │ b_1    8                 72  Dense
●─╯     └ add_1  8                     Add, ReLU
├─●       norm   8                 16  LayerNorm, Dropout
● │       other  3                 27  Dense
  ●       out    2                 18  Dense
"""


def test_a_diagram_shows_branches_and_folds_what_is_repeated(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    layers = keras.layers
    inputs = keras.Input((8,), name="in")
    x = layers.Dense(8, "relu", name="stem")(inputs)
    for number in (1, 2, 3):
        y = layers.ReLU()(layers.Dense(8, name=f"a_{number}")(x))
        y = layers.Dense(8, name=f"b_{number}")(y)
        x = layers.ReLU()(layers.Add(name=f"add_{number}")([x, y]))
    y = layers.Dropout(0.1)(layers.LayerNormalization(name="norm")(x))
    ends = [layers.Dense(2, name="out")(y), layers.Dense(3, name="other")(x)]
    assert diagram.draw(keras.Model(inputs, ends)) == DRAWN.strip("\n")


def test_what_is_read_from_outside_is_not_folded():
    """A path from each of three equal layers to the end."""
    inputs = x = keras.Input((8,), name="in")
    ways = []
    for _ in range(3):
        x = keras.layers.Dense(8)(x)
        ways.append(x)
    model = keras.Model(inputs, keras.layers.Concatenate(name="all")(ways))
    lines = diagram.draw(model).splitlines()
    starts = [line.split()[0] for line in lines[1:]]
    assert starts == ["●", "●", "├─●", "│", "●─┴─╯"]
    assert [block.group[2] for block in diagram.blocks_of(model)] == [1] * 5
