"""A Wasserstein GAN with gradient penalty on MNIST.

    python recipes/train_mnist_wgan.py

    (not measured yet)

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="mnist_wgan",
    task="adversarial",
    model="wgan_gp",
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=8,
    minimum_steps=400,  # for smaller data
    batch_size=320,  # five steps of the critic on 64 images each
    optimizer="adam",
    learning_rate=0.0005,
    momentum=0.5,
    beta_2=0.9,
    schedule="linear",
)

if __name__ == "__main__":
    run_recipe(RECIPE)
