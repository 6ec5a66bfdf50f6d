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
# # A network that draws digits
#
# What `python recipes/train_mnist_gan.py` does: a generator learns to draw, a
# discriminator to tell its images from real ones. On MNIST it takes minutes; without
# MNIST and without a network the few digits of scikit-learn take its place, and the
# images stay rough.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
# Smaller data are repeated for so many steps at least; the recipe's own are more.
recipe = gpuzoo.load_recipe("mnist_gan").override(min_steps=150)
run = gpuzoo.train(recipe, quiet=True)
{key: run[key] for key in ("data", "test_frechet", "train_seconds", "weights_sha256")}

# %% [markdown]
# `test_frechet` is the distance between the images drawn and the real ones, as a fixed
# classifier of digits sees them: 0 is no difference. Each epoch has left a sheet of
# images, always of the same codes, and all of them make `samples.gif`.

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("samples.gif", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## From one image to another
#
# The generator is a plain Keras model of 64 numbers in [-1, 1]. Between two codes lie
# images as well.

# %%
import matplotlib.pyplot as plt
import numpy as np

model = gpuzoo.build("gan")
gpuzoo.load_weights(model, folder, sha256=run["weights_sha256"])
one, other = np.random.default_rng(3).uniform(-1, 1, (2, 64)).astype("float32")
codes = np.array([(1 - part) * one + part * other for part in np.linspace(0, 1, 10)])
figure, grid = plt.subplots(1, 10, figsize=(9, 1.1))
for axes, image in zip(grid, model.generator.predict(codes, verbose=0), strict=True):
    axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
    axes.axis("off")

# %% [markdown]
# ## The proof
#
# Two networks that learn against each other amplify every difference. The same bits all
# the same:

# %%
gpuzoo.verify(folder, steps=50)["verdict"]
