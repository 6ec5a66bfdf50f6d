"""Prepared TFDS folders read without TensorFlow, beside what TensorFlow reads."""

import json

import pytest
import tfds_folders

from gpuzoo.data import tfds as by_name
from gpuzoo.data import tfds_records
from gpuzoo.errors import GpuzooError

pytest.importorskip("google_crc32c")


@pytest.fixture
def prepare(tmp_path, runtime):
    """Write a folder of a number of files and examples with TFDS; returns its path."""

    def write(files: int, examples: int):
        return tfds_folders.write(tmp_path / f"{files}-{examples}", files, examples)

    return write


def without_tensorflow(monkeypatch) -> None:
    real = by_name.is_installed
    missing = {"tensorflow"}
    found = lambda name: name not in missing and real(name)  # noqa: E731
    for module in (by_name, tfds_records):
        monkeypatch.setattr(module, "is_installed", found)


@pytest.mark.parametrize(
    ("files", "examples"), [(1, 40), (3, 100), (20, 700), (33, 1056), (18, 5)]
)
def test_the_same_examples_in_the_same_order(files, examples, prepare, monkeypatch):
    """Also of files that end in the middle of a turn, and of those that end with it."""
    folder = prepare(files, examples)
    one = by_name._decode("mine", folder, print)
    with monkeypatch.context() as patch:
        without_tensorflow(patch)
        other = by_name._decode("mine", folder, print)
    assert one.train["image"].shape == (examples, 12, 9, 3)
    assert one.fingerprint == other.fingerprint and one.classes == other.classes


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":  # in the bytes of an example
        content[len(content) // 2] ^= 4
    elif how == "length":
        content[5] ^= 1
    elif how == "cut":
        del content[-7:]
    elif how == "record":  # the last whole one is missing: another number of examples
        start = last = 0
        while start < len(content):
            last = start
            start += 16 + int.from_bytes(content[start : start + 8], "little")
        del content[last:]
    else:
        content = bytearray(b"no such file at all, and longer than a head")
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "length", "cut", "record", "other"])
def test_a_damaged_file_is_one_line(how, prepare, monkeypatch):
    folder = prepare(1, 40)
    (path,) = folder.glob("*train*")
    damage(path, how)
    without_tensorflow(monkeypatch)
    with pytest.raises(GpuzooError, match="'mine' cannot be read: .*") as caught:
        by_name._decode("mine", folder, print)
    said = str(caught.value)
    assert path.name in said or "expected 40 train examples, got 39" in said
    assert "\n" not in said and "prepare it again" in said


def test_what_is_not_prepared_is_refused(monkeypatch, tmp_path):
    """TFDS prepares a set with TensorFlow only."""
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    without_tensorflow(monkeypatch)
    with pytest.raises(by_name.DatasetUnavailable, match="run: pip install tensorflow"):
        by_name._decode("mnist", None, print)


def test_another_format_than_tfrecord_is_named(prepare, monkeypatch):
    folder = prepare(1, 5)
    path = folder / "dataset_info.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "fileFormat": "riegeli"}))
    without_tensorflow(monkeypatch)
    told = "'mine' is stored as riegeli, .*pip install tensorflow"
    with pytest.raises(GpuzooError, match=told):
        by_name._decode("mine", folder, print)
