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
# # What a dense layer looks at
#
# What `python recipes/train_mnist_mlp.py` does: two dense layers, and one for the ten
# digits, learn to read. To them an image is a list of numbers without neighbours. Without
# MNIST and without a network the few digits of scikit-learn take its place.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
recipe = gpuzoo.load_recipe("mnist_mlp")
run = gpuzoo.train(recipe, quiet=True)
{key: run[key] for key in ("data", "test_accuracy", "weights_sha256")}

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("mistakes.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## Its weights, as images
#
# Each unit of the first layer has one weight for each pixel, so that its weights are an
# image themselves: red where ink speaks for the unit, blue where ink speaks against it.

# %%
import matplotlib.pyplot as plt
import numpy as np

data = gpuzoo.load_data(run["data"])
model = gpuzoo.build("mlp", input_shape=data.input_shape)
gpuzoo.load_weights(model, folder, sha256=run["weights_sha256"])
kernel = np.asarray(model.layers[2].kernel).reshape(*data.input_shape, -1)
most = np.abs(kernel).max()
figure, grid = plt.subplots(2, 12, figsize=(10, 1.9))
for unit, axes in enumerate(grid.flat):
    axes.imshow(kernel[:, :, 0, unit], cmap="RdBu_r", vmin=-most, vmax=most)
    axes.axis("off")

# %% [markdown]
# ## What shifting is worth
#
# The recipe moves each image by up to a pixel, anew in every epoch: a dense layer does
# not know by itself that a digit beside its place is the same digit.

# %%
still = gpuzoo.train(recipe.override(augment=()), quiet=True)
{"shifted": run["test_accuracy"], "as they are": still["test_accuracy"]}

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=20)["verdict"]
