"""A convolutional LSTM that predicts the next frame of Moving MNIST.

    python recipes/train_moving_mnist.py

    test error     0.02917 ± 0.00027 (mean squared error of a pixel)
    test copied    0.05697 ± 0.00011 (of the last frame in place of the next)
    seeds          3
    training       193.5 s, 216.6 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-24
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="moving_mnist",
    task="video_prediction",
    model="conv_lstm",
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=1,
    min_steps=300,  # for smaller data
    batch_size=64,
    optimizer="adam",
    learning_rate=0.003,
    schedule="one_cycle",
    warmup_fraction=0.1,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
