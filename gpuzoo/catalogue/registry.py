"""The registry of models: `register`, `list_models`, `model_info` and `build`.

The models that ship with gpuzoo are found by parsing their source for functions under
`@register(...)`, so that listing them needs no Keras and takes milliseconds. `build`
imports the one file that it needs.
"""

import contextlib
import fnmatch
import functools
import importlib
import importlib.util
import inspect
import pathlib
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING

import typeguard

from gpuzoo.catalogue import architecture, keras_applications, user_code
from gpuzoo.catalogue.model_info import ARCHITECTURE, TASKS, ModelInfo, read_models
from gpuzoo.catalogue.user_files import execute, file_of, model_in_file
from gpuzoo.errors import GpuzooError, nearest

if TYPE_CHECKING:
    import keras

_registered: dict[str, tuple[ModelInfo, Callable]] = {}


def register(*, task: str, reference: str, parameters: int | None = None):
    """Decorator that registers a model builder under its function name.

    The builder is a plain function with keyword-only, typed, defaulted options (no
    `**kwargs`) that returns a `keras.Model`: functional, Sequential, or, in a user's
    file, a subclassed one with one input.

    Args:
        task: task of the model; one of `gpuzoo.catalogue.registry.TASKS`.
        reference: source of the architecture.
        parameters: number of weights with default options, or None if not declared.

    Raises:
        GpuzooError: unknown task, name already taken, or options that are not
            keyword-only, typed and defaulted.
    """

    def decorate(builder: Callable) -> Callable:
        name = builder.__name__
        if builder.__module__.split(".")[0] == "models" and _is_ours(builder):
            raise GpuzooError(
                f"model {name!r} was imported as {builder.__module__!r}, a second copy "
                f"of the catalogue; import gpuzoo.{builder.__module__} instead"
            )
        if task not in TASKS:
            raise GpuzooError(
                f"task of model {name!r} must be one of {TASKS}: {task!r}"
            )
        taken = _registered.get(name)
        # Of two user files the last one read gets the short name.
        both = taken and (taken[0].module, builder.__module__)
        own = both and all(module.startswith(user_code.OWN) for module in both)
        if taken and not own and not _same_function(taken[1], builder):
            raise GpuzooError(
                f"a model named {name!r} already exists in {taken[0].module}; "
                "give the function another name"
            )
        shipped = _shipped().get(name)
        if shipped and shipped.module != builder.__module__:
            raise GpuzooError(
                f"a model named {name!r} ships with gpuzoo ({shipped.module}); "
                "give the function another name"
            )
        options = {}
        for parameter in inspect.signature(builder).parameters.values():
            if (
                parameter.kind is not parameter.KEYWORD_ONLY
                or parameter.annotation is parameter.empty
                or parameter.default is parameter.empty
            ):
                raise GpuzooError(
                    f"option {parameter.name!r} of model {name!r} must be "
                    "keyword-only, typed and have a default"
                )
            options[parameter.name] = str(parameter).partition(":")[2].strip()
        doc = inspect.getdoc(builder) or ""
        info = ModelInfo(
            name, task, reference, parameters, doc.partition("\n")[0], doc, options,
            builder.__module__,
        )  # fmt: skip
        _registered[name] = (info, builder)
        return builder

    return decorate


def build(name: str, **options) -> "keras.Model":
    """Build a model of the catalogue: a plain, untrained `keras.Model`.

    Args:
        name: a name from `list_models()`, or path.py:function.
        **options: the typed options of that model; `model_info(name).options` has them.

    Raises:
        GpuzooError: unknown name, or an option's value out of its range.
        TypeError: unknown option, or a value of the wrong type.
    """
    info = model_info(name)
    checked = check_options(name, options)
    from gpuzoo.runtime.keras_state import orthogonal_in_any_precision  # and NumPy

    with orthogonal_in_any_precision():
        return _builder(info)(**checked)


