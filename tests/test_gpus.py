"""Predictions for GPUs: programs that JAX has compiled for an H200 are read rightly;
with JAX's compiler for CUDA, real steps are compiled."""

import json
import re

import pytest
from conftest import ROOT, needs_jax, needs_tensorflow

from gpuzoo import doctor
from gpuzoo.errors import GpuzooError
from gpuzoo.gpus import cards, compile, predict, program_text, repeats

PROGRAMS = {p.stem: p.read_text() for p in (ROOT / "tests/programs").glob("*.txt")}
MODULES = {name: program_text.parse(text) for name, text in PROGRAMS.items()}


def installed() -> bool:
    try:
        return bool(compile.check_installed())
    except GpuzooError:
        return False


needs_compiler = pytest.mark.skipif(
    not installed(), reason="needs the extra gpu-compile"
)


# --- reading programs ----------------------------------------------------------------


def test_the_kernels_of_a_step_in_its_loops():
    """A loop of five rounds forth and one back, inside the loop over steps."""
    module = MODULES["loop"]
    body = program_text.steps_loop(module)
    assert body not in ("", module.entry)
    pairs = [*program_text.kernels(module, body)]
    assert {times for _, times in pairs} == {1, 5}
    assert sum(program_text.count(module, body).values()) == 75
    once = PROGRAMS["loop"].replace('"known_trip_count":{"n":"5"}', '"x":{"n":"5"}')
    pairs = [*program_text.kernels(program_text.parse(once), body)]
    assert {times for _, times in pairs} == {1}


def test_library_calls_and_fusions_are_named():
    module = MODULES["convolution"]
    found = program_text.count(module, module.entry)
    assert found == {
        "fusion (loop)": 3,
        "__cudnn$convBiasActivationForward": 1,
        "__cudnn$convBackwardFilter": 1,
    }


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[2,3]{1,0}", 24), ("(bf16[4]{0}, pred[])", 9), ("s4[8]", 4), ("u8[0]", 0),
     ("f8e4m3fn[16]{0}", 16), ("c64[2]", 16), ("(f32[], /*index=5*/s32[2,2]{1,0})", 20)],
)  # fmt: skip
def test_sizes_of_shapes(shape, size):
    assert program_text.size(shape) == size


def test_a_gather_reads_what_it_takes():
    """The table of 100 rows is 6,400 bytes; the gather takes 64 of them, and the
    gradient is a second table."""
    module = MODULES["embedding"]
    total, beyond = program_text.traffic(module, module.entry, 0)
    assert total == beyond == 23_552
    assert program_text.traffic(module, module.entry, 10**6) == (total, 0)


def test_the_digest_ignores_names_and_metadata_only():
    text = PROGRAMS["convolution"]
    same = text.replace("cudnn-conv-bw-filter", "another-name")
    same = same.replace("net", "other").replace("conv_1", "conv_9")
    assert same != text and program_text.digest(same) == program_text.digest(text)
    for old, new in (("stride=", "stridf="), ("[8,14,14,8]", "[8,14,14,9]"),
                     ("kLoop", "kInput"), ('"algo_id":"-1"', '"algo_id":"1"')):  # fmt: skip
        other = text.replace(old, new)
        if other != text:
            assert program_text.digest(other) != program_text.digest(text), old
    digests = {program_text.digest(one) for one in PROGRAMS.values()}
    assert len(digests) == len(PROGRAMS)


def test_the_digest_takes_control_predecessors_as_a_set():
    text = """ENTRY %main (p: s32[]) -> s32[] {
  %a = s32[] copy(%p)
  %b = s32[] copy(%p)
  ROOT %c = s32[] add(%p, %p), control-predecessors={%a, %b}
}"""
    digest = program_text.digest(text)
    assert program_text.digest(text.replace("{%a, %b}", "{%b, %a}")) == digest
    assert program_text.digest(text.replace("{%a, %b}", "{%b}")) != digest
    assert program_text.digest(text.replace("add(%p, %p)", "add(%p, %a)")) != digest


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="not a program of XLA"):
        program_text.parse("HloModule nothing\n")


# --- what may not repeat -------------------------------------------------------------


def test_a_scatter_that_adds_is_found_with_its_layer():
    (found,) = repeats.findings(MODULES["embedding"], deterministic=False)
    assert (found.operation, found.layer) == ("scatter", "net/embedding")


