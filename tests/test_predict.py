"""`gpuzoo predict`: what is read of files, what is said, what is refused."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import PIL.Image
import pytest
import soundfile
from conftest import ROOT, environment
from scipy.special import softmax

import gpuzoo
from gpuzoo.cli.parsing import Output
from gpuzoo.cli.predict import Predict, _print_table
from gpuzoo.cli.tables import show, table
from gpuzoo.data import npy
from gpuzoo.deploy import inputs
from gpuzoo.report import progress

SMALL = {"fast_dev_run": True, "quiet": True}


@pytest.fixture(autouse=True)
def quick():
    """Hanging, as before a pipe, is failing."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(250)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def runs(runtime, tmp_path_factory):
    """Recipe -> folder of a short run of it."""
    top = tmp_path_factory.mktemp("runs")
    made = {}

    def run(recipe: str, **changes) -> str:
        if recipe not in made:
            made[recipe] = str(top / recipe)
            gpuzoo.train(recipe, out=made[recipe], **SMALL, **changes)
        return made[recipe]

    return run


@pytest.fixture
def classifier(runs):
    return runs("mnist", data="digits", model="mlp")


@pytest.fixture
def here(tmp_path, monkeypatch, own_cache):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def predict(capsys):
    """Call the command in this process: its code, rows, last line and notes."""

    def call(run, *files, **options):
        code = Predict(run, files, json_lines=True, **options)()
        said = capsys.readouterr()
        *rows, last = map(json.loads, said.out.splitlines())
        return code, rows, last, said.err

    return call


def picture(size=(28, 28), mode="L", seed=0, **exif):
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return PIL.Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8))


# --- one code path with training ----------------------------------------------------


def test_images_are_those_of_training(here):
    """Of every form, resized, turned, transparent, animated."""
    folder = here / "data" / "a"
    (here / "data" / "b").mkdir(parents=True), folder.mkdir()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    colour, clear = picture((40, 20), "RGB"), picture((14, 14), "RGB").convert("RGBA")
    clear.putalpha(picture((14, 14), seed=2))
    colour.save(folder / "0.jpg", exif=exif), colour.save(folder / "1.webp")
    clear.save(folder / "2.png"), colour.quantize(9).save(folder / "3.png")
    (
        colour.convert("CMYK").save(folder / "4.tif"),
        picture((9, 5)).save(folder / "5.bmp"),
    )
    colour.save(folder / "6.gif", save_all=True, append_images=[picture((40, 20))])
    picture((5, 9), "L").convert("1").save(folder / "7.png")
    picture((30, 30), "RGB").save(folder / "8.ppm"), colour.save(folder / "9.avif")
    for number in range(10):
        picture(seed=number + 9).save(here / "data" / "b" / f"b{number}.png")
    notes = []
    data = gpuzoo.load_data("data/", image_size=14, note=notes.append)
    trained = fuzz().trained("image")
    trained.dataset.splits["train"]["image"] = np.zeros((0, 14, 14, 3), np.uint8)
    seen = {row.tobytes() for split in data.splits.values() for row in split["image"]}
    changes = {}
    for source in inputs.find(("data",), "image", pytest.fail):
        (example,) = inputs.read(source, trained)
        assert example.values.tobytes() in seen
        changes[source.path.name] = example.changes
    assert len(seen) == 20
    assert "turned upright (EXIF)" in changes["0.jpg"]
    assert "resized from 20x40 to 14x14" in changes["0.jpg"]
    assert changes["2.png"] == ("drawn on white (transparency)",)
    assert "only the first frame is read" in changes["6.gif"]
    assert changes["8.ppm"] == ("resized from 30x30 to 14x14",)
    assert changes["5.bmp"][-1] == "converted to colour"
    # The training says the same of its own.
    (line,) = notes
    assert (
        "of 20 images" in line and "1 turned upright" in line and "1 only the" in line
    )


