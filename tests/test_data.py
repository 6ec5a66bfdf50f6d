"""Good data become a Dataset; bad data become one clear line."""

import json
import multiprocessing
import os
import pathlib

import numpy as np
import pytest
from conftest import REAL_DATA
from PIL import Image

import gpuzoo
from gpuzoo.data import cache
from gpuzoo.data.dataset import fingerprint, make_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def splits(arrays):
    return {
        s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]}
        for s in ("train", "test")
    }


# --- arrays -------------------------------------------------------------------------


def test_npz(npz, arrays):
    data = gpuzoo.load_data(str(npz))
    assert data.name == "tiny" and data.classes == ("0", "1")
    assert data.input_shape == (14, 14, 1)
    assert data.train["image"].dtype == np.uint8
    assert data.train["label"].dtype == np.int32
    assert np.array_equal(data.test["image"], arrays["x_test"])
    assert data.findings == ()


def test_equal_pixels_in_another_type_have_the_same_fingerprint(arrays):
    plain = make_dataset("a", "", splits(arrays))
    wide = {k: v.astype(np.int64) for k, v in arrays.items()}
    wide["x_train"], wide["x_test"] = wide["x_train"][..., 0], wide["x_test"][..., 0]
    wide["y_train"] = np.eye(2)[arrays["y_train"]]  # one-hot
    wide["y_test"] = arrays["y_test"][:, None].astype(float)
    assert make_dataset("a", "", splits(wide)).fingerprint == plain.fingerprint


def test_floats_stay_floats(arrays):
    for split in ("train", "test"):
        arrays[f"x_{split}"] = arrays[f"x_{split}"] / 255
    data = make_dataset("a", "", splits(arrays))
    assert data.train["image"].dtype == np.float32


def test_labels_may_be_names(arrays):
    for split in ("train", "test"):
        arrays[f"y_{split}"] = np.array(["cat", "dog"])[arrays[f"y_{split}"]]
    data = make_dataset("a", "", splits(arrays))
    assert data.classes == ("cat", "dog") and set(data.train["label"]) == {0, 1}


def test_without_a_test_split_a_fifth_is_held_out(tmp_path, arrays):
    path = tmp_path / "two.npz"
    np.savez(path, x=arrays["x_train"], y=arrays["y_train"])
    one, two = gpuzoo.load_data(str(path)), gpuzoo.load_data(str(path))
    assert (len(one.train["label"]), len(one.test["label"])) == (64, 16)
    assert one.fingerprint == two.fingerprint


def set_value(key, index, value, dtype=None):
    def change(arrays):
        array = arrays[key].astype(dtype or arrays[key].dtype)
        array[index] = value
        arrays[key] = array

    return change


BAD = {
    "nan": (set_value("x_train", (3, 1, 2, 0), np.nan, float),
            r"train images: nan at index \(3, 1, 2, 0\)"),
    "infinity": (set_value("x_test", (0, 0, 0, 0), np.inf, float), "test images: inf"),
    "range": (set_value("x_train", 0, -5, int), "values from -5 to .* rescale"),
    "fractions": (lambda a: a.update(x_train=a["x_train"] + 0.5), "rescale them"),
    "text": (lambda a: a.update(x_train=a["x_train"].astype(str)), "must be numbers"),
    "shape": (lambda a: a.update(x_train=a["x_train"].reshape(80, -1)), "the shape must"),
    "no examples": (lambda a: a.update(x_train=a["x_train"][:0]), "at least one"),
    "sizes differ": (lambda a: a.update(x_test=a["x_test"][:, 1:]), "make them equal"),
    "types differ": (lambda a: a.update(x_test=a["x_test"] / 255), "make them equal"),
    "counts differ": (lambda a: a.update(y_train=a["y_train"][1:]), "80 train images but 79"),
    "negative": (set_value("y_train", 0, -1), "-1 is negative"),
    "fraction label": (set_value("y_train", 0, 0.5, float), "whole numbers"),
    "nan label": (set_value("y_train", 0, np.nan, float), "whole numbers"),
    "test label": (set_value("y_test", 0, 2), r"test labels: 2 is out of range.*0\.\.1"),
    "huge label": (set_value("y_train", 0, 10**6), "number the classes"),
    "one class": (lambda a: a.update(y_train=a["y_train"] * 0, y_test=a["y_test"] * 0),
                  "only 1 class"),
    "label shape": (lambda a: a.update(y_train=np.zeros((80, 3))), "the shape must be"),
    "label type": (lambda a: a.update(y_train=a["y_train"] * 1j), "whole numbers or names"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused(name, arrays, npz):
    change, message = BAD[name]
    change(arrays)
    np.savez(npz, **arrays)
    with pytest.raises(gpuzoo.GpuzooError, match=message) as caught:
        gpuzoo.load_data(str(npz))
    assert "\n" not in str(caught.value)


def test_oddities_are_reported(arrays):
    arrays["y_train"] = np.where(arrays["y_train"] == 1, 2, 0)
    arrays["y_test"] = np.where(arrays["y_test"] == 1, 2, 0)
    arrays["x_test"][:3] = arrays["x_train"][:3]
    data = make_dataset("a", "", splits(arrays))
    assert data.findings == (
        "class '1' has no train example",
        "class '1' has no test example",
        "3 of 40 test images are also training images",
    )


def test_damaged_npz(npz, tmp_path):
    content = npz.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 0xFF
    (tmp_path / "flip.npz").write_bytes(flipped)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}]), y=np.array([1, 2]))
    np.savez(tmp_path / "names.npz", images=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "scalar.npz", x=np.float32(1), y=np.int32(1))
    bad = np.array([b"\xff\xfe", b"a"] * 6)
    np.savez(tmp_path / "latin.npz", x=np.zeros((12, 4, 4)), y=bad)
    assert gpuzoo.load_data(str(tmp_path / "latin.npz")).classes[0] == "a"
    for name in (
        "array",
        "scalar",
        "cut",
        "flip",
        "empty",
        "text",
        "objects",
        "names",
        "missing",
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=f"data '{name}.npz'"):
            gpuzoo.load_data(str(tmp_path / f"{name}.npz"))


