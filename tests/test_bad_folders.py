"""Folders that would be taken for something else than they hold."""

import contextlib
import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_audio import tone, write

import gpuzoo

pytestmark = pytest.mark.usefixtures("own_cache")


@contextlib.contextmanager
def plain_user(folder: pathlib.Path):
    """Not root, who may read everything. The folders above may be root's alone."""
    folder.chmod(0o777)
    before, user = pathlib.Path.cwd(), os.geteuid()
    os.chdir(folder)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        os.chdir(before)


# --- folders ------------------------------------------------------------------------


def image(path, side=8, colour=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), colour).save(path)


def pets(folder, each=6, first=0):
    for number in range(each):
        for label, name in enumerate(("cat", "dog")):
            colour = first + 2 * number + 100 * label
            image(folder / name / f"{number}.png", colour=colour)
    return folder


def sounds(folder, each=6):
    for number in range(each):
        write(folder / "high" / f"{number}.wav", tone(2_000 + number))
        write(folder / "low" / f"{number}.wav", tone(300 + number))
    return folder


@pytest.mark.parametrize("fill", [pets, sounds])
@pytest.mark.parametrize("one", ["train", "Training"])
@pytest.mark.parametrize("other", ["test", "val", "valid", "validation", "Test"])
def test_known_splits(one, other, fill, tmp_path):
    fill(tmp_path / one), fill(tmp_path / other, 4)
    data = gpuzoo.load_data(str(tmp_path))
    assert data.classes == (("cat", "dog") if fill is pets else ("high", "low"))
    assert (data.count("train"), data.count("test")) == (12, 8)


@pytest.mark.parametrize("fill", [pets, sounds])
@pytest.mark.parametrize(
    "names", [("train", "dev"), ("Val", "cat"), ("test", "val"), ("train", "training")]
)
def test_splits_without_the_other_are_refused(names, fill, tmp_path):
    for name in names:
        fill(tmp_path / name)
    with pytest.raises(gpuzoo.GpuzooError, match=r"/ (is|are) alone; .*train/ and"):
        gpuzoo.load_data(str(tmp_path))


def test_what_is_left_out_is_told(tmp_path):
    for name in ("train", "test", "others"):
        pets(tmp_path / name, first=10 * len(name))
    (tmp_path / "train" / "cat" / "a.heic").write_bytes(b"photograph")
    (tmp_path / "train" / "cat" / "b.TXT").write_bytes(b"words")
    notes = []
    assert gpuzoo.load_data(str(tmp_path), note=notes.append).count("test") == 12
    assert len(notes) == 2 and "train/ and test/ are read, others ignored" in notes[0]
    assert "2 files in train/ are ignored by suffix: .heic, .txt" in notes[1]


@pytest.mark.parametrize(
    ("fill", "suffix", "kind"),
    [(pets, ".heic", "HEIC images"), (sounds, ".M4A", "AAC sound")],
)
def test_a_class_of_unsupported_files_is_refused(fill, suffix, kind, tmp_path):
    """Two other classes would train, and the third would be lost."""
    fill(tmp_path), fill(tmp_path / "more")
    (tmp_path / "more").rename(tmp_path / "zebra")
    wanted = gpuzoo.load_data(str(tmp_path))
    assert len(wanted.classes) == 3
    files = [path for path in (tmp_path / "zebra").glob("*/*") if path.is_file()]
    for path in files:
        path.rename(path.with_suffix(suffix))
    with pytest.raises(gpuzoo.GpuzooError, match=f"zebra/.*{kind}, which is not supp"):
        gpuzoo.load_data(str(tmp_path))
    files[0].with_suffix(suffix).rename(files[0])
    gpuzoo.load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ("archive/cat archive/dog", "holds only archive/, .*: --data .../archive/"),
        ("data/train/cat data/train/dog", None),
        (
            "data/train data/test",
            "holds only data/, which has the sub-folders test, tr",
        ),
        ("training_set test_set", "training_set/ and test_set/ look like parts of the"),
        ("seg_train seg_test seg_pred", "seg_train/ and seg_test/ look like parts"),
        ("images labels", "images and labels are no classes"),
        ("cat test_bench", None),
    ],
)
def test_folders_that_are_no_classes(names, fault, tmp_path):
    """Of archives as they unpack, and of parts that are called otherwise."""
    for place in names.split():
        for index in range(8):
            image(tmp_path / place / f"{index}.png")
    if fault is None:
        gpuzoo.load_data(str(tmp_path))
        return
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        gpuzoo.load_data(str(tmp_path))


