"""Images that stay in their files: the same dataset, the same bits."""

import json
import os

import numpy as np
import pytest
import tfds_folders
from conftest import needs_jax
from test_processes import finish as finished
from test_resume import die_at, finish, start
from test_tfrecord import damage, without_tensorflow

import gpuzoo
from gpuzoo import randomness
from gpuzoo.data.on_disk import Images
from gpuzoo.engine.batches import Examples
from gpuzoo.errors import GpuzooError

pytest.importorskip("google_crc32c")
FORMS = ["tfrecord", "array_record"]
WORDS = [
    "train", "mnist_mlp", "--data", "mine", "--device", "cpu", "--threads", "2",
    "--epochs", "2", "--batch-size", "16", "--model-options", "units=(8,)", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, runtime):
    """Format -> folder with the dataset `mine`: the same examples in three files."""
    found = {form: tmp_path_factory.mktemp(form) for form in FORMS}
    for form, folder in found.items():
        tfds_folders.write(folder, 3, 400, form)
    return found


@pytest.fixture
def own(folders, tmp_path, own_cache):
    """A function of a format: a copy of the folder, to be damaged."""

    def copied(form: str):
        target = tmp_path / form / "mine" / "1.0.0"
        target.mkdir(parents=True)
        for file in (folders[form] / "mine" / "1.0.0").iterdir():
            os.link(file, target / file.name)
        return target

    return copied


def load(folder, **options):
    return gpuzoo.load_data("mine", data_dir=str(folder), **options)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_dataset_as_in_memory(form, folders, runtime, own_cache, monkeypatch):
    whole, said = load(folders[form]), []
    for turn in ("the first pass", "what it has kept", "without TensorFlow"):
        if turn == "without TensorFlow":
            without_tensorflow(monkeypatch)
        data = load(folders[form], stream="disk", note=said.append)
        assert data.as_record() == whole.as_record(), turn
        assert data.findings  # a test image is also for training
        images, labels = data.train["image"], data.train["label"]
        assert isinstance(images, Images) and images.nbytes == 400 * 12 * 9 * 3
        chosen = np.random.default_rng(0).integers(-400, 400, (3, 60))
        assert (images[chosen] == whole.train["image"][chosen]).all()
        assert (labels[chosen] == whole.train["label"][chosen]).all()
        assert (np.asarray(images[5:300:7]) == whole.train["image"][5:300:7]).all()
        assert (images[::-1][3] == whole.train["image"][-4]).all()
    # Without TensorFlow other code decodes, so it looks again.
    assert said == ["Looking once at all 403 examples of mine ..."] * 2
    kept, wanted = (
        load(folders[form], validation=0.2, seed=3, stream=stream)
        for stream in ("disk", "auto")
    )
    for split in ("train", "val"):
        assert isinstance(kept.splits[split]["image"], Images)
        for name, array in wanted.splits[split].items():
            assert (np.asarray(kept.splits[split][name]) == array).all()


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_same_bits_as_in_memory(backend, folders, cli_on):
    cli, found = cli_on(backend), {}
    for form, stream in (("array_record", "disk"), ("array_record", "auto"),
                         ("tfrecord", "disk"), ("tfrecord", "auto")):  # fmt: skip
        run = f"{form}-{stream}"
        done = cli(*WORDS, "--backend", backend, "--data-dir", folders[form],
                   "--stream", stream, "--out", run)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[form, stream] = done.json["weights_sha256"]
    for form in FORMS:
        assert found[form, "disk"] == found[form, "auto"]
    verified = cli("verify", "array_record-disk")
    assert (verified.returncode, verified.json["verdict"]) == (0, "identical")
    evaluated = cli("evaluate", "tfrecord-disk")
    assert evaluated.returncode == 0 and evaluated.json["identical"], evaluated.stderr


@pytest.mark.parametrize("form", FORMS)
def test_killed_and_resumed(form, folders, tmp_path):
    words = [*WORDS, "--data-dir", folders[form], "--checkpoint-every", "10"]
    process = start([*words, "--stream", "auto", "--out", "whole"], tmp_path)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    run = [*words, "--stream", "disk", "--out", "run"]
    die_at("replace", 6, "before", run, tmp_path)
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["state"] != "finished"
    )
    assert list((tmp_path / "run").glob("checkpoints/step-*"))
    wanted = json.loads(stdout.splitlines()[-1])["weights_sha256"]
    assert finish("run", tmp_path)["weights_sha256"] == wanted


