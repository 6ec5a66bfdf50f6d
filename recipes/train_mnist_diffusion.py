"""A small diffusion model on MNIST.

    python recipes/train_mnist_diffusion.py

    test frechet   24.94 ± 0.46 (Frechet distance, fixed classifier)
    seeds          3
    training       510.8 s, 706.0 s for the whole process
    on             2 threads of an AMD EPYC (cpu family 25, model 1) CPU, 2026-11-24
    measured by    benchmarks/speed/recipe_figures.py

The figures are written here by benchmarks/tables/tables.py.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="mnist_diffusion",
    task="diffusion",
    model="diffusion",
    data="mnist",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=3,
    min_steps=900,  # for smaller data
    batch_size=64,
    optimizer="adam",
    learning_rate=0.01,  # five times that of longer trainings: few, large steps
    beta_2=0.99,
    schedule="one_cycle",
    warmup_fraction=0.1,
    eval_every=3,  # generating 10,000 images takes as long as an epoch
)

if __name__ == "__main__":
    run_recipe(RECIPE)
