"""Masks as users have them: each form is taken as meant, or refused in one line."""

import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest
from drawn_masks import examples, few_bits, folder, png

import gpuzoo
from gpuzoo.data import made_masks, mask_classes, mask_files, masks

pytestmark = pytest.mark.usefixtures("own_cache")
COLOURS = np.array([[0, 0, 0], [250, 10, 10], [10, 250, 10]], np.uint8)
VOC = masks.palette()


def load(path, **how):
    said = []
    data = gpuzoo.load_data(f"{path}/", note=said.append, **how)
    return data, said


def refused(path, match, **how):
    with pytest.raises(gpuzoo.GpuzooError, match=match) as caught:
        load(path, **how)
    assert "\n" not in str(caught.value)


def in_palette(palette):
    return lambda mask: png(mask, palette=palette.ravel())


def one_by_one(path, draw):
    """All masks again, each drawn by its place."""
    _, mask = examples()
    for index, labels in enumerate(mask):
        (path / "masks" / f"{index:03d}.png").write_bytes(draw(index, labels))


@pytest.fixture
def street(tmp_path):
    return folder(tmp_path / "street", *examples())


# --- forms that are taken --------------------------------------------------------------


def test_a_palette_as_of_pascal_voc():
    """Its first colours, and that of pixels to be ignored."""
    wanted = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert VOC[:5].tolist() == [list(one) for one in wanted]
    assert (
        VOC[masks.VOID].tolist() == [224, 224, 192]
        and len(np.unique(VOC, axis=0)) == 256
    )


FORMS = {
    "grey": png,
    "palette": in_palette(VOC),
    "palette of two colours alike": in_palette(np.zeros((3, 3), np.uint8)),
    "2 bits": lambda mask: few_bits(mask, 2),
    "4 bits": lambda mask: few_bits(mask, 4),
    "16 bits": lambda mask: png(mask.astype(np.uint16)),
    "grey saved as colours": lambda mask: png(np.repeat(mask[..., None], 3, axis=2)),
    "opaque": lambda mask: png(
        np.stack([mask, np.full_like(mask, 255)], axis=-1), "LA"
    ),
    "colours": lambda mask: png(COLOURS[[0, 2, 1]][mask]),  # #000000 #0afa0a #fa0a0a
    "colours, opaque": lambda mask: png(
        np.concatenate([COLOURS[[0, 2, 1]][mask], 0 * mask[..., None] + 255], axis=2)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_masks(form, tmp_path):
    """All of them hold the same classes, and a fifth is for testing."""
    image, mask = examples()
    data, said = load(folder(tmp_path / "street", image, mask, FORMS[form]))
    order = {row.tobytes(): index for index, row in enumerate(image)}
    for split, count in (("train", 19), ("test", 5)):
        part = data.splits[split]
        places = [order[row.tobytes()] for row in part["image"]]
        assert len(places) == count and np.array_equal(part["mask"], mask[places])
        assert part["mask"].dtype == np.uint8
    names = (
        ("#000000", "#0afa0a", "#fa0a0a") if "#" in data.classes[0] else ("0", "1", "2")
    )
    assert data.classes == names and data.findings == ()
    assert (
        "24 images of 16x20 pixels with masks" in said[-1] and "3 classes" in said[-1]
    )


def test_one_bit_is_two_classes(tmp_path):
    image, mask = examples(classes=2)
    for draw in (lambda m: few_bits(m, 1), lambda m: png(m.astype(bool))):
        data, _ = load(folder(tmp_path / "street", image, mask, draw))
        assert data.classes == ("0", "1") and data.test["mask"].max() == 1
        shutil.rmtree(tmp_path / "street")


def test_what_is_to_be_ignored(tmp_path):
    image, mask = examples()
    mask[:, 0], (void,) = masks.VOID, VOC[[masks.VOID]]
    for draw in (png, in_palette(VOC), lambda m: png(VOC[m])):
        data, said = load(folder(tmp_path / "street", image, mask, draw))
        assert (data.test["mask"][:, 0] == masks.VOID).all() and len(data.classes) == 3
        assert "5.00% of the pixels are ignored (255)" in said[-1]
        shutil.rmtree(tmp_path / "street")
    assert void.tolist() == [224, 224, 192]


@pytest.mark.parametrize("file", mask_classes.NAMES)
def test_names_of_the_classes(file, street):
    wanted = load(street)[0].fingerprint
    (street / file).write_text("sky\r\n  tall house \r\n東京\r\n\r\n", "utf-8-sig")
    data, said = load(street)
    assert data.classes == ("sky", "tall house", "東京") and "tall house" in said[-1]
    assert data.fingerprint != wanted
    (street / file).write_text("sky\nhouse\nvoid\n")
    data, _ = load(street)
    assert data.classes == ("sky", "house")
    assert set(np.unique(data.train["mask"])) == {0, 1, masks.VOID}


@pytest.mark.parametrize(
    "draw",
    [lambda m: png(COLOURS[m]), in_palette(COLOURS),
     lambda m: png(np.uint8([0, 255, 7])[m])],
)  # fmt: skip
def test_colours_by_name(draw, tmp_path):
    image, mask = examples()
    street, grey = folder(tmp_path / "street", image, mask, draw), draw(mask[0])
    grey = PIL.Image.open(io.BytesIO(grey)).mode == "L"
    colours = [(255,) * 3, (7,) * 3, (0,) * 3] if grey else COLOURS[[1, 2, 0]].tolist()
    lines = [
        f"{n},{','.join(map(str, c))}" for n, c in zip("abc", colours, strict=True)
    ]
    (street / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]))
    data, said = load(street)
    assert data.classes == ("a", "b", "c") and "colours of classes.csv" in said[-1]
    counts = masks.pixels_of(data.train["mask"]).sum(axis=0)
    assert counts[2] > counts[0] > 0 and counts[3:].sum() == 0
    (street / "classes.csv").write_text("\n".join([*lines[:2], "other,1,2,3"]))
    refused(street, "the colour #000000 is not in classes.csv; add name,r,g,b")
    (street / "classes.csv").write_text(
        "\n".join([*lines[:2], lines[2].replace("c", "Void", 1)])
    )
    data, _ = load(street)
    assert data.classes == ("a", "b") and (data.test["mask"] == masks.VOID).any()


