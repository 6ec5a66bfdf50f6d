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
    told_by_layer = ""
    """The layer that adds to the loss, for Keras's own fit, what the task adds."""
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

    @staticmethod
    def misfit(model: keras.Model, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a model that is to take examples of a shape, or None."""
        if not isinstance(model, keras.Function | keras.Sequential):
            return "is neither a functional nor a Sequential keras.Model"
        wanted = (None, *shape)
        if len(model.inputs) != 1:
            return f"takes {len(model.inputs)} inputs, not one, {wanted}"
        if not (kind := str(model.inputs[0].dtype)).startswith(("float", "bfloat")):
            return f"takes {kind}, and is given real numbers; leave dtype out of Input"
        taken = model.inputs[0].shape
        fits = len(taken) == len(wanted) and all(
            side in (None, other) for side, other in zip(taken, wanted, strict=True)
        )
        return None if fits else f"takes {taken}, not {wanted}"

    @staticmethod
    def output(model: keras.Model):
        """What a model that fits puts out: a tensor of Keras's, or such in a dict or a
        list, even if it is one alone."""
        if isinstance(model, keras.Sequential):
            return model.outputs[0]
        return model._outputs_struct

    @staticmethod
    def shape(model: keras.Model):
        """The shape of that, or the shapes, in a dict or a list."""
        return keras.tree.map_structure(lambda one: one.shape, OneLoss.output(model))

    @staticmethod
    def squashed(output, name: str) -> str | None:
        """What is wrong with a model whose output comes from the activation of that
        name, where logits are wanted, or None."""
        if _last(output) != name:
            return None
        return f"ends in a {name}; let it put out the logits before that"

    def minimise(self, loss, backend):
        """See minimise() below."""
        return minimise(loss, self.optimizer, self.model, backend, self.told_by_layer)


def minimise(loss, optimizer, network: keras.Model, backend, without: str = ""):
    """Move the weights of a network once against the gradient of loss(), which returns
    the loss and what is to be told of it; returns the latter. What the layers add to
    the loss, as regularizers do, is added here and not told, but for one layer."""
    variables = network.trainable_variables
    apart = [layer for layer in network.layers if layer.name == without]

    def scaled():
        value, told = loss()
        theirs = {id(added) for layer in apart for added in layer.losses}
        for added in (one for one in network.losses if id(one) not in theirs):
            value = value + keras.ops.sum(keras.ops.cast(added, "float32"))
        return optimizer.scale_loss(value), told

    (_, told), gradients = backend.value_and_grad(scaled, variables)
    backend.apply(optimizer, gradients, variables)
    return told


def _last(tensor) -> str:
    """What computes a tensor, whatever moves its numbers about afterwards, as an
    activation is called: softmax, sigmoid, linear, ..."""
    layers = keras.layers
    operation, node, place = tensor._keras_history
    if isinstance(operation, keras.Function | keras.Sequential):
        return _last(operation.outputs[place])
    moves = (layers.Reshape, layers.Permute, layers.Flatten, layers.Cropping2D)
    if isinstance(operation, moves):
        return _last(operation._inbound_nodes[node].input_tensors[0])
    activation = getattr(operation, "activation", operation)
    return getattr(activation, "__name__", type(activation).__name__.lower())
