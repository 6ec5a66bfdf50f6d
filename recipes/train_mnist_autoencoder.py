"""An autoencoder on MNIST, with 16 numbers for an image.

    python recipes/train_mnist_autoencoder.py

    not measured yet

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="mnist_autoencoder",
    task="autoencode",
    model="autoencoder",
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=4,
    minimum_steps=900,  # half the steps of four MNIST epochs, for smaller data
    batch_size=128,
    optimizer="adam",
    learning_rate=0.003,
    schedule="one_cycle",
    warmup=0.1,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
