"""`gpuzoo bench` and `gpuzoo doctor`, and what they count and measure."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, needs_jax

from gpuzoo.bench import bench, devices
from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.engine import backends
from gpuzoo.engine.backends import topology

SHORT = ["--rounds", "2", "--seconds", "0.05", "--xla", "off",
         "--backends", "tensorflow", "--device", "cpu"]  # fmt: skip


def table(folder) -> str:
    """What gpu.sh tells of the records of a folder."""
    words = [
        sys.executable,
        str(ROOT / "benchmarks" / "tables" / "gpu_table.py"),
        str(folder),
    ]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


OWN = """
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="here", parameters=7850)
def net(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    if keras.config.dtype_policy().name == "mixed_float16":
        raise ValueError("not in sixteen bits")
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten(name="flat")(inputs)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))
"""


def test_a_bench_with_a_mode_that_fails_and_a_goal_that_is_missed(
    cli_here, no_network, tmp_path, monkeypatch
):
    """On other data than the recipe's, as these are not there."""
    for name, value in no_network.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    (tmp_path / "own.py").write_text(OWN)
    done = cli_here("bench", "mnist", *SHORT, "--model", "own.py:net", "--precisions",
                    "mixed_float16", "float32", "--goal", "1.0", "--seeds", "1",
                    "--out", "found")  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "mnist is not available here: timing on digits" in done.stderr
    assert done.json["data"] == "digits" and "data digits" in done.stdout
    assert "about" in done.stderr and "NOT reached" in done.stderr
    assert "tensorflow float16: failed, " in done.stderr and "failed" in done.stdout
    record = json.loads((tmp_path / done.json["record"]).read_text())
    assert (tmp_path / done.json["record"]).with_suffix(".png").stat().st_size > 5000
    failed, row = record["modes"]
    assert "not in sixteen bits" in failed["error"]
    assert row["error"] is None and row["mode"] == "tensorflow float32"
    assert record["control"]["n"] == 4 and row["control"]["n"] == 2
    assert_concluded(done, row["mode"])
    speed = row["examples_per_second"]
    assert 0 < speed["low"] <= speed["median"] <= speed["high"] and speed["n"] == 2
    assert row["price_of_determinism"]["n"] == row["times_the_default"]["n"] == 2
    assert row["cost_of_an_example"]["by"] == "layers"
    assert 0 < row["part_of_peak"]["flops"] < 1 and row["part_of_peak"]["bytes"] is None
    assert 0 < row["overhead_seconds"] < 0.1 and row["error_without"] is None
    assert row["memory_bytes"] > 1e8 and record["runtime"]["deterministic"]
    assert record["data"]["name"] == "digits" and record["environment"]["versions"]
    assert not done.json["goal"]["reached"]
    (run,) = done.json["goal"]["runs"]
    assert not run["reached"] and 0.5 <= run["figure"] < 1 and run["seconds"] > 0
    told = table(tmp_path / "found")
    assert "0 of 1 reached it\n" in told and "failed: " in told
    assert f"{speed['median']:,.0f} examples" in told
    assert "of the measured peak of products" in told and "of memory" not in told
    alone = cli_here("bench", "mnist", *SHORT, "--model", "own.py:nothing")
    assert alone.returncode == 2 and "nothing" in alone.stderr


def assert_concluded(done, fastest: str) -> None:
    """The fastest mode is named, or that the machine was busy, which tests are in
    no position to forbid."""
    found = done.json["conclusion"]
    if found["quiet"] is False:
        assert "No conclusion: the machine was busy" in done.stdout
        assert "Fastest" not in done.stdout and found["fastest"] is None
    else:
        assert f"Fastest mode: {fastest}, " in done.stdout
        assert found["fastest"] == fastest and "Repeatability costs" in done.stdout


def told(median: float, half: float = 0.01) -> dict:
    return {"median": median, "low": median - half, "high": median + half, "n": 10}


def mode(name: str, times: float, control: float = 1.0, half: float = 0.01) -> dict:
    return {
        "mode": name, "error": None, "examples_per_second": told(1000 * times),
        "times_the_default": told(times), "price_of_determinism": told(1.0),
        "control": told(control, half),
    }  # fmt: skip


def test_no_conclusion_where_the_default_differs_from_itself():
    rows = [mode("float32", 0.5), mode("bfloat16", 1.2), {"mode": "x", "error": "bad"}]
    found = bench.conclude(rows, told(1.0))
    assert found["quiet"] is True and found["fastest"] == "bfloat16"
    assert bench.conclude(rows, told(1.012, 0.001))["quiet"] is True
    for control in (told(1.1), told(0.9), told(1.0, half=0.2)):
        found = bench.conclude(rows, control)
        assert found.pop("quiet") is False and set(found.values()) == {None}
    for busy in (mode("float16", 0.3, control=0.8), mode("y", 1.0, 1.0, half=0.3)):
        assert bench.conclude([*rows, busy], told(1.0))["quiet"] is False
    assert bench.conclude(rows, None)["quiet"] is None


