"""Steps on TensorFlow and on JAX. Only this folder knows one backend from the other.

A backend offers: arrays on the device, values and gradients of a function over Keras
variables, and a compiled call that does many steps at once. Tasks and the loop are
written against these.
"""

from gpuzoo.runtime.options import Runtime


def get(runtime: Runtime):
    """The backend that Keras runs on in this process."""
    if runtime.backend == "jax":
        from gpuzoo.engine.backends.jax import JaxBackend

        return JaxBackend(runtime)
    from gpuzoo.engine.backends.tensorflow import TensorFlowBackend

    return TensorFlowBackend(runtime)
