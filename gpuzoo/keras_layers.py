"""Private attributes of Keras's layers, for which Keras has no public name.

The other private parts of Keras are in runtime/keras_state.py. These are apart, in a
module that imports nothing, because weights.py and catalogue/architecture.py need them
before a backend is chosen.
tests/test_private_doors.py fails when a release of Keras changes one.
"""


def layers_of(layer, include_self: bool = True) -> list:
    """Return a model or layer and all layers inside, in Keras's order.

    `model.layers` lacks those inside a layer, such as the cell of an RNN.
    """
    return list(layer._flatten_layers(include_self=include_self))


def layers_inside(layer) -> list:
    """Return the layers directly inside a layer; of a functional model its operations,
    of a Sequential its layers."""
    if hasattr(layer, "operations"):
        return list(layer.operations)
    if not hasattr(layer, "_flatten_layers"):  # a bare operation
        return []
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_variables(layer) -> list:
    """Return the variables of a layer itself, those added as trainable first.

    `layer.variables` also has those of the layers inside.
    """
    return layer._trainable_variables + layer._non_trainable_variables


def added_as_trainable(layer) -> list:
    """Return the variables of a layer itself that were added as trainable.

    `layer.trainable_variables` is empty while the layer is frozen.
    """
    return layer._trainable_variables


def own_seed_generators(layer) -> list:
    """Return the seed generators of a layer itself; Keras lists only their states."""
    return layer._seed_generators


def set_trainable_itself(layer, flag: bool) -> None:
    """Set `trainable` of a layer alone.

    `layer.trainable = flag` also sets that of all layers inside.
    """
    layer._trainable = flag


def takes_training(layer) -> bool:
    """Return whether Keras passes `training` to the layer's `call`."""
    return getattr(layer, "_call_has_training_arg", False)


def default_name(layer) -> str:
    """Return how Keras names a layer of this class, without the number."""
    return snake_case(type(layer).__name__)


def snake_case(name: str) -> str:
    """Return `batch_normalization` for BatchNormalization, as Keras does."""
    from keras.src.utils.naming import to_snake_case

    return to_snake_case(name)
