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
# # Images to a code and back
#
# What `python recipes/train_mnist_vae.py` does: a variational autoencoder learns to
# write each digit down in 20 numbers and to draw it again from them. Codes that no
# image has are drawn as well, so it can invent. Without MNIST and without a network the
# few digits of scikit-learn take its place, and the images stay blurred.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
run = gpuzoo.train("mnist_vae", quiet=True)
{key: run[key] for key in ("data", "test_loss", "test_error", "weights_sha256")}

# %% [markdown]
# `test_loss` bounds how many nats an image takes, `test_error` is the mean squared
# error of a pixel. Above the images of the test set, below what their codes keep:

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("reconstructions.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## New images
#
# The model is a plain Keras model, and its layer `decoder` another one, from codes to
# logits. Between the codes of two images lie those of images in between; standard
# normal numbers give new ones.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

data = gpuzoo.load_data(run["data"])
model = gpuzoo.build("vae", input_shape=data.input_shape)
gpuzoo.load_weights(model, folder, sha256=run["weights_sha256"])
decoder = model.get_layer("decoder")

two = [np.flatnonzero(data.test["label"] == label)[0] for label in (3, 6)]
one, other = model.predict(data.test["image"][two] / 255, verbose=0)["mean"]
rows = [
    np.array([(1 - part) * one + part * other for part in np.linspace(0, 1, 12)]),
    np.random.default_rng(0).standard_normal((12, len(one))).astype("float32"),
]
figure, grid = plt.subplots(2, 12, figsize=(10, 1.9))
for codes, line in zip(rows, grid, strict=True):
    images = keras.ops.sigmoid(decoder(codes))
    for axes, image in zip(line, keras.ops.convert_to_numpy(images), strict=True):
        axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        axes.axis("off")

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=20)["verdict"]
