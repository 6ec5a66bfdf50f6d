"""The network of the CIFAR-10 speed runs, tuned for training time on a CPU.

    python recipes/train_cifar10_fast.py

    test accuracy  80.34 ± 0.44 %
    data           cifar10 (jpeg)
    seeds          3
    training       88.8 s, 132.5 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-24
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. What makes it fast: Muon,
alternating flip, and test-time augmentation with flips and translations.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="cifar10_fast",
    task="classify",
    model="speednet",
    model_options=("filters=(24,64,64)", "activation=relu"),
    data="cifar10",
    fallback_data="digits",
    epochs=2,
    min_steps=200,  # for smaller data
    batch_size=250,
    optimizer="muon",
    learning_rate=0.04,
    momentum=0.85,
    weight_decay=0.0005,
    schedule="one_cycle",
    warmup_fraction=0.2,
    label_smoothing=0.1,
    augment=("alternating_flip",),
    tta="flip_translate",
)

if __name__ == "__main__":
    run_recipe(RECIPE)
