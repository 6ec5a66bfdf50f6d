"""A convolutional network over time that tells how digits move.

    python recipes/train_films.py

    test accuracy  99.87 ± 0.12 %
    seeds          3
    training       28.7 s, 44.5 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-12-01
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. Digits go left, right, up
or down, turn, grow or shrink; no single frame tells which. `--data folder/` trains on
your own films, one sub-folder for each class.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="films",
    task="classify_film",
    model="conv3d_small",
    data="moving_digits",  # computed, identical on every machine
    epochs=8,
    batch_size=50,
    optimizer="adam",
    learning_rate=0.004,
    beta_2=0.99,
    schedule="one_cycle",
    warmup_fraction=0.3,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
