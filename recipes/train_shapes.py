"""A detector of objects of several sizes: here shapes on textures.

    python recipes/train_shapes.py

    test map50     1 ± 4e-06 (mean average precision at an overlap of 0.5)
    test map       0.8971 ± 0.0072 (mean over overlaps from 0.5 to 0.95)
    seeds          3
    training       23.7 s, 36.2 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-11-30
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. `--data street/` trains on
your own images with boxes.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="shapes",
    task="detect",
    model="detector",
    data="textured_shapes",  # computed, identical on every machine
    epochs=10,
    min_steps=600,  # for smaller data
    batch_size=32,
    augment=("translate:4", "flip"),
    # Muon is further after half of adam's epochs (benchmarks/LOG.md).
    optimizer="muon",
    learning_rate=0.02,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
