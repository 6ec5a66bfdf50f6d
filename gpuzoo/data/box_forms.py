"""Files that say where objects are in images: COCO JSON, YOLO text, Pascal VOC XML."""

import collections
import dataclasses
import json
import math
import pathlib
import re
import xml.etree.ElementTree
import xml.parsers.expat

from gpuzoo.data.folders import reason
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular

MOST_JSON, MOST_TEXT = 1 << 30, 1 << 24  # bytes


@dataclasses.dataclass
class Marked:
    """An image, and the objects that are marked in it.

    Attributes:
        file: the image.
        said: the file that says so, for messages.
        boxes: top, left, bottom and right, in pixels of the upright image, or as
            `Part.fractions` of its sides.
        labels: the names of the classes.
        ignored: of each box, whether it is neither to be found nor a mistake.
        size: height and width that the file states; None: it states none.
    """

    file: pathlib.Path
    said: str
    boxes: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    ignored: list[bool] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None

    def add(self, box: tuple[float, ...], label: str, ignored: bool = False) -> None:
        self.boxes.append(box)
        self.labels.append(label)
        self.ignored.append(ignored)


@dataclasses.dataclass
class Part:
    """The marked images of a split, and the names of the classes in their order."""

    marked: list[Marked]
    names: list[str]
    fractions: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a file that a file of the data names, in a folder.

    Raises:
        ValueError: it leads out of the folder, or over a link to a folder.
    """
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in name:
        raise ValueError(
            f"{name!r} is not a path inside of the data folder; write it from there on"
        )
    path = folder
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise ValueError(f"{name!r} leads over a link to a folder")
    return path / parts[-1]


# --- COCO ---------------------------------------------------------------------------


def coco(what: str, file: pathlib.Path, folders: list[pathlib.Path]) -> Part:
    """Read a file in the JSON of COCO.

    Args:
        folders: where its images are, the first that has one.

    Raises:
        GpuzooError: what is wrong, with the remedy.
    """
    what = f"{what}: {file.name}"
    tables = _tables_of(what, file)
    names = _categories(what, tables["categories"])
    marked: dict = {}
    kept: set[pathlib.Path] = set()
    for row in tables["images"]:
        key, name = row.get("id"), row.get("file_name")
        if not _is_id(key) or not isinstance(name, str):
            raise GpuzooError(
                f"{what}: an image lacks its id or file_name: {_cut(row)}"
            )
        if key in marked:
            raise GpuzooError(f"{what}: two images have the id {key!r}; number them")
        path = _one_of(what, folders, name)
        if path in kept:
            raise GpuzooError(f"{what}: the image {name} is there twice; remove one")
        marked[key] = Marked(path, f"{file.name}, {name}", size=_size(row))
        kept.add(path)
    for row in tables["annotations"]:
        _add(what, row, marked, names)
    kept, notes = _used(names, tables["categories"], marked)
    return Part(list(marked.values()), kept, notes=notes)


def _tables_of(what: str, file: pathlib.Path) -> dict[str, list[dict]]:
    def refuse(text: str):
        raise ValueError(f"{text} is not a number of JSON")

    try:
        content = read_regular(file, MOST_JSON).decode("utf-8-sig")
        tables = json.loads(content, parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise GpuzooError(f"{what} cannot be read: {reason(error)}") from None
    wanted = ("images", "annotations", "categories")
    for name in wanted:
        rows = tables.get(name) if isinstance(tables, dict) else None
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise GpuzooError(
                f"{what} is not COCO's JSON: it needs the lists {', '.join(wanted)}, "
                f"and {name} is none; export as COCO (object detection)"
            )
    return tables


def _is_id(key) -> bool:
    return isinstance(key, int | str) and not isinstance(key, bool)


def _cut(row: dict) -> str:
    text = json.dumps(row)
    return text if len(text) < 80 else text[:77] + "..."


def _categories(what: str, rows: list[dict]) -> dict:
    """Return id -> name, in the order of the ids, which may have gaps."""
    names: dict = {}
    for row in rows:
        key, name = row.get("id"), row.get("name")
        if not _is_id(key) or not isinstance(name, str) or not name.strip():
            raise GpuzooError(f"{what}: a category lacks its id or name: {_cut(row)}")
        if key in names or name in names.values():
            raise GpuzooError(
                f"{what}: the category {key!r}, {name!r}, is there twice; give each an "
                "id and a name of its own"
            )
        names[key] = name
    return dict(sorted(names.items(), key=lambda one: (str(type(one[0])), one[0])))


def _used(names: dict, rows: list[dict], marked: dict) -> tuple[list[str], list[str]]:
    """Return the names, and notes: a category that only names the kind of others (as of
    Roboflow) is left out."""
    used = {label for one in marked.values() for label in one.labels}
    kinds = {row.get("supercategory") for row in rows}
    left = [name for name in names.values() if name in kinds and name not in used]
    kept = [name for name in names.values() if name not in left]
    why = "only names the kind of others: left out"
    return kept, [f"the category {name!r} {why}" for name in left]


def _size(row: dict) -> tuple[int, int] | None:
    size = (row.get("height"), row.get("width"))
    return size if all(type(one) is int and one > 0 for one in size) else None


def _one_of(what: str, folders: list[pathlib.Path], name: str) -> pathlib.Path:
    try:
        paths = [inside(folder, name) for folder in folders]
    except ValueError as error:
        raise GpuzooError(f"{what}: the image {error}") from None
    return next((path for path in paths if path.is_file()), paths[0])


def _add(what: str, row: dict, marked: dict, names: dict) -> None:
    """Add an annotation to its image."""
    image, category, box = (row.get(k) for k in ("image_id", "category_id", "bbox"))
    one = marked.get(image) if _is_id(image) else None
    if one is None:
        raise GpuzooError(
            f"{what}: an annotation is of the image {image!r}, which is not in images: "
            f"{_cut(row)}"
        )
    what = f"{what}: {one.file.name}"
    if not _is_id(category) or category not in names:
        raise GpuzooError(
            f"{what}: a box has the category {category!r}, which is not in categories; "
            "add its id and name"
        )
    good = isinstance(box, list) and len(box) == 4
    if not good or not all(type(n) in (int, float) and math.isfinite(n) for n in box):
        raise GpuzooError(
            f"{what}: an annotation without a bbox of four numbers, [x, y, width, "
            f"height]: {_cut(row)}; export boxes, too, or remove it"
        )
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise GpuzooError(
            f"{what}: the bbox {box} has no width or height; it is [x, y, width, "
            "height] in pixels; correct or remove it"
        )
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise GpuzooError(f"{what}: iscrowd must be 0 or 1: {crowd!r}")
    one.add((y, x, y + height, x + width), names[category], bool(crowd))


# --- YOLO ---------------------------------------------------------------------------


def yolo(
    what: str, pairs: list[tuple[pathlib.Path, pathlib.Path | None]], names: list[str]
) -> Part:
    """Read the text files of YOLO, with a line of class, middle x and y, width and
    height in each, as parts of the width and height of the image.

    Args:
        pairs: images and their files; None: an image without objects.
        names: of the classes; []: their numbers.

    Raises:
        GpuzooError: what is wrong, with the remedy.
    """
    marked, polygons, highest = [], 0, -1
    for image, file in pairs:
        one = Marked(image, file.name if file else image.name)
        marked.append(one)
        for number, line in enumerate(lines_of(what, file), start=1):
            try:
                label, box, is_polygon = _line(line.split())
            except ValueError as error:
                raise GpuzooError(
                    f"{what}: {one.said}, line {number}: {error}"
                ) from None
            if names and label >= len(names):
                raise GpuzooError(
                    f"{what}: {one.said}, line {number}: the class {label}, and there "
                    f"are names for {len(names)}, from 0 on; add its name"
                )
            polygons += is_polygon
            highest = max(highest, label)
            one.add(box, names[label] if names else str(label))
    notes = [f"{polygons} polygons are taken as the boxes around them"] * bool(polygons)
    if empty := sum(file is None for _, file in pairs):
        notes.append(f"{empty} of {len(pairs)} images have no .txt: without objects")
    return Part(marked, names or [str(n) for n in range(highest + 1)], True, notes)


def lines_of(what: str, file: pathlib.Path | None) -> list[str]:
    """Return the lines of a text file; none without a file."""
    if file is None:
        return []
    try:
        text = read_regular(file, MOST_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise GpuzooError(
            f"{what}: {file.name} cannot be read: {reason(error)}"
        ) from None
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _line(words: list[str]) -> tuple[int, tuple[float, ...], bool]:
    """Return class, box, and whether it was a polygon."""
    form = "class x y width height, from 0 to 1"
    if len(words) == 6:
        raise ValueError(
            f"six numbers, and labels have five ({form}): the sixth is the confidence "
            "of a prediction? remove it"
        )
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(f"{len(words)} numbers, and there must be five: {form}")
    try:
        label, numbers = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"{' '.join(words)[:60]!r} is not numbers: {form}") from None
    if not label.is_integer() or not 0 <= label < 100_000:
        raise ValueError(f"the class {words[0]} is not an integer, 0 or more")
    for number in numbers:
        if not 0 <= number <= 1:
            raise ValueError(
                f"{number:g} is not from 0 to 1; divide x and width by the width of "
                "the image in pixels, y and height by its height"
            )
    if len(words) > 5:
        across, down = numbers[::2], numbers[1::2]
        return int(label), (min(down), min(across), max(down), max(across)), True
    x, y, width, height = numbers
    if not width or not height:
        raise ValueError("the box has no width or height; remove the line")
    box = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
    return int(label), box, False


def yolo_names(what: str, folders: list[pathlib.Path]) -> list[str]:
    """Return the names of the classes that data.yaml, data.yml or classes.txt in one of
    the folders has; [] if there is none.

    Raises:
        GpuzooError: one cannot be understood, or two say different things.
    """
    found: dict[tuple, str] = {}
    for folder in folders:
        for name in ("data.yaml", "data.yml", "dataset.yaml", "classes.txt"):
            file = folder / name
            if file.is_file():
                where = f"{what}: {name}"
                lines = lines_of(what, file)
                names = lines if name.endswith(".txt") else _of_yaml(where, lines)
                names = tuple(one.strip() for one in names)
                if not names or not all(names) or len(set(names)) < len(names):
                    raise GpuzooError(
                        f"{where}: must name each class once: {', '.join(names)[:80]}"
                    )
                found.setdefault(names, name)
    if len(found) > 1:
        raise GpuzooError(
            f"{what}: {' and '.join(found.values())} name different classes; keep one"
        )
    return list(next(iter(found), ()))


# A name of a .yaml file: in double quotes, in single ones, or bare.
_ENTRY = re.compile(
    r"""(?:"([^"\\]*)"|'((?:[^']|'')*)'|([^\s,\[\]{}"'#&*!|>%@`][^,\[\]{}#]*))$"""
)


