"""A GAN on MNIST that draws the digit that it is asked for.

    python recipes/train_mnist_conditional_gan.py

    (not measured yet)

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="mnist_conditional_gan",
    task="adversarial",
    model="conditional_gan",
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=3,
    minimum_steps=900,  # for smaller data
    batch_size=64,
    optimizer="adam",
    learning_rate=0.003,
    momentum=0.5,  # the paper's; more of it makes the two swing
    beta_2=0.99,
    schedule="linear",
    average=0.995,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
