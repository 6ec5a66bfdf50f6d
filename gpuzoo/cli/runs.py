"""The commands that take the folder of a run."""

import dataclasses
import sys
import traceback

from gpuzoo.cli.parsing import Flag, Word, last_line, parse
from gpuzoo.errors import GpuzooError


@dataclasses.dataclass(frozen=True)
class ResumeCommand:
    """Finish a run that was stopped or killed, with the bits it would have had."""

    run: Word
    """The run folder."""
    allow_drift: Flag = False
    """Go on although the environment has changed; that is recorded."""
    quiet: Flag = False
    """Print nothing but the JSON line."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class VerifyCommand:
    """Do a run again from its record and compare the bits.

    Exit codes: 0 identical, 1 differs, 2 cannot compare.
    """

    run: Word
    """The run folder."""
    quick: Flag = False
    """Compare only the steps up to the first digest."""
    steps: int = 0
    """Compare only the first so many steps; 0: all, and the final weights."""
    allow_drift: Flag = False
    """Compare although the environment differs."""
    trust_code: Flag = False
    """Execute the run's own code, if its model stands in a user's file."""
    quiet: Flag = False
    """Print nothing but the JSON line."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class DiffCommand:
    """Show what differs between two runs, and where they part.

    Exit codes: 0 identical, 1 differs or one is shorter, 2 a folder is no run.
    """

    run_a: Word
    """A run folder."""
    run_b: Word
    """Another run folder."""
    replay: Flag = False
    """Do both again around the first difference and name the layer it begins in."""
    trust_code: Flag = False
    """Let --replay execute the runs' own code, if a model stands in a user's file."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class DoctorCommand:
    """Look at this machine, tell what is wrong and what mends it.

    Exit codes: 0 all is well, 1 something is not.
    """

    quick: Flag = False
    """Leave out the short training that is done twice on each backend."""
    json: Flag = False
    """Print the JSON line on a terminal too; elsewhere it always is the last line."""
    debug: Flag = False
    """Show the traceback of an error."""


def resume(words: list[str]) -> int:
    asked = parse(ResumeCommand, words, "gpuzoo resume")
    from gpuzoo.training.train import resume

    summary = resume(asked.run, allow_drift=asked.allow_drift, quiet=asked.quiet)
    last_line(summary, asked.json)
    return 130 if summary["state"] == "stopped" else 0


def verify(words: list[str]) -> int:
    asked = parse(VerifyCommand, words, "gpuzoo verify")
    return _without_1("verify", asked.debug, lambda: _verify(asked))


def diff(words: list[str]) -> int:
    asked = parse(DiffCommand, words, "gpuzoo diff")
    return _without_1("diff", asked.debug, lambda: _diff(asked))


def _without_1(command: str, debug: bool, action) -> int:
    """The exit code of a command whose exit code 1 means that a bit differs: whatever
    goes wrong, also in a model's own code, is 2."""
    try:
        return action()
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if debug:
            traceback.print_exc()
            return 2
        if isinstance(error, GpuzooError) and error.exit_code == 2:
            raise
        line = " ".join(str(error).split())[:300]
        kind = "" if isinstance(error, GpuzooError) else f"{type(error).__name__}: "
        raise GpuzooError(
            f"{command} could not be carried out: {kind}{line} (--debug shows where)"
        ) from error


def _verify(asked: VerifyCommand) -> int:
    from gpuzoo.repro.verify import verify
    from gpuzoo.runs.record import read_run, recipe_of

    steps = asked.steps
    if asked.quick:
        steps = recipe_of(read_run(asked.run, sealed=False)).digest_every

    def say(text: str) -> None:
        if not asked.quiet:
            print(text, file=sys.stderr, flush=True)

    found = verify(
        asked.run,
        steps=steps,
        allow_drift=asked.allow_drift,
        trust_code=asked.trust_code,
        note=say,
    )
    say(f"{found['run_dir']}: {found['verdict']}, {found['steps']} steps compared")
    for line in _first_difference(found):
        say(line)
    for number, cause in enumerate(found["causes"], start=1):
        say(f"likely cause {number}: {cause}")
    last_line(found, asked.json)
    return found["exit_code"]