def _of_yaml(what: str, lines: list[str]) -> list[str]:
    """Return the list `names` of a .yaml file: [a, b], one in a line after "- ", or
    number: name. All else in the file is passed over; of names nothing else is read,
    as no library for YAML is needed else."""
    start = next(
        (n for n, line in enumerate(lines) if re.match(r"names\s*:", line)), -1
    )
    if start < 0:
        raise GpuzooError(f"{what} must have names once; write names: [first, second]")
    first = lines[start].partition(":")[2]
    rest = []
    for line in lines[start + 1 :]:
        if line.strip() and not re.match(r"[\s\-\]}]", line):
            break
        rest.append(line)
    bare = re.sub(r"\s#.*", "", first).strip()
    if bare[:1] in ("[", "{"):
        whole = " ".join([first, *rest]).strip()
        body = re.match(r"[\[{]([^\[\]{}]*)[\]}]\s*(#.*)?$", whole)
        items = [one.strip() for one in body[1].split(",")] if body else [""]
        items = items[:-1] if items[-1:] == [""] and len(items) > 1 else items
        pairs = bare[0] == "{"
    else:
        items = [re.sub(r"\s#.*", "", line).strip() for line in rest]
        items = [one for one in items if one and not one.startswith("#")]
        pairs = not all(one.startswith("- ") for one in items)
        items = items if pairs else [one[2:].strip() for one in items]
        items = [] if bare else items
    found = []
    for number, item in enumerate(items):
        if pairs:
            key, _, item = item.partition(":")
            item = item.strip() if key.strip() == str(number) else ""
        match = _ENTRY.match(item)
        if not match:
            found = []
            break
        found.append(
            next(g for g in match.groups() if g is not None).replace("''", "'")
        )
    if not found:
        raise GpuzooError(
            f"{what}: names cannot be read; write names: [first, second], or one in a "
            "line of classes.txt"
        )
    return found


