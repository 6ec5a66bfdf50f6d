"""Films: generated ones, arrays, folders of clips, and all that is done with a run."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import gpuzoo
from gpuzoo.data import film_files

SIDE, FRAMES = 12, 6
HOW = {
    "epochs": 12, "batch_size": 8, "learning_rate": 0.02, "quiet": True, "frames": 4,
    "model_options": ("filters=(4,8)",),
}  # fmt: skip


def film(way: int, number: int = 0, frames: int = FRAMES) -> np.ndarray:
    """A light square that goes to the right (1) or to the left (-1), (frames, SIDE,
    SIDE), uint8."""
    found = np.zeros((frames, SIDE, SIDE), np.uint8)
    for place in range(frames):
        left = 1 + (place if way > 0 else frames - 1 - place) * 6 // frames
        found[place, 1 + number % 7 : 5 + number % 7, left : left + 4] = (
            150 + number + place
        )
    return found


def save(path, frames: np.ndarray) -> None:
    """As an animation or, without a suffix, as a folder of numbered frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(one) for one in frames]
    if path.suffix:
        images[0].save(path, save_all=True, append_images=images[1:], duration=40,
                       lossless=True)  # fmt: skip
        return
    path.mkdir()
    for number, image in enumerate(images, 8):  # from one digit to two
        image.save(path / f"frame{number}.png")


@pytest.fixture(scope="module")
def place(runtime, tmp_path_factory):
    """A folder with clips of both classes, and a run."""
    top = tmp_path_factory.mktemp("films")
    for name, way in (("left", -1), ("right", 1)):
        for number in range(14):
            suffix = ("", ".gif", ".webp", ".png")[number % 4]
            save(top / "clips" / name / f"{number:02}{suffix}", film(way, number))
    gpuzoo.train("films", data=str(top / "clips"), out=str(top / "run"), **HOW)
    return top


def test_moving_digits_are_the_same_everywhere_and_balanced():
    data = gpuzoo.load_data("moving_digits")
    assert data.fingerprint.startswith("cc2abf14e39c") and data.findings == ()
    assert data.input_shape == (16, 24, 24, 1) and data.train["film"].dtype == np.uint8
    assert list(np.bincount(data.test["label"])) == [63] * 4 + [62] * 4
    # Where the light is in the first and the last frame tells the four straight ways.
    films, label = data.test["film"][..., 0].astype(float), data.test["label"]
    bright = np.maximum(films - 60, 0)
    columns = (bright.sum(axis=2) * np.arange(24)).sum(axis=2) / bright.sum(axis=(2, 3))
    moved = columns[:, -1] - columns[:, 0]
    names = np.array(data.classes)[label]
    assert moved[names == "left"].max() < -4 and moved[names == "right"].min() > 4
    grown = bright[:, -1].sum(axis=(1, 2)) / bright[:, 0].sum(axis=(1, 2))
    assert (
        grown[names == "growing"].min()
        > 1.2
        > 1 / 1.2
        > grown[names == "shrinking"].max()
    )
    # In the middle the classes are alike.
    middle = columns[:, 7:9].mean(axis=1)
    apart = middle[names == "left"].mean() - middle[names == "right"].mean()
    assert abs(apart) < 0.5


def test_the_frames_that_are_taken():
    assert film_files.places(16, 4) == [2, 6, 10, 14]
    assert film_files.places(5, 5) == [0, 1, 2, 3, 4]
    assert film_files.places(3, 6) == [0, 0, 1, 1, 2, 2]
    assert film_files.places(1000, 2) == [250, 750]


def test_every_kind_of_clip_gives_the_same_frames(tmp_path):
    frames = film(1, 5, 12)
    for suffix in ("", ".gif", ".png"):
        save(tmp_path / f"one{suffix}", frames)
        clip = film_files.read_clip(tmp_path / f"one{suffix}", 4)
        assert (clip.count, clip.shape, clip.channels) == (12, (SIDE, SIDE), 1)
        assert np.array_equal(clip.pixels[..., 0], frames[[1, 4, 7, 10]]), suffix
    colour = film_files.read_clip(tmp_path / "one.gif", 3, (6, 8), 3)
    assert colour.pixels.shape == (3, 6, 8, 3)
    assert film_files.read_clip((tmp_path / "one.gif").read_bytes(), 4).count == 12