def test_folders_for_training_and_testing(tmp_path):
    image, mask = examples()
    for split, rows in (
        ("Training", slice(12)),
        ("val", slice(12, 18)),
        ("test", slice(18, 24)),
    ):
        folder(tmp_path / "street" / split, image[rows], mask[rows])
    data, _ = load(tmp_path / "street")
    assert data.counts == {"train": 12, "val": 6, "test": 6}
    assert np.array_equal(data.splits["val"]["mask"], mask[12:18])
    shutil.rmtree(tmp_path / "street" / "test" / "masks")
    refused(
        tmp_path / "street", "test/: for segmentation it needs the folders images/ and"
    )


def test_other_files_and_folders_below(street):
    for name in ("images", "masks"):
        (street / name / "a b").mkdir()
        file = street / name / "003.png"
        file.rename(street / name / "a b" / "003.png")
        (street / name / "Thumbs.db").write_text("")
        (street / name / "notes.md").write_text("")
    (street / "elsewhere").mkdir()
    data, said = load(street)
    assert sum(data.counts.values()) == 24
    assert [
        line for line in said if "1 files in masks/ are ignored by suffix: .md" in line
    ]


def test_sizes_are_made_one_for_image_and_mask(tmp_path):
    """An image whose pixels are its mask stays so: each pixel of the mask is that of
    the same place."""
    rng, street = np.random.default_rng(0), tmp_path / "street"
    for index in range(12):
        size = (8 * rng.integers(3, 9), 8 * rng.integers(3, 9))
        mask = np.kron(
            rng.integers(0, 2, (4, 4)), np.ones((size[0] // 4, size[1] // 4))
        )
        one = folder(
            tmp_path / str(index),
            [mask.astype(np.uint8) * 200],
            [mask.astype(np.uint8)],
        )
        for name in ("images", "masks"):
            (street / name).mkdir(parents=True, exist_ok=True)
            (one / name / "000.png").rename(street / name / f"{index}.png")
    refused(street, "set one size, e.g. --image-size 64")
    data, said = load(street, image_size=32)
    assert data.input_shape == (32, 32, 1)
    assert (
        "images are resized to 32x32, and their masks to the nearest pixel" in said[0]
    )
    for part in data.splits.values():
        lighter = part["image"][..., 0] > 100
        assert (lighter != part["mask"]).mean() < 0.02  # the middle of an edge


# --- what is refused -------------------------------------------------------------------


def test_files_that_lack_the_other_are_named_together(street):
    for name in ("004", "007"):
        (street / "masks" / f"{name}.png").unlink()
    (street / "images" / "011.png").unlink()
    refused(
        street, "2 images without a mask: 004, 007; 1 masks without an image: 011; give"
    )
    for name in range(12, 20):
        (street / "masks" / f"0{name}.png").unlink()
    refused(
        street, "10 images without a mask: 004, 007, 012, 013, 014 and 5 more; 1 masks"
    )


def test_a_lossy_mask(street):
    file = street / "masks" / "002.png"
    PIL.Image.open(file).save(street / "masks" / "002.jpg")
    refused(
        street, "002.jpg and 002.png in masks/ have the same name|002.png and 002.jpg"
    )
    file.unlink()
    refused(
        street, "masks/002.jpg: it is a JPEG file, which changes the values of pixels"
    )
    (street / "masks" / "002.jpg").rename(file)  # by its content, too
    refused(street, "masks/002.png: it is a JPEG file")
    image = PIL.Image.new("L", (16, 20))
    image.save(file, "bmp")
    refused(street, "masks are PNG files, and this is another format; convert it")


def test_masks_of_another_size_or_orientation(street):
    one, other = street / "masks" / "002.png", street / "masks" / "005.png"
    one.write_bytes(png(np.zeros((16, 20), np.uint8)))
    refused(
        street,
        "masks/002.png: it is 20x16 pixels, and its image 16x20; make them equal",
    )
    other.write_bytes(png(np.zeros((40, 32), np.uint8)))
    refused(
        street,
        r"2 of 24 masks are not readable: masks/002.png \(it is 20x16.*masks/005",
    )
    image = PIL.Image.open(street / "images" / "009.png")
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(street / "images" / "009.png", exif=exif)
    for file in (one, other):
        file.write_bytes(png(np.zeros((20, 16), np.uint8)))
    refused(street, "masks/009.png: its image is turned by its EXIF data")


def test_pixels_that_are_no_classes(street):
    clear = np.zeros((20, 16, 4), np.uint8)
    for content, match in (
        (png(clear), "transparent pixels"),
        (
            png(np.full((20, 16), 300, np.uint16)),
            "values up to 300; classes are 0 to 254",
        ),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "masks/002.png: .*"),
        (png(np.zeros((20, 16), np.uint8))[:60], "masks/002.png: .*"),
        (b"", "masks/002.png: masks are PNG files"),
    ):
        (street / "masks" / "002.png").write_bytes(content)
        refused(street, match)


def test_palettes_that_number_their_colours_anew(street):
    """As a program that chooses the palette of each file writes them."""
    other = VOC.copy()
    other[[1, 2]] = other[[2, 1]]
    one_by_one(
        street, lambda n, mask: png(mask, palette=(other if n == 5 else VOC).ravel())
    )
    refused(
        street,
        "number 2 is #008000 in the palette of masks/001.png and #800000 in that of masks/005",
    )
    one_by_one(
        street, lambda n, mask: png(mask, palette=VOC.ravel()) if n else png(VOC[mask])
    )
    refused(street, "masks/000.png holds colours and masks/001.png numbers of classes")


def test_colours_of_smooth_edges(street):
    rng = np.random.default_rng(0)
    one_by_one(street, lambda n, mask: png(rng.integers(0, 255, (20, 16, 3), np.uint8)))
    refused(street, "more than 64 colours; each colour is a class")


def test_numbers_of_smooth_edges(street):
    """As of a JPEG that was converted."""
    rng = np.random.default_rng(0)
    one_by_one(street, lambda n, mask: png(rng.integers(0, 200, (20, 16), np.uint8)))
    refused(
        street, "200 different values in the masks; each is a class, and smooth edges"
    )
    names = "\n".join(f"class {number}" for number in range(200))
    (street / "classes.txt").write_text(names)
    assert len(load(street)[0].classes) == 200


def test_classes_that_are_missing_or_alone(tmp_path, street):
    for draw, match in (
        (lambda n, m: png(0 * m), "the training masks have only class 0; at least two"),
        (
            lambda n, m: png(255 * (m > 0)),
            "the masks hold only 0 and 255, and 255 stands for",
        ),
        (lambda n, m: png(0 * m + 255), "all pixels of the|have no class"),
        (
            lambda n, m: png(60 * m + 1),
            r"highest class of the training masks is 121, and only 3",
        ),
    ):
        one_by_one(street, draw)
        refused(street, match)
    (street / "classes.txt").write_text("sky\nhouse\n")
    one_by_one(street, lambda n, m: png(m))
    refused(street, "the class 2, and classes.txt names 2, from 0 on; add its name")
    image, mask = examples()
    only = folder(tmp_path / "only" / "test", image[:4], mask[:4]).parent
    folder(only / "train", image[4:], mask[4:] > 0)
    refused(only, "test masks have the class 2, and no training mask has it; move")
    shutil.rmtree(only)
    folder(only / "test", image[:4], mask[:4], lambda m: png(COLOURS[m]))
    folder(only / "train", image[4:], mask[4:] > 0, lambda m: png(COLOURS[m * 1]))
    refused(only, "the colour #0afa0a is in test/masks/001.png and in no training mask")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("sky\nsky\n1\n", "classes.txt has the class 'sky' twice"),
        ("sky\n", "names 1 classes; from 2 to 254"),
        (
            "sky,1,2\nhouse,3,4\n",
            "each line must be the name of a class, or name,r,g,b",
        ),
        ("sky\nhouse,3,4,5\n", "in all lines alike"),
        ("sky,1,2,3\nhouse,1,2,3\n", "has the colour #010203 twice"),
        ("sky,1,2,3\nhouse,3,4,256\n", "house,3,4,256: r, g and b must be in 0..255"),
        ("a\n\nb\n", "each line must be the name of a class"),
        ("\xe4\nb\n", "cannot be read: 'utf-8' codec"),
    ],
)
def test_names_that_cannot_be_understood(text, match, street):
    (street / "classes.txt").write_text(text, "latin-1")
    refused(street, match)


