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
# # Find your own objects
#
# Images with boxes, as a labelling program exports them, train the recipe `shapes`.
# Here they are drawn: balls and crates on noise, in the form of YOLO: `images/`, and in
# `labels/` a line for each box, with the class, the middle, the width and the height as
# parts of the image's sides. COCO's JSON, Pascal VOC's XML and arrays are read, too.

# %%
import pathlib

import numpy as np
from PIL import Image, ImageDraw

rng = np.random.default_rng(0)
yard, side = pathlib.Path("yard"), 64
for name in ("images", "labels"):
    (yard / name).mkdir(parents=True)
(yard / "classes.txt").write_text("ball\ncrate")
for i in range(400):
    image = Image.fromarray(rng.integers(0, 120, (side, side, 3), np.uint8))
    lines = []
    for left in (2, 34)[: rng.integers(1, 3)]:  # one or two objects
        width, kind = int(rng.integers(10, 28)), int(rng.integers(2))
        top = int(rng.integers(0, side - width))
        draw = ImageDraw.Draw(image)
        shape = (draw.ellipse, draw.rectangle)[kind]
        color = tuple(map(int, rng.integers(120, 256, 3)))
        shape((left, top, left + width - 1, top + width - 1), fill=color)
        middle = (left + width / 2) / side, (top + width / 2) / side
        lines.append(f"{kind} {middle[0]} {middle[1]} {width / side} {width / side}")
    image.save(yard / "images" / f"{i:03}.png")
    (yard / "labels" / f"{i:03}.txt").write_text("\n".join(lines))

# %% [markdown]
# A fifth of the images is held out for testing.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
run = gpuzoo.train("shapes", data="yard", min_steps=200, quiet=True)
{key: run[key] for key in ("test_map50", "test_map", "train_seconds")}

# %% [markdown]
# `test_map50` is the mean average precision at an overlap of a half, `test_map` the mean
# over overlaps from 0.5 to 0.95. In grey what is there, in red what was found;
# `report.html` in the folder of the run has all of it on one page.

# %%
import IPython.display

folder = pathlib.Path(run["run_dir"])
IPython.display.Image(folder / "detections.png")

# %% [markdown]
# ## A new image
#
# Boxes are found with their classes and scores, the surest first.

# %%
trained = gpuzoo.load(folder)
image = Image.fromarray(rng.integers(0, 120, (side, side, 3), np.uint8))
ImageDraw.Draw(image).ellipse((20, 12, 47, 39), fill=(230, 200, 40))
found = trained.predict(np.array(image))
boxes = [
    {"class": trained.classes[label], "box": box.round(1).tolist(), "score": float(score)}
    for box, label, score in zip(
        found["found_boxes"][0], found["found_label"][0], found["score"][0]
    )
    if score > 0.3
]
boxes  # top, left, bottom and right, in pixels

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=30)["verdict"]
