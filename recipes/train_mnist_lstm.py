"""An LSTM over the rows of MNIST images.

    python recipes/train_mnist_lstm.py

    test accuracy  99.00 ± 0.06 %
    seeds          3
    training       77.2 s, 98.2 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_lstm",
    task="classify",
    model="lstm",
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=6,
    min_steps=600,
    batch_size=128,
    optimizer="adam",
    learning_rate=0.004,
    beta_1=0.9,
    beta_2=0.99,
    schedule="one_cycle",
    warmup_fraction=0.3,
    label_smoothing=0.1,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
