"""Steps on TensorFlow and on JAX. Nothing else in engine/ distinguishes the backends.

A backend offers arrays on the device, values and gradients of a function of Keras
variables, and a compiled call that does many steps. Tasks and the loop use these.
"""

from gpuzoo.runtime.options import Runtime


def get(runtime: Runtime):
    """Return the backend that Keras uses in this process."""
    if runtime.backend == "jax":
        from gpuzoo.engine.backends.jax import JaxBackend

        return JaxBackend(runtime)
    from gpuzoo.engine.backends.tensorflow import TensorFlowBackend

    return TensorFlowBackend(runtime)
