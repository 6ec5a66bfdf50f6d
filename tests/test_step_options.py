"""Options of a training step: micro-batches, class weights, optimizers, schedules."""

import dataclasses
import json
import pathlib
import re

import keras
import numpy as np
import pytest
from conftest import needs_jax, needs_tensorflow
from small import RECIPE, program, same, splits, two_classes
from test_resume import assert_same, die_at, finish

import gpuzoo
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data import balance
from gpuzoo.data.validate import make_dataset
from gpuzoo.data.validation import with_validation
from gpuzoo.engine import checkpoint, choice, loop, optim
from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import read_run
from gpuzoo.tasks.base import LOSS

pytestmark = pytest.mark.usefixtures("runtime")

MLP = RECIPE.override(
    model="mlp", model_options=("units=(8,)",), augment=(), batch_size=40, epochs=2,
)  # fmt: skip
CLASS_OF = {
    name.lower(): one
    for name, one in vars(keras.optimizers).items()
    if isinstance(one, type)
}
# Options that differ from Keras's defaults.
OPTIMIZERS = {
    "adadelta": ("rho=0.8",), "adafactor": ("clip_threshold=0.5", "epsilon_1=1e-15"),
    "adagrad": (),
    "adam": ("epsilon=1e-07", "amsgrad=True"), "adamax": ("beta_1=0.8",),
    "adamw": ("epsilon=1e-07",), "ftrl": ("l1_regularization_strength=0.01",),
    "lamb": (), "lion": ("beta_2=0.9",), "nadam": (),
    "rmsprop": ("momentum=0.5", "centered=True"),
    "schedule_free_adamw": ("warmup_steps=2",), "sgd": ("nesterov=False",),
}  # fmt: skip


def light(count: int = 80):
    """Two classes, light and dark, of which the first has three quarters."""
    arrays = splits(two_classes())
    rows = np.flatnonzero((np.arange(80) % 2 == 0) | (np.arange(80) % 6 == 1))[:count]
    arrays["train"] = {name: array[rows] for name, array in arrays["train"].items()}
    return make_dataset("light", "made up", arrays)


DATA = make_dataset("light", "made up", splits(two_classes()))


def trained(recipe, data, runtime, steps=None) -> dict[str, np.ndarray]:
    made = program(recipe, data, runtime)
    for first in range(steps or made.plan.steps):
        made.train(first, first + 1)
    return made.state.read(made.state.all)


def far(one, other) -> float:
    """The largest difference of the weights."""
    return max(
        np.abs(one[name].astype(float) - other[name].astype(float)).max()
        for name in one if not name.startswith(("optimizer", "random"))
    )  # fmt: skip


# --- micro-batches ---------------------------------------------------------------------


def test_parts_of_a_batch_give_the_gradient_of_the_whole(runtime):
    whole = trained(MLP, DATA, runtime)
    parts = [trained(MLP.override(accumulate=5), DATA, runtime) for _ in range(2)]
    assert 0 < far(whole, parts[0]) < 1e-6
    assert all(np.array_equal(parts[0][name], parts[1][name]) for name in parts[0])
    clipped = MLP.override(accumulate=5, clip_norm=0.1)  # the mean, not the parts
    assert far(trained(clipped.override(accumulate=1), DATA, runtime),
               trained(clipped, DATA, runtime)) < 1e-6  # fmt: skip


def test_each_part_draws_its_own_numbers(runtime):
    """The generator of the dropout layer stands after the last of all parts."""
    recipe = MLP.override(model_options=("dropout=0.3",), accumulate=4)
    after = [
        trained(one, DATA, runtime, steps=2)["random/0"][1]
        for one in (recipe, recipe.override(accumulate=1))
    ]
    drawn = after[1] - 256  # in one part
    assert 0 < drawn < 256 and after[0] == (1 * 4 + 3) * 256 + drawn


class Encoder(keras.layers.Layer):
    """Patches and their places, as in Keras's example of a vision transformer."""

    def __init__(self):
        super().__init__(name="encoder")
        self.place = keras.layers.Embedding(14, 4, name="place")
        self.patch = keras.layers.Dense(4, name="patch")

    def build(self, shape):
        self.place.build(None)
        self.patch.build(shape)

    def call(self, x):
        return self.patch(x) + self.place(keras.ops.arange(14))


