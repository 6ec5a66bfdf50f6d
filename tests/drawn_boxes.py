"""Small images with boxes that tests train on and damage: bright rectangles on dark, in
every form of files."""

import json

import numpy as np
from drawn_masks import png

CLASSES = ("car", "bus")


def examples(count=24, height=32, width=40, seed=0):
    """Images (count, height, width, 3) with one or two rectangles, none in every sixth;
    of each their boxes (left, top, right, bottom), and their classes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (count, height, width, 3), np.uint8)
    boxes, labels = [], []
    for index in range(count):
        mine, kinds = [], []
        for half in range(0 if index % 6 == 5 else 1 + index % 2):
            tall, wide = rng.integers(6, 14, 2)
            left = half * width // 2 + rng.integers(1, width // 2 - wide - 1)
            top, kind = rng.integers(1, height - tall - 1), (index + half) % 2
            image[index, top : top + tall, left : left + wide, kind] += 150
            mine.append([int(n) for n in (left, top, left + wide, top + tall)])
            kinds.append(kind)
        boxes.append(mine)
        labels.append(kinds)
    return image, boxes, labels


def write_images(place, image, suffix=".png"):
    place.mkdir(parents=True, exist_ok=True)
    names = [f"{index:03d}{suffix}" for index in range(len(image))]
    for name, pixels in zip(names, image, strict=True):
        (place / name).write_bytes(png(pixels))
    return names


def tables(image, boxes, labels, classes=CLASSES, first=3) -> dict:
    """The lists of COCO's JSON, with gaps in the ids of its categories."""
    height, width = image.shape[1:3]
    found = {"images": [], "annotations": [], "categories": []}
    for index, (mine, kinds) in enumerate(zip(boxes, labels, strict=True)):
        found["images"].append(
            {"id": index, "file_name": f"{index:03d}.png", "height": height, "width": width}
        )  # fmt: skip
        for (left, top, right, bottom), kind in zip(mine, kinds, strict=True):
            found["annotations"].append(
                {"id": len(found["annotations"]), "image_id": index,
                 "category_id": first + 7 * kind, "iscrowd": 0,
                 "bbox": [left, top, right - left, bottom - top]}
            )  # fmt: skip
    names = enumerate(classes)
    found["categories"] = [{"id": first + 7 * k, "name": n} for k, n in names]
    return found


def coco(path, image, boxes, labels, **how):
    """images/ and a .json beside it."""
    write_images(path / "images", image)
    (path / "boxes.json").write_text(json.dumps(tables(image, boxes, labels, **how)))
    return path


def roboflow(path, image, boxes, labels):
    """train/ and valid/, each with its images and its .json."""
    half = 2 * len(image) // 3
    for name, part in (("train", slice(half)), ("valid", slice(half, None))):
        write_images(path / name, image[part])
        found = tables(image[part], boxes[part], labels[part])
        found["categories"].insert(
            0, {"id": 0, "name": "cars", "supercategory": "none"}
        )
        for row in found["categories"][1:]:
            row["supercategory"] = "cars"
        (path / name / "_annotations.coco.json").write_text(json.dumps(found))
    return path


def instances(path, image, boxes, labels):
    """annotations/instances_train2017.json, and the images in train2017/."""
    (path / "annotations").mkdir(parents=True)
    half = 2 * len(image) // 3
    for name, part in (("train2017", slice(half)), ("val2017", slice(half, None))):
        write_images(path / name, image[part])
        text = json.dumps(tables(image[part], boxes[part], labels[part]))
        (path / "annotations" / f"instances_{name}.json").write_text(text)
    (path / "annotations" / "captions_train2017.json").write_text("{}")
    return path


def yolo(path, image, boxes, labels, pictures="images", texts="labels"):
    """images/ and labels/, with the names in data.yaml above them."""
    write_images(path / pictures, image)
    (path / texts).mkdir(parents=True, exist_ok=True)
    height, width = image.shape[1:3]
    for index, (mine, kinds) in enumerate(zip(boxes, labels, strict=True)):
        lines = []
        for (left, top, right, bottom), kind in zip(mine, kinds, strict=True):
            middle = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            size = ((right - left) / width, (bottom - top) / height)
            lines.append(" ".join(map(str, (kind, *middle, *size))))
        if lines:
            (path / texts / f"{index:03d}.txt").write_text("\n".join(lines) + "\n")
    (path / "data.yaml").write_text("train: ../x\nnc: 2\nnames: ['car', \"bus\"]\n")
    return path


def yolo_split(path, image, boxes, labels, inner=True):
    """train/images/ and train/labels/, or images/train/ and labels/train/."""
    half = 2 * len(image) // 3
    for name, part in (("train", slice(half)), ("test", slice(half, None))):
        places = [f"images/{name}", f"labels/{name}"]
        places = [f"{name}/images", f"{name}/labels"] if inner else places
        yolo(path, image[part], boxes[part], labels[part], *places)
    return path


def xml(name, shape, boxes, labels, first=1, extra="") -> str:
    """A file of Pascal VOC; its pixels count from 1."""
    height, width = shape
    rows = "".join(
        f"<object><name>{CLASSES[kind]}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{left + first}</xmin><ymin>{top + first}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for (left, top, right, bottom), kind in zip(boxes, labels, strict=True)
    )
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation><filename>{name}</filename>{size}{rows}{extra}</annotation>"


def voc(path, image, boxes, labels, beside=False):
    """Annotations/ and JPEGImages/, with ImageSets; or all in one folder."""
    place = path if beside else path / "JPEGImages"
    texts = path if beside else path / "Annotations"
    names = write_images(place, image)
    texts.mkdir(exist_ok=True)
    for name, mine, kinds in zip(names, boxes, labels, strict=True):
        text = xml(name, image.shape[1:3], mine, kinds)
        (texts / name).with_suffix(".xml").write_text(text)
    if not beside:
        lists = path / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        stems = [name[:-4] for name in names]
        half = 2 * len(stems) // 3
        (lists / "train.txt").write_text("\n".join(stems[:half]))
        (lists / "val.txt").write_text("\n".join(stems[half:]) + "\n")
        (lists / "car_train.txt").write_text("000 1\n")
    return path
