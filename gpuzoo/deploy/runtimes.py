"""Execute exported models: each format in its own runtime, without Keras.

Imports NumPy and the runtime alone.
"""

import os
import pathlib
from collections.abc import Callable

Arrays = dict
FORMATS = {
    "saved_model": ("saved_model", "tensorflow"),
    "onnx": ("model.onnx", "onnxruntime"),
    "litert": ("model.tflite", "ai_edge_litert"),
    "openvino": ("model.xml", "openvino"),
    "stablehlo": ("model.stablehlo", "jax"),
}
"""Format -> the name of its file or folder, the package that executes it."""


def open_model(
    path: str | pathlib.Path, kind: str, threads: int = 1
) -> Callable[[Arrays], Arrays]:
    """Return an exported model as a function: name -> array (batch, ...), to the same.

    Args:
        path: the file, of a SavedModel the folder.
        kind: one of FORMATS.
    """
    return _OPENERS[kind](pathlib.Path(path), threads)


class _Onnx:
    def __init__(self, path: pathlib.Path, threads: int):
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = [one.name for one in self.session.get_outputs()]

    def __call__(self, batch: Arrays) -> Arrays:
        return dict(zip(self.names, self.session.run(None, batch), strict=True))


class _LiteRT:
    def __init__(self, path: pathlib.Path, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(path), num_threads=threads)
        self.run = self.interpreter.get_signature_runner()

    def __call__(self, batch: Arrays) -> Arrays:
        return {name: array.copy() for name, array in self.run(**batch).items()}


def _saved_model(path: pathlib.Path, threads: int):
    from gpuzoo.deploy.formats.tensorflow import SavedModel

    return SavedModel(path, threads)


def _openvino(path: pathlib.Path, threads: int):
    from gpuzoo.deploy.formats.openvino import OpenVINO

    return OpenVINO(path, threads)


def _stablehlo(path: pathlib.Path, threads: int):
    from gpuzoo.deploy.formats.jax import StableHLO

    return StableHLO(path, threads)


_OPENERS: dict[str, Callable] = {
    "saved_model": _saved_model, "onnx": _Onnx, "litert": _LiteRT,
    "openvino": _openvino, "stablehlo": _stablehlo,
}  # fmt: skip