@pytest.mark.parametrize(
    "change",
    [
        ("scatter_dims_to", "unique_indices=true, scatter_dims_to"),
        ("f32[] add(", "f32[] maximum("),
    ],
)
def test_a_scatter_in_any_order_is_not(change):
    text = PROGRAMS["embedding"].replace(*change)
    assert text != PROGRAMS["embedding"]
    assert repeats.findings(program_text.parse(text), deterministic=False) == []


def test_library_functions_that_may_not_repeat():
    text, filters = PROGRAMS["convolution"], "__cudnn$convBackwardFilter"
    module = program_text.parse(text)
    assert repeats.findings(module, deterministic=True) == []
    (found,) = repeats.findings(module, deterministic=False)
    assert (found.operation, found.layer) == (filters, "net/conv_1")
    for target, count in (
        ("somebodys_kernel", 1), ("__cudnn$fmhaSoftmaxBackward", 1),
        ("__cublas$gemm", 0), ("__cublas$lt$matmul$f8", 0),
    ):  # fmt: skip
        changed = program_text.parse(text.replace(filters, target))
        found = repeats.findings(changed, deterministic=True)
        assert [one.operation for one in found] == [target] * count


# --- cards, bounds, refusals ---------------------------------------------------------


def test_every_card_has_its_source():
    assert {"h200", "a100", "rtx4090", "rtx5090", "t4"} <= set(cards.names())
    for name in cards.names():
        card = cards.load(name)
        assert "https://" in card.source and card.capability >= (7, 0)
        assert card.peak("mixed_float16") > card.flops["float32"]
    assert cards.load("t4").peak("mixed_bfloat16") == cards.load("t4").peak("float32")


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory_bytes", -1), ("memory_bytes", "many"), ("cores", 1.5), ("cores", True),
     ("compute_capability", "nine"), ("flops", {"float32": 1.0}), ("source", " "),
     ("bandwidth_bytes_per_second", float("nan")), ("colour", "black")],
)  # fmt: skip
def test_a_users_card(tmp_path, field, value):
    content = json.loads((ROOT / "gpuzoo/gpus/cards/a100.json").read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    assert cards.load(str(path)) == cards.load("a100")
    path.write_text(json.dumps({**content, field: value}))
    with pytest.raises(GpuzooError, match=field):
        cards.load(str(path))


def test_the_least_time_is_bound_by_the_largest():
    card, memory = cards.load("h200"), dict.fromkeys(
        ("argument", "output", "alias", "temp", "generated_code"), 0
    )  # fmt: skip
    text = PROGRAMS["convolution"]
    found = predict.of_program(text, memory, 1e6, card, "float32", "repeatable")
    assert found["bound_by"] == "launches"
    assert found["least_seconds"] == pytest.approx(5e-6)
    found = predict.of_program(text, memory, 1e12, card, "float32", "repeatable")
    assert found["bound_by"] == "arithmetic"
    assert found["least_seconds"] == 1e12 / card.flops["tf32"]


def test_refusals(cli):
    done = cli("compile", "mnist", "--for", "h200,h20")
    assert (
        done.returncode == 2
        and "no card named 'h20'; there are a100, h200" in done.stderr
    )
    done = cli("compile", "--for", "h200")
    assert done.returncode == 2 and "gpuzoo compile RECIPE" in done.stderr
    done = cli("compile", "mnist", "--for", "absent.json")
    assert done.returncode == 2 and "absent.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(installed(), reason="the extra gpu-compile is installed")
def test_without_the_compiler(cli):
    done = cli("compile", "mnist", "--for", "h200")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(r"pip install 'gpuzoo\[gpu-compile\]'", line)


# --- the real compiler ---------------------------------------------------------------

ADDS = '''
import keras
import gpuzoo


class Adds(keras.layers.Layer):
    """Adds rows into few places; the gradient of what it computes is a gather."""

    def call(self, x):
        place = keras.ops.cast(keras.ops.abs(x[:, 0]), "int32") % 4
        return x + keras.ops.segment_sum(x, place, num_segments=4)[:1]


@gpuzoo.register(task="classify", reference="here")
def adds(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    """A scatter that adds."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Dense(8)(keras.layers.Flatten()(inputs))
    x = Adds(name="adds")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
'''


@needs_jax
@needs_compiler
def test_a_training_is_compiled_for_a_card(cli):
    """The same program in two processes, with another rhythm of log, digest, evaluation
    and checkpoint; and cuDNN's convolutions in it."""
    words = ("compile", "mnist", "--data", "digits", "--for", "h200")
    rhythm = ("--log-every", "7", "--digest-every", "3", "--eval-every", "2",
              "--checkpoint-every", "11")  # fmt: skip
    first, second = cli(*words), cli(*words, *rhythm)
    assert first.returncode == 0, first.stderr
    assert "PREDICTED" in first.stdout and "measured" in first.stdout
    (row,), (again,) = first.json["rows"], second.json["rows"]
    assert row["fits"] and row["precision"] == "mixed_bfloat16"
    assert row["memory_bytes"] > 1_000_000
    for step in ("train", "evaluate"):
        one = row["programs"][step]
        assert one["program_sha256"] == again["programs"][step]["program_sha256"]
        assert one["kernels_by_kind"]["__cudnn$convBiasActivationForward"] == 2
        assert one["may_not_repeat"] == [] and one["flops"] > 1e8


@needs_jax
@needs_compiler
def test_products_that_triton_has_no_tiles_for(cli):
    """The patches of 128 images, 6,272 rows, stop XLA's first choice of kernels."""
    words = "--model vit_tiny --model-options depth=1 --batch-size 128 --for h200"
    done = cli("compile", "mnist", "--data", "digits", *words.split())
    (row,) = done.json["rows"]
    assert done.returncode == 0 and row["error"] is None, row["error"]
    kernels = row["programs"]["train"]["kernels_by_kind"]
    assert not any("triton_gemm" in name for name in kernels), kernels


@needs_jax
@needs_compiler
def test_a_layer_that_adds_in_any_order_is_named(cli, tmp_path):
    (tmp_path / "own.py").write_text(ADDS)
    done = cli(
        "compile", "mnist", "--data", "digits", "--model", "own.py:adds",
        "--level", "fast",
    )  # fmt: skip
    assert len(done.json["rows"]) == len(cards.names())
    for row in done.json["rows"]:
        found = row["programs"]["train"]["may_not_repeat"]
        assert [one["operation"] for one in found] == ["scatter"]
        assert found[0]["layer"].endswith("adds"), found


@needs_jax
@needs_compiler
def test_a_model_that_does_not_fit(cli, tmp_path):
    for name in cards.names():
        content = json.loads((ROOT / f"gpuzoo/gpus/cards/{name}.json").read_text())
        content["memory_bytes"] = 10_000_000
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    small = ",".join(f"{name}.json" for name in cards.names())
    done = cli(
        "compile", "mnist", "--data", "digits", "--for", small, "--stream", "off"
    )
    assert done.returncode == 1
    lines = done.json["failures"]
    assert len(lines) == len(cards.names())
    assert all("does not fit" in line for line in lines), lines


ABORTS = '''
import os, pathlib
import jax
import keras
import gpuzoo


class Aborts(keras.layers.Layer):
    """Ends the process when it is compiled for the first time, as a compiler may."""

    def call(self, x):
        mark = pathlib.Path(__file__).with_name("compiled")
        if jax.default_backend() == "gpu" and not mark.exists():
            mark.touch()
            os.abort()
        return x


@gpuzoo.register(task="classify", reference="here")
def aborts(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    """Of one layer."""
    inputs = keras.Input(input_shape)
    x = Aborts()(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
'''


@needs_jax
@needs_compiler
def test_a_compiler_that_ends_its_process_ends_no_other_card(cli, tmp_path):
    (tmp_path / "own.py").write_text(ABORTS)
    words = ("--data", "digits", "--model", "own.py:aborts", "--precision", "float32")
    done = cli("compile", "mnist", "--for", "t4,h200,a100", *words)
    assert done.returncode == 1
    first, second, third = done.json["rows"]
    assert first["card"] == "t4" and "was killed by signal 6" in first["error"]
    assert second["error"] is third["error"] is None
    alone = cli("compile", "mnist", "--for", "a100", *words).json["rows"][0]
    assert alone["programs"] == third["programs"]


MUTANTS = '''
import keras
import gpuzoo
from keras import layers, ops


class Ties(layers.Layer):
    """Takes the first of equal values, which is one of them in any order."""

    def call(self, x):
        first = ops.argmax(ops.round(x), axis=-1)
        places = ops.one_hot(first, x.shape[-1], dtype=x.dtype)
        return x * places + ops.max(x, axis=-1, keepdims=True)


def model_of(layer, shape, input_shape, num_classes):
    inputs = keras.Input(input_shape)
    x = layer(layers.Reshape(shape)(inputs))
    return keras.Model(inputs, layers.Dense(num_classes)(x))


@gpuzoo.register(task="classify", reference="here")
def ties(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    """Equal values."""
    return model_of(Ties(), (784,), input_shape, num_classes)


@gpuzoo.register(task="classify", reference="here")
def cudnn(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    """A recurrence that only cuDNN computes."""
    layer = layers.LSTM(8, use_cudnn=True, name="recurrence")
    return model_of(layer, (28, 28), input_shape, num_classes)


@gpuzoo.register(task="classify", reference="here")
def double(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    """A layer in float64."""
    layer = layers.Dense(8, dtype="float64", name="wide")
    return model_of(layer, (784,), input_shape, num_classes)
'''


@needs_jax
@needs_compiler
def test_mutants_are_named(cli, tmp_path):
    (tmp_path / "own.py").write_text(MUTANTS)
    words = ("compile", "mnist", "--data", "digits", "--model")  # for all cards
    done = cli(*words, "own.py:ties")
    assert done.returncode == 0, done.stderr
    assert len(done.json["rows"]) == len(cards.names())
    for row in done.json["rows"]:
        assert all(one["may_not_repeat"] == [] for one in row["programs"].values())
    done = cli(*words, "own.py:cudnn")
    assert done.returncode == 1 and len(done.json["rows"]) == len(cards.names())
    for row in done.json["rows"]:
        assert "'recurrence' (LSTM)" in row["error"] and "cuDNN" in row["error"]
    done = cli(*words, "own.py:double")
    assert (
        done.returncode == 2 and "layer 'wide' (Dense) has dtype float64" in done.stderr
    )
    done = cli(*words, "own.py:absent")
    assert done.returncode == 2 and "it has ties, cudnn, double" in done.stderr


@needs_jax
def test_float64_is_refused_where_it_would_be_float32(cli, tmp_path):
    (tmp_path / "own.py").write_text(MUTANTS)
    words = ("train", "mnist", "--data", "digits", "--fast-dev-run", "--out", "run")
    done = cli(*words, "--backend", "jax", "--model", "own.py:double")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "has dtype float64, which JAX would compute in float32" in done.stderr


# --- what the installed packages make of a card --------------------------------------

TENSORFLOW = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]