def test_two_lists_of_names(street):
    for name in mask_classes.NAMES:
        (street / name).write_text("a\nb\nc\n")
    refused(street, "classes.txt and classes.csv: keep one")


def test_a_folder_without_masks_is_refused_for_segmentation(tmp_path, street):
    shutil.rmtree(street / "masks")
    refused(
        street,
        "it needs the folders images/ and masks/, with a PNG mask",
        task="segment",
    )
    (street / "annotations.json").write_text("{}")
    refused(
        street,
        r"annotations in .json \(COCO\) are not read: write a mask",
        task="segment",
    )


# --- arrays ----------------------------------------------------------------------------


def saved(path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "f2", "u2"])
def test_arrays_of_masks(dtype, npz):
    image, mask = examples()
    mask[3, 2] = masks.VOID
    wanted = {
        "x_train": image[:18],
        "y_train": mask[:18],
        "x_test": image[18:],
        "y_test": mask[18:],
    }
    given = {k: a.astype(dtype) if k[0] == "y" else a for k, a in wanted.items()}
    one = gpuzoo.load_data(saved(npz, **given))
    given = {k: a[..., None] if k[0] == "y" else a for k, a in wanted.items()}
    other = gpuzoo.load_data(saved(npz, **given))
    assert one.fingerprint == other.fingerprint and one.classes == ("0", "1", "2")
    assert np.array_equal(one.train["mask"], mask[:18])