def test_what_xla_counts(cli_here, tmp_path):
    words = ["--data", "digits", "--rounds", "2", "--seconds", "0.05", "--backends",
             "jax", "--device", "cpu", "--precisions", "float32", "--model", "mlp",
             "--model-options", "units=(64,)"]  # fmt: skip
    done = cli_here("bench", "mnist", *words)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / done.json["record"]).read_text())["modes"]
    cost, part = row["cost_of_an_example"], row["part_of_peak"]
    # The kernels forward, for their gradients, and one for that of its inputs.
    products = 2 * (2 * 784 * 64 + 3 * 64 * 10)
    assert cost["by"] == "XLA" and 0.9 < cost["flops"] / products < 1.5
    assert 0 < part["flops"] < 1 and 0 < part["bytes"] and cost["bytes"] > 28 * 28
    assert f"{part['bytes']:.0%}" in done.stdout
    assert f"{part['bytes']:.1%} of the measured peak of memory" in table(
        tmp_path / "bench"
    )


SETTINGS = bench.Settings(
    backends=("tensorflow",), precisions=("float32",), xla=("off",), device="cpu",
    rounds=2, seconds=0.05,
)  # fmt: skip


def test_processes_that_die_on_the_way(own_cache, monkeypatch):
    """All but that of the mode: the default, without determinism, and the control."""
    real, notes = bench.take_turns, []

    def take_turns(workers, rounds):
        for place in (0, 2, 3):
            workers[place].process.kill()
        real(workers, rounds)

    monkeypatch.setattr(bench, "take_turns", take_turns)
    recipe = load_recipe("mnist").override(data="digits", model="mlp")
    found = bench.bench(recipe, SETTINGS, notes.append)
    (row,) = found["modes"]
    reason = "the process was killed by signal 9"
    assert any(reason in note for note in notes) and not row["error"]
    assert row["examples_per_second"] and row["error_without"] == reason
    assert found["error"] == reason and found["examples_per_second"] is None
    assert row["times_the_default"] is row["price_of_determinism"] is None
    assert found["conclusion"]["fastest"] in (row["mode"], None)
    assert found["control"] is None and found["conclusion"]["quiet"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", "1"], "rounds must be at least 2"),
        (["--seconds", "0"], "seconds must be in 0.01..600"),
        (["--backends", "torch"], "torch"),
        (["--devices", "3"], "must be a multiple of 3, for devices=3"),
        (["--devices", "1"], "devices must be numbers from 2 on"),
    ],
)
def test_what_a_bench_refuses(words, told, cli_here):
    done = cli_here("bench", "mnist", *words)
    assert done.returncode == 2 and told in done.stderr, done.stderr


def test_counted_operations(runtime):
    import gpuzoo
    from gpuzoo.bench import roofline

    # 24x24 places of 5x5x1x16, 10x10 of 3x3x16x32, 800x128 and 128x10: forward, and
    # for the gradients of kernels and inputs; those of the images nobody needs.
    products = [576 * 400, 100 * 4608, 102_400, 1280]
    model = gpuzoo.build("cnn")
    assert roofline.operations(model) == 6 * sum(products) - 2 * products[0]
    first, second, *_ = (layer for layer in model.layers if layer.weights)
    first.trainable = second.trainable = False
    assert roofline.operations(model) == 2 * sum(products[:2]) + 4 * products[2] + (
        6 * products[3]
    )
    first.trainable = True  # so that the frozen one passes a gradient on
    assert roofline.operations(model) == 4 * sum(products[:2]) + 6 * sum(products[2:])
    assert roofline.cost(model, 8, None)["by"] == "layers"
    assert roofline.operations(gpuzoo.build("lstm")) is None
    assert roofline.operations(gpuzoo.build("gan")) is None


def test_peaks_are_what_the_device_does(runtime):
    from gpuzoo.bench import roofline

    found = roofline.measure(backends.get(runtime))
    assert 1e9 < found["flops"] < 1e14 and 1e8 < found["bytes"] < 1e13


def measured(**changes) -> devices.Measured:
    given = {
        "batch": 128, "compute": {128: 0.010, 64: 0.006, 32: 0.004}, "size": 4_000_000,
        "latency": 0.0005, "bandwidth": 8e9, "shared": False, **changes,
    }  # fmt: skip
    return devices.Measured(**given)


def test_what_several_devices_are_expected_to_bring():
    found = measured()
    assert found.seconds(1) == 0.010
    assert found.seconds(2) == pytest.approx(0.006 + 0.001)
    assert found.seconds(4) == pytest.approx(0.004 + 3 * 0.001)
    # Where nothing was measured, 2 ms and 0.0625 ms for each row.
    assert measured(compute={64: 0.006, 32: 0.004}).seconds(1) == pytest.approx(0.010)
    assert measured(shared=True).seconds(2) == pytest.approx(2 * 0.006 + 0.001)
    rows = {row["devices"]: row for row in devices.drawn_out(measured(shared=True))}
    assert max(rows) == 1024 and rows[1]["times_same_batch"] == 1
    assert rows[2]["times_same_batch"] == pytest.approx(0.010 / 0.007)
    assert rows[256]["times_same_batch"] is None  # more than rows
    # As many rows on each: all that is lost is the exchange.
    lost = 0.010 / (0.010 + 1023 * 0.001)
    assert rows[1024]["times_same_rows"] == pytest.approx(1024 * lost)