def test_parts_with_an_embedding(runtime):
    """TensorFlow gives its gradient as rows, which cannot be added; and the norm of the
    gradients of all parts is that of the whole batch."""
    from gpuzoo.engine.nonfinite import Observer
    from gpuzoo.repro import capture

    ends, norms = [], []
    for parts in (1, 2):
        x = inputs = keras.Input((14, 14, 1))
        x = Encoder()(keras.layers.Reshape((14, 14))(x))
        x = keras.layers.Flatten()(keras.ops.tanh(x))
        model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
        made = program(MLP.override(accumulate=parts), DATA, runtime, model=model)
        norms.append(Observer(made).look(0).norm)
        named = dict(capture.take_apart(made, 1))
        assert ("part 2: gradient of encoder/place/embeddings" in named) == (parts > 1)
        ends.append(made.state.read(made.state.all))
    assert 0 < far(*ends) < 1e-6 and norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_part_waits_for_the_gradients_of_the_one_before(runtime):
    """Each row of its examples is computed from them, whatever they are; else all parts
    might be in memory together."""
    from gpuzoo.engine.accumulation import Summed

    updates = []
    kinds = {"apply": lambda _, *given: updates.append(given), "dense": lambda _, x: x}
    backend = type("Backend", (), kinds)
    summed, images = Summed(backend(), 3, 2), np.arange(6, dtype="float32")

    def part(gradient):
        found = keras.ops.convert_to_numpy(summed.next_part({"x": images})["x"])
        gradients = [keras.ops.convert_to_tensor(np.float32(gradient)), None]
        summed.apply("rule", gradients, ["kernel", "bias"])
        return found.tolist()

    assert part([1, 2]) == [0, 1] and part([4, np.nan]) == [2, 3]
    assert not updates and part([4, 4]) == [4, 5]
    ((rule, (kernel, bias), variables),) = updates
    assert (rule, bias, variables) == ("rule", None, ["kernel", "bias"])
    assert float(kernel[0]) == 3


@needs_tensorflow
def test_the_compiler_keeps_that_a_part_waits(runtime):
    import tensorflow as tf

    from gpuzoo.engine.accumulation import Summed

    @tf.function(jit_compile=True)
    def rows(gradient, images):
        summed = Summed(None, 2, 3)
        summed._sums, summed.done = [gradient], 1
        return summed.next_part({"x": images})["x"]

    given = tf.zeros((5, 7)), tf.zeros((6, 2))
    text = rows.experimental_get_compiler_ir(*given)(stage="optimized_hlo")
    entry = text[text.index("\nENTRY") :]
    (name,) = re.findall(r"(\S+) = f32\[5,7\]\S* parameter", entry)
    assert len(re.findall(rf"{re.escape(name)}\b", entry)) > 1, entry


# --- class weights ---------------------------------------------------------------------


def test_class_weights_do_what_keras_does(runtime):
    data = light()
    counts = balance.counts(data)
    assert counts.tolist() == [40, 14]
    weights = balance.class_weights(("balanced",), data)
    assert list(weights.values()) == [54 / 2 / 40, 54 / 2 / 14]
    recipe = MLP.override(
        batch_size=54, epochs=4, optimizer="sgd", learning_rate=0.1, momentum=0.0,
        class_weight=("balanced",),
    )  # fmt: skip
    made = program(recipe, data, runtime)
    stock = keras.models.clone_model(made.model)
    stock.set_weights(made.model.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stock.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    stock.fit(
        data.train["image"] / np.float32(255), data.train["label"], batch_size=54,
        epochs=4, shuffle=False, verbose=0,
        class_weight=dict(enumerate(weights.values())),
    )  # fmt: skip
    parts = trained(recipe.override(accumulate=3), data, runtime)
    plain = trained(recipe.override(class_weight=()), data, runtime)
    before = made.evaluate()[1]
    for step in range(4):
        made.train(step, step + 1)
    for one, other in zip(made.model.weights, stock.weights, strict=True):
        assert np.allclose(one, other, atol=2e-6)
    ours = made.state.read(made.state.all)
    assert far(ours, parts) < 1e-6 and far(ours, plain) > 1e-4
    unweighted = program(recipe.override(class_weight=()), data, runtime)
    assert unweighted.evaluate()[1] == before  # metrics are not weighted


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (("1:3",), [1, 3]),
        (("0:0.5", "1:2"), [0.5, 2]),
        ("balanced", [54 / 80, 54 / 28]),
        ({0: 2.0, 1: np.float64(1)}, [2, 1]),
        ({np.int64(1): 3, "0": 2}, [2, 3]),
    ],
)
def test_forms_of_class_weights(given, weights):
    recipe = MLP.override(class_weight=given)
    found = balance.class_weights(recipe.class_weight, light())
    assert list(found.values()) == weights


