"""Installing with one backend: what is required, and what runs where the other one is
absent."""

import base64
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import BytesParser

import numpy as np
import pytest
from conftest import ROOT, environment, skip_without
from packaging.requirements import Requirement
from small import splits, two_classes

from gpuzoo.data import cache
from gpuzoo.data.validate import make_dataset
from gpuzoo.runs.record import seal

# What belongs to a backend, by the beginning of its name in site-packages.
PARTS = {"tensorflow": ("tensorflow", "google_crc32c"), "jax": ("jax",)}


def copy_tree(folder: pathlib.Path) -> pathlib.Path:
    """The sources; an install writes beside them."""
    left_out = shutil.ignore_patterns(
        ".*", "__pycache__", "tests", "benchmarks", "docs", "*.egg-info"
    )
    shutil.copytree(ROOT, folder / "tree", ignore=left_out)
    return folder / "tree"


def built(tree: pathlib.Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *words, "-o", "dist", "."],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip


def required(path: pathlib.Path, python: str) -> tuple[set[str], set[str]]:
    """What a wheel requires without an extra, for a version of Python; its extras."""
    wheel = zipfile.ZipFile(path)
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = BytesParser().parsebytes(wheel.read(name))
    assert metadata.get_payload().startswith("# gpuzoo")  # the README is still there
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    found = {
        f"{one.name}{one.specifier}"
        for one in wanted
        if not one.marker
        or one.marker.evaluate({"extra": "", "python_version": python})
    }
    return found, set(metadata.get_all("Provides-Extra"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel of each way to build one, from an sdist, as an index has it."""
    folder, found = tmp_path_factory.mktemp("wheels"), {}
    tree = copy_tree(folder)
    done = built(tree, "--sdist")
    assert done.returncode == 0, done.stderr
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    for number, words in enumerate(((), ("backend=tensorflow",), ("backend=jax",))):
        with tarfile.open(sdist) as file:
            file.extractall(folder / str(number), filter="data")
        (source,) = (folder / str(number)).iterdir()
        options = [f"--config-setting={word}" for word in words]
        done = built(source, "--wheel", *options)
        assert done.returncode == 0, done.stderr
        (found[words],) = (source / "dist").glob("*.whl")
    return found


def test_plain_gpuzoo_requires_tensorflow_and_jax_alone_does_not(wheels):
    plain, named, jax = (required(wheel, "3.13") for wheel in wheels.values())
    assert plain == named and {"tensorflow", "jax", "cuda"} <= plain[1] == jax[1]
    assert {"tensorflow>=2.20", "tensorflow-datasets>=4.9.9"} == plain[0] - jax[0]
    assert jax[0] - plain[0] == {"jax"}


def test_where_tensorflow_has_no_release_plain_gpuzoo_requires_jax(wheels):
    plain, named, jax = (required(wheel, "3.14") for wheel in wheels.values())
    assert plain == named and "jax" in plain[0] and jax[0] < plain[0]
    assert plain[0] - jax[0] == {"tensorflow-datasets>=4.9.9"}


def test_wheels_hold_what_their_records_say(wheels):
    for path in wheels.values():
        wheel = zipfile.ZipFile(path)
        (record,) = (n for n in wheel.namelist() if n.endswith(".dist-info/RECORD"))
        rows = [row.rsplit(",", 2) for row in wheel.read(record).decode().splitlines()]
        assert sorted(row[0] for row in rows) == sorted(wheel.namelist())
        for name, digest, size in rows:
            content = wheel.read(name)
            told = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
            right = f"sha256={told.decode().rstrip('=')}", str(len(content))
            assert name == record or (digest, size) == right


def test_a_backend_that_is_none_is_refused(tmp_path):
    tree = copy_tree(tmp_path)
    done = built(tree, "--wheel", "--config-setting=backend=torch")
    assert done.returncode != 0 and not list(tree.glob("dist/*.whl"))
    told = "--config-settings backend=torch: expected tensorflow or jax"
    assert told in done.stdout + done.stderr


# --- environments without one of the backends ---------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Make an environment with gpuzoo and one backend, without network: what is
    installed here, but for the other backend, is linked into it. Returns its Python."""
    made = {}

    def make(backend: str) -> pathlib.Path:
        skip_without(backend)
        if backend not in made:
            made[backend] = install(backend, tmp_path_factory.mktemp(backend))
        return made[backend]

    return make


def install(backend: str, folder: pathlib.Path) -> pathlib.Path:
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (site,) = folder.glob("venv/lib/python*/site-packages")
    absent = next(parts for name, parts in PARTS.items() if name != backend)
    for place in [path for path in sys.path if path.endswith("-packages")]:
        for one in pathlib.Path(place).iterdir():
            name = one.name.lower()
            own = "gpuzoo" in name or name.endswith(".pth")
            if not own and not name.startswith(absent) and not (site / name).exists():
                (site / one.name).symlink_to(one)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         f"--config-settings=backend={backend}", "-e", copy_tree(folder)],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return python


@pytest.fixture
def gpuzoo(alone, tmp_path):
    """Run a command, or code, in the environment with one backend."""

    def run(backend: str, *words, code: str = ""):
        program = ["-c", code] if code else ["-m", "gpuzoo", *map(str, words)]
        done = subprocess.run(
            [alone(backend), *program], cwd=tmp_path, env=environment(tmp_path),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        done.json = json.loads(lines[-1]) if lines and lines[-1][:1] == "{" else None
        return done

    return run


FEW = ["--model", "mlp", "--epochs", "2", "--device", "cpu"]
SAID = "jax (tensorflow is not installed) · "


def test_jax_alone_trains_and_verifies(gpuzoo, tmp_path, monkeypatch):
    """From a file and from a cache that another environment wrote; a folder that is
    called tensorflow is no package."""
    (tmp_path / "tensorflow").mkdir()
    np.savez(tmp_path / "mine.npz", **two_classes())
    train = ["train", "mnist", *FEW, "--batch-size", "16"]
    first = gpuzoo("jax", *train, "--data", "mine.npz", "--out", "one")
    assert first.returncode == 0, first.stderr
    assert first.json["backend"] == "jax" and SAID in first.stderr.splitlines()[0]
    again = gpuzoo("jax", "verify", "one")
    assert (again.returncode, again.json["verdict"]) == (0, "identical"), again.stderr

    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path / "cache"))
    mnist = make_dataset("mnist", "made up", splits(two_classes()))
    cache.store(mnist, "download")
    cached = gpuzoo("jax", *train, "--backend", "jax", "--out", "two")
    assert cached.returncode == 0, cached.stderr
    assert cached.json["data"] == "mnist" and SAID not in cached.stderr
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["data"]["fingerprint"] == mnist.fingerprint


