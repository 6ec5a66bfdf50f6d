"""A network that says whether two pictures show the same glyph, of glyphs that it has
never seen.

    python recipes/train_glyphs.py

    test eer       2.73 ± 0.09 % (equal error rate of pairs)
    test recall at 1 99.47 ± 0.23 %
    test mean average precision 0.9248 ± 0.0051
    seeds          3
    training       38.5 s, 66.6 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 26, model 2) CPU, 2026-12-01
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py. The glyphs are drawn by a
seeded generator; `--data folder/` trains on your own pictures, one sub-folder for each
identity. The equal error rate is over all pairs of the test pictures, and recall at 1
asks whether the most similar other picture is of the same glyph.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="glyphs",
    task="embed",
    model="embedder",
    data="glyphs",  # computed, identical on every machine
    epochs=20,
    batch_size=100,
    optimizer="adam",
    learning_rate=0.002,
    beta_2=0.99,
    schedule="one_cycle",
    warmup_fraction=0.3,
    augment=("translate:2", "rotate:15"),
    # Of scales 10, 16 and 32 and margins 0.3 and 0.5 the best on validation glyphs of
    # seed 11; the paper's are for tens of thousands of identities.
    scale=10.0,
    margin=0.3,
)

if __name__ == "__main__":
    run_recipe(RECIPE)
