"""Private attributes and modules of Keras, TensorFlow and JAX: they are used in few
files, and these tests fail when a release moves or renames one."""

import ast
import dataclasses
import functools
import importlib
import random
import re
import subprocess
import sys

import keras
import pytest
from conftest import ROOT, environment, needs_jax, needs_tensorflow

from gpuzoo import keras_layers
from gpuzoo.engine.backends import optimizers
from gpuzoo.runtime import keras_state
from gpuzoo.tasks import ends

DOORS = (
    "gpuzoo/keras_layers.py",
    "gpuzoo/runtime/keras_state.py",
    "gpuzoo/runtime/tensorflow.py",  # these two start a backend, and runtime/ may not
    "gpuzoo/runtime/jax.py",  # import engine/
    "gpuzoo/runtime/split.py",  # of which jax.py makes use
    "gpuzoo/engine/backends/",
)
TREES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for top in ("gpuzoo", "models", "recipes")
    for path in sorted((ROOT / top).rglob("*.py"))
}
PRIVATE = re.compile(r"_(?!_)\w+")
MODULE = re.compile(
    r"(keras\.src|tensorflow\.(python|core|compiler)|jax\._src|jaxlib)(\.\w+)*"
)
GLOBALS = re.compile(r"keras\.(config|mixed_precision|backend\.backend)\b")
OF_PYTHON = {"_data", "_path"}  # of os.environ, and of importlib's namespace packages


def defined(tree) -> set[str]:
    """Private names of the attributes and methods of a file's own classes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for one in node.body:
                names.add(getattr(one, "name", None))
                names.add(getattr(getattr(one, "target", None), "id", None))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self":
                names.add(node.attr)
    return {name for name in names if name and PRIVATE.fullmatch(name)}


def used(tree, own: set[str], of_keras: set[str]) -> list[str]:
    """What a file uses that is private and not our own, in whatever way. A name that
    Keras has too is our own after `self.` only."""
    found, modules = [], names_of_modules(tree)
    for node in ast.walk(tree):
        names, known = [], own - of_keras | OF_PYTHON
        if isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            names = [] if is_of_python(node) or of in modules else [node.attr]
            known = own if of == "self" else known
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and not ast.unparse(node.func).endswith("with"):
            names = [one.value for one in node.args if isinstance(one, ast.Constant)]
            if "attr" not in ast.unparse(node.func):
                names = [name for name in names if MODULE.fullmatch(str(name))]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            of = ast.unparse(node.value)
            if of.startswith("vars(") or of.endswith(("__dict__", "modules")):
                names = [node.slice.value]
        elif isinstance(node, ast.ClassDef):  # private methods of Keras's, replaced
            names, known = [
                one.name
                for one in node.body
                for base in map(ast.unparse, node.bases)
                if isinstance(one, ast.FunctionDef) and base.startswith("keras.")
                and hasattr(functools.reduce(getattr, base.split(".")[1:], keras), one.name)
            ], set()  # fmt: skip
        found += [
            f"line {node.lineno}: {name}"
            for name in map(str, names)
            if MODULE.fullmatch(name) or PRIVATE.fullmatch(name) and name not in known
        ]
    return found


def names_of_modules(tree) -> set[str]:
    """What a file calls the modules of gpuzoo that it imports."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gpuzoo")
        for alias in node.names
    }


def is_of_python(node: ast.Attribute) -> bool:
    """sys._getframe, os._exit."""
    module = ast.unparse(node.value)
    known = module in sys.stdlib_module_names
    return known and hasattr(importlib.import_module(module), node.attr)


