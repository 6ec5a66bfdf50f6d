"""Examples that are sent along with the calls give the bits of those on the device."""

import numpy as np
import pytest
from small import RECIPE, same, train

from gpuzoo.data import cache
from gpuzoo.engine import backends, batches, evaluation


@pytest.fixture
def calls(runtime, monkeypatch):
    """The feeds of the compiled calls."""
    kind = type(backends.get(runtime))
    seen, real = [], kind.compile_steps

    def compile_steps(self, body, feed, variables):
        call = real(self, body, feed, variables)

        def noted(feed):
            seen.append({name: array.shape for name, array in feed.items()})
            return call(feed)

        return noted

    monkeypatch.setattr(kind, "compile_steps", compile_steps)
    return seen


def test_streamed_and_resident_are_one(dataset, runtime, calls, monkeypatch):
    resident, events = train(RECIPE, dataset, runtime)
    assert not [feed for feed in calls if "row/image" in feed]
    example = dataset.train["image"][:1].nbytes + dataset.train["label"][:1].nbytes
    monkeypatch.setattr(evaluation, "_PIXELS", 14 * 14 * 7)  # 6 batches, the last 5
    few, _ = train(RECIPE, dataset, runtime)
    calls.clear()
    monkeypatch.setattr(batches, "_CALL_BYTES", 2 * RECIPE.batch_size * example)
    streamed, told = train(RECIPE.override(stream="on"), dataset, runtime)
    assert all("row/image" in feed for feed in calls)
    assert max(feed["indices"][0] for feed in calls if "draws" in feed) == 2
    assert len([feed for feed in calls if "draws" not in feed]) > 2
    assert same(resident, streamed) and same(few, streamed)
    assert few.metrics == streamed.metrics
    for name, array in few.outputs.items():
        assert array.tobytes() == streamed.outputs[name].tobytes()
    digests = [
        [row for kind, row in side if kind == "digest"] for side in (events, told)
    ]
    assert digests[0] == digests[1] and digests[0]


def test_what_does_not_fit_is_streamed(dataset, runtime, calls, monkeypatch):
    size = sum(a.nbytes for split in dataset.splits.values() for a in split.values())
    backend = backends.get(runtime)
    assert backend.memory_bytes() > 1e8
    for there, streamed in ((3 * size, False), (size, True), (None, False)):
        there_is = lambda self, there=there: there  # noqa: E731
        monkeypatch.setattr(type(backend), "memory_bytes", there_is)
        calls.clear()
        train(RECIPE.override(epochs=1), dataset, runtime)
        assert all(("row/image" in feed) == streamed for feed in calls) and calls


def test_streamed_on_jax(cli_on):
    words = ["train", "mnist", "--data", "digits", "--epochs", "2", "--backend", "jax",
             "--precision", "float32", "--augment", "translate:2", "--quiet"]  # fmt: skip
    done = [cli_on("jax")(*words, "--stream", stream) for stream in ("off", "on")]
    assert [one.returncode for one in done] == [0, 0], done[1].stderr
    assert done[0].json["weights_sha256"] == done[1].json["weights_sha256"]
    assert done[0].json["test_loss"] == done[1].json["test_loss"]


def test_cached_examples_stay_on_the_disk(dataset, tmp_path, monkeypatch, runtime):
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path))
    cache.store(dataset, "key")
    cached = cache.load(dataset.name, "key")
    for split, fields in dataset.splits.items():
        for name, array in fields.items():
            found = cached.splits[split][name]
            assert isinstance(found, np.memmap) and found.tobytes() == array.tobytes()
            assert found.dtype == array.dtype and not found.flags.writeable
    assert same(*(train(RECIPE, one, runtime)[0] for one in (dataset, cached)))