def test_names_of_classes_go_before_numbers():
    data = dataclasses.replace(light(), classes=("1", "a:b c"))
    weights = balance.class_weights(("1:2", "a:b c:4"), data)
    assert weights == {"1": 2, "a:b c": 4}


def test_whole_numbers_of_a_dict_are_indices():
    """As in Keras, whatever the names of the classes."""

    def weights(given, classes):
        data = dataclasses.replace(light(), classes=classes)
        texts = MLP.override(class_weight=given).class_weight
        return balance.class_weights(texts, data)

    assert weights({1: 5.0}, ("1", "2")) == {"1": 1, "2": 5}
    assert weights({"1": 5.0}, ("1", "2")) == {"1": 5, "2": 1}
    assert weights({"1": 2.0, 1: 5.0}, ("1", "0")) == {"1": 2, "0": 5}
    with pytest.raises(GpuzooError, match="'#1' is a class and the index of 'b'"):
        weights({1: 5.0}, ("#1", "b"))
    for wrong in (2, -1):
        with pytest.raises(GpuzooError, match=f"no class '#{wrong}'"):
            weights({wrong: 5.0}, ("1", "2"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"accumulate": 7}, "batch_size 40 must be a multiple of accumulate=7"),
        ({"accumulate": 0}, "accumulate of recipe 'tiny' must be at least 1: 0"),
        ({"class_weight": ("cow:2",)}, "data light have no class 'cow'; nearest"),
        ({"class_weight": ("1",)}, "class_weight must be balanced alone, or class:weig"),
        ({"class_weight": ("balanced", "1:2")}, "must be balanced alone"),
        ({"class_weight": ("1:2", "1:3")}, "class_weight has class '1' twice"),
        ({"class_weight": ("1:-2",)}, "class_weight of 1 must be a finite number"),
        ({"class_weight": ("1:x",)}, "class_weight of 1 must be a finite number"),
        ({"class_weight": ("0:0", "1:0")}, "class_weight is 0 for all classes"),
        ({"task": "autoencode", "model": "vae", "model_options": (),
          "class_weight": ("balanced",)},
         "class_weight weighs classes, one per example; the task autoencode does not"),
        ({"task": "multilabel", "class_weight": ("balanced",)},
         "one per example; the task multilabel does not use it"),
        ({"task": "adversarial", "model": "gan", "model_options": (), "accumulate": 2},
         "accumulate=2 cannot be combined with the task adversarial"),
        ({"optimizer": "rmsprop", "optimizer_options": ("rh=1",)},
         "optimizer_options of rmsprop: rh is unknown; nearest: rho"),
        ({"optimizer": "rmsprop", "optimizer_options": ("centered=1",)},
         "rmsprop: centered must be True or False: 1"),
        ({"optimizer": "lion", "optimizer_options": ("beta_1=x",)},
         "lion: beta_1 must be a finite number: 'x'"),
        ({"optimizer": "lion", "optimizer_options": ("beta_1=7",)},
         "optimizer_options of lion: Argument `beta_1` must be in"),
        ({"optimizer": "lamb", "optimizer_options": ("use_ema=True",)},
         "lamb: use_ema is set by the field ema_decay; use that"),
        ({"optimizer": "lamb", "optimizer_options": ("learning_rate=1",)},
         "lamb: learning_rate is set by the field learning_rate; use that"),
        ({"optimizer_options": ("beta_1=0.5",)}, "adam: beta_1 is set by the field be"),
        ({"optimizer": "muon", "optimizer_options": ("nesterov=True",)},
         "muon: nesterov has no effect: muon always uses it"),
        ({"optimizer": "lamb", "optimizer_options": ("beta_1",)},
         "optimizer_options must look like key=value: 'beta_1'"),
        ({"optimizer": "nadam", "momentum": 0.5}, "momentum is used by sgd, muon, not"),
        ({"optimizer": "lion", "optimizer_options": ("beta_2=0.9", "beta_2=0.8")},
         "optimizer_options has beta_2 twice; give it once"),
        ({"optimizer": "lion", "optimizer_options": ("name=x",)},
         "lion: name has no effect: no name of it is recorded; leave it out"),
        ({"restarts": 2}, "restarts=2 is for schedule=cosine"),
        ({"schedule": "cosine", "restarts": 5}, "restarts=5 needs at least 63 steps"),
        ({"plateau_patience": 2}, "plateau_patience=2 is for schedule=reduce_on_pl"),
        ({"plateau_factor": 1.0}, r"plateau_factor .* must be in \(0, 1\)"),
        ({"schedule": "reduce_on_plateau"},
         "schedule=reduce_on_plateau needs a validation split"),
    ],
)  # fmt: skip
def test_refusals(changes, fault, runtime):
    from gpuzoo.training import build

    with pytest.raises(GpuzooError, match=fault) as told:
        recipe = MLP.override(**changes)
        build.check_recipe(recipe)
        balance.class_weights(recipe.class_weight, DATA)
        program(recipe, DATA, runtime)
    assert "\n" not in str(told.value)