def test_why_several_devices_do_not_bring_more():
    assert devices.why(measured(), 2) == ""
    small = "the batch is too small: 64 rows take 90% of the time of 128"
    assert devices.why(measured(compute={128: 0.010, 64: 0.009}), 2) == small
    large = "the exchange of 400.0 MB takes 89% of a step"
    assert devices.why(measured(size=400_000_000), 2) == large
    assert "share the cores" in devices.why(measured(shared=True), 2)
    row = {"devices": 2, "expected_times": 1.1, "times": 1.06, "why": small}
    line = (
        "2 devices: 1.10 times as fast expected, 1.06 measured; the batch is too small"
    )
    assert devices.line_of(row).startswith(line)


@needs_jax
def test_what_several_devices_bring_is_measured(cli_here):
    done = cli_here("bench", "mnist_mlp", "--data", "digits", "--device", "cpu", "--devices",
                    "2", "--precisions", "float32", "--rounds", "2", "--batch-size", "64",
                    "--model-options", "units=(16,)")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = done.json["devices"]
    assert row["devices"] == 2 and row["seconds"] > 0 and row["exchange_seconds"] > 0
    assert set(done.json["measured"]["compute"]) == {"64", "32"}
    assert done.json["measured"]["size"] == 4 * (785 * 16 + 17 * 10)
    assert "2 devices: " in done.stderr and "share the cores" in done.stderr
    assert "1024" in done.stdout and "GB/s" in done.stdout


def test_doctor_looks_at_everything(cli):
    done = cli("doctor")
    findings = {finding["name"]: finding for finding in done.json["findings"]}
    # Another machine may have a full disk, or a GPU without its libraries.
    wrong = [f for f in findings.values() if not f["ok"]]
    assert done.returncode == bool(wrong), done.stdout + done.stderr
    assert {"python", "packages", "environment", "cpu", "cache", "runs", "tensorflow",
            "tensorflow, trained twice", "jax, trained twice"} <= set(findings)  # fmt: skip
    assert all(f["what"] and f["ok"] == (not f["remedy"]) for f in findings.values())
    assert findings["tensorflow, trained twice"]["ok"]
    assert findings["jax, trained twice"]["ok"] and findings["packages"]["ok"]


# What `nvidia-smi topo -m` prints on a machine of three GPUs and a network card.
MATRIX = """\x1b[4m\tGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPXB\t0-31
GPU1\tNV18\t X \tPHB\tSYS\t0-31
GPU2\tSYS\tPHB\t X \tSYS\t32-63
NIC0\tPXB\tSYS\tSYS\t X
"""


def test_links_between_gpus_in_words():
    assert topology.links_in(MATRIX, 2) == ["18 NVLinks"]
    three = ["18 NVLinks", "the link between CPUs", "the CPU's PCIe"]
    assert topology.links_in(MATRIX, 3) == three
    assert topology.links_in("Failed to initialize NVML", 2) == []


@needs_jax
def test_doctor_times_an_exchange_between_devices(cli_here):
    done = cli_here("doctor", "--devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    devices, links, small, large = done.json["findings"]
    assert "2 virtual on one CPU" in devices["what"] and links["what"] == "memory"
    assert "all-reduce of 4 bytes" in small["what"] and "GB/s" in large["what"]
    assert "there is none" not in done.stdout
    done = cli_here("doctor", "--devices", "2000")
    assert "devices must be in 1..1024: 2000" in done.stderr


def test_doctor_names_what_is_wrong_and_the_remedy(cli):
    wrong = {"TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "torch",
             "GPUZOO_CACHE": "/proc/nowhere"}  # fmt: skip
    done = cli("doctor", "--quick", env=wrong)
    assert done.returncode == 1
    remedies = {f["name"]: f["remedy"] for f in done.json["findings"] if not f["ok"]}
    assert remedies["environment"].startswith("unset TF_ENABLE_ONEDNN_OPTS")
    assert "unset KERAS_BACKEND" in remedies["backend"]
    assert "GPUZOO_CACHE" in remedies["cache"]
    assert done.stdout.count("-> ") == len(remedies) == 3


def test_the_peak_of_the_process_that_starts_a_run_is_not_the_runs():
    """Linux gives a child its parent's peak to begin with."""
    import_it = "from gpuzoo.engine.timing import peak_memory_bytes as peak\n"
    child = import_it + "print(peak())"
    parent = (
        import_it + "import subprocess, sys\n"
        "ballast = bytes(b'x') * 400_000_000; assert peak() > 400_000_000\n"
        f"sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True
    )
    assert 5_000_000 < int(done.stdout) < 300_000_000
