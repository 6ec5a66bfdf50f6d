"""Boxes of users: every form is taken as it is meant, and what is not clear is refused."""

import json
import os

import numpy as np
import PIL.Image
import pytest
from drawn_boxes import (
    coco,
    examples,
    instances,
    roboflow,
    tables,
    voc,
    xml,
    yolo,
    yolo_split,
)
from drawn_masks import png

import gpuzoo
from gpuzoo.data import box_files, box_forms, boxes, made_boxes, validation

FORMS = {
    "coco": coco,
    "instances": instances,
    "roboflow": roboflow,
    "voc": voc,
    "voc beside": lambda path, *what: voc(path, *what, beside=True),
    "yolo": yolo,
    "yolo inner": yolo_split,
    "yolo outer": lambda path, *what: yolo_split(path, *what, inner=False),
}


def load(path, notes=None, **how):
    note = (lambda text: None) if notes is None else notes.append
    return gpuzoo.load_data(f"{path}/", task="detect", note=note, **how)


def as_set(dataset) -> set:
    """Of every image its pixels, and its boxes with the names of their classes."""
    found = set()
    for part in dataset.splits.values():
        for image, objects in zip(part["image"], part["objects"], strict=True):
            rows = [
                (dataset.classes[int(row[4])], *row[[1, 0, 3, 2]].tolist(), row[5])
                for row in objects
                if row[5]
            ]
            found.add((image.tobytes(), tuple(sorted(rows))))
    return found


@pytest.fixture(scope="module")
def drawn():
    return examples()


def wanted(image, corners, labels, kind=1.0) -> set:
    return {
        (
            one.tobytes(),
            tuple(sorted((("car", "bus")[k], *map(float, b), kind)
                         for b, k in zip(mine, kinds, strict=True))),
        )
        for one, mine, kinds in zip(image, corners, labels, strict=True)
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form, drawn, tmp_path):
    notes = []
    dataset = load(FORMS[form](tmp_path / "street", *drawn), notes)
    assert set(dataset.classes) == {"car", "bus"}
    found, right = as_set(dataset), wanted(*drawn)
    if form.startswith("yolo"):  # fractions
        found, right = (
            {(i, tuple((n, *np.round(s, 4)) for n, *s in rows)) for i, rows in one}
            for one in (found, right)
        )
    assert found == right
    whole = form in ("coco", "voc beside", "yolo")
    assert box_files.is_whole("it", tmp_path / "street") == whole
    assert len(dataset.test["image"]) == (5 if whole else 8)
    assert "24 images of 40x32 pixels with 28 boxes" in notes[-1]
    assert "; 4 images have none" in notes[-1]
    for part in dataset.splits.values():
        assert part["objects"].dtype == np.float32 and part["objects"].shape[1:] == (
            2,
            6,
        )


def test_images_of_several_sizes_and_their_boxes_are_resized(drawn, tmp_path):
    image, corners, labels = drawn
    path = coco(tmp_path / "street", *drawn)
    found = json.loads((path / "boxes.json").read_text())
    with PIL.Image.open(path / "images" / "000.png") as one:
        one.resize((120, 64)).save(path / "images" / "000.png")
    found["images"][0] |= {"height": 64, "width": 120}
    left, top, right, bottom = corners[0][0]
    sides = [3 * left, 2 * top, 3 * (right - left), 2 * (bottom - top)]
    found["annotations"][0]["bbox"] = sides
    (path / "boxes.json").write_text(json.dumps(found))
    with pytest.raises(gpuzoo.GpuzooError, match=r"set one size, e.g. --image-size 64"):
        load(path)
    notes = []
    dataset = load(path, notes, image_size=64)
    assert "24 of 24 images are resized to 64x64, and their boxes" in " ".join(notes)
    rows = np.concatenate([part["objects"] for part in dataset.splits.values()])
    wide = [float(s) for s in (top * 2, left * 1.6, bottom * 2, right * 1.6)]
    assert np.abs(rows[..., :4] - wide).max(axis=-1).min() < 1e-4


