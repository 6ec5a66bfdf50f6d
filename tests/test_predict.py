"""`gpuzoo predict`: what is read of files, what is said, what is refused."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import predicting
import pytest
import soundfile
from conftest import ROOT, environment
from predicting import fuzz, picture, piped
from scipy.special import softmax

import gpuzoo
from gpuzoo.cli.parsing import Output
from gpuzoo.cli.predict import Predict, _print_table
from gpuzoo.cli.tables import show, table
from gpuzoo.deploy import inputs
from gpuzoo.report import progress

quick, here, runs = predicting.quick, predicting.here, predicting.runs
predict, classifier = predicting.predict, predicting.classifier
pytestmark = pytest.mark.usefixtures("quick")


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
    """Of 0 and 1: black and white as floats, nearly black as integers."""
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


def test_a_narrow_table_breaks_no_name(capsys, monkeypatch):
    """Many classes, and names too long for the terminal: a line for each class."""
    monkeypatch.setenv("COLUMNS", "80")
    path, long = "/a/folder/" * 9 + "photo.jpg", "yellow-crowned night heron " * 2
    few = [{"class": f"{n}", "probability": 0.1} for n in range(3)]
    many = [{"class": f"class {n}", "probability": 0.05} for n in range(20)]
    box = {"class": long, "score": 0.5, "top": 1, "left": 2, "bottom": 3, "right": 4}
    for kind, row in (
        ("classes", {"file": "a.png", "index": 7, "predictions": many}),
        ("classes", {"file": path, "predictions": few}),
        ("classes", {"file": "a.png", "predictions": [{**few[0], "class": long}] * 2}),
        ("boxes", {"file": path, "boxes": [box] * 2}),
    ):
        _print_table(kind, [row, row], "")
        lines = capsys.readouterr().out.splitlines()
        assert lines.count(row["file"] + " [7]" * ("index" in row)) == 2
        words = " ".join(lines).split()
        for one in row.get("predictions", row.get("boxes")):
            assert words.count(one["class"].split()[-1]) >= 2
    _print_table("classes", [{"file": "a.png", "predictions": few}], "")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_names_of_classes_do_not_control_the_terminal(capsys):
    evil = "\x1b[31mcat\r\n\x9b1A"
    row = {"file": "a\x1b.png", "predictions": [{"class": evil, "probability": 0.5}]}
    _print_table("classes", [row], "")
    show(f"best: {evil}", table("head\nof two lines", "\x1b[2J"))
    Output().note(f"class {evil} has no examples")
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
    # A text may have several lines, a cell has one.
    assert said.out.count(r"\x1b[31mcat\r\n\x9b1A") == 1 and r"\x1b[2J" in said.out
    assert r"best: \x1b[31mcat\r" + "\n" + r"\x9b1A" in said.out
    assert r"a\x1b.png" in said.out and r"\x1b[31mcat" in said.err


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
    assert re.match(r"x.npy \[0\]  +\d  \d+\.\d% +\d  \d+\.\d%", lines[0])


def test_rows_for_a_file_do_not_go_to_the_bar(capsys, monkeypatch):
    """Rich would print to the terminal what is meant for a pipe."""
    monkeypatch.setattr(progress._Console, "is_terminal", True)
    with progress.files_bar(9, False) as advance:
        print("a row")
        advance()
    said = capsys.readouterr()
    assert said.out == "a row\n" and "files" in said.err


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
