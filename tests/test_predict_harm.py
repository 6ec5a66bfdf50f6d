"""`gpuzoo predict`: files made to do harm: too large, too many pixels, pickled."""

import contextlib
import io
import os
import re
import warnings
import zipfile

import numpy as np
import PIL.Image
import predicting
import pytest
import soundfile
from predicting import fuzz, picture

import gpuzoo
from gpuzoo.data import npy
from gpuzoo.deploy import inputs

here, quick = predicting.here, predicting.quick
pytestmark = pytest.mark.usefixtures("quick")


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
