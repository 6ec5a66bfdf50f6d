"""OpenVINO: models made of ONNX files, and executed."""

import pathlib
import sys

from gpuzoo.errors import GpuzooError


def _library():
    # Without the package by which the mere import of OpenVINO reports to Google
    # Analytics and writes an id into the home folder.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def convert(onnx_file: pathlib.Path, xml_file: pathlib.Path) -> None:
    """Write the OpenVINO model of an ONNX file: .xml and .bin, in float32.

    Raises:
        GpuzooError: OpenVINO lacks an operation.
    """
    openvino = _library()
    try:
        model = openvino.Core().read_model(str(onnx_file))
        openvino.save_model(model, str(xml_file), compress_to_fp16=False)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise GpuzooError(f"OpenVINO: {line}") from error


class OpenVINO:
    """A model of `convert`, executed by OpenVINO on the CPU."""

    def __init__(self, path: pathlib.Path, threads: int):
        # The default computes in bfloat16 where the CPU has it.
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        core = _library().Core()
        read = core.read_model(str(path))
        # Compiling adds the names of inner values that are equal.
        self.names = [sorted(one.get_names())[0] for one in read.outputs]
        self.model = core.compile_model(read, "CPU", hints)

    def __call__(self, batch: dict) -> dict:
        found = self.model(batch)
        return {name: found[at].copy() for at, name in enumerate(self.names)}
