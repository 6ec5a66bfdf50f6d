"""No verb connects to another machine, or writes outside of the current folder, the cache
and the folder for temporary files.

Each verb runs with an empty home folder, under Python's audit hook, and, where it is
installed, under strace, which also sees what libraries in C++ do.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import PIL.Image
import pytest
from conftest import environment, needs_tensorflow
from test_tracking import INSTALLED

from gpuzoo.cli.app import _VERBS

pytestmark = needs_tensorflow
DIGITS = ("--data", "digits", "--model", "mlp", "--precision", "float32")
# Keras writes its settings when it is imported, matplotlib the list of the fonts when it
# draws for the first time (SECURITY.md).
AT_HOME = re.compile(
    r"\.keras(/keras\.json)?|\.(config|cache)(/matplotlib)?|"
    r"\.cache/matplotlib/fontlist-[\w.]+\.json(\.matplotlib-lock)?"
)
# Verb -> the words after it; the verbs run in a folder with what `home` makes there.
WORDS = {
    "list": (),
    "info": ("mlp",),
    "train": ("mnist", *DIGITS, "--fast-dev-run", "--keep-checkpoints", "1", "--out",
              "run"),
    "resume": ("run",),
    "launch": ("--processes", "2", "train", "mnist_mlp", *DIGITS, "--backend", "jax",
               "--elastic", "--epochs", "1", "--quiet", "--out", "launched"),
    "sweep": ("mnist", *DIGITS, "--epochs", "1", "--grid", "batch_size=256,512",
              "--out", "sweep"),
    "runs": (".",),
    "verify": ("run",),
    "audit": ("run",),
    "report": ("run",),
    "compare": ("run", "signed", "--html", "compare.html"),
    "diff": ("run", "run"),
    "evaluate": ("run",),
    "predict": ("run", "digit.png"),
    "export": ("run", "--to", "onnx"),
    "compress": ("run", "--int8", "--to", "onnx", "--max-loss", "100"),
    "robustness": ("run", "--examples", "8", "--pgd-steps", "1", "--out", "robust"),
    "serve": ("run", "--port", "0"),
    "bench": ("mnist", *DIGITS[:4], "--precisions", "float32", "--backends", "tensorflow",
              "--xla", "off", "--rounds", "2", "--seconds", "0.05", "--batch-size", "8",
              "--out", "bench"),
    "check": ("mlp", "--backends", "tensorflow"),
    "compile": ("mnist", *DIGITS[:4], "--for", "t4"),
    "doctor": ("--quick",),
    "new-key": ("other",),
    "sign": ("run", "--key", "key"),
    "check-signature": ("signed", "--signed-by", "key.pub"),
    "encrypt": ("digit.png", "--key", "secret", "--out", "copy.enc"),
    "decrypt": ("digit.enc", "--key", "secret", "--out", "copy.png"),
}  # fmt: skip
HOOK = """
import os, sys

log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def hook(event, given):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        os.write(log, f"{event} {given[1]!r}\\n".encode())
    elif event == "socket.getaddrinfo":
        os.write(log, f"{event} {given[0]!r}\\n".encode())


