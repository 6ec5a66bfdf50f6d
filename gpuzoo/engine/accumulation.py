"""Gradient accumulation: the parts of a batch one after another, and one update."""

import keras


class Summed:
    """A backend for the steps of the parts of a batch: gradients are added up, in the
    order of the parts, and the last part updates by their mean.

    Args:
        backend: see gpuzoo/engine/backends/.
        parts: their number.
        size: examples of a part.
    """

    def __init__(self, backend, parts: int, size: int):
        self._backend, self.parts, self.size = backend, parts, size
        self.done = 0
        self._sums: list = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def next_part(self, arrays: dict) -> dict:
        """Return the rows of the next part, not available before the gradients of the
        parts so far are computed: that is what saves memory.

        XLA drops its optimization barriers on a CPU, so the number of the first row is
        computed from the gradients: n (n - 1) is added to it, which is 0 as n is 0 or
        1, and no compiler knows that.
        """
        start = keras.ops.convert_to_tensor(self.done * self.size, "int32")
        for total in self._sums:
            if total is not None:
                lost = keras.ops.isnan(keras.ops.max(total))
                number = keras.ops.cast(lost, "int32")
                start = start + number * (number - 1)
        rows = start + keras.ops.arange(self.size, dtype="int32")
        return {k: keras.ops.take(array, rows, axis=0) for k, array in arrays.items()}

    def apply(self, optimizer, gradients, variables: list[keras.Variable]) -> None:
        """Add the gradients of a part; update the variables after the last part."""
        dense = self._backend.dense
        gradients = [one if one is None else dense(one) for one in gradients]
        if self.done:
            pairs = zip(self._sums, gradients, strict=True)
            gradients = [a if b is None else a + b for a, b in pairs]
        self._sums = gradients
        self.done += 1
        if self.done == self.parts:
            means = [one if one is None else one / self.parts for one in self._sums]
            self._backend.apply(optimizer, means, variables)
