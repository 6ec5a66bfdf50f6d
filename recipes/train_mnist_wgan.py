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
    model_options=("critic_steps=2",),
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=3,
    minimum_steps=500,  # for smaller data
    batch_size=128,  # two steps of the critic on 64 images each
    optimizer="adam",
    learning_rate=0.001,
    momentum=0.0,
    beta_2=0.99,
    schedule="linear",
    average=0.99,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
