"""A smaller convolutional network on MNIST: 99 % in one epoch, with Muon.

    python recipes/train_mnist_fast.py

    test accuracy  99.16 ± 0.06 %
    seeds          10
    training       3.0 s, 8.7 s for the whole process
    on             2 threads of an Intel Xeon (cpu family 6, model 207) CPU, 2026-11-27
    measured by    benchmarks/speed/mnist_to_99.py

The figures are written here by benchmarks/tables/tables.py. Muon, whose updates of
kernels are nearly orthogonal, learns more in one epoch than Adam (`train_mnist.py`):
half the filters and units are enough.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_fast",
    task="classify",
    model="cnn",
    model_options=("filters=(8,32)", "dense=64"),
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=1,
    min_steps=230,  # about the steps of one MNIST epoch, for smaller data
    batch_size=256,
    optimizer="muon",
    learning_rate=0.025,
    momentum=0.85,
    schedule="one_cycle",
    warmup_fraction=0.15,
    label_smoothing=0.1,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