def _diff(asked: DiffCommand) -> int:
    from gpuzoo.repro.diff import diff

    found = diff(
        asked.run_a,
        asked.run_b,
        replay=asked.replay,
        trust_code=asked.trust_code,
        note=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(f"{'':<34}{asked.run_a:<30}{asked.run_b}")
    for group in ("settings", "environment", "data"):
        for field, one, other in found[group]:
            print(f"{field:<34}{_short(one):<30}{_short(other)}")
    for path, names in zip(
        (asked.run_a, asked.run_b), found["changed_files"], strict=True
    ):
        for name in names:
            print(f"{path}/{name} has been changed since the run ended")
    for line in [*_first_difference(found), *found["rows"][:5], *_replayed(found)]:
        print(line)
    print(f"{found['verdict']}, {found['compared']} steps compared")
    last_line(found, asked.json)
    return found["exit_code"]


def bench(recipe, settings, quiet: bool, json: bool) -> int:
    """Exit code 1 if a goal was asked for and not reached."""
    from gpuzoo.bench import bench as benches

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    found = benches.bench(recipe, settings, say)
    path = benches.save(found, settings.out)
    if not quiet:
        _print_bench(found)
    last_line({
        "record": path, "data": found["data"]["name"],
        "conclusion": found["conclusion"], "goal": found["goal"],
        "examples_per_second": (found["examples_per_second"] or {}).get("median"),
    }, json)  # fmt: skip
    return int(bool(found["goal"]) and not found["goal"]["reached"])


def doctor(words: list[str]) -> int:
    asked = parse(DoctorCommand, words, "gpuzoo doctor")
    from gpuzoo.doctor import examine
    from gpuzoo.runs.record import private

    def say(finding) -> None:
        print(f"{'ok' if finding.ok else 'NO':<4}{finding.name:<27}{finding.what}")
        if finding.remedy:
            print(f"{'':<31}-> {finding.remedy}")
        sys.stdout.flush()

    findings = examine(quick=asked.quick, note=say)
    told = {"findings": [dataclasses.asdict(finding) for finding in findings]}
    last_line(private(told), asked.json)
    return int(not all(finding.ok for finding in findings))


def _print_bench(found: dict) -> None:
    print(f"{found['runtime']['device_name']} · data {found['data']['name']}")
    heads = (
        "a second", "default", "determ.", "first", "empty", "memory", "product", "copy",
    )  # fmt: skip
    _print_row("mode", heads)
    for row in found["modes"]:
        if row["error"]:
            _print_row(row["mode"], ("failed",))
            continue
        price, times = row["price_of_determinism"], row["times_the_default"]
        part, memory = row["part_of_peak"], row["device_bytes"] or row["memory_bytes"]
        cells = (
            f"{row['examples_per_second']['median']:,.0f}",
            f"x {times['median']:.2f}" if times else "-",
            f"{price['median'] - 1:+.1%}" if price else "-",
            f"{row['first_step_seconds']:.1f} s",
            f"{1000 * row['overhead_seconds']:.2f} ms",
            f"{memory / 1e9:.1f} GB",
            *(f"{part[of]:.0%}" if part[of] else "-" for of in ("flops", "bytes")),
        )
        _print_row(row["mode"], cells)
    print("determ.: what determinism costs; empty: a step that computes nothing;")
    print("product, copy: part of the device's peak of a matrix product, of memory")
    if control := found["control"]:
        print(f"the default in another process: {_times(control)} times the default")
    best = found["conclusion"]
    if best["quiet"] is False:
        print(
            "No conclusion: the machine was not quiet, as the default differed from "
            "itself (1.00 is right). End other programs, or name more --rounds."
        )
        return
    line = (
        f"Fastest of these: {best['fastest']}, {best['examples_per_second']:,.0f} "
        "examples a second"
    )
    if times := best["times_the_default"]:
        line += f", {times['median']:.2f} times the default"
        line += ", which is faster" * (times["high"] < 1)
    line += "."
    if price := best["price_of_determinism"]:
        line += (
            f" Repeatability costs {price['median'] - 1:+.1%} there (95 % interval "
            f"{price['low'] - 1:+.1%} to {price['high'] - 1:+.1%})."
        )
    print(line)


def _times(told: dict) -> str:
    return f"{told['median']:.2f} ({told['low']:.2f} to {told['high']:.2f})"


def _print_row(mode: str, cells: tuple[str, ...]) -> None:
    print(f"{mode:<24}" + "".join(f"{cell:>8}" for cell in cells))


def _first_difference(found: dict) -> list[str]:
    lines = []
    if first := found["first_difference"]:
        names = ", ".join(first["variables"]) or "no weight at the next digest"
        lines.append(
            f"first difference: {first['what']} of step {first['step']}; {names}"
        )
    for name, ulp in found["weights"].items():
        size = "is of another shape or type" if ulp is None else f"differs by {ulp} ulp"
        lines.append(f"final weights: {name} {size}")
    return lines


def _replayed(found: dict) -> list[str]:
    again = found["replay"]
    if not again:
        return []
    lines = [
        f"replay of {path}: not the losses that were recorded"
        for path, same in zip("AB", again["replayed"], strict=True)
        if not same
    ]
    if again["step"] is None:
        return [*lines, "replayed here, both sides are equal"]
    line = f"replayed: the first to differ is {again['where']} in step {again['step']}"
    if again["values"]:
        line += (
            f", in {again['differing']:,} of {again['values']:,} values by at most "
            f"{again['largest']:.3g}"
        )
    return [*lines, line]


def _short(value) -> str:
    text = str(value)
    return text if len(text) < 28 else text[:25] + "..."