def test_a_summed_loss_does_not_accumulate(train):
    from small import net

    model = net()
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")
    )
    with pytest.raises(GpuzooError, match="reduction='sum', and accumulate=2 averages"):
        train(model, accumulate=2)


def test_imbalance_is_told_and_weights_are_recorded(runtime, tmp_path):
    arrays = two_classes()
    rows = np.flatnonzero((np.arange(80) % 2 == 0) | (np.arange(80) % 16 == 1))
    x, y = arrays["x_train"][rows], arrays["y_train"][rows]
    how = {
        "data": (x, y), "test": (arrays["x_test"], arrays["y_test"]), "model": "mlp",
        "batch_size": 15, "epochs": 1, "quiet": True, "keep_data": tmp_path / "d.npz",
    }  # fmt: skip
    told = gpuzoo.train("mnist", **how, out=str(tmp_path / "plain"))
    (finding,) = told["findings"]
    assert "40 training examples of '0', 5 of '1'; class_weight=balanced" in finding
    how["data"] = str(how.pop("keep_data"))
    del how["test"]
    out = tmp_path / "weighted"
    told = gpuzoo.train("mnist", **how, class_weight="balanced", out=str(out))
    assert told["findings"] == []
    record = read_run(out)
    assert record["class_weights"] == {"0": 45 / 80, "1": 4.5}
    assert record["recipe"]["class_weight"] == ["balanced"]
    assert "class_weights" not in read_run(tmp_path / "plain")
    assert gpuzoo.verify(out)["verdict"] == "identical"


# --- optimizers ------------------------------------------------------------------------


def test_every_optimizer_of_keras_has_a_name():
    others = {"optimizer", "multioptimizer", "optimizermap", "lossscaleoptimizer"}
    names = Recipe.__dataclass_fields__["optimizer"].type.__args__
    assert {name.replace("_", "") for name in names} == set(CLASS_OF) - others
    assert {*OPTIMIZERS, "muon"} == set(names)


def check_against_keras(name: str, runtime) -> None:
    """Three updates as Keras's own, with the same options."""
    options = OPTIMIZERS[name]
    recipe = MLP.override(
        optimizer=name, optimizer_options=options, batch_size=80, epochs=3,
        learning_rate=0.02, weight_decay=0.01,
    )  # fmt: skip
    made = program(recipe, DATA, runtime)
    stock = keras.models.clone_model(made.model)
    stock.set_weights(made.model.get_weights())
    begun = [np.array(one) for one in stock.get_weights()]
    _, given = optim.chosen(recipe)
    given |= {"momentum": 0.9} if name == "sgd" else {}
    rule = CLASS_OF[name.replace("_", "")](0.02, weight_decay=0.01, **given)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stock.compile(rule, loss, run_eagerly=keras.backend.backend() == "tensorflow")
    images = DATA.train["image"] / np.float32(255)
    stock.fit(images, DATA.train["label"], batch_size=80, epochs=3, shuffle=False,
              verbose=0)  # fmt: skip
    for step in range(3):
        made.train(step, step + 1)
    pairs = zip(made.model.weights, stock.weights, begun, strict=True)
    for one, other, start in pairs:
        one, other = np.array(one), np.array(other)
        assert np.abs(one - start).max() > 1e-5, name
        # Where a gradient is next to nothing its sign is a matter of rounding.
        close = np.isclose(one, other, atol=1e-5, rtol=1e-4)
        assert close.mean() > 0.995, (name, np.abs(one - other).max())


