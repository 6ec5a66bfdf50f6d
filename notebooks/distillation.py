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
# # A small network learns from a large one
#
# What `python recipes/distill_mnist.py` does. The teacher is a finished run: here a
# convolutional network on the digits of scikit-learn, whose images are shifted anew in
# every epoch. The student is a dense network that sees no shifted image, but what the
# teacher makes of each.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
teacher = gpuzoo.train(
    "mnist", data="digits", epochs=60, augment=("translate:2",), quiet=True
)
teacher["test_accuracy"]

# %% [markdown]
# The run is named as the teacher; its digest goes into the record of the student, so
# that a verification learns from the same one. With `distill_alpha=0` only the labels count.

# %%
runs = {
    name: gpuzoo.train(
        "distill_mnist", data="digits", teacher=teacher["run_dir"], distill_alpha=imitation,
        epochs=30, quiet=True,
    )
    for name, imitation in (("labels", 0.0), ("teacher", 0.9))
}  # fmt: skip
{name: (run["test_loss"], run["test_accuracy"]) for name, run in runs.items()}

# %% [markdown]
# One seed on a few hundred test images tells little; `recipes/distill_mnist.py` says
# what the teacher is worth on MNIST.

# %%
import pathlib

from IPython.display import Image, display

display(Image(pathlib.Path(runs["teacher"]["run_dir"], "curves.png")))

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(runs["teacher"]["run_dir"], steps=20)["verdict"]
