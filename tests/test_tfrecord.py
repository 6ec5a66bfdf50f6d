"""Prepared TFDS folders read without TensorFlow, beside what TensorFlow reads."""

import json

import numpy as np
import pytest

from gpuzoo.data import tfds as by_name
from gpuzoo.errors import GpuzooError

pytest.importorskip("google_crc32c")


@pytest.fixture
def prepare(tmp_path, runtime):
    """Write a folder of a number of files and examples with TFDS; returns its path."""
    import tensorflow  # noqa: F401 - TFDS writes with it
    import tensorflow_datasets as tfds

    def write(files: int, examples: int):
        rng = np.random.default_rng(examples)
        folder = tmp_path / f"{files}-{examples}" / "mine" / "1.0.0"
        folder.mkdir(parents=True)
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["light", "dark", "other"]),
            }
        )
        identity = tfds.core.DatasetIdentity(
            name="mine", version=tfds.core.Version("1.0.0"), data_dir=str(folder),
            module_name="mine",
        )  # fmt: skip
        info = tfds.core.DatasetInfo(builder=identity, features=features)
        writer = tfds.core.SequentialWriter(info, -(-examples // files))
        writer.initialize_splits(["train", "test"], fail_if_exists=False)
        for split, count in (("train", examples), ("test", 3)):
            images = rng.integers(0, 256, (count, 12, 9, 3), np.uint8)
            made = [{"image": one, "label": int(one[0, 0, 0]) % 3} for one in images]
            writer.add_examples({split: made})
        writer.close_all()
        return folder

    return write


def without_tensorflow(monkeypatch) -> None:
    real = by_name.is_installed
    missing = {"tensorflow"}
    found = lambda name: name not in missing and real(name)  # noqa: E731
    monkeypatch.setattr(by_name, "is_installed", found)


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
    path.write_text(json.dumps({**described, "fileFormat": "array_record"}))
    without_tensorflow(monkeypatch)
    told = "'mine' is stored as array_record, .*pip install tensorflow"
    with pytest.raises(GpuzooError, match=told):
        by_name._decode("mine", folder, print)
