"""A convolutional autoencoder on MNIST with 16 latents.

    python recipes/train_mnist_autoencoder.py

    test error     0.01021 ± 0.00025 (mean squared error of a pixel)
    seeds          3
    training       38.9 s, 47.7 s for the whole process
    on             2 threads of an Intel Xeon (cpu family 6, model 207) CPU, 2026-11-27
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_autoencoder",
    task="autoencode",
    model="autoencoder",
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=4,
    min_steps=900,  # half the steps of four MNIST epochs, for smaller data
    batch_size=128,
    optimizer="adam",
    learning_rate=0.003,
    schedule="one_cycle",
    warmup_fraction=0.1,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
