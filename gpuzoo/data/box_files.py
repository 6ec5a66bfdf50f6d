"""Folders of images with boxes: COCO JSON, YOLO text or Pascal VOC XML, perhaps in
train/, val/ and test/."""

import pathlib
from collections.abc import Callable

import numpy as np

from gpuzoo.data import box_forms, boxes, folders, images
from gpuzoo.data.box_forms import Marked, Part
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.folders import IMAGE_SUFFIXES, all_bad, content_of, reason
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular

Note = Callable[[str], None]
_ROBOFLOW = "_annotations.coco.json"
_SMALL = 4  # pixels of a box that is hard to find
_HINT = (
    "; detection reads COCO (one .json beside images/, annotations/instances_*.json, "
    f"or {_ROBOFLOW} in train/), YOLO (images/ and labels/) and Pascal VOC "
    "(Annotations/ and JPEGImages/, or .xml beside the images)"
)


def is_boxed(what: str, path: pathlib.Path) -> bool:
    """Whether a folder has boxes in one of the forms."""
    return _form_of(what, path) is not None or _train_form(what, path) is not None


def is_whole(what: str, path: pathlib.Path) -> bool:
    """Whether a folder with boxes has no parts for training and testing."""
    return set(_parts(what, path, lambda text: None)[1]) == {""}


def read(path: pathlib.Path, size: int, note: Note) -> Dataset:
    """Read a folder for which `is_boxed`.

    Args:
        size: side in pixels to which images and their boxes are resized; 0: as they
            are.

    Raises:
        GpuzooError: what is wrong, with the files and the remedy.
    """
    what = f"data folder {path.name!r}"
    form, parts = _parts(what, path, note)
    for split, part in parts.items():
        for line in part.notes:
            note(f"{what}{', ' * bool(split)}{split}: {line}")
    classes = _classes(what, parts)
    _refuse_fractions(what, parts)
    splits = {
        split: _read_part(what, path, part, classes, size, note)
        for split, part in parts.items()
    }
    if "" in splits:
        splits = boxes.hold_out(what, splits[""], len(classes))
    channels = max(fields["image"].shape[3] for fields in splits.values())
    for fields in splits.values():
        shape = (*fields["image"].shape[:3], channels)
        fields["image"] = np.ascontiguousarray(np.broadcast_to(fields["image"], shape))
    dataset = boxes.make_dataset(path.name, "images with boxes", splits, classes)
    note(boxes.said(dataset, f" ({form})"))
    return dataset


def _classes(what: str, parts: dict[str, Part]) -> tuple[str, ...]:
    """Return the names of the classes: those of the training part, then others."""
    ordered = sorted(parts.items(), key=lambda one: one[0] != "train")
    names = list(dict.fromkeys(name for _, part in ordered for name in part.names))
    numbers = all(name.isdecimal() for name in names)
    found = tuple(sorted(names, key=int) if numbers else names)
    if not found:
        raise GpuzooError(f"{what}: no class is named and no box marked{_HINT}")
    return found


def _refuse_fractions(what: str, parts: dict[str, Part]) -> None:
    """Raise if boxes that must be in pixels are parts of the sides of images."""
    every = [
        box
        for part in parts.values()
        if not part.fractions
        for one in part.marked
        for box in one.boxes
    ]
    if boxes.are_fractions(np.array(every, np.float64).reshape(-1, 4)):
        raise GpuzooError(
            f"{what}: all boxes are within 0 to 1, and in this form they are in "
            "pixels; multiply them by the width and the height of the images"
        )


# --- layouts ------------------------------------------------------------------------


def _form_of(what: str, folder: pathlib.Path) -> str | None:
    """Return the form of a folder that holds images and boxes itself."""
    below = _lower(what, folder)
    if _coco_files(folder, below):
        return "COCO"
    if {"images", "labels"} <= set(below):
        return "YOLO"
    if {"annotations", "jpegimages"} <= set(below):
        return "Pascal VOC"
    return "Pascal VOC" if _files(what, folder, {".xml"}, deep=False) else None


def _train_form(what: str, path: pathlib.Path) -> str | None:
    below = _lower(what, path)
    train = next((below[n] for n in ("train", "training") if n in below), None)
    return None if train is None else _form_of(what, path / train)


