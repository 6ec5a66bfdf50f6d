"""A multilayer perceptron on a table: here it predicts the rents of generated flats.

    python recipes/train_table.py

    test r2        0.9515 ± 0.00072 (R2)
    seeds          3
    training       6.1 s, 23.8 s for the whole process
    on             2 threads of an Intel Xeon (cpu family 6, model 85) CPU, 2026-11-30
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. `--data houses.csv --target
price` trains on your own table; the target decides between classes and numbers.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="table",
    task="table",
    model="mlp_table",
    data="flats",  # computed, identical on every machine
    epochs=20,
    min_steps=600,  # for smaller data
    batch_size=128,
    optimizer="adamw",
    learning_rate=0.003,
    weight_decay=0.1,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
