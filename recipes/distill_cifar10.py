"""A plain convolutional network learns CIFAR-10 from a network of the speed runs.

    python recipes/train_cifar10.py --out teacher
    python recipes/distill_cifar10.py --teacher teacher

    (not measured yet)

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="distill_cifar10",
    task="distill",
    model="cnn",
    model_options=("filters=(32,64)", "dense=128"),
    imitation=0.9,
    temperature=4.0,
    data="cifar10",
    epochs=6,
    minimum_steps=300,
    batch_size=128,
    optimizer="adam",
    learning_rate=0.004,
    momentum=0.7,
    beta_2=0.9,
    schedule="one_cycle",
    warmup=0.2,
    augment=("flip",),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
