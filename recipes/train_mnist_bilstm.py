"""A bidirectional LSTM over the rows of MNIST images, with the settings of the LSTM.

    python recipes/train_mnist_bilstm.py

    test accuracy  99.10 ± 0.08 %
    seeds          3
    training       135.2 s, 153.0 s for the whole process
    on             2 threads of an Intel Xeon (cpu family 6, model 207) CPU, 2026-11-27
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_bilstm",
    task="classify",
    model="bilstm",
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