@pytest.mark.parametrize("suffix", [".dcm", ".txt", ""])
def test_a_class_of_which_nothing_is_read_is_refused(suffix, tmp_path):
    pets(tmp_path)
    (tmp_path / "zebra").mkdir()
    (tmp_path / "zebra" / f"1{suffix}").write_text("no image")
    fault = (
        rf"class of zebra/1{suffix} are {suffix or 'without a suffix'}, which is not"
    )
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        gpuzoo.load_data(str(tmp_path))


def test_what_stands_at_unusual_places_is_named(tmp_path):
    pets(tmp_path)
    for name in (".hidden/1.png", "cat/.1.png", "cat/2020/1.png", "cat/.git/1.png"):
        image(tmp_path / name)
    (tmp_path / "$RECYCLE.BIN").mkdir(), (tmp_path / "lost+found").mkdir()
    said: list[str] = []
    data = gpuzoo.load_data(str(tmp_path), note=said.append)
    assert data.classes == ("cat", "dog")
    assert data.count("train") + data.count("test") == 13
    assert said[0].endswith(".hidden/1.png (2 in all) is ignored: it is hidden")
    assert said[1].endswith(
        "cat/2020/ (1 in all) is read as part of the class above it"
    )
    assert len(said) == 2


def test_hidden_files_are_no_examples(tmp_path):
    """What macOS and Jupyter leave beside the user's files."""
    pets(tmp_path)
    for name in ("._0.png", ".DS_Store", ".ipynb_checkpoints/0.png"):
        path = tmp_path / "cat" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    (tmp_path / ".git" / "x").mkdir(parents=True)
    data = gpuzoo.load_data(str(tmp_path), note=pytest.fail)
    assert data.count("train") + data.count("test") == 12


def test_names_of_classes(tmp_path):
    pets(tmp_path)
    image(tmp_path / "Cat" / "1.JPG"), image(tmp_path / "caf\u00e9 \u732b" / "1.TIFF")
    odd = os.fsdecode(b"B\xe4r"), os.fsdecode(b"B\xfcr")
    for name in odd:
        image(tmp_path / name / "deep er" / "1.png")
    (tmp_path / "empty").mkdir()
    data = gpuzoo.load_data(str(tmp_path))
    names = ("B\\xe4r", "B\\xfcr", "Cat", "caf\u00e9 \u732b", "cat", "dog", "empty")
    assert data.classes == names and data.count("train") + data.count("test") == 16
    for told in (
        "the classes 'Cat' and 'cat' have similar names",
        "class 'empty' has no train example",
        f"5 classes, {str(names[:4])[1:-1]} and 'empty', have no test example",
    ):
        assert told in data.findings


def test_links_to_folders_are_not_passed_over(tmp_path):
    pets(tmp_path / "pets"), pets(tmp_path / "more")
    (tmp_path / "pets" / "bird").symlink_to(tmp_path / "more" / "cat")
    assert len(gpuzoo.load_data(str(tmp_path / "pets")).classes) == 3
    (tmp_path / "pets" / "cat" / "more").symlink_to(tmp_path / "more" / "cat")
    with pytest.raises(gpuzoo.GpuzooError, match="cat/more is a link to a folder"):
        gpuzoo.load_data(str(tmp_path / "pets"))


@pytest.mark.parametrize("fill", [pets, sounds])
def test_folders_that_may_not_be_read(fill, tmp_path):
    folder = fill(tmp_path / "mine")
    name = sorted(path.name for path in folder.iterdir())[0]
    (folder / name / "more").mkdir(mode=0)
    for shut, told in ((f"mine/{name}/more", f"mine/{name}/more"), ("mine", "mine")):
        (tmp_path / shut).chmod(0)
        for asked in ("mine", "mine/"):
            with (
                plain_user(tmp_path),
                pytest.raises(gpuzoo.GpuzooError, match=f"{told} cannot be read: Perm"),
            ):
                gpuzoo.load_data(asked)
    (tmp_path / "mine").chmod(0)
    for asked in (f"mine/{name}", f"mine/{name}/"):
        with (
            plain_user(tmp_path),
            pytest.raises(gpuzoo.GpuzooError, match=f"{asked[:-1]}.* cannot be read"),
        ):
            gpuzoo.load_data(asked)


def test_what_fails_while_setting_up_is_told_by_its_own_name(cli_here, tmp_path):
    done = cli_here("train", "mnist", "--data-dir", "d" * 300)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert f"{'d' * 300}: File name too long; check the path" in line
    assert "resume" not in line and "output" not in line


# --- images -------------------------------------------------------------------------


