"""Test whether level portable gives the same bits whatever the processor says it is.

    python benchmarks/repeatability/portable.py  # every model
    python benchmarks/repeatability/portable.py --models cnn gru --emulator Haswell
    python benchmarks/repeatability/portable.py --backends jax --steps 2 --batch 10
    python benchmarks/repeatability/portable.py --price  # on a quiet machine

Every model of the catalogue (large ones narrowed, as repeatable.py --small does) does a
few steps in fresh processes, once as it is and once under each setting that can be
forced on this machine: NumPy and the C library without AVX-512 code, on one core, and
other answers of the CPUID instruction (cpuid.c), by which libraries choose their code
and the sizes of their blocks: vendor, instruction sets, caches, number of cores. The C
library has asked before the trap begins and keeps its own choice. What
cannot be forced is how an instruction rounds: approximations (rsqrt, reciprocal) must
not be used at all. With --emulator, each of QEMU's processors is a setting, too, and
there they are rounded in another way; it is some twenty times slower.

Writes benchmarks/records/portable.json (--out) after each setting, with the digest of
each model; models that are refused or fail are listed apart (not_compared). Earlier
digests of a backend are kept, of other models and settings, if versions, steps and
batch are the same. Exit code 1 if a model differs from the first setting, or fails.
--price instead measures the time of a step against levels repeatable and fast, in
turns, and adds it to the record.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from matrix import small_digits
from repeatable import run_worker, trained

HERE = pathlib.Path(__file__).resolve().parent
AMD = {"CPUID_VENDOR": "amd", "CPUID_FAMILY": "25", "CPUID_L1": "32"}
INTEL = {"CPUID_VENDOR": "intel", "CPUID_FAMILY": "6"}
# Answers of CPUID: the processor -> variables of cpuid.c. It cannot add instructions.
PROCESSORS = {
    "AMD family 25 model 1 (AVX2)": {
        **AMD, "CPUID_MODEL": "1", "CPUID_ISA": "avx2", "CPUID_L2": "512",
        "CPUID_L3": "32768", "CPUID_CORES": "8",
    },
    "AMD family 25 model 17": {
        **AMD, "CPUID_MODEL": "17", "CPUID_L2": "1024", "CPUID_L3": "32768",
        "CPUID_CORES": "8",
    },
    "Intel family 6 model 63 (AVX2)": {
        **INTEL, "CPUID_MODEL": "63", "CPUID_ISA": "avx2", "CPUID_L1": "32",
        "CPUID_L2": "256", "CPUID_L3": "20480", "CPUID_CORES": "8",
    },
    "Intel family 6 model 151 (AVX2)": {
        **INTEL, "CPUID_MODEL": "151", "CPUID_ISA": "avx2", "CPUID_L1": "48",
        "CPUID_L2": "1280", "CPUID_L3": "12288", "CPUID_CORES": "8",
    },
    "Intel family 6 model 85 without VNNI": {
        **INTEL, "CPUID_MODEL": "85", "CPUID_ISA": "avx512", "CPUID_L1": "32",
        "CPUID_L2": "1024", "CPUID_L3": "36608",
    },
    "Intel family 6 model 207": {
        **INTEL, "CPUID_MODEL": "207", "CPUID_L1": "48", "CPUID_L2": "2048",
        "CPUID_L3": "266240", "CPUID_CORES": "32",
    },
}  # fmt: skip
OTHERS = {
    "NumPy without AVX-512": {
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"
    },
    "C library without AVX-512": {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ"
    },
}
FIRST = "as it is"
PRICED = {"tensorflow": ("cnn", "resnet20", "lstm", "mlp"),
          "jax": ("cnn", "mlp", "gru", "resnet20")}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--backends", nargs="+", choices=("tensorflow", "jax"),
                        default=("tensorflow",))  # fmt: skip
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--settings", metavar="NAME", nargs="+", help="default: all")
    parser.add_argument("--emulator", metavar="PROCESSOR", nargs="+", default=(),
                        help="QEMU's names, such as Haswell or EPYC")  # fmt: skip
    parser.add_argument("--price", action="store_true")
    parser.add_argument("--rounds", type=int, default=7, help="of --price")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE.parent / "records" / "portable.json")  # fmt: skip
    return parser.parse_args()


# --- settings -------------------------------------------------------------------------


def cpuid_library(folder: str) -> str | None:
    """Compile cpuid.c; None where it cannot run."""
    try:
        known = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    compiler = shutil.which("cc")
    if compiler is None or "cpuid_fault" not in known.split():
        return None
    path = f"{folder}/cpuid.so"
    source = str(HERE / "cpuid.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", path, source]
    subprocess.run(command, check=True)
    return path


def settings(folder: str) -> dict[str, dict[str, str]]:
    """Return name -> variables of what can be forced here; the first is as it is."""
    found = {FIRST: {}, **OTHERS}
    if library := cpuid_library(folder):
        for name, answers in PROCESSORS.items():
            found[f"CPUID of {name}"] = {**answers, "LD_PRELOAD": library}
    return found


def on_one_core(job: dict) -> dict:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of the worker, too
    try:
        return run_worker(job, **clean({}))
    finally:
        os.sched_setaffinity(0, cores)


def job_of(backend: str, models: list[str], args, data: str) -> dict:
    return {
        "data": data, "steps": args.steps, "batch": args.batch, "small": True,
        "models": models, "seeds": {"digest": 0},
        "runtime": {"backend": backend, "level": "portable"},
    }  # fmt: skip


def digests(rows: dict) -> tuple[dict[str, str], dict[str, str]]:
    """Return model -> digest, and of the others model -> why there is none."""
    found = {name: row["digest"] for name, row in rows.items() if row.get("digest")}
    why = {
        name: f"refused: {row['refused']}" if row.get("refused")
        else f"failed: {row['failed']}"
        for name, row in rows.items()
        if name not in found
    }  # fmt: skip
    return found, why


def emulated(processor: str, job: dict) -> dict:
    """Return the rows of a worker under QEMU."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        sys.exit("--emulator: QEMU's user mode (qemu-x86_64) is not installed")
    worker = [sys.executable, str(HERE / "repeatable.py"), "--worker", json.dumps(job)]
    done = subprocess.run(
        [emulator, "-cpu", processor, *worker],
        stdout=subprocess.PIPE, text=True, check=False, env=clean({}),
    )  # fmt: skip
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    rows = {row.pop("model"): row for row in lines}
    missing = {"failed": f"the process ended before it, with code {done.returncode}"}
    return {name: rows.get(name, missing) for name in job["models"]}


