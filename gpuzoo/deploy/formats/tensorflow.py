"""Exports made with TensorFlow: a traced function, SavedModel and LiteRT."""

import contextlib
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from gpuzoo.errors import GpuzooError

if TYPE_CHECKING:
    from gpuzoo.deploy.formats.function import Exported

SIGNATURE = "serving_default"


def trace(trained, exported: "Exported", *, unroll: bool):
    """Return the function as a graph for batches of any size, its variables beside it.

    Returns:
        A `tf.Module` with attributes `serve`, a concrete function with inputs and
        outputs by name, and `weights`.
    """
    import tensorflow as tf

    from gpuzoo.deploy.formats import function

    specs = {
        one["name"]: tf.TensorSpec(one["shape"], one["dtype"], name=one["name"])
        for one in exported.inputs
    }
    module = tf.Module()
    module.weights = [variable.value for variable in trained.model.variables]
    traced = tf.function(lambda **batch: exported.call(batch), autograph=False)
    loops = function.unrolled(trained.model) if unroll else contextlib.nullcontext()
    with loops:
        module.serve = traced.get_concrete_function(**specs)
    return module


def save(module, folder: pathlib.Path) -> None:
    """Write a SavedModel."""
    import tensorflow as tf

    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})


def to_litert(saved: pathlib.Path, examples: dict | None = None) -> bytes:
    """Return the .tflite file of a SavedModel.

    Args:
        examples: name -> array (examples, ...), to quantize to int8 by; {}: quantize
            the weights alone; None: float32.

    Raises:
        GpuzooError: it needs operations that LiteRT lacks.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved), signature_keys=[SIGNATURE]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if examples is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if examples:
        count = len(next(iter(examples.values())))
        converter.target_spec.supported_ops.insert(
            0, tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        )
        converter.representative_dataset = lambda: (
            {name: array[at : at + 1] for name, array in examples.items()}
            for at in range(count)
        )
    try:
        return converter.convert()
    except Exception as error:  # ConverterError, which has no public name
        raise GpuzooError(f"LiteRT: {' '.join(str(error).split())[:300]}") from error


def to_onnx(traced):
    """Return the ONNX model of a concrete function with named inputs and outputs.

    Raises:
        GpuzooError: ONNX lacks an operation.
    """
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    from gpuzoo.deploy.formats import onnx

    inputs = {
        one.name: one.name.partition(":")[0]
        for one in traced.inputs
        if one.dtype != tf.resource
    }
    outputs = {one.name: name for name, one in traced.structured_outputs.items()}
    frozen = tf_loader.from_function(traced, list(inputs), list(outputs))
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="")
        made = tfonnx.process_tf_graph(
            graph, opset=onnx.OPSET, input_names=list(inputs),
            output_names=list(outputs),
            continue_on_error=True,  # what it leaves is mended, or found by the check
        )  # fmt: skip
    model = optimizer.optimize_graph(made).make_model("gpuzoo")
    return onnx.finished(model, inputs | outputs)


class SavedModel:
    """A SavedModel, executed by TensorFlow without Keras."""

    def __init__(self, path: pathlib.Path, threads: int):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        hidden = "keras" not in sys.modules
        if hidden:  # TensorFlow imports it where it finds it
            sys.modules["keras"] = None
        try:
            import tensorflow as tf
        finally:
            if hidden:
                del sys.modules["keras"]
        # Fixed by the first model of a process.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        self.loaded = tf.saved_model.load(str(path))
        self.call, self.tensor = self.loaded.signatures[SIGNATURE], tf.constant

    def __call__(self, batch: dict) -> dict:
        given = {name: self.tensor(array) for name, array in batch.items()}
        return {name: one.numpy() for name, one in self.call(**given).items()}
