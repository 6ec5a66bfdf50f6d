"""StableHLO through jax.export: written, and executed, with JAX."""

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuzoo.deploy.formats.function import Exported


PLATFORMS = ("cpu", "cuda")


def to_stablehlo(exported: "Exported") -> bytes:
    """Return the serialized function for batches of any size, with its weights."""
    import jax
    from jax import export

    scope = export.SymbolicScope()
    batch = {
        one["name"]: jax.ShapeDtypeStruct(
            export.symbolic_shape(
                ", ".join(["b", *map(str, one["shape"][1:])]), scope=scope
            ),
            one["dtype"],
        )
        for one in exported.inputs
    }
    made = export.export(jax.jit(exported.call), platforms=PLATFORMS)(batch)
    return bytes(made.serialize())


class StableHLO:
    """A file of `to_stablehlo`, executed by JAX without Keras."""

    def __init__(self, path: pathlib.Path, threads: int):
        from jax import export

        self.loaded = export.deserialize(bytearray(path.read_bytes()))

    def __call__(self, batch: dict) -> dict:
        import numpy as np

        return {name: np.asarray(one) for name, one in self.loaded.call(batch).items()}