@pytest.mark.parametrize(
    ("capability", "builds", "kind"),
    [((9, 0), TENSORFLOW, "native"), ((12, 0), TENSORFLOW, "translated"),
     ((7, 5), TENSORFLOW, "native"), ((8, 7), TENSORFLOW, "native"),
     ((3, 5), TENSORFLOW, ""), ((12, 0), ["sm_90"], ""), ((12, 1), ["sm_120"], "native"),
     ((7, 0), ["sm_75"], ""), ((10, 0), ["compute_75"], "translated")],
)  # fmt: skip
def test_kernels_of_a_build_for_a_card(capability, builds, kind):
    assert doctor.kernels_for(capability, builds) == kind


@needs_tensorflow
@pytest.mark.parametrize(
    ("card", "precision", "says"),
    [("rtx5090", "mixed_bfloat16", "12.0: the driver translates"),
     ("t4", "mixed_float16; bfloat16 is computed in float32", "kernels for this card")],
)  # fmt: skip
def test_doctor_for_a_card(cli, card, precision, says):
    done = cli("doctor", "--for", card, "--quick")
    found = {one["name"]: one for one in done.json["findings"]}
    assert precision in found["precision"]["what"]
    assert says in found["tensorflow"]["what"]
    assert (
        done.returncode == int(card == "rtx5090") == bool(found["tensorflow"]["remedy"])
    )


@needs_jax
@needs_compiler
def test_doctor_compiles_for_a_card(cli, tmp_path):
    content = json.loads((ROOT / "gpuzoo/gpus/cards/a100.json").read_text())
    (tmp_path / "old.json").write_text(
        json.dumps({**content, "compute_capability": "3.5"})
    )
    for card, says in (("h200", "compiles the recipe mnist"),
                       ("old.json", "does not compile for compute capability 3.5")):  # fmt: skip
        found = {
            one["name"]: one for one in cli("doctor", "--for", card).json["findings"]
        }
        assert says in found["jax"]["what"] and found["jax"]["ok"] == (card == "h200")


def test_a_file_of_the_users_is_not_overwritten(cli, tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    done = cli("compile", "mnist", "--for", "t4", "--out", "mine.json")
    assert done.returncode == 2 and "'mine.json' exists" in done.stderr
    assert (tmp_path / "mine.json").read_text() == "mine"
