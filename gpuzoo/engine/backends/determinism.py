"""Find operations that are not deterministic, before the first step.

The compiled step is searched for them, so that they are refused by name instead of a
crash at some step. Sources: the messages of TensorFlow 2.21 about op determinism and
those of XLA; operations marked `xla` were also seen on a CPU.
"""

import contextlib
import random

import keras
import numpy as np
from keras.src.random.seed_generator import global_seed_generator

from gpuzoo.engine.backends.compared import uncompared, with_dtypes
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime
from gpuzoo.runtime.portable import LEVEL

_MAX_POOL = (
    "XLA has no deterministic gradient of TensorFlow's max-pooling",
    "use keras.ops.max_pool or one of Keras's layers, or --xla off",
)
_NEAREST = (
    "the gradient of nearest-neighbour resizing is not deterministic",
    "use keras.ops.image.resize with a fixed size on images of a fixed size, or "
    "keras.layers.UpSampling2D",
)
_NO_KERNEL = "TensorFlow has no deterministic kernel for it on a GPU"
_ELSE = "use another operation, --device cpu, or --level fast"
_STREAM = (
    "it uses a random stream that no checkpoint contains",
    "use keras.random with a keras.random.SeedGenerator",
)
_ADD_N = (
    "it adds three or more tensors in an order that depends on thread timing",
    "add them two by two",
)
# Type of a TensorFlow operation -> (where it is a problem, why, remedy).
_TENSORFLOW = {
    **{
        name: ("xla", *_MAX_POOL)
        for name in ("MaxPoolGrad", "MaxPoolGradV2", "MaxPool3DGrad")
    },
    **{
        name: ("any", *_STREAM)
        for name in (
            "RandomUniform", "RandomUniformInt", "RandomStandardNormal",
            "TruncatedNormal", "ParameterizedTruncatedNormal", "RandomShuffle",
            "RandomGamma", "RandomPoissonV2", "Multinomial",
            "StatefulUniform", "StatefulStandardNormalV2", "StatefulUniformInt",
        )
    },
    "AddN": ("graph", *_ADD_N),
    "ResizeNearestNeighborGrad": ("xla gpu", *_NEAREST),
    "MaxPoolGradWithArgmax": ("xla gpu", _NO_KERNEL, _ELSE),
    **{
        name: ("gpu", _NO_KERNEL, _ELSE)
        for name in (
            "AdjustContrast", "AdjustContrastv2", "Bincount", "DenseBincount",
            "CropAndResizeGradImage", "CropAndResizeGradBoxes",
            "Dilation2DBackpropFilter", "Dilation2DBackpropInput",
            "FakeQuantWithMinMaxVarsGradient",
            "FakeQuantWithMinMaxVarsPerChannelGradient", "SparseTensorDenseMatMul",
        )
    },
}  # fmt: skip


def check_tensorflow(graph, runtime: Runtime) -> None:
    """Search a traced step, and the functions it calls, for such operations.

    Raises:
        GpuzooError: names the layer, the operation, the reason and the remedy.
    """
    if not runtime.deterministic:
        return
    here = {"any", "xla" if runtime.xla else "graph"}
    if runtime.device == "gpu":
        here.add("gpu")
    if runtime.level == LEVEL:
        here.add("portable")
    for layer, operation, why, remedy in faults(graph, here):
        raise GpuzooError(
            f"layer {layer!r} is not repeatable with these settings: its operation "
            f"{operation}: {why}; {remedy}"
        )


def faults(graph, places: set[str]):
    """Yield layer, type, reason and remedy of each such operation of a graph.

    Args:
        places: where it would run: any, xla or graph, gpu, and portable.
    """
    for operation in _operations(graph):
        where, why, remedy = _TENSORFLOW.get(operation.type, ("", "", ""))
        if operation.type == "AddN" and len(operation.inputs) < 3:
            continue
        if places & set(where.split()):
            yield _layer(operation.name), operation.type, why, remedy
    if "portable" in places:
        for operation, why, remedy in uncompared(_operations(graph)):
            yield _layer(operation.name), operation.type, why, remedy


def check_written(graph, variables: list) -> None:
    """Search a traced step for writes to variables that no checkpoint would contain.

    Raises GpuzooError as above.
    """
    known = {id(variable.handle) for variable in variables}
    outside = {id(inner): outer for outer, inner in graph.captures}
    for operation in graph.get_operations():
        if operation.type.startswith(("Assign", "ResourceApply", "ResourceScatter")):
            written = outside.get(id(operation.inputs[0]))
            if written is not None and id(written) not in known:
                refuse_variable()


def refuse_variable() -> None:
    raise GpuzooError(
        "the model writes into a variable that is not one of its weights, so that a "
        "resumed run would differ; create it with add_weight, and draw random "
        "numbers from a keras.random.SeedGenerator that is an attribute of the "
        "layer"
    )


@contextlib.contextmanager
def no_draws(runtime: Runtime):
    """A step that is traced inside must not draw from Python's `random` or `np.random`.

    A layer's `call` runs only while the step is traced. Such a draw becomes a constant
    of the compiled step: the same in every step, and another one whenever the step is
    compiled again or something else in the process has drawn before.

    Raises GpuzooError with the name of the innermost layer that did.
    """
    if not runtime.deterministic:
        yield
        return
    real, begin, layers = keras.Layer.__call__, _stand(), []

    def call(self, *args, **kwargs):
        before, known = _stand(), len(layers)
        outputs = real(self, *args, **kwargs)
        if len(layers) == known and _stand() != before:
            layers.append(self)
        return outputs

    with replaced(keras.Layer, __call__=call):
        yield
    if _stand() != begin:
        who = "the model"
        if layers:
            who = f"layer {layers[0].name!r} ({type(layers[0]).__name__})"
        raise GpuzooError(
            f"{who} draws from Python's random or np.random in its call, which runs "
            "only while the step is compiled: each step would be given the same "
            "numbers, and another process others; draw from keras.random with a "
            "keras.random.SeedGenerator that is an attribute of the layer, or use "
            "--level fast"
        )


def make_global_generator() -> None:
    """Make Keras' own global generator, before a step is traced.

    Keras makes it, with a draw of Python's, when somebody first draws from it; that is
    refused as a variable that no checkpoint holds. Made while a step is traced, it
    would let TensorFlow trace the step twice.
    """
    python = random.getstate()
    global_seed_generator()
    random.setstate(python)


def _stand() -> tuple:
    """Where Python's generator and NumPy's are."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), keys.tobytes(), *rest  # type: ignore[attr-defined]


def operations_of(graph) -> set[str]:
    """Return the operations of a graph, named as in compared.py."""
    return {with_dtypes(operation) for operation in _operations(graph)}


def _operations(graph):
    """Operations of a graph and of the graphs of the functions in it."""
    yield from graph.get_operations()
    for name in graph._functions:
        inner = getattr(graph._get_function(name), "graph", None)
        if inner is not None:
            yield from inner.get_operations()


def _layer(name: str) -> str:
    """gradient_tape/cnn_1/pool_1/MaxPool2d/MaxPoolGrad -> cnn_1/pool_1"""
    parts = [part for part in name.split("/") if part != "gradient_tape"]
    return "/".join(parts[:-2] if len(parts) > 3 else parts[:-1]) or name