def test_only_these_files_use_what_is_private_of_the_libraries(model):
    optimizer = keras.optimizers.Adam()
    objects = [optimizer, optimizer.iterations, *model.outputs, *model.weights]
    objects += keras_layers.layers_of(model)
    of_keras = {name for one in objects for name in dir(one)}
    others = {name: tree for name, tree in TREES.items() if not name.startswith(DOORS)}
    own = set().union(*map(defined, others.values()))
    found = {name: used(tree, own, of_keras) for name, tree in others.items()}
    assert {name: uses for name, uses in found.items() if uses} == {}
    for door in DOORS:
        inside = [tree for name, tree in TREES.items() if name.startswith(door)]
        assert any(used(tree, own, of_keras) for tree in inside)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model._layers", "_layers"),
        ("model.inner._trainable = True", "_trainable"),
        ("sys._nothing_of_this_name", "_nothing_of_this_name"),
        ("getattr(layer, '_losses', ())", "_losses"),
        ("object.__setattr__(layer, '_lock', False)", "_lock"),
        ("setattr(layer, '_lock', False)", "_lock"),
        ("vars(layer)['_metrics']", "_metrics"),
        ("import keras.src.ops", "keras.src.ops"),
        ("from keras import src", "keras.src"),
        ("from jax._src.core import Jaxpr", "jax._src.core.Jaxpr"),
        ("def f():\n    import tensorflow.python as p", "tensorflow.python"),
        ("importlib.import_module('keras.src.layers')", "keras.src.layers"),
        ("sys.modules['jax._src.core']", "jax._src.core"),
        (
            "class A(keras.layers.Dense):\n    def _flatten_layers(self): 0",
            "_flatten_layers",
        ),
        ("class A(keras.layers.Dense):\n    def _mine(self): self._mine()", None),
        ("self._mine = 1\nother._mine", None),
        ("def _nodes(): 0\n_nodes()\nmodel._nodes", "_nodes"),
        ("class A:\n    def _losses(self): self._losses()", None),
        ("class A:\n    def _losses(self): layer._losses", "_losses"),
        ("from gpuzoo.runtime import configure as c\nc._in_force", None),
        ("import keras\nkeras.ops.add.__doc__\nsys._getframe(1)", None),
    ],
)
def test_every_way_in_is_seen(source, name):
    tree = ast.parse(source)
    found = used(tree, defined(tree), {"_losses"})
    assert [one.partition(": ")[2] for one in found] == ([name] if name else [])


# --- Keras: each function on a real model -------------------------------------------


@pytest.fixture
def model(runtime):
    """A layer in a layer, a model in a model, a layer that is called twice."""
    layers = keras.layers
    dense = layers.Dense(4, name="twice")
    inner = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm")],
                             name="inner")  # fmt: skip
    start = keras.Input((5, 3), name="start")
    x = layers.GRU(4, name="rnn")(start)
    x = layers.Dropout(0.5, seed=1, name="drop")(dense(dense(x)))
    return keras.Model(start, {"out": inner(x)}, name="outer")


def test_layers(model):
    found = keras_layers.layers_of(model)
    rnn, drop, norm = (
        next(one for one in found if one.name == name)
        for name in ("rnn", "drop", "norm")
    )
    assert found[0] is model and found[1:] == keras_layers.layers_of(model, False)
    assert [one for one in found if one in model.layers] == model.layers
    assert found.index(rnn.cell) == found.index(rnn) + 1
    assert len({*map(id, found)}) == len(found)

    own = keras_layers.own_variables
    assert own(rnn) == [] and len(rnn.weights) == 3
    assert [one.name for one in own(rnn.cell)] == ["kernel", "recurrent_kernel", "bias"]
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [one.name for one in own(norm)] == names
    norm.trainable = False
    added = keras_layers.added_as_trainable(norm)
    assert [one.name for one in added] == names[:2] and norm.trainable_variables == []

    inner = model.get_layer("inner")
    norm.trainable = True
    keras_layers.set_trainable_itself(inner, False)
    assert not inner.trainable and norm.trainable
    assert keras_layers.own_seed_generators(drop) == [drop.seed_generator]
    assert keras_layers.own_seed_generators(model) == []
    taken = {one.name for one in model.layers if keras_layers.takes_training(one)}
    assert {"rnn", "drop", "inner"} <= taken and "start" not in taken
    assert not keras_layers.takes_training(keras.layers.Reshape((4, 1)))
    made = keras.layers.BatchNormalization()
    assert made.name.startswith(keras_layers.default_name(made))
    assert keras_layers.default_name(made) == "batch_normalization"


def test_graph(model):
    inner, twice = model.get_layer("inner"), model.get_layer("twice")
    graph = keras_state.graph_of(inner)
    assert isinstance(graph, keras.Function) and graph is not inner
    assert [one.name for one in graph.operations][-1] == "norm"
    assert keras_state.graph_of(model) is model

    nodes = keras_state.nodes_of(model)
    names = ["start", "rnn", "twice", "twice", "drop", "inner"]
    assert [node.operation.name for node in nodes] == names
    assert [node.is_input for node in nodes] == [True, *[False] * 5]
    assert nodes[2:4] == keras_state.nodes_of_operation(twice)
    assert nodes[3].parent_nodes == [nodes[2]]
    assert nodes[3].input_tensors == nodes[2].outputs
    args, _ = nodes[3].arguments.fill_in({id(nodes[2].outputs[0]): 7})
    assert args == (7,)
    assert keras_state.origin_of(model.outputs[0]) == (inner, nodes[-1], 0)
    # Public; it must stay what the user has put out.
    assert list(ends.output_of(model)) == ["out"]
    assert ends.output_of(model)["out"] is model.outputs[0]
    one = keras.Model(model.inputs, [model.outputs[0]])
    assert isinstance(ends.output_of(one), list)


