"""The one exception that a person is meant to read."""


class GpuzooError(ValueError):
    """Wrong use, bad input or an environment that cannot do what was asked.

    The message is one line: the argument, the rule, the value received and the remedy.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Diverged(GpuzooError):
    """The training itself failed: the loss or a weight is no longer finite.

    `weights` are the last ones that were all finite, those of step `step`.
    """

    exit_code = 1

    def __init__(self, message: str, *, step: int, weights: dict):
        super().__init__(message)
        self.step = step
        self.weights = weights
