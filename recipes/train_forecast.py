"""An LSTM that foretells 16 values of the chaotic series of Mackey and Glass.

    python recipes/train_forecast.py

    (not measured yet)

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="forecast",
    task="forecast",
    model="lstm_forecaster",
    data="mackey_glass",
    epochs=20,
    minimum_steps=600,  # for smaller data
    batch_size=128,
    optimizer="adam",
    learning_rate=0.005,
    schedule="one_cycle",
    warmup=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
