"""The small network of many tutorials on MNIST: one convolution, one dense layer.

    python recipes/train_mnist_tutorial.py

    test accuracy  98.89 ± 0.06 %
    seeds          3
    training       24.2 s, 32.5 s for the whole process
    on             2 threads of an Intel Xeon (cpu family 6, model 207) CPU, 2026-11-27
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_tutorial",
    task="classify",
    model="tutorial_cnn",
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=3,
    min_steps=230,
    batch_size=256,
    optimizer="adam",
    learning_rate=0.01,
    beta_1=0.7,
    beta_2=0.9,
    schedule="one_cycle",
    warmup_fraction=0.3,
    label_smoothing=0.1,
    augment=("translate:1",),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