def _lower(what: str, folder: pathlib.Path) -> dict[str, str]:
    return {name.lower(): name for name in folders.sub_folders(what, folder)}


def _parts(what: str, path: pathlib.Path, note: Note) -> tuple[str, dict[str, Part]]:
    """Return the form of a folder, and the marked images of its splits, "" without."""
    if form := _form_of(what, path):
        make = {"COCO": _coco, "YOLO": _yolo, "Pascal VOC": _voc}[form]
        return form, make(what, path, note)
    form, parts = _train_form(what, path), {}
    for split, folder in folders.find_splits(what, path, note).items():
        mine = _form_of(what, folder)
        if mine != form:
            raise GpuzooError(
                f"{what}: {folder.name}/ has {mine or 'no boxes'}, and the training "
                f"part {form}; give all parts one form"
            )
        make = {"COCO": _coco, "YOLO": _yolo, "Pascal VOC": _voc}[form]
        (parts[split],) = make(what, folder, note, path).values()
    return form, parts


def _files(
    what: str, folder: pathlib.Path, suffixes: set[str], deep: bool = True
) -> list[pathlib.Path]:
    """Return the files of a folder with one of the suffixes, sorted."""
    if deep:
        found = [file for _, file in folders.find_files(what, folder, None)]
    else:
        found = sorted(p for p in folder.iterdir() if p.is_file())
        found = [p for p in found if not folders.is_litter(p.name)]
    return [file for file in found if file.suffix.lower() in suffixes]


def _coco_files(folder: pathlib.Path, below: dict[str, str]) -> list[pathlib.Path]:
    """Return the files of a folder that are, by their names and first lists, COCO's."""
    if (folder / _ROBOFLOW).is_file():
        return [folder / _ROBOFLOW]
    places = [folder]
    if "annotations" in below and "jpegimages" not in below:
        places = [folder / below["annotations"]]
    found = [
        file
        for place in places
        for file in sorted(place.glob("*.json"))
        if file.is_file() and not folders.is_litter(file.name)
    ]
    instances = [file for file in found if file.name.startswith("instances_")]
    return instances or [file for file in found if _looks_like_coco(file)]


def _looks_like_coco(file: pathlib.Path) -> bool:
    try:
        content = read_regular(file, box_forms.MOST_JSON)
    except OSError:
        return False
    return b'"images"' in content and b'"annotations"' in content


def _coco(what: str, folder: pathlib.Path, note: Note, root=None) -> dict[str, Part]:
    below = _lower(what, folder)
    files = _coco_files(folder, below)
    beside = [folder / below[n] for n in ("images", "data") if n in below] + [folder]
    if len(files) == 1:
        name = files[0].stem.removeprefix("instances_")
        own = [place / name for place in beside if (place / name).is_dir()]
        return {"": _of_coco(what, files[0], own + beside, note)}
    if root is not None:
        listed = ", ".join(file.name for file in files)
        raise GpuzooError(f"{what}: {folder.name}/ has {listed}; keep one")
    found: dict[str, Part] = {}
    for file in files:
        name = file.stem.removeprefix("instances_")
        split = next((s for s in ("train", "val", "test") if name.startswith(s)), "")
        if not split or split in found:
            raise GpuzooError(
                f"{what}: {file.name} and {len(files) - 1} more .json files, and it is "
                "not clear of which part each is: name them instances_train.json, "
                "instances_val.json and instances_test.json, or keep one"
            )
        places = [place / n for place in beside for n in (name, split)]
        own = [place for place in places if place.is_dir()]
        found[split] = _of_coco(what, file, own + beside, note)
    if "train" not in found:
        raise GpuzooError(f"{what}: {', '.join(sorted(found))} without train; add it")
    if "test" not in found:
        note(f"{what}: no test part, so val is used for testing")
        found["test"] = found.pop("val")
    return found


def _of_coco(what: str, file: pathlib.Path, places: list, note: Note) -> Part:
    part = box_forms.coco(what, file, places)
    if not part.marked:
        raise GpuzooError(f"{what}: {file.name} has no images")
    known = {one.file for one in part.marked}
    place = next(iter(known)).parent
    there = _files(what, place, IMAGE_SUFFIXES, deep=False) if place.is_dir() else []
    if left := [one for one in there if one not in known]:
        note(
            f"{what}: {len(left)} images in {place.name}/ are not in {file.name}, and "
            "are not read"
        )
    return part