def clean(variables: dict) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0", **variables}


# --- the comparison -------------------------------------------------------------------


def compare(models: list[str], args, record: dict, keep) -> bool:
    """Fill the record; return whether every digest is that of the first setting."""
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        data = small_digits(folder, args.steps, args.batch)
        for backend in args.backends:
            job = job_of(backend, models, args, data)
            place = place_of(record, backend, args)
            forced = {
                name: lambda v=variables: run_worker(job, **clean(v))  # noqa: B023
                for name, variables in settings(folder).items()
            }
            forced["on one core"] = lambda: on_one_core(job)  # noqa: B023
            for processor in args.emulator:
                forced[f"QEMU {processor}"] = lambda p=processor: emulated(p, job)  # noqa: B023
            for name, run in forced.items():
                if name not in (args.settings or forced):
                    continue
                found, why = digests(run())
                fill(place, name, found, why)
                told = place["settings"][name]
                differ = [m for m in told["differ"] if m in models]
                failed = [m for m, reason in why.items() if reason[:6] == "failed"]
                equal &= not (differ or failed)
                print(f"{backend}, {name}: {len(found)} compared, differ: {differ}, "
                      f"not compared: {sorted(why)}", flush=True)  # fmt: skip
                keep()
    return equal


def place_of(record: dict, backend: str, args) -> dict:
    """Return the part of the record of a backend; a new one if the old one is of other
    steps, batches or versions."""
    from gpuzoo.runtime.environment import versions

    kind = {"steps": args.steps, "batch": args.batch, "versions": versions()}
    old = record["backends"].get(backend, {})
    other = [name for name, value in kind.items() if old.get(name) != value]
    if other:
        if old:
            print(f"{backend}: other {' and '.join(other)}, a new record", flush=True)
        record["backends"][backend] = {
            **kind, "code_sha256": {}, "weights_sha256": {}, "settings": {}
        }  # fmt: skip
    return record["backends"][backend]


