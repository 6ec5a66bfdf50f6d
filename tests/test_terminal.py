"""What a person sees: on a terminal the JSON line stays out of the way."""

import json
import os
import pty
import subprocess
import sys

import pytest
from conftest import environment

from gpuzoo.report.progress import Screen


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


@pytest.mark.parametrize("verb", ["list", "doctor"])
def test_quiet_prints_the_json_line_alone(verb, cli):
    done = cli(verb, "--quiet", *["--quick"] * (verb == "doctor"))
    assert len(done.stdout.splitlines()) == 1 and done.json and not done.stderr


def test_no_escape_codes_and_no_broken_figures_in_a_pipe(cli, tmp_path):
    done = cli("list", env={"COLUMNS": "", "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout
    for name, told in done.json["figures"].items():
        for figure in (v for k, v in told.items() if k not in ("on", "data")):
            assert figure in done.stdout, (name, figure)
    _, text = on_a_terminal(["list"], tmp_path)
    assert "\x1b[" in text  # the heads stand out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resume"], "RUN The run folder; see gpuzoo resume --help"),
        (
            ["verify", "a", "--stepps", "3"],
            "unknown option --stepps; nearest: --steps; see gpuzoo verify --help",
        ),
        (["train", "mnist", "--precision", "int3"], "invalid choice 'int3'"),
        (["train", "mnist", "--epochs", "many"], "--epochs: must be an integer"),
        (["train", "mnist", "--lr", "3"], "unknown option --lr; nearest: --learning"),
    ],
)
def test_wrong_use_is_one_plain_line_on_a_terminal_too(words, told, tmp_path):
    """tyro draws a coloured frame around it there."""
    code, text = on_a_terminal(words, tmp_path)
    (line,) = text.splitlines()
    assert code == 2 and line.startswith("gpuzoo: error: ") and told in line
    assert not set("\x1b│╭╰") & set(line) and "  " not in line


def test_a_training_on_a_terminal(tmp_path):
    words = "train mnist --data digits --model mlp --fast-dev-run --out run".split()
    code, text = on_a_terminal(words, tmp_path)
    assert code == 0 and "test accuracy" in text and '{"state"' not in text
    code, text = on_a_terminal(["verify", "run"], tmp_path)
    assert code == 0 and "identical" in text and "{" not in text


def test_a_resumed_run_shows_no_speed_before_it_has_one(capsys):
    """Its first row is a look at what the checkpoint holds."""
    screen = Screen()
    figures = {"train": ("loss",), "test": ("loss",)}
    screen.watch("start", {"batch": 8, "figures": figures, "steps": 4, "epochs": 2,
                           "parameters": 10, "first": 0})  # fmt: skip
    for step in (2, 4):
        screen.watch("train", {"epoch": step // 2, "step": step, "loss": 0.5})
        screen.watch("test", {"epoch": step // 2, "step": step, "loss": 0.25})
        screen.watch("progress", {"step": 3, "seconds": 2.0})
    *_, first, second = capsys.readouterr().err.splitlines()
    assert first.split() == ["1", "2", "0.5000", "0.2500", "-"]
    assert second.split() == ["2", "4", "0.5000", "0.2500", "12"]
