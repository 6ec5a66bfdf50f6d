"""A convolutional network on MNIST, tuned for accuracy: one model, no ensemble.

    python recipes/train_mnist_best.py

    test accuracy  99.70 ± 0.02 %
    seeds          3
    training       433.4 s, 469.0 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. The network is a narrow
version of that of the CIFAR-10 speed runs. Images are randomly translated and rotated,
and an exponential moving average of the weights is evaluated.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_best",
    task="classify",
    model="speednet",
    model_options=("filters=(32,64,64)", "activation=relu", "scale=0.25"),
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=9,
    min_steps=900,
    batch_size=125,
    optimizer="adam",
    learning_rate=0.008,
    beta_1=0.8,
    beta_2=0.95,
    schedule="one_cycle",
    warmup_fraction=0.2,
    label_smoothing=0.1,
    ema_decay=0.995,
    augment=("translate:2", "rotate:12"),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
