"""Fine-tune a network of keras.applications on your own folder of images.

    python recipes/finetune.py --data folder/ --image-size 96 --model-options \
        weights=mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5 \
        sha256=... side=96 frozen=True

    (not measured yet)

With `frozen=True` the weights of the backbone are fixed, and only the head on top of it
is trained; without it (the default of the recipe) the whole network is. Without
`weights` training starts from random weights, and the whole network should be trained.
`--model-options` replaces all options of the recipe, also `side`. `--model
keras/resnet50` selects another network; `gpuzoo list "keras/*"` lists them.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="finetune",
    task="classify",
    model="keras/mobilenet_v2",
    model_options=("side=96",),
    data="cifar10",
    fallback_data="digits",  # if unavailable: the digits of scikit-learn
    epochs=5,
    batch_size=32,
    optimizer="adam",
    learning_rate=0.001,
    schedule="cosine",
    warmup_fraction=0.1,
    label_smoothing=0.1,
    augment=("flip",),
)

if __name__ == "__main__":
    run_recipe(RECIPE)