def test_arrays_say_the_same(drawn, tmp_path):
    """Ragged lists, with numbers and with names; and what they are saved as."""
    image, corners, labels = drawn
    names = [[("car", "bus")[k] for k in kinds] for kinds in labels]
    for kinds in (labels, names):
        from gpuzoo.data.from_python import as_file

        path = as_file(
            (image, corners, kinds), keep=tmp_path / f"{len(str(kinds))}.npz"
        )
        notes = []
        dataset = gpuzoo.load_data(str(path), note=notes.append)
        named = kinds is names
        assert dataset.classes == (("bus", "car") if named else ("0", "1"))
        if named:
            assert as_set(dataset) == wanted(*drawn)
        assert "with 28 boxes" in notes[-1] and len(dataset.test["image"]) == 5
    part = validation.with_validation(dataset, 0.2, 0)
    assert part.counts == {"train": 15, "val": 4, "test": 5}
    assert part.fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("corners", "labels", "match"),
    [
        ([[[5, 5, 3, 9]]] * 12, [[0]] * 12, r"from x 5 to 3 and y 5 to 9 ends before it"),
        ([[[5, 5, 5, 9]]] * 12, [[0]] * 12, "is empty; remove it"),
        ([[[30, 5, 60, 9]]] * 12, [[0]] * 12, "lies outside of its image of 40x32"),
        ([[[0.1, 0.1, 0.5, 0.9]]] * 12, [[0]] * 12, "they must be in pixels; multiply"),
        ([[[5, 5, np.nan, 9]]] * 12, [[0]] * 12, "is not finite"),
        ([[[5, 5, 9, 9]]] * 12, [[-2]] * 12, "-2 is negative; classes count from 0"),
        ([[[5, 5, 9, 9]]] * 12, [[700]] * 12, "highest is 700, and only 1 values occur"),
        ([[[5, 5, 9, 9]]] * 12, [[0, 1]] * 12, "labels: must be integers"),
        ([[[5, 5, 9, 9]]] * 11, [[0]] * 11, "12 images but boxes of 11"),
        ([[]] * 12, [[]] * 12, "no training image has a box"),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(corners, labels, match, tmp_path):
    from gpuzoo.data.from_python import as_file

    image = np.full((12, 32, 40, 3), 50, np.uint8)
    with pytest.raises(gpuzoo.GpuzooError, match=match):
        path = as_file((image, corners, labels), keep=tmp_path / "a.npz")
        gpuzoo.load_data(str(path))


# --- COCO ------------------------------------------------------------------------------


def change(row: int, table="annotations", **fields):
    return lambda found: found[table][row].update(fields)


COCO = {
    "no number": (change(0, bbox=[1, 2, 3]), "without a bbox of four numbers"),
    "polygon": (lambda f: f["annotations"][0].pop("bbox"), "export boxes, too"),
    "negative": (change(0, bbox=[5, 5, -3, 4]), "has no width or height"),
    "empty": (change(0, bbox=[5, 5, 0, 4]), "has no width or height"),
    "outside": (change(0, bbox=[90, 5, 9, 9]), "lies outside of its image of 40x32"),
    "fractions": (
        lambda f: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in f["annotations"]],
        "all boxes are within 0 to 1, and in this form they are in pixels",
    ),
    "category": (change(0, category_id=4), "category 4, which is not in categories"),
    "image": (change(0, image_id=99), "of the image 99, which is not in images"),
    "crowd": (change(0, iscrowd="no"), "iscrowd must be 0 or 1: 'no'"),
    "same name": (change(1, "categories", name="car"), "'car', is there twice"),
    "same id": (change(1, "categories", id=3), "category 3, 'bus', is there twice"),
    "same image": (change(1, "images", file_name="000.png"), "000.png is there twice"),
    "same image id": (change(1, "images", id=0), "two images have the id 0"),
    "missing": (change(1, "images", file_name="no.png"), "1 of 24 images are missing"),
    "up": (change(1, "images", file_name="../x.png"), "not a path inside of the data"),
    "root": (change(1, "images", file_name="/etc/passwd"), "not a path inside of the"),
    "size": (change(1, "images", height=64, width=80), "of an image of 80x64 pixels"),
    "text": (change(1, "images", file_name="../boxes.json"), "not a path inside of"),
    "lists": (
        lambda f: f.pop("categories"),
        "needs the lists images, annotations, cat",
    ),
}


