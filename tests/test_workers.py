"""Worker processes: requests, answers, errors and how they end."""

import os
import sys

import pytest

from gpuzoo import doctor, workers
from gpuzoo.runtime import bootstrap

JOB = """
import os, signal, time
from gpuzoo import workers
from gpuzoo.errors import GpuzooError

def job(request):
    print("noise on stdout, by a library")
    os.system("echo noise of a child process")
    if request["do"] == "answer":
        yield {"got": request["do"], "hash": os.environ.get("PYTHONHASHSEED")}
    elif request["do"] == "refuse":
        raise GpuzooError("units must be\\n   1 or more: 0")
    elif request["do"] == "fail":
        yield 1 / 0
    elif request["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif request["do"] == "thrice":
        yield from ({"part": part} for part in range(3))
    elif request["do"] == "abort later":
        yield {"part": 0}
        os.abort()
    elif request["do"] == "sleep":
        time.sleep(60)
    elif request["do"] == "exit":
        raise SystemExit("ends by itself")

if __name__ == "__main__":
    workers.serve(job)
"""


@pytest.fixture
def answers(tmp_path):
    (tmp_path / "a_job_of_a_test.py").write_text(JOB)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7"}
    return lambda do, **more: workers.answers(
        "a_job_of_a_test", {"do": do}, env, **more
    )


@pytest.fixture
def ask(answers):
    return lambda do, **more: next(answers(do, **more))


@pytest.mark.parametrize(
    "do, answer",
    [
        ("answer", {"got": "answer", "hash": "7"}),
        ("refuse", {"error": "units must be 1 or more: 0"}),
        ("fail", {"error": "ZeroDivisionError: division by zero"}),
        ("die", {"error": "the process was killed by signal 9: "}),
        ("exit", {"error": "the process ended with code 1: ends by itself"}),
    ],
)
def test_an_answer_or_the_reason_that_there_is_none(ask, do, answer):
    found = ask(do)
    if do == "die":  # its last line on standard error, if any, follows
        assert found["error"].startswith(answer["error"].rstrip(": "))
    else:
        assert found == answer


@pytest.mark.parametrize(
    ("do", "parts", "end"),
    [("thrice", 3, "ended with code 0"), ("abort later", 1, "was killed by signal 6")],
)
def test_answers_up_to_the_end_of_the_process(answers, do, parts, end):
    *found, last = answers(do)
    assert found == [{"part": part} for part in range(parts)]
    assert end in last["error"]


def test_a_worker_that_takes_too_long_is_ended(ask):
    assert ask("sleep", seconds=2) == {"error": "the process took longer than 2 s"}


def test_files_of_the_current_folder_are_no_libraries(ask, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in ("json.py", "tempfile.py", "typeguard.py"):
        (tmp_path / "here" / name).write_text("raise SystemExit('it is executed')")
    monkeypatch.chdir(tmp_path / "here")
    assert ask("answer") == {"got": "answer", "hash": "7"}
    probe = "import json, typeguard; print(json.dumps({'gpus': []}))"
    monkeypatch.setitem(doctor._PROBES, "jax", probe)
    assert doctor.probe("jax") == {"gpus": []}


@pytest.mark.parametrize("head", [["-m", "gpuzoo"], ["-P", "-m", "gpuzoo"]])
def test_a_training_starts_again_with_the_same_options(head, monkeypatch):
    """As `doctor` starts it: with -P, and a fixed PYTHONHASHSEED."""
    started = []
    monkeypatch.setattr(bootstrap, "ours", False)
    monkeypatch.setattr(os, "execv", lambda path, words: started.append(words))
    monkeypatch.setattr(sys, "argv", ["gpuzoo/__main__.py", "train", "mnist"])
    monkeypatch.setattr(sys, "orig_argv", ["python", *head, "train", "mnist"])
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    bootstrap.start(["train", "mnist"])
    assert started == [[sys.executable, *head, "train", "mnist"]]
    assert os.environ["PYTHONHASHSEED"] == "0"


def test_a_module_that_is_missing():
    found = workers.ask("gpuzoo.no_such_worker", {}, dict(os.environ))
    assert "No module named gpuzoo.no_such_worker" in found["error"]
    assert sys.executable in found["error"] or "ended with code 1" in found["error"]