def test_the_still_of_a_png_for_other_programs_is_no_frame(tmp_path):
    save(tmp_path / "plain.png", film(1))
    images = [Image.fromarray(one) for one in film(1)]
    still = Image.fromarray(np.full((SIDE, SIDE), 77, np.uint8))
    still.save(tmp_path / "still.png", save_all=True, append_images=images,
               default_image=True, duration=40)  # fmt: skip
    one, other = (
        film_files.read_clip(tmp_path / name, 4) for name in ("plain.png", "still.png")
    )
    assert one.count == other.count == FRAMES
    assert (one.pixels == other.pixels).all()


def test_images_in_colour_are_no_films(tmp_path):
    np.savez(
        tmp_path / "x.npz", x=np.zeros((9, 32, 32, 3), np.uint8), y=np.arange(9) % 2
    )
    with pytest.raises(gpuzoo.GpuzooError, match="that of images in colour"):
        gpuzoo.load_data(str(tmp_path / "x.npz"), task="classify_film")


def test_a_folder(place):
    notes = []
    data = gpuzoo.load_data(
        str(place / "clips"), task="classify_film", frames=4, note=notes.append
    )
    assert data.input_shape == (4, SIDE, SIDE, 1) and data.classes == ("left", "right")
    assert data.count("train") + data.count("test") == 28
    assert any("4 frames are taken from each of 28 films of 6 to 6" in n for n in notes)
    with pytest.raises(gpuzoo.GpuzooError, match="frames is for a folder of films"):
        gpuzoo.load_data("digits", frames=4)
    with pytest.raises(gpuzoo.GpuzooError, match="frames is for films; the task clas"):
        gpuzoo.train("mnist", frames=4)


def short(top):
    save(top / "a" / "00.gif", film(1, 0, 1))


def other_size(top):
    save(top / "a" / "00.gif", np.zeros((4, 9, 9), np.uint8) + 9 * np.arange(4, dtype=np.uint8)[:, None, None])  # fmt: skip


def still(top):
    Image.fromarray(film(1)[0]).save(top / "a" / "00.jpg")


def twice(top):
    save(top / "a" / "00", film(1))
    Image.fromarray(film(1)[0]).save(top / "a" / "00" / "frame008.png")


def no_frame(top):
    save(top / "a" / "00", film(1))
    (top / "a" / "00" / "notes.txt").write_text("x")


def cut(top):
    path = top / "a" / "01.gif"
    path.write_bytes(path.read_bytes()[:-60])


def ended(top):
    whole = (top / "a" / "01.gif").read_bytes()
    assert whole[-1:] == b";"
    (top / "a" / "01.gif").write_bytes(whole[:-1])


def nested(top):
    save(top / "a" / "person" / "1.gif", film(1))


def nested_animations(top):
    save(top / "a" / "person" / "1.png", film(1))
    save(top / "a" / "person" / "2.png", film(1))


