"""Films of moving images, and the model that foretells them."""

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.engine import checkpoint, evaluation
from gpuzoo.report import plots
from gpuzoo.tasks import load, video_prediction

FILM = RECIPE.override(
    task="video_prediction", model="conv_lstm", model_options=("filters=(4,)",), augment=(),
    epochs=4,
)  # fmt: skip


def films(images, ways, size=(12, 16)) -> np.ndarray:
    tensors = (keras.ops.convert_to_tensor(np.asarray(a, "f4")) for a in (images, ways))
    return np.array(video_prediction.moving(*tensors, size))


def test_images_stand_still_without_speed(runtime):
    images = np.random.default_rng(0).random((2, 8, 8, 1)) + 0.1
    found = films(images / 1.1, [[0, 0, 0.5, 0.5, 1, 1, 0.5, 0.5]] * 2)
    assert found.shape == (2, video_prediction.FRAMES + 1, 12, 16, 1)
    wanted = np.zeros((2, 12, 16, 1))
    wanted[:, :8, :8] = images / 1.1
    wanted[:, 4:, 8:] = np.maximum(wanted[:, 4:, 8:], images[::-1] / 1.1)
    assert np.allclose(found, wanted[:, None], atol=1e-6)


def test_images_move_in_a_line_and_turn_at_the_border(runtime):
    """A single bright pixel tells where its image is."""
    image = np.zeros((1, 8, 8, 1))
    image[0, 0, 0] = 1
    speed = (
        3 / video_prediction.SPEED / 2 + 0.5
    )  # three pixels to the right for each frame
    found = films(image, [[0.5, 0.25, 0.5, speed] * 2])[0, ..., 0]
    rows, columns = zip(*(np.argwhere(frame > 0.99)[0] for frame in found), strict=True)
    assert set(rows) == {2}
    # From 2 on, thrown back at 8, the free way, and at 0.
    assert list(columns) == [2, 5, 8, 5, 2, 1, 4, 7, 6]


def test_a_run_learns_repeats_and_resumes(dataset, runtime, tmp_path, monkeypatch):
    one, rows = train(FILM, dataset, runtime)
    asked = iter([False, False, True])
    train(FILM, dataset, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(FILM, dataset, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert not same(one, train(FILM.override(seed=1), dataset, runtime)[0])
    tests = [row for event, row in rows if event == "test"]
    assert tests[0].keys() == {"epoch", "step", "loss", "error", "copied"}
    assert tests[-1]["loss"] < tests[0]["loss"]
    assert len({row["copied"] for row in tests}) == 1  # always the same films
    shown = {k: one.outputs[k] / 255 for k in ("last", "next", "forecast")}
    for name, other in (("error", "forecast"), ("copied", "last")):
        wanted = np.square(shown["next"] - shown[other]).mean(axis=(1, 2, 3))
        assert np.allclose(one.outputs[name], wanted, atol=2e-3)
    monkeypatch.setattr(evaluation, "_PIXELS", 14 * 14 * video_prediction.FRAMES * 7)
    parts, _ = train(FILM, dataset, runtime)  # in batches of seven: other companions
    assert same(one, parts)
    lines = [{"split": e, **row} for e, row in rows if e in ("train", "test")]
    plots.draw_all(
        tmp_path, load("video_prediction").pictures, "T", lines, dataset, one.outputs
    )
    assert (tmp_path / "frames.png").exists()


def test_an_order_that_matters(runtime):
    """The model sees the frames in their order, each pixel in its place."""
    model = gpuzoo.build("conv_lstm", input_shape=(3, 8, 20, 1))
    film = np.random.default_rng(0).random((1, 3, 8, 20, 1)).astype("f4")
    there = np.array(model(film))
    assert not np.allclose(there, np.array(model(film[:, [1, 0, 2]])))
    changed = film.copy()
    changed[0, -1, 0, 0] += 1
    differ = np.abs(np.array(model(changed)) - there)[0, ..., 0] > 1e-6
    # Of its own patch, and of those that two convolutions reach from there.
    assert differ[:, :12].any() and not differ[:, 12:].any()


def test_sizes_that_do_not_fit_are_refused(runtime):
    with pytest.raises(ValueError, match=r"multiples of patch, 4: \(8, 42, 44, 1\)"):
        gpuzoo.build("conv_lstm", input_shape=(8, 42, 44, 1))
