"""A network that says whether two pictures show the same glyph, of glyphs that it has
never seen.

    python recipes/train_glyphs.py
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