@needs_jax
def test_two_processes_have_the_bits_of_one(folders, tmp_path, cli):
    words = [*WORDS, "--data-dir", folders["array_record"], "--backend", "jax",
             "--elastic", "--shards", "2"]  # fmt: skip
    one = cli(*words, "--out", "one")
    assert one.returncode == 0, one.stderr
    both = [*words, "--stream", "disk", "--out", "both"]
    said = finished(start(["launch", "--processes", "2", *both], tmp_path))
    told = json.loads(said.splitlines()[0])
    assert told["weights_sha256"] == one.json["weights_sha256"]
    verified = cli("verify", "both")
    assert (verified.returncode, verified.json["verdict"]) == (0, "identical")


def test_a_process_reads_only_its_rows():
    read = []

    def rows(places):
        read.extend(places.tolist())
        return np.stack([np.full((2, 2, 1), place, np.uint8) for place in places])

    examples = Examples({"image": Images(rows, (40, 2, 2, 1))}, None, streamed=True)
    chosen = np.arange(20).reshape(2, 10)[:, ::-1]
    found = examples.send({"indices": chosen}, slice(5, 10))["row/image"]
    assert sorted(read) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert (found[:, 5:, 0, 0, 0] == chosen[:, 5:]).all() and not found[:, :5].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["flip", "cut", "record"])
def test_a_damaged_file_is_named(form, how, own, runtime):
    folder = own(form)
    load(folder.parents[1], stream="disk")
    (path,) = folder.glob("*train*-00001*")
    content, times = path.read_bytes(), path.stat()
    path.unlink()  # it is a link
    path.write_bytes(content)
    if form == "array_record" and how == "record":
        pytest.skip("a file without its last record is cut off")
    if how == "flip" and form == "array_record":  # its middle may be padding
        path.write_bytes(content[:2000] + bytes([content[2000] ^ 4]) + content[2001:])
    else:
        damage(path, how)
    if how == "flip":  # not seen by the size and the time: when it is read
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        data = load(folder.parents[1], stream="disk")
        with pytest.raises(GpuzooError, match="'mine' cannot be read: ") as caught:
            data.train["image"][np.arange(400)]
    else:
        with pytest.raises(GpuzooError, match="'mine' cannot be read: ") as caught:
            load(folder.parents[1], stream="disk")
    said = str(caught.value)
    assert path.name in said or "expected 400 train examples" in said, said
    assert "prepare it again" in said and "\n" not in said


def test_what_cannot_stay_in_its_files_is_refused(tmp_path, own_cache):
    with pytest.raises(GpuzooError, match="stream=disk is for TFDS datasets"):
        gpuzoo.load_data("digits", stream="disk")
    images = Images(lambda places: None, (10**6, 64, 64, 3))
    with pytest.raises(GpuzooError, match="12.3 GB, are needed at once"):
        np.asarray(images)


@pytest.mark.parametrize("count", [129, 1000, 4096])
def test_parts_of_an_order_are_those_of_the_whole(count, monkeypatch):
    monkeypatch.setattr(randomness, "_PART", 64)
    monkeypatch.setattr(randomness, "_CHUNK", 48)
    for function in (randomness._ends, randomness._bucket, randomness._whole):
        function.cache_clear()
    place = (11, "order", count)
    whole = randomness.permutation(count, *place)
    for first, last in ((0, count), (0, 1), (count - 1, count), (17, 120)):
        part = randomness.permuted(count, first, last, *place)
        assert part.dtype == whole.dtype and (part == whole[first:last]).all()
    chosen = np.array([[0, 5, count - 1], [3, 3, 128]])
    every = randomness.uniform((count,), 3, "own")
    assert (randomness.uniform_at(chosen, count, 3, "own") == every[chosen]).all()
    randomness._ends.cache_clear(), randomness._bucket.cache_clear()
