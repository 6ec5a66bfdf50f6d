"""Audit forged and honest runs, and compare the share caught with the stated one.

    python benchmarks/repeatability/audit.py    # about 20 minutes on two cores
    python benchmarks/repeatability/audit.py --forged 10 --out FILE

Trains runs of a small network on the digits, each with another seed. The forged ones
(forge.py) are forged in one of ten segments, in five ways in turn; one run for each
five is honest. Each is audited with all segments, and with random draws of three. It
writes benchmarks/records/audit.json (--out) after each run. Exit code 1 if an honest
run does not pass, if an audit of all segments does not find exactly the forged one, or
if a random audit differs that has not drawn it, or passes that has.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

from forge import KINDS, forged

import gpuzoo
from gpuzoo.files import write_atomically
from gpuzoo.repro.audit import would_pass
from gpuzoo.runs.code import code_sha256
from gpuzoo.runtime.environment import environment

RECORD = pathlib.Path(__file__).resolve().parent.parent / "records" / "audit.json"
SEGMENTS, DRAWN = 10, 3
HOW = {
    "recipe": "mnist", "data": "digits", "model": "mlp", "batch_size": 64, "epochs": 5,
    "model_options": ("units=(32,)", "dropout=0.2"), "augment": ("translate:1",),
    "log_every": 3, "digest_every": 4, "eval_every": 5,
    "keep_checkpoints": SEGMENTS - 1, "device": "cpu", "threads": 2,
    "precision": "float32",
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forged", type=int, default=100, help="forged runs; after "
                        "each five an honest one")  # fmt: skip
    parser.add_argument("--draws", type=int, default=1, help="random audits per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=RECORD)
    return parser.parse_args()


def audits(run: pathlib.Path, draws: int, chance: random.Random):
    """Return what an audit of all segments finds, and those of random ones."""
    whole = gpuzoo.audit(run, segments=SEGMENTS, seed=0)
    seeds = [chance.getrandbits(32) for _ in range(draws)]
    return whole, [gpuzoo.audit(run, segments=DRAWN, seed=seed) for seed in seeds]


def wrong(found: dict) -> list[int]:
    """Return the segments that an audit found wrong."""
    return [one["segment"] for one in found["drawn"] if one["differences"]]


class Measured:
    """The outcomes so far."""

    def __init__(self, args: argparse.Namespace, top: pathlib.Path):
        self.chance, self.draws = random.Random(args.seed), args.draws
        self.donor, self.out = top / "donor", top / "run"
        self.counts = collections.Counter()
        self.kinds = {kind: collections.Counter() for kind in KINDS}
        gpuzoo.train(out=str(self.donor), quiet=True, seed=999_999, **HOW)

    def honest(self, number: int) -> None:
        """Train, audit and verify a run that is not forged."""
        gpuzoo.train(out=str(self.out), quiet=True, seed=number, **HOW)
        whole, drawn = audits(self.out, self.draws, self.chance)
        every = (whole, *drawn, gpuzoo.verify(self.out))
        self.counts["honest"] += 1
        self.counts["honest_passed"] += all(
            one["verdict"] == "identical" for one in every
        )
        shutil.rmtree(self.out)

    def forged(self, number: int) -> None:
        """Train and audit a forged run."""
        kind = KINDS[number % len(KINDS)]
        segment = self.chance.randint(1, SEGMENTS)
        forged(kind, segment, self.donor, self.out, seed=1000 + number, **HOW)
        whole, drawn = audits(self.out, self.draws, self.chance)
        found = wrong(whole)
        self.kinds[kind]["runs"] += 1
        self.kinds[kind]["found"] += found == [segment] and not whole["faults"]
        for one in drawn:
            hit = segment in [each["segment"] for each in one["drawn"]]
            caught = one["verdict"] == "differs"
            self.counts["draws"] += 1
            self.counts["draws_with_the_forged_segment"] += hit
            self.counts["caught"] += caught
            self.counts["as_expected"] += caught == hit
        print(f"{number + 1}: {kind}, segment {segment}: {found}", flush=True)
        shutil.rmtree(self.out)

    def as_record(self) -> dict:
        kinds, counts = self.kinds.values(), self.counts
        return {
            "forged": sum(one["runs"] for one in kinds),
            "forged_found_with_all_segments": sum(one["found"] for one in kinds),
            **counts,
            "share_caught": round(counts["caught"] / max(1, counts["draws"]), 4),
            "share_stated": round(1 - would_pass(SEGMENTS, DRAWN)["1"], 4),
            "kinds": {name: dict(one) for name, one in self.kinds.items()},
        }

    @property
    def fine(self) -> bool:
        """Whether all honest runs passed, and the forged ones when not drawn only."""
        record = self.as_record()
        return (
            record["forged"] == record["forged_found_with_all_segments"]
            and self.counts["honest"] == self.counts["honest_passed"]
            and self.counts["draws"] == self.counts["as_expected"]
        )


def main() -> None:
    args = parse()
    begun, top = time.perf_counter(), pathlib.Path(tempfile.mkdtemp(prefix="audit-"))
    os.environ["GPUZOO_CACHE"] = str(top / "cache")
    about = {
        "what": "audits of forged and honest runs: all segments, and random draws",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/repeatability/audit.py --forged {args.forged} "
        f"--draws {args.draws} --seed {args.seed}",
        "environment": environment(),
        "code_sha256": code_sha256(),
        "segments": SEGMENTS,
        "drawn": DRAWN,
    }
    try:
        measured = Measured(args, top)
        for number in range(args.forged):
            if number % len(KINDS) == 0:
                measured.honest(number)
            measured.forged(number)
            seconds = round(time.perf_counter() - begun, 1)
            record = {**about, **measured.as_record(), "seconds": seconds}
            write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
    finally:
        shutil.rmtree(top)
    print(json.dumps(measured.as_record()))
    sys.exit(0 if measured.fine else 1)


if __name__ == "__main__":
    main()
