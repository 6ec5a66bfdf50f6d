"""A Wasserstein GAN with gradient penalty on MNIST.

    python recipes/train_mnist_wgan.py

    test frechet   12.97 ± 1.1 (Frechet distance, fixed classifier)
    by epoch       42.7 17.4 13
    seeds          3
    training       367.1 s, 392.0 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-24
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. The distance is to fall to
less than half of the first epoch's, and to end below 16.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_wgan",
    task="adversarial",
    model="wgan_gp",
    model_options=("critic_steps=2",),
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=3,
    min_steps=500,  # for smaller data
    batch_size=128,  # two steps of the critic on 64 images each
    optimizer="adam",
    learning_rate=0.001,
    beta_1=0.0,
    beta_2=0.99,
    schedule="linear",
    ema_decay=0.99,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
