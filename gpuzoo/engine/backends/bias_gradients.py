"""Each convolution gets the gradient of its own bias, and the same one every time.

On a CPU TensorFlow's oneDNN pass (mkl_layout_pass.cc) replaces the gradient of a
convolution's filters and that of its bias by one kernel. To find the two it asks which
operations take any output of the same operation, and merges the first two that it
meets. The outputs of one Unpack, Split or tuple are all one to it: with
`ops.stack([conv_1(x), conv_2(x)])` the bias of conv_1 may be given the gradient of
conv_2's, and which it gets differs from one compilation to the next. Where several
convolutions share one tensor (`Add()([conv_1(x), conv_2(x)])`), each pair gives one
sum, but its last bits depend on which are merged.

So the gradient of a bias that might be merged with a wrong one takes its tensor through
an EnsureShape, which copies nothing and stays in the graph, and the pass finds no pair.
All other graphs are left as they are.
"""

import contextlib

import keras

if keras.config.backend() == "tensorflow":
    from tensorflow.python.eager.polymorphic_function import atomic_function
    from tensorflow.python.ops import array_ops

# The optimizer may take these out of a graph: what hangs on them then hangs on what
# they stand for.
_PASSING = {
    "Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot", "Reshape",
    "Cast", "Squeeze", "ExpandDims", "Bitcast",
}  # fmt: skip
# What stands behind these is seen only after functions have been inlined.
_HIDING = {"Placeholder", "PartitionedCall", "StatefulPartitionedCall"}
# TensorFlow keeps up to so many edges of an operation in the order in which they were
# added (graph/edgeset.h), more of them in the order of their addresses.
_IN_ORDER = 8


@contextlib.contextmanager
def kept_apart():
    """Every function that TensorFlow makes of a graph inside is treated so, the
    gradients of loops and of other functions among them."""
    real = atomic_function.from_func_graph

    def from_func_graph(name, graph, *args, **kwargs):
        _separate(graph)
        return real(name, graph, *args, **kwargs)

    atomic_function.from_func_graph = from_func_graph
    try:
        yield
    finally:
        atomic_function.from_func_graph = real


def ambiguous(operations) -> list:
    """The gradients of biases, of one graph, that may be merged with the filters' of
    another convolution, or now with one and now with another."""
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
    """How many inputs take what the operation puts out, also if it is passed on."""
    takers = [one for tensor in operation.outputs for one in tensor.consumers()]
    takers += operation._control_outputs
    return sum(_edges(one) if one.type in _PASSING else 0 for one in takers) + len(
        takers
    )


def _gradients(operations, kind: str, index: int) -> dict:
    """Operation of a kind -> what its input stands for, and whatever lies between."""
    return {
        operation: _followed(operation.inputs[index])
        for operation in operations
        if operation.type == kind
    }


def _followed(tensor) -> tuple:
    """((operation, number of its output), the operations passed on the way to it)."""
    passed = {tensor.op}
    while tensor.op.type in _PASSING:
        number = tensor.value_index if tensor.op.type == "IdentityN" else 0
        tensor = tensor.op.inputs[number]
        passed.add(tensor.op)
    return (tensor.op, tensor.value_index), passed
