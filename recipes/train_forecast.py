"""An LSTM that forecasts 16 values of the chaotic Mackey-Glass series.

    python recipes/train_forecast.py

    test loss      0.000599 ± 0.00024 (mean squared error)
    test linear    0.06298 ± 0 (of the best linear rule)
    test seasonal  0.5414 ± 0 (of the value one period before)
    seeds          3
    training       30.1 s, 45.7 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-22
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="forecast",
    task="forecast",
    model="lstm_forecaster",
    data="mackey_glass",
    epochs=20,
    min_steps=600,  # for smaller data
    batch_size=128,
    optimizer="adam",
    learning_rate=0.005,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
