"""Runs that were made on other machines, in tests/runs/, are verified on this one.

At level portable each must be identical, on any processor; at the other levels on the
processor of the run, while on another one its bits may differ and are not held against
it.
"""

import json
import shutil

import pytest
from conftest import ROOT, skip_without
from make_run import RUNS

from gpuzoo.runs.record import read_run
from gpuzoo.runtime.environment import versions
from gpuzoo.runtime.processors import PORTABLE

STORED = sorted(path.parent for path in RUNS.glob("*/run.json"))
_MOVES = ("tensorflow", "jax", "jaxlib", "keras", "numpy")


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.name)
def test_a_stored_run_is_identical_here(stored, cli_on, tmp_path):
    record = read_run(stored)
    skip_without(record["runtime"]["backend"])
    there, here = record["environment"]["versions"], versions()
    if other := [name for name in _MOVES if there.get(name) != here.get(name)]:
        pytest.skip(f"other versions than those of the run: {', '.join(other)}")
    shutil.copytree(stored, tmp_path / "run")
    # The code has gone on since; its bits have not.
    level = record["runtime"]["level"]
    done = cli_on(level=level)("verify", "run", "--allow-drift")
    found = done.json
    if record["runtime"]["level"] != PORTABLE and found["processor"]:
        assert done.returncode in (0, 2), done.stderr
        assert found["compared"] and len(set(found["processor"].values())) == 2
        return
    assert (done.returncode, found["verdict"]) == (0, "identical"), done.stderr
    assert found["steps"] == record["steps"] > 0


def test_there_are_stored_runs_and_they_are_small():
    assert STORED
    for stored in STORED:
        sizes = [path.stat().st_size for path in stored.rglob("*") if path.is_file()]
        assert sum(sizes) < 400_000, stored
        record = json.loads((stored / "run.json").read_text())
        assert record["data"]["name"] == "digits", "the data must be at hand everywhere"
        assert str(ROOT) not in json.dumps(record)