def first_image(folder, name, content=None, **options):
    """What is made of one image that is laid beside ordinary ones."""
    if content is not None:
        content.save(folder / "cat" / name, **options)
    data = gpuzoo.load_data(str(folder))
    everything = np.concatenate([data.train["image"], data.test["image"]])
    labels = np.concatenate([data.train["label"], data.test["label"]])
    return everything, labels


def one_more(folder, name, content, **options) -> np.ndarray:
    """(8, 8, channels) of one image laid beside ordinary ones, found by its colour."""
    plain, _ = first_image(folder, name)
    found, _ = first_image(folder, name, content, **options)
    seen = {
        row.tobytes() for row in np.broadcast_to(plain, (len(plain), *found.shape[1:]))
    }
    (new,) = [row for row in found if row.tobytes() not in seen]
    return new


def left_bright(mode="L", bright=250, dark=20):
    picture = Image.new(mode, (8, 8), dark)
    picture.paste(bright, (0, 0, 4, 8))
    return picture


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: what is left comes to the top
    shown = one_more(pets(tmp_path), "x.jpg", left_bright(), exif=exif)[..., 0]
    assert shown[:3].min() > 200 and shown[5:].max() < 80


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(kind, tmp_path):
    """A black drawing on nothing: the colours alone would all be black."""
    alpha = left_bright(bright=255, dark=0)
    picture = Image.new("L", (8, 8)).convert(kind if kind != "P" else "RGBA")
    picture.putalpha(alpha)
    if kind == "P":
        picture = picture.quantize(4)
    shown = one_more(pets(tmp_path), "x.png", picture)
    assert shown.shape[2] == (1 if kind == "LA" else 3)
    assert shown[:, :4].max() == 0 and shown[:, 4:].min() == 255


def test_opaque_images_of_every_kind(tmp_path):
    red = (200, 30, 40)
    for mode, suffix in (
        ("RGB", "png"),
        ("RGBA", "PNG"),
        ("P", "gif"),
        ("CMYK", "tif"),
    ):
        folder = pets(tmp_path / mode)
        picture, frames = Image.new("RGB", (8, 8), red), {}
        if mode == "P":  # of an animation the first picture
            picture, other = picture.quantize(4), Image.new("P", (8, 8))
            frames = {"save_all": True, "append_images": [other]}
        elif mode != "RGB":
            picture = picture.convert(mode)
        shown = one_more(folder, f"x.{suffix}", picture, **frames)
        assert np.abs(shown.reshape(-1, 3) - np.array(red, int)).max() <= 3, mode


def test_colours_of_more_than_8_bits_are_refused(tmp_path):
    """Which Pillow would cut to 8 without a word."""

    def chunk(name, body):
        whole = name + body
        return (
            struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))
        )

    rows = (b"\0" + bytes(range(48))) * 8
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    )
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (pets(tmp_path) / "cat" / "x.png").write_bytes(content)
    with pytest.raises(gpuzoo.GpuzooError, match=r"cat/x.png.*more than 8 bits"):
        gpuzoo.load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("mode", "tags", "fault"),
    [
        ("L", {339: 2}, "its numbers are signed"),
        ("RGBX", {}, "it has 4 channels that are not all colours"),
        ("RGBA", {}, None),
    ],
)
def test_channels_of_tiff_that_are_no_colours_are_refused(mode, tags, fault, tmp_path):
    """An infrared one would be left out, or be taken for transparency."""
    path = pets(tmp_path) / "cat" / "x.tif"
    picture = Image.new(mode, (8, 8))
    content = io.BytesIO()
    picture.save(content, "tiff", tiffinfo=tags)
    path.write_bytes(content.getvalue())
    if fault is None:
        gpuzoo.load_data(str(tmp_path))
        return
    with pytest.raises(gpuzoo.GpuzooError, match=rf"cat/x.tif.*{fault}"):
        gpuzoo.load_data(str(tmp_path))


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "tif", "webp"])
def test_damaged_images_are_one_line(suffix, tmp_path):
    """Cut short anywhere, or changed at random: an image still, or refused by name."""
    rng, whole = np.random.default_rng(0), io.BytesIO()
    noise = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    form = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix)
    Image.fromarray(noise).save(whole, form)
    content, refused = whole.getvalue(), 0
    path = pets(tmp_path) / "cat" / f"x.{suffix}"
    for number in range(50):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: rng.integers(len(damaged) - 3)]
        else:
            for place in rng.integers(0, min(len(damaged), 200), 3):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            gpuzoo.load_data(str(tmp_path))
        except gpuzoo.GpuzooError as error:
            refused += 1
            assert f"cat/x.{suffix}" in str(error)
    assert refused > 20
