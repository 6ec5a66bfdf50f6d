"""Worker process of `gpuzoo check`: one backend."""

import functools
import itertools
import sys
import time

import numpy as np

from gpuzoo import workers
from gpuzoo.catalogue import architecture, registry, user_code, user_files
from gpuzoo.catalogue.recipe import parse_options
from gpuzoo.errors import GpuzooError
from gpuzoo.repro import causes
from gpuzoo.repro.check import NO_COMPILE, NOT_REPEATABLE, NOTE, SLOW
from gpuzoo.runtime.configure import configure
from gpuzoo.runtime.environment import busy_cores, cpu_isa
from gpuzoo.runtime.options import Options

_BUDGET = 30.0  # seconds for all layers alone


def _work(request: dict):
    try:
        runtime = configure(Options(**request["options"]), quiet=True)
    except GpuzooError as error:
        yield {"refused": str(error)}
        return
    yield _Check(request, runtime).result


class _Check:
    """Looks at one model on one backend; `result` is what `check` returns of it."""

    def __init__(self, request: dict, runtime):
        self.request, self.runtime = request, runtime
        self.backend = engine_backend(runtime)
        self.file = user_files.file_of(request["model"])
        self.findings: list[dict] = []
        self.result = {
            "findings": self.findings, "runtime": runtime.line(), "repeated": None,
            "step_seconds": None, "layers": [],
        }  # fmt: skip
        model = self._build()
        if model is not None:
            for part in _parts(model):
                self._look_at(part)

    def add(self, kind: str, what: str, remedy: str = "", layer: str = "") -> None:
        row = {"kind": kind, "layer": layer, "what": what, "remedy": remedy}
        if row not in self.findings:
            self.findings.append(row)

    def fails(self, error: Exception, layer: str = "") -> None:
        """Add the finding of an error while something was compiled or done."""
        from gpuzoo.training import failures

        line = str(error)
        if not isinstance(error, GpuzooError):
            line = failures.out_of_memory(error) or failures.in_model(
                error, self.request["model"], self.file
            )
            line = line or workers.one_line(error)
        marks = ("not repeatable", "draws from", "writes into", "varies")
        varies = isinstance(error, GpuzooError) and any(one in line for one in marks)
        what, _, remedy = line.removesuffix(
            " (--debug shows the traceback)"
        ).rpartition("; ")
        self.add(NOT_REPEATABLE if varies else NO_COMPILE, what or remedy,
                 remedy if what else "", layer)  # fmt: skip

    def _build(self):
        """Return the model, built; None if it cannot be."""
        import keras

        from gpuzoo.runtime.keras_state import fresh_names
        from gpuzoo.tasks.subclassed import in_graph, is_subclassed

        name, shape = self.request["model"], tuple(self.request["shape"])
        try:
            with fresh_names():
                model = self._call(parse_options(tuple(self.request["model_options"])))
                if not isinstance(model, keras.Model):
                    raise GpuzooError(
                        f"{name} must return a keras.Model: {model!r:.60}"
                    )
                try:
                    architecture.check_form(model, name)
                except GpuzooError as error:
                    what = str(error).partition(";")[0]
                    self.add(NOTE, what, "Keras's fit calls it, gpuzoo.train does not")
                if is_subclassed(model) or not model.built:
                    if not shape:
                        raise GpuzooError(
                            f"{name} does not know the shape of an example; name it: "
                            "--shape 28 28 1"
                        )
                    model = in_graph(model, shape, name)
        except Exception as error:  # of the user's code
            self.fails(error)
            return None
        for place in causes.draws_of(self.file) if self.file else ():
            self.add(NOTE, f"{place}: a number that gpuzoo's seed may not fix",
                     "take it from a seeded generator")  # fmt: skip
        return model

    def _call(self, options: dict):
        if self.file is None:
            return registry.build(self.request["model"], **options)
        function = self.request["model"].rpartition(":")[2]
        module = user_code.OWN + self.file.stem
        user_files.execute(module, self.file)
        made = getattr(sys.modules[module], function, None)
        if not callable(made):
            raise GpuzooError(f"{self.file} has no function {function!r}")
        return made(**options)

    def _look_at(self, model) -> None:
        self._known(model)
        if any("float" not in str(one.dtype) and "int" not in str(one.dtype)
               and "bool" not in str(one.dtype) for one in model.inputs):  # fmt: skip
            self.add(NO_COMPILE, f"{model.name} takes {model.inputs[0].dtype}",
                     "turn it into numbers beforehand")  # fmt: skip
            return
        failure, before = None, len(self.findings)
        try:
            self._do_step(model)
        except Exception as error:  # of a library or of the user's model
            failure = error
        self._time_layers(model)
        found = {row["kind"] for row in self.findings[before:]}
        if failure and not found & {NOT_REPEATABLE, NO_COMPILE}:  # of no layer alone
            self.fails(failure)

    def _known(self, model) -> None:
        """Add what is known of layers without computing anything."""
        import keras

        from gpuzoo.keras_layers import layers_of

        runtime = self.runtime
        if runtime.device == "cpu" and runtime.precision != "float32":
            native = {"avx512_bf16", "amx_bf16"} & set(cpu_isa())
            if runtime.compute_dtype == "float16" or not native:
                what = f"this CPU does not compute natively in {runtime.compute_dtype}"
                self.add(SLOW, what, "use --precision float32")
        for layer in layers_of(model, include_self=False):
            name = f"{layer.name} ({type(layer).__name__})"
            if not layer.supports_jit:
                what = "Keras's fit does not use XLA for a model with it"
                self.add(NOTE, what, "apply it to the data, before the model", name)
            if layer.dtype_policy.compute_dtype == "float64":
                self.add(SLOW, "it computes in float64", "dtype='float32'", name)
            cell = getattr(layer, "cell", None)
            recurrent = isinstance(layer, keras.layers.RNN)
            if recurrent and getattr(cell, "recurrent_dropout", 0):
                what = "recurrent_dropout excludes cuDNN, and threads on a CPU"
                self.add(SLOW, what, "use dropout instead", name)

    def _do_step(self, model) -> None:
        """Compile a step and do it three times from one state."""
        import keras

        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        variables = [*model.variables, *optimizer.variables]
        feed = {
            f"x{place}": _noise(one, self.request["batch_size"])[None]
            for place, one in enumerate(model.inputs)
        }

        step = functools.partial(self._step, model, optimizer)
        before, results = self.backend.read(variables), []
        for number in range(3):
            if number != 1:  # the second time it is the same program
                call = self.backend.compile_steps(step, feed, variables)
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            with busy_cores():
                call(feed)
            results.append([one.tobytes() for one in self.backend.read(variables)])
        begun = time.perf_counter()
        call(feed)
        self.result["step_seconds"] = round(time.perf_counter() - begun, 6)
        odd = [
            variable.path
            for variable, *values in zip(variables, *results, strict=True)
            if len(set(values)) > 1
        ]
        self.result["repeated"] = not odd
        if odd:
            self.add(NOT_REPEATABLE, "the step, run three times, gave different "
                     f"{', '.join(odd[:5])}", "replace their layers")  # fmt: skip
        if hasattr(call, "graph") and self.runtime.device == "cpu":
            from gpuzoo.engine.backends.determinism import faults

            for layer, operation, why, remedy in faults(call.graph, {"gpu"}):
                self.add(NOTE, f"on a GPU, {operation}: {why}", remedy, layer)

    def _step(self, model, optimizer, entry: dict) -> dict:
        """Do a step whose loss is the size of the outputs."""
        import keras

        from gpuzoo.engine.backends.determinism import no_draws

        with no_draws(self.runtime):
            given = [entry[f"x{place}"] for place in range(len(entry))]

            def loss():
                outputs = model(given[0] if len(given) == 1 else given, training=True)
                value = _size(outputs)
                for added in model.losses:
                    value = value + keras.ops.sum(keras.ops.cast(added, "float32"))
                return value, value

            (_, value), gradients = self.backend.value_and_grad(
                loss, model.trainable_variables
            )
            self.backend.apply(optimizer, gradients, model.trainable_variables)
            return {"loss": value}

    def _time_layers(self, model) -> None:
        """Compile each layer alone, forward and backward, and time it."""
        begun, seen, rows = time.perf_counter(), set(), self.result["layers"]
        for layer, tensor in _layers_of_graph(model):
            form = type(layer), _form(layer), tuple(tensor.shape), tensor.dtype
            if form in seen:
                continue
            if time.perf_counter() - begun > _BUDGET:
                self.add(
                    NOTE, f"only {len(rows)} layers were timed alone, in {_BUDGET:g} s"
                )
                break
            seen.add(form)
            try:
                seconds = self._seconds_of(layer, tensor)
            except Exception as error:  # of a library or of the user's layer
                self.fails(error, f"{layer.name} ({type(layer).__name__})")
                continue
            rows.append({"layer": layer.name, "kind": type(layer).__name__,
                         "forward_backward_seconds": round(seconds, 6)})  # fmt: skip
        self._find_slow_preparation(model, rows)

    def _find_slow_preparation(self, model, rows: list[dict]) -> None:
        """Add layers before the first weights that take most of the time."""
        total = sum(row["forward_backward_seconds"] for row in rows)
        before = itertools.takewhile(
            lambda one: not one.weights, (one for one, _ in _layers_of_graph(model))
        )
        # Not those that only move values: no more than a call's overhead.
        plain = "keras.src.layers"
        computes = f"{plain}.preprocessing"
        kinds = {one.name: type(one).__module__ for one in before}
        prepares = {
            name
            for name, kind in kinds.items()
            if kind.startswith(computes) or not kind.startswith(plain)
        }
        for row in rows:
            part = row["forward_backward_seconds"] / total
            slow = part >= 0.5 and row["forward_backward_seconds"] >= 0.005
            if not slow or row["layer"] not in prepares:
                continue
            what = f"it prepares the inputs and takes {part:.0%} of the time of layers"
            name = f"{row['layer']} ({row['kind']})"
            self.add(SLOW, what, "compute it once, on the data, if it can be", name)

    def _seconds_of(self, layer, tensor) -> float:
        import keras

        from gpuzoo.engine.backends.determinism import no_draws

        variables, moves = layer.variables, layer.trainable_variables
        feed = {"x": _noise(tensor, self.request["batch_size"])[None]}
        backward = bool(moves) or "float" in str(tensor.dtype)

        def body(entry: dict) -> dict:
            with no_draws(self.runtime):

                def loss(x=entry["x"]):
                    named = {"training": True} if _takes_training(layer) else {}
                    return _size(layer(x, **named))

                if not backward:
                    return {"loss": loss()}
                if moves:
                    (value, _), found = self.backend.value_and_grad(
                        lambda: (loss(), ()), moves
                    )
                else:
                    value = keras.ops.zeros(())
                    found = [self.backend.input_gradient(loss, entry["x"])]
                return {"loss": value + sum(
                    _size(one) for one in found if one is not None
                )}  # fmt: skip

        call = self.backend.compile_steps(body, feed, variables)
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            call(feed)
            times.append(time.perf_counter() - begun)
        return min(times[1:])


