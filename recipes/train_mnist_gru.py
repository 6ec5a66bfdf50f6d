"""A GRU over the rows of MNIST images, with the settings of the LSTM.

    python recipes/train_mnist_gru.py

    test accuracy  99.07 ± 0.05 %
    seeds          3
    training       80.8 s, 90.3 s for the whole process
    on             2 threads of an Intel Xeon (cpu family 6, model 207) CPU, 2026-11-27
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_gru",
    task="classify",
    model="gru",
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
