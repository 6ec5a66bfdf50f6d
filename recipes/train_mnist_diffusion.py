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
    epochs=3,
    minimum_steps=900,  # for smaller data
    batch_size=64,
    optimizer="adam",
    learning_rate=0.01,  # five times that of longer trainings: few steps, large ones
    beta_2=0.99,
    schedule="one_cycle",
    warmup=0.1,
    eval_every=3,  # drawing 10,000 images takes as long as an epoch
)

if __name__ == "__main__":
    run_recipe(RECIPE)