@pytest.mark.parametrize("fault", COCO)
def test_what_is_refused_of_coco(fault, drawn, tmp_path):
    path, (damage, match) = coco(tmp_path / "street", *drawn), COCO[fault]
    found = json.loads((path / "boxes.json").read_text())
    damage(found)
    (path / "boxes.json").write_text(json.dumps(found))
    with pytest.raises(gpuzoo.GpuzooError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"images": [], "annotations": [', "cannot be read"),
        ('{"images": 3, "annotations": [], "categories": []}', "images is none"),
        (
            '{"images": [], "annotations": [], "categories": [NaN]}',
            "NaN is not a number",
        ),
        ('["images", "annotations"]', "is not COCO's JSON"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
        ("[" * 200_000 + '"images" "annotations"', "cannot be read"),
    ],
)
def test_json_that_is_refused(text, match, drawn, tmp_path):
    path = coco(tmp_path / "street", *drawn)
    (path / "boxes.json").write_text(text)
    with pytest.raises(gpuzoo.GpuzooError, match=match):
        load(path)


def test_crowds_borders_and_doubles(drawn, tmp_path):
    image, corners, labels = drawn
    path, notes = coco(tmp_path / "street", *drawn), []
    found = tables(*drawn)
    first = found["annotations"][0]
    found["annotations"] += [first, first | {"iscrowd": 1, "bbox": [-1, 0, 20, 33.5]}]
    (path / "boxes.json").write_text(json.dumps(found))
    dataset = load(path, notes)
    told = " ".join(notes)
    assert "1 boxes reach beyond the border of their image, by 1.5 pixels" in told
    assert "1 boxes are there twice, and are taken once" in told
    assert "; 1 crowds or difficult objects are left out" in notes[-1]
    rows = np.concatenate([part["objects"] for part in dataset.splits.values()])
    assert rows[rows[..., 5] == boxes.IGNORED].tolist() == [[0, 0, 32, 19, 0, -1]]
    assert (rows[..., 5] == boxes.OBJECT).sum() == 28


def turned(path, size):
    """An image whose EXIF data turn it by 90 degrees; `size`: of its pixels."""
    image = PIL.Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


@pytest.mark.parametrize(("size", "good"), [((32, 40), True), ((40, 32), False)])
def test_turned_images(size, good, drawn, tmp_path):
    """Boxes of the upright image are told by the size that the file states."""
    path = coco(tmp_path / "street", *drawn)
    turned(path / "images" / "000.png", size)
    if good:
        assert load(path).input_shape == (32, 40, 3)
    else:
        with pytest.raises(gpuzoo.GpuzooError, match="is turned by its EXIF data"):
            load(path, image_size=32)
    path = yolo(tmp_path / "other", *drawn)
    turned(path / "images" / "000.png", size)
    with pytest.raises(gpuzoo.GpuzooError, match="save the image upright"):
        load(path, image_size=32)


# --- YOLO ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", "000.txt, line 2: six numbers, and labels have five"),
        ("0 0.5 0.5 0.2", "4 numbers, and there must be five"),
        ("0 20 16 8 8", "20 is not from 0 to 1; divide x and width by the width"),
        ("0 0.5 0.5 -0.2 0.2", "-0.2 is not from 0 to 1"),
        ("0 0.5 0.5 nan 0.2", "nan is not from 0 to 1"),
        ("0 0.5 0.5 0 0.2", "no width or height; remove the line"),
        ("car 0.5 0.5 0.2 0.2", "is not numbers: class x y width height"),
        ("0.5 0.5 0.5 0.2 0.2", "the class 0.5 is not an integer, 0 or more"),
        ("2 0.5 0.5 0.2 0.2", "the class 2, and there are names for 2, from 0 on"),
        ("0 0.0 0.5 0.2 0.2", ""),  # half of it is inside
        ("0 0.0 0.0 0.2 0.2", "lies outside of its image"),
    ],
)
def test_lines_of_yolo(line, match, drawn, tmp_path):
    path = yolo(tmp_path / "street", *drawn)
    with open(path / "labels" / "000.txt", "a") as file:
        file.write(f"{line}\n")
    if not match:
        assert load(path)
        return
    with pytest.raises(gpuzoo.GpuzooError, match=match):
        load(path)


