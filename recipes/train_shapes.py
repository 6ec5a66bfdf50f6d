"""A detector of objects of several sizes: here shapes on textures.

    python recipes/train_shapes.py

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
