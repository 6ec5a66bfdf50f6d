"""Arrays, tensors and iterables from Python as data."""

import numpy as np
import pytest
from conftest import needs_jax, needs_tensorflow
from small import two_classes
from test_docs import python_blocks, run_python

import gpuzoo
from gpuzoo.data import from_python
from gpuzoo.data.from_python import as_file

SMALL = {"model": "mlp", "model_options": ("units=(8,)",), "augment": (), "epochs": 1,
         "batch_size": 20, "quiet": True}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pairs():
    a = two_classes()
    return {s: (a[f"x_{s}"], a[f"y_{s}"]) for s in ("train", "test")}


def test_the_page_on_own_data(tmp_path):
    run_python(python_blocks("howto/own-data.md"), tmp_path)


def arrays_in(path) -> dict:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_a_training_on_arrays_is_that_on_their_file(pairs, tmp_path, runtime):
    np.savez(tmp_path / "light.npz", **two_classes())
    found = gpuzoo.train(
        "mnist", data=pairs["train"], test=pairs["test"], out=str(tmp_path / "a"), **SMALL
    )  # fmt: skip
    same = gpuzoo.train(
        "mnist", data=str(tmp_path / "light.npz"), out=str(tmp_path / "b"), **SMALL
    )
    assert found["weights_sha256"] == same["weights_sha256"]
    assert gpuzoo.verify(tmp_path / "a")["verdict"] == "identical"
    assert gpuzoo.evaluate(tmp_path / "a")["identical"]


def test_commands_elsewhere_read_the_kept_file(pairs, tmp_path, cli_here, runtime):
    gpuzoo.train(
        "mnist", data=pairs["train"], test=pairs["test"], out=str(tmp_path / "run"),
        keep_data=tmp_path / "kept.npz", **SMALL,
    )  # fmt: skip
    done = cli_here("verify", "run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "kept.npz").unlink()
    done = cli_here("verify", "run")
    assert done.returncode == 2 and "kept.npz" in done.stderr, done.stderr


def test_a_part_is_held_out_without_a_test_set(pairs, tmp_path, runtime):
    path = as_file(pairs["train"])
    dataset = gpuzoo.load_data(str(path), note=lambda line: None)
    assert dataset.count("train") + dataset.count("test") == len(pairs["train"][0])
    parts = gpuzoo.load_data(str(path), validation=0.25, note=lambda line: None)
    assert parts.count("val") > 0
    x, y = pairs["train"]
    path = as_file((x[:60], y[:60]), (x[60:], y[60:]), pairs["test"])
    own = gpuzoo.load_data(str(path), note=lambda line: None)
    assert dict(own.counts) == {"train": 60, "val": 20, "test": 40}
    with pytest.raises(gpuzoo.GpuzooError, match="need test="):
        as_file(pairs["train"], pairs["test"])


def test_equal_arrays_are_one_file(pairs, tmp_path):
    path = as_file(pairs["train"])
    written = path.stat().st_mtime_ns
    assert as_file([one.copy(order="F") for one in pairs["train"]]) == path
    assert path.stat().st_mtime_ns == written and from_python.is_kept(str(path))
    x, y = pairs["train"]
    assert as_file((x, 1 - y)) != path
    path.write_bytes(path.read_bytes()[:-100])  # damaged
    with pytest.raises(gpuzoo.GpuzooError, match="other data; remove it"):
        as_file(pairs["train"])
    mine = tmp_path / "mine.npz"
    mine.write_bytes(b"mine")
    with pytest.raises(gpuzoo.GpuzooError, match="other data"):
        as_file(pairs["train"], keep=mine)
    assert mine.read_bytes() == b"mine"


@needs_tensorflow
def test_tensors_and_datasets_of_tensorflow(pairs):
    import tensorflow as tf

    x, y = pairs["train"]
    path = as_file((x, y))
    assert as_file((tf.constant(x), tf.constant(y))) == path
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    assert as_file(dataset) == path
    assert as_file(dataset.batch(32)) == path
    path = as_file(
        (tf.cast(x, tf.bfloat16), tf.constant(["dark", "light"] * 40)[: len(y)])
    )
    assert arrays_in(path)["x"].dtype == np.float32
    assert arrays_in(path)["y"][1] == b"light"


@needs_jax
def test_arrays_of_jax(pairs):
    import jax.numpy as jnp

    x, y = pairs["train"]
    path = as_file((jnp.asarray(x), y))
    assert np.array_equal(arrays_in(path)["x"], x)


def test_tensors_of_pytorch(pairs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, y = pairs["train"]
    assert as_file((torch.tensor(x), torch.tensor(y))) == as_file((x, y))


def test_iterables(pairs, monkeypatch):
    x, y = pairs["train"]
    path = as_file((x, y))
    assert as_file(zip(x, y, strict=True)) == path
    batches = [(x[n : n + 7], y[n : n + 7]) for n in range(0, len(x), 7)]
    assert as_file(iter(batches)) == path
    monkeypatch.setattr(from_python, "MOST_BYTES", 10_000)

    def endless():
        while True:
            yield x[0], y[0]

    with pytest.raises(gpuzoo.GpuzooError, match="without an end"):
        as_file(endless())


def test_columns_of_pandas(pairs):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x, y = pairs["train"]
    names = np.array(["dark", "light"])[y]
    path = as_file((x, pandas.Series(names)))
    assert arrays_in(path)["y"].tolist() == names.tolist()


class Odd:
    def __array__(self, *_, **__):
        raise RuntimeError("it requires grad")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ((1, 2, 3), "got 3 parts"),
        ({"x": [1, 2], "y": [3]}, "column 'x' has 2 values and 'y' 1"),
        (3, "got int"),
        (iter([]), "gave no examples"),
        (iter([3]), "pairs"),
        (iter([(np.zeros((2, 2)), 1), (np.zeros((3, 2)), 1)]), "different shapes"),
        (iter([(np.zeros(2), 1), (np.zeros((3, 2)), np.zeros(3))]), "mixed"),
        (iter([(np.zeros((3, 2)), np.zeros(2))]), "single examples"),
        (([[1], [1, 2]], [1, 2]), "cannot be read as an array"),
        ((np.array([None, {}]), [1, 2]), "Python objects"),
        ((np.zeros(2), np.ma.masked_equal([1, 2], 2)), "data, y: a masked array"),
        ((Odd(), [1, 2]), "it requires grad.*detach"),
    ],
)
def test_what_is_no_array_is_refused_by_name(data, error):
    with pytest.raises(gpuzoo.GpuzooError, match=error):
        as_file(data)


def test_arrays_beside_a_name_are_refused(pairs):
    for changes in ({"test": pairs["test"]}, {"validation": pairs["test"]},
                    {"keep_data": "x.npz"}):  # fmt: skip
        with pytest.raises(gpuzoo.GpuzooError, match="belong to arrays"):
            gpuzoo.train("mnist", data="digits", **changes)