def _yolo(what: str, folder: pathlib.Path, note: Note, root=None) -> dict[str, Part]:
    below = _lower(what, folder)
    pictures, labels = (folder / below[name] for name in ("images", "labels"))
    where = list(dict.fromkeys([root or folder, folder, labels]))
    names = box_forms.yolo_names(what, where)
    parts = {"": (pictures, labels)}
    train = {"train", "training"} & set(_lower(what, pictures))
    if root is None and train:
        other = _lower(what, labels)
        parts = {}
        for split, place in folders.find_splits(what, pictures, note).items():
            if place.name.lower() not in other:
                raise GpuzooError(
                    f"{what}: there is images/{place.name}, and no labels/{place.name}"
                )
            parts[split] = (place, labels / other[place.name.lower()])
    found = {}
    for split, (place, texts) in parts.items():
        found[split] = box_forms.yolo(what, _yolo_pairs(what, place, texts), names)
    return found


def _yolo_pairs(what: str, place: pathlib.Path, texts: pathlib.Path) -> list:
    """Return images and their label files, None where there is none."""
    pictures = folders.by_stem(what, place, _pictures(what, place))
    files = folders.by_stem(what, texts, _files(what, texts, {".txt"}))
    files = {
        stem: file
        for stem, file in files.items()
        if file.name not in ("classes.txt", "train.txt", "val.txt", "test.txt")
    }
    if not files:
        raise GpuzooError(f"{what}: {texts.name}/ has no .txt files{_HINT}")
    _refuse_alone(what, sorted(set(files) - set(pictures)), ".txt")
    return [(pictures[stem], files.get(stem)) for stem in sorted(pictures)]


def _voc(what: str, folder: pathlib.Path, note: Note, root=None) -> dict[str, Part]:
    below = _lower(what, folder)
    place = texts = folder
    deep = {"annotations", "jpegimages"} <= set(below)
    if deep:
        place, texts = (folder / below[n] for n in ("jpegimages", "annotations"))
    pictures = folders.by_stem(what, place, _pictures(what, place, deep))
    files = folders.by_stem(what, texts, _files(what, texts, {".xml"}, deep))
    if not files:
        raise GpuzooError(f"{what}: {texts.name}/ has no .xml files{_HINT}")
    _refuse_alone(what, sorted(set(files) - set(pictures)), ".xml")
    if left := sorted(set(pictures) - set(files)):
        note(f"{what}: {len(left)} images without an .xml are not read: {left[0]}")
    parts = {"": sorted(files)}
    lists = folder / below.get("imagesets", "ImageSets") / "Main"
    if deep and root is None and lists.is_dir():
        parts = _voc_parts(what, lists, files, note) or parts
    return {
        split: box_forms.voc(what, [(pictures[stem], files[stem]) for stem in stems])
        for split, stems in parts.items()
    }


def _voc_parts(what: str, lists: pathlib.Path, files: dict, note: Note) -> dict:
    """Return the names of each split, of train.txt, val.txt and test.txt."""
    found = {}
    for split in ("train", "val", "test"):
        if not (lists / f"{split}.txt").is_file():
            continue
        lines = box_forms.lines_of(what, lists / f"{split}.txt")
        found[split] = [line.split()[0] for line in lines if line.strip()]
        if missing := [stem for stem in found[split] if stem not in files]:
            raise GpuzooError(
                f"{what}: {split}.txt names {_listed(missing)}, without an .xml; "
                "remove these lines, or add the files"
            )
    if "train" not in found or len(found) < 2:
        return {}
    twice = box_forms.twice([stem for stems in found.values() for stem in stems])
    if twice:
        raise GpuzooError(f"{what}: {_listed(twice)} twice in ImageSets/Main")
    if "test" not in found:
        note(f"{what}: no test.txt, so val.txt is used for testing")
        found["test"] = found.pop("val")
    return found


def _pictures(what: str, place: pathlib.Path, deep: bool = True) -> list[pathlib.Path]:
    if not deep:
        return _files(what, place, IMAGE_SUFFIXES, deep=False)
    files = [file for _, file in folders.find_files(what, place, None)]
    found = [
        file
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES or content_of(file) == "image"
    ]
    if not found:
        raise GpuzooError(f"{what}: {place.name}/ has no images{_HINT}")
    return found