def check_options(name: str, options: dict) -> dict:
    """Check names and types of options; return them with lists as tuples.

    Raises:
        TypeError: unknown option, or a value of the wrong type.
    """
    builder = _builder(model_info(name))
    known, hints = inspect.signature(builder).parameters, typing.get_type_hints(builder)
    checked = {}
    for key, value in options.items():
        if key not in known:
            raise TypeError(
                f"model {name!r} has no option {key!r}; {nearest(key, known)}"
            )
        if isinstance(value, list):
            value = tuple(value)
        try:
            typeguard.check_type(value, hints[key])
        except typeguard.TypeCheckError as error:
            remedy = ""
            with contextlib.suppress(typeguard.TypeCheckError):
                typeguard.check_type((value,), hints[key])
                remedy = f"; for one value write {key}=({value!r},)"
            raise TypeError(
                f"option {key!r} of model {name!r}: {error}; got {value!r}{remedy}"
            ) from None
        checked[key] = value
    return checked


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Return the names of models that match a shell-style pattern and a task, if given.

    Networks of `keras.applications` and KerasHub are only listed by a pattern that
    begins with keras/: `list_models("keras/*")`.

    Raises:
        GpuzooError: there is no such task.
    """
    if task is not None and task not in TASKS:
        raise GpuzooError(f"task must be one of {TASKS}: {task!r}")
    infos = {**_shipped(), **{name: info for name, (info, _) in _registered.items()}}
    if pattern.startswith(keras_applications.PREFIX):
        infos = {name: model_info(name) for name in keras_applications.names()}
    return sorted(
        name
        for name, info in infos.items()
        if fnmatch.fnmatch(name, pattern) and task in (None, info.task)
    )


def model_info(name: str) -> ModelInfo:
    """Return the information on one model.

    Args:
        name: a name from `list_models()`, keras/<name> of a network of
            keras.applications, path.py:function of a function under
            `@gpuzoo.register`, or architecture.json for a model object.

    Raises:
        GpuzooError: there is no such model.
    """
    if name == ARCHITECTURE:
        what = "A user's model."
        return ModelInfo(name, "", "", None, what, what, {}, "")
    if name in keras_applications.names():
        doc = keras_applications.doc(name)
        return ModelInfo(
            name, "classify", keras_applications.reference(name), None,
            doc.partition("\n")[0], doc, keras_applications.options(name), "",
        )  # fmt: skip
    if ":" in name:
        return model_in_file(name)
    if name in _registered:
        return _registered[name][0]
    if name in _shipped():
        return _shipped()[name]
    if name.endswith(".py"):
        raise GpuzooError(
            f"model {name!r} is a file; name its function too: {name}:function"
        )
    known = [*list_models(), *keras_applications.names()]
    raise GpuzooError(f"no model named {name!r}; {nearest(name, known)}")


def in_no_file(name: str) -> bool:
    """Whether a model is only registered in this process, as from a notebook."""
    return name in _registered and name not in _shipped()


def _builder(info: ModelInfo) -> Callable:
    if info.name == ARCHITECTURE:
        return architecture.refuse_name
    if info.name.startswith(keras_applications.PREFIX):
        return keras_applications.builder(info.name)
    if ":" in info.name:
        execute(info.module, file_of(info.name))
    elif info.name not in _registered:
        importlib.import_module(info.module)
    user_code.note_built(info.module)
    return _registered[info.name.rpartition(":")[2]][1]


def _is_ours(builder: Callable) -> bool:
    """Whether a builder is in gpuzoo's models folder, not in a user's models.py."""
    file = pathlib.Path(builder.__code__.co_filename).resolve()
    return any(place.resolve() in file.parents for place in _places())


def _same_function(*both: Callable) -> bool:
    """Whether it is one function, registered again by a reloaded module."""
    return len({(one.__module__, one.__qualname__) for one in both}) == 1


def _places() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("gpuzoo.models")
    if spec is None:
        raise GpuzooError(
            "gpuzoo.models is missing: a checkout must be installed first; run: pip "
            "install -e ."
        )
    return list(map(pathlib.Path, spec.submodule_search_locations))


@functools.cache
def _shipped() -> dict[str, ModelInfo]:
    found: dict[str, ModelInfo] = {}
    for folder in _places():
        for path in sorted(folder.glob("[!_]*.py")):
            for info in read_models(path, f"gpuzoo.models.{path.stem}"):
                if info.name in found:
                    raise GpuzooError(
                        f"model {info.name!r} is defined in {found[info.name].module} "
                        f"and in {info.module}; rename one"
                    )
                found[info.name] = info
    return found
