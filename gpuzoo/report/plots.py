"""Plots of a run: learning curves, and the model's outputs on test examples.

The same run gives the same files: they contain no date and no version.
"""

import contextlib
import io
import os
import pathlib
import sys
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np
import PIL.Image

from gpuzoo.data.dataset import Dataset
from gpuzoo.files import Folder, as_folder

# Matplotlib cannot be imported with an invalid MPLBACKEND; no backend is needed here.
_backend = "matplotlib" not in sys.modules and os.environ.pop("MPLBACKEND", "")
import matplotlib.style  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

if _backend:
    os.environ["MPLBACKEND"] = _backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend  # as matplotlib itself does

from gpuzoo.report.mask_plots import confusion_of_pixels, segmentations  # noqa: E402
from gpuzoo.report.pair_plots import similarities, worst_pairs  # noqa: E402

MISTAKES = 24  # shown at most
NAME = 24  # characters of the name of a class
ACROSS = 12  # images in a row of a sheet
FRAMES = 8  # of a film
SAMPLES = 60  # generated images on a sheet
TALLEST = 36  # inches; matplotlib draws at most 2**16 pixels
_GREY = "#5b6075"
_INK, _MUTED, _TRAIN, _TEST = "#1a1a2e", "#8a8fa3", "#7aa6d8", "#c8553d"
_VAL = "#d9a441"


def draw_all(
    folder: Folder | pathlib.Path,
    pictures: tuple[str, ...],
    title: str,
    rows: list[dict],
    dataset: Dataset,
    outputs: dict,
    trained_with: str = "",
) -> None:
    """Draw the curves and the plots of a task into a run folder; `outputs` as in
    engine/loop.py, `trained_with`: terms that only the training loss contains."""
    with plain():
        files = {"curves.png": png_bytes(curves(title, rows, trained_with))}
        files |= draw(pictures, title, dataset, outputs)
        for name, content in files.items():
            as_folder(folder).write_file(name, content)


def draw(
    pictures: Sequence[str], title: str, dataset: Dataset, outputs: dict
) -> dict[str, bytes]:
    """Draw the plots of a task; return file name -> content, without empty plots."""
    with plain():
        figures = {name: PICTURES[name](title, dataset, outputs) for name in pictures}
        return {
            f"{name}.png": png_bytes(figure)
            for name, figure in figures.items()
            if figure is not None
        }


def png_bytes(figure: Figure, software: str | None = None) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png", metadata={"Software": software})
    return content.getvalue()


