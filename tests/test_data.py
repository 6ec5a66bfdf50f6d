"""Good data become a Dataset; bad data become one clear line."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from small import splits

import gpuzoo
from gpuzoo import randomness
from gpuzoo.data.validate import make_dataset
from gpuzoo.runs import drift
from gpuzoo.runs.record import seal

pytestmark = pytest.mark.usefixtures("own_cache")


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
    "fraction label": (set_value("y_train", 0, 0.5, float), "integers"),
    "nan label": (set_value("y_train", 0, np.nan, float), "integers"),
    "test label": (set_value("y_test", 0, 2), r"test labels: 2 is out of range.*0\.\.1"),
    "huge label": (set_value("y_train", 0, 10**6), "number the classes"),
    "label shape": (lambda a: a.update(y_train=np.zeros((80, 3))), "the shape must be"),
    "label type": (lambda a: a.update(y_train=a["y_train"] * 1j), "integers or names"),
    "label fields": (lambda a: a.update(y_train=np.zeros(80, "i4,i4")), "integers or names"),
    "label names": (lambda a: a.update(y_test=a["y_test"].astype(str)), "write all alike"),
    "no name": (set_value("y_train", 3, " ", str), "train labels: the name at index 3 is"),
    "one-hot": (lambda a: a.update(y_train=np.eye(2)[a["y_train"]],
                                   y_test=np.eye(3)[a["y_test"]]), r"of \[2, 3\] columns"),
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


def test_a_prepared_folder_is_not_named_in_vain(folder, npz, tmp_path):
    for name in ("digits", "tones", "mackey_glass", str(npz), f"{folder}/"):
        with pytest.raises(
            gpuzoo.GpuzooError, match="data_dir is for TFDS datasets, and"
        ):
            gpuzoo.load_data(name, data_dir=str(tmp_path))


def test_sizes_are_not_asked_for_in_vain(folder, npz, tmp_path):
    sounds = tmp_path / "sounds"
    for name in "ab":
        (sounds / name).mkdir(parents=True)
        (sounds / name / "1.wav").write_bytes(b"")
    for name in ("digits", "tones", "mnist", "photo", str(npz), str(sounds)):
        with pytest.raises(gpuzoo.GpuzooError, match="image_size is for a folder of i"):
            gpuzoo.load_data(name, image_size=20)
    for name in ("digits", str(npz), str(folder)):
        with pytest.raises(gpuzoo.GpuzooError, match="audio_seconds is for .* .wav"):
            gpuzoo.load_data(name, audio_seconds=1.0)


def test_examples_without_classes(folder, npz, arrays, tmp_path, cli_here):
    """What needs no label is trained; what needs one says so."""
    (tmp_path / "flat").mkdir(), (tmp_path / "one").mkdir()
    for file in folder.glob("*/*.png"):
        shutil.copy(file, tmp_path / "flat" / f"{file.parent.name}{file.name}")
    shutil.copytree(folder / "cat", tmp_path / "one" / "cat")
    x = arrays["x_train"]
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "same.npz", x=x, y=np.ones(80))
    np.savez(tmp_path / "both.npz", x_train=x, x_test=arrays["x_test"])
    for name, count in (("flat/", 80), ("one/", 40), ("x.npz", 80), ("same.npz", 80),
                        ("both.npz", 120)):  # fmt: skip
        data = gpuzoo.load_data(str(tmp_path / name), note=lambda text: None)
        assert data.classes == () and set(data.train) == set(data.test) == {"image"}
        assert data.count("train") + data.count("test") == count
    words = ("--fast-dev-run", "--batch-size", "16", "--quiet", "--device", "cpu")
    done = cli_here(
        "train", "mnist_autoencoder", "--data", "flat/", *words, "--out", "run"
    )
    assert done.returncode == 0, done.stderr
    assert cli_here("verify", "run").json["verdict"] == "identical"
    done = cli_here("train", "mnist", "--data", "one/", *words)
    assert done.returncode == 2 and "one sub-folder for each class" in done.stderr
    (tmp_path / "sounds" / "a").mkdir(parents=True)
    wavfile.write(tmp_path / "sounds" / "a" / "1.wav", 16_000, np.zeros(99, np.int16))
    with pytest.raises(gpuzoo.GpuzooError, match="one sub-folder of sounds for each"):
        gpuzoo.load_data(f"{tmp_path}/sounds/")


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
        ("X_train", "Y_train", "X_val", "Y_val"),
        ("trainImages", "trainLabels", "valImages", "valLabels"),
        ("training_data", "training_targets", "testing_data", "testing_targets"),
    ],
)
def test_other_names_of_arrays(names, npz, arrays, tmp_path):
    wanted = gpuzoo.load_data(str(npz)).fingerprint
    np.savez(tmp_path / "x.npz", **dict(zip(names, arrays.values(), strict=True)))
    assert gpuzoo.load_data(str(tmp_path / "x.npz")).fingerprint == wanted
    other = dict(zip(names, arrays.values(), strict=True)) | {"x_train": np.zeros(3)}
    np.savez(tmp_path / "x.npz", **other)
    with pytest.raises(gpuzoo.GpuzooError, match="have the same meaning; remove one"):
        gpuzoo.load_data(str(tmp_path / "x.npz"))


def test_true_and_false(npz, arrays):
    for split in ("train", "test"):
        arrays[f"y_{split}"] = arrays[f"y_{split}"] > 0
    np.savez(npz, **arrays)
    assert gpuzoo.load_data(str(npz)).classes == ("False", "True")


def test_every_class_is_in_both_parts(tmp_path, arrays):
    """Where a plain draw would leave one out; elsewhere its bits stay."""
    x = np.repeat(arrays["x_train"], 3, 0)
    labels = np.r_[np.repeat(np.arange(60), 3), [60] * 59, [61]]
    np.savez(tmp_path / "rare.npz", x=x, y=labels)
    data = gpuzoo.load_data(str(tmp_path / "rare.npz"))
    train, test = (
        np.bincount(p["label"], minlength=62) for p in (data.train, data.test)
    )
    assert (test[:60] == 1).all() and (train[:60] == 2).all()
    assert test[60] == 12 and (train[61], test[61]) == (1, 0)
    assert any("'61' has no test example" in found for found in data.findings)
    order = randomness.permutation(80, 0, "hold out")
    np.savez(tmp_path / "even.npz", x=arrays["x_train"], y=arrays["y_train"])
    data = gpuzoo.load_data(str(tmp_path / "even.npz"))
    assert np.array_equal(data.test["label"], arrays["y_train"][order[:16]])


def test_damaged_members_of_an_npz(tmp_path, arrays):
    def member(array):
        content = io.BytesIO()
        np.save(content, array)
        return bytearray(content.getvalue())

    image, names = member(arrays["x_train"]), member(np.array(["cat", "dog"] * 40))
    for place, value, told in (
        (image, 0, "'x' is not an array"),
        (names, -1, "characters"),
    ):
        damaged = bytearray(place)
        damaged[value] ^= 0x7F
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
            file.writestr("x.npy", bytes(damaged if place is image else image))
            file.writestr("y.npy", bytes(damaged if place is names else names))
        with pytest.raises(gpuzoo.GpuzooError, match=told):
            gpuzoo.load_data(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("suffix", ["jfif", "ppm", "tga", "jpg_large", ""])
def test_images_under_every_suffix(suffix, tmp_path):
    for number in range(12):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.{suffix}".rstrip(".")
        path.parent.mkdir(parents=True, exist_ok=True)
        form = suffix.upper() if suffix in ("ppm", "tga") else "JPEG"
        Image.new("RGB", (9, 9), (20 * number, 0, 0)).save(path, form)
    litter = tmp_path / "set" / "__MACOSX" / "a" / "._1.jpg"
    litter.parent.mkdir(parents=True), litter.write_bytes(b"x")
    (tmp_path / "set" / "a" / "Thumbs.db").write_bytes(b"x")
    notes = []
    data = gpuzoo.load_data(f"{tmp_path}/set/", note=notes.append)
    assert data.classes == ("a", "b") and data.count("train") == 10
    assert ["by their content" in note for note in notes] == (
        [True] if suffix in ("jpg_large", "") else []
    )


def test_all_bad_images_are_named_at_once(folder):
    for number in range(7):
        (folder / "cat" / f"bad{number}.png").write_bytes(b"" if number else b"GIF89a")
    with pytest.raises(gpuzoo.GpuzooError) as caught:
        gpuzoo.load_data(str(folder))
    told = str(caught.value)
    assert "7 of 87 images are not readable: cat/bad0.png (" in told
    assert "cat/bad4.png (it is empty) and 2 more" in told and "bad5" not in told
    assert "\n" not in told


def test_image_folder_with_splits(folder, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    (both / "test").symlink_to(folder)
    (both / "train").symlink_to(folder)
    data = gpuzoo.load_data(str(both))
    assert len(data.train["label"]) == len(data.test["label"]) == 80
    assert data.findings == ("80 of 80 test images are also training images",)


def test_one_hot_labels_tell_how_many_classes_there_are(npz, arrays):
    wide = {
        name: np.eye(5)[labels] if name.startswith("y") else labels
        for name, labels in arrays.items()
    }
    np.savez(npz, **wide)
    assert gpuzoo.load_data(str(npz)).classes == ("0", "1", "2", "3", "4")


def test_gray_and_colour_images_mix(folder):
    Image.new("RGB", (14, 14), "red").save(folder / "cat" / "000.png")
    assert gpuzoo.load_data(str(folder)).input_shape == (14, 14, 3)


def test_gray_in_one_split_and_colour_in_the_other_mix(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "both" / split)
    Image.new("RGB", (14, 14), "red").save(tmp_path / "both/test/cat/000.png")
    data = gpuzoo.load_data(str(tmp_path / "both"))
    assert data.train["image"].shape[1:] == data.test["image"].shape[1:] == (14, 14, 3)


def test_images_beside_the_classes_are_not_left_out_without_a_word(folder, capsys):
    Image.new("L", (14, 14)).save(folder / "stray.png")
    assert gpuzoo.load_data(str(folder)).count("train") == 64
    assert (
        "stray.png (1 in all) is ignored: it is not in a sub" in capsys.readouterr().err
    )


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(mode, folder):
    suffix = "png" if mode == "I;16" else "tif"
    Image.new(mode, (14, 14)).save(folder / "cat" / f"wide.{suffix}")
    with pytest.raises(gpuzoo.GpuzooError, match="cat/wide.*more than 8 bits"):
        gpuzoo.load_data(str(folder))


def test_classes_are_part_of_the_data(folder, cli_here):
    """A class without an example moves no pixel, but the number of logits."""
    words = ("--model", "mlp", "--model-options", "units=(4,)", "--batch-size", "16",
             "--device", "cpu", "--quiet")  # fmt: skip
    done = cli_here("train", "mnist", "--data", folder, *words, "--epochs", "1",
               "--out", "done")  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain = gpuzoo.load_data(str(folder))
    record = folder.parent / "done" / "run.json"
    killed = json.loads(record.read_text()) | {"state": "running"}
    for change, told in (
        (lambda: (folder / "cow").mkdir(), "class 'cow' added"),
        (lambda: (folder / "cow").rename(folder / "ape"), "class 'ape' added"),
        (
            lambda: ((folder / "ape").rmdir(), (folder / "dog").rename(folder / "elk")),
            "class 'dog' renamed to 'elk'",
        ),
    ):
        change()
        assert gpuzoo.load_data(str(folder)).fingerprint != plain.fingerprint
        seen = cli_here("verify", "done")
        assert seen.returncode == 2 and seen.json["verdict"] == "cannot compare"
        assert seen.json["causes"][0] == f"data.classes: {told}"
        shutil.copytree(folder.parent / "done", folder.parent / "killed")
        other = folder.parent / "killed" / "run.json"
        other.write_text(json.dumps(killed | {"seal": seal(killed)}))
        before = other.read_bytes()
        seen = cli_here("resume", "killed", "--quiet")
        assert seen.returncode == 2 and f"data.classes: {told}" in seen.stderr
        assert other.read_bytes() == before
        shutil.rmtree(folder.parent / "killed")


def test_classes_in_another_order_are_named():
    record = {"name": "a", "fingerprint": "0", "train_examples": 1, "test_examples": 1,
              "input_shape": [1], "classes": ["cat", "dog", "elk"]}  # fmt: skip
    other = record | {"classes": ["cat", "elk", "dog"]}
    (found,) = drift.data_differences(record, other)
    assert "in another order: class 1 is 'elk', was 'dog'" in str(found)
    other = record | {"classes": list("abcdef")}
    (found,) = drift.data_differences(record, other)
    assert "6 classes added ('a', 'b', 'c', ...) and 3 classes removed" in str(found)


def test_bad_image_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "x.npy", np.zeros((30, 8, 8), np.uint8))
    for name in ("cat", "dog"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    for name, message in (
        ("missing/", "no such folder"),
        ("x.npy", "data 'x.npy': it is a file; expected a .npz or .csv file"),
        ("empty/", "one sub-folder of images"),
        ("bare/", "no images found"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=message):
            gpuzoo.load_data(f"{tmp_path}/{name}")
    Image.new("L", (15, 14)).save(folder / "dog" / "odd.png")
    with pytest.raises(gpuzoo.GpuzooError, match=r"dog/odd.png.*--image-size"):
        gpuzoo.load_data(str(folder))
    (folder / "dog" / "odd.png").write_bytes(b"no image")
    with pytest.raises(gpuzoo.GpuzooError, match="dog/odd.png: not a readable image"):
        gpuzoo.load_data(str(folder))


def test_digits():
    data = gpuzoo.load_data("digits")
    assert data.input_shape == (28, 28, 1) and len(data.classes) == 10
    assert (len(data.train["label"]), len(data.test["label"])) == (1438, 359)
    assert data.fingerprint == gpuzoo.load_data("digits").fingerprint
    assert data.train["image"].max() == 255


def test_the_table_of_digits_is_that_of_scikit_learn():
    from sklearn.datasets import load_digits

    from gpuzoo.data.synthetic import _digits_table

    bunch = load_digits()
    table = _digits_table()
    assert np.array_equal(table, np.column_stack([bunch.data, bunch.target]))
