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
# # Which pixel belongs to which digit?
#
# What `python recipes/train_segmentation.py` does: a U-Net finds the class of every
# pixel of digits on textures. The images and their masks are computed, the same on
# every machine.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
run = gpuzoo.train("segmentation", quiet=True)
{key: run[key] for key in ("test_mean_iou", "test_accuracy", "train_seconds")}

# %% [markdown]
# `test_mean_iou` is the mean over the classes of intersection over union: of the pixels
# that have a class, or are predicted to have it, the part for which both is true. The
# accuracy is high from the first epoch on, as most pixels are background.

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("segmentations.png", "confusion_of_pixels.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## A picture of your own
#
# The network takes any image of its size; `gpuzoo predict RUN photo.jpg --out FOLDER`
# resizes photos, and writes masks as PNG files. A 7 of straight lines is unlike those of
# the training: the network finds its pixels, and is not sure of the digit.

# %%
import matplotlib.pyplot as plt
import numpy as np

from gpuzoo.data.masks import palette

trained = gpuzoo.load(folder)
image = np.full((64, 64, 3), (40, 60, 120), np.uint8)
ink = (230, 200, 80)  # a 7, of straight lines
image[8:12, 10:26] = ink
for row in range(12, 30):
    left = 22 - (row - 12) // 2
    image[row, left : left + 4] = ink
found = trained.predict(image)
mask = found["predicted"][0]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8, 3))
left.imshow(image)
middle.imshow(palette()[mask])
right.imshow(found["confidence"][0], vmin=0, vmax=1)
parts = np.bincount(mask.ravel(), minlength=len(trained.classes)) / mask.size
middle.set_title(f"most of the figure: {trained.classes[1 + parts[1:].argmax()]}")
right.set_title("how sure it is");

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=30)["verdict"]
