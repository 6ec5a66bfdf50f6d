"""A U-Net that finds the class of every pixel: here digits on textures.

    python recipes/train_segmentation.py

    test mean iou  0.966 ± 0.0047 (mean intersection over union)
    test accuracy  99.73 ± 0.03 %
    seeds          3
    training       151.1 s, 174.9 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-11-30
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. `--data street/` trains on
your own folder with images/ and masks/.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="segmentation",
    task="segment",
    model="unet",
    data="textured_digits",  # computed, identical on every machine
    epochs=6,
    min_steps=600,  # for smaller data
    batch_size=16,
    augment=("translate:4",),
    # Muon needs a fraction of adamw's steps (benchmarks/LOG.md).
    optimizer="muon",
    learning_rate=0.02,
    schedule="one_cycle",
    warmup_fraction=0.2,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
