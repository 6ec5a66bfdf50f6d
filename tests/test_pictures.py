"""What a person sees of a run: rows in the terminal, pictures, the folder's name."""

import dataclasses

import numpy as np
import pytest
from small import splits

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.data.validate import make_dataset
from gpuzoo.report import plots
from gpuzoo.report.progress import Screen
from gpuzoo.tasks import load


def digits(labels: np.ndarray, classes: int):
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    assert set(labels) == set(range(classes))
    return make_dataset("mine", "made up", splits(arrays))


def outputs(predicted: np.ndarray) -> dict:
    return {"predicted": predicted, "confidence": np.linspace(0, 1, len(predicted))}


def luminance(colour) -> float:
    import matplotlib.colors

    rgb = np.array(matplotlib.colors.to_rgb(colour))
    rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(rgb @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("most", [1, 59])
def test_every_number_of_the_confusions_can_be_read(most):
    labels = np.repeat(np.arange(20), 60)
    predicted = labels.copy()
    for true, count in enumerate(np.linspace(1, most, 20).astype(int)):
        predicted[np.flatnonzero(labels == true)[:count]] = (true + 1) % 20
    figure = plots.confusion("t", digits(labels, 20), outputs(predicted))
    (axes,) = figure.axes
    (image,) = axes.images
    assert len(axes.texts) == 40
    for text in axes.texts:
        column, row = map(int, text.get_position())
        paper = luminance(image.cmap(image.norm(image.get_array()[row, column]))[:3])
        ink = luminance(text.get_color())
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast > 3, (text.get_text(), contrast)


@pytest.mark.parametrize("names", ["ab", ["W" * 30, "M" * 30]])
def test_the_titles_of_the_confusions_are_whole(names):
    """Two classes, with short and with very long names, and many examples."""
    labels = np.arange(2_000) % 2
    predicted = labels.copy()
    predicted[:1_234] = 1 - predicted[:1_234]
    dataset = dataclasses.replace(digits(labels, 2), classes=tuple(names))
    figure = plots.confusion("a long title " * 12, dataset, outputs(predicted))
    figure.canvas.draw()
    title, box = figure.get_suptitle(), figure._suptitle.get_window_extent()
    width, height = figure.get_size_inches() * figure.dpi
    assert "1234 mistakes in 2000 (38.30% correct); coloured: mistakes" in title
    assert title.split().count("title") == 12
    assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height


def test_no_sheet_of_mistakes_where_there_are_none(tmp_path):
    labels = np.arange(40) % 2
    told, rows = (
        outputs(labels),
        [{"split": "test", "epoch": 1, "step": 3, "loss": 0.1}],
    )
    plots.draw_all(
        tmp_path, load("classify").pictures, "t", rows, digits(labels, 2), told
    )
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "confusion.png"}
    told = outputs(1 - labels)
    plots.draw_all(
        tmp_path, load("classify").pictures, "t", rows, digits(labels, 2), told
    )
    assert (tmp_path / "mistakes.png").stat().st_size > 2000


def test_the_curves_say_that_one_loss_contains_more():
    rows = [
        {"split": split, "epoch": 1, "step": 3, "loss": 0.1, "accuracy": 0.9}
        for split in ("train", "test")
    ]

    def legends(*words):
        figure = plots.curves("t", rows, *words)
        return [[t.get_text() for t in a.get_legend().get_texts()] for a in figure.axes]

    assert legends() == [["train", "test"], ["train", "test"]]
    assert legends("label smoothing 0.1") == [
        ["train, with label smoothing 0.1", "test, without"],
        ["train", "test"],
    ]


@pytest.mark.parametrize(("epochs", "least", "most"), [(9, 9, 9), (230, 40, 60)])
def test_rows_of_tiny_data_are_thinned_out(epochs, least, most, capsys):
    """One step an epoch: a row each for few, every so many for more, and the last."""
    screen = Screen()
    figures = {"train": ("loss",), "test": ("loss",)}
    screen.watch("start", {"batch": 8, "figures": figures, "parameters": 3, "epochs": epochs,
                           "first": 0, "steps": epochs})  # fmt: skip
    for step in range(1, epochs + 1):
        row = {"epoch": step, "step": step, "loss": 1.0}
        screen.watch("progress", {"step": step, "seconds": 0.1 * step})
        screen.watch("train", row)
        screen.watch("test", row)
    screen.stop()
    lines = capsys.readouterr().err.splitlines()[2:]
    assert least <= len(lines) <= most
    assert lines[-1].split()[1] == str(epochs) and lines[0].split()[1] == "1"


@pytest.mark.parametrize(
    ("data", "name"),
    [("mnist", "mnist"), ("shapes/", "mnist-shapes"), ("/tmp/my data.npz", "mnist-my-data"),
     ("fashion_mnist", "mnist-fashion_mnist"), ("..", "mnist"), ("digits", "mnist-digits")],
)  # fmt: skip
def test_a_run_is_called_by_its_recipe_and_its_data(data, name):
    from gpuzoo.training.train import _name

    assert _name(load_recipe("mnist").override(data=data)) == name
    assert _name(Recipe(name="train_shapes", data="shapes")) == "train_shapes"
