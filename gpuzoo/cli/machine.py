"""`gpuzoo bench` and `gpuzoo doctor`: training speed and checks of this machine."""

import dataclasses
from typing import Annotated

import tyro

from gpuzoo.bench import bench, devices
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.cli.parsing import Common, Flag, Output
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import private


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure the training speed of a recipe in each mode of this machine: backend,
    precision, XLA, with and without determinism.

    Exit codes: 0 done, 1 the --goal was not reached.
    """

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    settings: tyro.conf.OmitArgPrefixes[bench.Settings] = bench.Settings()
    output: Common = Output()

    def __call__(self) -> int:
        if self.settings.devices:
            return self._devices()
        found = bench.bench(self.recipe, self.settings, self.output.note)
        path = bench.save(found, self.settings.out)
        if not self.output.quiet:
            _print_bench(found)
        self.output.last_line({
            "record": path, "data": found["data"]["name"],
            "conclusion": found["conclusion"], "goal": found["goal"],
            "examples_per_second": (found["examples_per_second"] or {}).get("median"),
        })  # fmt: skip
        return int(bool(found["goal"]) and not found["goal"]["reached"])

    def _devices(self) -> int:
        found = devices.bench(self.recipe, self.settings, self.output.note)
        if not self.output.quiet:
            _print_devices(found)
        self.output.last_line(private(found))
        return 0


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check the installation and this machine; report each problem and its remedy. With
    --for: check how the installed packages support a GPU that is not here; with
    --devices: check only the devices that JAX would train on together.

    Exit codes: 0 no problem found, 1 there is one.
    """

    quick: Flag = False
    """Skip the repeatability test: a short training, twice on each backend; with --for,
    compile nothing."""
    card: Annotated[str | None, tyro.conf.arg(name="for")] = None
    """A GPU: h200, a100, rtx4090, rtx5090, t4, or the path of a .json file."""
    devices: int | None = None
    """Tell what so many devices are and how they are connected, and time an exchange
    between them; in each process of a job. On a CPU they are virtual."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo import doctor
        from gpuzoo.gpus import check

        if self.card and self.devices is not None:
            raise GpuzooError(
                f"for={self.card} is about a GPU that is not here, and devices="
                f"{self.devices} about those of this machine; leave one of them out"
            )
        if self.devices is not None:
            findings = doctor.examine_devices(self.devices)
        elif self.card:
            findings = check.examine(self.card, quick=self.quick)
        else:
            findings = doctor.examine(quick=self.quick)
        findings = [self._print(finding) for finding in findings]
        summary = {"findings": [dataclasses.asdict(finding) for finding in findings]}
        self.output.last_line(private(summary))
        return int(not all(finding.ok for finding in findings))

    def _print(self, finding):
        """Print each result at once, not in one table: a check may take a minute."""
        if self.output.quiet:
            return finding
        row = table("", "", "", show_header=False)
        for column, size in zip(row.columns, (2, 25), strict=False):
            column.width = size
        mark = "ok" if finding.ok else "NO"
        add_row(row, mark if finding.checked else "--", finding.name, finding.what)
        if finding.remedy:
            add_row(row, "", "", f"-> {finding.remedy}")
        show(row)
        return finding


def _print_devices(found: dict) -> None:
    made = table("devices", "same batch", "same rows\non each", right=("same batch",))
    for row in found["drawn_out"]:
        same = row["times_same_batch"]
        add_row(
            made, str(row["devices"]), f"x {same:.2f}" if same else "-",
            f"x {row['times_same_rows']:.2f}",
        )  # fmt: skip
    measured = found["measured"]
    show(
        f"{found['runtime']['device_name']} · data {found['data']['name']} · "
        f"{found['processes']} process on {found['hosts']} host",
        f"Exchange between two devices: {1000 * measured['latency']:.2f} ms and "
        f"{measured['bandwidth'] / 1e9:.2f} GB/s, for {measured['size'] / 1e6:.1f} MB",
        made,
        "Expected of devices like this one that share nothing, with the same exchange",
    )


def _print_bench(found: dict) -> None:
    heads = (
        "examples\n/s", "vs\ndefault", "determ.", "first\nstep", "overhead", "memory",
        "FLOPS", "band-\nwidth",
    )  # fmt: skip
    made = table("mode", *heads, right=heads, whole=heads)
    for row in found["modes"]:
        if row["error"]:
            add_row(made, row["mode"], "failed")
            continue
        price, times = row["price_of_determinism"], row["times_the_default"]
        part, memory = row["part_of_peak"], row["device_bytes"] or row["memory_bytes"]
        add_row(
            made,
            row["mode"],
            f"{row['examples_per_second']['median']:,.0f}",
            f"x {times['median']:.2f}" if times else "-",
            f"{price['median'] - 1:+.1%}" if price else "-",
            f"{row['first_step_seconds']:.1f} s",
            f"{1000 * row['overhead_seconds']:.2f} ms",
            f"{memory / 1e9:.1f} GB",
            *(f"{part[of]:.0%}" if part[of] else "-" for of in ("flops", "bytes")),
        )
    show(
        f"{found['runtime']['device_name']} · data {found['data']['name']}",
        made,
        "determ.: cost of determinism; overhead: time of a step that computes nothing;",
        "FLOPS, bandwidth: fraction of the measured peak (matrix product, memory copy)",
    )
    if control := found["control"]:
        low_to_high = f"({control['low']:.2f} to {control['high']:.2f})"
        show(
            f"the default in another process: {control['median']:.2f} {low_to_high} "
            "times the default"
        )
    show(_conclusion(found["conclusion"]))


def _conclusion(best: dict) -> str:
    if best["quiet"] is False:
        return (
            "No conclusion: the machine was busy, as two processes of the default mode "
            "differed in speed (expected 1.00). End other programs, or raise --rounds."
        )
    line = (
        f"Fastest mode: {best['fastest']}, {best['examples_per_second']:,.0f} "
        "examples/s"
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
    return line
