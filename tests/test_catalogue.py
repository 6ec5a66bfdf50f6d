"""The tables of `gpuzoo list`, the card of `gpuzoo info`."""

import pytest

import gpuzoo


@pytest.mark.parametrize("words", [["extra"], ["x*y"], ["cnn", "--task", "detect"]])
def test_a_pattern_that_matches_nothing_is_an_error(words, cli_here):
    done = cli_here("list", *words)
    assert done.returncode == 2 and not done.stdout
    assert f"no model and no recipe matches {words[0]!r}" in done.stderr


def test_list_says_what_a_model_reaches_and_in_what_time(cli_here):
    done = cli_here("list", "c*")
    models = {model["name"]: model for model in done.json["models"]}
    names = ["cnn", "conditional_gan", "conv3d_small", "conv_lstm", "convmixer"]
    assert list(models) == names
    assert models["convmixer"]["recipe"] is None
    assert (best := models["cnn"]["recipe"]) in ("mnist", "mnist_fast")
    figures = done.json["figures"][best]
    assert 0.98 < float(figures["test accuracy"].split()[0]) / 100 < 1
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("cnn "))
    told = [figures["test accuracy"] + f" accuracy ({best})", figures["training"]]
    assert all(text in row for text in ["classify", "108,874", *told])
    taught = done.json["figures"]["distill_cifar10"]
    assert taught["gain"] in done.stdout and taught["without it"] in done.stdout
    assert "on cifar10 (jpeg)" in done.stdout
    # Which machine each figure is of, where there are several.
    machines = {
        told["on"].rpartition(", ")[0]
        for told in done.json["figures"].values()
        if told  # measured
    }
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured")]
    assert {line.partition(": ")[2] for line in lines} == machines
    assert ("measured (all others): " in done.stdout) == (len(machines) > 1)


def test_list_takes_the_best_recipe_of_a_model(cli_here):
    done = cli_here("list", "speednet")
    recipes = {
        recipe: one["test accuracy"] for recipe, one in done.json["figures"].items()
    }
    assert set(recipes) == {"cifar10", "cifar10_fast", "mnist_best"}
    assert done.json["models"][0]["recipe"] == max(recipes, key=recipes.get)


def test_list_filters_the_recipes(cli_here):
    assert set(cli_here("list", "--task", "forecast").json["recipes"]) == {
        "forecast", "market", "next_move",
    }  # fmt: skip
    assert set(
        cli_here("list", "c*", "--task", "video_prediction").json["recipes"]
    ) == {"moving_mnist"}
    done = cli_here("list", "mnist_m*")
    assert done.json["recipes"] == ["mnist_mlp"] and done.json["models"] == []
    assert len(cli_here("list").json["recipes"]) == len(gpuzoo.list_recipes())
    done = cli_here("list", "keras/mobilenet*")
    names = [model["name"] for model in done.json["models"]]
    assert "keras/mobilenet_v2" in names and done.json["recipes"] == ["finetune"]
    assert "not measured yet" in done.stdout


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_name_is_broken(columns, cli):
    done = cli("list", env={"COLUMNS": str(columns)})
    *lines, _ = done.stdout.splitlines()
    assert len(lines) > 40 and max(map(len, lines)) <= columns
    words = {word.strip("()") for line in lines for word in line.split()}
    assert words >= {model["name"] for model in done.json["models"]}
    assert words >= set(done.json["recipes"])
    for told in done.json["figures"].values():
        figures = [v for k, v in told.items() if k not in ("on", "data")]
        assert words >= {word.strip("()") for v in figures for word in v.split()}


@pytest.mark.parametrize("columns", [80, 120])
def test_info_is_no_wider_than_the_terminal(columns, cli):
    done = cli("info", "mlp", env={"COLUMNS": str(columns)})
    *lines, _ = done.stdout.splitlines()
    assert len(lines) > 40 and max(map(len, lines)) <= columns


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


CARDS = {
    "cnn": ["Differences from the references", "dense: int = 128", "gpuzoo train mnist: test accuracy",
        "conv_1 (Conv2D)", "(None, 24, 24, 16)", "logits",
        "parameters: 108,874"],
    "gan": ['"generator"', '"discriminator"', "score", "parameters: 463,141"],
    "diffusion": ["denoiser", "time_dense"],
    "vae": ['"vae"', "mean", "Connected to", "decoder (Functional)",
        "log_variance", "decoder_dense_1"],
    "keras/mobilenet_v3_small": ["expanded_conv", "logits", "parameters: 9"],
    "keras/hub": ["no summary: preset of keras/hub must be a folder"],
    "own.py:net": ["Mine.", "mine (Dense)", "parameters: 74"],
}  # fmt: skip


def test_info_shows_the_card_and_the_layers(cli_several, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    cards = cli_several(*(["info", model] for model in CARDS))
    for (model, told), card in zip(CARDS.items(), cards, strict=True):
        assert card.returncode == 0, (model, card.stderr)
        assert all(text in card.stdout for text in told), card.stdout
        counted = f"parameters: {card.json['parameters'] or 0:,}"
        assert (counted in card.stdout) == (model != "keras/hub")


def test_info_of_a_model_that_cannot_be_built(cli_here, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    card = cli_here("info", "own.py:broken")
    assert card.returncode == 2 and "cannot be built: division by zero" in card.stderr
