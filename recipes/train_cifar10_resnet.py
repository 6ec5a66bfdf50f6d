"""A small residual network on CIFAR-10.

    python recipes/train_cifar10_resnet.py

    test accuracy  73.70 ± 0.38 %
    data           cifar10 (jpeg)
    seeds          3
    training       367.3 s, 397.6 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-24
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. With more time or a GPU:
`--model resnet20 --epochs 160`, the network and about the training length of the paper.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="cifar10_resnet",
    task="classify",
    model="resnet8",
    data="cifar10",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=5,
    min_steps=300,  # for smaller data
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.2,
    momentum=0.9,
    weight_decay=0.0005,
    schedule="one_cycle",
    warmup_fraction=0.2,
    label_smoothing=0.1,
    augment=("translate:3", "flip"),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
