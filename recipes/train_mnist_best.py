"""A small convolutional network on MNIST with time to learn: one model, no ensemble.

    python recipes/train_mnist_best.py

    (not measured yet)

The figures are written here by benchmarks/tables.py. Beside train_mnist: more filters,
every image shifted and turned anew each time, and a running average of the
weights, which is what is evaluated.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="mnist_best",
    task="classify",
    model="cnn",
    model_options=("filters=(32,64)", "dense=256", "dropout=0.4"),
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=20,
    minimum_steps=900,
    batch_size=128,
    optimizer="adam",
    learning_rate=0.004,
    momentum=0.7,
    beta_2=0.9,
    schedule="one_cycle",
    warmup=0.2,
    label_smoothing=0.1,
    average=0.999,
    augment=("shift:2", "rotate:12"),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
