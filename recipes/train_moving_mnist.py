"""A convolutional LSTM that foretells the next frame of Moving MNIST.

    python recipes/train_moving_mnist.py

    (not measured yet)

The figures are written here by benchmarks/tables.py.
"""

from gpuzoo.cli import run_recipe
from gpuzoo.recipe import Recipe

RECIPE = Recipe(
    name="moving_mnist",
    task="next_frame",
    model="conv_lstm",
    data="mnist",
    fallback="digits",  # without network and data: the digits of scikit-learn
    epochs=1,
    minimum_steps=300,  # for smaller data
    batch_size=64,
    optimizer="adam",
    learning_rate=0.003,
    schedule="one_cycle",
    warmup=0.1,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
