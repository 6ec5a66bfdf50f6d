"""Fuzz the loaders: each damaged input must be read, or refused in one line.

Valid inputs of every loader are damaged (bits flipped, bytes changed, cut, inserted,
swapped; mostly in headers) and loaded in processes with memory and time limits. A
traceback, a hang, running out of memory or a crash is a fault, and the exit code is 1.

    python benchmarks/repeatability/fuzz.py --inputs 10000 --run new \\
        --record benchmarks/records/fuzz.json

Kinds that begin with `predict` go through the decoders of `gpuzoo predict`, those that
begin with `load` through gpuzoo.load. What is read of a damaged file must be of the
right shape and finite; if its format has checksums, or a digest is recorded, it must be
what the undamaged file holds. No file may be created.
"""

import argparse
import collections
import contextlib
import datetime
import io
import json
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types

import numpy as np

from gpuzoo.runs.record import options_of, read_run, recipe_of

BATCH = 100
SECONDS = 20  # for one input
START = 300  # seconds, before the first one
MEMORY = 6 << 30


# --- damage -------------------------------------------------------------------------


def damage(content: bytes, rng: random.Random) -> bytes:
    """Apply one to four changes, half of them near the header."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(data)
        if not size:
            break
        place = rng.randrange(min(size, 128) if rng.random() < 0.5 else size)
        kind = rng.randrange(7)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            del data[place : place + rng.randrange(1, 64)]
        elif kind == 5:
            number = rng.choice(
                (0, 1, 2**16, 2**31 - 1, 2**32 - 1, rng.getrandbits(32))
            )
            data[place : place + 4] = number.to_bytes(4, rng.choice(("little", "big")))
        else:
            other = rng.randrange(size)
            data[place], data[other] = data[other], data[place]
    return bytes(data)


# --- valid inputs, and what loads them ----------------------------------------------


def _images(form: str):
    def make(folder: pathlib.Path) -> pathlib.Path:
        from PIL import Image

        rng = np.random.default_rng(0)
        for number in range(12):
            path = folder / "set" / "ab"[number % 2] / f"{number}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (9, 9, 3)).astype(np.uint8)
            name = {"jpg": "JPEG", "tif": "TIFF"}.get(form, form.upper())
            Image.fromarray(pixels).save(path, name)
        return folder / "set" / "a" / f"0.{form}"

    return make


def _sounds(form: str, subtype: str | None = None):
    def make(folder: pathlib.Path) -> pathlib.Path:
        import soundfile

        rng = np.random.default_rng(0)
        for number in range(12):
            path = folder / "set" / "ab"[number % 2] / f"{number}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.normal(0, 0.1, 800), 16_000, subtype=subtype)
        return folder / "set" / "a" / f"0.{form}"

    return make


def _csv(mark: str, point: str, head: str, encoding: str):
    def make(folder: pathlib.Path) -> pathlib.Path:
        day = datetime.date(2020, 1, 1)
        values = 20 + 5 * np.sin(np.arange(420) / 4)
        lines = [
            f"{day + datetime.timedelta(n)}{mark}" + f"{v:.2f}".replace(".", point)
            for n, v in enumerate(values)
        ]
        path = folder / "mine.csv"
        path.write_text("\n".join([head, *lines]) + "\n", encoding)
        return path

    return make


def _npz(compressed: bool, names: bool):
    def make(folder: pathlib.Path) -> pathlib.Path:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 255, (30, 6, 6)).astype(np.uint8)
        y = np.arange(30) % 3
        save = np.savez_compressed if compressed else np.savez
        save(folder / "mine.npz", x=x, y=np.array(["a", "b", "c"])[y] if names else y)
        return folder / "mine.npz"

    return make


def _masks(form: str, file: str = "masks/0.png"):
    def make(folder: pathlib.Path) -> pathlib.Path:
        from PIL import Image

        from gpuzoo.data.masks import palette, png

        rng = np.random.default_rng(0)
        for name in ("images", "masks"):
            (folder / "set" / name).mkdir(parents=True)
        for number in range(12):
            mask = rng.integers(0, 3, (9, 9)).astype(np.uint8)
            pixels = rng.integers(0, 255, (9, 9, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"set/images/{number}.png")
            path = folder / f"set/masks/{number}.png"
            if form == "palette":
                path.write_bytes(png(mask))
            else:
                Image.fromarray(palette()[mask] if form == "colours" else mask).save(
                    path
                )
        colours = ["a,0,0,0", "b,128,0,0", "c,0,128,0"]
        lines = colours if form == "colours" else ["a", "b", "c"]
        (folder / "set" / "classes.txt").write_text("\n".join(lines))
        return folder / "set" / file

    return make


def _boxes(file: str):
    def make(folder: pathlib.Path) -> pathlib.Path:
        from PIL import Image

        rng, place = np.random.default_rng(0), folder / "set"
        (place / "images").mkdir(parents=True)
        tables: dict = {"images": [], "annotations": [], "categories": []}
        tables["categories"] = [{"id": 3, "name": "a"}, {"id": 9, "name": "b"}]
        for number in range(12):
            pixels = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            name, label = f"{number}.png", number % 2
            beside = place if file.endswith(".xml") else place / "images"
            Image.fromarray(pixels).save(beside / name)
            tables["images"].append(
                {"id": number, "file_name": name, "height": 16, "width": 16}
            )
            tables["annotations"].append(
                {"id": number, "image_id": number, "category_id": 3 + 6 * label,
                 "bbox": [2, 3, 5, 6], "iscrowd": 0}
            )  # fmt: skip
            if file.endswith(".txt"):
                (place / "labels").mkdir(exist_ok=True)
                text = f"{label} 0.5 0.5 0.25 0.25\n0 0.1 0.1 0.4 0.1 0.3 0.5\n"
                (place / f"labels/{number}.txt").write_text(text)
            if file.endswith(".xml"):
                (place / f"{number}.xml").write_text(
                    "<annotation><size><width>16</width><height>16</height></size>"
                    f"<object><name>{'ab'[label]}</name><difficult>0</difficult>"
                    "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax>"
                    "</bndbox></object></annotation>"
                )
        if file.endswith(".json"):
            (place / file).write_text(json.dumps(tables))
        return place / file

    return make


def _load_boxes(path: pathlib.Path) -> None:
    from gpuzoo.data.sources import load_data

    place = path.parent.parent if path.suffix == ".txt" else path.parent
    load_data(f"{place}/", task="detect", note=lambda text: None)


def _npz_of_masks(folder: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (30, 6, 6, 3)).astype(np.uint8)
    np.savez(folder / "mine.npz", x=x, y=rng.integers(0, 3, (30, 6, 6)))
    return folder / "mine.npz"


def _load_masks(path: pathlib.Path) -> None:
    from gpuzoo.data.sources import load_data

    place = path.parent if path.suffix == ".txt" else path.parent.parent
    load_data(f"{place}/", note=lambda text: None)


def _load(path: pathlib.Path) -> None:
    from gpuzoo.data.sources import load_data

    name = path if path.suffix in (".csv", ".npz") else path.parent.parent
    load_data(str(name), note=lambda text: None)


def _run(file: str):
    def make(folder: pathlib.Path) -> pathlib.Path:
        import shutil

        shutil.copytree(os.environ["FUZZ_RUN"], folder / "run")
        return folder / "run" / file

    return make


def _read_run(path: pathlib.Path) -> None:
    from gpuzoo.repro.verify import changed_files
    from gpuzoo.runs import divergence

    run = path.parent
    recorded = read_run(run, sealed=False)
    recipe_of(recorded)
    options_of(recorded)
    changed_files(run, recorded)
    divergence.count_losses(divergence.read_digests(run))
    divergence.read_weights(run)


def _cache(file: str):
    def make(folder: pathlib.Path) -> pathlib.Path:
        from gpuzoo.data import cache
        from gpuzoo.data.validate import make_dataset

        os.environ["GPUZOO_CACHE"] = str(folder / "cache")
        rng = np.random.default_rng(0)
        split = {"image": rng.integers(0, 255, (30, 6, 6)).astype(np.uint8),
                 "label": np.arange(30) % 3}  # fmt: skip
        cache.store(make_dataset("mine", "", {"train": split, "test": split}), "key")
        return folder / "cache" / "data" / "mine" / "key" / file

    return make


def _read_cache(path: pathlib.Path) -> None:
    from gpuzoo.data import cache

    os.environ["GPUZOO_CACHE"] = str(path.parents[3])
    cache.load("mine")


# --- what `gpuzoo predict` reads ----------------------------------------------------


def _one(name: str, content: bytes):
    def make(folder: pathlib.Path) -> pathlib.Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _first_of(make):
    """One file of a folder of classes."""

    def alone(folder: pathlib.Path) -> pathlib.Path:
        path = make(folder)
        return path.rename(folder / path.name)

    return alone


def _npy() -> bytes:
    content = io.BytesIO()
    rng = np.random.default_rng(0)
    np.save(content, rng.integers(0, 255, (3, 9, 9, 3)).astype(np.uint8))
    return content.getvalue()


def _npz_to_predict() -> bytes:
    content = io.BytesIO()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 9, 9, 3)).astype(np.uint8)
    np.savez_compressed(content, x=images, other=np.arange(3))
    return content.getvalue()


def trained(takes: str):
    """A run as far as its inputs go: no network."""
    from gpuzoo.data.dataset import Dataset
    from gpuzoo.deploy.trained import Trained

    shape = {"image": (9, 9, 3), "audio": (800,), "series": (64, 1)}[takes]
    split = {takes: np.zeros((0, *shape), np.uint8)}
    dataset = Dataset("mine", "", {"train": split, "test": split}, (), "",
                      scale=(20.0, 5.0) if takes == "series" else None)  # fmt: skip
    task = types.SimpleNamespace(takes=takes, taken_shape=lambda data: data.input_shape)
    record = {"data": {"name": "mine", "test_examples": 9}}
    return Trained(pathlib.Path("run"), record, None, None, None, dataset, task)


def decode(path: pathlib.Path) -> list[np.ndarray]:
    """Return the examples that `gpuzoo predict` reads from a file."""
    from gpuzoo.deploy import inputs
    from gpuzoo.errors import GpuzooError

    sounds = (".wav", ".flac", ".ogg", ".mp3")
    takes = {".csv": "series", **dict.fromkeys(sounds, "audio")}
    model = trained(takes.get(path.suffix, "image"))
    try:
        source = inputs.Source(str(path), path)
        examples = [one.values for one in inputs.read(source, model)]
    except inputs.Unreadable as error:
        raise GpuzooError(str(error)) from None
    for one in examples:
        if one.shape != model.input_shape or not np.isfinite(one).all():
            raise AssertionError(f"read: {one.shape}")
    return examples


def _load_run(path: pathlib.Path) -> list[np.ndarray]:
    from gpuzoo.deploy.trained import load

    return load(path.parent, allow_drift=True).model.get_weights()


def _load_resealed(path: pathlib.Path) -> list[np.ndarray]:
    _seal_again(path)
    return _load_run(path)


def _seal_again(path: pathlib.Path) -> None:
    """As one would who can compute a digest."""
    from gpuzoo.runs.record import seal

    with contextlib.suppress(Exception):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "seal": seal(record)}))


# Kinds whose format, or whose run, has checksums of everything that is used.
CHECKED = {
    "predict png", "predict flac", "predict npz", "load run.json",
    "load run.json sealed again", "load weights", "load architecture",
}  # fmt: skip
PREDICTED = {
    **{f"predict {form}": (_first_of(_images(form)), decode)
       for form in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga")},
    "predict wav": (_first_of(_sounds("wav")), decode),
    "predict flac": (_first_of(_sounds("flac")), decode),
    "predict csv": (_csv(",", ".", "day,value", "utf-8"), decode),
    "predict npy": (_one("mine.npy", _npy()), decode),
    "predict npz": (_one("mine.npz", _npz_to_predict()), decode),
}  # fmt: skip
KINDS = {
    **{f"npz{' compressed' * c}{' names' * n}": (_npz(c, n), _load)
       for c in (False, True) for n in (False, True)},
    **{f"image {form}": (_images(form), _load)
       for form in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga")},
    **{f"mask {form}": (_masks(form), _load_masks)
       for form in ("grey", "palette", "colours")},
    **{f"names of {form} masks": (_masks(form, "classes.txt"), _load_masks)
       for form in ("grey", "colours")},
    "npz of masks": (_npz_of_masks, _load),
    **{f"boxes {file}": (_boxes(file), _load_boxes)
       for file in ("boxes.json", "labels/0.txt", "0.xml")},
    "sound wav": (_sounds("wav"), _load),
    "sound wav float": (_sounds("wav", "FLOAT"), _load),
    "sound wav adpcm": (_sounds("wav", "MS_ADPCM"), _load),
    **{f"sound {form}": (_sounds(form), _load) for form in ("flac", "ogg", "mp3")},
    "csv": (_csv(",", ".", "day,value", "utf-8"), _load),
    "csv semicolon": (_csv(";", ",", "Tag;Wert", "cp1252"), _load),
    "csv tab utf-16": (_csv("\t", ".", "day\tvalue", "utf-16"), _load),
    "cache arrays": (_cache("arrays.safetensors"), _read_cache),
    "cache manifest": (_cache("manifest.json"), _read_cache),
    "run.json": (_run("run.json"), _read_run),
    "digests.jsonl": (_run("digests.jsonl"), _read_run),
    "weights": (_run("weights.safetensors"), _read_run),
    **PREDICTED,
    "load run.json": (_run("run.json"), _load_run),
    "load run.json sealed again": (_run("run.json"), _load_resealed),
    "load weights": (_run("weights.safetensors"), _load_run),
    "load architecture": (_run("architecture.json"), _load_run),
}  # fmt: skip


# --- one batch in a process of its own ----------------------------------------------


def _batch(kind: str, first: int, count: int, results) -> None:
    from gpuzoo.errors import GpuzooError

    def late(number, frame):
        raise TimeoutError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, late)
    make, load = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        path = make(pathlib.Path(name))
        content = path.read_bytes()
        whole = load(path)  # the valid one
        there = _names(name)
        for number in range(first, first + count):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damage(content, random.Random(f"{kind} {number}")))
            results.send((number, "begun", ""))
            signal.alarm(SECONDS)
            try:
                found = load(path)
                end, told = "read", ""
                if kind in CHECKED and not _same(found, whole):
                    end, told = "wrong", "other values are read"
            except GpuzooError as error:
                end, told = "refused", ""
                if "\n" in str(error) or len(str(error)) > 2_000:
                    end, told = "traceback", f"not one line: {error!r}"
            except TimeoutError:
                end, told = "hang", traceback.format_exc()
            except MemoryError:
                end, told = "memory", traceback.format_exc()
            except BaseException:
                end, told = "traceback", traceback.format_exc()
            signal.alarm(0)
            if made := _names(name) - there:
                end, told = "wrong", f"it made {made}"
                there |= made
            results.send((number, end, told))
    results.send((-1, "", ""))


def _names(folder: str) -> set[str]:
    return {str(path) for path in pathlib.Path(folder).rglob("*")}


def _same(found: list[np.ndarray], whole: list[np.ndarray]) -> bool:
    return len(found) == len(whole) and all(map(np.array_equal, found, whole))


def train_one(folder: str) -> None:
    """Train a small model object, so that the run has all kinds of files."""
    code = """