def _refuse_alone(what: str, alone: list[str], suffix: str) -> None:
    if alone:
        raise GpuzooError(
            f"{what}: {len(alone)} {suffix} files without an image: {_listed(alone)}; "
            "give an image and its file the same name but for the suffix, and remove "
            "what has no other"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


# --- images -------------------------------------------------------------------------


def _read_part(
    what: str, path: pathlib.Path, part: Part, classes: tuple, size: int, note: Note
) -> Arrays:
    """Return `image` and `objects` of a split."""
    _check_there(what, part.marked)
    seen: dict[pathlib.Path, images.Picture] = {}
    found = [(0, one.file) for one in part.marked]
    read = images.read_folder(what, path, found, size, note, seen.__setitem__)
    index = {name: number for number, name in enumerate(classes)}
    objects, bad, over, again = [], [], [], 0
    for one in part.marked:
        try:
            corners, outside = _corners(one, seen[one.file], part.fractions)
        except ValueError as error:
            bad.append((one.said, reason(error)))
            continue
        over += outside[outside > 0].tolist()
        if size:
            height, width = seen[one.file].shape
            corners *= np.array(2 * [size / height, size / width])
        labels = [index[label] for label in one.labels]
        objects.append(boxes.rows(corners, labels, one.ignored))
        again += len(labels) - len(objects[-1])
    if len(bad) == 1:
        raise GpuzooError(f"{what}: {bad[0][0]}: {bad[0][1]}")
    if bad:
        raise all_bad(what, bad, len(objects), "images' boxes", "")
    if over:
        note(
            f"{what}: {len(over)} boxes reach beyond the border of their image, by "
            f"{max(over):.3g} pixels at most, and are cut there"
        )
    if again:
        note(f"{what}: {again} boxes are there twice, and are taken once")
    _note_sizes(what, seen, objects, size, note)
    return {"image": read["image"], "objects": boxes.padded(objects)}


def _check_there(what: str, marked: list[Marked]) -> None:
    missing = [one.said for one in marked if not one.file.exists()]
    if missing:
        raise GpuzooError(
            f"{what}: {len(missing)} of {len(marked)} images are missing: "
            f"{_listed(missing)}; add the files, or remove what is said of them"
        )
    others = [
        one.said
        for one in marked
        if one.file.suffix.lower() not in IMAGE_SUFFIXES
        and content_of(one.file) != "image"
    ]
    if others:
        raise GpuzooError(f"{what}: not images: {_listed(others)}; remove them")


def _corners(one: Marked, picture: images.Picture, fractions: bool) -> tuple:
    """Return the boxes of an image in its pixels, and how far each was outside."""
    stated, shape = one.size, picture.shape
    if images.TURNED in picture.changes and one.boxes:
        if stated is None or stated != shape or stated == shape[::-1]:
            raise ValueError(
                f"{one.file.name} is turned by its EXIF data, and the boxes may be of "
                "either form; save the image upright and without them"
            )
    if stated not in (None, shape):
        theirs, mine = (f"{s[1]}x{s[0]}" for s in (stated, shape))
        raise ValueError(
            f"the boxes are of an image of {theirs} pixels, and {one.file.name} has "
            f"{mine}; use the image that was labelled"
        )
    corners = np.array(one.boxes, np.float64).reshape(-1, 4)
    if fractions:
        corners = corners * np.array(2 * shape)
    return boxes.clean(corners, shape)


def _note_sizes(what: str, seen: dict, objects: list, size: int, note: Note) -> None:
    resized = sum(one.shape != (size, size) for one in seen.values())
    if size and resized:
        note(
            f"{what}: {resized} of {len(seen)} images are resized to {size}x{size}, "
            "and their boxes with them"
        )
    every = np.concatenate([np.zeros((0, 6)), *objects])
    sides = (every[:, 2:4] - every[:, :2]).min(axis=1)
    if small := int((sides < _SMALL).sum()):
        note(
            f"{what}: {small} of {len(every)} boxes are narrower than {_SMALL} pixels, "
            "and hard to find; --image-size sets the size"
        )
