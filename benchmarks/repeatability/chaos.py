"""Kill trainings at random times, resume them, and compare the results bit for bit.

    python benchmarks/repeatability/chaos.py  # an hour on two cores
    python benchmarks/repeatability/chaos.py --kills 8 \\
        --modes classify-tensorflow-float32 --seed 1 \\
        --add                                  # adds to the record
    python benchmarks/repeatability/chaos.py --kills 20 --backends jax \\
        --device gpu --out FILE

Writes benchmarks/records/chaos.json (--out) after each run. A mode is a task on a
backend in a precision; classification gets three times the kills of the others. Each
mode trains once without a kill. Its other runs are killed up to 6 times each, by
SIGKILL at a random time between the start of the process and its expected end
(`instant`), or by themselves at a random call that changes a file (die_at.py), and then
left to finish. After a kill the same command is run again if there is no run yet,
otherwise `gpuzoo resume`. In a fourth of the runs `--out` is an existing empty folder;
half of the runs have an empty cache of their own. A mode continues until a kill has hit
a checkpoint.

At the end every file must have the bytes of the run that was never killed. A run that
cannot be resumed is `lost`, one with a different byte `different`, one that resumes
from before its newest checkpoint `set_back`: its folder is kept, and the exit code is
1.
"""

import argparse
import collections
import concurrent.futures
import json
import math
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from die_at import CALLS

from gpuzoo.errors import GpuzooError
from gpuzoo.files import write_atomically
from gpuzoo.runs.code import code_sha256
from gpuzoo.runs.record import read_run
from gpuzoo.runtime.environment import environment

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "chaos.json"
DIE_AT = HERE / "repeatability" / "die_at.py"
WORDS = [
    "--threads", "2", "--log-every", "7", "--digest-every", "9",
    "--eval-every", "2", "--quiet", "--out", "run",
]  # fmt: skip
# Task -> recipe and options: small networks on small data, with every random feature.
TASKS = {
    "classify": "mnist --data digits --augment translate:1 --model-options dropout=0.3",
    "adversarial": "mnist_gan --data digits --batch-size 256 --epochs 6 "
    "--model-options filters=(4,8) latents=8 penalty=0.1",
    "autoencode": "mnist_vae --data digits --batch-size 256 --epochs 6 "
    "--model-options filters=(4,8) dense=32",
    "classify_audio": "tones --epochs 1 --batch-size 128",
    "diffusion": "mnist_diffusion --data digits --batch-size 256 --epochs 4 "
    "--model-options filters=(8,) blocks=1",
    "detect": "digit_detection --data digits --batch-size 256 --epochs 6 "
    "--model-options filters=(4,8,8) depth=1",
    "distill": "distill_mnist --data digits --batch-size 256 --epochs 6 "
    "--augment translate:1",
    "embed": "glyphs --epochs 1 --batch-size 200 "
    "--model-options filters=(4,8) dimensions=8",
    "forecast": "forecast --batch-size 256 --epochs 2 --model-options units=8",
    "segment": "segmentation --batch-size 200 --epochs 3 "
    "--model-options filters=4 depth=2",
    "video_prediction": "moving_mnist --data digits --batch-size 256 --epochs 4 "
    "--model-options filters=(4,)",
}
# Backend, precision, XLA, and for classification the epochs of 5 steps.
WAYS = {
    "tensorflow-float32": ("tensorflow", "float32", "off", 24),
    "tensorflow-bfloat16": ("tensorflow", "mixed_bfloat16", "off", 16),
    "tensorflow-float16": ("tensorflow", "mixed_float16", "off", 16),
    "tensorflow-xla-bfloat16": ("tensorflow", "mixed_bfloat16", "on", 12),
    "jax-float32": ("jax", "float32", "auto", 10),
    "jax-bfloat16": ("jax", "mixed_bfloat16", "auto", 8),
    "jax-float16": ("jax", "mixed_float16", "auto", 8),
}
# The other tasks: both backends, float32 and a mixed precision.
FEW = ("tensorflow-float32", "tensorflow-float16", "jax-float32", "jax-bfloat16")
MODES = {
    f"{task}-{way}": (task, way)
    for task in TASKS
    for way in (WAYS if task == "classify" else FEW)
}
SHARES = {"classify": 3}  # of the kills; the other tasks: 1
COUNTED = ("runs", "kills", "met_a_checkpoint", "lost", "different", "set_back")
FINAL = ("state", "steps", "epochs", "metrics", "weights_sha256", "files", "data")
HANGS = 900.0  # seconds


class Fault(GpuzooError):
    """A run that is lost, different or set_back, with the reason."""