# --- image folders ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, arrays):
    for i, (image, label) in enumerate(
        zip(arrays["x_train"], arrays["y_train"], strict=True)
    ):
        path = tmp_path / "pets" / ("cat", "dog")[label] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    return tmp_path / "pets"


def test_image_folder(folder):
    data = gpuzoo.load_data(str(folder))
    assert data.classes == ("cat", "dog") and data.input_shape == (14, 14, 1)
    assert (len(data.train["label"]), len(data.test["label"])) == (64, 16)
    resized = gpuzoo.load_data(str(folder), image_size=20)
    assert resized.input_shape == (20, 20, 1)


def test_image_folder_with_splits(folder, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    (both / "test").symlink_to(folder)
    (both / "train").symlink_to(folder)
    data = gpuzoo.load_data(str(both))
    assert len(data.train["label"]) == len(data.test["label"]) == 80
    assert data.findings == ("80 of 80 test images are also training images",)


def test_gray_and_colour_images_mix(folder):
    Image.new("RGB", (14, 14), "red").save(folder / "cat" / "000.png")
    assert gpuzoo.load_data(str(folder)).input_shape == (14, 14, 3)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(mode, folder):
    suffix = "png" if mode == "I;16" else "tif"
    Image.new(mode, (14, 14)).save(folder / "cat" / f"wide.{suffix}")
    with pytest.raises(gpuzoo.GpuzooError, match="cat/wide.*more than 8 bits"):
        gpuzoo.load_data(str(folder))


def test_bad_image_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    for name, message in (
        ("missing/", "no such folder"),
        ("empty/", "one sub-folder of images"),
        ("bare/", "no image in it"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=message):
            gpuzoo.load_data(f"{tmp_path}/{name}")
    Image.new("L", (15, 14)).save(folder / "dog" / "odd.png")
    with pytest.raises(gpuzoo.GpuzooError, match=r"dog/odd.png.*--image-size"):
        gpuzoo.load_data(str(folder))
    (folder / "dog" / "odd.png").write_bytes(b"no image")
    with pytest.raises(gpuzoo.GpuzooError, match="dog/odd.png: not a readable image"):
        gpuzoo.load_data(str(folder))


# --- embedded digits, cache, TFDS ---------------------------------------------------


def test_digits():
    data = gpuzoo.load_data("digits")
    assert data.input_shape == (28, 28, 1) and len(data.classes) == 10
    assert (len(data.train["label"]), len(data.test["label"])) == (1438, 359)
    assert data.fingerprint == gpuzoo.load_data("digits").fingerprint
    assert data.train["image"].max() == 255


def test_cache_gives_back_what_was_stored(arrays):
    data = make_dataset("mine", "somewhere", splits(arrays))
    assert cache.load("mine") is None
    cache.store(data, "key")
    for key in ("key", None):
        loaded = cache.load("mine", key)
        assert loaded.as_record() == data.as_record()
        assert fingerprint(loaded.splits) == data.fingerprint
    assert cache.load("mine", "other") is None


@pytest.mark.parametrize("file", ["arrays.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_entry_is_dropped(file, damage, arrays):
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    path = cache.root() / "data" / "mine" / "key" / file
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
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "change",
    [lambda m: [], lambda m: None, lambda m: {**m, "classes": ["0"]},
     lambda m: {**m, "findings": None}, lambda m: {**m, "classes": ["0", "x"]}],
)  # fmt: skip
def test_an_edited_cache_manifest_is_dropped(change, arrays):
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    path = cache.root() / "data" / "mine" / "key" / "manifest.json"
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
    left = list((cache.root() / "data" / "shared").iterdir())
    assert [path.name for path in left] == ["key"]


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
