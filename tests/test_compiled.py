"""Programs that XLA compiled are kept between processes, checked, and move no bit."""

import os
import time

from conftest import needs_jax

from gpuzoo.engine.backends import compile_cache
from gpuzoo.files import MARKER, make_temporary_folder, temporary_name

pytestmark = needs_jax
BASE = ["train", "mnist", "--data", "digits", "--device", "cpu", "--threads", "2",
        "--backend", "jax", "--epochs", "2"]  # fmt: skip
SAID = "had been compiled before"


def programs(tmp_path):
    return sorted((tmp_path / "cache/compiled").glob("*/[!.]*"))


def test_a_second_process_compiles_nothing_and_ends_with_the_same_bits(cli, tmp_path):
    base = [*BASE, "--model", "mlp", "--model-options", "units=(16,)"]
    first = cli(*base, "--out", "first")
    assert first.returncode == 0 and SAID not in first.stderr, first.stderr
    kept = {path: path.stat().st_mtime_ns for path in programs(tmp_path)}
    assert kept
    second = cli(*base, "--out", "second")
    assert SAID in second.stderr
    assert {path: path.stat().st_mtime_ns for path in programs(tmp_path)} == kept
    # Compiled anew, and compared.
    verified = cli("verify", "second")
    assert verified.returncode == 0 and SAID not in verified.stderr, verified.stderr
    other = cli(*base, "dropout=0.1", "--out", "other")
    assert SAID not in other.stderr
    # One bit is turned, one file is cut, and a killed process has left half a folder.
    whole = programs(tmp_path)
    for number, path in enumerate(whole):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: -1 if number % 2 else None])
    left = make_temporary_folder(tmp_path / "cache/compiled")
    (left / "jit_step-0-cache").touch()
    place = next(iter(kept)).parent
    file, young, users = (
        place / name for name in (temporary_name(), temporary_name(), ".old.1.2.3")
    )
    for path in (file, young, users):
        path.touch()
    for path in (left, file, users):
        os.utime(path, (time.time() - 90_000,) * 2)
    third = cli(*base, "--out", "third")
    assert third.returncode == 0 and SAID not in third.stderr, third.stderr
    assert f"Recompiled: {len(kept)} of the programs" in third.stderr  # of its place
    assert not list((tmp_path / "cache/compiled").glob(".*"))
    assert young.exists() and not file.exists()  # another process may be at the one
    assert users.exists()
    half = next(iter(programs(tmp_path))).read_bytes()[:-9]
    assert not compile_cache._is_whole(half) and not compile_cache._is_whole(b"")
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
        place = tmp_path / (
            name[0].replace("n", "a").replace("u", "b").replace("o", "c") * 32
        )
        place.mkdir()
        (place / MARKER).touch()
        (place / f"jit_step-0-cache.{'0' * 64}").write_bytes(bytes(40))
        if name == "old":
            (place / "notes.txt").touch()
        os.utime(place, (time.time() - age,) * 2)
    for name in ("mine", "f" * 32):  # of the user's
        (tmp_path / name).mkdir()
        (tmp_path / name / f"jit_step-0-cache.{'0' * 64}").write_bytes(bytes(400))
    monkeypatch.setattr(compile_cache, "LIMIT", 100)
    compile_cache._prune(tmp_path)
    found = {
        path.name: sorted(file.name for file in path.iterdir())
        for path in tmp_path.iterdir()
    }
    assert found.pop("c" * 32) == [MARKER, "notes.txt"]
    assert [len(files) for files in found.values()].count(2) == 2  # with MARKER
    assert {"mine", "f" * 32, "a" * 32, "b" * 32} == found.keys()


def test_a_program_under_another_name_and_one_that_jax_cannot_load(cli, tmp_path):
    """The digests of two programs stay right for their content; then one is right in
    every way and no program."""
    words = [*BASE, "--model", "mlp", "--epochs", "1"]
    first = cli(*words)
    assert first.returncode == 0, first.stderr
    one, other = programs(tmp_path)[:2]
    contents, names = [], []
    for path in (one, other):
        contents.append(path.read_bytes())
        names.append(path.name.rpartition("."))
        path.unlink()
    contents.reverse()
    digests = [digest for _, _, digest in reversed(names)]
    for content, (name, _, _), digest in zip(contents, names, digests, strict=True):
        (one.parent / f"{name}.{digest}").write_bytes(content)
    second = cli(*words)
    assert second.returncode == 0, second.stderr
    assert "Recompiled: 2 of the programs" in second.stderr
    from jax._src.compilation_cache import compress_executable

    garbage = compress_executable(bytes(2000))
    for path in programs(tmp_path):
        name = path.name.rpartition(".")[0]
        digest = compile_cache._digest(path.parent, name, garbage)
        path.unlink()
        (path.parent / f"{name}.{digest}").write_bytes(garbage)
    third = cli(*words, env={"JAX_RAISE_PERSISTENT_CACHE_ERRORS": "1"})
    assert third.returncode == 0 and "Traceback" not in third.stderr, third.stderr
    assert "JAX cannot load it" in third.stderr and "warn(" not in third.stderr
    digests = {run.json["weights_sha256"] for run in (first, second, third)}
    assert len(digests) == 1
