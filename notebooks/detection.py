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
# # Where are the digits, and which?
#
# What `python recipes/train_digit_detection.py` does: digits are put on a canvas inside
# of every step, in random sizes and places, so that their boxes are known exactly and no
# scene is seen twice. On MNIST it takes minutes; without MNIST and without a network the
# few digits of scikit-learn take its place.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
# Smaller data are repeated for so many steps at least; the recipe's own are more.
recipe = gpuzoo.load_recipe("digit_detection").override(min_steps=120)
run = gpuzoo.train(recipe, quiet=True)
{key: run[key] for key in ("data", "test_loss", "test_map50", "train_seconds")}

# %% [markdown]
# `test_map50` is the mean average precision at an overlap of a half: of the boxes in the
# order of their scores, how many are right, on average over all recalls and classes. In
# grey what is there, in red what was found.

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("detections.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## What the network says
#
# For every cell of 4x4 pixels the logit of being the middle of each digit, and the box.

# %%
import matplotlib.pyplot as plt
import numpy as np

model = gpuzoo.build("detector", input_shape=(64, 64, 1), num_classes=10)
gpuzoo.load_weights(model, folder, sha256=run["weights_sha256"])
canvas = np.zeros((1, 64, 64, 1), "float32")
canvas[0, 5:33, 20:48] = gpuzoo.load_data("digits").test["image"][0] / 255
middles = 1 / (1 + np.exp(-model.predict(canvas, verbose=0)[0, :, :, :10]))
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
left.imshow(canvas[0, ..., 0], cmap="gray_r")
right.imshow(middles.max(axis=-1), vmin=0)
right.set_title(f"most of all a {np.unravel_index(middles.argmax(), middles.shape)[2]}")

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=50)["verdict"]
