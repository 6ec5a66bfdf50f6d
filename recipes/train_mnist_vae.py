"""A variational autoencoder on MNIST, with 20 numbers for an image.

    python recipes/train_mnist_vae.py

    test loss      103.5 ± 0.79 nats per image
    test error     0.01117 ± 0.00052 (mean squared error of a pixel)
    test kl        21.74 ± 0.35 nats per image
    seeds          3
    training       91.9 s, 147.9 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-21
    measured by    benchmarks/recipe_figures.py

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="mnist_vae",
    task="autoencode",
    model="vae",
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