def nothing(top):
    for path in (top / "a").iterdir():
        path.unlink()
    (top / "a" / "x.txt").write_text("x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (short, "a/00.gif .it has 1 frame, and a film at least 2"),
        (other_size, r"\(12, 12\) pixels where the first film has \(9, 9\).*--image-size"),
        (still, "a/00.jpg is a still image; put the frames"),
        (twice, "frame008.png and frame8.png have the same number"),
        (no_frame, "notes.txt in it is no image"),
        (cut, "a/01.gif"),
        (ended, "a/01.gif.*it is cut off"),
        (nested, "1.gif in it may have several frames.*put films directly"),
        (nested_animations, "1.png in it has several frames.*put films directly"),
        (nothing, "a/ has no films .*but other files: .txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_named(damage, words, tmp_path):
    for name, way in (("a", 1), ("b", -1)):
        for number in range(1, 6):
            save(tmp_path / "x" / name / f"{number:02}.gif", film(way, number))
    damage(tmp_path / "x")
    with pytest.raises(gpuzoo.GpuzooError, match=words):
        gpuzoo.load_data(str(tmp_path / "x"), task="classify_film")


def arrays(**changed) -> dict:
    x = np.stack([film(1 if n % 2 else -1, n // 2) for n in range(24)])[..., None]
    return {"x": x, "y": np.arange(24) % 2} | changed


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (arrays()["x"].transpose(0, 1, 4, 2, 3), r"channels before height and width; put"),
        (np.repeat(arrays()["x"], 3, axis=4).transpose(0, 4, 1, 2, 3), "channels before the frames; put"),
        (np.where(np.indices((24, 6, 12, 12, 1))[3] == 3, np.nan, 1.0), r"nan at index \(0, 0, 0, 3, 0\)"),
        (arrays()["x"].astype(float) * 9, "values from 0 to "),
        (arrays()["x"][:, :1], "have 1 frame in each film"),
        (np.repeat(arrays()["x"][:, :1], 3, axis=1), "all frames are the same: use images"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_arrays_is_named(x, words, tmp_path, runtime):
    np.savez(tmp_path / "x.npz", **arrays(x=x))
    with pytest.raises(gpuzoo.GpuzooError, match=words):
        gpuzoo.train("films", data=str(tmp_path / "x.npz"), batch_size=8,
                     out=str(tmp_path / "run"))  # fmt: skip


def test_arrays_with_four_and_five_axes(tmp_path):
    np.savez(tmp_path / "five.npz", **arrays())
    np.savez(tmp_path / "four.npz", **arrays(x=arrays()["x"][..., 0]))
    five = gpuzoo.load_data(str(tmp_path / "five.npz"))
    four = gpuzoo.load_data(str(tmp_path / "four.npz"), task="classify_film")
    assert five.field == "film" and five.fingerprint == four.fingerprint


def test_a_run(place):
    found = json.loads((place / "run" / "run.json").read_text())
    assert found["metrics"]["test_accuracy"] == 1.0
    assert found["data"]["source"] == "folder of films"
    assert "Confusion" in (place / "run" / "report.html").read_text()


def test_verified_evaluated_and_predicted(place, cli_here, monkeypatch):
    monkeypatch.chdir(place)
    for words in (["verify"], ["evaluate"], ["evaluate", "--data", "clips"]):
        done = cli_here(*words[:1], "run", *words[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    save(place / "new.gif", np.repeat(np.repeat(film(1, 20, 9), 2, 1), 2, 2))
    save(place / "frames", film(-1, 20, 5))
    done = cli_here("predict", "run", "new.gif", "frames", "clips/left", "--json-lines")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    rows = [row for row in rows if "predictions" in row and "file" in row]
    assert done.returncode == 0 and len(rows) == 16, done.stderr
    best = [row["predictions"][0]["class"] for row in rows]
    assert best == ["right", *["left"] * 15]
    assert rows[0]["changes"] == [
        "4 frames are taken from 9", "resized from 24x24 to 12x12",
    ]  # fmt: skip
    told = gpuzoo.load(place / "run").predict(film(1, 3)[[0, 2, 3, 5]])
    assert told["predicted"].tolist() == [1]
    done = cli_here("predict", "run", "run/curves.png")
    assert done.returncode == 2 and "1 frame, and a film at least 2" in done.stderr


def test_exported_and_served(place):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from gpuzoo.deploy.export import export
    from gpuzoo.deploy.serve import app, artefact, pages
    from gpuzoo.deploy.serve.guard import Limits
    from gpuzoo.deploy.serve.inputs import Refused

    found = export(place / "run", ("onnx", "litert"))
    assert found["failures"] == []
    (given,) = found["inputs"]
    assert "pixels 0 to 255, one frame after the other" in given["meaning"]
    for entry in found["formats"].values():
        parity = entry["parity"]
        assert parity["largest_difference"] < 1e-4
        assert parity["changed_predictions"] == 0
    made = artefact.load(place / "run-export")
    films = np.stack([film(way, 4)[[0, 2, 3, 5], ..., None] for way in (1, -1)])

    def answer(sent) -> dict:
        body = json.dumps({"inputs": sent}).encode()
        _, text = app.answer(made, Limits(), "application/json", body)
        return json.loads(text)

    told = answer(films.tolist())["predictions"]
    assert [one["class"] for one in told] == ["right", "left"]
    with pytest.raises(Refused, match="shape"):
        answer(films[:, :2].tolist())
    assert pages.kinds(made) == ("application/json",)


def test_the_report_shows_frames_of_mistakes(tmp_path, runtime):
    wrong = arrays()
    wrong["y"] = (np.arange(24) // 2) % 2  # independent of the way
    np.savez(tmp_path / "x.npz", **wrong)
    gpuzoo.train("films", data=str(tmp_path / "x.npz"), out=str(tmp_path / "run"),
                 **HOW | {"epochs": 1, "frames": 0})  # fmt: skip
    sheet = np.asarray(Image.open(tmp_path / "run" / "film_mistakes.png").convert("L"))
    assert (sheet < 250).any(axis=0).mean() > 0.5  # a row of frames, side by side
    assert "Frames of the wrongly" in (tmp_path / "run" / "report.html").read_text()


# --- videos ---------------------------------------------------------------------------


def encode(path, frames: np.ndarray, codec: str = "mpeg4", pixels: str = "yuv420p"):
    """Write frames (frames, height, width, 3) as a video."""
    av = pytest.importorskip("av", reason="needs the extra video")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as opened:
        stream = opened.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = pixels, 8_000_000
        for one in frames:
            frame = av.VideoFrame.from_ndarray(one, format="rgb24")
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode())


def quarters(count: int = 20) -> np.ndarray:
    """Frames of 32x48 pixels that grow lighter; the upper left quarter is red."""
    found = np.zeros((count, 32, 48, 3), np.uint8)
    found += (40 + 8 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    found[:, :16, :24] = (200, 20, 20)
    return found


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        ("mp4", "mpeg4", "yuv420p"), ("mov", "mjpeg", "yuvj420p"),
        ("webm", "libvpx", "yuv420p"), ("mkv", "ffv1", "yuv444p"),
        ("avi", "mpeg4", "yuv420p"),
    ],
)  # fmt: skip
def test_videos(suffix, codec, pixels, tmp_path):
    path = tmp_path / f"x.{suffix}"
    encode(path, quarters(), codec, pixels)
    clip = film_files.read_clip(path, 4)
    assert (clip.count, clip.shape, clip.channels) == (20, (32, 48), 3)
    wanted = quarters()[film_files.places(20, 4)].astype(int)
    assert np.abs(clip.pixels - wanted).mean() < 6
    again = film_files.read_clip(path.read_bytes(), 4)
    assert np.array_equal(clip.pixels, again.pixels)


def test_a_video_is_turned_as_its_header_says(tmp_path):
    encode(tmp_path / "x.mp4", quarters())
    content = bytearray((tmp_path / "x.mp4").read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # the matrix of the track
    one = (1 << 16).to_bytes(4, "big")
    minus, none = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)
    # A quarter turn clockwise, as of a telephone held upright.
    content[place : place + 24] = none + one + none + minus + none + none
    clip = film_files.read_clip(bytes(content), 4)
    assert clip.shape == (48, 32)
    red = (clip.pixels[0, ..., 0].astype(int) - clip.pixels[0, ..., 1]) > 90
    assert red[4:20, 20:28].all() and not red[:, :12].any() and not red[30:].any()


def test_frames_that_do_not_fit_into_memory_are_refused(tmp_path):
    save(tmp_path / "x.gif", film(1))
    content = bytearray((tmp_path / "x.gif").read_bytes())
    content[6:10] = b"\xff\x1f\xff\x1f"  # 8191 x 8191
    with pytest.raises(ValueError, match="67,092,481 pixels, and at most 33,554,432"):
        film_files.read_clip(bytes(content), 4)
    encode(tmp_path / "x.webm", quarters(), "libvpx")
    content = (tmp_path / "x.webm").read_bytes()
    size = b"\x9d\x01\x2a"  # the first frame begins so; then its width and height
    assert size in content
    place = content.index(size) + 3
    large = content[:place] + b"\xff\x3f\xff\x3f" + content[place + 4 :]
    with pytest.raises(ValueError, match="not a readable video"):
        film_files.read_clip(large, 4)


def test_what_is_wrong_with_a_video_is_named(tmp_path, monkeypatch):
    for name in ("a", "b"):
        for number in range(5):
            shift = quarters() + np.uint8(number)
            encode(tmp_path / "x" / name / f"{number}.mp4", shift)
    content = (tmp_path / "x" / "a" / "3.mp4").read_bytes()
    (tmp_path / "x" / "a" / "3.mp4").write_bytes(content[:-700])
    (tmp_path / "x" / "b" / "1.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(900))
    (tmp_path / "x" / "b" / "2.avi").write_bytes(b"no film")
    with pytest.raises(gpuzoo.GpuzooError) as told:
        gpuzoo.load_data(str(tmp_path / "x"), task="classify_film")
    for words in (
        "3 of 12 films",
        "a/3.mp4 (",
        "b/1.mkv (not a readable video",
        "b/2.avi",
    ):
        assert words in str(told.value), words
    with pytest.raises(gpuzoo.GpuzooError, match="video.* --task classify_film"):
        gpuzoo.load_data(str(tmp_path / "x"))
    damaged = bytearray(content)
    damaged[content.index(b"mdat") + 200 : content.index(b"mdat") + 1400] = bytes(1200)
    with pytest.raises(Exception, match=r"damaged|not a readable video"):
        film_files.read_clip(bytes(damaged), 4)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(gpuzoo.GpuzooError, match=r"pip install 'gpuzoo\[video\]'"):
        gpuzoo.load_data(str(tmp_path / "x"), task="classify_film")
