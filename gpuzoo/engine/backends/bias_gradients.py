"""Work around wrong and varying bias gradients of TensorFlow's oneDNN pass on a CPU.

The pass (mkl_layout_pass.cc) replaces the gradients of a convolution's filters and of
its bias by one kernel. It looks for operations that take any output of the same
operation, and merges the first two that it finds. It does not distinguish the outputs
of an Unpack, Split or tuple: with `ops.stack([conv_1(x), conv_2(x)])` the bias of
conv_1 may get the gradient of conv_2's, and which one varies between compilations. If
several convolutions share one tensor (`Add()([conv_1(x), conv_2(x)])`), each pair gives
the same sum, but its last bits depend on which are merged.

So the gradient of a bias that might be merged wrongly gets its tensor through an
EnsureShape, which copies nothing and stays in the graph: the pass finds no pair. All
other graphs are left unchanged.
"""

import contextlib

import keras

from gpuzoo.runtime.keras_state import replaced

if keras.config.backend() == "tensorflow":
    from tensorflow.python.eager.polymorphic_function import atomic_function
    from tensorflow.python.ops import array_ops

# The graph optimizer may remove these and connect their consumers to their input.
_PASSING = {
    "Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot", "Reshape",
    "Cast", "Squeeze", "ExpandDims", "Bitcast",
}  # fmt: skip
# Sources behind these are known only after functions are inlined.
_HIDING = {"Placeholder", "PartitionedCall", "StatefulPartitionedCall"}
# TensorFlow orders up to so many edges of an operation by insertion (graph/edgeset.h),
# more of them by memory address.
_IN_ORDER = 8


@contextlib.contextmanager
def kept_apart():
    """Apply this to every function that TensorFlow creates in the block, the gradients
    of loops and of other functions included."""
    real = atomic_function.from_func_graph

    def from_func_graph(name, graph, *args, **kwargs):
        _separate(graph)
        return real(name, graph, *args, **kwargs)

    with replaced(atomic_function, from_func_graph=from_func_graph):
        yield


def ambiguous(operations) -> list:
    """Return the bias gradients of a graph that may be merged with the filters of
    another convolution, or with varying ones."""
    filters = _gradients(operations, "Conv2DBackpropFilter", 2)
    biases = _gradients(operations, "BiasAddGrad", 0)
    found = []
    for bias, (source, passed) in biases.items():
        near = [one for one in filters.values() if passed & one[1]]
        near += [one for one in biases.values() if passed & one[1] and near]
        right = all(tensor == source for tensor, _ in near)
        single = len(near) == 2  # itself and one filter gradient
        steady = single or _edges(source[0]) <= _IN_ORDER
        if near and not (right and steady and source[0].type not in _HIDING):
            found.append(bias)
    return found


def _separate(graph) -> None:
    for bias in ambiguous(graph.get_operations()):
        with graph.as_default(), graph.name_scope(None):
            tensor = bias.inputs[0]
            bias._update_input(0, array_ops.ensure_shape(tensor, tensor.shape))


def _edges(operation) -> int:
    """Count the consumers of an operation, those behind passing operations included."""
    takers = [one for tensor in operation.outputs for one in tensor.consumers()]
    takers += operation._control_outputs
    return sum(_edges(one) if one.type in _PASSING else 0 for one in takers) + len(
        takers
    )


def _gradients(operations, kind: str, index: int) -> dict:
    """Return operation of a kind -> source of its input, and the operations between."""
    return {
        operation: _followed(operation.inputs[index])
        for operation in operations
        if operation.type == kind
    }


def _followed(tensor) -> tuple:
    """Return ((operation, number of its output), operations passed on the way)."""
    passed = {tensor.op}
    while tensor.op.type in _PASSING:
        number = tensor.value_index if tensor.op.type == "IdentityN" else 0
        tensor = tensor.op.inputs[number]
        passed.add(tensor.op)
    return (tensor.op, tensor.value_index), passed
