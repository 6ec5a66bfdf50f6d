"""Small prepared TFDS folders, written by TFDS itself."""

import numpy as np

CLASSES = ["light", "dark", "other"]


def write(folder, files: int, examples: int, form: str = "tfrecord"):
    """Write a dataset `mine` of colour images of 12 x 9; return its folder."""
    import tensorflow  # noqa: F401 - TFDS writes with it
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(examples)
    folder = folder / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
    )
    identity = tfds.core.DatasetIdentity(
        name="mine", version=tfds.core.Version("1.0.0"), data_dir=str(folder),
        module_name="mine",
    )  # fmt: skip
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, -(-examples // files), file_format=form)
    writer.initialize_splits(["train", "test"], fail_if_exists=False)
    for split, count in (("train", examples), ("test", 3)):
        images = rng.integers(0, 256, (count, 12, 9, 3), np.uint8)
        if split == "test":  # a finding: it is a training image, too
            images[0] = np.random.default_rng(examples).integers(
                0, 256, (examples, 12, 9, 3), np.uint8
            )[examples // 2]
        made = [{"image": one, "label": int(one[0, 0, 0]) % 3} for one in images]
        writer.add_examples({split: made})
    writer.close_all()
    return folder