def test_every_variable_of_a_scaled_optimizer_is_listed(runtime):
    """Else a step on JAX drops its new value: under loss scaling Keras lists none that
    is not made by `add_variable`."""
    for name in OPTIMIZERS:
        rule = CLASS_OF[name.replace("_", "")](0.1)
        scaled = keras.optimizers.LossScaleOptimizer(rule)
        optim.build_state(scaled, [keras.Variable(np.ones((4, 3)))], None)
        listed = {id(one) for one in scaled.variables}
        own = [one for one in vars(rule).values() if isinstance(one, keras.Variable)]
        assert own and {id(one) for one in own} <= listed, name
        assert len(listed) == len(scaled.variables)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_moves_as_keras_moves_it(name, runtime):
    check_against_keras(name, runtime)


@needs_jax
def test_each_optimizer_moves_as_keras_moves_it_on_jax(cli):
    """Those with another state than a moment of each weight."""
    script = (
        "import gpuzoo\n"
        "runtime = gpuzoo.configure(backend='jax', device='cpu', precision='float32')\n"
        "import test_step_options as here\n"
        "for name in ('adafactor', 'nadam', 'rmsprop', 'schedule_free_adamw', 'adam'):\n"
        "    here.check_against_keras(name, runtime)\n"
        "print('{}')"
    )
    here = str(pathlib.Path(__file__).parent)
    done = cli(program=("-c", script), env={"PYTHONPATH": here}, timeout=900)
    assert done.returncode == 0, done.stderr


# --- schedules -------------------------------------------------------------------------


def test_restarts():
    recipe = RECIPE.override(schedule="cosine", restarts=2, learning_rate=1.0)
    rates = optim.learning_rates(recipe, 70)
    peaks = np.flatnonzero(rates == 1)
    assert peaks.tolist() == [0, 10, 30]
    for first, last in ((0, 10), (10, 30), (30, 70)):
        part = np.arange(last - first) / (last - first)
        assert np.allclose(rates[first:last], (1 + np.cos(np.pi * part)) / 2)
    warm = optim.learning_rates(recipe.override(warmup_fraction=0.3), 100)
    assert (warm[30:] == rates).all() and (np.diff(warm[:31]) > 0).all()
    recipe = recipe.override(restarts=0)
    other = recipe.override(schedule="linear")
    assert len(optim.learning_rates(recipe, 70)) == 70 and other.restarts == 0
    assert (
        len(optim.learning_rates(RECIPE.override(schedule="cosine", restarts=3), 2))
        == 2
    )


def test_reductions_are_those_of_keras():
    """On the same values as its callback, from a checkpoint after each evaluation."""
    values = [3, 2, 2.2, 2.05, 1.95, 1.96, 1.97, 1.5, 1.6, 1.7, 1.8, 1.9, 1.3, 1.3, 1.3]
    recipe = MLP.override(
        schedule="reduce_on_plateau", plateau_patience=2, plateau_factor=0.5,
        min_delta=0.1,
    )  # fmt: skip
    theirs = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=2, min_delta=0.1, mode="min"
    )
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0))
    theirs.set_model(model)
    theirs.on_train_begin()
    followed, rate, rates = choice.Choice(recipe, LOSS), 1.0, []
    for epoch, value in enumerate(values, start=1):
        facts = json.loads(json.dumps(followed.facts()))
        followed = choice.Choice(recipe, LOSS)
        followed.restore(facts, {})
        followed.see(epoch, 5 * epoch, {"loss": value}, dict)
        rate *= 0.5 if followed.reduces_at(5 * epoch) else 1
        theirs.on_epoch_end(epoch - 1, {"loss": value})
        rates.append((rate, float(model.optimizer.learning_rate.numpy())))
    assert all(ours == keras_s for ours, keras_s in rates)
    assert rates[-1][0] == 0.5 ** len(followed.reductions) < 0.2


