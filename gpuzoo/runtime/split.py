"""Model parallelism on JAX: the kernels of a model, each split over several devices.

Every device holds a part of each large weight and of its optimizer's state, and all of
every batch. XLA divides the products by the parts and inserts the exchanges (GSPMD, Xu
et al. 2021, arXiv:2105.04663). A kernel is split along its output channels, the
projections of an attention along its heads (Shoeybi et al. 2019, arXiv:1909.08053).
"""

import math
import re

import keras

# Elements of a weight below which an exchange costs more than its memory is worth.
LEAST = 16_384
_AXIS = "model"
_INTO_HEADS = re.compile(r"/(query|key|value)/kernel$")
_FROM_HEADS = re.compile(r"/attention_output/kernel$")


def split_axis(path: str, shape: tuple[int, ...], parts: int) -> int | None:
    """Return the axis along which a weight is split in equal parts; None: it is not,
    and each device has a copy."""
    if math.prod(shape) < LEAST:
        return None
    axes = [*range(len(shape))][::-1]  # of a kernel, the output channels first
    if len(shape) == 3 and _INTO_HEADS.search(path):  # (channels, heads, size)
        axes = [1, 2, 0]
    elif len(shape) == 3 and _FROM_HEADS.search(path):  # (heads, size, channels)
        axes = [0, 2, 1]
    return next((axis for axis in axes if shape[axis] % parts == 0), None)


class Split(keras.distribution.ModelParallel):
    """Gives every variable that Keras makes its place on the devices; the state of an
    optimizer takes that of its weight."""

    def __init__(self, devices: list):
        mesh = keras.distribution.DeviceMesh(
            (len(devices),), (_AXIS,), [f"{d.platform}:{d.id}" for d in devices]
        )
        layouts = keras.distribution.LayoutMap(mesh)
        super().__init__(layout_map=layouts, auto_shard_dataset=False)
        self.parts = len(devices)

    def get_variable_layout(self, variable):
        """Return the place of a variable."""
        if (known := getattr(variable, "_layout", None)) is not None:
            return known
        axes: list[str | None] = [None] * len(variable.shape)
        axis = split_axis(variable.path, tuple(variable.shape), self.parts)
        if axis is not None:
            axes[axis] = _AXIS
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def begin(devices: list) -> None:
    """Split the weights of every model that is built from now on."""
    keras.distribution.set_distribution(Split(devices))


def copies():
    """Return the placement of an array of which each device has a copy."""
    mesh = keras.distribution.distribution().device_mesh
    return keras.distribution.TensorLayout([], mesh).backend_layout


def placements(variables: list[keras.Variable]) -> list:
    """Return where the values of variables are, and stay."""
    return [variable.value.sharding for variable in variables]


def held_bytes(variables: list[keras.Variable]) -> int:
    """Return the bytes of variables that one device holds."""
    return sum(
        math.prod(v.value.sharding.shard_shape(v.value.shape)) * v.value.dtype.itemsize
        for v in variables
    )