sys.addaudithook(hook)
"""
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-e",
          "trace=connect,sendto,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,"
          "link,linkat,symlink,symlinkat,unlink,unlinkat", "-o")  # fmt: skip


class Watched:
    """A folder in which commands run, and what they do outside of it."""

    def __init__(self, top: pathlib.Path):
        self.top, self.work = top, top / "work"
        for name in ("home", "work", "cache", "tmp", "hook"):
            (top / name).mkdir()
        (top / "hook" / "sitecustomize.py").write_text(HOOK)
        self.env = {
            **environment(top), "HOME": str(top / "home"), "TMPDIR": str(top / "tmp"),
            "PYTHONPATH": str(top / "hook"), "PYTHONDONTWRITEBYTECODE": "1",
            "WATCH_LOG": str(top / "events"),
        }  # fmt: skip
        for name in [n for n in self.env if n.startswith("XDG_") or n == "KERAS_HOME"]:
            del self.env[name]
        self.traced = bool(shutil.which("strace"))

    def start(self, *words, program=("-m", "gpuzoo"), **options) -> subprocess.Popen:
        (self.top / "events").write_text("")
        before = (*STRACE, str(self.top / "calls")) if self.traced else ()
        return subprocess.Popen(
            [*before, sys.executable, *program, *words], cwd=self.work,
            env=self.env, text=True, stdout=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *words, **options) -> tuple[int, str]:
        """Run a command; return its exit code and its last line."""
        with open(self.top / "stderr", "w") as errors:
            with self.start(*words, stderr=errors, **options) as process:
                out, _ = process.communicate(timeout=600)
        return process.returncode, (out.splitlines() or [""])[-1]

    def stderr(self) -> str:
        return (self.top / "stderr").read_text()

    def outside(self) -> list[str]:
        """Return the connections to other machines and the writes elsewhere of the last
        command."""
        found = [
            line
            for line in (self.top / "events").read_text().splitlines()
            if not re.search(r"'(127\.[\d.]+|::1|localhost)'|\w '/|b'|None$", line)
        ]
        if self.traced:
            lines = (self.top / "calls").read_text(errors="replace").splitlines()
            found += [line for line in lines if self._leaves(line)]
        home = self.top / "home"
        made = {path.relative_to(home).as_posix() for path in home.rglob("*")}
        left = [name for name in sorted(made) if not AT_HOME.fullmatch(name)]
        return found + [f"in the home folder: {name}" for name in left]

    def _leaves(self, line: str) -> bool:
        """Whether a system call reaches another machine, or changes another folder."""
        if re.search(r" (connect|sendto)\(", line):
            return "AF_INET" in line and not re.search(
                r'inet_addr\("127\.|inet_pton\(AF_INET6, "(::1|::ffff:127\.[\d.]+)"',
                line,
            )
        if re.search(r" open(at)?\(", line) and not re.search(
            r"O_(WRONLY|RDWR|CREAT|TRUNC)", line
        ):
            return False
        if re.search(r"= -1 E|resumed>|\?$", line):
            return False
        # Relative paths are those of the current folder and of folders opened before.
        paths = re.findall(r'"(/[^"]*)"', line)
        inside = (*(f"{self.top}/{name}" for name in ("work", "cache", "tmp", "events")),
                  "/dev/", "/proc/")  # fmt: skip
        home = f"{self.top}/home/"
        return any(
            not path.startswith(inside)
            and not AT_HOME.fullmatch(path.removeprefix(home))
            for path in paths
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run, a signed copy of it, an image and keys."""
    made = Watched(tmp_path_factory.mktemp("watched"))
    made.trained = made.run("train", *WORDS["train"])
    assert made.outside() == []
    PIL.Image.linear_gradient("L").resize((28, 28)).save(made.work / "digit.png")
    shutil.copytree(made.work / "run", made.work / "signed")
    from gpuzoo.deploy import encryption, keys, signing

    keys.check_installed()
    with contextlib.chdir(made.work):
        keys.new_key("key", "signing")
        keys.new_key("secret", "encryption")
        signing.sign("signed", "key", None)
        secret = keys.secret(None, "secret", new=True)
        encryption.encrypt("digit.png", "digit.enc", secret)
    return made


def test_every_verb_is_watched():
    assert set(WORDS) == set(_VERBS)


def test_the_watcher_sees_what_it_is_for(tmp_path):
    """A connection (to an address that leads nowhere), and files elsewhere."""
    made = Watched(tmp_path)
    (made.work / "program.py").write_text(
        "import pathlib, socket\n"
        "socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))\n"
        f"pathlib.Path({str(tmp_path / 'elsewhere')!r}).write_text('x')\n"
        "pathlib.Path('here').write_text('x')\n"
        "pathlib.Path.home().joinpath('.id').write_text('x')\n"
        "socket.create_server(('127.0.0.1', 0))\n"
        "try: socket.create_connection(('127.0.0.1', 9))\n"
        "except OSError: pass\n"
    )
    assert made.run(program=("program.py",))[0] == 0, made.stderr()
    found = "\n".join(made.outside())
    assert "socket.connect ('192.0.2.1', 9)" in found and "folder: .id" in found
    if made.traced:
        assert 'inet_addr("192.0.2.1")' in found and "/elsewhere" in found
        assert len(found.splitlines()) == 5  # both ways to see the first and the last
    assert "127.0.0.1" not in found and '"here"' not in found


@pytest.mark.parametrize("verb", [verb for verb in WORDS if verb != "serve"])
def test_a_verb_stays_on_this_machine(verb, home):
    code, last = home.trained if verb == "train" else home.run(verb, *WORDS[verb])
    told = home.stderr()
    if code == 2 and "pip install" in told:
        assert home.outside() == []
        pytest.skip(f"needs an extra: {told.splitlines()[-1]}")
    # doctor and compile find faults of the machine and of the recipe.
    assert code == 0 or (code == 1 and verb in ("doctor", "compile")), told
    assert json.loads(last)
    assert home.outside() == []


def test_trackers_stay_on_this_machine(home):
    """With their own defaults: those that are installed."""
    words = (*WORDS["train"][:-1], "tracked", "--track", *INSTALLED)
    code, last = home.run("train", *words)
    assert code == 0 and json.loads(last)["run_dir"] == "tracked", home.stderr()
    assert home.stderr().count("\ntracking: ") == len(INSTALLED), home.stderr()
    assert home.outside() == []


def test_serve_stays_on_this_machine(home):
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    with open(home.top / "stderr", "w") as errors:
        process = home.start("serve", *WORDS["serve"], stderr=errors)
        deadline = time.monotonic() + 400
        while not (url := re.search(r"on (http://\S+)", home.stderr())):
            assert process.poll() is None and time.monotonic() < deadline, home.stderr()
            time.sleep(0.1)
        code = f"import urllib.request as r; r.urlopen({url[1] + '/health'!r}).read()"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        child = process.pid
        if home.traced:
            tasks = pathlib.Path(f"/proc/{child}/task/{child}/children").read_text()
            child = int(tasks.split()[0])
        os.kill(child, signal.SIGTERM)
        process.communicate(timeout=60)
    assert home.outside() == []
