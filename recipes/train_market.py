"""A temporal convolutional network that forecasts a price of a market-like series.

    python recipes/train_market.py

The series is generated, with hidden regimes and clusters of volatility; four hours are
forecast. `--data prices.csv --target close` trains on your own series.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="market",
    task="forecast",
    model="tcn",
    model_options=("dropout=0.2",),
    data="market",  # computed, identical on every machine
    horizon=4,
    epochs=10,
    min_steps=300,  # for smaller data
    batch_size=128,
    optimizer="adamw",
    learning_rate=0.003,
    weight_decay=0.1,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
