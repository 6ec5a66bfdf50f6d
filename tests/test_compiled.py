"""Programs that XLA compiled are kept between processes, checked, and move no bit."""

import importlib.util
import os
import time

import pytest

from gpuzoo.engine import compiled

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed"
)
BASE = ["train", "mnist", "--data", "digits", "--device", "cpu", "--threads", "2",
        "--backend", "jax", "--epochs", "2"]  # fmt: skip
SAID = "had been compiled before"


def programs(tmp_path):
    return sorted((tmp_path / "cache/compiled").glob("*/*"))


def test_a_second_process_compiles_nothing_and_ends_with_the_same_bits(cli, tmp_path):
    first = cli(*BASE, "--out", "first")
    assert first.returncode == 0 and SAID not in first.stderr, first.stderr
    kept = {path: path.stat().st_mtime_ns for path in programs(tmp_path)}
    assert kept
    second = cli(*BASE, "--out", "second")
    assert SAID in second.stderr
    assert {path: path.stat().st_mtime_ns for path in programs(tmp_path)} == kept
    # Compiled anew, and compared.
    verified = cli("verify", "second")
    assert verified.returncode == 0 and SAID not in verified.stderr, verified.stderr
    other = cli(*BASE, "--out", "other", "--model-options", "dropout=0.1")
    assert SAID not in other.stderr
    # One bit is turned, one file is cut, and a killed process has left half a folder.
    whole = programs(tmp_path)
    for number, path in enumerate(whole):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: -1 if number % 2 else None])
    left = tmp_path / "cache/compiled/.writing-left"
    left.mkdir()
    place = next(iter(kept)).parent
    file, young = (place / f".{name}.1.2.3" for name in ("old", "young"))
    for path in (file, young):
        path.touch()
    for path in (left, file):
        os.utime(path, (time.time() - 90_000,) * 2)
    third = cli(*BASE, "--out", "third")
    assert third.returncode == 0 and SAID not in third.stderr, third.stderr
    assert not list((tmp_path / "cache/compiled").glob(".*"))
    assert young.exists() and not file.exists()  # another process may be at the one
    young.unlink()
    half = next(iter(programs(tmp_path))).read_bytes()[:-9]
    assert not compiled._is_whole(half) and not compiled._is_whole(b"")
    digests = {run.json["weights_sha256"] for run in (first, second, third)}
    assert len(digests) == 1 and other.json["weights_sha256"] not in digests


def test_strict_and_a_cache_that_cannot_be_written(cli, tmp_path):
    small = [*BASE, "--model", "mlp", "--fast-dev-run"]
    strict = cli(*small, "--level", "strict", env={"PYTHONHASHSEED": "0"})
    assert strict.returncode == 0, strict.stderr
    assert not (tmp_path / "cache/compiled").exists()
    for place in ("/proc/nowhere", "~nobody-of-this-name/cache"):
        full = cli(*small, env={"GPUZOO_CACHE": place})
        assert full.returncode == 0 and "could not be kept" in full.stderr, full.stderr
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    assert cli(*small, env=own).returncode == 0
    assert not (tmp_path / "cache/compiled").exists()
    assert full.json["weights_sha256"] == strict.json["weights_sha256"]


def test_what_was_not_used_for_longest_goes(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "used", "old")):
        place = tmp_path / name
        place.mkdir()
        (place / "program").write_bytes(bytes(40))
        os.utime(place, (time.time() - age,) * 2)
    monkeypatch.setattr(compiled, "LIMIT", 100)
    compiled._prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "used"}