def test_what_a_model_is_compiled_with(runtime):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    loss = lambda wanted, given: keras.ops.sum(wanted - given)  # noqa: E731
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 5)
    model.compile(keras.optimizers.SGD(schedule), loss=loss, steps_per_execution=3)
    given = keras_state.compile_arguments(model)
    assert given["loss"] is loss and given["steps_per_execution"] == 3
    others = {"optimizer", "metrics", "loss_weights", "weighted_metrics", "run_eagerly"}
    assert others <= given.keys()
    assert keras_state.given_learning_rate(model.optimizer) is schedule
    called = keras.optimizers.SGD(lambda: 0.1)
    assert callable(keras_state.given_learning_rate(called))
    constant = keras_state.given_learning_rate(keras.optimizers.SGD(0.5))
    assert isinstance(constant, keras.Variable) and float(constant) == 0.5
    assert keras_state.function_arguments(keras.losses.Huber(delta=2.0)) == {"delta": 2}
    metric = keras.metrics.BinaryAccuracy(threshold=0.25)
    assert keras_state.function_arguments(metric)["threshold"] == 0.25


def test_optimizers(runtime):
    kernel, bias = (keras.Variable([1.0], name=name) for name in ("kernel", "bias"))
    optimizer = keras.optimizers.SGD(
        1.0, weight_decay=0.5, use_ema=True, ema_momentum=0.5
    )
    optimizer.exclude_from_weight_decay(var_list=[bias])
    optimizer.build([kernel, bias])
    assert keras_state.decays(optimizer, kernel)
    assert not keras_state.decays(optimizer, bias)
    for _ in range(2):
        gradients = [keras.ops.convert_to_tensor([0.25]) for _ in range(2)]
        optimizer.apply(gradients, [kernel, bias])
    (one, _), (other, average) = keras_state.moving_averages(optimizer)
    assert one is kernel and other is bias
    bias, average = (float(keras.ops.squeeze(v)) for v in (bias, average))
    assert bias == 0.5 and 0.5 < average < 1
    # Overridden or read in engine/backends/optimizers.py, which other tests run.
    hooks = {"_should_use_adamw", "_muon_update_step"}
    assert hooks <= vars(keras.optimizers.Muon).keys() & vars(optimizers.Muon).keys()
    adam = keras.optimizers.Adam()
    adam.build([kernel])
    assert adam._get_variable_index(kernel) == 0
    assert len(adam._momentums) == len(adam._velocities) == 1


