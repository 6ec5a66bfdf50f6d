# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A network that has seen other images before
#
# What `python recipes/finetune.py` is for. Usually the weights are a file that Keras
# publishes, of a network trained on ImageNet. So that nothing has to be downloaded, a
# small network of KerasHub (`pip install -e ".[hub]"` in a checkout of gpuzoo) learns the
# digits 0 to 4 first, and is then given a few of the others.

# %%
import numpy as np

import gpuzoo

gpuzoo.configure(seed=0)
digits = gpuzoo.load_data("digits")
for name, wanted, few in (("old", range(5), None), ("new", range(5, 10), 20)):
    arrays = {}
    for split in ("train", "test"):
        examples = getattr(digits, split)
        chosen = np.isin(examples["label"], wanted)
        limit = few if split == "train" else None
        arrays[f"x_{split}"] = examples["image"][chosen][:limit]
        arrays[f"y_{split}"] = examples["label"][chosen][:limit] - wanted[0]
    np.savez(f"{name}.npz", **arrays)
    print(name, {key: len(value) for key, value in arrays.items()})

# %% [markdown]
# KerasHub keeps a network in a folder, a preset. This one has no weights yet, so a run
# begins at random.

# %%
import pathlib

import keras_hub

network = keras_hub.models.VGGBackbone(
    stackwise_num_repeats=[1, 1, 1], stackwise_num_filters=[16, 32, 64],
    image_shape=(32, 32, 3),
)  # fmt: skip
network.save_to_preset("preset")
pathlib.Path("preset/model.weights.h5").unlink()
config = pathlib.Path("preset/config.json").read_bytes()

# %%
import hashlib

HUB = {"model": "keras/hub", "learning_rate": 0.003, "augment": (), "batch_size": 10, "quiet": True}


def options(*parts, **more):
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    given = {"preset": "preset", "sha256": repr(digest), "side": 32, **more}
    return tuple(f"{key}={value}" for key, value in given.items())


random = options(config)
old = gpuzoo.train(
    "finetune", data="old.npz", model_options=random, epochs=15, **HUB
)
old["test_accuracy"]

# %% [markdown]
# What it has learned, without its head, into the preset, as `save_weights` of Keras
# writes it. gpuzoo takes a preset only with its digest.

# %%
model = gpuzoo.build(
    "keras/hub", input_shape=(8, 8, 1), num_classes=5, side=32, preset="preset",
    sha256=hashlib.sha256(config).hexdigest(),
)  # fmt: skip
gpuzoo.load_weights(model, old["run_dir"], sha256=old["weights_sha256"])
body = next(layer for layer in model.layers if "backbone" in layer.name)

# %% [markdown]
# ## With and without
#
# Twenty examples of five new classes; all that differs is where the network begins.
# (`frozen=True` would keep it as it is and train its head alone.)

# %%
runs = {
    "at random": gpuzoo.train(
        "finetune", data="new.npz", model_options=random, epochs=60, **HUB
    )
}
body.save_weights("preset/model.weights.h5")
seen = options(config, pathlib.Path("preset/model.weights.h5").read_bytes())
runs["seen before"] = gpuzoo.train(
    "finetune", data="new.npz", model_options=seen, epochs=60, **HUB
)
{name: run["test_accuracy"] for name, run in runs.items()}

# %%
from IPython.display import Image, display

display(Image(pathlib.Path(runs["seen before"]["run_dir"], "confusion.png")))

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(runs["seen before"]["run_dir"], steps=20)["verdict"]
