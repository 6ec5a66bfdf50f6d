"""Compare operations, layers and models at level portable between processors.

    python benchmarks/repeatability/portable_ops.py one.json
    qemu-x86_64-static -cpu Haswell .venv/bin/python \\
        benchmarks/repeatability/portable_ops.py other.json \\
        --processor "an emulated Haswell"    # slow
    python benchmarks/repeatability/portable_ops.py --compare one.json other.json
    python benchmarks/repeatability/portable_ops.py --compare one.json other.json --keep

Single operations of TensorFlow and their gradients, the settings of a training, every
model of the catalogue and every layer of Keras are traced as a training step of level
portable is: with its replacements (gpuzoo/engine/backends/portable.py), without
constant folding, on two threads. A file has a digest of the results of each case, and
the operations in its graph, each with its floating-point types. It is written after
each case, and continued if it is there. --only takes cases by parts of their names.

Compared are two such files: cases that differ are printed. An operation is compared if
it occurs in a case with the same bits, or in a model that portable.py has compared
under emulation (portable.json). Exit code 1 if a case differs without one that is not.
--keep writes benchmarks/records/portable_ops.json, and the operations into
gpuzoo/engine/backends/compared.py: level portable takes no others.
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
RECORD = HERE.parent / "records" / "portable_ops.json"
MODELS = HERE.parent / "records" / "portable.json"
LIST = HERE.parent.parent / "gpuzoo" / "engine" / "backends" / "compared.py"
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
    import tensorflow as tf

    from gpuzoo.engine.backends.determinism import operations_of
    from gpuzoo.engine.backends.tensorflow import repeatable_operations

    function, *arrays = _operations()[name]

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

    if isinstance(function, keras.layers.Layer):
        function.build(arrays[0].shape)
    given = [tf.constant(array) for array in arrays]
    with repeatable_operations(runtime):
        traced = tf.function(step, autograph=False).get_concrete_function(*given)
    seen |= operations_of(traced.graph)
    digest = hashlib.sha256()
    for result in traced(*given):
        digest.update(tf.convert_to_tensor(result).numpy().tobytes())
    return digest.hexdigest()


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
    gpuzoo.configure(level="portable", quiet=True)  # seeds Keras
    program = layers.made(name, "alone", data, runtime, **settings)
    with noted(seen):
        (digest,) = layers.trained(program, 1, busy=False)
    return digest


def model(folder: str, name: str, seen: set) -> str:
    """Return the digest of the weights of a model after two steps."""
    import repeatable
    from matrix import small_digits

    job = {
        "data": small_digits(folder, 2, 10), "steps": 2, "batch": 10, "small": True,
        "models": [name], "runtime": {"level": "portable"},
    }  # fmt: skip
    with noted(seen):
        return repeatable.train(name, 0, repeatable.load(job)[name], job)


def noted(seen: set):
    """Within the block, note the operations of a step in place of refusing them."""
    from gpuzoo.engine.backends import tensorflow
    from gpuzoo.engine.backends.determinism import operations_of
    from gpuzoo.runtime.keras_state import replaced

    def note(graph, runtime) -> None:
        seen.update(operations_of(graph))

    return replaced(tensorflow, check_tensorflow=note)


def every_case() -> dict:
    """Return name -> what returns the digest of a case and adds its operations to a
    set."""
    import gpuzoo

    runtime = gpuzoo.configure(level="portable", quiet=True)
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
        found[f"model {name}"] = functools.partial(model, folder, name)
    for name in layer_table.known():
        found[f"layer {name}"] = functools.partial(layer, runtime, folder, name, {})
    return found


def digest_all(path: pathlib.Path, only: list[str] | None, processor: str) -> None:
    from gpuzoo.runtime import environment

    found = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    found["cpu"] = processor or environment.cpu_model()
    found["versions"] = environment.versions()
    for name, run in every_case().items():
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


def emulated_models() -> list[str]:
    """Return the models that portable.py trained to the same bits under emulation."""
    record = json.loads(MODELS.read_text())["backends"]["tensorflow"]
    told = [one for name, one in record["settings"].items() if name.startswith("QEMU")]
    compared = {name for one in told for name in one["compared"]}
    return sorted(compared - {name for one in told for name in one["differ"]})


def compare(one: dict, other: dict, keep: bool) -> int:
    """Print, and with `keep` write, what was compared; return the exit code."""
    pairs = {
        name: (case, other["cases"][name])
        for name, case in one["cases"].items()
        if "digest" in case and "digest" in other["cases"].get(name, {})
    }
    equal = {name for name, (a, b) in pairs.items() if a["digest"] == b["digest"]}
    for name in emulated_models():
        case = one["cases"].get(f"model {name}", {})
        if "digest" in case and f"model {name}" not in pairs:
            pairs[f"model {name}"] = case, case
            equal.add(f"model {name}")
    times: dict[str, int] = {}
    for name in equal:
        for kind in pairs[name][0]["operations"]:
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
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        before, _, after = LIST.read_text().partition('"""\\\n')
        after = after[after.index('""".') :]
        names = "\n".join(sorted(times))
        LIST.write_text(f'{before}"""\\\n{names}\n{after}')
    return int(not all(differ.values()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", metavar="WORD")
    parser.add_argument("--processor", default="", metavar="NAME",
                        help="of an emulated one")  # fmt: skip
    parser.add_argument("--compare", nargs=2, type=pathlib.Path)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if args.compare:
        one, other = (json.loads(path.read_text()) for path in args.compare)
        return compare(one, other, args.keep)
    if not args.file:
        parser.error("name a file, or --compare two of them")
    digest_all(args.file, args.only, args.processor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
