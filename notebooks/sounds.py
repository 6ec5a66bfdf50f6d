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
# # Sounds
#
# What `python recipes/train_tones.py` does: a convolutional network looks at the
# spectrum of a sound over time. The sounds here are computed: eight kinds, at pitches
# that tell nothing. With `data="folder/"` they are your own `.wav` files, one sub-folder
# for each class.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
data = gpuzoo.load_data("tones")
data.classes, data.input_shape

# %% [markdown]
# One of each, as the network sees it: frequencies upwards, time to the right.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

model = gpuzoo.build("audio_cnn", input_shape=data.input_shape, num_classes=8)
seen = keras.Model(model.input, model.get_layer("level").output)
figure, grid = plt.subplots(1, 8, figsize=(12, 2.6))
for label, axes in enumerate(grid):
    sound = data.train["audio"][data.train["label"] == label][:1] / 32768
    axes.imshow(seen.predict(sound, verbose=0)[0, ..., 0], origin="lower", aspect="auto")
    axes.set_title(data.classes[label], fontsize=9)
    axes.axis("off")

# %% [markdown]
# ## The training

# %%
run = gpuzoo.train("tones", epochs=1, quiet=True)  # the recipe's own are more
{key: run[key] for key in ("test_accuracy", "train_seconds", "weights_sha256")}

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("confusion.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=20)["verdict"]
