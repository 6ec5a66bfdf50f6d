"""Decode records of TFDS's files with TensorFlow, as TFDS does itself."""

from collections.abc import Callable

import tensorflow as tf


def decoder(features) -> Callable[[list[bytes]], tuple[list, list]]:
    """Return a function of records: their images, uint8, and labels.

    Args:
        features: of a TFDS dataset, with `image` and `label`.

    Raises:
        ValueError: (the function) a record or an image is damaged.
    """
    image = features["image"]
    kinds = {
        "image": tf.TensorSpec(image.shape, image.np_dtype),
        "label": tf.TensorSpec((), tf.int64),
    }

    def one(record) -> dict:
        example = features.deserialize_example(record)
        return {name: example[name] for name in kinds}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def every(records) -> dict:
        return tf.map_fn(one, records, fn_output_signature=kinds)

    def decode(records: list[bytes]) -> tuple[list, list]:
        try:
            with tf.device("/CPU:0"):
                found = every(tf.constant(records))
            return [*found["image"].numpy()], found["label"].numpy().tolist()
        except tf.errors.InvalidArgumentError:
            pass  # one is damaged, or they have several sizes
        try:
            each = [one(tf.constant(record)) for record in records]
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(str(error)) from error
        images = [example["image"].numpy() for example in each]
        return images, [int(example["label"]) for example in each]

    return decode
