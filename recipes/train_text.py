"""A network for short texts: here it tells good, bad and mixed reviews of hotels
apart.

    python recipes/train_text.py

    test accuracy  98.94 ± 0.29 %
    seeds          3
    training       74.7 s, 347.9 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-11-30
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. `--data messages.csv
--target label` trains on your own texts.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="text",
    task="classify_text",
    model="text_cnn",
    data="reviews",  # computed, identical on every machine
    epochs=12,
    min_steps=600,  # for smaller data
    batch_size=64,
    optimizer="adamw",
    learning_rate=0.003,
    weight_decay=0.1,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