def test_polygons_names_and_images_without_a_file(drawn, tmp_path):
    path, notes = yolo(tmp_path / "street", *drawn), []
    with open(path / "labels" / "000.txt", "a") as file:
        file.write("1 0.25 0.25 0.5 0.25 0.5 0.75\n")
    load(path, notes)
    told = " ".join(notes)
    assert "1 polygons are taken as the boxes around them" in told
    assert "4 of 24 images have no .txt: without objects" in told
    (path / "data.yaml").unlink()
    assert load(path).classes == ("0", "1")
    (path / "classes.txt").write_text("car\nbus\n")
    assert load(path).classes == ("car", "bus")
    (path / "data.yaml").write_text("names: [bus, car]\n")
    with pytest.raises(gpuzoo.GpuzooError, match="name different classes; keep one"):
        load(path)
    (path / "classes.txt").unlink()
    (path / "labels" / "lost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(gpuzoo.GpuzooError, match="1 .txt files without an image: lost"):
        load(path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: ['a b', \"c\"]  # two\nnc: 2", ["a b", "c"]),
        ("path: x\nnames:\n  0: car\n  1: 'it''s'\nval: y", ["car", "it's"]),
        ("names:\n- car\n- bus # big\n", ["car", "bus"]),
        ("names: {0: car, 1: bus}", ["car", "bus"]),
        ("names: [car,\n  bus,\n]\nnc: 2", ["car", "bus"]),
        ("names: [\u81ea\u884c\u8f66]", ["\u81ea\u884c\u8f66"]),
        ("nc: 2", None),
        ("names: &x [a]", None),
        ("names: [a, a]", None),
        ("names:\n  1: a\n", None),
        ("names: [a, [b]]", None),
        ('names: ["a\\n"]', None),
        ("names: x.txt", None),
    ],
)
def test_names_of_yaml(text, names, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    if names is None:
        with pytest.raises(gpuzoo.GpuzooError, match="names|must name"):
            box_forms.yolo_names("it", [tmp_path])
    else:
        assert box_forms.yolo_names("it", [tmp_path]) == names


# --- Pascal VOC ------------------------------------------------------------------------

BOMB = '<!DOCTYPE a [<!ENTITY b "boom">]><annotation>&b;</annotation>'
PARTS = "<object><name>car</name><part><bndbox/></part></object>"
TURNED = "<object><name>car</name><robndbox/></object>"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, "has a DOCTYPE, which is not read"),
        (BOMB.encode("utf-16"), "has a DOCTYPE, which is not read"),
        ("<annotation>", "it is not readable XML"),
        ("<html></html>", "it is <html>, not <annotation>"),
        (xml("a", (32, 40), [], [], extra=PARTS), "an object 'car' has no bndbox"),
        (xml("a", (32, 40), [], [], extra=TURNED), "export upright boxes"),
        (xml("a", (32, 40), [[9, 3, 4, 8]], [0]), "'car' ends before it begins"),
        (xml("a", (32, 40), [[1, 3, "x", 8]], [0]), "xmax must be a number"),
        (xml("a", (64, 80), [[1, 3, 4, 8]], [0]), "of an image of 80x64 pixels"),
    ],
)
def test_xml_that_is_refused(text, match, drawn, tmp_path):
    path = voc(tmp_path / "street", *drawn)
    content = text if isinstance(text, bytes) else text.encode()
    (path / "Annotations" / "000.xml").write_bytes(content)
    with pytest.raises(gpuzoo.GpuzooError, match=f"000.xml: .*{match}"):
        load(path)