def test_turned_images_are_the_same_in_every_format(here):
    """Pillow garbles uncompressed TIFF files that it opens by path."""
    exif, image = PIL.Image.Exif(), picture((5, 3))
    trained = fuzz().trained("image")
    trained.dataset.splits["train"]["image"] = np.zeros((0, 5, 3, 1), np.uint8)
    exif[0x0112] = 6
    for name in ("x.png", "x.tif"):
        image.save(name, exif=exif)
        (example,) = inputs.read(inputs.Source(name, here / name), trained)
        assert example.changes == ("turned upright (EXIF)",)
        assert np.array_equal(example.values[..., 0], np.rot90(image, -1))


def test_sounds_are_those_of_training(here):
    rng = np.random.default_rng(0)
    for number, rate in enumerate((16_000, 8_000, 44_100) * 4):
        path = here / "data" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, (rate // 12, 2)), rate)
    data = gpuzoo.load_data("data/", audio_seconds=0.05)
    seen = {row.tobytes() for split in data.splits.values() for row in split["audio"]}
    trained, said = fuzz().trained("audio"), set()
    for source in inputs.find(("data",), "audio", pytest.fail):
        (example,) = inputs.read(source, trained)
        assert example.values.tobytes() in seen
        said |= set(example.changes)
    assert "resampled from 44,100 to 16,000 samples/s" in said
    assert "2 channels averaged" in said and "cut from 0.08333 s to 0.05 s" in said


def test_files_and_arrays_have_the_same_predictions(classifier, predict, here):
    images = gpuzoo.load_data("digits").test["image"][:40]
    (here / "pngs").mkdir()
    for number, image in enumerate(images[..., 0]):
        PIL.Image.fromarray(image).save(here / "pngs" / f"{number:02}.png")
    np.save("all.npy", images), np.savez("all.npz", x=images[:, ..., 0], y=[1, 2])
    np.savez("floats.npz", x_test=images / np.float32(255), x_train=images[:1] * 0)
    expected = gpuzoo.load(classifier).predict(images)
    code, rows, last, notes = predict(classifier, "pngs", "all.npy", "all.npz", top=10)
    assert code == 0 and last["examples"] == 120 and notes == ""
    for start in (0, 40, 80):
        for row, logits in zip(rows[start:], expected["logits"], strict=False):
            shares = softmax(logits.astype(np.float64))
            told = {p["class"]: p["probability"] for p in row["predictions"]}
            assert told == {str(n): share for n, share in enumerate(shares)}
            assert list(told.values()) == sorted(told.values(), reverse=True)
    top = [int(row["predictions"][0]["class"]) for row in rows[:40]]
    assert top == expected["predicted"].tolist()
    assert [row["file"] for row in rows[:2]] == ["pngs/00.png", "pngs/01.png"]
    assert [row["index"] for row in rows[40:42]] == [0, 1]
    code, near, *_ = predict(classifier, "floats.npz", "pngs/00.png")
    assert len(near) == 41 and [len(row["predictions"]) for row in near] == [3] * 41


def test_only_one_batch_is_read_at_a_time(classifier, here, monkeypatch):
    trained = gpuzoo.load(classifier)
    monkeypatch.setattr(type(trained), "batch", 4)
    for number in range(10):
        picture(seed=number).save(f"{number}.png")
    done = []
    sources = inputs.find(tuple(f"{n}.png" for n in range(10)), "image", pytest.fail)
    parts = inputs.batches(sources, trained, pytest.fail, done.append)
    assert len(next(parts)) == 4 and len(done) == 3
    assert [len(part) for part in parts] == [4, 2]


# --- what is said, and what fails ---------------------------------------------------


def test_unreadable_files_are_named_and_the_others_predicted(classifier, predict, here):
    picture((90, 60), "RGB").save("good.png")
    (here / "in").mkdir(), (here / "away").mkdir()
    picture().save("away/linked.png")
    (here / "in/link.png").symlink_to("../away/linked.png")
    (here / "in/.hidden.png").write_bytes(b"")
    (here / "in/notes.txt").write_text("words")
    os.mkfifo("in/pipe.png")
    (here / "in/zero.png").symlink_to("/dev/zero")
    (here / "in/gone.png").symlink_to("nowhere")
    (here / "in/round.png").symlink_to("round.png")
    bad = {
        "in/pipe.png": "pipe", "in/zero.png": "not a regular file",
        "in/gone.png": "No such file", "in/round.png": "not a regular file",
        "no\x1b[31m\n.png": "No such file", "empty.png": "it is empty",
        "text.png": "not an image", "wide.png": "more than 8 bits",
        "odd.npy": r"\(examples, 28, 28, 1\): \(3, 5\)", "two.npz": "x or x_test",
        "nan.npy": "every value must be finite", "cut.npy": "announces",
        "words.npy": "must be numbers",
    }  # fmt: skip
    (here / "empty.png").touch(), (here / "text.png").write_text("hello" * 9)
    PIL.Image.fromarray(np.full((9, 9), 4_000, np.uint16)).save("wide.png")
    np.save("odd.npy", np.zeros((3, 5))), np.savez("two.npz", a=[1], b=[2])
    np.save("nan.npy", np.full((28, 28), np.nan)), np.save("words.npy", ["a", "b"])
    np.save("cut.npy", np.zeros((28, 28)))
    (here / "cut.npy").write_bytes((here / "cut.npy").read_bytes()[:-9])
    named = [name for name in bad if not name.startswith("in/")]
    code, rows, last, notes = predict(classifier, "in", "../" + here.name + "/good.png",
                                      *named)  # fmt: skip
    assert code == 1 and last["unreadable"] == len(bad) and last["examples"] == 2
    assert [row["file"] for row in rows] == ["in/link.png", f"../{here.name}/good.png"]
    failed = {each["file"]: each["reason"] for each in last["failed"]}
    for name, reason in bad.items():
        assert re.search(reason, failed[name]), (name, failed[name])
    assert rows[1]["changes"] == ["resized from 90x60 to 28x28", "converted to grey"]
    assert "good.png: resized from 90x60 to 28x28" in notes
    assert "1 file is ignored by suffix: .txt" in notes
    assert r"no\x1b[31m\n.png: cannot be read" in notes and "\x1b" not in notes
    (here / "in/deep").symlink_to("../away")
    with pytest.raises(gpuzoo.GpuzooError, match="deep is a link to a folder"):
        predict(classifier, "in")


@pytest.mark.parametrize(
    ("files", "options", "fault"),
    [
        (["no.png"], {}, "no.png: cannot be read: No such file"),
        (["no.png", "-", "nor.png"], {}, "none of 3 files can be read"),
        (["-", "-"], {}, "read only once"),
        (["empty"], {}, "empty: none of its 0 files"),
        ([], {}, "no files: gpuzoo predict"),
        (
            ["a.png"],
            {"samples": 4, "out": "x.png"},
            "files are for predictions, --samples for",
        ),
        ([], {"samples": 4}, "--samples needs --out"),
        ([], {"samples": 4, "out": "x.png"}, "does not generate images"),
        (["a.png"], {"label": "7"}, "--seed and --class are for --samples"),
        (["a.png"], {"top": 0}, "--top must be at least 1"),
        (["a.png"], {"score": 1.5}, "--score must be in 0..1"),
        (["a.png"], {"out": "new"}, "a classifier writes rows"),
        (["a.png"], {"out": "there.jsonl"}, "there.jsonl exists"),
        (["a.png"], {"out": "no/x.jsonl"}, "there is no folder no"),
        (["a.png"], {"out": "x.jsonl", "json_lines": True}, "leave one of the two"),
        (["a.png"], {"out": "x.png"}, "or a new folder without the suffix .png"),
        (["a.png"], {"out": "x.JPG"}, "or a new folder without the suffix .jpg"),
        (["a.png"], {"out": "x.csv"}, "or a new folder without the suffix .csv"),
        (["a.png"], {"score": 0.5}, "--score is for detectors; leave it out"),
        ([], {"samples": 4097, "out": "x.png"}, "a sheet holds up to 4096"),
        ([], {"samples": 4, "out": "x.npy", "top": 2}, "--top is for files"),
        ([], {"samples": 4, "out": "x.npy", "score": 0.2}, "--score is for files"),
        ([], {"samples": 4, "out": "x.npy", "invert": True}, "--invert is for files"),
        ([], {"samples": 4, "out": "x.npy", "json_lines": True}, "--json-lines is for"),
    ],
)
def test_wrong_use_is_refused(files, options, fault, classifier, here):
    (here / "there.jsonl").write_text("mine"), (here / "empty").mkdir()
    picture().save("a.png")
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        Predict(classifier, tuple(files), **options)()
    assert (here / "there.jsonl").read_text() == "mine"
    assert {path.name for path in here.iterdir()} <= {
        "a.png",
        "there.jsonl",
        "empty",
        "cache",
    }


@pytest.mark.parametrize("invert", [False, True])
def test_images_that_are_nearly_black_are_named(invert, here):
    """Of 0 and 1: black and white as floats, nearly black as whole numbers."""
    image = np.zeros((9, 9, 3))
    image[2:5, 3:7] = 1
    dark = np.uint8(image)
    np.save("whole.npy", np.int64(image)), np.save("float.npy", np.float32(image))
    np.save("some.npy", np.stack([dark * 31, dark * 32]))
    PIL.Image.fromarray(dark * 2).save("dark.png")
    PIL.Image.fromarray(dark * 99).save("light.png")
    trained, said = fuzz().trained("image"), {}
    for name in ("whole.npy", "float.npy", "some.npy", "dark.png", "light.png"):
        found = list(inputs.read(inputs.Source(name, here / name), trained, invert))
        said[name] = [example.changes for example in found]
    end = ("inverted",) * invert
    line = "the brightest pixel is {} of 255"
    assert said == {
        "whole.npy": [(line.format(1), *end)], "float.npy": [end],
        "some.npy": [(line.format(31), *end), end],
        "dark.png": [(line.format(2), *end)], "light.png": [end],
    }  # fmt: skip


def test_names_of_classes_do_not_control_the_terminal(capsys):
    evil = "\x1b[31mcat\r\n\x9b1A"
    row = {"file": "a\x1b.png", "predictions": [{"class": evil, "probability": 0.5}]}
    _print_table("classes", [row])
    show(f"best: {evil}", table("head\nof two lines", "\x1b[2J"))
    Output().note(f"class {evil} has no examples")
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
    # A text may have several lines, a cell has one.
    assert said.out.count(r"\x1b[31mcat\r\n\x9b1A") == 1 and r"\x1b[2J" in said.out
    assert r"best: \x1b[31mcat\r" + "\n" + r"\x9b1A" in said.out
    assert r"a\x1b.png" in said.out and r"\x1b[31mcat" in said.err


def piped(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input(classifier, predict, here, monkeypatch):
    picture((50, 40)).save("x.png")
    (
        np.save("x.npy", np.asarray(picture())),
        np.savez("x.npz", x=[np.asarray(picture())]),
    )
    for name in ("x.png", "x.npy", "x.npz"):
        piped(monkeypatch, (here / name).read_bytes())
        _, (row,), *_ = predict(classifier, "-")
        _, (same,), *_ = predict(classifier, name)
        assert row == {**same, "file": "-"}
    monkeypatch.setattr(inputs, "_MOST_FROM_STDIN", 1000)
    piped(monkeypatch, bytes(1001))
    with pytest.raises(gpuzoo.GpuzooError, match="more than 1,000 bytes"):
        predict(classifier, "-")


def test_dark_on_light_is_not_inverted_silently(classifier, predict, here):
    paper = PIL.Image.new("RGB", (60, 80), "white")
    paper.paste((0, 0, 0), (25, 10, 35, 70))
    paper.save("photo.jpg"), PIL.Image.eval(paper, lambda v: 255 - v).save("light.png")
    _, (plain,), _, notes = predict(classifier, "photo.jpg")
    assert "photo.jpg: light at its border" in notes and "--invert" in notes
    _, (row,), _, notes = predict(classifier, "photo.jpg", invert=True)
    assert "light at its border" not in notes and row["changes"][-1] == "inverted"
    assert row["predictions"] != plain["predictions"]
    _, (other,), _, notes = predict(classifier, "light.png")
    assert "light at" not in notes
    assert other["predictions"][0]["class"] == row["predictions"][0]["class"]


def test_rows_in_a_file(classifier, here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    np.save("x.npy", gpuzoo.load_data("digits").test["image"][:7])
    assert Predict(classifier, ("x.npy",), out="rows.jsonl", top=1)() == 0
    rows = [json.loads(line) for line in (here / "rows.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(7))
    capsys.readouterr()
    assert Predict(classifier, ("x.npy",), top=2)() == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "most", "probable", "2nd"] and len(lines) == 7
    assert re.match(r"x.npy \[0\]  +\d  \d+\.\d%  \d  \d+\.\d%", lines[0])


def test_rows_for_a_file_do_not_go_to_the_bar(capsys, monkeypatch):
    """Rich would print to the terminal what is meant for a pipe."""
    monkeypatch.setattr(progress._Console, "is_terminal", True)
    with progress.files_bar(9, False) as advance:
        print("a row")
        advance()
    said = capsys.readouterr()
    assert said.out == "a row\n" and "files" in said.err


# --- other tasks --------------------------------------------------------------------


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


# --- files made to do harm ----------------------------------------------------------


def fuzz():
    import importlib.util

    path = ROOT / "benchmarks" / "repeatability" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reason(path) -> str:
    """Why predict does not read a file."""
    takes = "audio" if path.suffix in (".flac", ".wav") else "image"
    with pytest.raises(inputs.Unreadable) as caught:
        list(inputs.read(inputs.Source(str(path), path), fuzz().trained(takes)))
    return str(caught.value)


@contextlib.contextmanager
def little_memory(extra=400_000_000):
    """Only so many bytes more than now."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def bomb(path, side) -> None:
    """A valid PNG of so many pixels, all black, in a file of a few kilobytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PIL.Image.new("1", (side, side)).save(path)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_images_of_too_many_pixels(side, here):
    for name in ("ab/a", "ab/b"):
        (here / name).mkdir(parents=True)
        picture().save(here / name / "1.png")
    bomb(here / "ab/a/x.png", side)
    assert (here / "ab/a/x.png").stat().st_size < 200_000
    with little_memory():
        told = reason(here / "ab/a/x.png")
        wanted = f"it has {side * side:,} pixels, and at most 89,478,485 are read"
        assert wanted in told
        with pytest.raises(gpuzoo.GpuzooError, match=f"a/x.png.*{wanted}"):
            gpuzoo.load_data("ab/", image_size=28)


def test_arrays_that_announce_more_than_they_hold(here, monkeypatch):
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 9, 9)}
    np.lib.format.write_array_header_1_0(head, shape)
    (here / "x.npy").write_bytes(head.getvalue() + bytes(100))
    with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", head.getvalue() + bytes(100))
    np.savez_compressed("bomb.npz", x=np.zeros((9_000, 9, 9, 3), np.uint8))
    assert (here / "bomb.npz").stat().st_size < 1 << 14
    monkeypatch.setattr(npy, "_MOST_IN_ZIP", 1 << 20)
    with little_memory():
        assert "announces 81,000,000,000,000 bytes" in reason(here / "x.npy")
        assert "at most" in reason(here / "x.npz")
        assert "and at most 1,048,576 are read" in reason(here / "bomb.npz")
    with pytest.raises(gpuzoo.GpuzooError, match="too large for memory"):
        gpuzoo.load_data("x.npz")
    np.save("evil.npy", np.array([Harm()], object), allow_pickle=True)
    np.savez("evil.npz", x=np.load("evil.npy", allow_pickle=True))
    (here / "done").rmdir()  # made by the line above
    for name in ("evil.npy", "evil.npz"):
        assert "Python objects" in reason(here / name)
    assert not (here / "done").exists()


class Harm:
    def __reduce__(self):
        return os.mkdir, ("done",)


@pytest.mark.parametrize("name", ["run.json", "x.png", "x.wav", "x.csv"])
def test_files_larger_than_any(name, here):
    """Of which nothing is read: they have no content, only a length."""
    with open(name, "wb") as file:
        file.truncate(1 << 36)
    with little_memory(), pytest.raises(ValueError, match="68,719,476,736 bytes, and"):
        if name == "run.json":
            gpuzoo.load(here)
        takes = {"x.wav": "audio", "x.csv": "series"}.get(name, "image")
        list(inputs.read(inputs.Source(name, here / name), fuzz().trained(takes)))


def test_large_arrays_are_mapped(here, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (20, 9, 9, 3)).astype(np.uint8)
    np.save("x.npy", images), np.save("f.npy", np.asfortranarray(images))
    monkeypatch.setattr(npy, "_MAPPED", 100)
    for name in ("x.npy", "f.npy"):
        found = npy.read_array(here / name)
        assert isinstance(found, np.memmap) and np.array_equal(found, images)


def test_sounds_that_are_not_what_their_header_says(here):
    sound = np.random.default_rng(0).normal(0, 0.1, 2_000)
    for subtype in ("PCM_S8", "PCM_16", "PCM_24"):
        for rate in (16_000, 12_345):
            soundfile.write("x.flac", np.stack([sound] * 2, 1), rate, subtype=subtype)
            list(
                inputs.read(
                    inputs.Source("x", here / "x.flac"), fuzz().trained("audio")
                )
            )
    soundfile.write("x.flac", sound[:800], 16_000)
    whole = (here / "x.flac").read_bytes()
    for place, value, fault in (
        (19, 0xFF, "its header says .* its audio 16,000"), (25, 1, "digest"),
        (30, whole[30] ^ 1, "digest"),
    ):  # fmt: skip
        damaged = bytearray(whole)
        damaged[place] = value
        (here / "x.flac").write_bytes(damaged)
        assert re.search(fault, reason(here / "x.flac")), place
    # Two hours of silence in a small file: only what the model takes is decoded.
    with soundfile.SoundFile("long.flac", "w", 48_000, 8) as file:
        for _ in range(120):
            file.write(np.zeros((480_000, 8), np.int16))
    with little_memory(200_000_000):
        (example,) = inputs.read(
            inputs.Source("long", here / "long.flac"), fuzz().trained("audio")
        )
    assert "cut from 1200 s to 0.05 s" in example.changes


def test_a_damaged_png_is_refused(here):
    """Whose pixels Pillow decodes without comparing checksums."""
    picture((9, 9), "RGB").save("x.png")
    whole = (here / "x.png").read_bytes()
    damaged = bytearray(whole[:-17])
    damaged[100] ^= 1
    (here / "x.png").write_bytes(damaged)
    with PIL.Image.open("x.png") as image:
        image.load()
    assert reason(here / "x.png")


def test_folders_with_pipes_are_trained_without_waiting(here):
    for name in "ab":
        (here / "data" / name).mkdir(parents=True)
        for number in range(6):
            picture(seed=number + 9 * ord(name)).save(f"data/{name}/{number}.png")
    os.mkfifo("data/a/pipe")  # without a suffix: known by its first bytes
    notes = []
    assert gpuzoo.load_data("data/", note=notes.append).count("train") == 10
    assert "1 files in data/ are ignored" in notes[0]
    os.mkfifo("data/a/pipe.png")
    with pytest.raises(gpuzoo.GpuzooError, match="pipe.png.*not a regular file"):
        gpuzoo.load_data("data/", note=notes.append)


# --- the command line ---------------------------------------------------------------


def test_the_page_is_followed(tmp_path):
    """From the installation to a prediction on a photo, with the photo that is drawn
    here and the packages that are installed."""
    page = (ROOT / "docs" / "howto" / "predict.md").read_text()
    block = re.search(r"```bash\n(.*?)```", page, re.S)[1]
    install, *words = [line for line in block.splitlines() if not line.startswith("#")]
    assert len(block.splitlines()) <= 15 and "pip install" in install
    assert install.split("&&")[-1].strip() in (ROOT / "README.md").read_text()
    paper = PIL.Image.new("RGB", (480, 640), (235, 232, 225))
    paper.paste((40, 40, 60), (210, 100, 270, 540))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # as a phone stores it that is held upright
    paper.rotate(90, expand=True).save(tmp_path / "photo.jpg", exif=exif)
    script = "\n".join(words).replace(".venv/bin/gpuzoo", f"{sys.executable} -m gpuzoo")
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^photo.jpg +1  ", done.stdout, re.M), done.stdout
    assert "turned upright" in done.stderr and "resized from 480x640" in done.stderr
