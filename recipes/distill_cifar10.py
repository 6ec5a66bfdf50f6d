"""Distill the network of the CIFAR-10 speed runs into a plain convolutional one.

RUN is the folder of a finished `python recipes/train_cifar10.py`:

    python recipes/distill_cifar10.py --teacher RUN

    test accuracy  74.01 ± 0.42 %
    without it     72.33 ± 0.65 % (from labels alone)
    gain           1.69 points (95 % interval 1.20 to 2.17, n = 5)
    data           cifar10 (jpeg)
    seeds          5
    training       218.2 s, 238.5 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="distill_cifar10",
    task="distill",
    model="cnn",
    model_options=("filters=(32,64)", "dense=128"),
    distill_alpha=0.9,
    temperature=4.0,
    data="cifar10",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=6,
    min_steps=300,
    batch_size=128,
    optimizer="adam",
    learning_rate=0.004,
    beta_1=0.7,
    beta_2=0.9,
    schedule="one_cycle",
    warmup_fraction=0.2,
    augment=("flip",),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