def test_voc_from_zero_and_difficult(drawn, tmp_path):
    path, notes = voc(tmp_path / "street", *drawn, beside=True), []
    text = xml("000.png", (32, 40), [[0, 2, 9, 8]], [1], first=0)
    hard = text.replace("<difficult>0", "<difficult>1")
    (path / "000.xml").write_text(hard)
    dataset = load(path, notes)
    assert "sides are read as edges from 0 on" in " ".join(notes)
    rows = np.concatenate([part["objects"] for part in dataset.splits.values()])
    hard = rows[rows[..., 5] == boxes.IGNORED].tolist()
    assert hard == [[2, 0, 8, 9, dataset.classes.index("bus"), -1]]


# --- folders ---------------------------------------------------------------------------


def test_links_pipes_and_other_folders(drawn, tmp_path):
    path = coco(tmp_path / "street", *drawn)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(png(drawn[0][0]))
    (path / "images" / "far").symlink_to(tmp_path / "far")
    found = tables(*drawn)
    found["images"][0]["file_name"] = "far/a.png"
    (path / "boxes.json").write_text(json.dumps(found))
    with pytest.raises(gpuzoo.GpuzooError, match="leads over a link to a folder"):
        load(path)
    found["images"][0]["file_name"] = "pipe.png"
    (path / "boxes.json").write_text(json.dumps(found))
    os.mkfifo(path / "images" / "pipe.png")
    with pytest.raises(gpuzoo.GpuzooError, match="pipe.png"):
        load(path)
    # A folder with a class in each sub-folder stays one to compose scenes of.
    for name in ("car", "bus"):
        for number in range(6):
            (tmp_path / "plain" / name).mkdir(parents=True, exist_ok=True)
            file = tmp_path / "plain" / name / f"{number}.png"
            file.write_bytes(png(drawn[0][number + 6 * (name == "bus")]))
    (tmp_path / "plain" / "notes.json").write_text("{}")
    assert set(load(tmp_path / "plain").train) == {"image", "label"}


def test_a_class_that_only_test_images_have(drawn, tmp_path):
    path = roboflow(tmp_path / "street", *drawn)
    file = path / "valid" / "_annotations.coco.json"
    found = json.loads(file.read_text())
    found["categories"].append({"id": 50, "name": "tram"})
    found["annotations"][0]["category_id"] = 50
    file.write_text(json.dumps(found))
    with pytest.raises(gpuzoo.GpuzooError, match="test boxes have the class 'tram'"):
        load(path)


def test_made_boxes_are_around_what_can_be_seen(monkeypatch):
    monkeypatch.setattr(made_boxes, "COUNTS", {"train": 60, "test": 40})
    dataset = made_boxes.textured_shapes()
    digest = dataset.fingerprint
    assert digest == made_boxes.textured_shapes().fingerprint
    inks, objects = made_boxes._placed(60, ("train", 0))
    assert (dataset.train["objects"] == objects).all()
    for index, rows in enumerate(objects):
        seen = np.any([ink[index] for ink in inks], axis=0)
        inside = np.zeros_like(seen)
        for top, left, bottom, right, _, kind in rows.astype(int):
            assert kind in (0, 1)
            part = (slice(top, bottom), slice(left, right))
            assert not kind or not inside[part].any()  # they do not overlap
            inside[part] = True
            lines = seen[part]
            if kind:
                assert lines[0].any() and lines[-1].any()
                assert lines[:, 0].any() and lines[:, -1].any()
        assert (seen <= inside).all() and seen.any()
    sides = (objects[..., 2:4] - objects[..., :2])[objects[..., 5] > 0]
    assert sides.min() >= 7 and sides.max() > 25
