"""Nothing that gpuzoo writes tells the user's home, or what variables hold."""

import json
import os
import pwd

import numpy as np
import pytest
from small import two_classes

from gpuzoo.home import redact, unredact, without_home
from gpuzoo.runs.record import private
from gpuzoo.runtime import environment

SECRETS = ("jane.doe", "volume9", "hidden.example", "10.1.2.3", "dumped")
MODEL = """
import keras, gpuzoo
@gpuzoo.register(task="classify", reference="own")
def net(*, input_shape: tuple = (14, 14, 1), num_classes: int = 2, file: str = ""):
    x = keras.layers.Flatten(name="flat")(image := keras.Input(input_shape))
    return keras.Model(image, keras.layers.Dense(num_classes, name="logits")(x))
"""


@pytest.fixture
def home(tmp_path):
    """A home that its user reaches through a link."""
    (tmp_path / "volume9" / "jane.doe").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "jane").symlink_to("../volume9/jane.doe")
    return tmp_path / "home" / "jane"


def leaks(folder) -> list[str]:
    return [
        f"{path.name}: {secret}"
        for path in folder.rglob("*")
        if path.is_file()
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


def test_tunables_of_the_c_library_count_if_they_choose_its_code(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert "GLIBC_TUNABLES" not in environment.moving_variables()
    monkeypatch.setenv(
        "GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2:glibc.x=/volume9/dumped"
    )
    (told,) = {"GLIBC_TUNABLES"} & set(environment.moving_variables())
    assert not [s for s in SECRETS if s in environment.moving_variables()[told]]


def test_no_artefact_tells_the_home_or_a_variable(home, cli, tmp_path):
    real = home.resolve()
    (real / "own.py").write_text(MODEL)
    np.savez(real / "mine.npz", **two_classes())
    env = {
        "HOME": str(home), "XLA_FLAGS": f"--xla_dump_to={home}/dumped",
        "JAX_COORDINATOR_ADDRESS": "hidden.example:1234", "TF_XLA_FLAGS": "--a=10.1.2.3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    words = ["train", "mnist", "--data", real / "mine.npz", "--precision", "float32",
             "--fast-dev-run", "--batch-size", "8", "--quiet"]  # fmt: skip
    first = cli(*words, "--backend", "jax", "--model", f"{real}/own.py:net",
                "--model-options", f"file='{real}/scale.txt'", "--out", "one", env=env)  # fmt: skip
    (home / "one").symlink_to(tmp_path / "one")
    env.pop("TF_XLA_FLAGS")
    words[1] = "distill_mnist"
    second = cli(*words, "--teacher", home / "one", "--out", real / "two", env=env)
    third = cli("bench", "mnist", "--data", home / "mine.npz", "--model",
                f"{real}/own.py:net", "--rounds", "2", "--seconds", "0.05", "--backends",
                "tensorflow", "--precisions", "float32", "--xla", "off", "--out", "bench", "--batch-size", "8",
                env=env)  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert leaks(tmp_path / "one") == []
    assert second.returncode == 0, second.stderr
    assert leaks(real / "two") == []
    assert third.returncode == 0, third.stderr
    assert leaks(tmp_path / "bench") == []
    for done in (first, second, third):
        assert not [secret for secret in SECRETS if secret in done.stdout]
    # A digest stands for a value, so that another one is drift.
    variables = json.loads((tmp_path / "one" / "run.json").read_text())["environment"][
        "variables"
    ]
    assert variables["JAX_COORDINATOR_ADDRESS"].startswith("sha256:")
    assert variables["XLA_FLAGS"].startswith("--xla_dump_to=sha256:")


@pytest.mark.parametrize(
    "value",
    ["1", "true", "-3", "0.5", "1e-3", "highest", "AVX2", ":4096:8", "--xla_cpu_x=true",
     "--a=false --b=x,y", "--tf_xla_auto_jit=2"],
)  # fmt: skip
def test_a_plain_value_is_told(value, monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", value)
    assert environment.moving_variables()["JAX_SOMETHING"] == value
    assert environment.unshielded({"JAX_SOMETHING": value}) == {"JAX_SOMETHING": value}


@pytest.mark.parametrize(
    "value",
    ["/data/jane", "node17:1234", "10.0.0.7", "gs://bucket/x", "C:\\x", "jane@host",
     "--dump_to=/data/jane", "--xla_dump=~/x --fine=1", "[fe80::1]:80"],
)  # fmt: skip
def test_another_value_is_its_digest(value, monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", value)
    told = environment.moving_variables()["JAX_SOMETHING"]
    hidden = value.split()[0].split("=")[-1]
    assert "sha256:" in told and hidden not in told
    assert private(f"cannot reach {value}") != f"cannot reach {value}"
    assert environment.unshielded({"JAX_SOMETHING": told}) == {"JAX_SOMETHING": value}
    monkeypatch.setenv("JAX_SOMETHING", value.replace(hidden, f"{hidden}9"))
    assert environment.moving_variables()["JAX_SOMETHING"] != told
    assert hidden not in str(environment.unshielded({"JAX_SOMETHING": told}))


def test_a_name_that_speaks_of_a_place_tells_no_word(monkeypatch):
    monkeypatch.setenv("JAX_CLUSTER_HOSTNAME", "node17")
    assert environment.moving_variables()["JAX_CLUSTER_HOSTNAME"].startswith("sha256:")


def test_every_name_of_the_home(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    theirs = pwd.getpwuid(os.getuid()).pw_dir
    for path in (home, home.resolve(), theirs):
        assert redact(f"{path}/x.npz") == "~/x.npz"
        assert redact(f"both=('{path}/a','{path}/b')") == "both=('~/a','~/b')"
        assert without_home(f"cannot open {path}/x: no") == "cannot open ~/x: no"
        assert without_home(f"{path}y and /mnt{path}") == f"{path}y and /mnt{path}"
    assert unredact("~/x.npz") == f"{home}/x.npz"