import keras, gpuzoo, sys
layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
gpuzoo.configure(device="cpu", precision="float32", threads=1)
gpuzoo.train(keras.Sequential(layers), data="digits",
             fast_dev_run=True, out=sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, folder], check=True,
                   capture_output=True)  # fmt: skip


def fuzz(inputs: int, kinds=None, show=print) -> dict:
    """Return the number of inputs of each kind by outcome, and the faults."""
    kinds = list(kinds or KINDS)
    ends = {kind: collections.Counter() for kind in kinds}
    faults = []
    context = multiprocessing.get_context("fork")
    for place, kind in enumerate(kinds):
        total = inputs // len(kinds) + (place < inputs % len(kinds))
        number = 0
        while number < total:
            ours, theirs = context.Pipe(False)
            count = min(BATCH, total - number)
            child = context.Process(target=_batch, args=(kind, number, count, theirs))
            child.start()
            theirs.close()
            begun = number
            try:
                patience = START  # libraries are imported first
                while ours.poll(patience):
                    which, end, told = ours.recv()
                    patience = 2 * SECONDS
                    if which < 0:
                        break
                    begun = which
                    if end == "begun":
                        continue
                    ends[kind][end] += 1
                    number = which + 1
                    if end not in ("read", "refused"):
                        faults.append((kind, which, end, told))
                        show(f"{kind} {which}: {end}\n{told}")
                else:
                    raise EOFError
            except EOFError:  # ended by a signal, or past every alarm
                end = "crash" if not child.is_alive() or child.exitcode else "hang"
                child.kill()
                child.join()
                ends[kind][end] += 1
                faults.append((kind, begun, end, f"exit code {child.exitcode}"))
                show(f"{kind} {begun}: {end}, exit code {child.exitcode}")
                number = begun + 1
            child.join()
    return {"ends": {kind: dict(each) for kind, each in ends.items()}, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument(
        "--run", help="finished run, to fuzz the loaders of its files; new: train one"
    )
    parser.add_argument("--record")
    words = parser.parse_args()
    kinds = words.kind or list(KINDS)
    with tempfile.TemporaryDirectory(prefix="fuzz-run-") as folder:
        if words.run == "new":
            words.run = f"{folder}/run"
            train_one(words.run)
        if words.run:
            os.environ["FUZZ_RUN"] = words.run
        else:
            of_runs = (_read_run, _load_run, _load_resealed)
            kinds = [kind for kind in kinds if KINDS[kind][1] not in of_runs]
        begun = time.perf_counter()
        found = fuzz(words.inputs, kinds)
    total = sum((collections.Counter(each) for each in found["ends"].values()),
                collections.Counter())  # fmt: skip
    result = {
        "inputs": total.total(),
        "ends": dict(total),
        "kinds": found["ends"],
        "faults": [[kind, number, end] for kind, number, end, _ in found["faults"]],
        "seconds": round(time.perf_counter() - begun),
    }
    print(json.dumps(result, indent=1))
    if words.record:
        pathlib.Path(words.record).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