def engine_backend(runtime):
    from gpuzoo.engine import backends  # once Keras's backend is chosen

    return backends.get(runtime)


def _parts(model) -> list:
    """Return a model, or the networks in it if it cannot be called on examples."""
    import keras

    graph = keras.Function | keras.Sequential
    if isinstance(model, graph):
        return [model]
    return [layer for layer in model.layers if isinstance(layer, graph)]


def _layers_of_graph(model):
    """Yield the layers that take one tensor, and it, nested models included."""
    import keras

    from gpuzoo.runtime.keras_state import graph_of, nodes_of
    from gpuzoo.tasks.subclassed import graph_of_call, is_subclassed

    for node in nodes_of(graph_of(model)):
        inner = node.operation
        if is_subclassed(inner):
            inner = graph_of_call(inner, node.input_tensors[0]) or inner
        if isinstance(inner, keras.Function | keras.Sequential):
            yield from _layers_of_graph(inner)
        elif isinstance(inner, keras.layers.Layer) and len(node.input_tensors) == 1:
            merges = isinstance(inner, keras.layers.InputLayer)
            if not merges:
                yield inner, node.input_tensors[0]


def _form(layer) -> str:
    try:
        config = layer.get_config()
    except Exception:  # a user's layer without a config
        return str(id(layer))
    return str({key: value for key, value in config.items() if key != "name"})


def _takes_training(layer) -> bool:
    from gpuzoo.keras_layers import takes_training

    return takes_training(layer)


def _noise(tensor, batch: int) -> np.ndarray:
    """Return random values for a symbolic tensor; 32 for sizes that are not fixed."""
    shape = (tensor.shape[0] or batch, *(size or 32 for size in tensor.shape[1:]))
    rng, dtype = np.random.default_rng(0), str(tensor.dtype)
    if "float" in dtype:
        kind = dtype if dtype in ("float16", "float64") else "float32"
        return rng.standard_normal(shape).astype(kind)
    return rng.integers(0, 2, shape).astype(dtype)


def _size(outputs):
    """Return the mean of the squares of all floating-point tensors in a structure."""
    import keras

    total = keras.ops.zeros(())
    for one in keras.tree.flatten(outputs):
        if "float" in keras.backend.standardize_dtype(one.dtype):
            total = total + keras.ops.mean(
                keras.ops.square(keras.ops.cast(one, "float32"))
            )
    return total


if __name__ == "__main__":
    workers.serve(_work)
