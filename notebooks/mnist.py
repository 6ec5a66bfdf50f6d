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
# # Handwritten digits, step by step
#
# What `python recipes/train_mnist.py` does, one step a cell. Everything here can be
# copied into a script. Without MNIST and without a network the digits of scikit-learn
# take its place.

# %%
import gpuzoo

# Once and early: device, precision, XLA, determinism and threads, each with its reason.
runtime = gpuzoo.configure(seed=0)
runtime.reasons

# %% [markdown]
# ## The examples

# %%
import matplotlib.pyplot as plt

data = gpuzoo.load_data("mnist", fallback_data="digits")
figure, grid = plt.subplots(2, 8, figsize=(8, 2.2))
for axes, image, label in zip(
    grid.flat, data.train["image"], data.train["label"], strict=False
):
    axes.imshow(image[..., 0], cmap="gray_r")
    axes.set_title(data.classes[label], fontsize=8)
    axes.axis("off")

# %% [markdown]
# ## The model
#
# A plain `keras.Model`: `compile`, `fit`, `predict` and `save` work as always.

# %%
model = gpuzoo.build("cnn", input_shape=data.input_shape)
model.summary()

# %% [markdown]
# ## The training
#
# The recipe is data, and every field can be given another value. The training itself runs
# as compiled calls over data that stay on the device, many steps a call (with JAX on a CPU
# one).

# %%
recipe = gpuzoo.load_recipe("mnist")
run = gpuzoo.train(recipe, quiet=True)
{key: run[key] for key in ("data", "test_accuracy", "train_seconds", "weights_sha256")}

# %%
curves = plt.imread(f"{run['run_dir']}/curves.png")
figure, axes = plt.subplots(figsize=(9, 4))
axes.imshow(curves)
axes.axis("off");

# %% [markdown]
# ## The proof
#
# The run is done again from its record and compared, loss by loss and bit by bit.

# %%
verdict = gpuzoo.verify(run["run_dir"])
verdict["verdict"], verdict["steps"]

# %% [markdown]
# ## The weights
#
# Weights are data: a safetensors file, loaded strictly by name, shape and type.

# %%
gpuzoo.load_weights(model, run["run_dir"], sha256=run["weights_sha256"])
logits = model.predict(data.test["image"][:8] / 255, verbose=0)
logits.argmax(axis=1), data.test["label"][:8]
