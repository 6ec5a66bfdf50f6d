"""Every model, trained by Keras's `fit` and by gpuzoo's loop: tests/every_model.py does
it on either backend and in any precision, here its verdicts are read."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, environment, skip_without

from gpuzoo.catalogue import registry

NAMES = sorted(registry._shipped())
# 16 bits are tried with half of the models on either backend.
MODES = [
    ("tensorflow", "float32", NAMES),
    ("tensorflow", "mixed_float16", NAMES[::2]),
    ("jax", "mixed_bfloat16", NAMES[1::2]),
]
# Programs that XLA makes in a third of the time, and that are slower.
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.mark.parametrize(
    ("backend", "precision", "names"), MODES, ids=[f"{b}-{p}" for b, p, _ in MODES]
)
def test_every_model_trains_with_fit_and_with_the_loop(
    backend, precision, names, tmp_path
):
    skip_without(backend)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "every_model.py", backend, precision, *names],
        env={**environment(tmp_path), "XLA_FLAGS": HASTY}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = {row["model"]: row["wrong"] for row in map(json.loads, lines)}
    assert set(wrong) == set(names)
    assert {name: what for name, what in wrong.items() if what} == {}
