"""A transformer over patches of a market-like series: is the price higher in an hour?

    python recipes/train_next_move.py

    test accuracy  76.38 ± 0.42 %
    test loss      0.4988 ± 0.0078 (mean squared error)
    test linear    0.7135 ± 0 (of the best linear rule)
    test base rate 0.4895 ± 0 (of always the more frequent class)
    seeds          3
    training       22.5 s, 181.6 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-11-30
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. The series is generated,
with hidden regimes and clusters of volatility. `--data prices.csv --target close`
trains on your own series.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="next_move",
    task="next_move",
    model="patch_transformer",
    model_options=("dropout=0.2",),
    data="market",  # computed, identical on every machine
    horizon=1,
    epochs=12,
    min_steps=300,  # for smaller data
    batch_size=128,
    optimizer="adamw",
    learning_rate=0.001,
    weight_decay=0.1,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