class Run:
    """One run, started repeatedly in its own folder."""

    def __init__(self, words: list[str], place: pathlib.Path, cache: pathlib.Path):
        self.words, self.place, self.path = words, place, place / "run"
        self.environment = {**os.environ, "GPUZOO_CACHE": str(cache)}
        self.begun, self.saved = False, 0  # the step of the newest checkpoint
        self.resumed: list[int] = []  # steps that it resumed from
        place.mkdir(parents=True)

    def start(self, *program: str, until: float = HANGS) -> bool:
        """Start or resume; kill after `until` seconds. True: the run has finished."""
        words = ["resume", "run", "--quiet"] if self.begun else self.words
        command = [sys.executable, "-P", *(program or ("-m", "gpuzoo")), *words]
        with open(self.place / "stderr.txt", "a+") as stderr:
            try:
                code = subprocess.run(
                    command, cwd=self.place, env=self.environment, check=False,
                    stdout=subprocess.DEVNULL, stderr=stderr, timeout=until,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:  # killed
                code = -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                stderr.seek(0)
                raise Fault(f"lost: {stderr.read().splitlines()[-1:]}")
        self._look()
        return code == 0

    def _look(self) -> None:
        """Check the run folder for loss of progress."""
        if not (self.begun or (self.path / "run.json").exists()):
            return
        self.begun, record = True, read_run(self.path)
        files = self.path.glob("checkpoints/step-*.safetensors")
        newest = max((int(file.stem[5:]) for file in files), default=0)
        if record["state"] == "finished":
            newest = max(newest, self.saved)  # it may remove its checkpoints
        steps = [entry["step"] for entry in record.get("resumed", [])]
        lowest = min([newest, *steps[len(self.resumed) :]])
        if lowest < self.saved:
            raise Fault(f"set_back: from step {self.saved} to {lowest}")
        self.saved, self.resumed = newest, steps

    def found(self) -> str:
        """Return what a kill has interrupted."""
        if not self.begun:
            return "no run"
        if read_run(self.path)["state"] == "finished":
            return "a finished run"
        if (self.path / "weights.safetensors").exists():
            return "weights"
        return "a checkpoint" if self.saved else "no checkpoint"

    def compare(self, whole: "Run") -> None:
        """Raise Fault if anything but the history of a run differs."""
        mine, other = _everything(self.path), _everything(whole.path)
        names = sorted(mine.keys() | other.keys())
        if wrong := [name for name in names if mine.get(name) != other.get(name)]:
            raise Fault(f"different: {', '.join(wrong)}")


def _everything(path: pathlib.Path) -> dict:
    record, files = read_run(path), set(path.iterdir()) - {path / "run.json"}
    return {
        **{f"run.json: {key}": record[key] for key in FINAL},
        **{file.name: file.is_file() and file.read_bytes() for file in files},
    }


class Mode:
    """All runs of one mode and their outcomes."""

    def __init__(
        self, name: str, top: pathlib.Path, chance: random.Random, device: str
    ):
        self.name, self.top, self.chance = name, top / name, chance
        self.begun, self.runs, self.faults = time.perf_counter(), 0, []
        self.kinds, self.found = collections.Counter(), collections.Counter()
        self.resumed: list[int] = []
        task, way = MODES[name]
        backend, precision, xla, epochs = WAYS[way]
        self.words = [
            "train", *TASKS[task].split(), *WORDS, "--backend", backend,
            "--device", device, "--precision", precision, "--xla", xla,
            "--checkpoint-every", "3" if backend == "jax" else "4",
        ]  # fmt: skip
        if task == "classify":
            self.words += ["--epochs", str(epochs)]
        self.whole = Run(self.words, self.top / "whole", self.top / "cache")
        counts = self.whole.place / "counts.json"
        self.whole.start(str(DIE_AT), ".", "count", str(counts), "-")
        self.calls = json.loads(counts.read_text())
        record = read_run(self.whole.path)
        self.device_name = record["runtime"]["device_name"]
        self.steps, seconds = record["steps"], record["seconds"]
        self.inside = seconds["train"] + seconds["evaluate"] + seconds["checkpoint"]
        self.outside = time.perf_counter() - self.begun - self.inside

    def torment(self, kills: int) -> None:
        """Do one run with up to so many kills; let it finish, compare and remove it."""
        self.runs += 1
        place = self.top / f"{self.runs:03d}"
        cache = self.chance.choice((self.top / "cache", place / "cache"))
        run, history = Run(self.words, place, cache), []
        if self.chance.random() < 0.25:
            run.path.mkdir()
        try:
            while len(history) < kills and not self._kill(run, history):
                self.found[run.found()] += 1
                history[-1] += f" -> {run.found()}, step {run.saved}"
                print(self.name, f"{self.runs}.{len(history)}", history[-1], flush=True)
            if not run.start():  # harmless if it has finished
                raise Fault(f"lost: hangs for {HANGS} seconds")
            run.compare(self.whole)
            shutil.rmtree(place)
        except GpuzooError as fault:
            what = f"{'' if isinstance(fault, Fault) else 'lost: '}{fault}"
            print(self.name, self.runs, f"{what}; kept in {place}", flush=True)
            self.faults.append({"run": self.runs, "what": what, "kills": history})
        self.resumed += run.resumed

    def _kill(self, run: Run, history: list[str]) -> bool:
        """Run and kill a process. True: it has ended before."""
        verb, program = "resume" if run.begun else "train", ()
        until, left = HANGS, 1 - run.saved / self.steps
        if self.chance.random() < 0.5:
            until = self.chance.uniform(0, self.outside + left * self.inside)
            kind, place = f"{verb} instant", f"{until:.1f} s"
        else:
            call = self.chance.choice(CALLS)
            moments = ["before", "after", "half"][: 2 + (call == "write")]
            moment = self.chance.choice(moments)
            # More often near the start, so that steps are left for later kills.
            share = self.chance.random() ** self.chance.choice((1, 3))
            number = 1 + int(share * max(1, left * self.calls[call]))
            program = str(DIE_AT), ".", call, str(number), moment
            kind, place = f"{verb} {moment} {call}", str(number)
        history.append(f"{kind} {place}")
        ended = run.start(*program, until=until)
        self.kinds[kind] += not ended
        return ended

    def met_a_checkpoint(self) -> int:
        return self.found["a checkpoint"] + self.found["weights"]

    def as_record(self) -> dict:
        faults = [fault["what"].partition(":")[0] for fault in self.faults]
        steps = [step for step in self.resumed if step] or [0]
        return {
            "runs": self.runs,
            "kills": self.kinds.total(),
            "met_a_checkpoint": self.met_a_checkpoint(),
            "steps": self.steps,
            "resumed_at_different_steps": len(set(steps)),
            "resumed_at": [min(steps), statistics.median(steps), max(steps)],
            **{what: faults.count(what) for what in ("lost", "different", "set_back")},
            "code_sha256": code_sha256(),
            "found": dict(self.found),
            "faults": list(self.faults),
        }


def carry_out(mode: Mode, kills: int, keep) -> None:
    """Do all runs of one mode; `keep` is called after each."""
    while len(mode.faults) < 9:
        left = kills - mode.kinds.total()
        if left <= 0 and mode.met_a_checkpoint():
            break
        mode.torment(min(max(left, 2), mode.chance.randint(3, 6)))
        keep(mode)
    print(mode.name, json.dumps(mode.as_record()), flush=True)


def added(old: dict, new: dict) -> dict:
    """Merge the records of one mode from two runs of this script."""
    counts = {key: old[key] + new[key] for key in COUNTED}
    found = collections.Counter(old["found"]) + collections.Counter(new["found"])
    return {**new, **counts, "found": found, "faults": old["faults"] + new["faults"]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=120, help="total over all modes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all")
    parser.add_argument("--backends", nargs="+", choices=("tensorflow", "jax"),
                        default=("tensorflow", "jax"))  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--at-once", type=int, default=2, help="modes at once")
    parser.add_argument("--add", action="store_true", help="add to the record")
    parser.add_argument("--out", type=pathlib.Path, default=RECORD)
    args = parser.parse_args()
    args.modes = [
        name for name in args.modes or MODES if WAYS[MODES[name][1]][0] in args.backends
    ]
    if not args.modes:
        parser.error(f"--modes: none of them is on {' or '.join(args.backends)}")
    return args


def record_of(modes: dict, kinds: dict, device: str, args, before) -> dict:
    """Return the record: the outcomes by mode, with those of an earlier record."""
    kinds = sum(kinds.values(), collections.Counter())
    words = ["FILE" if word == str(args.out) else word for word in sys.argv[1:]]
    commands = [" ".join(["python benchmarks/repeatability/chaos.py", *words])]
    if before:
        old = before["modes"]
        modes = old | {k: added(old[k], m) if k in old else m for k, m in modes.items()}
        kinds += collections.Counter(before["total"]["kinds"])
        commands = [*before["commands"], *commands]
    total = {key: sum(mode[key] for mode in modes.values()) for key in COUNTED}
    return {
        "what": "runs killed at random instants against runs never killed",
        "date": time.strftime("%Y-%m-%d"),
        "commands": commands,
        "environment": environment(),
        "device": device,
        "code_sha256": code_sha256(),
        "total": {**total, "kinds": dict(sorted(kinds.items()))},
        "modes": modes,
    }


def main() -> None:
    args = parse()
    before = json.loads(args.out.read_text()) if args.add else None
    top = pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
    shares = [SHARES.get(MODES[name][0], 1) for name in args.modes]
    kills = [math.ceil(args.kills * share / sum(shares)) for share in shares]
    modes, kinds, lock = {}, {}, threading.Lock()

    def keep(mode: Mode) -> None:
        with lock:
            modes[mode.name], kinds[mode.name] = mode.as_record(), +mode.kinds
            record = record_of(modes, kinds, mode.device_name, args, before)
            write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())

    def one(name: str, count: int) -> None:
        chance = random.Random(f"{args.seed} {name}")
        carry_out(Mode(name, top, chance, args.device), count, keep)

    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(one, args.modes, kills))  # raises what they raised
    print(json.dumps({key: sum(m[key] for m in modes.values()) for key in COUNTED}))
    if any(mode["faults"] for mode in modes.values()):
        sys.exit(1)
    shutil.rmtree(top)


if __name__ == "__main__":
    main()
