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
# # Good or bad? Classify short texts
#
# What `python recipes/train_text.py` does: a convolutional network reads reviews of
# hotels. They are generated, so that their verdict depends on the order of words: "not
# good" is bad, and what follows "in the end" decides.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
data = gpuzoo.load_data("reviews")
print(*data.findings, sep="\n")
data.counts

# %%
run = gpuzoo.train("text", quiet=True)
{key: run[key] for key in ("test_accuracy", "test_loss", "train_seconds")}

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("confusion.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# `report.html` in this folder has all of it on one page. New texts are read by the
# vocabulary of the run:

# %%
trained = gpuzoo.load(folder)
texts = [
    "The room was lovely.",
    "The room was anything but lovely.",
    "The staff was rude, but in the end the pool was great.",
]
found = trained.predict(texts)
for text, best, sure in zip(texts, found["predicted"], found["confidence"]):
    print(f"{trained.classes[best]:6} {sure:.0%}  {text}")

# %% [markdown]
# ## Your own texts
#
# A data frame, a `.csv` file, or two lists.

# %%
mine = ["Vielen Dank!", "Danke sehr", "Wo bleibt mein Paket?", "Paket kam nie an"] * 20
labels = ["thanks", "thanks", "complaint", "complaint"] * 20
own = gpuzoo.train("text", data=(mine, labels), min_steps=40, quiet=True)
trained = gpuzoo.load(own["run_dir"])
trained.classes[trained.predict("Mein Paket ist nie angekommen")["predicted"][0]]

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=50)["verdict"]
