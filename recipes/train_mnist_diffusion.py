"""A small diffusion model on MNIST.

    python recipes/train_mnist_diffusion.py

    (not measured yet)

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="mnist_diffusion",
    task="denoise",
    model="diffusion",
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=6,
    minimum_steps=900,  # for smaller data
    batch_size=128,
    optimizer="adam",
    learning_rate=0.002,
    schedule="one_cycle",
    warmup=0.1,
    eval_every=3,  # drawing takes as long as a third of an epoch
)

if __name__ == "__main__":
    run_recipe(RECIPE)
