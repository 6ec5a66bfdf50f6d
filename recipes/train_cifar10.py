"""The network of the CIFAR-10 speed runs, narrowed for a CPU.

    python recipes/train_cifar10.py

    test accuracy  80.65 ± 0.44 %
    data           cifar10 (jpeg)
    seeds          3
    training       234.1 s, 270.3 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. The full network of the
speed runs needs a GPU:

    python recipes/train_cifar10.py --epochs 10 \
        --model-options "filters=(64,256,256)" activation=gelu
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="cifar10",
    task="classify",
    model="speednet",
    model_options=("filters=(32,64,64)", "activation=relu"),
    data="cifar10",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=4,
    min_steps=300,  # for smaller data
    batch_size=125,
    optimizer="sgd",
    learning_rate=0.3,
    momentum=0.85,
    weight_decay=0.0005,
    schedule="one_cycle",
    warmup_fraction=0.2,
    label_smoothing=0.1,
    augment=("translate:2", "flip"),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
