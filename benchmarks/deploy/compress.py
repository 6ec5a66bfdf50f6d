"""Compress a run of the recipe mnist in every way: size, latency, accuracy.

    python benchmarks/deploy/compress.py --data-dir DIR  # a TFDS folder

Trains the recipe with seed 0, runs `gpuzoo compress` on it, checks the results and
writes benchmarks/records/compress.json and the table of docs/howto/compress.md; with
--table only the table. Exit code 1 if a bound below does not hold.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECORD = ROOT / "benchmarks" / "records" / "compress.json"
PAGE = ROOT / "docs" / "howto" / "compress.md"
WORDS = (
    "--int8", "--width", "0.5", "0.25", "--sparsity", "0.8", "--student", "cnn",
    "--student-options", "filters=(8,16)", "dense=64",
)  # fmt: skip
# Form -> what must hold: (field, at least) and the points that it may lose.
BOUNDS = {
    "int8": ("times_smaller", 3.5, 0.3),
    "width-0.25": ("times_faster", 2.0, 0.5),
    "sparsity-0.8": ("times_smaller_gzip", 2.0, 0.3),
}


def gpuzoo(*words: str) -> dict:
    """Return the last line of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "gpuzoo", *words], stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        sys.exit(f"gpuzoo {' '.join(words)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def table(record: dict) -> str:
    """Return the table of the page."""
    from gpuzoo.cli.compress import cells

    found = record["found"]
    rows = [
        ["variant", "file", "times smaller", "file in gzip", "times smaller in gzip",
         "latency", "times faster", "accuracy", "points lost"],
        ["---"] + ["--:"] * 8,
        *(cells(row, found["metric"]) for row in found["forms"]),
    ]  # fmt: skip
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    trained = found["forms"][0]
    return (
        f"```\ngpuzoo compress mnist {shlex.join(WORDS[:6])} \\\n    "
        f"{shlex.join(WORDS[6:])}\n```\n\n"
        f"{lines}\n\n"
        f"Seed 0, {found['examples']} test images, {found['runtime']} "
        f"{found['libraries']['ai-edge-litert']}, {record['environment']['cpu']}, "
        f"{record['date']}; latency of {found['latency']['of']} "
        f"({found['latency']['turns']} turns). The run was trained for "
        f"{trained['epochs']} epoch and the variants for "
        f"{', '.join(_epochs(found))}: part of what they gain is more training."
    )


def _epochs(found: dict) -> list[str]:
    return [
        f"{row['epochs']} ({row['name']})"
        for row in found["forms"][1:]
        if not row["int8"]
    ]


def write_table(record: dict) -> None:
    pattern = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.S)
    text, count = pattern.subn(
        lambda found: f"{found[1]}{table(record)}\n{found[2]}", PAGE.read_text()
    )
    if not count:
        sys.exit(f"{PAGE.name} has no place for the table")
    PAGE.write_text(text)


def broken(found: dict) -> list[str]:
    """Return the bounds that do not hold."""
    rows = {row["name"]: row for row in found["forms"]}
    lines = []
    for name, (field, least, loss) in BOUNDS.items():
        row = rows.get(name)
        if row is None or row[field] < least or row["lost"] > loss:
            figures = row and {key: row[key] for key in (field, "lost")}
            lines.append(f"{name}: {field} >= {least}, lost <= {loss}: {figures}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="a prepared TFDS folder")
    parser.add_argument("--folder", help="keep the runs here, and continue them")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        write_table(json.loads(RECORD.read_text()))
        return 0

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    place = ["--data", "mnist"]
    place += ["--data-dir", args.data_dir] if args.data_dir else []
    with tempfile.TemporaryDirectory() as temporary:
        run = pathlib.Path(args.folder or temporary, "mnist")
        if not run.exists():
            gpuzoo("train", "mnist", *place, "--out", str(run))
        found = gpuzoo("compress", str(run), *WORDS)
    for row in found["forms"]:  # folders that are gone
        for name in ("run", "export"):
            row[name] = pathlib.Path(row[name]).name
    found |= {name: pathlib.Path(found[name]).name for name in ("run", "folder")}
    record = {
        "what": f"gpuzoo train mnist, gpuzoo compress mnist {' '.join(WORDS)}",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/deploy/compress.py --data-dir DIR",
        "environment": environment(),
        "code_sha256": code_sha256(),
        "found": found,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write_table(record)
    for line in (lines := broken(found)):
        print(f"NO: {line}", file=sys.stderr)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
