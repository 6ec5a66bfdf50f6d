"""What a person sees: on a terminal the JSON line stays out of the way."""

import json
import os
import pty
import subprocess
import sys

import pytest
from conftest import environment


def on_a_terminal(words, tmp_path) -> tuple[int, str]:
    """The exit code of a command, and what it wrote to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", *words], cwd=tmp_path, stdin=follower,
        stdout=follower, stderr=follower, env=environment(tmp_path),
    )  # fmt: skip
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(leader)
    return process.wait(60), written.decode()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--version"], "gpuzoo 0."),
        (["list"], "speednet"),
        (["info", "mlp"], "reference: "),
        (["doctor", "--quick"], "python"),
    ],
)
def test_no_json_line_on_a_terminal(words, shown, tmp_path):
    _, text = on_a_terminal(words, tmp_path)
    assert shown in text
    assert not [line for line in text.splitlines() if line.startswith("{")]


def test_the_json_line_where_it_is_asked_for(tmp_path, cli):
    code, text = on_a_terminal(["list", "cnn", "--json"], tmp_path)
    assert code == 0 and json.loads(text.splitlines()[-1])["models"]
    # No terminal: it is the last line, asked for or not.
    assert cli("list", "cnn").json == cli("list", "cnn", "--json").json
    for verb in ("train mnist", "resume", "verify", "diff", "bench mnist", "doctor",
                 "list", "info"):  # fmt: skip
        assert "--json" in cli(*verb.split(), "--help").stdout, verb


def test_a_training_on_a_terminal(tmp_path):
    words = "train mnist --data digits --model mlp --fast-dev-run --out run".split()
    code, text = on_a_terminal(words, tmp_path)
    assert code == 0 and "test accuracy" in text and '{"state"' not in text
    code, text = on_a_terminal(["verify", "run"], tmp_path)
    assert code == 0 and "identical" in text and "{" not in text
