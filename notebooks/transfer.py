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
# publishes, of a network trained on ImageNet. So that nothing has to be downloaded, the
# network here learns the digits 0 to 4 first, and is then given a few of the others.

# %%
import numpy as np

import gpuzoo

gpuzoo.configure(seed=0)
digits = gpuzoo.load_data("digits")
for name, wanted, few in (("old", range(5), None), ("new", range(5, 10), 100)):
    arrays = {}
    for split in ("train", "test"):
        examples = getattr(digits, split)
        chosen = np.isin(examples["label"], wanted)
        limit = few if split == "train" else None
        arrays[f"x_{split}"] = examples["image"][chosen][:limit]
        arrays[f"y_{split}"] = examples["label"][chosen][:limit] - wanted[0]
    np.savez(f"{name}.npz", **arrays)
    print(name, {key: len(value) for key, value in arrays.items()})

# %%
NETWORK = {"model": "keras/mobilenet", "batch_size": 32, "quiet": True}
old = gpuzoo.train(
    "finetune", data="old.npz", model_options=("side=32",), epochs=20, **NETWORK
)
old["test_accuracy"]

# %% [markdown]
# The network without its head, into a file, as `save_weights` of Keras writes it.
# gpuzoo takes such a file only with its digest.

# %%
import hashlib
import pathlib

model = gpuzoo.build("keras/mobilenet", input_shape=(8, 8, 1), num_classes=5, side=32)
gpuzoo.load_weights(model, old["run_dir"], sha256=old["weights_sha256"])
body = next(layer for layer in model.layers if layer.name.startswith("mobilenet"))
body.save_weights("seen.weights.h5")
digest = hashlib.sha256(pathlib.Path("seen.weights.h5").read_bytes()).hexdigest()
body.count_params(), digest

# %% [markdown]
# ## With and without
#
# A hundred examples of five new classes. `frozen=True` keeps the network as it is and
# trains its head alone.

# %%
seen = ("weights=seen.weights.h5", f"sha256={digest!r}", "frozen=True")
runs = {
    name: gpuzoo.train(
        "finetune", data="new.npz", model_options=("side=32", *options), epochs=40,
        learning_rate=0.01 if options else 0.001, **NETWORK,
    )
    for name, options in (("at random", ()), ("seen before", seen))
}  # fmt: skip
{name: run["test_accuracy"] for name, run in runs.items()}

# %%
from IPython.display import Image, display

display(Image(pathlib.Path(runs["seen before"]["run_dir"], "confusion.png")))

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(runs["seen before"]["run_dir"], steps=20)["verdict"]
