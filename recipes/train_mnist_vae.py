"""A variational autoencoder on MNIST with 20 latents.

    python recipes/train_mnist_vae.py

    test frechet   53.98 ± 3.6 (Frechet distance, fixed classifier)
    test loss      103.5 ± 0.68 nats per image
    test error     0.01131 ± 0.00019 (mean squared error of a pixel)
    test kl        21.52 ± 0.29 nats per image
    seeds          3
    training       46.8 s, 69.1 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_vae",
    task="autoencode",
    model="vae",
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
