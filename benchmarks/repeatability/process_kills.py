"""Kill and stop processes of a training at random, and compare the bits.

    python benchmarks/repeatability/process_kills.py  # 50 kills, 10 cuts: an hour
    python benchmarks/repeatability/process_kills.py --kills 3 --cuts 1 --out FILE

Each trial starts an elastic training by `gpuzoo launch` in two or four processes, and
at a random moment ends one of them: by SIGKILL, or, as a host that
is cut off, by SIGSTOP, after which it neither answers nor closes its connections. The
run must be started again and end with the bits of a training that nothing happened to,
within the time limit. Kills and cuts follow from --seed.

Writes benchmarks/records/process_kills.json (--out) after each trial, and continues
from there. Exit code 1 if a run hangs, fails, or has other bits.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
WORDS = [
    "train", "mnist_mlp", "--data", "digits", "--backend", "jax", "--device", "cpu",
    "--elastic", "--epochs", "40", "--checkpoint-every", "20", "--augment",
    "translate:1", "--model-options", "units=(32,)", "dropout=0.2", "--quiet",
]  # fmt: skip
LIMIT = 600  # seconds of a trial


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE / "records" / "process_kills.json")  # fmt: skip
    return parser.parse_args()


def environment(top: pathlib.Path) -> dict[str, str]:
    return {**os.environ, "GPUZOO_CACHE": str(top / "cache")}


def start(words: list[str], top: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", *words], cwd=top, env=environment(top),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def process_of(run: str, rank: int, deadline: float) -> int:
    """Return the id of the process of a rank that trains into a run folder."""
    while time.monotonic() < deadline:
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            place = pathlib.Path("/proc", pid)
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                variables = (place / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            named = run.encode() in words and b"--distributed" in words
            if named and f"RANK={rank}".encode() in variables:
                return int(pid)
        time.sleep(0.02)
    raise TimeoutError(f"no process of rank {rank}")


def trial(number: int, kind: str, seed: int, wanted: str, usual: float) -> dict:
    """Return the row of one trial."""
    chance = random.Random(f"{seed} {kind} {number}")
    processes, run = chance.choice((2, 4)), f"{kind}-{number}"
    rank, after = chance.randrange(processes), chance.uniform(0.1, 1.0) * usual
    row = {
        "kind": kind, "number": number, "processes": processes, "rank": rank,
        "after_seconds": round(after, 2),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        top = pathlib.Path(folder)
        words = ["launch", "--processes", str(processes), *WORDS, "--out", run]
        begun = time.monotonic()
        launched = start(words, top)
        try:
            pid = process_of(run, rank, begun + LIMIT)
            time.sleep(max(0.0, begun + after - time.monotonic()))
            step = max(
                (int(path.stem[5:]) for path in top.glob(f"{run}/checkpoints/step-*")),
                default=0,
            )
            hit = launched.poll() is None
            if hit:
                number_of = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
                try:
                    os.kill(pid, number_of)
                except ProcessLookupError:
                    hit = False
            row |= {"hit": hit, "checkpoint": step}
            _, said = launched.communicate(timeout=LIMIT)
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            os.killpg(launched.pid, signal.SIGKILL)
            return {**row, "verdict": f"hangs: {error}"[:200]}
        row["seconds"] = round(time.monotonic() - begun, 1)
        begun_anew = "restarting from the last checkpoint" in said
        row["restarted"] = begun_anew
        record = top / run / "run.json"
        if launched.returncode or not record.exists():
            # It had not begun: there is nothing to go on with, and launch says so.
            early = hit and step == 0 and not record.exists()
            return {**row, "verdict": "had not begun" if early else said[-300:]}
        found = json.loads(record.read_text())["weights_sha256"]
        return {**row, "verdict": "same bits" if found == wanted else "other bits"}


def main() -> None:
    args = parse()

    from gpuzoo.files import write_atomically
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment as facts

    with tempfile.TemporaryDirectory() as folder:
        top, begun = pathlib.Path(folder), time.monotonic()
        whole = start([*WORDS, "--out", "whole"], top)
        _, said = whole.communicate(timeout=LIMIT)
        if whole.returncode:
            sys.exit(said)
        usual = 1.5 * (time.monotonic() - begun)
        wanted = json.loads((top / "whole/run.json").read_text())["weights_sha256"]
    record = {
        "what": "trainings of several processes of which one was killed or cut off",
        "command": "python benchmarks/repeatability/process_kills.py --kills "
        f"{args.kills} --cuts {args.cuts} --seed {args.seed}",
        "date": time.strftime("%Y-%m-%d"), "environment": facts(), "seed": args.seed,
        "weights_sha256": wanted, "trials": [],
    }  # fmt: skip
    if args.out.exists():
        old = json.loads(args.out.read_text())
        if old["weights_sha256"] == wanted and old["seed"] == args.seed:
            record["trials"] = old["trials"]
    done = {(row["kind"], row["number"]) for row in record["trials"]}
    for kind, count in (("kill", args.kills), ("cut", args.cuts)):
        for number in range(count):
            if (kind, number) in done:
                continue
            row = trial(number, kind, args.seed, wanted, usual)
            record["trials"].append({**row, "code_sha256": code_sha256()})
            print(row, file=sys.stderr, flush=True)
            write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
    good = ("same bits", "had not begun")
    sys.exit(any(row["verdict"] not in good for row in record["trials"]))


if __name__ == "__main__":
    os.environ.pop("KERAS_BACKEND", None)
    main()