def test_arrays_without_a_part_for_testing(npz):
    image, mask = examples()
    mask[7] = 3 * (mask[7] > 0)  # the only mask of this class is for training
    data = gpuzoo.load_data(saved(npz, x=image, y=mask))
    assert data.counts == {"train": 19, "test": 5} and (data.train["mask"] == 3).any()
    part = gpuzoo.load_data(saved(npz, x=image, y=mask), validation=0.2)
    assert (
        part.counts == {"train": 15, "val": 4, "test": 5}
        and (part.train["mask"] == 3).any()
    )
    assert part.fingerprint == data.fingerprint
    one_hot = np.eye(4)[mask]
    assert (
        gpuzoo.load_data(saved(npz, x=image, y=one_hot)).fingerprint == data.fingerprint
    )
    two = gpuzoo.load_data(saved(npz, x=image, y=mask > 0))
    assert two.classes == ("0", "1")


IMAGE, MASK = examples()


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (
            MASK / 2,
            r"0.5 at index \(0, .*\) is not a class; .*take y > 0.5 of probabilities",
        ),
        (np.where(MASK == 1, np.nan, MASK), "nan at index .* is not a class"),
        (MASK.astype(int) - 1, r"-1 is negative; .*np.where\(y < 0, 255, y\)"),
        (MASK.astype(int) * 200, "400 is too large; classes are 0 to 254"),
        (np.uint8(MASK > 0) * 255, "hold only 0 and 255.*write 0 and 1: y // 255"),
        (0 * MASK, "only class 0; at least two are needed"),
        (MASK[:20], "24 images but 20 masks"),
        (
            MASK[:, :10],
            r"the shape is \(\d+, 10, 16\).*give every image a mask of its size",
        ),
        (np.eye(3)[MASK] / 2, "does not hold one 1 and otherwise 0"),
        (MASK.astype(str), "must be integers, the class of each pixel"),
        (MASK[None], "the shape is"),
    ],
)
def test_arrays_that_are_no_masks(y, match, npz):
    with pytest.raises(gpuzoo.GpuzooError, match=match):
        gpuzoo.load_data(saved(npz, x=IMAGE, y=y))


