"""A finished run goes on for more epochs: as a new run, with the bits of a longer one."""

import json
import shutil

import numpy as np
import pytest
from conftest import needs_tensorflow
from small import net, two_classes

import gpuzoo
from gpuzoo import events
from gpuzoo.runs import chain
from gpuzoo.runs.record import read_run

pytestmark = [needs_tensorflow, pytest.mark.usefixtures("own_cache", "runtime")]
MLP = {
    "model": "mlp", "batch_size": 16, "learning_rate": 0.01, "augment": ("translate:1",),
    "model_options": ("dropout=0.2", "units=(16,)"), "ema_decay": 0.9, "schedule": "constant",
    "warmup_fraction": 0.0, "log_every": 2, "digest_every": 4, "checkpoint_every": 3,
    "quiet": True,
}  # fmt: skip


@pytest.fixture
def make(npz, tmp_path):
    def run(name, **how):
        gpuzoo.train("mnist", data=str(npz), out=tmp_path / name, **{**MLP, **how})
        return tmp_path / name

    return run


def rows(run, name) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_it_ends_with_the_bits_of_the_whole(make, tmp_path):
    """With averaged weights, dropout and augmentation; stopped on the way; and verified
    without the first run."""
    whole, half, more = (
        make("whole", epochs=4),
        make("half", epochs=2),
        tmp_path / "more",
    )

    def stop(event):
        if isinstance(event, events.CheckpointSaved):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpuzoo.resume(half, epochs=2, out=more, quiet=True, on_event=stop)
    first = read_run(half)
    shutil.rmtree(half)
    assert read_run(more)["state"] == "stopped"
    done = gpuzoo.resume(more, quiet=True)
    record = read_run(more)
    assert done["weights_sha256"] == read_run(whole)["weights_sha256"]
    assert (more / "state.safetensors").read_bytes() == (
        whole / "state.safetensors"
    ).read_bytes()
    assert record["epochs"] == record["recipe"]["epochs"] == 4
    assert record["parent"]["id"] == first["id"] and record["parent"]["step"] == 10
    for name in ("metrics.jsonl", "digests.jsonl"):
        wanted = [row for row in rows(whole, name) if row["step"] > 10]
        if name == "digests.jsonl":  # its first has the losses since the one before
            wanted[0]["losses"] = wanted[0]["losses"][-8 * 2 :]
        found = rows(more, name)  # the chain of a run begins with it
        assert [*map(chain.without, found)] == [*map(chain.without, wanted)]
    for steps in (0, 3):
        found = gpuzoo.verify(more, steps=steps)
        assert found["verdict"] == "identical", found
        assert found["steps"] == (steps or 10)
    diff = gpuzoo.diff(whole, more)
    assert diff["first_difference"] is None and not diff["weights"]
    text = (more / "run.json").read_text()
    (more / "run.json").write_text(text.replace(first["id"], "0" * 32))
    assert "id: " in str(gpuzoo.verify(more)["figures"])


def test_a_decaying_schedule_is_that_of_the_whole_length(make, tmp_path, capfd):
    half = make("half", epochs=2, schedule="linear", keep="best", validation=0.2)
    capfd.readouterr()
    gpuzoo.resume(half, epochs=2, out=tmp_path / "more")
    told = capfd.readouterr().err
    assert "after epoch 2, step 8, to epoch 4, as a new run" in told
    assert "(linear) is that of 4 epochs: the learning rate continues at 0.005;" in told
    assert "keep=best sees the evaluations of the new epochs only" in told
    assert gpuzoo.verify(tmp_path / "more")["verdict"] == "identical"


def test_a_model_object_goes_on_with_its_compiled_optimizer(train, tmp_path):
    how = {"fresh": True, "log_every": 2}
    whole = train(compiled(), epochs=2, **how)
    train(compiled(), epochs=1, **how)
    more = gpuzoo.resume(train.folder(), epochs=1, out=tmp_path / "more", quiet=True)
    assert more["weights_sha256"] == whole["weights_sha256"]
    assert gpuzoo.verify(tmp_path / "more")["verdict"] == "identical"


def compiled():
    import keras

    model = net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("rmsprop", loss)
    return model


def test_what_cannot_go_on_is_refused_by_name(make, npz, tmp_path):
    half = make("half", epochs=1)

    def refused(text, run=half, **how):
        with pytest.raises(gpuzoo.GpuzooError, match=text):
            gpuzoo.resume(run, quiet=True, **{"epochs": 1, **how})
        assert not (tmp_path / "runs").exists()

    refused("epochs must be at least 1", epochs=0)
    refused("allow_drift is for the rest", allow_drift=True)
    refused("is for the new run of resume with epochs", epochs=None, out="other")
    refused("--fast-dev-run, two steps", run=make("fast", epochs=1, fast_dev_run=True))
    off = make("off", epochs=1, keep_state="off")
    refused("has no state.safetensors .*gpuzoo train mnist --init", run=off)
    stopped = tmp_path / "stopped"
    with pytest.raises(ZeroDivisionError):
        make("stopped", epochs=2, on_event=lambda event: 1 / 0)
    refused("needs a finished run, and .* stopped; finish it first", run=stopped)
    np.savez(npz, **{**two_classes(), "x_test": two_classes()["x_test"][::-1]})
    refused("cannot be continued, its data have changed", out=tmp_path / "more")
    assert not (tmp_path / "more").exists()
    content = bytearray((half / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (half / "state.safetensors").write_bytes(content)
    refused("state.safetensors has been changed since the run finished")