PLATEAU = MLP.override(
    schedule="reduce_on_plateau", plateau_patience=1, plateau_factor=0.25, epochs=9,
    batch_size=15, optimizer="nadam", learning_rate=0.05, accumulate=3, log_every=3,
    digest_every=5, class_weight=("balanced",), model_options=("dropout=0.3",),
    checkpoint_every=1, ema_decay=0.5, monitor="accuracy",
)  # fmt: skip


@pytest.fixture(scope="module")
def plateau(runtime):
    """A function that returns the program above, at its initial state."""
    made = program(PLATEAU, with_validation(light(), 0.3, 0), runtime)
    begin = made.state.read(made.state.all)

    def get():
        made.state.write(begin)
        return made

    return get


def rows_of(made, resume=None, **options):
    rows = []
    result = loop.run(made, watch=lambda *r: rows.append(r), resume=resume, **options)
    return result, [row for row in rows if row[0] in ("train", "val", "test", "digest")]


def test_the_learning_rate_falls_on_a_plateau(plateau):
    whole, _ = rows_of(made := plateau())
    assert len(whole.reductions) > 2
    factor = np.float32(0.25 ** len(whole.reductions))
    (name,) = [n for n, v in made.state.others.items() if v.name == optim.REDUCTION]
    assert made.state.read(made.state.all)[name] == factor
    optimizer = made.task.optimizers[0]
    assert np.isclose(float(optimizer.learning_rate), 0.05 * factor)


def test_killed_after_any_step(plateau, tmp_path):
    """Before, at and after each reduction; of a run with every option of a step."""
    whole, rows = rows_of(plateau())
    for at in range(1, whole.steps, 2):
        folder = tmp_path / str(at)
        folder.mkdir()

        def die(event, row, at=at):
            if event == "progress" and row["step"] > at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.run(plateau(), watch=die, folder=folder / "checkpoints", run_id="x")
        start, _ = checkpoint.load(folder / "checkpoints", "x")
        resumed, told = rows_of(plateau(), start)
        assert start.step == at and same(whole, resumed)
        assert resumed.reductions == whole.reductions
        before = [tuple(row) for row in start.history]
        for digests in (True, False):
            both = [[row for row in one if (row[0] == "digest") == digests]
                    for one in (before + told, rows)]  # fmt: skip
            assert both[0] == both[1]


# --- whole runs ------------------------------------------------------------------------

WORDS = ["train", "mnist", "--data", "digits", "--model", "mlp", "--device", "cpu",
         "--threads", "2", "--epochs", "6", "--checkpoint-every", "4", "--quiet",
         "--batch-size", "120", "--accumulate", "2", "--class-weight"]  # fmt: skip
PLATEAU_WORDS = ["--schedule", "reduce_on_plateau", "--plateau-patience", "1",
                 "--validation", "0.15"]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ["balanced", "--optimizer", "adafactor", "--optimizer-options",
             "clip_threshold=0.5", "--schedule", "cosine", "--restarts", "1",
             "--backend", "tensorflow", "--precision", "mixed_float16", "--xla", "on"],
            marks=needs_tensorflow,
        ),
        pytest.param(
            ["3:2", "9:0.5", "--optimizer", "nadam", *PLATEAU_WORDS, "--ema-decay", "0.5",
             "--backend", "jax", "--precision", "mixed_float16"],
            marks=needs_jax,
        ),
    ],
    ids=["tensorflow", "jax"],
)  # fmt: skip
def test_killed_resumed_and_verified(words, tmp_path, cli):
    words = [*WORDS, *words, "--learning-rate", "0.01"]
    whole = cli(*words, "--out", "whole", timeout=900)
    assert whole.returncode == 0, whole.stderr
    assert whole.json["test_accuracy"] > 0.5
    die_at("write", 24, "half", [*words, "--out", "run"], tmp_path)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    finish("run", tmp_path)
    assert_same(tmp_path / "run", tmp_path / "whole")
    ends = [read_run(tmp_path / name) for name in ("run", "whole")]
    for name in ("metrics", "class_weights", "weights_sha256"):
        assert ends[0][name] == ends[1][name]
    assert ends[0].get("reductions") == ends[1].get("reductions")
    done = cli("verify", "run", "--quiet", timeout=900)
    assert done.returncode == 0, done.stderr