def test_a_class_that_only_the_test_masks_have(npz):
    arrays = {
        "x_train": IMAGE,
        "y_train": MASK > 1,
        "x_test": IMAGE[:4],
        "y_test": MASK[:4],
    }
    with pytest.raises(
        gpuzoo.GpuzooError, match="test masks have the class 2, and no training"
    ):
        gpuzoo.load_data(saved(npz, **arrays))
    arrays["y_test"] = 0 * MASK[:4] + 255
    with pytest.raises(
        gpuzoo.GpuzooError, match="all pixels of the test masks are 255"
    ):
        gpuzoo.load_data(saved(npz, **arrays))


def test_examples_of_an_iterable_with_masks(tmp_path):
    """Single ones and batches give the same."""
    from gpuzoo.data.from_python import as_file

    pairs = list(zip(IMAGE, MASK, strict=True))
    batches = [(IMAGE[i : i + 8], MASK[i : i + 8]) for i in (0, 8, 16)]
    names = {
        as_file(given).name for given in ((IMAGE, MASK), iter(pairs), iter(batches))
    }
    assert len(names) == 1


def test_the_wrong_task_is_told(street, cli_here):
    done = cli_here("train", "mnist", "--data", f"{street}/", "--batch-size", "8")
    assert done.returncode == 2 and "use the task segment" in done.stderr
    done = cli_here("train", "segmentation", "--data", "digits", "--fast-dev-run")
    assert (
        done.returncode == 2 and "give a folder with images/ and masks/" in done.stderr
    )


# --- made here -------------------------------------------------------------------------


def test_digits_on_textures(monkeypatch):
    monkeypatch.setattr(made_masks, "COUNTS", {"train": 200, "test": 20})
    data = made_masks.textured_digits()
    assert data.input_shape == (64, 64, 3) and data.classes == made_masks.CLASSES
    again = made_masks.textured_digits()
    assert again.fingerprint == data.fingerprint
    found = masks.pixels_of(data.train["mask"])
    assert (found[:, 1:11].sum(axis=0) > 0).all() and found[:, 11:].sum() == 0
    assert 1 <= (found[:, 1:] > 0).sum(axis=1).min()
    for image, mask in zip(data.test["image"], data.test["mask"], strict=True):
        both = [image[mask == 0].mean(axis=0), image[mask > 0].mean(axis=0)]
        assert np.abs(both[0] - both[1]).max() > 40  # a digit can be seen


def test_a_mask_is_written_as_it_is_read():
    image, mask = examples()
    mask[:, 0] = masks.VOID
    for one in mask:
        content = masks.png(one)
        assert np.array_equal(mask_files.read_mask(content).values, one)
        assert PIL.Image.open(io.BytesIO(content)).mode == "P"
    told = json.loads(json.dumps(masks.areas(mask[0][1:], ("a", "b", "c"))))
    assert [one["class"] for one in told] == ["a", "b"] and told[1]["pixels"] == 64
