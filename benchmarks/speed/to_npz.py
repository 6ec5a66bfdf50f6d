"""Write MNIST and CIFAR-10 as .npz files, for a machine without TensorFlow.

# a prepared TFDS folder; the target folder
python benchmarks/speed/to_npz.py DIR FOLDER
"""

import pathlib
import sys

import numpy as np


def to_npz(name: str, data_dir: str, path: pathlib.Path) -> str:
    """Write an image dataset as x_train, y_train, x_test, y_test; return the path."""
    import gpuzoo

    arrays = {}
    for split, part in gpuzoo.load_data(name, data_dir=data_dir).splits.items():
        arrays |= {f"x_{split}": part["image"], f"y_{split}": part["label"]}
    np.savez_compressed(path, **arrays)
    return str(path)


def main() -> None:
    data_dir, folder = sys.argv[1:]
    for name in ("mnist", "cifar10"):
        path = to_npz(name, data_dir, pathlib.Path(folder) / f"{name}.npz")
        print(path, f"{pathlib.Path(path).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
