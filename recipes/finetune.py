"""A network of keras.applications learns the images of a folder of yours.

    python recipes/finetune.py --data folder/ --image-size 96 --model-options \
        weights=mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5 \
        sha256=... side=96 frozen=True

    (not measured yet)

With `frozen=True` the network stays as its weights are, and only the head on top of it
is trained; without it, as the recipe stands, all of the network is. Without `weights`
it begins at random, and all of it should be trained. What is named here replaces all of
the recipe's options, `side` too. `--model keras/resnet50` takes another network;
`gpuzoo list "keras/*"` has their names.
"""

from gpuzoo import Recipe
from gpuzoo.cli import run_recipe

RECIPE = Recipe(
    name="finetune",
    task="classify",
    model="keras/mobilenet_v2",
    model_options=("side=96",),
    data="cifar10",
    fallback_data="digits",  # without network and data: the digits of scikit-learn
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