# --- Pascal VOC ---------------------------------------------------------------------


def voc(what: str, pairs: list[tuple[pathlib.Path, pathlib.Path]]) -> Part:
    """Read the XML files of Pascal VOC.

    Pixels count from 1 in them, and xmax and ymax are the last ones of an object; if a
    file of the part has a 0, or a fraction, as some programs write, sides are edges
    that count from 0.

    Args:
        pairs: images and their files.

    Raises:
        GpuzooError: what is wrong, with the remedy.
    """
    marked = []
    for image, file in pairs:
        try:
            marked.append(_voc_image(image, file))
        except (OSError, ValueError) as error:
            raise GpuzooError(f"{what}: {file.name}: {reason(error, file)}") from None
    every = [side for one in marked for box in one.boxes for side in box]
    lows = [low for one in marked for box in one.boxes for low in box[:2]]
    from_one = all(low >= 1 for low in lows) and all(s == int(s) for s in every)
    for one in marked if from_one else ():
        one.boxes = [(t - 1, le - 1, b, r) for t, le, b, r in one.boxes]
    kind = "pixels from 1 to the last one" if from_one else "edges from 0 on"
    names = sorted({label for one in marked for label in one.labels})
    return Part(marked, names, notes=[f"sides are read as {kind}"] * bool(lows))


