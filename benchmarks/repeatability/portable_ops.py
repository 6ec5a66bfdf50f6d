"""Compare operations, layers and models at level portable between processors.

    python benchmarks/repeatability/portable_ops.py one.json
    qemu-x86_64-static -cpu Haswell .venv/bin/python \\
        benchmarks/repeatability/portable_ops.py other.json \\
        --processor "an emulated Haswell"    # slow
    python benchmarks/repeatability/portable_ops.py --compare one.json other.json
    python benchmarks/repeatability/portable_ops.py --compare one.json other.json --keep

With --backend jax, the same of JAX; its records have its name.

Single operations of a backend and their gradients, the settings of a training, every
model of the catalogue and every layer of Keras are traced as a training step of level
portable is: with its replacements (gpuzoo/engine/backends/portable.py), without
constant folding, on two threads. A file has a digest of the results of each case, and
the operations in its graph, each with its floating-point types. It is written after
each case, and continued if it is there. --only takes cases by parts of their names.

Compared are two such files: cases that differ are printed. An operation is compared if
it occurs in a case with the same bits, or in a model that portable.py has compared
under emulation (portable.json). Exit code 1 if a case differs without one that is not.
--keep writes benchmarks/records/portable_ops.json, and the operations into
gpuzoo/engine/backends/compared.py (portable_ops_jax.json, compared_jax.py): level
portable takes no others.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RECORDS = HERE.parent / "records"
MODELS = RECORDS / "portable.json"
LISTS = HERE.parent.parent / "gpuzoo" / "engine" / "backends"
SUFFIX = {"tensorflow": "", "jax": "_jax"}
# Settings of a training, on the small classifier of layers.py.
SETTINGS = {
    **{
        f"optimizer {name}": {"optimizer": name}
        for name in (
            "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl",
            "lamb", "lion", "muon", "nadam", "rmsprop", "schedule_free_adamw", "sgd",
        )
    },
    **{
        f"augment {text}": {"augment": (text,)}
        for text in (
            "translate:1", "flip", "alternating_flip", "rotate:10", "cutout:2",
            "random_resized_crop:0.5", "color_jitter:0.2", "mixup:0.2", "cutmix:1",
        )
    },
    "clip_norm": {"clip_norm": 0.1},
    "clip_value": {"clip_value": 0.01},
    "weight_decay": {"weight_decay": 0.1},
    "ema_decay": {"ema_decay": 0.9},
    "accumulate": {"accumulate": 2},
    "label_smoothing": {"label_smoothing": 0.1},
    "class_weight": {"class_weight": ("balanced",)},
    "sparsity": {"sparsity": 0.5},
    "robust": {"task": "classify_robust"},
}  # fmt: skip


# --- what is traced -------------------------------------------------------------------


def operation(runtime, name: str, seen: set) -> str:
    """Return the digest of the result and the gradients of one operation."""
    import keras
    import numpy as np

    function, *arrays = _operations()[name]
    if isinstance(function, keras.layers.Layer):
        function.build(arrays[0].shape)
    done = _on_jax if runtime.backend == "jax" else _on_tensorflow
    digest = hashlib.sha256()
    for result in done(runtime, function, arrays, seen):
        digest.update(np.asarray(result).tobytes())
    return digest.hexdigest()


def _on_tensorflow(runtime, function, arrays: list, seen: set) -> list:
    import tensorflow as tf

    from gpuzoo.engine.backends.determinism import operations_of
    from gpuzoo.engine.backends.tensorflow import repeatable_operations

    def step(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            result = function(*arrays)
            weights = tf.range(tf.size(result)) % 7
            loss = tf.reduce_sum(
                tf.cast(result, "float32")
                * tf.reshape(tf.cast(weights, "float32") / 8, tf.shape(result))
            )
        return result, *(x for x in tape.gradient(loss, arrays) if x is not None)

    given = [tf.constant(array) for array in arrays]
    with repeatable_operations(runtime):
        traced = tf.function(step, autograph=False).get_concrete_function(*given)
    seen |= operations_of(traced.graph)
    return [tf.convert_to_tensor(x).numpy() for x in traced(*given)]


def _on_jax(runtime, function, arrays: list, seen: set) -> list:
    import jax
    import jax.numpy as jnp
    import keras

    from gpuzoo.engine.backends.compared_jax import operations_of
    from gpuzoo.engine.backends.jax import repeatable_operations

    def loss(*arrays):
        result = jnp.asarray(function(*arrays))
        weights = (jnp.arange(result.size) % 7).astype("float32") / 8
        return jnp.sum(result.astype("float32") * weights.reshape(result.shape)), result

    def step(*arrays):
        places = tuple(range(len(arrays)))
        with repeatable_operations(runtime), keras.StatelessScope():
            gradients, result = jax.grad(loss, places, has_aux=True)(*arrays)
        return result, *gradients

    given = [jnp.asarray(array) for array in arrays]
    traced = jax.jit(step).trace(*given)
    seen |= operations_of(traced.jaxpr)
    return traced.lower().compile()(*given)


@functools.cache
def _operations() -> dict:
    import keras
    import portable_cases

    return portable_cases.cases(keras.ops, keras.layers)


def layer(runtime, folder: str, name: str, settings: dict, seen: set) -> str:
    """Return the digest of all state after three steps of a small classifier."""
    import layers

    import gpuzoo

    data = gpuzoo.load_data(layers.noise(folder))
    gpuzoo.configure(backend=runtime.backend, level="portable", quiet=True)  # seeds
    program = layers.made(name, "alone", data, runtime, **settings)
    with noted(seen, runtime.backend):
        (digest,) = layers.trained(program, 1, busy=False)
    return digest


def model(runtime, folder: str, name: str, seen: set) -> str:
    """Return the digest of the weights of a model after two steps."""
    import repeatable
    from matrix import small_digits

    job = {
        "data": small_digits(folder, 2, 10), "steps": 2, "batch": 10, "small": True,
        "models": [name],
        "runtime": {"backend": runtime.backend, "level": "portable"},
    }  # fmt: skip
    with noted(seen, runtime.backend):
        return repeatable.train(name, 0, repeatable.load(job)[name], job)


def noted(seen: set, backend: str):
    """Within the block, note the operations of a step in place of refusing them."""
    from gpuzoo.engine.backends import compared_jax, determinism
    from gpuzoo.runtime.keras_state import replaced

    if backend == "jax":
        return replaced(
            compared_jax, check=lambda x: seen.update(compared_jax.operations_of(x()))
        )
    from gpuzoo.engine.backends import tensorflow

    return replaced(
        tensorflow,
        check_tensorflow=lambda graph, _: seen.update(determinism.operations_of(graph)),
    )


def every_case(backend: str) -> dict:
    """Return name -> what returns the digest of a case and adds its operations to a
    set."""
    import gpuzoo

    runtime = gpuzoo.configure(backend=backend, level="portable", quiet=True)
    import layer_table
    import layers

    models = gpuzoo.list_models()  # without that of layers.py
    layers.registered()
    found = {}
    for name in _operations():
        found[f"operation {name}"] = functools.partial(operation, runtime, name)
    folder = tempfile.mkdtemp()
    for name, settings in SETTINGS.items():
        found[name] = functools.partial(layer, runtime, folder, "Dense", settings)
    for name in models:
        found[f"model {name}"] = functools.partial(model, runtime, folder, name)
    for name in layer_table.known():
        found[f"layer {name}"] = functools.partial(layer, runtime, folder, name, {})
    return found


def digest_all(args) -> None:
    from gpuzoo.runtime import environment

    path, only = args.file, args.only
    found = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    found["cpu"] = args.processor or environment.cpu_model()
    found["versions"] = environment.versions()
    for name, run in every_case(args.backend).items():
        if name in found["cases"] or (only and not any(x in name for x in only)):
            continue
        seen: set[str] = set()
        try:
            row = {"digest": run(seen)[:16]}
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
            print(name, row, flush=True)
        found["cases"][name] = {**row, "operations": sorted(seen)}
        path.write_text(json.dumps(found, indent=1) + "\n")


# --- the comparison -------------------------------------------------------------------


def emulated_models(backend: str) -> list[str]:
    """Return the models that portable.py trained to the same bits under emulation."""
    place = json.loads(MODELS.read_text())["backends"].get(backend, {"settings": {}})
    told = [one for name, one in place["settings"].items() if name.startswith("QEMU")]
    compared = {name for one in told for name in one["compared"]}
    return sorted(compared - {name for one in told for name in one["differ"]})


def compare(one: dict, other: dict, backend: str, keep: bool) -> int:
    """Print, and with `keep` write, what was compared; return the exit code."""
    from gpuzoo.engine.backends.compared_jax import LIBRARIES, OTHER_FORM

    pairs = {
        name: (case, other["cases"][name])
        for name, case in one["cases"].items()
        if "digest" in case and "digest" in other["cases"].get(name, {})
    }
    equal = {name for name, (a, b) in pairs.items() if a["digest"] == b["digest"]}
    for name in emulated_models(backend):
        case = one["cases"].get(f"model {name}", {})
        if "digest" in case and f"model {name}" not in pairs:
            pairs[f"model {name}"] = case, case
            equal.add(f"model {name}")
    times: dict[str, int] = {}
    for name in equal:
        for kind in pairs[name][0]["operations"]:
            if kind.split()[0] not in LIBRARIES and not kind.endswith(OTHER_FORM):
                times[kind] = times.get(kind, 0) + 1
    differ = {
        name: [kind for kind in pairs[name][0]["operations"] if kind not in times]
        for name in sorted(pairs.keys() - equal)
    }
    for name in sorted({*one["cases"], *other["cases"]} - pairs.keys()):
        print("not compared:", name)
    record = {
        "what": "results at level portable on two processors; cases: those with the "
        "same bits, of models by portable.py; operations: in how many of them; differ: "
        "of the other cases the operations that are in none",
        "date": time.strftime("%Y-%m-%d"),
        "processors": [one["cpu"], other["cpu"]],
        "versions": one["versions"],
        "cases": {name: pairs[name][0]["digest"] for name in sorted(equal)},
        "differ": differ,
        "operations": dict(sorted(times.items())),
    }
    print(json.dumps({"cases": len(pairs), "operations": len(times), "differ": differ}))
    if keep:
        suffix = SUFFIX[backend]
        path = RECORDS / f"portable_ops{suffix}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        path = LISTS / f"compared{suffix}.py"
        before, _, after = path.read_text().partition('"""\\\n')
        after = after[after.index('""".') :]
        names = "\n".join(sorted(times))
        path.write_text(f'{before}"""\\\n{names}\n{after}')
    return int(not all(differ.values()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=pathlib.Path)
    parser.add_argument("--backend", choices=tuple(SUFFIX), default="tensorflow")
    parser.add_argument("--only", nargs="+", metavar="WORD")
    parser.add_argument("--processor", default="", metavar="NAME",
                        help="of an emulated one")  # fmt: skip
    parser.add_argument("--compare", nargs=2, type=pathlib.Path)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if args.compare:
        one, other = (json.loads(path.read_text()) for path in args.compare)
        return compare(one, other, args.backend, args.keep)
    if not args.file:
        parser.error("name a file, or --compare two of them")
    digest_all(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
