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
# # Photographs in a folder
#
# What to do with images of your own: one sub-folder for each class, and a residual
# network. The photographs here are cut out of the two that come with scikit-learn.

# %%
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

places = np.random.default_rng(0).integers(0, (363, 576), (300, 2))
for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
    folder = pathlib.Path("photographs", name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (top, left) in enumerate(places):
        part = photograph[top : top + 64, left : left + 64]
        Image.fromarray(part).save(folder / f"{number:03}.png")

# %% [markdown]
# Resized to 32 pixels a side. A fifth is held out to test with, the same one every time
# (sub-folders `train/` and `test/` would say which). The parts overlap here, so the
# figure flatters.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
data = gpuzoo.load_data("photographs", image_size=32)
data.classes, data.input_shape, data.count("train"), data.count("test"), data.findings

# %% [markdown]
# ## The training
#
# Any model of the catalogue fits (`gpuzoo.list_models("res*")`). Each image is mirrored,
# shifted and recoloured anew in every epoch, inside of the compiled step.

# %%
run = gpuzoo.train(
    "cifar10", data="photographs", image_size=32, model="resnet8", model_options=(),
    batch_size=32, epochs=3, learning_rate=0.1, augment=("translate:4", "flip", "color_jitter:0.2"),
    quiet=True,
)  # fmt: skip
{key: run[key] for key in ("test_accuracy", "train_seconds", "weights_sha256")}

# %%
import IPython.display as show

for name in ("curves.png", "mistakes.png"):
    picture = pathlib.Path(run["run_dir"], name)
    if picture.exists():  # without mistakes there is nothing to show
        show.display(show.Image(picture))

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(run["run_dir"], steps=20)["verdict"]