def _voc_image(image: pathlib.Path, file: pathlib.Path) -> Marked:
    root = _xml(read_regular(file, MOST_TEXT))
    if root.tag != "annotation":
        raise ValueError(f"it is <{root.tag}>, not <annotation> of Pascal VOC")
    size = tuple(_number(root.find("size"), side, 0) for side in ("height", "width"))
    known = all(one > 0 and one == int(one) for one in size)
    one = Marked(image, file.name, size=tuple(map(int, size)) if known else None)
    for item in root.findall("object"):
        name, box = (item.findtext("name") or "").strip(), item.find("bndbox")
        if not name:
            raise ValueError("an object has no name")
        if box is None:
            raise ValueError(f"an object {name!r} has no bndbox; export upright boxes")
        sides = tuple(_number(box, side) for side in ("ymin", "xmin", "ymax", "xmax"))
        if sides[2] < sides[0] or sides[3] < sides[1]:
            raise ValueError(f"an object {name!r} ends before it begins: {sides}")
        difficult = _number(item, "difficult", 0)
        if difficult not in (0, 1):
            raise ValueError(f"difficult must be 0 or 1: {difficult:g}")
        one.add(sides, name, bool(difficult))
    return one


def _number(parent, name: str, default: float | None = None) -> float:
    text = parent.findtext(name) if parent is not None else None
    if text is None and default is not None:
        return default
    try:
        value = float((text or "").strip())
    except ValueError:
        raise ValueError(f"{name} must be a number: {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite: {text!r}")
    return value


def _xml(content: bytes):
    """Return the root of an XML document without a DTD: entities, which can grow
    without end or name other files, are only in one."""

    def refuse(*_):
        raise ValueError("it has a DOCTYPE, which is not read; remove it")

    parser = xml.parsers.expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return xml.etree.ElementTree.fromstring(content)
    except (xml.parsers.expat.ExpatError, xml.etree.ElementTree.ParseError) as error:
        raise ValueError(f"it is not readable XML ({error})") from None


def twice(names: list[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in collections.Counter(names).items() if count > 1]