def fill(place: dict, name: str, found: dict, why: dict) -> None:
    """Add the digests of models under a setting to the part of a backend.

    The first setting that has a model gives its digest, and `code_sha256` is that of
    the code; where it changes, what was compared with the old one is dropped.
    """
    from gpuzoo.runs.code import code_sha256

    first = place["weights_sha256"]
    for model, digest in found.items():
        if name == FIRST and first.get(model, digest) != digest:
            for told in place["settings"].values():
                told["compared"] = [m for m in told["compared"] if m != model]
                told["differ"].pop(model, None)
        if name == FIRST or model not in first:
            first[model] = digest
            place["code_sha256"][model] = code_sha256()
    old = place["settings"].get(
        name, {"compared": [], "differ": {}, "not_compared": {}}
    )
    others = {m: d for m, d in old["differ"].items() if m not in {**found, **why}}
    differ = {**others, **{m: d for m, d in found.items() if d != first[m]}}
    kept = {m: w for m, w in old["not_compared"].items() if m not in found}
    compared = sorted({*old["compared"], *found} - why.keys())
    place["weights_sha256"] = dict(sorted(first.items()))
    place["settings"][name] = {
        "equal": not differ and bool(compared), "compared": compared,
        "differ": dict(sorted(differ.items())),
        "not_compared": dict(sorted({**kept, **why}.items())),
    }  # fmt: skip


# --- the price ------------------------------------------------------------------------


def step_times(job: dict) -> None:
    """Print seconds of the steps of a training, without tracing and evaluation, one a
    line, whenever a line is read."""
    import gpuzoo

    dataset = gpuzoo.load_data(job["data"])
    (name,) = job["models"]
    trained(name, 0, dataset, job)
    for _ in sys.stdin:
        print(trained(name, 0, dataset, job).seconds["train"], flush=True)


def price(models: list[str], args, record: dict, keep) -> None:
    """Measure each level in its own process, in turns."""
    steps = 1400 // args.batch  # of 1,438 digits
    with tempfile.TemporaryDirectory() as folder:
        data = small_digits(folder, steps, args.batch)
        for backend in args.backends:
            for name in models or PRICED[backend]:
                times = in_turns(backend, name, steps, args, data)
                medians = {lv: statistics.median(t) for lv, t in times.items()}
                row = {f"ms_{lv}": 1000 * t / steps for lv, t in medians.items()}
                for other in ("repeatable", "fast"):
                    pairs = zip(times["portable"], times[other], strict=True)
                    row[f"times_{other}"] = statistics.median(a / b for a, b in pairs)
                record["price"].setdefault(backend, {})[name] = row
                print(backend, name, row, flush=True)
                keep()


def in_turns(backend: str, name: str, steps: int, args, data: str) -> dict:
    processes, times = {}, {}
    for level in ("portable", "repeatable", "fast"):
        runtime = {"backend": backend, "level": level, "precision": "float32",
                   "device": "cpu", "threads": 2}  # fmt: skip
        job = {"data": data, "steps": steps, "batch": args.batch, "models": [name],
               "small": name != "resnet20", "runtime": runtime}  # fmt: skip
        processes[level] = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean({}),
        )  # fmt: skip
    for _ in range(args.rounds):
        for level, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            times.setdefault(level, []).append(float(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    return times


def main() -> None:
    args = parse()
    if args.worker:
        return step_times(json.loads(args.worker))

    import gpuzoo
    from gpuzoo.files import write_atomically
    from gpuzoo.runtime.environment import environment

    usual = () if args.price else gpuzoo.list_models()
    models = sorted(args.models or usual)
    for name in models:
        gpuzoo.model_info(name)
    record = {
        "what": "weights after some steps at level portable, under forced settings",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "backends": {},
        "price": {},
    }
    if args.out.exists():
        old = json.loads(args.out.read_text())
        record.update({name: old[name] for name in ("backends", "price")})

    def keep() -> None:
        write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())

    if args.price:
        return price(models, args, record, keep)
    sys.exit(not compare(models, args, record, keep))


if __name__ == "__main__":
    main()
