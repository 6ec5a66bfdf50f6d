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


def bound(model: Callable[[Arrays], Arrays], batch: Arrays) -> Callable[[], object]:
    """Return a call that computes a batch again, to time it: where the runtime allows,
    without the transfer of arrays from Python and to it."""
    bind = getattr(model, "bound", None)
    return bind(batch) if bind else lambda: model(batch)


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

    def bound(self, batch: Arrays) -> Callable[[], object]:
        binding = self.session.io_binding()
        for name, array in batch.items():
            binding.bind_cpu_input(name, array)
        for name in self.names:
            binding.bind_output(name)
        return lambda: self.session.run_with_iobinding(binding)


class _LiteRT:
    def __init__(self, path: pathlib.Path, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self.open = lambda: Interpreter(str(path), num_threads=threads)
        self.run = self.open().get_signature_runner()

    def __call__(self, batch: Arrays) -> Arrays:
        return {name: array.copy() for name, array in self.run(**batch).items()}

    def bound(self, batch: Arrays) -> Callable[[], object]:
        places = self.run.get_input_details()
        interpreter = self.open()  # not one that a runner holds tensors of
        for name, array in batch.items():
            interpreter.resize_tensor_input(places[name]["index"], array.shape)
        interpreter.allocate_tensors()
        for name, array in batch.items():
            interpreter.set_tensor(places[name]["index"], array)
        return interpreter.invoke


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
