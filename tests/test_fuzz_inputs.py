"""Damaged inputs, made by hypothesis: read as they are, or refused in one line.

benchmarks/repeatability/fuzz.py does the same with ten thousand.
"""

import os
import pathlib
import signal
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from predicting import fuzz

import gpuzoo
from gpuzoo.deploy.trained import load

FUZZ = fuzz()
KINDS = sorted(FUZZ.PREDICTED)
SETTINGS = settings(
    max_examples=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
# Where (most of them in headers), and what: other bytes for a number of bytes.
DAMAGE = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 128), st.integers(0, 10_000)),
        st.integers(0, 64) | st.just(1_000_000),
        st.lists(NUMBERS, max_size=8).map(bytes),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(content: bytes, damage) -> bytes:
    for place, length, other in damage:
        place %= len(content) + 1
        content = content[:place] + other + content[place + length :]
    return content


@pytest.fixture(autouse=True)
def quick():
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(250)
    yield
    signal.alarm(0)


def read_or_refused(read, path, whole, checked: bool) -> None:
    there = sorted(path.parent.rglob("*"))
    try:
        found = read(path)
    except gpuzoo.GpuzooError as error:
        assert "\n" not in str(error) and 3 < len(str(error)) < 2_000
    else:
        assert not checked or FUZZ._same(found, whole), "other values are read"
    assert sorted(path.parent.rglob("*")) == there


@pytest.mark.parametrize("kind", KINDS)
def test_files_to_predict(kind):
    make, read = FUZZ.KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = make(pathlib.Path(folder))
        content, whole = path.read_bytes(), read(path)
        assert len(whole) >= 1

        @given(DAMAGE)
        @SETTINGS
        def check(damage):
            path.write_bytes(damaged(content, damage))
            read_or_refused(read, path, whole, kind in FUZZ.CHECKED)

        check()


@pytest.fixture(scope="module")
def run(runtime, tmp_path_factory):
    """Of a model object, so that it has all kinds of files."""
    import keras

    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    folder = tmp_path_factory.mktemp("run") / "run"
    gpuzoo.train(keras.Sequential(layers), data="digits", fast_dev_run=True, quiet=True,
                 out=str(folder))  # fmt: skip
    return folder


@pytest.mark.parametrize(
    "name", ["run.json", "weights.safetensors", "architecture.json", "sealed again"]
)
def test_runs_to_load(name, run):
    path = run / ("run.json" if name == "sealed again" else name)
    read = FUZZ._load_resealed if name == "sealed again" else FUZZ._load_run
    content = path.read_bytes()
    whole = load(run).model.get_weights()

    @given(DAMAGE)
    @SETTINGS
    def check(damage):
        path.write_bytes(damaged(content, damage))
        read_or_refused(read, path, whole, True)

    try:
        check()
    finally:
        path.write_bytes(content)
    assert FUZZ._same(load(run).model.get_weights(), whole)


def test_what_the_tests_take_for_damage_is_found():
    """A read that gives something else, and a file that is made."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x")
        path.touch()
        one, other = [np.zeros(3)], [np.ones(3)]
        with pytest.raises(AssertionError, match="other values"):
            read_or_refused(lambda path: one, path, other, True)
        with pytest.raises(AssertionError):
            read_or_refused(lambda _: os.mkfifo(path.with_name("y")), path, one, False)
