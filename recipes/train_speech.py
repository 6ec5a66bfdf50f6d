"""A recurrent network that recognizes ten spoken words.

    python recipes/train_speech.py

    test accuracy  99.33 ± 0.15 %
    seeds          3
    training       28.4 s, 74.0 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-12-01
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="speech",
    task="classify_audio",
    model="audio_rnn",
    data="spoken_digits",  # computed, identical on every machine
    epochs=6,
    batch_size=50,
    optimizer="adam",
    learning_rate=0.004,
    beta_2=0.99,
    schedule="one_cycle",
    warmup_fraction=0.3,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
