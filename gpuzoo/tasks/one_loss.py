"""What the tasks share in which one optimizer makes one loss of one model small."""

import keras

from gpuzoo.data import augment


class OneLoss:
    """A task is a subclass with `check_model`, `step`, `evaluate` and `summarise`."""

    fields: tuple[str, ...] = ("image",)
    """The arrays that an example has."""
    step_figures: tuple[str, ...] = ("loss",)
    figures: tuple[str, ...] = ("loss",)
    """What a step and an evaluation tell."""
    headline = "loss"
    """The figure that a run is judged by."""
    expansion = 1
    """Pixels that an evaluation holds at once for each of an example's."""
    models = ""
    """The task that its models are registered for, if it is not its own."""
    own_draws = 0
    """Uniform numbers that a step needs for each example, before those of `augment`."""

    def __init__(self, *, model: keras.Model, optimizers: list, recipe, dataset):
        self.model = model
        (self.optimizer,) = optimizers
        self.changes = augment.parse(recipe.augment)

    @classmethod
    def count_draws(cls, recipe, model: keras.Model) -> int:
        """Uniform numbers that a step needs for each example."""
        changes = augment.parse(recipe.augment)
        return cls.own_draws + sum(change.draws for change in changes)

    @staticmethod
    def model_options(dataset) -> dict:
        """Options of the model that follow from the data."""
        return {"input_shape": tuple(dataset.input_shape)}

    @staticmethod
    def groups(model: keras.Model) -> list[list]:
        """The weights that each optimizer moves."""
        return [model.trainable_variables]

    @staticmethod
    def moves(model: keras.Model) -> list[int]:
        """How often each optimizer moves them in a step."""
        return [1]

    def minimise(self, loss, backend):
        """See minimise() below."""
        variables = self.model.trainable_variables
        return minimise(loss, self.optimizer, variables, backend)


def minimise(loss, optimizer, variables: list, backend):
    """Move the variables once against the gradient of loss(), which returns the loss
    and what is to be told of it; returns the latter."""

    def scaled():
        value, told = loss()
        return optimizer.scale_loss(value), told

    (_, told), gradients = backend.value_and_grad(scaled, variables)
    backend.apply(optimizer, gradients, variables)
    return told