def test_jax_alone_refuses_tensorflow_and_what_only_it_reads(gpuzoo, tmp_path):
    refused = gpuzoo("jax", "train", "mnist", "--backend", "tensorflow", "--out", "one")
    assert refused.returncode == 2 and not (tmp_path / "one").exists()
    assert refused.stderr == (
        "gpuzoo: error: backend tensorflow is not installed; run: pip install "
        "tensorflow, or use --backend jax\n"
    )
    (tmp_path / "folder" / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "folder" / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    refused = gpuzoo("jax", "train", "mnist", "--data-dir", "folder", "--out", "one")
    assert refused.returncode == 2 and not (tmp_path / "one").exists()
    assert "pip install tensorflow-datasets google-crc32c" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_jax_alone_looks_around(gpuzoo):
    assert gpuzoo("jax", "list").returncode == 0
    assert gpuzoo("jax", "info", "cnn").json["parameters"] == 108_874
    done = gpuzoo("jax", "doctor", "--quick")
    told = {finding["name"]: finding for finding in done.json["findings"]}
    assert told["backends"]["ok"] and told["backends"]["what"] == (
        "jax (tensorflow is not installed: pip install tensorflow adds it)"
    )
    assert told["packages"]["ok"] and told["jax"]["ok"] and "tensorflow" not in told
    code = "import gpuzoo, keras; print(gpuzoo.build('mlp').count_params())"
    assert gpuzoo("jax", code=code).stdout.strip() == "269322"


def test_tensorflow_alone(gpuzoo):
    train = ["train", "mnist", *FEW, "--data", "digits", "--out", "one"]
    first = gpuzoo("tensorflow", *train)
    assert first.returncode == 0, first.stderr
    assert first.json["backend"] == "tensorflow"
    assert "not installed" not in first.stderr
    again = gpuzoo("tensorflow", "verify", "one")
    assert (again.returncode, again.json["verdict"]) == (0, "identical"), again.stderr
    refused = gpuzoo("tensorflow", *train[:-1], "two", "--backend", "jax")
    assert refused.returncode == 2 and refused.stderr == (
        "gpuzoo: error: backend jax is not installed; run: pip install jax, or use "
        "--backend tensorflow\n"
    )
    done = gpuzoo("tensorflow", "doctor", "--quick")
    told = {finding["name"]: finding for finding in done.json["findings"]}
    assert told["backends"]["what"] == (
        "tensorflow (jax is not installed: pip install jax adds it)"
    )
    assert "jax" not in told


@pytest.mark.parametrize(
    "made_by, here", [("tensorflow", "jax"), ("jax", "tensorflow")]
)
def test_a_run_of_the_backend_that_is_absent_is_refused_in_a_line(
    made_by, here, gpuzoo, tmp_path
):
    """By verify, resume and diff --replay, with what to install."""
    train = ["train", "mnist", *FEW, "--data", "digits", "--fast-dev-run"]
    for name, seed in (("one", 0), ("two", 1)):
        done = gpuzoo(made_by, *train, "--seed", seed, "--out", name)
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["runtime"]["backend"] == made_by
    before = {p: p.read_bytes() for p in sorted((tmp_path / "one").glob("*.*"))}
    told = (
        f"gpuzoo: error: {{}}the run was trained on {made_by}, which is not installed; "
        f"run: pip install 'gpuzoo[{made_by}]'\n"
    )
    for words in (["verify", "one"], ["verify", "one", "--quick"]):
        done = gpuzoo(here, *words)
        assert done.returncode == 2 and done.stderr == told.format("")
    done = gpuzoo(here, "diff", "one", "two", "--replay")
    lines = done.stderr.splitlines(keepends=True)
    assert done.returncode == 2 and len(lines) <= 2
    assert lines[-1] == told.format("one cannot be re-run here: ")
    assert before == {p: p.read_bytes() for p in sorted((tmp_path / "one").glob("*.*"))}
    # One that was stopped cannot be resumed there.
    record |= {"state": "stopped"}
    record["seal"] = seal(record)
    (tmp_path / "one" / "run.json").write_text(json.dumps(record))
    done = gpuzoo(here, "resume", "one")
    assert done.returncode == 2 and done.stderr == told.format("")