GLOBAL_STATE = """
import random, sys
import gpuzoo
gpuzoo.configure(backend=sys.argv[1], device="cpu", precision="float32", quiet=True)
import keras, numpy as np
from gpuzoo.runtime import keras_state

def draw():
    numbers = keras.ops.convert_to_numpy(keras.random.uniform((3,)))
    return [*numbers.tolist(), random.random(), np.random.random()]

keras_state.reseed(5)
first = draw()
assert draw() != first
keras_state.reseed(5)
assert draw() == first

assert keras.layers.Dense(1).name == "dense" and keras.layers.Dense(1).name == "dense_1"
with keras_state.fresh_names():
    assert keras.layers.Dense(1).name == "dense"
assert keras.layers.Dense(1).name == "dense_2"
assert "dense" in keras_state.named_so_far()  # of Keras's object_name_uids

keras_state.set_keras("bfloat16")
with keras_state.in_float32():
    assert keras.layers.Dense(1).compute_dtype == "float32"
assert keras.layers.Dense(1).compute_dtype == "bfloat16"
assert keras.config.epsilon() == 1e-7 and keras.config.floatx() == "float32"
with keras_state.orthogonal_in_any_precision():
    q = keras.initializers.Orthogonal(seed=1)((4, 4), "bfloat16")
assert keras.backend.standardize_dtype(q.dtype) == "bfloat16"
q = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(q, "float32")))
assert np.allclose(q.T @ q, np.eye(4), atol=0.05)

def initial(name):
    return np.asarray(getattr(keras.initializers, name)(seed=3)((64, 64)))

for name in ("RandomUniform", "RandomNormal", "TruncatedNormal"):
    usual = initial(name)
    with keras_state.drawn_by_numpy():
        ours = initial(name)
        assert (initial(name) == ours).all()
    assert (initial(name) == usual).all()
    assert bool((ours == usual).all()) == (sys.argv[1] == "tensorflow")
    assert np.allclose([ours.mean(), ours.std()], [usual.mean(), usual.std()], atol=3e-3)
"""
OF_JAX = """
import importlib.util
from jax._src import compilation_cache, xla_bridge
from gpuzoo.engine.backends import compile_cache, jax, pooling, rnn

assert xla_bridge.backends_are_initialized()
assert compile_cache._is_whole(compilation_cache.compress_executable(b"all of it"))
assert not compile_cache._is_whole(b"a part")
variable = keras.Variable([1.0, 2.0])
assert np.asarray(jax._current(None, variable)).tolist() == [1, 2]
assert jax.get_stateless_scope() is None
with keras.StatelessScope([(variable, keras.ops.zeros(2))]) as scope:
    assert jax.get_stateless_scope() is scope
    assert np.asarray(jax._current(scope, variable)).tolist() == [0, 0]
# catalogue/user_reads.py knows JAX's compiler by these names.
for name in ("compiler", "compilation_cache"):
    assert importlib.util.find_spec(f"jax._src.{name}")
assert callable(pooling.keras_backend.nn.adaptive_max_pool)
assert issubclass(rnn.ConvLSTMCell, keras.layers.Layer)
"""


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("tensorflow", marks=needs_tensorflow),
        pytest.param("jax", marks=needs_jax),
    ],
)
def test_global_state(backend, tmp_path):
    code = GLOBAL_STATE + (OF_JAX if backend == "jax" else "")
    done = subprocess.run(
        [sys.executable, "-c", code, backend],
        capture_output=True, text=True, check=False, env=environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- TensorFlow ---------------------------------------------------------------------


@needs_tensorflow
def test_tensorflow(runtime, monkeypatch):
    import tensorflow as tf

    from gpuzoo.engine.backends import bias_gradients, determinism, tensorflow
    from gpuzoo.runtime.tensorflow import file_openers

    separated = []
    monkeypatch.setattr(bias_gradients, "_separate", separated.append)
    inside = tf.function(lambda x: tf.math.erf(x), autograph=False)

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = inside(x) * tf.cos(x) * tf.tanh(x)
        with tensorflow._added_in_pairs():
            return tape.gradient(loss, x)

    with bias_gradients.kept_apart():
        graph = step.get_concrete_function(tf.TensorSpec((2,))).graph
    assert graph in separated and len(separated) > 1  # that of `inside`, too
    own = {operation.type for operation in graph.get_operations()}
    every = {operation.type for operation in determinism._operations(graph)}
    assert "Erf" in every and "Erf" not in own
    sums = [one for one in graph.get_operations() if one.type == "AddN"]
    assert [len(one.inputs) for one in sums] == [2, 2]
    (taken,) = graph.inputs
    assert bias_gradients._edges(taken.op) >= 3 and taken.op._control_outputs == []
    with graph.as_default():
        other = tf.identity(sums[0].inputs[1])
    sums[0]._update_input(0, other)
    assert sums[0].inputs[0].name == other.name

    assert runtime.deterministic and isinstance(runtime.onednn, bool)
    # A fit compiles with XLA, though operations are deterministic, or does not.
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for xla in (True, False):
        with tensorflow.in_fit(dataclasses.replace(runtime, xla=xla)):
            network.compile("sgd", "mse")
            assert network.jit_compile == xla

    names = [one.name for one in tensorflow.device_lib.list_local_devices()]
    assert "/device:CPU:0" in names
    for place, name, _ in file_openers():
        assert callable(vars(place)[name])
    python = random.getstate()
    assert isinstance(determinism.global_seed_generator(), keras.random.SeedGenerator)
    random.setstate(python)


def test_settings_are_those_of_the_runtime_not_keras_globals():
    """Models are also built without a runtime, and may ask Keras."""
    places = ("gpuzoo/runtime/", "gpuzoo/engine/backends/", "models/")
    for file, tree in TREES.items():
        if not file.startswith(places):
            names = [ast.unparse(n) for n in ast.walk(tree) if type(n) is ast.Attribute]
            assert not list(filter(GLOBALS.match, names)), file


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "float32"])
def test_pixels_are_in_the_precision_of_the_runtime(precision, dataset, runtime):
    """Whatever Keras's global policy is by now."""
    from small import RECIPE

    from gpuzoo import tasks

    other = {"float32": "mixed_bfloat16", "mixed_bfloat16": "float32"}[precision]
    runtime = dataclasses.replace(runtime, precision=precision)
    task = tasks.load("classify")(
        model=keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
                                keras.layers.Dense(10)]),
        recipe=RECIPE, dataset=dataset, runtime=runtime,
    )  # fmt: skip
    keras.config.set_dtype_policy(other)
    try:
        seen = task.prepare(keras.ops.ones((2, 8, 8, 1), "uint8"))
        also = task.rounded_once(keras.ops.ones((2, 8, 8, 1), "uint8"))
    finally:
        keras.config.set_dtype_policy("float32")
    wanted = precision.removeprefix("mixed_")
    assert [keras.backend.standardize_dtype(x.dtype) for x in (seen, also)] == [
        wanted, wanted,
    ]  # fmt: skip
