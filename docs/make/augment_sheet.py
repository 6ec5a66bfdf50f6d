"""Plot docs/augment.png: each augmentation of `--augment` on twelve digits.

python docs/make/augment_sheet.py
"""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import gpuzoo

CHANGES = ("translate:3", "flip:1", "rotate:25", "random_resized_crop:0.6",
           "cutout:10", "color_jitter:0.6", "mixup:1", "cutmix:1")  # fmt: skip


def main() -> None:
    gpuzoo.configure(device="cpu", quiet=True)  # before Keras is imported
    from gpuzoo.tasks import augment

    images = gpuzoo.load_data("digits").train["image"][:12]
    draws = np.random.default_rng(1).random((12, 4)).astype("f4")
    figure, grid = plt.subplots(len(CHANGES) + 1, 12, figsize=(9, 7.2))
    for row, text in zip(grid, ("none", *CHANGES), strict=True):
        changes = [] if text == "none" else augment.parse((text,))
        shown, _ = augment.apply(changes, images, draws)
        for axes, image in zip(row, np.array(shown), strict=True):
            axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#dddddd")
        row[0].set_ylabel(text, rotation=0, ha="right", va="center")
    figure.subplots_adjust(0.1, 0.01, 0.99, 0.99, 0.08, 0.08)
    path = pathlib.Path(__file__).resolve().parent.parent / "augment.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
