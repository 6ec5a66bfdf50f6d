"""Decoded datasets on disk, and the prepared TFDS folders that they come from."""

import json
import multiprocessing
import os
import pathlib
import shutil
import time

import numpy as np
import pytest
from conftest import REAL_DATA
from small import splits
from test_resume import die_at, finish, start

import gpuzoo
from gpuzoo import files
from gpuzoo.data import cache
from gpuzoo.data.dataset import fingerprint
from gpuzoo.data.validate import make_dataset
from gpuzoo.files import is_temporary, temporary_name

pytestmark = pytest.mark.usefixtures("own_cache")


def test_cache_gives_back_what_was_stored(arrays):
    data = make_dataset("mine", "somewhere", splits(arrays))
    assert cache.load("mine") is None
    cache.store(data, "key")
    for key in ("key", None):
        loaded = cache.load("mine", key)
        assert loaded.as_record() == data.as_record()
        assert fingerprint(loaded.splits, loaded.classes) == data.fingerprint
    assert cache.load("mine", "other") is None


@pytest.mark.parametrize("file", ["arrays.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_entry_is_dropped(file, damage, arrays):
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    path = files.root() / "data" / "mine" / "key" / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        # The middle of a manifest may be a letter of a free text: hit the digest.
        where = content.find(b'"fingerprint": "') + 20 if file[0] == "m" else -50
        content[where] ^= 1
        path.write_bytes(content)
    assert cache.load("mine") is None
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    assert cache.load("mine").source == "somewhere"


@pytest.mark.parametrize(
    "change",
    [lambda m: [], lambda m: None, lambda m: {**m, "classes": ["0"]},
     lambda m: {**m, "findings": None}, lambda m: {**m, "classes": ["0", "x"]}],
)  # fmt: skip
def test_an_edited_cache_manifest_is_dropped(change, arrays):
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    path = files.root() / "data" / "mine" / "key" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert cache.load("mine") is None


def _store(seed):
    rng = np.random.default_rng(0)
    arrays = {
        s: {"image": rng.integers(0, 255, (2000, 28, 28, 1)).astype(np.uint8),
            "label": np.arange(2000) % 10}
        for s in ("train", "test")
    }  # fmt: skip
    data = make_dataset("shared", "somewhere", arrays)
    for _ in range(20):
        cache.store(data, "key")
        loaded = cache.load("shared", "key")
        if loaded is None or loaded.fingerprint != data.fingerprint:
            return False
    return True


def test_two_processes_may_fill_the_cache_at_once():
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert all(pool.map(_store, range(4)))
    left = list((files.root() / "data" / "shared").iterdir())
    assert [path.name for path in left] == ["key"]


def test_what_a_killed_process_left_is_removed_a_day_later(arrays):
    data = make_dataset("mine", "somewhere", splits(arrays))
    cache.store(data, "key")
    for key, hours, stays in (("one", 23, True), ("other", 25, False)):
        half = files.root() / "data" / "mine" / "key" / temporary_name()
        half.write_bytes(b"half")
        os.utime(half, times=(time.time() - hours * 3600,) * 2)
        cache.store(data, key)
        assert half.exists() == stays


@pytest.fixture
def prepared(tmp_path, arrays, runtime):
    """A small prepared TFDS folder, written by TFDS itself, that is called mnist."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(14, 14, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mnist",
        version="3.0.1",
        features=features,
        split_datasets={
            s: tf.data.Dataset.from_tensor_slices(splits(arrays)[s])
            for s in ("train", "test")
        },
        data_dir=tmp_path / "prepared",
        disable_shuffling=True,
    )
    return tmp_path / "prepared"


def test_prepared_folder_is_decoded_once(prepared, arrays, monkeypatch):
    first = gpuzoo.load_data("mnist", data_dir=str(prepared))
    # TFDS writes the examples in an order of its own.
    found = sorted(image.tobytes() for image in first.train["image"])
    assert found == sorted(image.tobytes() for image in arrays["x_train"])
    assert len(first.classes) == 10
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    again = gpuzoo.load_data("mnist", data_dir=str(prepared))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    by_variable = gpuzoo.load_data("mnist")
    monkeypatch.delenv("TFDS_DATA_DIR")
    from_cache = gpuzoo.load_data("mnist")
    for data in (again, by_variable, from_cache):
        assert data.fingerprint == first.fingerprint


def test_killed_while_the_data_are_prepared(prepared, tmp_path):
    """Inside the cache's writing; the run was there before its data."""
    words = ["train", "mnist", "--data-dir", "prepared", "--epochs", "1", "--device",
             "cpu", "--threads", "2", "--batch-size", "16", "--quiet"]  # fmt: skip
    ends = []
    for call, number, moment in (("write", 2, "half"), ("replace", 4, "before")):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        run = f"killed-{call}"
        die_at(call, number, moment, [*words, "--out", run], tmp_path)
        assert json.loads((tmp_path / run / "run.json").read_text())["data"] is None
        (entry,) = (tmp_path / "cache" / "data" / "mnist").iterdir()
        left = {path.name for path in entry.iterdir()}
        assert "manifest.json" not in left and any(map(is_temporary, left))
        ends.append(finish(run, tmp_path))
    process = start([*words, "--out", "whole"], tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    ends.append(json.loads(stdout.splitlines()[-1]))
    assert len({end["weights_sha256"] for end in ends}) == 1


def test_the_shapes_of_the_files_are_what_counts(prepared):
    """Not those of TFDS's own mnist, which are 28x28."""
    assert gpuzoo.load_data("mnist", data_dir=str(prepared)).input_shape == (14, 14, 1)


def test_a_changed_prepared_folder_is_not_taken_from_the_cache(prepared):
    gpuzoo.load_data("mnist", data_dir=str(prepared))
    (records,) = prepared.glob("mnist/3.0.1/mnist-train.*")
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 0xFF
    records.write_bytes(content)
    with pytest.raises(gpuzoo.GpuzooError, match="'mnist' cannot be read: .*damaged"):
        gpuzoo.load_data("mnist", data_dir=str(prepared))
    records.write_bytes(content[: len(content) // 2])
    with pytest.raises(gpuzoo.GpuzooError, match="damaged"):
        gpuzoo.load_data("mnist", data_dir=str(prepared))


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["{}", "", None])
def test_damaged_tfds_metadata(name, content, prepared):
    path = prepared / "mnist" / "3.0.1" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(gpuzoo.GpuzooError) as caught:
        gpuzoo.load_data("mnist", data_dir=str(prepared))
    assert "\n" not in str(caught.value)


def test_bad_data_dirs(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    for name, message in (
        ("missing", "no such folder"),
        ("empty", "the folder is empty"),
        ("other", "holds no prepared TFDS dataset 'mnist'"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=message):
            gpuzoo.load_data("mnist", data_dir=str(tmp_path / name))


def test_a_cache_that_cannot_be_written_is_told_and_survived(prepared, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    notes = []
    data = gpuzoo.load_data("mnist", data_dir=str(prepared), note=notes.append)
    assert len(data.train["label"]) == 80
    assert len(notes) == 1 and "could not be cached" in notes[0]


@pytest.mark.skipif(REAL_DATA is None, reason="GPUZOO_TEST_DATA names no TFDS folder")
def test_real_mnist_is_mnist(runtime):
    data = gpuzoo.load_data("mnist", data_dir=REAL_DATA)
    # The well-known mean and deviation of the training pixels, 0.1307 and 0.3081.
    pixels = data.train["image"] / np.float32(255)
    assert round(float(pixels.mean()), 4) == 0.1307
    assert round(float(pixels.std()), 4) == 0.3081
    assert np.bincount(data.train["label"]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert np.bincount(data.test["label"]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    assert data.findings == ()


def test_unreadable_data_dir(prepared):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (records,) = pathlib.Path(prepared).glob("mnist/3.0.1/mnist-train.*")
    records.chmod(0)
    with pytest.raises(gpuzoo.GpuzooError, match="cannot be read"):
        gpuzoo.load_data("mnist", data_dir=str(prepared))
