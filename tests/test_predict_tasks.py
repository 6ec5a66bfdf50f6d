"""`gpuzoo predict`: forecasts, boxes, reconstructions and generated images."""

import numpy as np
import PIL.Image
import predicting
import pytest
from predicting import picture, piped

import gpuzoo
from gpuzoo.cli.predict import Predict

quick, here, runs = predicting.quick, predicting.here, predicting.runs
predict, classifier = predicting.predict, predicting.classifier
pytestmark = pytest.mark.usefixtures("quick")


def test_a_forecast_in_the_units_of_the_file(runs, predict, here, monkeypatch):
    run = runs("forecast", batch_size=16)
    values = 100 + 3 * np.sin(np.arange(200) / 9)
    (here / "s.csv").write_text("t,v\n" + "".join(f"{n},{v!r}\n" for n, v in
                                                enumerate(values.tolist())))  # fmt: skip
    np.save("s.npy", values)
    trained = gpuzoo.load(run)
    wanted = trained.unscale(trained.predict(values[-64:, None])["forecast"][0])
    code, rows, last, notes = predict(run, "s.csv", "s.npy", out="out")
    assert code == 0 and len(rows) == 2
    PIL.Image.new("L", (9, 9)).save("photo.csv", "png")
    with pytest.raises(
        gpuzoo.GpuzooError, match="photo.csv: .*image file; the model ta"
    ):
        predict(run, "photo.csv")
    (here / "bmi.csv").write_text(
        "BMI\n" + "".join(f"{v!r}\n" for v in values.tolist())
    )
    assert predict(run, "bmi.csv")[1][0]["forecast"] == wanted.tolist()
    for row in rows:
        assert row["forecast"] == wanted.tolist() and len(wanted) == 16
    assert "column 'v'" in notes and "the last 64 of 200 values" in notes
    lines = (here / "out" / "00001-s.csv").read_text().splitlines()
    assert lines[0] == "step,forecast" and lines[1] == f"1,{wanted.tolist()[0]!r}"
    with PIL.Image.open(here / "out" / rows[1]["out"][1]) as drawn:
        assert drawn.size[0] > 500
    piped(monkeypatch, (here / "s.csv").read_bytes())
    assert predict(run, "-")[1][0]["forecast"] == wanted.tolist()
    (here / "short.csv").write_text("\n".join(map(str, range(10, 70, 2))))
    with pytest.raises(
        gpuzoo.GpuzooError, match="30 values; the model takes the last 64"
    ):
        predict(run, "short.csv")
    with pytest.raises(gpuzoo.GpuzooError, match="out exists"):
        predict(run, "s.csv", out="out")


def test_boxes_are_in_the_pixels_of_the_file(runs, predict, here):
    run = runs("digit_detection", data="digits", batch_size=8)
    side = gpuzoo.load(run).input_shape[0]
    small = picture((side, side))
    small.save("small.png")
    small.resize((3 * side, 2 * side), PIL.Image.Resampling.NEAREST).save("large.png")
    np.save("small.npy", np.asarray(small))
    _, rows, last, _ = predict(run, "small.png", "small.npy", score=0.0, out="boxes")
    assert len(rows[0]["boxes"]) == 20 and rows[0]["boxes"] == rows[1]["boxes"]
    _, (large,), *_ = predict(run, "large.png", score=0.0)
    assert large["changes"] == [f"resized from {3 * side}x{2 * side} to {side}x{side}"]
    heights = [box["bottom"] for box in large["boxes"]]
    assert side < max(heights) <= 2.2 * side
    assert predict(run, "small.png", score=1.0)[1][0]["boxes"] == []
    with PIL.Image.open(here / "boxes" / rows[0]["out"][0]) as drawn:
        colours = np.asarray(drawn).reshape(-1, 3)
    assert (colours == (0xC8, 0x55, 0x3D)).all(axis=1).any()


def test_generated_images(runs, here):
    run = runs("mnist_conditional_gan", data="digits", batch_size=8)
    made = []
    for name, words in (
        ("a.npy", {"seed": 3}),
        ("b.npy", {"seed": 3}),
        ("c.npy", {"seed": 4}),
        ("d.npy", {"seed": 3, "label": "7"}),
    ):
        assert Predict(run, (), samples=5, out=name, **words)() == 0
        made.append(np.load(name))
    a, b, c, d = made
    assert a.shape == (5, 28, 28, 1) and a.dtype == np.uint8
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert not np.array_equal(a, d)
    assert Predict(run, (), samples=5, seed=3, out="a.png")() == 0
    with PIL.Image.open("a.png") as sheet:
        pixels = np.asarray(sheet)
    factor = pixels.shape[0] // 30
    pixels = pixels[::factor, ::factor]
    assert np.array_equal(pixels[1:29, 31:59], a[1, ..., 0])
    for words, fault in (
        ({"label": "x"}, "no class named 'x'"), ({"seed": -1}, "--seed must be in"),
        ({"out": "a.png"}, "a.png exists"),
    ):  # fmt: skip
        with pytest.raises(gpuzoo.GpuzooError, match=fault):
            Predict(run, (), samples=5, **{"out": "new.png", **words})()
    with pytest.raises(gpuzoo.GpuzooError, match="takes no files"):
        Predict(run, ("a.png",))()


def test_reconstructions(runs, predict, here):
    run = runs("mnist_autoencoder", data="digits", batch_size=8)
    picture().save("x.png")
    _, (row,), *_ = predict(run, "x.png", out="made")
    image = np.asarray(picture())
    again = gpuzoo.load(run).predict(image)["reconstruction"][0]
    error = np.mean(np.square((image[..., None] - again.astype(float)) / 255))
    assert row["error"] == pytest.approx(error, rel=1e-12)
    with PIL.Image.open(here / "made" / row["out"][0]) as drawn:
        pixels = np.asarray(drawn)
    factor = pixels.shape[0] // 28
    assert np.array_equal(pixels[::factor, ::factor][:, :28], image)
    assert np.array_equal(pixels[::factor, ::factor][:, 28:], again[..., 0])
