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
# # Forecast a series of several columns
#
# What `python recipes/train_market.py` does: a temporal convolutional network forecasts
# the next four values of a price. The series is generated: with two hidden regimes, in
# one of which moves go on and in the other turn back, and with clusters of volatility.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
data = gpuzoo.load_data("market", horizon=4)
print(*data.findings, sep="\n")
data.counts

# %% [markdown]
# The last fifth in time is the test part. Means and deviations are those of the training
# rows; a window ends before what it predicts.

# %%
recipe = gpuzoo.load_recipe("market").override(epochs=4)  # the recipe's own are more
run = gpuzoo.train(recipe, quiet=True)
{key: run[key] for key in ("test_loss", "test_linear", "test_seasonal")}

# %% [markdown]
# All three are mean squared errors: of the network, of the best linear rule, and of the
# rule that the price stays where it is. After four of the recipe's ten epochs the network
# is level with the linear rule; after all ten it is below.

# %%
import pathlib

from IPython.display import Image, display

folder = pathlib.Path(run["run_dir"])
display(Image(folder / "forecasts.png"))

# %% [markdown]
# ## Up or down?
#
# The task `next_move` predicts the sign of the next move. Its accuracy stands beside the
# base rate and the best linear rule.

# %%
recipe = gpuzoo.load_recipe("next_move").override(epochs=4)
move = gpuzoo.train(recipe, quiet=True)
{key: move[key] for key in ("test_accuracy", "test_linear", "test_base_rate")}

# %% [markdown]
# ## Your own file
#
# Any data frame or `.csv` file with a column of times will do. The forecast goes on after
# its last row, in the units of the file. A week that repeats itself, with noise, is what
# a linear rule is best at: on so few rows the network does not reach it, and says so.

# %%
import numpy as np
import pandas

rng = np.random.default_rng(0)
days = np.arange(700)
sales = pandas.DataFrame({
    "day": pandas.date_range("2023-01-02", periods=700).astype(str),
    "sold": 100 + 20 * np.sin(2 * np.pi * days / 7) + 0.05 * days + rng.normal(0, 4, 700),
})
own = gpuzoo.train("market", data=sales, target="sold", window=28, horizon=7,
                   calendar=("week",), epochs=40, batch_size=32, quiet=True)
print({key: own[key] for key in ("test_loss", "test_linear", "test_seasonal")})
trained = gpuzoo.load(own["run_dir"])
trained.unscale(trained.predict(sales)["forecast"]).round(1)

# %% [markdown]
# ## The proof

# %%
gpuzoo.verify(folder, steps=50)["verdict"]
