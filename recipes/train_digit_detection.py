"""A detector that finds the digits of MNIST on a canvas.

    python recipes/train_digit_detection.py

    test map50     0.9845 ± 0.00077 (mean average precision at an overlap of 0.5)
    seeds          3
    training       155.8 s, 189.1 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="digit_detection",
    task="detect",
    model="detector",
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=1,
    min_steps=600,
    batch_size=64,
    optimizer="adam",
    learning_rate=0.003,
    beta_2=0.99,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
