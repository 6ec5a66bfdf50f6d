"""ONNX files of a traced TensorFlow function, repaired and checked."""

import itertools
import os
import pathlib
import re
import tempfile

import numpy as np

from gpuzoo.errors import GpuzooError

# Nodes that are named after their layers.
_KEEP_NAMES = ("Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul")
OPSET = 17  # tf2onnx knows opsets up to 18


def finished(model, names: dict[str, str]):
    """Return a model as tf2onnx makes it, repaired and checked.

    Args:
        names: of its inputs and outputs -> the names that they get.

    Raises:
        GpuzooError: ONNX lacks an operation.
    """
    import onnx

    _rename(model.graph, names)
    mend(model.graph)
    _number(model.graph)
    model = onnx.shape_inference.infer_shapes(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of checker and of shape inference
        line = " ".join(str(error).split())[:300]
        raise GpuzooError(f"ONNX: {line}") from error
    return model


def _rename(graph, names: dict[str, str]) -> None:
    """Rename inputs and outputs, and the size of their first axis: `batch`."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    clash = taken & set(names.values()) - set(names)
    names = {**{name: f"inner/{name}" for name in clash}, **names}
    for node in graph.node:
        for rows in (node.input, node.output):
            rows[:] = [names.get(name, name) for name in rows]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _number(graph) -> None:
    """Name nodes and values by their places and uses.

    The names of tf2onnx depend on what else was converted in the process, and, where
    equal nodes or constants became one, on addresses in memory.
    """
    names = {one.name: one.name for one in (*graph.input, *graph.output)}
    names[""] = ""
    numbers = itertools.count()

    def walk(part) -> None:
        for value in () if part is graph else part.input:
            names.setdefault(value.name, f"value__{next(numbers)}")
        for node in part.node:
            scope = node.name if node.op_type in _KEEP_NAMES else node.op_type
            node.name = f"{re.sub('__[0-9]+', '', scope)}__{next(numbers)}"
            for at, name in enumerate(node.input):
                # Values have names when they are computed: these are constants.
                names.setdefault(name, f"{node.name}/{at}")
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    walk(attribute.g)
            for at, name in enumerate(node.output):
                names.setdefault(name, f"{node.name}:{at}")
            for row in (node.input, node.output):
                row[:] = [names[name] for name in row]
        for value in () if part is graph else (*part.input, *part.output):
            value.name = names.setdefault(value.name, f"value__{next(numbers)}")
        for one in part.initializer:
            one.name = names.setdefault(one.name, f"value__{next(numbers)}")
        rows = sorted(part.initializer, key=lambda one: one.name)
        del part.initializer[:], part.value_info[:]
        part.initializer.extend(rows)

    walk(graph)


def mend(graph) -> None:
    """Replace the operations of TensorFlow that tf2onnx leaves in a graph: Erfc, and
    the real and imaginary part of RFFT."""
    from onnx import helper, numpy_helper

    constants = {one.name: one for one in graph.initializer}
    spectra = {one.output[0]: one for one in graph.node if one.op_type == "RFFT"}
    nodes = []

    def constant(name: str, array) -> str:
        if name not in constants:
            constants[name] = numpy_helper.from_array(np.asarray(array), name)
            graph.initializer.append(constants[name])
        return name

    for node in graph.node:
        if node.op_type == "Erfc":
            inner = f"{node.output[0]}/erf"
            one = constant("gpuzoo/one", np.float32(1))
            nodes.append(helper.make_node("Erf", [node.input[0]], [inner], inner))
            nodes.append(helper.make_node("Sub", [one, inner], node.output, node.name))
        elif node.op_type in ("Real", "Imag") and node.input[0] in spectra:
            rfft = spectra[node.input[0]]
            length = int(numpy_helper.to_array(constants[rfft.input[1]])[0])
            table = constant(f"gpuzoo/{node.op_type}/{length}", _table(node, length))
            given = [rfft.input[0], table]
            nodes.append(helper.make_node("MatMul", given, node.output, node.name))
        elif node.op_type != "RFFT":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _table(node, length: int) -> np.ndarray:
    """Return (length, length // 2 + 1): the real or imaginary part of a transform."""
    angle = np.outer(np.arange(length), np.arange(length // 2 + 1))
    angle = 2 * np.pi / length * (angle % length)
    table = np.cos(angle) if node.op_type == "Real" else -np.sin(angle)
    return table.astype(np.float32)


def quantized(path: pathlib.Path, examples: dict) -> bytes:
    """Return an ONNX file with weights and activations in int8.

    Convolutions and matrix products get their scales from examples (QDQ); those of
    recurrent layers, which ONNX Runtime does not calibrate, are computed at run time.
    What stands before the first convolution of a network for sounds, the spectrogram,
    stays in float32: eight bits do not hold its range.

    Args:
        examples: name -> array (examples, ...).

    Raises:
        GpuzooError: the weights are inside a loop.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            count = len(next(iter(examples.values())))
            self.rows = iter(range(count))

        def get_next(self):
            at = next(self.rows, None)
            if at is None:
                return None
            return {name: array[at : at + 1] for name, array in examples.items()}

    int8 = quantization.QuantType.QInt8
    with tempfile.TemporaryDirectory() as folder:
        before, after = (str(pathlib.Path(folder, f"{n}.onnx")) for n in "ab")
        quant_pre_process(str(path), before, skip_symbolic_shape=True)
        graph = onnx.load(before).graph
        kinds = {node.op_type for node in graph.node}
        if "Loop" in kinds:
            raise GpuzooError(
                "ONNX: int8 does not reach the layers inside a loop (GRU, ConvLSTM), "
                "which hold the weights; use --int8 --to litert"
            )
        if kinds & {"LSTM", "GRU", "RNN"}:
            quantization.quantize_dynamic(before, after, weight_type=int8)
        else:
            quantization.quantize_static(
                before, after, Reader(), quant_format=quantization.QuantFormat.QDQ,
                activation_type=int8, weight_type=int8,
                nodes_to_exclude=_front(graph) if "audio" in examples else [],
            )  # fmt: skip
        return pathlib.Path(after).read_bytes()


def _front(graph) -> list[str]:
    """Return the names of the nodes that the first convolution depends on."""
    made = {name: node for node in graph.node for name in node.output}
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    names, left = set(), list(first.input) if first else []
    while left:
        node = made.get(left.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            left.extend(node.input)
    return sorted(names)
