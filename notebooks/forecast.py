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
# # What a series will do next
#
# What `python recipes/train_forecast.py` does: an LSTM reads 64 values of a series and
# foretells the next 16. The series here is that of Mackey and Glass, computed by gpuzoo;
# with `data="mine.csv"` it is the last column of a file of yours.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
recipe = gpuzoo.load_recipe("forecast").override(epochs=2)  # the recipe's own are more
run = gpuzoo.train(recipe, quiet=True)
{key: run[key] for key in ("test_loss", "test_linear", "test_seasonal")}

# %% [markdown]
# All three are mean squared errors: of the network, of the linear map from the values of
# the window that fits the training examples best (least squares), and of the value one
# period before. A model that does not beat the last two has learned nothing.

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
for name in ("forecasts.png", "curves.png"):
    display(Image(folder / name))

# %% [markdown]
# ## Further ahead
#
# What was foretold can be the past of the next forecast. In a chaotic series every error
# grows.

# %%
import matplotlib.pyplot as plt
import numpy as np

model = gpuzoo.build("lstm_forecaster", input_shape=(64, 1), horizon=16)
gpuzoo.load_weights(model, folder, sha256=run["weights_sha256"])
test = gpuzoo.load_data("mackey_glass").test
past, came = test["series"][:1], test["target"][::16][:8].ravel()
told = past[0, :, 0]
for _ in range(8):
    told = np.append(told, model.predict(told[None, -64:, None], verbose=0)[0])
figure, axes = plt.subplots(figsize=(9, 3))
axes.plot(range(64, 192), came, color="gray", label="what came")
axes.plot(told, label="foretold, on what was foretold")
axes.axvline(64, color="black", lw=0.5)
axes.legend();

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=50)["verdict"]