@contextlib.contextmanager
def plain():
    """Draw with matplotlib's default settings, not the user's.

    Class names are the user's: a dollar sign does not start a formula, and a letter
    missing from the font is drawn as a box.
    """
    with (
        warnings.catch_warnings(),
        matplotlib.style.context(["default", {"text.parse_math": False}]),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def curves(title: str, rows: list[dict], trained_with: str = "") -> Figure:
    """Plot every metric over the steps; rows as in metrics.jsonl."""
    keys = {key for row in rows for key in row} - {"split", "epoch", "step"}
    keys = sorted(keys, key=lambda key: (key != "loss", key))
    figure = Figure(figsize=(4.5 * max(2, len(keys)), 3.8), layout="constrained")
    for axes, key in zip(
        figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True
    ):
        for split, colour in (("train", _TRAIN), ("val", _VAL), ("test", _TEST)):
            points = [
                (r["step"], r[key]) for r in rows if r["split"] == split and key in r
            ]
            if not points:
                continue
            style = "o-" if len(points) < 30 else "-"
            label = split
            if trained_with and key == "loss":
                label += f", with {trained_with}" if split == "train" else ", without"
            axes.plot(
                *zip(*points, strict=True), style, color=colour, ms=4, label=label
            )
            if split == "test":
                axes.annotate(
                    f"{points[-1][1]:.4f}", points[-1], (0, 8), color=_TEST,
                    textcoords="offset points", ha="right",
                )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_title(key, loc="left", color=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title, color=_MUTED, fontsize=9)
    return figure


def confusion(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot the confusion matrix: true classes down, predicted across. The diagonal has
    no colour, so that the mistakes can be seen."""
    classes, predicted = _short(dataset.classes), outputs["predicted"]
    labels, count = dataset.test["label"][: len(predicted)], len(dataset.classes)
    matrix = np.bincount(labels * count + predicted, minlength=count**2)
    matrix = matrix.reshape(count, count)
    wrong = matrix * (1 - np.eye(count, dtype=int))
    side = float(np.clip(0.5 * count + 1.5, 5.5, 16))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, wrong.max()))
    if count <= 30:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                red, green, blue, _ = image.cmap(image.norm(wrong[row, column]))
                dark = 0.21 * red + 0.72 * green + 0.07 * blue < 0.4
                right = _GREY if row == column else _INK
                axes.text(
                    column, row, str(number), ha="center", va="center", fontsize=8,
                    color="white" if dark else right,
                )  # fmt: skip
        axes.set_xticks(
            range(count), classes, rotation=90 * (max(map(len, classes)) > 3)
        )
        axes.set_yticks(range(count), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right, total = np.trace(matrix), matrix.sum()
    lines = [
        f"{total - right} mistakes in {total} ({right / total:.2%} correct); "
        "coloured: mistakes",
        *textwrap.wrap(title, int(13 * side)),
    ]
    # Over the whole figure: with few classes the axes are narrower than a title.
    figure.suptitle("\n".join(lines), color=_INK, fontsize=9)
    return figure


def mistakes(title: str, dataset: Dataset, outputs: dict) -> Figure | None:
    """Plot the mistakes of highest confidence; None if there are none."""
    images, classes = dataset.test["image"], _short(dataset.classes)
    labels = dataset.test["label"][: len(outputs["predicted"])]
    worst = _most_confident(labels, outputs)[:MISTAKES]
    if not len(worst):
        return None
    across = MISTAKES // 4
    rows = -(-len(worst) // across)
    figure = Figure(figsize=(9, 0.4 + 9 / across * rows))
    # One Axes for all: one for each image takes five times as long.
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    for place, index in enumerate(worst):
        row, column = divmod(place, across)
        image = images[index]
        if image.shape[-1] not in (3, 4):
            image = image.mean(axis=-1)
        height, width = 0.8 * np.array(image.shape[:2]) / max(image.shape[:2])
        left, top = column + (1 - width) / 2, row + 0.16 + (0.8 - height) / 2
        axes.imshow(
            image, cmap="gray_r", extent=(left, left + width, top + height, top)
        )
        true, predicted = classes[labels[index]], classes[outputs["predicted"][index]]
        between = " " if len(true) + len(predicted) < 14 else "\n"
        axes.text(
            column + 0.5, row + 0.14,
            f"{true},{between}not {predicted} ({outputs['confidence'][index]:.0%})",
            fontsize=8, color=_INK, ha="center", va="bottom", linespacing=1,
        )  # fmt: skip
    axes.set(xlim=(0, across), ylim=(rows, 0))
    axes.axis("off")
    text = "true class, not predicted class (confidence)"
    figure.suptitle(f"{title} · {text}", color=_MUTED, fontsize=9)
    return figure


def film_mistakes(title: str, dataset: Dataset, outputs: dict) -> Figure | None:
    """Plot the mistakes of highest confidence, a row of FRAMES frames for each; None if
    there are none."""
    films, classes = dataset.test["film"], _short(dataset.classes)
    labels = dataset.test["label"][: len(outputs["predicted"])]
    worst = _most_confident(labels, outputs)[: MISTAKES // 3]
    if not len(worst):
        return None
    shown = np.linspace(0, films.shape[1] - 1, min(FRAMES, films.shape[1])).round()
    figure = Figure(figsize=(9, 0.4 + 9 / (FRAMES + 2) * len(worst)))
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    for row, index in enumerate(worst):
        frames = films[index, shown.astype(int)]
        if frames.shape[-1] not in (3, 4):
            frames = frames.mean(axis=-1)
        top = 255 if films.dtype == np.uint8 else 1
        height, width = 0.95 * np.array(frames.shape[1:3]) / max(frames.shape[1:3])
        for place, frame in enumerate(frames):
            extent = (place + 2, place + 2 + width, row + height, row)
            axes.imshow(frame, cmap="gray_r", vmin=0, vmax=top, extent=extent)
        true, predicted = classes[labels[index]], classes[outputs["predicted"][index]]
        text = f"{true},\nnot {predicted}\n({outputs['confidence'][index]:.0%})"
        axes.text(0.05, row + 0.45, text, fontsize=8, color=_INK, va="center")
    axes.set(xlim=(0, FRAMES + 2), ylim=(len(worst), 0))
    axes.axis("off")
    text = "true class, not predicted class (confidence), and frames of the film"
    figure.suptitle(f"{title} · {text}", color=_MUTED, fontsize=9)
    return figure


def _most_confident(labels: np.ndarray, outputs: dict) -> np.ndarray:
    """Return the places of the mistakes, those of highest confidence first."""
    wrong = np.flatnonzero(outputs["predicted"] != labels)
    return wrong[np.argsort(-outputs["confidence"][wrong], kind="stable")]


def _short(classes: Sequence[str]) -> list[str]:
    """Return the names of classes with at most NAME characters: longer ones leave no
    room for the plot."""
    cut = NAME - 1
    return [one if len(one) <= NAME else f"{one[:cut]}\u2026" for one in classes]


def reconstructions(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot the first test images, each above its reconstruction."""
    made = outputs["reconstruction"]
    originals = dataset.test["image"][: len(made)]
    if originals.dtype != np.uint8:
        originals = np.round(255 * originals).astype(np.uint8)
    rows = min(4, -(-len(made) // ACROSS))
    pairs = [
        images[row * ACROSS : (row + 1) * ACROSS]
        for row in range(rows)
        for images in (originals, made)
    ]
    return _sheet(f"{title} · test images, each above its reconstruction", pairs)


def forecasts(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot the past, the actual values and the forecast of evenly spread windows, of
    several targets one after the other."""
    count, names = len(outputs["forecast"]), ("",)
    if dataset.series is not None and dataset.series.targets > 1:
        names = dataset.series.names
    told = outputs["forecast"].reshape(count, -1, len(names))
    true = dataset.test["target"][:count].reshape(told.shape)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(3, 2, sharey=True)
    for n, (axes, index) in enumerate(
        zip(grid.flat, np.linspace(0, count - 1, 6), strict=True)
    ):
        target = n % len(names)
        past = dataset.test["series"][int(index), :, target]
        actual = true[int(index), :, target]
        ahead = np.arange(len(actual)) + 1
        axes.plot(np.arange(1 - len(past), 1), past, color=_MUTED)
        axes.plot(ahead, actual, color=_INK, label="actual")
        forecast = told[int(index), :, target]
        axes.plot(ahead, forecast, color=_TEST, label="forecast")
        axes.set_title(names[target], color=_MUTED, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False)
    figure.suptitle(f"{title} · test windows", color=_MUTED, fontsize=9)
    return figure


def predicted_true(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot predicted numbers over true ones, in the unit of the target."""
    true, predicted = _in_units(dataset, outputs)
    figure = Figure(figsize=(5.8, 5.8), layout="constrained")
    axes = figure.subplots()
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=_MUTED, lw=1)
    axes.plot(true, predicted, ".", color=_TEST, ms=3, alpha=0.5)
    name = f" {dataset.table.target.name}" if dataset.table else ""
    axes.set(xlabel=f"true{name}", ylabel=f"predicted{name}", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title} · test rows", color=_MUTED, fontsize=9)
    return figure


def residuals(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot true minus predicted numbers over predicted ones, and their histogram."""
    true, predicted = _in_units(dataset, outputs)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left.plot(predicted, true - predicted, ".", color=_TEST, ms=3, alpha=0.5)
    right.hist(true - predicted, 40, orientation="horizontal", color=_TRAIN)
    for axes in (left, right):
        axes.axhline(0, color=_MUTED, lw=1)
        axes.spines[["top", "right"]].set_visible(False)
    left.set(xlabel="predicted", ylabel="true minus predicted")
    right.set_xlabel("test rows")
    figure.suptitle(f"{title} · residuals of the test rows", color=_MUTED, fontsize=9)
    return figure


def _in_units(dataset: Dataset, outputs: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted numbers in the unit of the target."""
    mean, deviation = dataset.scale
    told = outputs["scaled"].astype(np.float64)
    true = dataset.test["target"][: len(told)].astype(np.float64)
    return true * deviation + mean, told * deviation + mean


def next_values(title: str, past: np.ndarray, ahead: dict[str, list]) -> Figure:
    """Plot the values that a model saw, (time, targets), and those that it forecasts,
    target -> values, in their units."""
    figure = Figure(figsize=(9, 3.6 * len(ahead)), layout="constrained")
    each = figure.subplots(len(ahead), squeeze=False)[:, 0]
    for n, (axes, (name, values)) in enumerate(zip(each, ahead.items(), strict=True)):
        before = past[:, n]
        axes.plot(
            np.arange(1 - len(before), 1), before, color=_MUTED, label="last values"
        )
        steps = np.arange(len(values) + 1)
        axes.plot(steps, [before[-1], *values], color=_TEST, label=name)
        axes.set_xlabel("step (0: the last value)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, color=_MUTED, fontsize=9)
    return figure


def frames(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot the last frame that the model saw, the next one and its forecast."""
    rows = [outputs[name][:ACROSS] for name in ("last", "next", "forecast")]
    return _sheet(f"{title} · last frame, next frame, forecast", rows)


def detections(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot scenes with the true boxes, in grey, and detections of a score from 0.3."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    grid, classes = figure.subplots(3, 4), dataset.classes
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, range(len(outputs["canvas"])), strict=False):
        row = {name: array[index] for name, array in outputs.items()}
        canvas = row["canvas"]
        canvas = canvas if canvas.shape[-1] == 3 else canvas.mean(axis=-1)
        axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=255)
        for box in row["boxes"][row["present"] > 0]:
            _frame(axes, box, _MUTED, 3)
        for number in np.flatnonzero(row["score"] >= 0.3):
            box = row["found_boxes"][number]
            _frame(axes, box, _TEST, 1.2)
            text = f"{classes[row['found_label'][number]]} {row['score'][number]:.0%}"
            axes.text(box[1] - 0.5, box[0] - 1, text, fontsize=7, color=_TEST)
    text = "ground truth, grey, and detections (confidence)"
    figure.suptitle(f"{title} · {text}", color=_MUTED, fontsize=9)
    return figure


def speeds(found: dict) -> Figure:
    """Plot examples/s in every mode of a bench, with and without determinism."""
    rows = [row for row in found["modes"] if not row["error"]]
    figure = Figure(figsize=(9, 1.4 + 0.34 * len(rows)), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(rows))
    measured = [row["examples_per_second"] for row in rows]
    middle = np.array([speed["median"] for speed in measured])
    ends = np.array([[speed["low"], speed["high"]] for speed in measured]).T
    axes.barh(places, middle, 0.62, color=_TRAIN, label="repeatable to the bit")
    axes.errorbar(
        middle, places, xerr=np.abs(ends - middle), fmt="none", ecolor=_INK, capsize=3
    )
    prices = [row["price_of_determinism"] for row in rows]
    free = [
        m * (p["median"] if p else np.nan) for m, p in zip(middle, prices, strict=True)
    ]
    axes.plot(free, places, "D", color=_TEST, ms=5, label="without determinism")
    axes.set_yticks(places, [row["mode"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("examples/s (median, 95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    name = found["recipe"]["name"]
    figure.suptitle(
        f"{name} · {found['runtime']['device_name']}", color=_MUTED, fontsize=9
    )
    return figure


def _frame(axes, box: np.ndarray, colour: str, width: float) -> None:
    """Draw a box, with edges measured from the outer edge of the first pixel."""
    top, left, bottom, right = box - 0.5
    x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
    axes.plot(x, y, color=colour, lw=width)


def samples(title: str, dataset: Dataset, outputs: dict) -> Figure | None:
    """Plot images that the model generated; None if it generates none."""
    if "samples" not in outputs:
        return None
    return _sheet(f"{title} · generated by the model", _rows(outputs["samples"]))


def save_sheet(folder: Folder, row: dict) -> None:
    """Save the event `samples` of a watcher as samples/epoch-<n>.png."""
    content = io.BytesIO()
    _picture(_rows(row["images"])).save(content, "png")
    folder.write_file(f"samples/epoch-{row['epoch']:03d}.png", content.getvalue())


def animate(folder: Folder, sheets: list[str], name: str) -> list[str]:
    """Write the sheets of a folder as an animated GIF; the last one stays longest.

    Returns:
        Sheets that could not be read and are left out.
    """
    frames, left_out = [], []
    for sheet in sheets:
        try:
            frame = PIL.Image.open(io.BytesIO(folder.read_file(sheet)))
            frame.load()
            frames.append(frame)
        except Exception:  # Pillow raises many types for damaged files
            left_out.append(sheet)
    if len(frames) > 1:
        times, content = [250] * (len(frames) - 1) + [2000], io.BytesIO()
        rest = {"append_images": frames[1:], "duration": times, "loop": 0}
        frames[0].save(content, "gif", save_all=True, **rest)
        folder.write_file(name, content.getvalue())
    return left_out


def _rows(images: np.ndarray) -> list[np.ndarray]:
    images = images[:SAMPLES]
    return [images[i : i + ACROSS] for i in range(0, len(images), ACROSS)]


def _sheet(title: str, rows: list[np.ndarray]) -> Figure:
    """Plot rows of images, each (at most ACROSS, height, width, channels), uint8."""
    picture = _picture(rows)
    height = min(TALLEST, 0.4 + 9 * picture.height / picture.width)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")
    figure.suptitle(title, color=_MUTED, fontsize=9)
    return figure


def _picture(rows: list[np.ndarray]) -> PIL.Image.Image:
    """Return the same rows as one image, pixel for pixel."""
    height, width, channels = rows[0].shape[1:]
    colours = channels in (3, 4)
    paper = 255 if colours else 0  # grey images are drawn dark on light
    shape = (len(rows), height + 2, ACROSS, width + 2, channels)
    sheet = np.full(shape, paper, np.uint8)
    for row, images in enumerate(rows):
        sheet[row, :height, : len(images), :width] = images.swapaxes(0, 1)
    sheet = sheet.reshape(shape[0] * shape[1], shape[2] * shape[3], channels)
    if colours:
        return PIL.Image.fromarray(sheet)
    return PIL.Image.fromarray(255 - sheet.mean(axis=-1).astype(np.uint8))


PICTURES = {
    function.__name__: function
    for function in (
        confusion, confusion_of_pixels, detections, film_mistakes, forecasts, frames,
        mistakes, predicted_true, reconstructions, residuals, samples, segmentations,
        similarities, worst_pairs,
    )
}  # fmt: skip
"""Name in `Task.pictures` -> function; one that does not apply returns None."""
